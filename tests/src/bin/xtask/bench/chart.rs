//! Charts of the tables in docs/benchmarks.md: one SVG file a table of times, in docs/benchmarks/.
//!
//! They are drawn from the page, not from the measurement, so that table and picture say the same, and can be drawn anew without measuring. A chart is
//! bars of the medians with their names, times and ratios written out: nothing is told by colour alone. A picture within a page cannot ask the page for
//! its colours, so it asks whether the reader prefers dark ones (`prefers-color-scheme`, SVG 2 with CSS media queries).

use crate::picture::escaped;
use std::fmt::Write as _;
use std::path::Path;

use cista_tests::artifacts::workspace;
use cista_tests::error::{HarnessError, IoContext as _};

/// Where charts are, from the page on.
pub(super) const DIRECTORY: &str = "benchmarks";

/// Sizes in pixels.
const WIDTH: f64 = 760.0;
const NAMES: f64 = 230.0;
const BARS: f64 = 380.0;
const TOP: f64 = 44.0;
const STEP: f64 = 34.0;
const HEIGHT_OF_BAR: f64 = 20.0;

/// A bar: a row of a table.
#[derive(Clone, Debug, PartialEq)]
struct Bar {
    name: String,
    seconds: f64,
    /// What stands behind it: time and ratio.
    label: String,
}

/// A table of times.
#[derive(Clone, Debug, PartialEq)]
struct Chart {
    title: String,
    bars: Vec<Bar>,
}

/// The name of the file with the chart of a table.
pub(super) fn file_name(title: &str) -> String {
    let plain = |letter: char| match letter {
        'a'..='z' | '0'..='9' => letter,
        'A'..='Z' => letter.to_ascii_lowercase(),
        _ => '-',
    };
    let words: String = title.chars().map(plain).collect();
    let words: Vec<&str> = words.split('-').filter(|word| !word.is_empty()).collect();
    format!("{}.svg", words.join("-"))
}

/// Draws the charts of all tables of docs/benchmarks.md that name one, and removes those that no table names.
pub(super) fn draw_all() -> Result<(), HarnessError> {
    let docs = workspace().join("docs");
    let page = docs.join("benchmarks.md");
    let text = std::fs::read_to_string(&page).context("read", &page)?;
    let directory = docs.join(DIRECTORY);
    std::fs::create_dir_all(&directory).context("create", &directory)?;
    for entry in std::fs::read_dir(&directory).context("read", &directory)? {
        let path = entry.context("read", &directory)?.path();
        let is_chart = path.extension() == Some("svg".as_ref());
        if is_chart && !names(&text, &path) {
            std::fs::remove_file(&path).context("remove", &path)?;
        }
    }
    for chart in charts(&text) {
        let path = directory.join(file_name(&chart.title));
        if names(&text, &path) {
            std::fs::write(&path, chart.svg()).context("write", &path)?;
        }
    }
    Ok(())
}

fn names(page: &str, chart: &Path) -> bool {
    let name = chart.file_name().unwrap_or_default().to_string_lossy();
    page.contains(&format!("({DIRECTORY}/{name})"))
}

/// The tables of times of a page in Markdown.
fn charts(page: &str) -> Vec<Chart> {
    let mut charts: Vec<Chart> = Vec::new();
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            charts.push(Chart {
                title: title.to_owned(),
                bars: Vec::new(),
            });
        } else if let (Some(chart), Some(bar)) = (charts.last_mut(), bar(line)) {
            chart.bars.push(bar);
        }
    }
    charts.retain(|chart| chart.bars.len() > 1);
    charts
}

/// A row of name, median, shortest, ratio; None for all other lines.
fn bar(line: &str) -> Option<Bar> {
    let cells: Vec<&str> = line
        .strip_prefix("| ")?
        .strip_suffix(" |")?
        .split(" | ")
        .collect();
    let [name, median, _, ratio] = cells[..] else {
        return None;
    };
    let (number, unit) = median.split_once(' ')?;
    let factor = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        _ => return None,
    };
    Some(Bar {
        name: name.to_owned(),
        seconds: number.parse::<f64>().ok()? * factor,
        label: format!("{median} ({ratio})"),
    })
}

impl Chart {
    fn svg(&self) -> String {
        let height = TOP + STEP * self.bars.len() as f64 + 8.0;
        let longest = self.bars.iter().map(|bar| bar.seconds).fold(0.0, f64::max);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-labelledby=\"title\">\n\
             <title id=\"title\">{title}</title>\n\
             <style>\n\
             text {{ font: 14px system-ui, sans-serif; fill: #1f2328 }}\n\
             .title {{ font-weight: 600 }}\n\
             .bar {{ fill: #8c959f }}\n\
             .own {{ fill: #0969da }}\n\
             @media (prefers-color-scheme: dark) {{\n\
             text {{ fill: #e6edf3 }}\n\
             .bar {{ fill: #6e7681 }}\n\
             .own {{ fill: #4493f8 }}\n\
             }}\n\
             </style>\n\
             <text class=\"title\" x=\"0\" y=\"20\">{title}</text>\n",
            title = escaped(&self.title.replace('`', "")),
        );
        for (index, bar) in self.bars.iter().enumerate() {
            let y = TOP + STEP * index as f64;
            let share = if longest > 0.0 {
                bar.seconds / longest
            } else {
                0.0
            };
            // What is too short to be seen is seen nevertheless.
            let length = (share * BARS).max(2.0);
            let class = if bar.name.starts_with("cista") {
                "bar own"
            } else {
                "bar"
            };
            let text = y + HEIGHT_OF_BAR * 0.75;
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{text:.1}\" text-anchor=\"end\">{}</text>\n\
                 <rect class=\"{class}\" x=\"{NAMES:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{HEIGHT_OF_BAR:.1}\" rx=\"2\"/>\n\
                 <text x=\"{:.1}\" y=\"{text:.1}\">{}</text>",
                NAMES - 10.0,
                escaped(&bar.name.replace('`', "")),
                NAMES + length + 8.0,
                escaped(&bar.label),
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "### Start of `true`, alone\n\n\
        |  | median | shortest | ratio to bwrap |\n|---|---:|---:|---:|\n\
        | bwrap <1> & more | 2.5 ms | 2.1 ms | 1.00 |\n| cista, image | 5.0 ms | 4.3 ms | 2.00 |\n\n\
        ### Memory\n\n| image | peak resident | time |\n|---|---:|---:|\n| x | 236 MiB | 3.87 s |\n";

    #[test]
    fn tables_of_times_have_a_chart() {
        let charts = charts(PAGE);
        assert_eq!(charts.len(), 1, "{charts:?}");
        assert_eq!(file_name(&charts[0].title), "start-of-true-alone.svg");
        let seconds: Vec<f64> = charts[0].bars.iter().map(|bar| bar.seconds).collect();
        assert_eq!(seconds, [0.0025, 0.005]);
        let svg = charts[0].svg();
        for part in [
            "bwrap &lt;1&gt; &amp; more",
            "5.0 ms (2.00)",
            "width=\"190.0\"",
            "width=\"380.0\"",
            "prefers-color-scheme: dark",
        ] {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
        assert_eq!(svg.matches("<rect").count(), 2);
    }

    #[test]
    fn no_time_at_all_is_a_bar_too() {
        let chart = Chart {
            title: "x".into(),
            bars: vec![Bar {
                name: "a".into(),
                seconds: 0.0,
                label: String::new(),
            }],
        };
        assert!(!chart.svg().contains("NaN"));
    }
}
