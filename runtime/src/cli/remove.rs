//! `cista remove`: remove containers

use std::ffi::OsString;
use std::process::ExitCode;

use super::{Context, Failure, Outcome, status};
use crate::container::named::{Container, ContainerError};
use crate::ui;

/// Remove containers
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Containers to remove
    #[arg(required = true, value_name = "NAME")]
    names: Vec<OsString>,
}

/// The question was not answered.
#[derive(Debug, thiserror::Error)]
#[error("container `{name}` was not removed: nobody has answered the question")]
struct Unanswered {
    name: String,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let mut result = ExitCode::SUCCESS;
    for name in &args.names {
        // One that cannot be removed does not keep the others.
        if let Err(failure) = remove(name, args.force || context.config.force, context) {
            ui::failure(&failure);
            result = ExitCode::from(status::FAILURE);
        }
    }
    Ok(result)
}

fn remove(name: &OsString, force: bool, context: &Context) -> Result<(), Failure> {
    let container = Container::open(&context.config.data_path, name)?;
    let question = format!(
        "remove container `{}` and all that is in it?",
        name.display()
    );
    if !force {
        match ui::confirm(&question) {
            Some(true) => {}
            Some(false) => return Ok(()),
            None => {
                return Err(Failure::new(Unanswered {
                    name: name.to_string_lossy().into_owned(),
                })
                .with_hint("`-f` removes without asking"));
            }
        }
    }
    container
        .remove(&context.config.runtime_path)
        .map_err(|error| {
            let busy = matches!(error, ContainerError::Busy { .. });
            let failure = Failure::from(error);
            if busy {
                failure.with_hint("end it first; `cista list -f` shows its processes")
            } else {
                failure
            }
        })
}
