//! A page of the manual: headings, paragraphs, lists, tables, code.

use serde::{Deserialize, Serialize};

/// A part of a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Block {
    /// A heading; level 1 is the title of the page.
    Heading(usize, Text),
    /// A paragraph.
    Paragraph(Text),
    /// Lines to be shown as they are.
    Code(String),
    /// A list: the number of its first item, where they have numbers, and the items.
    List(Option<u64>, Vec<Vec<Block>>),
    /// A table: its headings, and its rows.
    Table(Vec<Text>, Vec<Vec<Text>>),
}

/// A text in pieces.
pub type Text = Vec<Span>;

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Span {
    /// Text.
    Plain(String),
    /// What is typed, or a name.
    Code(String),
    /// Text that stands out.
    Strong(String),
}

/// A text without its markup: code stands between backticks unless `bare`.
#[must_use]
pub fn plain(text: &[Span], bare: bool) -> String {
    let piece = |span: &Span| match span {
        Span::Code(code) if !bare => format!("`{code}`"),
        Span::Plain(text) | Span::Strong(text) | Span::Code(text) => text.clone(),
    };
    text.iter().map(piece).collect()
}
