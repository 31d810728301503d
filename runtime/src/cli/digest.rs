//! `cista digest`: print the digest of an image's manifest.
//!
//! Asks for as little as possible: for a registry one request, and nothing is downloaded.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use cista_images::progress::Silent;
use cista_images::source::Task;

use super::import::{self, SourceOptions};
use super::{Context, Failure, Outcome};
use crate::config::import::ImportConfig;
use crate::sys;
use crate::ui;

/// Print the digest of an image's manifest
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: SourceOptions,
    /// The image
    uri: String,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let mut config = ImportConfig::load(&context.config.sources)?;
    // What may be used is another question than what a tag stands for, which one has to ask to pin it.
    config.registry.policy = Arc::new(config.registry.policy.of_origins());
    let reference = import::parse(&args.uri)?;
    let cancel = sys::signal::cancel_on_signals()?;
    let source = import::open(&reference, &config, None)?;
    let task = Task {
        progress: &Silent,
        cancel: &cancel,
    };
    let digest = source
        .digest(&args.source.platform(), task)
        .map_err(|error| import::failure(error, &cancel))?
        .ok_or_else(|| {
            Failure::new(io::Error::other(format!(
                "`{}` has no manifest, so it has no digest",
                args.uri
            )))
        })?;
    ui::data(digest);
    Ok(ExitCode::SUCCESS)
}
