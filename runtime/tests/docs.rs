//! What README and docs/ say agrees with the program: commands, options, settings, links, and the reference made from the code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../src/manual/markdown.rs"]
mod markdown;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cista::cli;
use cista::config::settings;
use cista::manual::page::{self, Block, Span};
use cista::manual::reference;
use clap::error::ErrorKind;

/// Variables that are no settings: those that hooks get, that tests read, and the directory of the administrator's files.
const OTHER_VARIABLES: &[&str] = &[
    "CISTA_SYSCONF_PATH",
    "CISTA_PID",
    "CISTA_ROOTFS",
    "CISTA_ENVIRON",
    "CISTA_MOUNTS",
    "CISTA_BIN",
    "CISTA_NAME",
];

/// Options of other programs that pages name: of srun, docker, git.
const OF_OTHERS: &[&str] = &[
    "--export",
    "--security-opt",
    "--gpus-per-task",
    "--gpus",
    "--gres",
    "--pty",
    "--mpi",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Every page for users, with its path below the repository.
fn pages() -> Vec<(PathBuf, String)> {
    let root = repository();
    let mut files = vec![PathBuf::from("README.md")];
    for directory in ["docs", "docs/reference", "packaging"] {
        for entry in fs::read_dir(root.join(directory)).unwrap() {
            let name = entry.unwrap().file_name();
            let file = Path::new(directory).join(name);
            if file.extension().is_some_and(|extension| extension == "md") {
                files.push(file);
            }
        }
    }
    files.sort();
    assert!(files.len() > 10, "{files:?}");
    files
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(root.join(&file)).unwrap();
            (file, text)
        })
        .collect()
}

/// The code below a directory, as one text.
fn source(directory: &str) -> String {
    let mut text = String::new();
    let mut pending = vec![repository().join(directory)];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
    text
}

/// The pieces of code of a text.
fn typed(text: &[Span]) -> impl Iterator<Item = String> {
    text.iter().filter_map(|span| match span {
        Span::Code(code) => Some(code.clone()),
        _ => None,
    })
}

/// The blocks of code and the pieces of code of a page.
fn code(blocks: &[Block], lines: &mut Vec<String>, pieces: &mut Vec<String>) {
    for block in blocks {
        match block {
            Block::Heading(_, words) | Block::Paragraph(words) => pieces.extend(typed(words)),
            Block::Code(code) => lines.extend(code.lines().map(str::to_owned)),
            Block::Table(head, rows) => {
                for cell in head.iter().chain(rows.iter().flatten()) {
                    pieces.extend(typed(cell));
                }
            }
            Block::List(_, items) => {
                for item in items {
                    code(item, lines, pieces);
                }
            }
        }
    }
}

/// The command lines of `program` in a line of a shell.
fn command_lines(line: &str, program: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut words = Vec::new();
    let mut word = String::new();
    let mut is_word = false;
    let mut quote = None;
    let mut letters = line.chars().peekable();
    let mut end = |words: &mut Vec<String>| {
        let begins = words
            .iter()
            .position(|word| word == program)
            // Nothing but assignments, a prompt and programs that run programs may stand before it.
            .filter(|&at| {
                words[..at].iter().all(|word| {
                    word.contains('=')
                        || ["$", "#", "sudo", "exec", "time", "srun"].contains(&word.as_str())
                })
            });
        if let Some(at) = begins {
            found.push(words.split_off(at));
        }
        words.clear();
    };
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some(_), letter) => word.push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                is_word = true;
            }
            (None, '\\') => word.extend(letters.next()),
            (None, '#') if word.is_empty() && !words.is_empty() => break,
            (None, ' ' | '\t' | ';' | '&' | '|' | '>' | '<' | ')') => {
                if is_word || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                    is_word = false;
                }
                // What is written to or read from is no argument.
                match letter {
                    '>' | '<' => {
                        end(&mut words);
                        break;
                    }
                    ' ' | '\t' => {
                        // Two blanks before words that are no options: a description stands beside the command.
                        if letters.peek() == Some(&' ') && !words.is_empty() {
                            break;
                        }
                    }
                    _ => end(&mut words),
                }
            }
            (None, letter) => word.push(letter),
        }
    }
    if is_word || !word.is_empty() {
        words.push(word);
    }
    end(&mut words);
    found
}

