//! `cista create`: create a container from an image

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use cista_images::cancel::Cancel;

use super::{Context, Failure, Outcome, import};
use crate::container::named::{self, ContainerError, Creation};
use crate::{sys, ui};

/// Create a container from an image
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the container; the image's file name without `.sqsh` when left out
    #[arg(short, long)]
    name: Option<OsString>,
    /// Replace an existing container
    #[arg(short, long)]
    force: bool,
    /// Unpack the image: slower, for file systems that overlayfs cannot write to
    #[arg(long)]
    unpack: bool,
    /// Image file
    image: PathBuf,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let name = args
        .name
        .unwrap_or_else(|| named::default_name(&args.image));
    let cancel = sys::signal::cancel_on_signals()?;
    named::create(&Creation {
        data_path: &context.config.data_path,
        runtime_path: &context.config.runtime_path,
        name: &name,
        image: &args.image,
        replace: args.force || context.config.force,
        unpack: args.unpack,
        threads: context.config.max_processors(),
        cancel: &cancel,
    })
    .map_err(|error| failure(error, &cancel))?;
    if context.verbose {
        ui::message(format!("created container `{}`", name.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// How a container that cannot be made is shown.
pub(super) fn failure(error: ContainerError, cancel: &Cancel) -> Failure {
    let hint = match &error {
        ContainerError::Exists { .. } => Some("`-f` replaces it, `-n` gives another name"),
        ContainerError::Busy { .. } => Some("end it first; `cista list -f` shows its processes"),
        _ => None,
    };
    let failure = import::failure(error, cancel);
    match hint {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    }
}
