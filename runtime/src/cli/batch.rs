//! `cista batch`: start what a script describes
//!
//! The script is one of `start --conf`, and names the container or image in its comments. With `#! /usr/bin/cista batch` as its first line it is a
//! program.

use std::ffi::OsString;
use std::path::PathBuf;

use super::start::{self, Options};
use super::{Context, Failure, Outcome, script, status};

/// Start what a script describes
///
/// The script is one of `start --conf`; a comment `#CISTA_ROOTFS=NAME|IMAGE` in it says what to start. It can be made a program by
/// `#! /usr/bin/cista batch` as its first line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The script
    conf: PathBuf,
    /// Program and arguments; the image's own when left out
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

/// What to start is not said.
#[derive(Debug, thiserror::Error)]
#[error("`{script}` does not say what to start")]
struct NoRootfs {
    script: PathBuf,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    prepare(args, context).map_err(|failure| match failure.status() {
        None => failure.with_status(status::SETUP),
        Some(_) => failure,
    })
}

fn prepare(args: Args, context: &Context) -> Outcome {
    let context = script::with_directives(&args.conf, context)?;
    let sources = &context.config.sources;
    let target = sources
        .variable("CISTA_ROOTFS")
        .or_else(|| sources.variable("ENROOT_ROOTFS"))
        .ok_or_else(|| {
            Failure::new(NoRootfs {
                script: args.conf.clone(),
            })
            .with_hint("a line such as `#CISTA_ROOTFS=NAME` in the script says it")
        })?;
    let root = start::find(&PathBuf::from(target), &context)?;
    let options = Options::of_script(args.conf);
    start::start(root, &options, args.command, &context)
}
