//! What a start or an import spends its time on: told as lines of JSON (`--log-format json`), and counted for Prometheus
//! (`CISTA_METRICS_DIRECTORY`).
//!
//! A command is in one phase at a time, and says so by [`begin`]; only fetching happens beside building, and is added by [`add`]. Each phase is told once,
//! when the command is done with its work or has failed, however often it was entered. Without somebody who wants to know, all of this is
//! one look at a flag: a start takes few milliseconds, and none of them is for this.
//!
//! The recorder is one for the process, as that of a logger is: a phase is begun in the depth of a start, where nothing else is known of who looks on.

mod tally;
mod textfile;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::config::Config;
use crate::ui;
use crate::ui::log::{self, Level, LogFormat};
use tally::Count;
use textfile::Textfile;

/// A part of the way from a command to a container or an image. The names stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Settings are read, and what is wanted is found: a container, an image, what a tag stands for.
    Resolve,
    /// Layers arrive.
    Fetch,
    /// Layers are decoded, merged and written to an image.
    Build,
    /// The server of the image, namespaces, the root file system and what is mounted into it.
    Mount,
    /// `/dev` and the devices in it.
    Devices,
    /// Programs of the administrator and the user.
    Hooks,
    /// The root is switched, privileges are given up, the program is executed.
    Exec,
}

impl Phase {
    /// All of them, in the order in which they begin.
    pub const ALL: [Self; 7] = [
        Self::Resolve,
        Self::Fetch,
        Self::Build,
        Self::Mount,
        Self::Devices,
        Self::Hooks,
        Self::Exec,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Fetch => "fetch",
            Self::Build => "build",
            Self::Mount => "mount",
            Self::Devices => "devices",
            Self::Hooks => "hooks",
            Self::Exec => "exec",
        }
    }
}

/// What a command does, for what its failure is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It starts a container.
    Start,
    /// It makes an image.
    Import,
    /// Something else, which is not counted.
    Other,
}

/// An image that was made. Sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Import {
    /// What came of layers.
    pub fetched: u64,
    /// Size of the image.
    pub written: u64,
    /// Layers that came.
    pub layers_fetched: u64,
    /// Layers that a store had.
    pub layers_cached: u64,
}

/// Whether anybody wants to know.
static IS_ON: AtomicBool = AtomicBool::new(false);
static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

struct Recorder {
    /// On the monotonic clock, as all times here.
    began: Duration,
    activity: Activity,
    current: Phase,
    since: Duration,
    /// By the position in [`Phase::ALL`].
    spent: [Option<Spent>; Phase::ALL.len()],
    subject: Option<String>,
    textfile: Option<Textfile>,
    is_counted: bool,
}

#[derive(Clone, Copy)]
struct Spent {
    began: Duration,
    time: Duration,
}

/// The monotonic clock: what [`crate::observe`] takes times from, and hands to itself over an execve(2).
#[must_use]
pub fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Begins to record where the settings say so, with the first phase, for a command that began at a time of [`now`].
pub fn start(activity: Activity, began: Duration, config: &Config) {
    if config.log_format != LogFormat::Json && config.metrics_directory.is_none() {
        return;
    }
    let textfile = config.metrics_directory.as_ref().and_then(|directory| {
        Textfile::open(directory)
            .map_err(|error| cannot_count(&error))
            .ok()
    });
    let recorder = Recorder {
        began,
        activity,
        current: Phase::Resolve,
        since: began,
        spent: [None; Phase::ALL.len()],
        subject: None,
        textfile,
        is_counted: false,
    };
    *lock() = Some(recorder);
    IS_ON.store(true, Ordering::Relaxed);
}

/// Another process goes on with the work, and tells what comes of it; or the work is done, and what follows is none of it.
pub fn forget() {
    if is_on() {
        IS_ON.store(false, Ordering::Relaxed);
        *lock() = None;
    }
}

/// Whether anybody wants to know.
#[must_use]
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// When the command began, for the next program that goes on with it.
#[must_use]
pub fn began() -> Option<Duration> {
    with(|recorder| recorder.began)
}

/// Says that the command goes on with what another one of this process began.
pub fn continues(began: Duration, phase: Phase) {
    with(|recorder| {
        recorder.began = began.min(recorder.began);
        recorder.current = phase;
    });
}

/// Says what is started or imported.
pub fn subject(text: impl Into<String>) {
    with(|recorder| recorder.subject = Some(text.into()));
}

/// The present phase ends and another begins, perhaps again.
#[inline]
pub fn begin(phase: Phase) {
    with(|recorder| recorder.enter(phase));
}

/// Adds time to a phase that went on beside another.
pub fn add(phase: Phase, began: Duration, time: Duration) {
    with(|recorder| recorder.add(phase, began, time));
}

