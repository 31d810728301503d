//! `cista export`: export a container to an image

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use cista_images::output::OutputError;
use rustix::thread::UnshareFlags;

use super::{Context, Outcome, import};
use crate::config::settings;
use crate::container::export::{self, ExportError};
use crate::container::identity_map::{self, IdMap};
use crate::container::named::Container;
use crate::{sys, ui};

/// Export a container to an image
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File to write; the container's name with `.sqsh` when left out
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace an existing file
    #[arg(short, long)]
    force: bool,
    /// Container to export
    name: OsString,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let container = Container::open(&context.config.data_path, &args.name)?;
    let path = args.output.unwrap_or_else(|| {
        let mut name = args.name.clone();
        name.push(".sqsh");
        name.into()
    });
    let force = args.force || context.config.force;
    let threads = context.config.max_processors();
    let time = context.config.sources.number(&settings::TIME)?;
    if !rustix::process::geteuid().is_root() {
        // As root of a namespace the owner of a file can read it whatever its permissions are. Where there is no such
        // namespace, files that cannot be read are named.
        let _ = identity_map::enter(IdMap::Single { uid: 0, gid: 0 }, UnshareFlags::empty());
    }
    let cancel = sys::signal::cancel_on_signals()?;
    let summary =
        export::export(&container, &path, force, time, threads, &cancel).map_err(|error| {
            let exists = matches!(error, ExportError::Output(OutputError::Exists { .. }));
            let failure = import::failure(error, &cancel);
            if exists {
                failure.with_hint("`-f` replaces it, `-o` names another file")
            } else {
                failure
            }
        })?;
    if context.verbose {
        ui::message(format!(
            "exported `{}` to `{}`: {} bytes, {} files",
            args.name.display(),
            path.display(),
            summary.bytes,
            summary.inodes
        ));
    }
    Ok(ExitCode::SUCCESS)
}
