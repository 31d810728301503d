//! `cista check gpu`: which devices there are, and what a container would get of them just now, and why.
//!
//! It decides as a start does, with the caller's variables: in a job of Slurm it shows the job's devices. What an image asks for by its
//! variables is not known here; `-e` says it.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use serde::Serialize;

use super::{Context, Outcome};
use crate::config::host_variable;
use crate::container::environment;
use crate::devices::question::{Choice, QualifiedName};
use crate::devices::{self, Decision, Host, Question, Request, VENDORS};
use crate::ui;

/// Show GPUs, fabrics and other devices, and which of them a container would get, and why
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What `start --gpus` would get
    #[arg(long, value_name = "GPUS", value_parser = Choice::parse_option)]
    gpus: Option<Choice>,
    /// What `start --device` would get
    #[arg(long = "device", value_name = "VENDOR/CLASS=NAME", value_parser = QualifiedName::parse)]
    devices: Vec<QualifiedName>,
    /// A variable of the container, or of its image: `NVIDIA_VISIBLE_DEVICES=all`
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<OsString>,
    /// Print one JSON object; `cista help json` tells its fields
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    vendors: Vec<VendorEntry>,
    decisions: Vec<DecisionEntry<'a>>,
}

/// A vendor, as `--json` shows it.
#[derive(Debug, Serialize)]
struct VendorEntry {
    name: &'static str,
    devices: Vec<String>,
}

/// A decision, as `--json` shows it.
#[derive(Debug, Serialize)]
struct DecisionEntry<'a> {
    subject: &'a str,
    granted: bool,
    why: &'a str,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let host = Host::open(context.config.host_root.as_deref())?;
    let environment: Vec<(OsString, OsString)> = args
        .env
        .iter()
        .filter_map(|option| environment::parse_option(option, host_variable).transpose())
        .collect::<Result<_, _>>()?;
    let request = Request {
        gpus: args.gpus,
        devices: args.devices,
        // Decisions are wanted, and shown below.
        explain: Some(|_| {}),
    };
    let question = Question {
        request: &request,
        user: &|name| {
            let mut variables = environment.iter().rev();
            let found = variables.find(|(known, _)| known == name)?;
            Some(found.1.clone())
        },
        image: &|_| None,
        prefixed: &|prefix| {
            let names = environment.iter().filter_map(|(name, _)| name.to_str());
            let found = names.filter(|name| name.starts_with(prefix));
            found.map(str::to_owned).collect()
        },
        caller: &|name| host_variable(OsStr::new(name)),
    };
    let vendors = VENDORS
        .iter()
        .filter(|vendor| vendor.is_there(&host))
        .map(|vendor| {
            Ok(VendorEntry {
                name: vendor.name(),
                devices: vendor.inventory(&host)?,
            })
        })
        .collect::<Result<Vec<_>, devices::DeviceError>>()?;
    let grant = devices::decide(&host, &question)?.unwrap_or_default();
    show(vendors, &grant.decisions, args.json)
}

fn show(vendors: Vec<VendorEntry>, decisions: &[Decision], json: bool) -> Outcome {
    if json {
        let decisions = decisions
            .iter()
            .map(|decision| DecisionEntry {
                subject: &decision.subject,
                granted: decision.is_granted,
                why: &decision.why,
            })
            .collect();
        let report = Report { vendors, decisions };
        ui::data(serde_json::to_string_pretty(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vendors.iter().flat_map(|vendor| &vendor.devices).peekable();
    if lines.peek().is_none() {
        ui::data("no GPUs, fabrics or described devices are here");
    }
    for line in lines {
        ui::data(line);
    }
    for decision in decisions {
        ui::data(decision);
    }
    Ok(ExitCode::SUCCESS)
}
