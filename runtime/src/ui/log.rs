//! Messages as lines of JSON, for those who collect logs: `--log-format json`.
//!
//! Then everything on standard error is one object a line: errors, warnings, notes, and the phases of starts and imports ([`crate::observe`]). Each has the
//! time (RFC 3339, UTC), a level, the process, the command, and within Slurm the job, the step, the task and the node. Fields may be
//! added, those that are there stay (`docs/observability.md`). With the usual format these lines are the messages alone, and [`event`] says nothing.

use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// How messages look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// As people read them.
    #[default]
    Text,
    /// One object a line.
    Json,
}

impl LogFormat {
    /// The format of a word, as settings and the option have it.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something went as it should.
    Info,
    /// Something that should not go unseen although nothing is wrong.
    Note,
    /// Something went wrong that stops nothing.
    Warning,
    /// The command failed.
    Error,
}

/// Who logs: the same in every line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The command, such as `start`.
    pub command: &'static str,
    /// The job of Slurm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Its step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The task of the step, counted through all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The node, as Slurm calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Whether messages are lines of JSON.
static IS_JSON: AtomicBool = AtomicBool::new(false);
/// Whether events are told.
static HAS_EVENTS: AtomicBool = AtomicBool::new(false);
static IDENTITY: OnceLock<Identity> = OnceLock::new();

/// Sets the format. `identity` is asked for only where lines have it, and only once.
pub fn set(format: LogFormat, identity: impl FnOnce() -> Identity) {
    set_for_events(format, identity);
    IS_JSON.store(format == LogFormat::Json, Ordering::Relaxed);
}

/// Sets the format of events alone, for a reader of messages who knows them as text: the plugin of Slurm.
pub fn set_for_events(format: LogFormat, identity: impl FnOnce() -> Identity) {
    let is_json = format == LogFormat::Json;
    if is_json {
        IDENTITY.get_or_init(identity);
    }
    HAS_EVENTS.store(is_json, Ordering::Relaxed);
}

/// Whether messages are lines of JSON.
#[must_use]
pub fn is_json() -> bool {
    IS_JSON.load(Ordering::Relaxed)
}

#[derive(Serialize)]
struct Line<'a, T> {
    time: String,
    level: Level,
    pid: u32,
    #[serde(flatten)]
    identity: Option<&'a Identity>,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize)]
struct Message<'a> {
    event: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u8>,
}

/// Writes an event, an object of JSON with a field `event`; nothing in the usual format.
pub fn event(level: Level, content: &impl Serialize) {
    if HAS_EVENTS.load(Ordering::Relaxed) {
        write(level, content);
    }
}

/// Writes a message.
pub(super) fn message(level: Level, text: &str) {
    let content = Message {
        event: "message",
        message: text,
        hint: None,
        phase: None,
        status: None,
    };
    write(level, &content);
}

/// Writes why the command failed, in which phase of a start or an import, and its exit status.
pub(super) fn failure(text: &str, hint: Option<&str>, status: u8) {
    let content = Message {
        event: "failure",
        message: text,
        hint,
        phase: crate::observe::current().map(crate::observe::Phase::name),
        status: Some(status),
    };
    write(Level::Error, &content);
}

fn write(level: Level, content: &impl Serialize) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let line = Line {
        time: rfc3339(now.unwrap_or_default()),
        level,
        pid: rustix::process::getpid().as_raw_pid().cast_unsigned(),
        identity: IDENTITY.get(),
        content,
    };
    // Strings and numbers can always be written as JSON.
    if let Ok(mut text) = serde_json::to_string(&line) {
        text.push('\n');
        // In one call, so that lines of several processes do not mix. Nobody is there to be told when standard error is closed.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// A time since 1970 as RFC 3339 has it, in microseconds. The calendar is reckoned in eras of 400 years that begin on the first of March, so that a leap
/// day is the last of its year.
fn rfc3339(time: Duration) -> String {
    const DAYS_OF_ERA: u64 = 146_097;
    // From the first of March of the year 0 to 1970.
    const DAYS_BEFORE: u64 = 719_468;
    let (days, seconds) = (time.as_secs() / 86_400, time.as_secs() % 86_400);
    let days = days + DAYS_BEFORE;
    let (era, day_of_era) = (days / DAYS_OF_ERA, days % DAYS_OF_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on, of which five have 153 days.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year_of_era + next_year;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let micros = time.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (1_795_379_277, "2026-11-22T20:27:57.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(
            rfc3339(Duration::new(0, 1_002_999)),
            "1970-01-01T00:00:00.001002Z"
        );
    }

    #[test]
    fn lines_are_flat() {
        let line = Line {
            time: rfc3339(Duration::ZERO),
            level: Level::Warning,
            pid: 1,
            identity: Some(&Identity {
                command: "start",
                job: Some("42".into()),
                ..Identity::default()
            }),
            content: serde_json::json!({"event": "x"}),
        };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"time":"1970-01-01T00:00:00.000000Z","level":"warning","pid":1,"command":"start","job":"42","event":"x"}"#
        );
    }
}