/// The ways to write a command line with `[OPTIONAL]` parts: all of it, and without the brackets' content.
fn without_brackets(words: &[String]) -> Vec<String> {
    let mut depth = 0_usize;
    let mut kept = Vec::new();
    for word in words {
        let opens = word.starts_with('[');
        if opens {
            depth += 1;
        }
        if depth == 0 {
            kept.push(word.clone());
        }
        if depth > 0 && word.ends_with([']', '…']) {
            depth -= 1;
        }
    }
    kept.retain(|word| word != "…" && word != "...");
    kept
}

#[test]
fn the_reference_is_that_of_the_code() {
    let directory = repository().join("docs/reference");
    for (file, made) in [
        ("settings.md", reference::settings_file()),
        ("commands.md", reference::commands_file(cli::command())),
    ] {
        let stands = fs::read_to_string(directory.join(file)).unwrap();
        assert!(
            stands == made,
            "docs/reference/{file} is out of date: `cargo xtask docs` makes it again"
        );
    }
}

#[test]
fn commands_in_the_documentation_are_understood() {
    let mut count = 0;
    for (file, text) in pages() {
        let (mut lines, mut pieces) = (Vec::new(), Vec::new());
        code(&markdown::parse(&text), &mut lines, &mut pieces);
        let whole = lines.iter().map(|line| (line, true));
        for (line, is_whole) in whole.chain(pieces.iter().map(|piece| (piece, false))) {
            for words in command_lines(line, "cista") {
                let words = without_brackets(&words);
                // The program's name alone, or `COMMAND` for any.
                if words.len() == 1 || words.iter().any(|word| word == "COMMAND") && !is_whole {
                    continue;
                }
                count += 1;
                let Err(error) = cli::command().try_get_matches_from(&words) else {
                    continue;
                };
                let may_be = match error.kind() {
                    ErrorKind::DisplayHelp => true,
                    // In a text a command may be named without all of its arguments.
                    ErrorKind::MissingRequiredArgument
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                        !is_whole || file.starts_with("docs/reference")
                    }
                    // Names of values stand for values, and a file that is not open here may be where it is used.
                    ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
                        file.starts_with("docs/reference")
                            || words.iter().any(|word| {
                                word == "--keep-fd"
                                    || word.chars().any(|letter| letter.is_ascii_uppercase())
                            })
                    }
                    _ => {
                        file.starts_with("docs/reference")
                            && words.iter().any(|word| word.starts_with('<'))
                    }
                };
                assert!(may_be, "{}: `{line}`: {error}", file.display());
            }
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn options_in_the_documentation_exist() {
    let mut known = BTreeSet::new();
    let mut program = cli::command();
    program.build();
    let mut pending = vec![&program];
    while let Some(command) = pending.pop() {
        pending.extend(command.get_subcommands());
        for argument in command.get_arguments() {
            known.extend(argument.get_long().map(|name| format!("--{name}")));
        }
    }
    let options_of_plugin = source("spank-plugin/src");
    // A bundle's options are described by a command of its own.
    known.extend(["--info", "--verify", "--extract", "--keep", "--quiet"].map(str::to_owned));
    for (file, text) in pages() {
        let mut pieces = Vec::new();
        code(&markdown::parse(&text), &mut Vec::new(), &mut pieces);
        for piece in pieces.iter().filter(|piece| piece.starts_with("--")) {
            let name = piece.split([' ', '=', '[']).next().unwrap_or_default();
            let plugin = name
                .strip_prefix("--no-")
                .or_else(|| name.strip_prefix("--"))
                .unwrap_or(name);
            // The plugin has options of its own, and a page about Slurm names those of its commands.
            let is_known = known.contains(name)
                || OF_OTHERS.contains(&name)
                || match plugin.starts_with("container-") {
                    true => options_of_plugin.contains(plugin),
                    false => file.ends_with("slurm.md") || name.ends_with('-'),
                };
            assert!(is_known, "{}: there is no option `{piece}`", file.display());
        }
    }
}

#[test]
fn settings_in_the_documentation_exist() {
    for (file, text) in pages() {
        for (at, _) in text.match_indices("CISTA_") {
            let name: String = text[at..]
                .chars()
                .take_while(|letter| {
                    letter.is_ascii_uppercase() || letter.is_ascii_digit() || *letter == '_'
                })
                .collect();
            let is_known = OTHER_VARIABLES.contains(&name.as_str())
                || ["CISTA_TEST_", "CISTA_CONTAINER_"].iter().any(|prefix| name.starts_with(prefix))
                // `CISTA_…`, and the beginning of several.
                || name.ends_with('_') && settings::ALL.iter().any(|setting| setting.variables.iter().any(|variable| variable.starts_with(&name)))
                || settings::ALL.iter().any(|setting| setting.variables.contains(&name.as_str()));
            assert!(is_known, "{}: there is no setting `{name}`", file.display());
        }
        let mut pieces = Vec::new();
        code(&markdown::parse(&text), &mut Vec::new(), &mut pieces);
        let sections: BTreeSet<&str> = settings::ALL
            .iter()
            .map(|setting| setting.section)
            .collect();
        for piece in &pieces {
            let Some((section, key)) = piece.split_once('.') else {
                continue;
            };
            let is_key = !key.is_empty()
                && key
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            if sections.contains(section) && is_key {
                assert!(
                    settings::ALL
                        .iter()
                        .any(|setting| (setting.section, setting.key) == (section, key)),
                    "{}: there is no setting `{piece}`",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn messages_that_are_explained_exist() {
    let code = source("runtime/src") + &source("images/src");
    let text = fs::read_to_string(repository().join("docs/troubleshooting.md")).unwrap();
    let mut count = 0;
    for block in markdown::parse(&text) {
        let Block::Heading(3, heading) = block else {
            continue;
        };
        count += 1;
        for part in page::plain(&heading, false).split('…') {
            let part = part.trim_matches([' ', '`']);
            assert!(code.contains(part), "no error says `{part}`");
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    for (file, text) in pages() {
        let directory = repository().join(file.parent().unwrap());
        for (at, _) in text.match_indices("](") {
            let target: String = text[at + 2..]
                .chars()
                .take_while(|&letter| letter != ')')
                .collect();
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let path = target.split('#').next().unwrap_or_default();
            assert!(
                directory.join(path).exists(),
                "{}: `{target}` leads nowhere",
                file.display()
            );
        }
    }
}

#[test]
fn lines_of_a_shell_are_taken_apart() {
    for (line, expected) in [
        ("$ cista start x.sqsh", "cista,start,x.sqsh"),
        ("docker save I | cista import -o F -", "cista,import,-o,F,-"),
        (
            "cista list -f; cista remove py",
            "cista,list,-f|cista,remove,py",
        ),
        ("cista run a  # cista nothing", "cista,run,a"),
        ("cista run a 'b c' \"\"", "cista,run,a,b c,"),
        ("A=1 cista check >x", "cista,check"),
        ("cista bundle I && ./I.run", "cista,bundle,I"),
        (
            "cista cache list                        what is there",
            "cista,cache,list",
        ),
        ("see cista start", ""),
    ] {
        let found: Vec<String> = command_lines(line, "cista")
            .iter()
            .map(|words| words.join(","))
            .collect();
        assert_eq!(found.join("|"), expected, "{line}");
    }
    let words: Vec<String> = "cista inspect FILE [--json] [-x Y] z"
        .split(' ')
        .map(str::to_owned)
        .collect();
    assert_eq!(without_brackets(&words).join(" "), "cista inspect FILE z");
}
