//! What is counted, as text: the lines of the journal and the metrics that they add up to.
//!
//! The format of metrics is Prometheus's text exposition format 0.0.4, in the part of it that node_exporter's textfile collector takes: `# HELP`,
//! `# TYPE` and samples without time stamps. Other comments are passed over by its readers; ours say how far each journal has been counted,
//! so that totals and that knowledge always appear together.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::Phase;

/// Upper bounds of the histogram of starts, in seconds.
const BUCKETS: [f64; 14] = [
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// A family of metrics.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

const READY: &str = "cista_start_ready_seconds";

/// Every family, in the order of the file. Names and labels stay: dashboards and alerts are built on them.
const FAMILIES: [Family; 10] = [
    Family {
        name: "cista_starts_total",
        kind: "counter",
        help: "Starts of containers, failed ones included.",
    },
    Family {
        name: "cista_start_failures_total",
        kind: "counter",
        help: "Starts of containers that failed, by the phase that failed.",
    },
    Family {
        name: READY,
        kind: "histogram",
        help: "Time from the command to the execution of the container's program.",
    },
    Family {
        name: "cista_phase_seconds_total",
        kind: "counter",
        help: "Time that starts and imports spent in each phase.",
    },
    Family {
        name: "cista_imports_total",
        kind: "counter",
        help: "Images that were made.",
    },
    Family {
        name: "cista_import_failures_total",
        kind: "counter",
        help: "Imports that failed, by the phase that failed.",
    },
    Family {
        name: "cista_import_fetched_bytes_total",
        kind: "counter",
        help: "Bytes of layers that came from registries and other sources.",
    },
    Family {
        name: "cista_import_written_bytes_total",
        kind: "counter",
        help: "Bytes of images that were made.",
    },
    Family {
        name: "cista_cache_hits_total",
        kind: "counter",
        help: "Images and layers that were in a store.",
    },
    Family {
        name: "cista_cache_misses_total",
        kind: "counter",
        help: "Images and layers that were in no store.",
    },
];

/// Something that is counted: one line of the journal.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Count {
    /// A container's program is about to be executed.
    Started {
        /// Time since the command began.
        ready: Duration,
    },
    /// A start failed.
    StartFailed {
        /// In this phase.
        phase: Phase,
        /// Whether it is counted as a start already.
        was_counted: bool,
    },
    /// An image was made.
    Imported {
        /// Bytes of layers that came.
        fetched: u64,
        /// Bytes of the image.
        written: u64,
        /// Layers that came.
        layers_fetched: u64,
        /// Layers that a store had.
        layers_cached: u64,
    },
    /// An import failed in a phase.
    ImportFailed {
        /// In this phase.
        phase: Phase,
    },
    /// An image was looked for in the stores.
    Image {
        /// Whether it was there.
        was_there: bool,
    },
    /// Time was spent in a phase.
    Spent {
        /// The phase.
        phase: Phase,
        /// The time.
        time: Duration,
    },
}

impl Count {
    /// The line of the journal, with its end.
    pub(super) fn line(&self) -> String {
        let mut line = String::new();
        for (key, value) in self.samples() {
            let _ = write!(line, "{key} {value};");
        }
        line.push('\n');
        line
    }

    /// What it adds to which metrics.
    fn samples(&self) -> Vec<(String, f64)> {
        let plain = |name: &str, value: f64| (name.to_owned(), value);
        let of_phase = |name: &str, phase: &Phase, value: f64| {
            (format!("{name}{{phase=\"{}\"}}", phase.name()), value)
        };
        let of_kind =
            |name: &str, kind: &str, value: f64| (format!("{name}{{kind=\"{kind}\"}}"), value);
        match self {
            Self::Started { ready } => {
                let seconds = ready.as_secs_f64();
                let mut samples = vec![
                    plain("cista_starts_total", 1.0),
                    (format!("{READY}_sum"), seconds),
                    (format!("{READY}_count"), 1.0),
                ];
                let within = BUCKETS.iter().filter(|bound| seconds <= **bound);
                samples.extend(within.map(|bound| (bucket(*bound), 1.0)));
                samples
            }
            Self::StartFailed { phase, was_counted } => {
                let mut samples = vec![of_phase("cista_start_failures_total", phase, 1.0)];
                if !was_counted {
                    samples.push(plain("cista_starts_total", 1.0));
                }
                samples
            }
            Self::Imported {
                fetched,
                written,
                layers_fetched,
                layers_cached,
            } => vec![
                plain("cista_imports_total", 1.0),
                plain("cista_import_fetched_bytes_total", *fetched as f64),
                plain("cista_import_written_bytes_total", *written as f64),
                of_kind("cista_cache_hits_total", "layer", *layers_cached as f64),
                of_kind("cista_cache_misses_total", "layer", *layers_fetched as f64),
            ],
            Self::ImportFailed { phase } => {
                vec![of_phase("cista_import_failures_total", phase, 1.0)]
            }
            Self::Image { was_there } => {
                let name = match was_there {
                    true => "cista_cache_hits_total",
                    false => "cista_cache_misses_total",
                };
                vec![of_kind(name, "image", 1.0)]
            }
            Self::Spent { phase, time } => {
                let name = "cista_phase_seconds_total";
                vec![of_phase(name, phase, time.as_secs_f64())]
            }
        }
    }
}

