//! `cista list`: list containers

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Context, Outcome};
use crate::container::named::{self, Container};
use crate::container::running::{self, Process};
use crate::ui;

/// List containers
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show the processes of each container as a table
    #[arg(short, long)]
    fancy: bool,
}

/// The columns of the table, in enroot's order: scripts read the name and the number by their position.
const COLUMNS: [&str; 9] = [
    "NAME", "PID", "COMM", "STATE", "STARTED", "TIME", "MNTNS", "USERNS", "COMMAND",
];

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let names = named::names(&context.config.data_path)?;
    if !args.fancy {
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
    let processes = running::processes(&containers);
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

fn row(name: &str, process: &Process, now: Duration) -> [String; COLUMNS.len()] {
    [
        name.to_owned(),
        process.pid.to_string(),
        process.name.clone(),
        process.state.to_string(),
        elapsed(now.as_secs().saturating_sub(process.started)),
        clock(process.time),
        process.mount_namespace.to_string(),
        process.user_namespace.to_string(),
        process.command.clone(),
    ]
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

/// Processor time as ps(1) writes it: `hours:minutes:seconds`.
fn clock(seconds: u64) -> String {
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
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
        assert_eq!(clock(3661), "01:01:01");
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
