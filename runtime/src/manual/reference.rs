//! Pages about commands and settings, made from their descriptions in the code.

use std::fmt::Write as _;

use clap::{Arg, Command};

use crate::config::settings;

/// What stands at the head of a page, for who would change it by hand.
const MADE: &str = "<!-- Made by `cargo xtask docs` from the code. -->\n\n";

/// The page about settings: where they stand, and all of them.
#[must_use]
pub fn settings() -> String {
    let mut page = String::from(SETTINGS);
    let mut section = "";
    for setting in settings::ALL {
        if setting.section != section {
            section = setting.section;
            // Several tables of one section would be several lists of the same thing.
            let _ = write!(
                page,
                "\n## [{section}]\n\n| setting, variables | what it is, and unless set |\n|---|---|\n"
            );
        }
        let mut names = vec![format!("`{}`", setting.key)];
        names.extend(
            setting
                .variables
                .iter()
                .chain(&setting.enroot)
                .map(|name| format!("`{name}`")),
        );
        names.dedup();
        let expected = match setting.kind {
            settings::Kind::Directory { .. }
            | settings::Kind::RuntimeDirectory
            | settings::Kind::Text => String::new(),
            settings::Kind::Secret => " No file can hold it.".into(),
            kind => format!(" {}.", capitalized(&kind.expected())),
        };
        let _ = writeln!(
            page,
            "| {} | {}{} Unless set: {}. |",
            names.join(", "),
            setting.help,
            cell(&expected),
            cell(setting.default),
        );
    }
    page
}

/// The page about settings as it stands in the repository.
#[must_use]
pub fn settings_file() -> String {
    format!("{MADE}{}", settings())
}

const SETTINGS: &str = include_str!("settings.md");

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().collect::<String>() + letters.as_str())
        .unwrap_or_default()
}

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// The page about all commands, as it stands in the repository.
#[must_use]
pub fn commands_file(mut program: Command) -> String {
    program.build();
    let mut page = format!(
        "{MADE}# Commands\n\nThe same as `cista help COMMAND` says. Options of all commands: {}.\n",
        program
            .get_arguments()
            .filter(|argument| argument.is_global_set() && !argument.is_hide_set())
            .map(|argument| format!("{} ({})", name(argument), help(argument)))
            .collect::<Vec<_>>()
            .join(", ")
    );
    for command in visible(&program) {
        describe(command, &mut page);
    }
    page
}

/// The commands that are shown.
pub fn visible(program: &Command) -> impl Iterator<Item = &Command> {
    program.get_subcommands().filter(|command| {
        !command.is_hide_set() && command.get_name() != "help" || is_ours(command)
    })
}

/// Whether it is our `help` rather than clap's own, which every command with commands of its own has.
fn is_ours(command: &Command) -> bool {
    command.get_name() == "help"
        && command
            .get_arguments()
            .any(|argument| argument.get_id() == "topic")
}

fn describe(command: &Command, page: &mut String) {
    let path = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let _ = write!(page, "\n## {path}\n");
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        page.push('\n');
        let mut is_code = false;
        for line in about.to_string().trim_end_matches('.').lines() {
            // Lines that are set in from the margin are shown as they are.
            let begins_code = line.starts_with("  ");
            if begins_code != is_code && !line.is_empty() {
                page.push('\n');
                is_code = begins_code;
            }
            let margin = if begins_code { "    " } else { "" };
            let _ = writeln!(page, "{margin}{}", line.trim());
        }
        if !is_code {
            page.truncate(page.trim_end().len());
            page.push_str(".\n");
        }
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    page.push('\n');
    for line in usage.lines() {
        let _ = writeln!(page, "    {}", line.trim());
    }
    let shown: Vec<&Arg> = command
        .get_arguments()
        .filter(|argument| {
            !argument.is_hide_set() && argument.get_id() != "help" && argument.get_id() != "verbose"
        })
        .collect();
    if !shown.is_empty() {
        page.push_str("\n| argument | |\n|---|---|\n");
    }
    for argument in shown {
        let _ = writeln!(
            page,
            "| {} | {} |",
            cell(&name(argument)),
            cell(&help(argument))
        );
    }
    for below in visible(command) {
        describe(below, page);
    }
}

/// How an argument is written, as code.
fn name(argument: &Arg) -> String {
    let values: Vec<String> = argument
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    let takes_values = argument
        .get_num_args()
        .is_some_and(|number| number.takes_values());
    let value = match (takes_values, values.is_empty()) {
        (false, _) => String::new(),
        (true, false) => values.join(" "),
        (true, true) => argument.get_id().as_str().to_uppercase(),
    };
    let short = argument.get_short().map(|letter| format!("-{letter}"));
    let long = argument.get_long().map(|name| format!("--{name}"));
    match (short, long) {
        (None, None) => format!("`{value}`"),
        (short, long) => {
            let names: Vec<String> = short.into_iter().chain(long).collect();
            let space = if value.is_empty() { "" } else { " " };
            format!("`{}{space}{value}`", names.join("`, `"))
        }
    }
}

fn help(argument: &Arg) -> String {
    let text = argument
        .get_long_help()
        .or_else(|| argument.get_help())
        .map(ToString::to_string)
        .unwrap_or_default();
    let choices: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|value| {
            !value.is_hide_set()
                && argument
                    .get_num_args()
                    .is_some_and(|number| number.takes_values())
        })
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    let defaults: Vec<String> = argument
        .get_default_values()
        .iter()
        .filter(|_| {
            !argument.is_hide_default_value_set()
                && argument
                    .get_num_args()
                    .is_some_and(|number| number.takes_values())
        })
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    let mut text = text;
    if !choices.is_empty() {
        let _ = write!(text, " ({})", choices.join(", "));
    }
    if !defaults.is_empty() {
        let _ = write!(text, " (unless given: `{}`)", defaults.join(" "));
    }
    text
}
