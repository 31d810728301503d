//! `cista list`: list containers

use std::borrow::Cow;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{Context, Outcome};
use crate::container::Root;
use crate::container::named::{self, Container, Content};
use crate::container::running::{self, Process};
use crate::{sys, ui};

/// List containers
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show the processes of each container as a table
    #[arg(short, long)]
    fancy: bool,
    /// Show the containers and their processes as JSON; `cista help json` tells its fields
    #[arg(long, conflicts_with = "fancy")]
    json: bool,
}

/// A container, as `--json` shows it. Fields are added but never renamed or removed.
#[derive(Debug, Serialize)]
struct ContainerEntry<'a> {
    name: Cow<'a, str>,
    directory: Cow<'a, str>,
    unpacked: bool,
    /// None for a tree of enroot.
    created: Option<u64>,
    processes: Vec<ProcessEntry<'a>>,
}

/// A process, as `--json` shows it.
#[derive(Debug, Serialize)]
struct ProcessEntry<'a> {
    pid: u32,
    name: &'a str,
    state: char,
    started: u64,
    cpu_seconds: u64,
    mount_namespace: u64,
    user_namespace: u64,
    command: &'a [String],
}

/// The columns of the table, in enroot's order: scripts read the name and the number by their position.
const COLUMNS: [&str; 9] = [
    "NAME", "PID", "COMM", "STATE", "STARTED", "TIME", "MNTNS", "USERNS", "COMMAND",
];

/// Months as ps(1) names them.
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let names = named::names(&context.config.data_path)?;
    if !args.fancy && !args.json {
        for name in names {
            ui::data(name.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let containers: Vec<Container> = names
        .iter()
        // One that was removed meanwhile, or is damaged, does not hide the others.
        .filter_map(|name| Container::open(&context.config.data_path, name).ok())
        .collect();
    let roots: Vec<Root> = containers.iter().cloned().map(Root::Container).collect();
    let processes = running::processes(&roots);
    if args.json {
        let entries: Vec<ContainerEntry<'_>> = containers
            .iter()
            .enumerate()
            .map(|(at, container)| entry(container, at, &processes))
            .collect();
        ui::data(serde_json::to_string_pretty(&entries)?);
        return Ok(ExitCode::SUCCESS);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    for (at, container) in containers.iter().enumerate() {
        let name = container.name.display().to_string();
        let before = rows.len();
        for (_, process) in processes.iter().filter(|(owner, _)| *owner == at) {
            rows.push(row(&name, process, now));
        }
        if rows.len() == before {
            let mut empty = [const { String::new() }; COLUMNS.len()];
            empty[0] = name;
            rows.push(empty);
        }
    }
    for line in table(&rows) {
        ui::data(line);
    }
    Ok(ExitCode::SUCCESS)
}

fn entry<'a>(
    container: &'a Container,
    at: usize,
    processes: &'a [(usize, Process)],
) -> ContainerEntry<'a> {
    ContainerEntry {
        name: container.name.to_string_lossy(),
        directory: container.directory.to_string_lossy(),
        unpacked: matches!(container.content, Content::Tree(_)),
        created: Some(container.created).filter(|created| *created > 0),
        processes: processes
            .iter()
            .filter(|(owner, _)| *owner == at)
            .map(|(_, process)| ProcessEntry {
                pid: process.pid,
                name: &process.name,
                state: process.state,
                started: process.started,
                cpu_seconds: process.time,
                mount_namespace: process.mount_namespace,
                user_namespace: process.user_namespace,
                command: &process.command,
            })
            .collect(),
    }
}

fn row(name: &str, process: &Process, now: Duration) -> [String; COLUMNS.len()] {
    [
        name.to_owned(),
        process.pid.to_string(),
        printable(&process.name),
        process.state.to_string(),
        started(process.started, now.as_secs()),
        elapsed(now.as_secs().saturating_sub(process.started)),
        process.mount_namespace.to_string(),
        process.user_namespace.to_string(),
        if process.command.is_empty() {
            // A zombie has none any more; ps(1) writes it like this too.
            format!("[{}]", printable(&process.name))
        } else {
            printable(&process.command.join(" "))
        },
    ]
}

/// A text without what would end its line or do something to the terminal.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// A duration as ps(1) writes it: `[[days-]hours:]minutes:seconds`.
fn elapsed(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes:02}:{seconds:02}"),
        (0, hours) => format!("{hours:02}:{minutes:02}:{seconds:02}"),
        (days, hours) => format!("{days}-{hours:02}:{minutes:02}:{seconds:02}"),
    }
}

/// A point in time, in seconds since 1970, as ps(1) writes it: the time of day within a day, else the day.
fn started(at: u64, now: u64) -> String {
    match sys::time::local(at) {
        Some(time) if now.saturating_sub(at) < 86_400 => {
            format!("{:02}:{:02}", time.hour, time.minute)
        }
        Some(time) => format!("{}{:02}", MONTHS[time.month % MONTHS.len()], time.day),
        None => "?".to_owned(),
    }
}

/// Columns padded to the widest entry and parted by two blanks; no blanks at the end of a line.
fn table(rows: &[[String; COLUMNS.len()]]) -> Vec<String> {
    let mut widths = [0; COLUMNS.len()];
    for row in rows {
        for (width, field) in widths.iter_mut().zip(row) {
            *width = field.chars().count().max(*width);
        }
    }
    rows.iter()
        .map(|row| {
            let line: Vec<String> = row
                .iter()
                .zip(widths)
                .map(|(field, width)| format!("{field:width$}"))
                .collect();
            line.join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "00:00"),
            (61, "01:01"),
            (3600, "01:00:00"),
            (2 * 86_400 + 3661, "2-01:01:01"),
        ] {
            assert_eq!(elapsed(seconds), text);
        }
    }

    #[test]
    fn points_in_time() {
        let now = 1_700_000_000;
        assert!(started(now - 60, now).contains(':'));
        // The day depends on where we are.
        let day = started(now, now + 2 * 86_400);
        assert!(matches!(day.as_str(), "Nov14" | "Nov15"), "{day}");
    }

    #[test]
    fn a_process_cannot_forge_lines() {
        assert_eq!(printable("sh -c a\nb 1\u{1b}[2J"), "sh -c a?b 1?[2J");
    }

    #[test]
    fn columns_line_up() {
        let mut rows = vec![COLUMNS.map(str::to_owned)];
        let mut row = [const { String::new() }; COLUMNS.len()];
        row[0] = "a-long-name".to_owned();
        rows.push(row.clone());
        row[1] = "42".to_owned();
        row[8] = "sleep 1".to_owned();
        rows.push(row);
        let lines = table(&rows);
        assert_eq!(lines[1], "a-long-name");
        assert_eq!(lines[0].find("PID"), lines[2].find("42"));
        assert_eq!(lines[0].find("COMMAND"), lines[2].find("sleep"));
    }
}
