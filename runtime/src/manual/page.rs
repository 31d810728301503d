//! A page of the manual, read from Markdown: headings, paragraphs, lists, tables, code.
//!
//! Markdown is what CommonMark 0.31 and GitHub's tables make of it; what a terminal and a man page cannot show (where a link
//! leads, HTML, pictures) is left out.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// A part of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// What has been opened and not closed yet.
#[derive(Debug)]
enum Open {
    List(Option<u64>, Vec<Vec<Block>>),
    Item(Vec<Block>),
    Table(Vec<Text>, Vec<Vec<Text>>),
}

/// Reads a page.
#[must_use]
pub fn parse(markdown: &str) -> Vec<Block> {
    let mut reader = Reader::default();
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        reader.event(event);
    }
    reader.blocks
}

#[derive(Debug, Default)]
struct Reader {
    blocks: Vec<Block>,
    open: Vec<Open>,
    text: Text,
    /// The lines of a block of code, while it lasts.
    code: Option<String>,
    row: Vec<Text>,
    is_strong: bool,
}

impl Reader {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(Tag::Strong | Tag::Emphasis) => self.is_strong = true,
            Event::End(TagEnd::Strong | TagEnd::Emphasis) => self.is_strong = false,
            Event::Start(Tag::CodeBlock(_)) => {
                self.loose_text();
                self.code = Some(String::new());
            }
            Event::Start(Tag::List(start)) => {
                self.loose_text();
                self.open.push(Open::List(start, Vec::new()));
            }
            Event::Start(Tag::Item) => self.open.push(Open::Item(Vec::new())),
            Event::Start(Tag::Table(_)) => self.open.push(Open::Table(Vec::new(), Vec::new())),
            Event::Text(text) => match &mut self.code {
                Some(code) => code.push_str(&text),
                None if self.is_strong => self.text.push(Span::Strong(text.into_string())),
                None => self.text.push(Span::Plain(text.into_string())),
            },
            Event::Code(code) => self.text.push(Span::Code(code.into_string())),
            Event::SoftBreak | Event::HardBreak => self.text.push(Span::Plain(" ".into())),
            Event::End(end) => self.end(end),
            _ => {}
        }
    }

    fn end(&mut self, end: TagEnd) {
        match end {
            TagEnd::Heading(level) => {
                let text = std::mem::take(&mut self.text);
                self.block(Block::Heading(level as usize, text));
            }
            TagEnd::Paragraph => self.loose_text(),
            TagEnd::CodeBlock => {
                if let Some(code) = self.code.take() {
                    self.block(Block::Code(code));
                }
            }
            TagEnd::TableCell => {
                let cell = std::mem::take(&mut self.text);
                self.row.push(cell);
            }
            TagEnd::TableHead | TagEnd::TableRow => {
                let row = std::mem::take(&mut self.row);
                if let Some(Open::Table(head, rows)) = self.open.last_mut() {
                    if end == TagEnd::TableHead {
                        *head = row;
                    } else {
                        rows.push(row);
                    }
                }
            }
            TagEnd::Item => {
                // The text of an item of a tight list is in no paragraph.
                self.loose_text();
                if let Some(Open::Item(blocks)) = self.open.pop()
                    && let Some(Open::List(_, items)) = self.open.last_mut()
                {
                    items.push(blocks);
                }
            }
            TagEnd::List(_) | TagEnd::Table => match self.open.pop() {
                Some(Open::List(start, items)) => self.block(Block::List(start, items)),
                Some(Open::Table(head, rows)) => self.block(Block::Table(head, rows)),
                _ => {}
            },
            _ => {}
        }
    }

    /// Makes a paragraph of the text so far, if there is any.
    fn loose_text(&mut self) {
        if !self.text.is_empty() {
            let text = std::mem::take(&mut self.text);
            self.block(Block::Paragraph(text));
        }
    }

    fn block(&mut self, block: Block) {
        match self.open.last_mut() {
            Some(Open::Item(blocks)) => blocks.push(block),
            _ => self.blocks.push(block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_blocks() {
        let blocks = parse(
            "# A `b`\n\nOne\ntwo **three** [four](x.md).\n\n    code\n    more\n\n- a\n- b `c`\n\n3. d\n\n   e\n\n| h | i |\n|---|---|\n| `j` | k\\|l |\n",
        );
        let text = |text: &str| vec![Span::Plain(text.to_owned())];
        let item = |words: &str| vec![Block::Paragraph(text(words))];
        assert_eq!(
            blocks[0],
            Block::Heading(1, vec![Span::Plain("A ".into()), Span::Code("b".into())])
        );
        let Block::Paragraph(paragraph) = &blocks[1] else {
            panic!("{blocks:?}");
        };
        assert_eq!(plain(paragraph, true), "One two three four.");
        assert_eq!(blocks[2], Block::Code("code\nmore\n".into()));
        let Block::List(None, items) = &blocks[3] else {
            panic!("{blocks:?}");
        };
        assert_eq!((items.len(), &items[0]), (2, &item("a")));
        let Block::List(Some(3), items) = &blocks[4] else {
            panic!("{blocks:?}");
        };
        assert_eq!(items[0], [item("d"), item("e")].concat());
        let Block::Table(head, rows) = &blocks[5] else {
            panic!("{blocks:?}");
        };
        assert_eq!(*head, [text("h"), text("i")]);
        assert_eq!(plain(&rows[0][0], false), "`j`");
        assert_eq!(plain(&rows[0][1], false), "k|l");
    }
}
