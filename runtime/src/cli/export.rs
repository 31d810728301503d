//! `cista export`: export a container to an image

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use cista_images::cancel::Cancel;
use cista_images::output::OutputError;

use super::{Context, Failure, Outcome};
use crate::container::export::{self, ExportError};
use crate::container::named::Container;
use crate::ui;

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
    let summary =
        export::export(&container, &path, force, threads, &Cancel::new()).map_err(|error| {
            let exists = matches!(error, ExportError::Output(OutputError::Exists { .. }));
            let failure = Failure::from(error);
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
