//! `cista help`: explain a command or a topic

use std::process::ExitCode;

use super::{Failure, Outcome, command, status};
use crate::config::file::unknown;
use crate::manual::{self, TOPICS, terminal};
use crate::ui;

/// Explain a command or a topic
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A command, such as `start` or `cache add`, or a topic, such as `mounts`; all of them are listed when left out
    #[arg(value_name = "COMMAND|TOPIC")]
    topic: Vec<String>,
}

/// What `cista --help` says at its end.
pub(super) fn topics() -> String {
    let width = TOPICS.iter().map(|topic| topic.name.len()).max();
    let mut text = String::from("Topics, for `cista help TOPIC`:");
    for topic in TOPICS {
        text.push_str(&format!(
            "\n  {:<1$}  {2}",
            topic.name,
            width.unwrap_or_default(),
            topic.about
        ));
    }
    text
}

pub(super) fn run(args: &Args) -> Outcome {
    if let [name] = &args.topic[..]
        && let Some(topic) = manual::topic(name)
    {
        let blocks = topic.blocks()?;
        ui::data(terminal::layout(&blocks, ui::width()).trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let mut program = command();
    program.build();
    let mut wanted = &mut program;
    for name in &args.topic {
        if wanted.find_subcommand(name).is_none() {
            return Err(not_known(wanted, name));
        }
        let Some(found) = wanted.find_subcommand_mut(name) else {
            return Err(Failure::new(Unknown(name.clone())));
        };
        wanted = found;
    }
    // A closed pipe is no error: the reader has seen enough.
    let _ = if args.topic.is_empty() {
        wanted.print_help()
    } else {
        wanted.print_long_help()
    };
    Ok(ExitCode::SUCCESS)
}

/// Nothing is called so.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unknown(String);

fn not_known(program: &clap::Command, name: &str) -> Failure {
    let commands = program
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(clap::Command::get_name);
    let topics = TOPICS.iter().map(|topic| topic.name);
    let known: Vec<&str> = if program.get_name() == super::NAME {
        commands.chain(topics).collect()
    } else {
        commands.collect()
    };
    Failure::new(Unknown(unknown(
        "command or topic",
        name,
        known.into_iter(),
    )))
    .with_hint("`cista help` lists them all")
    .with_status(status::USAGE)
}