/// An image was looked for in the stores.
pub fn looked_for_image(was_there: bool) {
    with(|recorder| recorder.count(&[Count::Image { was_there }]));
}

/// Says that the command makes an image, whatever else it does.
pub fn imports() {
    with(|recorder| {
        if recorder.activity == Activity::Other {
            recorder.activity = Activity::Import;
        }
    });
}

/// An image was made.
pub fn imported(import: Import) {
    with(|recorder| {
        let Import {
            fetched,
            written,
            layers_fetched,
            layers_cached,
        } = import;
        recorder.tell(&Told::Imported {
            import,
            seconds: recorder.age().as_secs_f64(),
        });
        recorder.count(&[Count::Imported {
            fetched,
            written,
            layers_fetched,
            layers_cached,
        }]);
    });
}

/// This program's part of the work is done. What was recorded is told.
pub fn done() {
    with(|recorder| {
        if recorder.activity == Activity::Other {
            return;
        }
        recorder.enter(recorder.current);
        let counts = recorder.told_phases();
        recorder.count(&counts);
    });
}

/// The container's program is executed next. What was recorded is told.
pub fn ready() {
    with(|recorder| {
        recorder.enter(recorder.current);
        let ready = recorder.age();
        let mut counts = recorder.told_phases();
        recorder.tell(&Told::Ready {
            seconds: ready.as_secs_f64(),
        });
        counts.push(Count::Started { ready });
        recorder.is_counted = true;
        recorder.count(&counts);
    });
}

/// The command failed, in the phase that it was in. What was recorded is told; what failed, by [`ui::failure`].
pub fn failed() {
    with(|recorder| {
        if recorder.activity == Activity::Other {
            return;
        }
        let phase = recorder.current;
        recorder.enter(phase);
        let mut counts = recorder.told_phases();
        match recorder.activity {
            Activity::Start => counts.push(Count::StartFailed {
                phase,
                was_counted: recorder.is_counted,
            }),
            Activity::Import | Activity::Other => counts.push(Count::ImportFailed { phase }),
        }
        recorder.count(&counts);
    });
}

/// The phase that the command is in, where it is recorded.
#[must_use]
pub fn current() -> Option<Phase> {
    with(|recorder| recorder.current)
}

fn with<T>(work: impl FnOnce(&mut Recorder) -> T) -> Option<T> {
    if !is_on() {
        return None;
    }
    lock().as_mut().map(work)
}

fn lock() -> MutexGuard<'static, Option<Recorder>> {
    RECORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers that cannot be written stop nothing.
fn cannot_count(error: &std::io::Error) {
    ui::warning(format_args!(
        "cannot count this in `CISTA_METRICS_DIRECTORY`: {error}"
    ));
}

/// A line of the log besides messages.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Told {
    Phase {
        phase: &'static str,
        /// Since the command began.
        offset: f64,
        seconds: f64,
    },
    Imported {
        #[serde(flatten)]
        import: Import,
        seconds: f64,
    },
    Ready {
        seconds: f64,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    told: &'a Told,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
}

impl Recorder {
    fn age(&self) -> Duration {
        now().saturating_sub(self.began)
    }

    fn enter(&mut self, phase: Phase) {
        let (now, since) = (now(), self.since);
        self.add(self.current, since, now.saturating_sub(since));
        self.current = phase;
        self.since = now;
    }

    fn add(&mut self, phase: Phase, began: Duration, time: Duration) {
        if let Some(slot) = self.spent.get_mut(phase as usize) {
            let spent = slot.get_or_insert(Spent {
                began,
                time: Duration::ZERO,
            });
            spent.time += time;
        }
    }

    /// Tells the phases that were not told yet; returns them as things to count.
    fn told_phases(&mut self) -> Vec<Count> {
        let spent = std::mem::replace(&mut self.spent, [None; Phase::ALL.len()]);
        let entered = Phase::ALL.into_iter().zip(spent);
        let entered = entered.filter_map(|(phase, spent)| Some((phase, spent?)));
        entered
            .map(|(phase, Spent { began, time })| {
                self.tell(&Told::Phase {
                    phase: phase.name(),
                    offset: began.saturating_sub(self.began).as_secs_f64(),
                    seconds: time.as_secs_f64(),
                });
                Count::Spent { phase, time }
            })
            .collect()
    }

    fn tell(&self, told: &Told) {
        let image = self.subject.as_deref();
        log::event(Level::Info, &Line { told, image });
    }

    fn count(&mut self, counts: &[Count]) {
        let outcome = self.textfile.as_ref().map(|file| file.count(counts));
        if let Some(Err(error)) = outcome {
            cannot_count(&error);
            // Once is enough.
            self.textfile = None;
        }
    }
}
