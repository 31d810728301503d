//! What a person or a script sees: data on stdout, messages and progress on stderr.
//!
//! The form of messages: `error:` and the chain of causes, `hint:` when there is something to do, backticks around
//! commands and paths. Meaning never depends on colour. With `--log-format json` each message is an object of JSON instead ([`log`]).

#![expect(clippy::print_stderr, reason = "this module owns both streams")]

pub mod log;
pub mod progress;
pub mod prompt;

use std::borrow::Cow;
use std::error::Error;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::{Failure, status};
use log::Level;

/// Writes a line of data to stdout. A closed pipe is no error: the reader has seen enough.
pub fn data(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Tells something that went right, on stderr.
pub fn message(text: impl std::fmt::Display) {
    tell(Level::Info, "", &text);
}

static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// From now on, says nothing but warnings and errors.
pub fn be_quiet() {
    IS_QUIET.store(true, Ordering::Relaxed);
}

/// Tells something that should not go unseen although nothing is wrong, unless nothing but warnings and errors is wanted.
pub fn note(text: impl std::fmt::Display) {
    if IS_QUIET.load(Ordering::Relaxed) {
        return;
    }
    tell(Level::Note, "note: ", &text);
}

/// Warns about something that stops nothing.
pub fn warning(text: impl std::fmt::Display) {
    tell(Level::Warning, "warning: ", &text);
}

fn tell(level: Level, label: &str, text: &dyn std::fmt::Display) {
    let text = text.to_string();
    let text = shortened(&text);
    if log::is_json() {
        log::message(level, &text);
    } else {
        eprintln!("{label}{}", harmless(&text));
    }
}

/// Longest message, in bytes: a document of a registry, for instance, may have any length, and parts of it stand in errors.
const LONGEST: usize = 4 << 10;

/// A text without its middle where it is too long.
fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST {
        return text.into();
    }
    let half = LONGEST / 2;
    let is_boundary = |at: &usize| text.is_char_boundary(*at);
    let begin = (0..=half).rev().find(is_boundary).unwrap_or(0);
    let end = (text.len() - half..=text.len()).find(is_boundary);
    format!(
        "{} … {}",
        &text[..begin],
        &text[end.unwrap_or(text.len())..]
    )
    .into()
}

/// A text without what a terminal would take for commands: images, registries and files have their say in messages.
fn harmless(text: &str) -> Cow<'_, str> {
    let is_harmful = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if !text.contains(is_harmful) {
        return text.into();
    }
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmful(character) {
            harmless.extend(character.escape_default());
        } else {
            harmless.push(character);
        }
    }
    harmless.into()
}

/// An error and its chain of causes, on one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // An error that repeats its cause in its own text is shown once.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Shows a failure: the chain of causes on one line, then the hint.
pub fn failure(failure: &Failure) {
    let text = chain(failure.error());
    let text = shortened(&text);
    if log::is_json() {
        let status = failure.status().unwrap_or(status::FAILURE);
        return log::failure(&text, failure.hint().as_deref(), status);
    }
    eprintln!("error: {}", harmless(&text));
    if let Some(hint) = failure.hint() {
        eprintln!("hint: {}", harmless(&hint));
    }
}

/// Characters in a line of text on stdout: as many as its terminal has, but no more than can be read well.
#[must_use]
pub fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| size.ws_col);
    match usize::from(columns) {
        0 => USUAL_WIDTH,
        columns => columns.min(GREATEST_WIDTH),
    }
}

/// Characters in a line where there is no terminal.
const USUAL_WIDTH: usize = 80;
/// Longer lines of text are hard to follow.
const GREATEST_WIDTH: usize = 100;

/// Asks a question on stderr and reads the answer from stdin: true for `y` or `yes`; None where nobody is there to answer.
#[must_use]
pub fn confirm(question: &str) -> Option<bool> {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    match std::io::stdin().read_line(&mut answer) {
        Ok(0) | Err(_) => {
            eprintln!();
            None
        }
        Ok(_) => Some(matches!(answer.trim(), "y" | "Y" | "yes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_given_no_commands() {
        for (text, expected) in [
            ("a `b`\n\tc ü", "a `b`\n\tc ü"),
            ("\x1b]0;x\x07\r", "\\u{1b}]0;x\\u{7}\\r"),
            ("\u{9b}2J\0", "\\u{9b}2J\\u{0}"),
        ] {
            assert_eq!(harmless(text), expected);
        }
    }

    #[test]
    fn messages_have_an_end() {
        let long = "ü".repeat(1 << 20);
        let text = shortened(&long);
        assert!(
            text.len() <= LONGEST + 5 && text.contains(" … "),
            "{}",
            text.len()
        );
        assert_eq!(shortened("short"), "short");
    }
}
