//! `cista bundle`: make one executable file of an image

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Context, Outcome, import};
use crate::bundle::{self, BundleError, Creation, Description};
use crate::config::settings;
use crate::container::carried::Carried;
use crate::container::named;
use crate::{sys, ui};

/// Make one executable file of an image
///
/// The bundle is this program with the image behind it, and needs nothing to be installed where it runs: it mounts the image in place. It takes the options
/// of `start`, and a few of its own; see `BUNDLE --help`. How it runs on older systems too is told in docs/bundle.md.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Put the files of the user's `environ.d`, `mounts.d` and `hooks.d` in
    #[arg(short, long)]
    all: bool,
    /// Put a checksum of the image in, for `BUNDLE --verify`
    #[arg(short, long)]
    checksum: bool,
    /// What `BUNDLE --info` says about it
    #[arg(short, long = "desc", value_name = "TEXT")]
    description: Option<String>,
    /// File to write; the image's name with `.run` when left out
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Where `BUNDLE --keep` unpacks the image, `${NAME}` being variables there; `$PWD/BUNDLE` when left out
    #[arg(short, long, value_name = "DIR")]
    target: Option<String>,
    /// Replace an existing file
    #[arg(short, long)]
    force: bool,
    /// Image file
    image: PathBuf,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let name = named::default_name(&args.image);
    let output = args.output.unwrap_or_else(|| {
        let mut file = name.clone();
        file.push(".run");
        file.into()
    });
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let checksum = args.checksum
        || context
            .config
            .sources
            .switch(&settings::BUNDLE_CHECKSUM)?
            .unwrap_or(false);
    let all = args.all
        || context
            .config
            .sources
            .switch(&settings::BUNDLE_ALL)?
            .unwrap_or(false);
    let carried = match all {
        true => Carried::load(&context.config.sources)?,
        false => Carried::default(),
    };
    let cancel = sys::signal::cancel_on_signals()?;
    let bytes = bundle::create(Creation {
        image: &args.image,
        output: &output,
        overwrite: args.force || context.config.force,
        description: Description {
            image: name.to_string_lossy().into_owned(),
            description: args.description,
            target: args.target,
            checksum: None,
            created,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            carried,
        },
        checksum,
        cancel: &cancel,
    })
    .map_err(|error| match error {
        BundleError::Output(error) if !cancel.is_cancelled() => import::output_failure(error),
        error => import::failure(error, &cancel),
    })?;
    if context.verbose {
        ui::message(format!("made `{}`: {bytes} bytes", output.display()));
    }
    Ok(ExitCode::SUCCESS)
}