fn bucket(bound: f64) -> String {
    format!("{READY}_bucket{{le=\"{bound}\"}}")
}

/// How far a journal has been counted: the file by its inode, and the offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) inode: u64,
    pub(super) offset: u64,
}

/// The totals of a user.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    /// By name and labels, without the label that tells the user.
    samples: BTreeMap<String, f64>,
    /// What is in them.
    pub(super) journals: Vec<Counted>,
}

impl Tally {
    /// Totals as every metric begins: what can be counted is there from the beginning, so that the first failure is seen as an increase.
    fn zero() -> Self {
        let mut samples = BTreeMap::new();
        let mut add = |key: String| samples.insert(key, 0.0);
        for name in [
            "cista_starts_total",
            "cista_imports_total",
            "cista_import_fetched_bytes_total",
            "cista_import_written_bytes_total",
            "cista_start_ready_seconds_sum",
            "cista_start_ready_seconds_count",
        ] {
            add(name.to_owned());
        }
        for phase in Phase::ALL {
            for name in [
                "cista_start_failures_total",
                "cista_import_failures_total",
                "cista_phase_seconds_total",
            ] {
                let is_import = name.starts_with("cista_import");
                let imports = matches!(phase, Phase::Resolve | Phase::Fetch | Phase::Build);
                if !is_import || imports {
                    add(format!("{name}{{phase=\"{}\"}}", phase.name()));
                }
            }
        }
        for kind in ["image", "layer"] {
            add(format!("cista_cache_hits_total{{kind=\"{kind}\"}}"));
            add(format!("cista_cache_misses_total{{kind=\"{kind}\"}}"));
        }
        for bound in BUCKETS {
            add(bucket(bound));
        }
        Self {
            samples,
            journals: Vec::new(),
        }
    }

    /// Reads what [`Self::render`] wrote. Lines that are not understood are left out: a counter that begins anew is nothing new to Prometheus.
    pub(super) fn parse(text: &str, uid: u32) -> Self {
        let mut tally = Self::zero();
        let (alone, first) = (format!("{{uid=\"{uid}\"}}"), format!("{{uid=\"{uid}\","));
        for line in text.lines() {
            if let Some(words) = line.strip_prefix("# counted ") {
                let mut numbers = words.split(' ').map(str::parse);
                if let (Some(Ok(inode)), Some(Ok(offset))) = (numbers.next(), numbers.next()) {
                    tally.journals.push(Counted { inode, offset });
                }
                continue;
            }
            let Some((key, value)) = line.rsplit_once(' ') else {
                continue;
            };
            if let Some(value) = number(value).filter(|value| *value > 0.0) {
                tally.set(&key.replace(&alone, "").replace(&first, "{"), value);
            }
        }
        tally
    }

    fn set(&mut self, key: &str, value: f64) {
        if let Some(sample) = self.samples.get_mut(key) {
            *sample = value;
        }
    }

    /// Adds lines of a journal. What is not understood is left out.
    pub(super) fn add(&mut self, lines: &str) {
        let entries = lines.lines().flat_map(|line| line.split(';'));
        for (key, value) in entries.filter_map(|entry| entry.rsplit_once(' ')) {
            if let (Some(sample), Some(value)) = (self.samples.get_mut(key), number(value)) {
                *sample += value;
            }
        }
    }

    /// The file.
    pub(super) fn render(&self, uid: u32) -> String {
        let mut text = String::with_capacity(6 << 10);
        for Family { name, kind, help } in &FAMILIES {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            if *kind == "histogram" {
                self.render_histogram(name, uid, &mut text);
                continue;
            }
            for (key, value) in &self.samples {
                let (own, labels) = key.split_once('{').unwrap_or((key, "}"));
                if own == *name {
                    sample(&mut text, own, labels, uid, *value);
                }
            }
        }
        for Counted { inode, offset } in &self.journals {
            let _ = writeln!(text, "# counted {inode} {offset}");
        }
        text
    }

    /// Buckets in the order of their bounds, then what the format asks for.
    fn render_histogram(&self, name: &str, uid: u32, text: &mut String) {
        let value = |key: &str| self.samples.get(key).copied().unwrap_or_default();
        let (count, sum) = (
            value(&format!("{name}_count")),
            value(&format!("{name}_sum")),
        );
        let of_bucket = format!("{name}_bucket");
        for bound in BUCKETS {
            let labels = format!("le=\"{bound}\"}}");
            sample(text, &of_bucket, &labels, uid, value(&bucket(bound)));
        }
        sample(text, &of_bucket, "le=\"+Inf\"}", uid, count);
        sample(text, &format!("{name}_sum"), "}", uid, sum);
        sample(text, &format!("{name}_count"), "}", uid, count);
    }
}

