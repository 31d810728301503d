//! Tables in Markdown, and their place in docs/benchmarks.md.

use std::fmt::Write as _;

use cista_tests::artifacts::workspace;
use cista_tests::error::{HarnessError, IoContext as _};

use super::chart;
use super::measure::Times;

/// A table with a title, and a note below it.
#[derive(Debug)]
pub(super) struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    note: String,
    has_chart: bool,
}

impl Table {
    /// A table without rows.
    pub(super) fn new(title: &str, columns: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            columns: columns.iter().map(ToString::to_string).collect(),
            rows: Vec::new(),
            note: String::new(),
            has_chart: false,
        }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Sets the text below the table.
    pub(super) fn note(&mut self, note: &str) {
        note.clone_into(&mut self.note);
    }

    /// A table of times, each with its ratio to that of `reference`.
    pub(super) fn of_times(title: &str, times: &[Times], reference: usize) -> Self {
        let against = &times[reference];
        let ratio = format!("ratio to {}", against.name);
        let mut table = Self::new(title, &["", "median", "shortest", &ratio]);
        for times in times {
            table.row(vec![
                times.name.clone(),
                seconds(times.median()),
                seconds(times.shortest()),
                format!("{:.2}", times.ratio(against)),
            ]);
        }
        table.note(&format!("{} rounds", against.rounds()));
        table.has_chart = true;
        table
    }

    /// The table as Markdown.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.title);
        if self.has_chart {
            let name = chart::file_name(&self.title);
            let _ = writeln!(text, "![]({}/{name})\n", chart::DIRECTORY);
        }
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        text.push_str(&line(&self.columns));
        let _ = writeln!(text, "|---|{}", "---:|".repeat(self.columns.len() - 1));
        for row in &self.rows {
            text.push_str(&line(row));
        }
        if !self.note.is_empty() {
            let _ = writeln!(text, "\n{}", self.note);
        }
        text
    }
}

/// A duration for a table: milliseconds below a tenth of a second.
pub(super) fn seconds(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.1 {
        format!("{:.1} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

/// Bytes for a table.
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// One line on the machine that measured.
pub(crate) fn machine() -> String {
    let first_line = |path: &str| {
        std::fs::read_to_string(path)
            .ok()
            .and_then(|text| text.lines().next().map(ToOwned::to_owned))
            .unwrap_or_default()
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = first_line("/proc/sys/kernel/osrelease");
    let release = kernel.split(['-', '+']).next().unwrap_or_default();
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = system
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"');
    format!("Measured on {cpus} processors, {name}, Linux {release}.")
}

/// Puts a text between the marks of a section in docs/benchmarks.md.
pub(super) fn write(section: &str, text: &str) -> Result<(), HarnessError> {
    let path = workspace().join("docs/benchmarks.md");
    let page = std::fs::read_to_string(&path).context("read", &path)?;
    let new = replace_section(&page, section, text).ok_or_else(|| HarnessError::Malformed {
        what: path.display().to_string(),
        why: format!("the marks of the section `{section}` are missing"),
    })?;
    std::fs::write(&path, new).context("write", &path)
}

fn replace_section(page: &str, section: &str, text: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- begin {section} -->\n"),
        format!("<!-- end {section} -->"),
    );
    let start = page.find(&begin)? + begin.len();
    let stop = start + page[start..].find(&end)?;
    Some(format!("{}{text}\n{}", &page[..start], &page[stop..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_between_its_marks() {
        let page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n";
        let new = "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb\n";
        assert_eq!(replace_section(page, "x", "new").as_deref(), Some(new));
        assert_eq!(replace_section(page, "y", "new"), None);
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new("T", &["", "a"]);
        table.row(vec!["x".into(), "1".into()]);
        assert_eq!(
            table.markdown(),
            "### T\n\n|  | a |\n|---|---:|\n| x | 1 |\n"
        );
    }
}
