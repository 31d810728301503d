//! `cista import`: import an image into a squashfs file.
//!
//! What is shared with `run` and `digest` stands here too: how a URI becomes a source, and how a failure of an import is
//! shown.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use cista_images::cancel::Cancel;
use cista_images::import::{self, Options, Summary};
use cista_images::output::{Output, OutputError};
use cista_images::platform::Platform;
use cista_images::reference::Reference;
use cista_images::registry::Pull;
use cista_images::source::{self, Source, Task};
use cista_images::squashfs::compression::Compression;
use cista_images::store::Store;

use super::{Context, Failure, Outcome, status};
use crate::config::import::ImportConfig;
use crate::config::settings;
use crate::config::store::StoreConfig;
use crate::observe::{self, Phase};
use crate::sys;
use crate::ui;
use crate::ui::progress::ImportProgress;

/// Import an image into a squashfs file
///
/// URI is one of
///   docker://[USER@][REGISTRY/]IMAGE[:TAG][@DIGEST]
///   dockerd://IMAGE[:TAG]   podman://IMAGE[:TAG]   (of this machine)
///   oci:DIR[:TAG]   oci-archive:FILE[:TAG]   docker-archive:FILE[:TAG]
///   tar:FILE   dir:PATH   (a plain root file system)
///   -   (what comes on standard input: one of the archives above, or a tar)
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// File to make; named after the image when left out
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(short, long)]
    force: bool,
    /// Say nothing but warnings and errors
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Tell what happens as JSON on stdout, one object a line; `cista help images` tells its fields
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: SourceOptions,
    #[command(flatten)]
    image: ImageOptions,
    /// The image
    uri: String,
}

/// Where an image comes from; shared by the commands that take a URI.
#[derive(Debug, Default, clap::Args)]
pub(super) struct SourceOptions {
    /// Processor architecture, such as `amd64`, `arm64/v8` or `linux/arm64`; the machine's own when left out
    #[arg(short, long, alias = "platform", value_name = "ARCH")]
    arch: Option<String>,
}

/// How an image is made.
#[derive(Debug, Default, clap::Args)]
pub(super) struct ImageOptions {
    /// Compression: zstd[:1-22], lz4, gzip[:1-9], xz or none
    #[arg(long, value_name = "NAME")]
    compression: Option<Compression>,
    /// Neither take layers from the cache nor keep them there
    #[arg(long)]
    no_cache: bool,
    /// When to ask the registry: `always` what a tag stands for, `missing` only what the store does not know, `never`
    #[arg(long, value_name = "WHEN", value_parser = parse_pull)]
    pull: Option<Pull>,
    /// Use what the store has, without the network: `--pull never`
    #[arg(long, conflicts_with_all = ["pull", "no_cache"])]
    offline: bool,
}

impl SourceOptions {
    pub(super) fn platform(&self) -> Platform {
        self.arch
            .as_deref()
            .map_or_else(Platform::host, Platform::linux)
    }
}

impl ImageOptions {
    pub(super) fn options(&self, config: &ImportConfig, context: &Context) -> Options {
        let defaults = Options::new(context.config.max_processors());
        Options {
            compression: self.compression.unwrap_or(config.compression),
            time: config.time,
            memory: config.memory.unwrap_or(defaults.memory),
            limits: config.limits(),
            ..defaults
        }
    }

    /// The settings of imports, as far as the command line leaves them.
    pub(super) fn settings(&self, context: &Context) -> Result<ImportConfig, Failure> {
        let mut config = ImportConfig::load(&context.config.sources)?;
        if self.offline {
            config.registry.pull = Pull::Never;
        } else if let Some(pull) = self.pull {
            config.registry.pull = pull;
        }
        Ok(config)
    }

    /// Whether blobs are taken from the store and kept there.
    pub(super) fn keeps_blobs(&self) -> bool {
        !self.no_cache
    }

    /// The store, unless it is not wanted.
    pub(super) fn store(&self, context: &Context) -> Result<Option<Arc<Store>>, Failure> {
        if self.no_cache {
            return Ok(None);
        }
        let store = open_store(context)
            .map_err(|failure| failure.with_hint(
                "`CISTA_CACHE_PATH` names another directory for the cache, `--no-cache` does without",
            ))?;
        Ok(Some(store))
    }
}

fn parse_pull(word: &str) -> Result<Pull, String> {
    settings::parse_pull(word).ok_or_else(|| "expected `always`, `missing` or `never`".to_owned())
}

/// Opens the store.
pub(super) fn open_store(context: &Context) -> Result<Arc<Store>, Failure> {
    let settings = StoreConfig::load(&context.config.sources)?;
    let opened = Store::with_settings(&context.config.cache_path, settings.store);
    Ok(Arc::new(opened.map_err(|error| {
        Failure::new(error).with_hint("`CISTA_CACHE_PATH` names another directory for the cache")
    })?))
}

