//! Manual pages: section 1 of the commands, section 5 of the settings, section 7 of the other topics.
//!
//! Those of commands are clap_mangen's. Those of topics are written from the same pages that `cista help` shows, with the macros of
//! man(7) and, for tables and lists, `.TP`: the first cell is the tag, as in every list of options.

use std::io;
use std::path::Path;

use cista::cli;
use cista::manual::page::{self, Block, Span, Text};
use cista::manual::{TOPICS, Topic, reference};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

/// What stands at the foot of each page.
const SOURCE: &str = concat!("cista ", env!("CARGO_PKG_VERSION"));
/// What stands at the head of each page.
const MANUAL: &str = "Cista Manual";
/// The topic that has the page of the file of settings.
const SETTINGS: (&str, &str, &str) = ("settings", "cista.toml", "5");

/// Writes all of them below a directory.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    let mut program = cli::command().disable_help_subcommand(true);
    program.build();
    commands(&program, &directory.join("man1"))?;
    for topic in TOPICS {
        let (name, section) = if topic.name == SETTINGS.0 {
            (SETTINGS.1.to_owned(), SETTINGS.2)
        } else {
            (format!("cista-{}", topic.name), "7")
        };
        let text = page_of(topic, &name, section)?.to_roff();
        super::write(
            &directory.join(format!("man{section}")),
            &format!("{name}.{section}"),
            text,
        )?;
    }
    Ok(())
}

/// The pages of a command and of those below it.
fn commands(command: &Command, directory: &Path) -> io::Result<()> {
    for below in reference::visible(command) {
        commands(below, directory)?;
    }
    let is_program = command
        .get_display_name()
        .is_none_or(|name| !name.contains('-'));
    let man = Man::new(command.clone()).source(SOURCE).manual(MANUAL);
    let mut text = Vec::new();
    man.render(&mut text)?;
    if is_program {
        let topics = TOPICS.iter().map(|topic| {
            if topic.name == SETTINGS.0 {
                format!("{}({})", SETTINGS.1, SETTINGS.2)
            } else {
                format!("cista-{}(7)", topic.name)
            }
        });
        let mut more = Roff::new();
        more.control("SH", ["SEE ALSO"]);
        more.text([roman(topics.collect::<Vec<_>>().join(", "))]);
        text.extend(more.to_roff().into_bytes());
    }
    super::write(directory, &man.get_filename(), text)
}

/// The page of a topic.
fn page_of(topic: &Topic, name: &str, section: &str) -> io::Result<Roff> {
    let mut roff = Roff::new();
    roff.control("TH", [name, section, "", SOURCE, MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{name} - {}", topic.about))]);
    let mut has_section = false;
    for block in topic.blocks()? {
        match block {
            // The title is the page's name.
            Block::Heading(1, _) => continue,
            Block::Heading(2, text) => {
                roff.control("SH", [page::plain(&text, true).to_uppercase().as_str()]);
            }
            Block::Heading(_, text) => {
                roff.control("SS", [page::plain(&text, true).as_str()]);
            }
            block => {
                if !has_section {
                    roff.control("SH", ["DESCRIPTION"]);
                }
                write_block(&block, &mut roff);
            }
        }
        has_section = true;
    }
    Ok(roff)
}

fn write_block(block: &Block, roff: &mut Roff) {
    match block {
        Block::Heading(..) => {}
        Block::Paragraph(text) => {
            roff.control("PP", []);
            roff.text(inline(text));
        }
        Block::Code(code) => {
            roff.control("PP", [])
                .control("RS", ["4"])
                .control("nf", []);
            for line in code.lines() {
                // An empty line of text would end the paragraph.
                roff.text([roman(line)]);
            }
            roff.control("fi", []).control("RE", []);
        }
        Block::List(start, items) => {
            for (number, item) in (start.unwrap_or(0)..).zip(items) {
                match start {
                    Some(_) => roff.control("IP", [format!("{number}.").as_str(), "4"]),
                    None => roff.control("IP", ["\\(bu", "2"]),
                };
                for (position, block) in item.iter().enumerate() {
                    match block {
                        Block::Paragraph(text) if position == 0 => {
                            roff.text(inline(text));
                        }
                        block => {
                            roff.control("RS", []);
                            write_block(block, roff);
                            roff.control("RE", []);
                        }
                    }
                }
            }
        }
        Block::Table(_, rows) => {
            for row in rows {
                let Some((first, others)) = row.split_first() else {
                    continue;
                };
                roff.control("TP", []);
                roff.text(inline(first));
                let mut text = Vec::new();
                for cell in others.iter().filter(|cell| !cell.is_empty()) {
                    if !text.is_empty() {
                        text.push(roman("; "));
                    }
                    text.extend(inline(cell));
                }
                roff.text(text);
            }
        }
    }
}

/// Code in bold, as man pages have what is typed.
fn inline(text: &Text) -> Vec<Inline> {
    text.iter()
        .map(|span| match span {
            Span::Plain(text) => roman(text.as_str()),
            Span::Code(text) | Span::Strong(text) => bold(text.as_str()),
        })
        .collect()
}
