//! `cista check`: look for what keeps containers from running here

use std::process::ExitCode;

use serde::Serialize;

use super::{Context, Outcome, check_gpu, status};
use crate::check::{self, Finding};
use crate::ui;

/// Look for what keeps containers from running here
///
/// One line for each thing: `ok`, `degraded` or `missing`, what was seen, and the command that mends it. Run it as the user who will start
/// containers. The exit status is 1 where no container can be started.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Print one JSON object; `cista help json` tells its fields
    #[arg(long)]
    json: bool,
}

/// What is looked at more closely.
#[derive(Debug, clap::Subcommand)]
enum What {
    Gpu(check_gpu::Args),
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    checks: &'a [Finding],
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    match args.what {
        Some(What::Gpu(args)) => check_gpu::run(args, context),
        None => report(context, args.json),
    }
}

/// Looks at everything and prints it, as JSON with `json`.
pub(super) fn report(context: &Context, json: bool) -> Outcome {
    let findings = check::all(&context.config);
    let ok = !findings.iter().any(Finding::is_fatal);
    if json {
        let report = Report {
            ok,
            checks: &findings,
        };
        ui::data(serde_json::to_string_pretty(&report)?);
    } else {
        for finding in &findings {
            let Finding {
                name,
                state,
                detail,
                fix,
                ..
            } = finding;
            ui::data(format_args!("{:8}  {name}: {detail}", state.name()));
            if let Some(fix) = fix {
                ui::data(format_args!("{:8}  {fix}", "  mend:"));
            }
        }
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(status::FAILURE)
    })
}
