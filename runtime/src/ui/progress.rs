//! Progress of an import: bars on a terminal, a plain line every few seconds elsewhere.
//!
//! Drawing happens in the events themselves, at most twenty times a second; there is no thread that draws, since a start
//! that follows an import wants none.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cista_images::progress::{Event, Progress};
use cista_images::source::ResolvedImage;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two plain lines.
const INTERVAL: Duration = Duration::from_secs(5);
/// Most layers whose lines stay when they are done.
const MAX_LINES: usize = 16;

/// Shows an import on stderr.
pub struct ImportProgress {
    state: Mutex<State>,
}

struct State {
    view: View,
    totals: Totals,
}

enum View {
    /// Only warnings.
    Quiet,
    /// A plain line now and then; when the last one was written.
    Plain(Instant),
    /// A line a layer, and a total.
    Bars(Bars),
}

struct Bars {
    all: MultiProgress,
    layers: BTreeMap<usize, ProgressBar>,
    total: ProgressBar,
}

/// What is known of the whole image, in bytes of blobs.
#[derive(Clone, Debug, Default)]
struct Totals {
    /// None where a source cannot tell.
    size: Option<u64>,
    fetched: u64,
    merged: u64,
    layers: Vec<Layer>,
    /// It was said that another process is waited for.
    waited: bool,
}

/// What is known of one layer, in bytes of its blob.
#[derive(Clone, Debug, Default)]
struct Layer {
    name: String,
    size: Option<u64>,
    fetched: u64,
    merged: u64,
}

impl ImportProgress {
    /// Progress in the form that suits stderr; none when `quiet`.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        let view = if quiet {
            View::Quiet
        } else if std::io::stderr().is_terminal() {
            View::Bars(Bars::new())
        } else {
            View::Plain(Instant::now())
        };
        Self {
            state: Mutex::new(State {
                view,
                totals: Totals::default(),
            }),
        }
    }

    /// Tells what the image consists of, before its layers are imported.
    pub fn begin(&self, image: &ResolvedImage) {
        let mut state = self.lock();
        let State { view, totals } = &mut *state;
        let layers = image.layers.iter().enumerate().map(|(index, layer)| {
            let digest = layer
                .digest
                .map_or_else(String::new, |digest| format!(" {}", &digest.hex()[..12]));
            Layer {
                name: format!("layer {}{digest}", index + 1),
                size: layer.size,
                ..Layer::default()
            }
        });
        totals.layers = layers.collect();
        totals.size = image.layers.iter().map(|layer| layer.size).sum();
        if let View::Bars(bars) = view {
            bars.begin(totals);
        }
    }

    /// Removes what is shown, before something else is written to the terminal.
    pub fn finish(&self) {
        let mut state = self.lock();
        if let View::Bars(bars) = &state.view {
            bars.clear();
        }
        state.view = View::Quiet;
    }

    /// Bytes of blobs that were merged.
    #[must_use]
    pub fn merged(&self) -> u64 {
        self.lock().totals.merged
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for ImportProgress {
    fn event(&self, event: Event) {
        let mut state = self.lock();
        let State { view, totals } = &mut *state;
        totals.take(&event);
        match view {
            View::Quiet => {
                if let Event::Warning(text) = event {
                    super::warning(text);
                }
            }
            View::Plain(last) => match event {
                Event::Warning(text) => super::warning(text),
                Event::Waiting { holder, .. } if !totals.waited || last.elapsed() >= INTERVAL => {
                    totals.waited = true;
                    *last = Instant::now();
                    super::message(format_args!("waiting for {holder}"));
                }
                _ if last.elapsed() >= INTERVAL => {
                    *last = Instant::now();
                    super::message(totals);
                }
                _ => {}
            },
            View::Bars(bars) => bars.take(&event, totals),
        }
    }
}

impl Totals {
    fn take(&mut self, event: &Event) {
        let mut fetched = |layers: &mut [Layer], layer: usize, bytes: u64| {
            self.fetched += bytes;
            if let Some(layer) = layers.get_mut(layer) {
                layer.fetched += bytes;
            }
        };
        match event {
            Event::LayerCached { layer, size, .. } => fetched(&mut self.layers, *layer, *size),
            Event::LayerFetched { layer, bytes } => fetched(&mut self.layers, *layer, *bytes),
            Event::LayerMerged { layer, bytes } => {
                self.merged += bytes;
                if let Some(layer) = self.layers.get_mut(*layer) {
                    layer.merged += bytes;
                }
            }
            Event::Resolved { .. }
            | Event::LayerComplete { .. }
            | Event::Waiting { .. }
            | Event::Warning(_) => {}
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "imported {}", HumanBytes(self.merged))?;
        if let Some(size @ 1..) = self.size {
            let percent = self.merged.saturating_mul(100) / size;
            write!(f, " of {} ({percent} %)", HumanBytes(size))?;
        }
        if self.fetched > self.merged {
            write!(f, ", {} fetched", HumanBytes(self.fetched))?;
        }
        Ok(())
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(20));
        let total = all.add(ProgressBar::no_length());
        total.set_prefix("total");
        Self {
            all,
            layers: BTreeMap::new(),
            total,
        }
    }

    fn begin(&mut self, totals: &Totals) {
        if let Some(size) = totals.size {
            self.total.set_length(size);
            self.total.set_style(style(
                "{prefix:>24} {bar:30} {bytes:>11} of {total_bytes}, {bytes_per_sec}, {eta} left",
            ));
        } else {
            self.total
                .set_style(style("{prefix:>24} {bytes:>11}, {bytes_per_sec}"));
        }
    }

    fn take(&mut self, event: &Event, totals: &Totals) {
        match event {
            Event::Warning(text) => self.all.suspend(|| super::warning(text)),
            Event::LayerCached { layer, .. }
            | Event::LayerFetched { layer, .. }
            | Event::LayerComplete { layer }
            | Event::LayerMerged { layer, .. } => {
                self.total.set_position(totals.merged);
                self.layer(*layer, totals);
            }
            Event::Waiting { layer, holder } => {
                let bar = layer.and_then(|layer| self.layers.get(&layer));
                let bar = bar.unwrap_or_else(|| {
                    if totals.layers.is_empty() {
                        self.total.set_style(style("{prefix:>24} {msg}"));
                    }
                    &self.total
                });
                bar.set_message(format!("waiting for {holder}"));
            }
            Event::Resolved { .. } => {}
        }
    }

    fn layer(&mut self, index: usize, totals: &Totals) {
        // Without a size there is one layer, whose line would say what the total says.
        let Some(
            layer @ Layer {
                size: Some(size), ..
            },
        ) = totals.layers.get(index)
        else {
            return;
        };
        let bar = self.layers.entry(index).or_insert_with(|| {
            let bar = self.all.insert_before(&self.total, ProgressBar::new(*size));
            bar.set_style(style(
                "{prefix:>24} {bar:30} {bytes:>11} of {total_bytes} {msg}",
            ));
            bar.set_prefix(layer.name.clone());
            bar
        });
        bar.set_position(layer.fetched.max(layer.merged));
        bar.set_message(match layer.merged {
            0 if layer.fetched >= *size => "waiting",
            0 => "",
            merged if merged >= *size => "done",
            _ => "merging",
        });
        if layer.merged >= *size && totals.layers.len() > MAX_LINES {
            bar.finish_and_clear();
        }
    }

    fn clear(&self) {
        for bar in self.layers.values() {
            bar.finish_and_clear();
        }
        self.total.finish_and_clear();
    }
}

/// A style from a template that this file spells out; a malformed one would show as the default style.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