/// Keeps the store within its limit, after something was added.
pub(super) fn evict(store: &Store) {
    if let Err(error) = store.evict() {
        ui::warning(format_args!(
            "cannot make room in the store: {}",
            ui::chain(&error)
        ));
    }
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let start = Instant::now();
    observe::subject(&*args.uri);
    let config = args.image.settings(context)?;
    let reference = parse(&args.uri)?;
    let path = match args.output {
        Some(path) => path,
        None => reference
            .default_file_name()
            .map(PathBuf::from)
            .ok_or_else(|| {
                Failure::new(io::Error::other("the URI gives the file no name"))
                    .with_hint("name it with `-o FILE`")
            })?,
    };
    let cancel = sys::signal::cancel_on_signals()?;
    let output =
        Output::create(&path, args.force || context.config.force).map_err(output_failure)?;
    let options = args.image.options(&config, context);
    let progress = if args.json {
        ImportProgress::json()
    } else {
        ImportProgress::new(args.quiet)
    };
    let task = Task {
        progress: &progress,
        cancel: &cancel,
    };
    let store = args.image.store(context)?;
    let made = make(
        &reference,
        &args.source.platform(),
        &config,
        store.clone(),
        &options,
        &output,
        &progress,
        task,
    );
    progress.finish();
    let summary = made?;
    output.commit().map_err(output_failure)?;
    progress.record(summary.size);
    if let Some(store) = store {
        evict(&store);
    }
    if args.json {
        ui::data(serde_json::json!({
            "event": "done",
            "path": path.display().to_string(),
            "bytes": summary.size,
            "content": summary.content,
            "read": progress.merged(),
            "seconds": start.elapsed().as_secs_f64(),
        }));
    } else if !args.quiet {
        ui::message(format_args!(
            "imported `{}` into `{}`: {}",
            reference.canonical(),
            path.display(),
            describe(&summary, progress.merged(), start)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::too_many_arguments, reason = "all that an import is made of")]
fn make(
    reference: &Reference,
    platform: &Platform,
    config: &ImportConfig,
    store: Option<Arc<Store>>,
    options: &Options,
    output: &Output,
    progress: &ImportProgress,
    task: Task<'_>,
) -> Result<Summary, Failure> {
    let file = output.handle().map_err(output_failure)?;
    if let Reference::Directory(path) = reference {
        observe::begin(Phase::Build);
        return import::import_directory(path, &reference.canonical(), options, file, task)
            .map_err(|error| failure(error, task.cancel));
    }
    let source = open(reference, config, store)?;
    let image = source
        .resolve(platform, task)
        .map_err(|error| failure(error, task.cancel))?;
    progress.begin(&image);
    observe::begin(Phase::Build);
    import::import(source.as_ref(), &image, options, file, task)
        .map_err(|error| failure(error, task.cancel))
}

/// The last line: what came out of what, and how long it took.
pub(super) fn describe(summary: &Summary, read: u64, start: Instant) -> String {
    let seconds = start.elapsed().as_secs_f64();
    let mut text = format!(
        "{} for {} of files",
        indicatif::HumanBytes(summary.size),
        indicatif::HumanBytes(summary.content)
    );
    if summary.content > summary.size {
        let ratio = summary.content as f64 / summary.size as f64;
        text.push_str(&format!(" ({ratio:.1}:1)"));
    }
    if read > 0 {
        text.push_str(&format!(", from {} of layers", indicatif::HumanBytes(read)));
    }
    format!("{text}, in {seconds:.1} s")
}

/// Reads a URI.
pub(super) fn parse(uri: &str) -> Result<Reference, Failure> {
    Ok(uri.parse()?)
}

/// Opens what a reference names, with the settings and credentials for it.
pub(super) fn open(
    reference: &Reference,
    config: &ImportConfig,
    store: Option<Arc<Store>>,
) -> Result<Box<dyn Source>, Failure> {
    let registry = match reference {
        Reference::Registry(registry) => {
            config.registry_for(&registry.registry, registry.user.as_deref())
        }
        _ => config.registry.clone(),
    };
    let settings = source::Settings {
        registry,
        store,
        temporary: config.temporary.clone(),
        docker_socket: config.docker_socket.clone(),
        limits: config.limits(),
    };
    source::open(reference, &settings).map_err(|error| {
        let hint = source::hint(&error);
        hinted(Failure::new(error), hint)
    })
}

/// How a failed import is shown: an interrupted one has a status of its own.
pub(super) fn failure(error: impl Error + Send + Sync + 'static, cancel: &Cancel) -> Failure {
    let hint = source::hint(&error);
    if cancel.is_cancelled() {
        let signal = sys::signal::received().map_or(status::INTERRUPTED, |signal| {
            // Signal numbers are below 65.
            128 + (signal & 0x7f) as u8
        });
        return Failure::new(cista_images::cancel::Cancelled).with_status(signal);
    }
    if observe::current() == Some(Phase::Build) && source::is_of_source(&error) {
        observe::begin(Phase::Fetch);
    }
    hinted(Failure::new(error), hint)
}

/// How a failure to make the file is shown.
pub(super) fn output_failure(error: OutputError) -> Failure {
    let hint = match &error {
        OutputError::Exists { .. } => Some("`-f` replaces it, `-o FILE` names another".to_owned()),
        OutputError::NotRegular { .. } | OutputError::NoName { .. } => {
            Some("name a file that is to be made: `-o DIR/FILE.sqsh`".to_owned())
        }
        error => source::hint(error).or_else(|| Some("`-o FILE` names another place".to_owned())),
    };
    hinted(Failure::new(error), hint)
}

pub(super) fn hinted(failure: Failure, hint: Option<String>) -> Failure {
    match hint {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    }
}