/// Writes a line of the file; `labels` without the brace that opens them.
fn sample(text: &mut String, name: &str, labels: &str, uid: u32, value: f64) {
    let comma = if labels == "}" { "" } else { "," };
    let _ = writeln!(text, "{name}{{uid=\"{uid}\"{comma}{labels} {value}");
}

/// A number that a counter can have.
fn number(text: &str) -> Option<f64> {
    let value: f64 = text.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts() -> Vec<Count> {
        vec![
            Count::Started {
                ready: Duration::from_millis(4),
            },
            Count::StartFailed {
                phase: Phase::Hooks,
                was_counted: false,
            },
            Count::StartFailed {
                phase: Phase::Exec,
                was_counted: true,
            },
            Count::Imported {
                fetched: 1000,
                written: 700,
                layers_fetched: 2,
                layers_cached: 3,
            },
            Count::ImportFailed {
                phase: Phase::Fetch,
            },
            Count::Image { was_there: true },
            Count::Spent {
                phase: Phase::Mount,
                time: Duration::from_micros(1500),
            },
        ]
    }

    #[test]
    fn lines_add_up() {
        let lines: String = counts().iter().map(Count::line).collect();
        let mut tally = Tally::parse("", 7);
        tally.add(&lines);
        tally.add(&lines);
        let text = tally.render(7);
        for line in [
            "cista_starts_total{uid=\"7\"} 4",
            "cista_start_failures_total{uid=\"7\",phase=\"hooks\"} 2",
            "cista_start_failures_total{uid=\"7\",phase=\"exec\"} 2",
            "cista_start_failures_total{uid=\"7\",phase=\"mount\"} 0",
            "cista_start_ready_seconds_bucket{uid=\"7\",le=\"0.0025\"} 0",
            "cista_start_ready_seconds_bucket{uid=\"7\",le=\"0.005\"} 2",
            "cista_start_ready_seconds_bucket{uid=\"7\",le=\"+Inf\"} 2",
            "cista_start_ready_seconds_sum{uid=\"7\"} 0.008",
            "cista_start_ready_seconds_count{uid=\"7\"} 2",
            "cista_import_fetched_bytes_total{uid=\"7\"} 2000",
            "cista_cache_hits_total{uid=\"7\",kind=\"layer\"} 6",
            "cista_cache_hits_total{uid=\"7\",kind=\"image\"} 2",
            "cista_import_failures_total{uid=\"7\",phase=\"fetch\"} 2",
            "cista_phase_seconds_total{uid=\"7\",phase=\"mount\"} 0.003",
        ] {
            assert!(
                text.lines().any(|it| it == line),
                "{line} is not in\n{text}"
            );
        }
        let helps = text.lines().filter(|line| line.starts_with("# HELP"));
        assert_eq!(helps.count(), FAMILIES.len());
    }

    #[test]
    fn what_was_written_is_read_again() {
        let mut tally = Tally::parse("", 1001);
        tally.add(&counts().iter().map(Count::line).collect::<String>());
        tally.journals.push(Counted {
            inode: u64::MAX,
            offset: 12,
        });
        assert_eq!(Tally::parse(&tally.render(1001), 1001), tally);
        // Those of another user are not taken for one's own.
        assert_eq!(
            Tally::parse(&tally.render(1001), 1).samples,
            Tally::zero().samples
        );
    }

    /// The dashboard for Grafana asks for nothing that is not there.
    #[test]
    fn the_dashboard_names_what_is_counted() {
        let text = include_str!("../../../packaging/grafana/cista.json");
        let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let mut asked = std::collections::BTreeSet::new();
        for target in panels
            .iter()
            .flat_map(|it| it["targets"].as_array().unwrap())
        {
            let expression = target["expr"].as_str().unwrap();
            let words = expression.split(|it: char| !it.is_ascii_alphanumeric() && it != '_');
            for word in words.filter(|word| word.starts_with("cista_")) {
                asked.insert(word.trim_end_matches("_bucket").to_owned());
            }
        }
        let known: std::collections::BTreeSet<_> = FAMILIES
            .iter()
            .map(|family| family.name.to_owned())
            .collect();
        assert_eq!(asked, known);
    }

    #[test]
    fn nonsense_counts_for_nothing() {
        let mut tally = Tally::zero();
        tally.add("cista_starts_total -1;cista_starts_total NaN;x 1;cista_starts_total\n;;\n 1;");
        assert_eq!(tally, Tally::zero());
        let text = "# counted x y\n# counted 1\ncista_starts_total{uid=\"1\"} inf\n\u{fffd}";
        assert_eq!(Tally::parse(text, 1), Tally::zero());
    }
}
