//! Progress of an import: bars on a terminal, a plain line every few seconds elsewhere, events as JSON for programs (`docs/import.md`).
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
use serde_json::json;

use crate::observe::{self, Phase};

/// Time between two plain lines.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time between two JSON events of progress.
const JSON_INTERVAL: Duration = Duration::from_secs(1);
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
    /// Events on stdout; when progress was last told.
    Json(Instant),
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
    /// Of an archive that has to be here before anything else.
    received: u64,
    fetched: u64,
    merged: u64,
    layers: Vec<Layer>,
    /// It was said that another process is waited for.
    waited: bool,
    /// Layers that a store had.
    cached: u64,
    /// Bytes that came, and between which times of [`observe::now`]; those of layers that a store had do not count.
    came: u64,
    coming: Option<(Duration, Duration)>,
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
            super::be_quiet();
            View::Quiet
        } else if std::io::stderr().is_terminal() && !super::log::is_json() {
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

    /// Progress as events on stdout, one JSON object a line.
    #[must_use]
    pub fn json() -> Self {
        Self {
            state: Mutex::new(State {
                view: View::Json(Instant::now()),
                totals: Totals::default(),
            }),
        }
    }

    /// Tells what the image consists of, before its layers are imported.
    pub fn begin(&self, image: &ResolvedImage) {
        let mut state = self.lock();
        if let View::Json(_) = state.view {
            tell_image(image);
        }
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

    /// Tells what was recorded of an import that made an image of a size in bytes.
    pub fn record(&self, size: u64) {
        if !observe::is_on() {
            return;
        }
        let state = self.lock();
        let totals = &state.totals;
        if let Some((from, to)) = totals.coming {
            observe::add(Phase::Fetch, from, to.saturating_sub(from));
        }
        observe::imported(observe::Import {
            fetched: totals.came,
            written: size,
            layers_fetched: (totals.layers.len() as u64).saturating_sub(totals.cached),
            layers_cached: totals.cached,
        });
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
            View::Json(last) => tell(event, totals, last),
        }
    }
}

/// An event as a line of JSON. Layers are numbered from 1, as in messages; sizes are bytes.
fn tell(event: Event, totals: &Totals, last: &mut Instant) {
    let value = match event {
        Event::Warning(text) => json!({"event": "warning", "message": text}),
        Event::LayerCached {
            layer,
            digest,
            size,
        } => {
            json!({"event": "layer_cached", "layer": layer + 1, "digest": digest.to_string(), "bytes": size})
        }
        Event::LayerComplete { layer } => {
            let bytes = totals.layers.get(layer).and_then(|layer| layer.size);
            json!({"event": "layer_fetched", "layer": layer + 1, "bytes": bytes})
        }
        _ if last.elapsed() < JSON_INTERVAL => return,
        Event::Waiting { layer, holder } => {
            *last = Instant::now();
            json!({"event": "waiting", "layer": layer.map(|layer| layer + 1), "for": holder.to_string()})
        }
        Event::ArchiveReceived { .. } => {
            *last = Instant::now();
            json!({"event": "receiving", "bytes": totals.received})
        }
        Event::LayerFetched { .. } | Event::LayerMerged { .. } => {
            *last = Instant::now();
            json!({"event": "progress", "bytes": totals.size, "fetched": totals.fetched, "merged": totals.merged})
        }
        Event::Resolved { .. } => return,
    };
    super::data(value);
}

fn tell_image(image: &ResolvedImage) {
    let layers = image.layers.iter().enumerate().map(|(index, layer)| {
        let digest = layer.digest.map(|digest| digest.to_string());
        json!({"layer": index + 1, "digest": digest, "bytes": layer.size})
    });
    super::data(json!({
        "event": "resolved",
        "reference": image.reference,
        "digest": image.digest.map(|digest| digest.to_string()),
        "layers": layers.collect::<Vec<_>>(),
    }));
}

impl Totals {
    fn take(&mut self, event: &Event) {
        let mut fetched = |layers: &mut [Layer], layer: usize, bytes: u64| {
            self.fetched += bytes;
            if let Some(layer) = layers.get_mut(layer) {
                layer.fetched += bytes;
            }
        };
        if let Event::ArchiveReceived { bytes } | Event::LayerFetched { bytes, .. } = event {
            self.came += bytes;
            let now = observe::now();
            self.coming.get_or_insert((now, now)).1 = now;
        }
        match event {
            Event::LayerCached { layer, size, .. } => {
                self.cached += 1;
                fetched(&mut self.layers, *layer, *size);
            }
            Event::ArchiveReceived { bytes } => self.received += bytes,
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
        if self.layers.is_empty() && self.received > 0 {
            return write!(f, "received {} of the archive", HumanBytes(self.received));
        }
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
        self.total.reset();
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
            Event::ArchiveReceived { .. } => {
                let text = "{prefix:>24} {bytes:>11} received, {bytes_per_sec}";
                if self.total.position() == 0 {
                    self.total.set_style(style(text));
                }
                self.total.set_position(totals.received);
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
