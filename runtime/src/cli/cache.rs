//! `cista cache`: what is in the store, whether it is good, and making room.
//!
//! Data goes to stdout, a line a thing or JSON; what was done is told on stderr. The fields of the JSON are in docs/json.md.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cista_images::store::{Contents, Prune, Store, StoredImage, VerifyError};
use indicatif::HumanBytes;
use serde::Serialize;

use super::import::{self, ImageOptions, SourceOptions};
use super::{Context, Failure, Outcome, status, stored};
use crate::config::settings;
use crate::config::store::StoreConfig;
use crate::sys;
use crate::ui;

/// Show and tend the store of blobs and images
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Another store than the user's own
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the images in the store, those that were used last first
    List(ListArgs),
    /// Import images into the store, without starting them
    Add(AddArgs),
    /// Remove what dead processes left and, of what is not in use, what is too much or too old
    ///
    /// Without options, until the store has the size of the setting `CISTA_CACHE_SIZE`.
    Prune(PruneArgs),
    /// Read everything in the store and say what is damaged
    Verify(VerifyArgs),
    /// Print where the store is
    Path,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Show images, blobs and what is unfinished as JSON; `cista help json` tells its fields
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// Let all users read the store, so that they can name it in `CISTA_SHARED_STORES`
    #[arg(long)]
    shared: bool,
    /// Say nothing but warnings and errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    source: SourceOptions,
    #[command(flatten)]
    image: ImageOptions,
    /// The images; see `cista import --help`
    #[arg(required = true, value_name = "URI")]
    uris: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct PruneArgs {
    /// Until so much is left, such as `50G`
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// What was not used for so long, such as `30d` or `12h`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    unused_for: Option<Duration>,
    /// Everything that is not in use
    #[arg(long)]
    all: bool,
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Show what was removed as JSON; `cista help json` tells its fields
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// Remove what is damaged; it is fetched or made again when it is wanted
    #[arg(long)]
    remove: bool,
    /// Show the result as JSON; `cista help json` tells its fields
    #[arg(long)]
    json: bool,
}

fn parse_size(text: &str) -> Result<u64, String> {
    settings::parse_size(text)
        .ok_or_else(|| format!("expected {}", settings::Kind::Size.expected()))
}

