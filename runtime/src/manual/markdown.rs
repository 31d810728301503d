//! Reads a page from Markdown.
//!
//! Markdown is what CommonMark 0.31 and GitHub's tables make of it; what a terminal and a man page cannot show (where a link
//! leads, HTML, pictures) is left out. This is done when the program is built: a parser brings two thousand names of characters, which the
//! dynamic linker would adjust in each start of a container.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::page::{Block, Span, Text};

/// What has been opened and not closed yet.
#[derive(Debug)]
enum Open {
    List(Option<u64>, Vec<Vec<Block>>),
    Item(Vec<Block>),
    Table(Vec<Text>, Vec<Vec<Text>>),
}

/// Reads a page.
#[must_use]
pub(super) fn parse(markdown: &str) -> Vec<Block> {
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
    use super::super::page::plain;
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
