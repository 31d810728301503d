//! `cista load`: make a container of an image from a registry
//!
//! The image goes into the store, as with `run`, and the container is made from it there: where the file system can, by a
//! link that costs neither time nor space. Another container of the same image is then made without a transfer.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use super::import::{self, ImageOptions, SourceOptions};
use super::{Context, Failure, Outcome, create, stored};
use crate::container::named::{self, Creation};
use crate::{sys, ui};

/// Make a container of an image from a registry
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the container; that of the image when left out
    #[arg(short, long)]
    name: Option<OsString>,
    /// Replace an existing container
    #[arg(short, long)]
    force: bool,
    /// Unpack the image: slower, for file systems that overlayfs cannot write to
    #[arg(long)]
    unpack: bool,
    /// Say nothing but warnings and errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    source: SourceOptions,
    #[command(flatten)]
    image: ImageOptions,
    /// The image; see `cista import --help`
    uri: String,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let replace = args.force || context.config.force;
    let reference = import::parse(&args.uri)?;
    let name = match args.name {
        Some(name) => name,
        None => reference
            .default_file_name()
            .map(|file| named::default_name(Path::new(&file)))
            .ok_or_else(|| {
                Failure::new(std::io::Error::other("the URI gives the container no name"))
                    .with_hint("name it with `-n NAME`")
            })?,
    };
    let cancel = sys::signal::cancel_on_signals()?;
    // What cannot be made should be known before hours of transfer.
    named::check_free(&context.config.data_path, &name, replace)
        .map_err(|error| create::failure(error, &cancel))?;
    let wanted = stored::Wanted {
        uri: &args.uri,
        source: &args.source,
        image: &args.image,
        quiet: args.quiet,
    };
    let image = stored::prepare(&wanted, context)?;
    named::create(&Creation {
        data_path: &context.config.data_path,
        runtime_path: &context.config.runtime_path,
        name: &name,
        image: &image,
        replace,
        unpack: args.unpack,
        threads: context.config.max_processors(),
        cancel: &cancel,
    })
    .map_err(|error| create::failure(error, &cancel))?;
    if !args.quiet {
        ui::message(format_args!("created container `{}`", name.display()));
    }
    Ok(ExitCode::SUCCESS)
}
