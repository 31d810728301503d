//! A page of the manual, laid out for a terminal: headings at the margin, text below them in lines of a certain width.

use super::page::{Block, Text, plain};

/// Blanks before everything that is no heading.
const MARGIN: usize = 4;
/// Blanks before code, and before what belongs to the line above, further.
const STEP: usize = 4;
/// Blanks between the columns of a table.
const GAP: usize = 2;
/// The narrowest column that a text is laid out in, whatever the width asked for.
const NARROWEST: usize = 20;

/// A page as text in lines of at most `width` characters; code is not broken.
#[must_use]
pub fn layout(blocks: &[Block], width: usize) -> String {
    let mut lines = Vec::new();
    for block in blocks {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        write(block, MARGIN, width, &mut lines);
    }
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

fn write(block: &Block, margin: usize, width: usize, lines: &mut Vec<String>) {
    match block {
        Block::Heading(1, text) => lines.push(plain(text, true).to_uppercase()),
        Block::Heading(_, text) => lines.push(plain(text, true)),
        Block::Paragraph(text) => wrap(&plain(text, false), margin, width, lines),
        Block::Code(code) => {
            let margin = " ".repeat(margin + STEP);
            lines.extend(code.lines().map(|line| format!("{margin}{line}")));
        }
        Block::List(start, items) => list(*start, items, margin, width, lines),
        Block::Table(_, rows) => table(rows, margin, width, lines),
    }
}

fn list(
    start: Option<u64>,
    items: &[Vec<Block>],
    margin: usize,
    width: usize,
    lines: &mut Vec<String>,
) {
    for (number, item) in (start.unwrap_or(0)..).zip(items) {
        let mark = match start {
            Some(_) => format!("{number}. "),
            None => "- ".to_owned(),
        };
        let first = lines.len();
        let inner = margin + mark.chars().count();
        for (position, block) in item.iter().enumerate() {
            if position > 0 && !matches!(block, Block::List(..)) {
                lines.push(String::new());
            }
            write(block, inner, width, lines);
        }
        if let Some(line) = lines.get_mut(first) {
            let text = line.trim_start().to_owned();
            *line = format!("{}{mark}{text}", " ".repeat(margin));
        }
    }
}

/// A table without its headings: columns where there is room for them. Otherwise each row's last cell stands below the others.
fn table(rows: &[Vec<Text>], margin: usize, width: usize, lines: &mut Vec<String>) {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| plain(cell, true)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let leading = columns.saturating_sub(1);
    let widths: Vec<usize> = (0..leading)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let before: usize = widths.iter().map(|width| width + GAP).sum();
    let has_room = margin + before + width / 2 <= width;
    for row in &rows {
        let (last, others) = match row.split_last() {
            Some((last, others)) if row.len() == columns => (last.as_str(), others),
            _ => ("", &row[..]),
        };
        if has_room {
            let first = lines.len();
            wrap(last, margin + before, width, lines);
            if lines.len() == first {
                lines.push(String::new());
            }
            let mut start = " ".repeat(margin);
            for (cell, width) in others.iter().zip(&widths) {
                start.push_str(&format!("{cell:<0$}", width + GAP));
            }
            let text = lines[first].trim_start().to_owned();
            lines[first] = format!("{start}{text}").trim_end().to_owned();
        } else {
            let others: Vec<&str> = others
                .iter()
                .map(String::as_str)
                .filter(|cell| !cell.is_empty())
                .collect();
            wrap(&others.join("  "), margin, width, lines);
            wrap(last, margin + STEP, width, lines);
        }
    }
}

/// Adds the lines of a text. A word that is wider than a line is not broken.
fn wrap(text: &str, margin: usize, width: usize, lines: &mut Vec<String>) {
    let room = width.saturating_sub(margin).max(NARROWEST);
    let mut line = String::new();
    let mut length = 0;
    for word in text.split(' ') {
        let letters = word.chars().count();
        if length > 0 && length + 1 + letters > room {
            lines.push(std::mem::take(&mut line).trim_end().to_owned());
            length = 0;
        }
        if length == 0 {
            line = " ".repeat(margin);
        } else {
            line.push(' ');
            length += 1;
        }
        line.push_str(word);
        length += letters;
    }
    if length > 0 {
        lines.push(line.trim_end().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manual::markdown::parse;

    #[test]
    fn a_page_is_laid_out() {
        let text = layout(
            &parse(
                "# Title\n\nSome words that take more than one line.\n\n- first\n- second item that is long enough\n  - inner\n\n\
                 | a | b |\n|---|---|\n| `x` | what x is and does for you |\n| yy | |\n\n    code  as it is\n",
            ),
            32,
        );
        let expected = "\
TITLE

    Some words that take more
    than one line.

    - first
    - second item that is long
      enough
      - inner

    x   what x is and does for
        you
    yy

        code  as it is
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_table_that_is_too_wide_becomes_a_list() {
        let page = parse("| a | b |\n|---|---|\n| a rather wide first cell | the rest |\n");
        assert_eq!(
            layout(&page, 40),
            "    a rather wide first cell\n        the rest\n"
        );
    }
}
