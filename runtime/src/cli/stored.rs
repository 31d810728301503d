//! Images in the store: found there by the digest that a tag stands for, or imported into it.
//!
//! Shared by the commands that need an image rather than a file that the user names. Of all processes that want an image
//! that is not there, one imports it; the others wait and show who does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cista_images::cancel::Cancel;
use cista_images::digest::Digest;
use cista_images::import::{self as images_import, Options};
use cista_images::progress::{Event, Progress};
use cista_images::reference::Reference;
use cista_images::source::{Source, SourceError, Task};
use cista_images::store::{self, ImageRecord, PendingImage, Store};

use super::import::{self, ImageOptions, SourceOptions};
use super::{Context, Failure};
use crate::config::store::StoreConfig;
use crate::observe::{self, Phase};
use crate::sys;
use crate::ui;
use crate::ui::progress::ImportProgress;

/// An image that a command wants.
pub(super) struct Wanted<'a> {
    pub(super) uri: &'a str,
    pub(super) source: &'a SourceOptions,
    pub(super) image: &'a ImageOptions,
    pub(super) quiet: bool,
}

/// The path of an image in the user's store or a shared one. It is imported into the user's if need be.
pub(super) fn prepare(wanted: &Wanted<'_>, context: &Context) -> Result<PathBuf, Failure> {
    prepare_in(wanted, &import::open_store(context)?, context)
}

/// The path of an image in a certain store.
pub(super) fn prepare_in(
    wanted: &Wanted<'_>,
    store: &Arc<Store>,
    context: &Context,
) -> Result<PathBuf, Failure> {
    observe::imports();
    observe::subject(wanted.uri);
    let config = wanted.image.settings(context)?;
    let reference = import::parse(wanted.uri)?;
    if let Reference::Directory(_) = reference {
        return Err(no_digest(wanted.uri));
    }
    let cancel = sys::signal::cancel_on_signals()?;
    for (root, distrust) in store.distrusted() {
        ui::warning(format_args!(
            "images of the shared store `{}` are not used: {}",
            root.display(),
            ui::chain(distrust)
        ));
    }
    let options = Options {
        // The store's images depend on the manifest alone.
        record_reference: false,
        ..wanted.image.options(&config, context)
    };
    let fingerprint = Digest::of(options.fingerprint().as_bytes());
    let progress = ImportProgress::new(wanted.quiet);
    let task = Task {
        progress: &progress,
        cancel: &cancel,
    };
    let blobs = wanted.image.keeps_blobs().then(|| Arc::clone(store));
    let source = import::open(&reference, &config, blobs)?;
    let platform = wanted.source.platform();
    let failed = |error: SourceError| import::failure(error, &cancel);
    let mut digest = source
        .digest(&platform, task)
        .map_err(failed)?
        .ok_or_else(|| no_digest(wanted.uri))?;
    loop {
        // Before it is looked for, so that nobody removes what is about to be found.
        store.note_use(&digest);
        if let Some(path) = store.image(&digest, &fingerprint)? {
            if !config_verifies(context)?
                || store
                    .is_image_good(&path, &cancel)
                    .map_err(|error| import::failure(error, &cancel))?
            {
                observe::looked_for_image(true);
                return Ok(path);
            }
            discard(store, &path)?;
        }
        let pending = match claim(store, &digest, &fingerprint, task).map_err(failed)? {
            Ok(path) => {
                observe::looked_for_image(true);
                return Ok(path);
            }
            Err(pending) => pending,
        };
        let image = source.resolve(&platform, task).map_err(failed)?;
        // The tag may have moved between the two requests.
        match image.digest {
            None => return Err(no_digest(wanted.uri)),
            Some(found) if found != digest => digest = found,
            Some(_) => {
                observe::looked_for_image(false);
                let import = Import {
                    wanted,
                    options: &options,
                    source: source.as_ref(),
                    progress: &progress,
                    cancel: &cancel,
                };
                let path = import.run(&image, digest, pending)?;
                import::evict(store);
                return Ok(path);
            }
        }
    }
}

/// Whether images are read to their end before they are used.
fn config_verifies(context: &Context) -> Result<bool, Failure> {
    Ok(StoreConfig::load(&context.config.sources)?.verifies)
}

/// Removes a damaged image.
fn discard(store: &Store, path: &Path) -> Result<(), Failure> {
    if !store.holds(path) {
        return Err(Failure::new(io::Error::other(format!(
            "`{}` in a shared store is damaged",
            path.display()
        )))
        .with_hint(
            "tell who keeps the store; without `CISTA_SHARED_STORES` the image is made in your own",
        ));
    }
    ui::warning(format_args!(
        "`{}` is damaged, and is made again",
        path.display()
    ));
    Ok(store.discard(path)?)
}

/// Waits until an image is there (`Ok`), or ours to make (`Err`).
fn claim(
    store: &Store,
    digest: &Digest,
    fingerprint: &Digest,
    task: Task<'_>,
) -> Result<Result<PathBuf, PendingImage>, SourceError> {
    store::wait_for(
        |watch| store.claim_image(digest, fingerprint, watch),
        |holder, pause| {
            let layer = None;
            task.progress.event(Event::Waiting { layer, holder });
            Ok(task.cancel.pause(pause)?)
        },
    )
}

/// An import into the store.
struct Import<'a> {
    wanted: &'a Wanted<'a>,
    options: &'a Options,
    source: &'a dyn Source,
    progress: &'a ImportProgress,
    cancel: &'a Cancel,
}

impl Import<'_> {
    fn run(
        &self,
        image: &cista_images::source::ResolvedImage,
        digest: Digest,
        pending: PendingImage,
    ) -> Result<PathBuf, Failure> {
        let started = Instant::now();
        self.progress.begin(image);
        observe::begin(Phase::Build);
        let file = pending.output().handle().map_err(import::output_failure)?;
        let shown = Shown {
            progress: self.progress,
            pending: &pending,
            merged: AtomicU64::new(0),
            total: image.layer_bytes(),
        };
        let task = Task {
            progress: &shown,
            cancel: self.cancel,
        };
        let made = images_import::import(self.source, image, self.options, file, task);
        self.progress.finish();
        let summary = made.map_err(|error| import::failure(error, self.cancel))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let record = ImageRecord {
            reference: image.reference.clone(),
            manifest: digest.to_string(),
            options: self.options.fingerprint(),
            created: now.map_or(0, |time| time.as_secs()),
            size: summary.size,
            digest: None,
        };
        let path = pending.commit(record)?;
        self.progress.record(summary.size);
        if !self.wanted.quiet {
            ui::message(format_args!(
                "imported `{}`: {}",
                self.wanted.uri,
                import::describe(&summary, self.progress.merged(), started)
            ));
        }
        Ok(path)
    }
}

/// Progress that those who wait for the image see too.
struct Shown<'a> {
    progress: &'a ImportProgress,
    pending: &'a PendingImage,
    merged: AtomicU64,
    total: u64,
}

impl Progress for Shown<'_> {
    fn event(&self, event: Event) {
        if let Event::LayerMerged { bytes, .. } = event {
            let before = self.merged.fetch_add(bytes, Ordering::Relaxed);
            self.pending.advance(before + bytes, self.total);
        }
        self.progress.event(event);
    }
}

fn no_digest(uri: &str) -> Failure {
    Failure::new(io::Error::other(format!(
        "`{uri}` has no manifest, so its image cannot be kept in the store"
    )))
    .with_hint("import it with `cista import`, then start the file with `cista start`")
}