/// A number of seconds, minutes, hours, days or weeks: `90m`, `30d`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number and `s`, `m`, `h`, `d` or `w`".to_owned();
    let (last, unit) = text.char_indices().last().ok_or_else(expected)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return Err(expected()),
    };
    let number: u64 = text[..last].parse().map_err(|_| expected())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(expected)
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let path = args.store.as_deref().unwrap_or(&context.config.cache_path);
    let mut settings = StoreConfig::load(&context.config.sources)?.store;
    if args.store.is_some() {
        // Its images should be its own.
        settings.shared.clear();
    }
    let open = |settings| {
        Store::with_settings(path, settings).map_err(|error| {
            let hint = error.hint();
            import::hinted(Failure::new(error), hint)
        })
    };
    match args.command {
        Command::Path => {
            ui::data(path.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::List(list) => show(&open(settings)?, path, &list, context),
        Command::Add(add) => {
            settings.readable = add.shared;
            add_images(&add, Arc::new(open(settings)?), context)
        }
        Command::Prune(args) => {
            let limit = settings.limit;
            prune(&open(settings)?, limit, &args)
        }
        Command::Verify(args) => verify(&open(settings)?, &args),
    }
}

fn add_images(args: &AddArgs, store: Arc<Store>, context: &Context) -> Outcome {
    for uri in &args.uris {
        let wanted = stored::Wanted {
            uri,
            source: &args.source,
            image: &args.image,
            quiet: args.quiet,
        };
        let path = stored::prepare_in(&wanted, &store, context)?;
        ui::data(path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The store, as `--json` shows it. Fields are added but never renamed or removed.
#[derive(Debug, Serialize)]
struct StoreEntry<'a> {
    path: Cow<'a, str>,
    size: u64,
    limit: Option<u64>,
    images: Vec<ImageEntry<'a>>,
    blobs: Vec<BlobEntry>,
    unfinished: Vec<UnfinishedEntry<'a>>,
}

#[derive(Debug, Serialize)]
struct ImageEntry<'a> {
    path: Cow<'a, str>,
    manifest: String,
    reference: Option<&'a str>,
    options: Option<&'a str>,
    digest: Option<&'a str>,
    size: u64,
    created: Option<u64>,
    last_used: u64,
    in_use: bool,
}

#[derive(Debug, Serialize)]
struct BlobEntry {
    digest: String,
    size: u64,
    last_used: u64,
}

#[derive(Debug, Serialize)]
struct UnfinishedEntry<'a> {
    path: Cow<'a, str>,
    size: u64,
    maker: Option<String>,
}

fn show(store: &Store, path: &Path, args: &ListArgs, context: &Context) -> Outcome {
    let contents = store.contents()?;
    if args.json {
        let limit = StoreConfig::load(&context.config.sources)?.store.limit;
        ui::data(json(&entry(&contents, path, limit))?);
        return Ok(ExitCode::SUCCESS);
    }
    for image in &contents.images {
        ui::data(line(image));
    }
    let bytes = |sizes: &mut dyn Iterator<Item = u64>| HumanBytes(sizes.sum());
    ui::message(format_args!(
        "{} images with {}, {} blobs with {}, {} unfinished with {}, in `{}`",
        contents.images.len(),
        bytes(&mut contents.images.iter().map(|image| image.size)),
        contents.blobs.len(),
        bytes(&mut contents.blobs.iter().map(|blob| blob.size)),
        contents.unfinished.len(),
        bytes(&mut contents.unfinished.iter().map(|file| file.size)),
        path.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// An image as a line: digest, size, last use, reference.
fn line(image: &StoredImage) -> String {
    let reference = match &image.record {
        Some(record) => record.reference.as_str(),
        None => "(damaged)",
    };
    let state = if image.is_in_use {
        "in use".to_owned()
    } else {
        let age = SystemTime::now().duration_since(image.last_used);
        indicatif::HumanDuration(age.unwrap_or_default()).to_string() + " ago"
    };
    format!(
        "{}  {:>12}  {state:>16}  {reference}",
        &image.manifest.hex()[..12],
        HumanBytes(image.size).to_string(),
    )
}

fn entry<'a>(contents: &'a Contents, path: &'a Path, limit: Option<u64>) -> StoreEntry<'a> {
    StoreEntry {
        path: path.to_string_lossy(),
        size: contents.size(),
        limit,
        images: contents
            .images
            .iter()
            .map(|image| {
                let record = image.record.as_ref();
                ImageEntry {
                    path: image.path.to_string_lossy(),
                    manifest: image.manifest.to_string(),
                    reference: record.map(|record| record.reference.as_str()),
                    options: record.map(|record| record.options.as_str()),
                    digest: record.and_then(|record| record.digest.as_deref()),
                    size: image.size,
                    created: record.map(|record| record.created),
                    last_used: seconds(image.last_used),
                    in_use: image.is_in_use,
                }
            })
            .collect(),
        blobs: contents
            .blobs
            .iter()
            .map(|blob| BlobEntry {
                digest: blob.digest.to_string(),
                size: blob.size,
                last_used: seconds(blob.last_used),
            })
            .collect(),
        unfinished: contents
            .unfinished
            .iter()
            .map(|file| UnfinishedEntry {
                path: file.path.to_string_lossy(),
                size: file.size,
                maker: file.holder.as_ref().map(ToString::to_string),
            })
            .collect(),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(value)?)
}

/// What was removed, as `--json` shows it.
#[derive(Debug, Serialize)]
struct PrunedEntry<'a> {
    dry_run: bool,
    removed: Vec<Cow<'a, str>>,
    freed: u64,
    in_use: Vec<Cow<'a, str>>,
    left: u64,
}

fn prune(store: &Store, limit: Option<u64>, args: &PruneArgs) -> Outcome {
    let is_plain = args.size.is_none() && args.unused_for.is_none() && !args.all;
    let pruned = store.prune(&Prune {
        size: args.size.or(limit.filter(|_| is_plain)),
        unused_for: args.unused_for,
        everything: args.all,
        pretend: args.dry_run,
    })?;
    if args.json {
        let paths = |paths: &'_ [PathBuf]| -> Vec<Cow<'static, str>> {
            let texts = paths.iter().map(|path| path.to_string_lossy().into_owned());
            texts.map(Cow::Owned).collect()
        };
        ui::data(json(&PrunedEntry {
            dry_run: args.dry_run,
            removed: paths(&pruned.removed),
            freed: pruned.freed,
            in_use: paths(&pruned.in_use),
            left: pruned.left,
        })?);
        return Ok(ExitCode::SUCCESS);
    }
    if args.dry_run {
        for path in &pruned.removed {
            ui::data(path.display());
        }
    }
    let verb = if args.dry_run {
        "would remove"
    } else {
        "removed"
    };
    let mut text = format!(
        "{verb} {} files with {}, {} are left",
        pruned.removed.len(),
        HumanBytes(pruned.freed),
        HumanBytes(pruned.left)
    );
    if !pruned.in_use.is_empty() {
        text.push_str(&format!("; {} images are in use", pruned.in_use.len()));
    }
    ui::message(text);
    if is_plain && limit.is_none() {
        ui::message(
            "hint: `--size`, `--unused-for` and `--all` remove more; `CISTA_CACHE_SIZE` sets a limit",
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What was verified, as `--json` shows it.
#[derive(Debug, Serialize)]
struct VerifiedEntry {
    files: usize,
    bytes: u64,
    damaged: Vec<DamagedEntry>,
}

#[derive(Debug, Serialize)]
struct DamagedEntry {
    path: String,
    problem: String,
    removed: bool,
}

fn verify(store: &Store, args: &VerifyArgs) -> Outcome {
    let cancel = sys::signal::cancel_on_signals()?;
    let mut result = VerifiedEntry {
        files: 0,
        bytes: 0,
        damaged: Vec::new(),
    };
    let mut failed = None;
    let verified = store.verify(&cancel, |verified| {
        result.files += 1;
        result.bytes += verified.size;
        let Some(damage) = verified.damage else {
            return;
        };
        let removed = args.remove
            && match store.discard(&verified.path) {
                Ok(()) => true,
                Err(error) => {
                    failed.get_or_insert(error);
                    false
                }
            };
        let entry = DamagedEntry {
            path: verified.path.to_string_lossy().into_owned(),
            problem: damage.to_string(),
            removed,
        };
        if !args.json {
            ui::data(format_args!("{}: {}", entry.path, entry.problem));
        }
        result.damaged.push(entry);
    });
    match verified {
        Err(VerifyError::Store(error)) => return Err(error.into()),
        Err(error @ VerifyError::Cancelled(_)) => return Err(import::failure(error, &cancel)),
        Ok(()) => {}
    }
    if args.json {
        ui::data(json(&result)?);
    } else {
        ui::message(format_args!(
            "verified {} files with {}: {}",
            result.files,
            HumanBytes(result.bytes),
            match (result.damaged.len(), args.remove) {
                (0, _) => "all are good".to_owned(),
                (count, true) => format!("{count} are damaged and were removed"),
                (count, false) => format!("{count} are damaged"),
            }
        ));
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    if result.damaged.is_empty() || args.remove {
        return Ok(ExitCode::SUCCESS);
    }
    if args.json {
        return Ok(ExitCode::from(status::FAILURE));
    }
    Err(
        Failure::new(io::Error::other("the store is damaged")).with_hint(
            "`cista cache verify --remove` removes what is, and it is made again when it is wanted",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in [
            ("0s", Some(0)),
            ("90m", Some(5400)),
            ("12h", Some(43_200)),
            ("30d", Some(2_592_000)),
            ("2w", Some(1_209_600)),
            ("", None),
            ("d", None),
            ("30", None),
            ("-1d", None),
            ("1é", None),
            ("99999999999999999999d", None),
            ("9999999999999999999w", None),
        ] {
            assert_eq!(
                parse_time(text).ok().map(|time| time.as_secs()),
                seconds,
                "{text}"
            );
        }
    }
}
