//! `cista cdi`: the devices that descriptions of the Container Device Interface offer.

use std::process::ExitCode;

use serde::Serialize;

use super::{Context, Outcome};
use crate::devices::Host;
use crate::devices::cdi::document::Edits;
use crate::devices::cdi::registry::{Found, Registry};
use crate::ui;

/// Show devices that CDI describes, for `--device`
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the devices of `/etc/cdi` and `/var/run/cdi`
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Show what each device brings, and what is wrong with descriptions, as JSON; `cista help json` tells its fields
    #[arg(long)]
    json: bool,
}

/// What `--json` shows. Fields are added but never renamed or removed.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    devices: Vec<DeviceEntry<'a>>,
    problems: Vec<String>,
}

/// A device, as `--json` shows it.
#[derive(Debug, Serialize)]
struct DeviceEntry<'a> {
    name: String,
    vendor: &'a str,
    class: &'a str,
    device: &'a str,
    path: String,
    device_nodes: Vec<&'a str>,
    mounts: Vec<&'a str>,
    hooks: Vec<&'a str>,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let Command::List(args) = args.command;
    let host = Host::open(context.config.host_root.as_deref())?;
    let registry = Registry::load(&host);
    if args.json {
        let listing = Listing {
            devices: registry.devices().map(entry).collect(),
            problems: registry.problems().collect(),
        };
        ui::data(serde_json::to_string_pretty(&listing)?);
        return Ok(ExitCode::SUCCESS);
    }
    for found in registry.devices() {
        ui::data(found.name);
    }
    for problem in registry.problems() {
        ui::warning(&problem);
    }
    Ok(ExitCode::SUCCESS)
}

fn entry(found: Found<'_>) -> DeviceEntry<'_> {
    fn all<'a, T>(
        found: Found<'a>,
        of: fn(&'a Edits) -> &'a [T],
        text: fn(&'a T) -> &'a str,
    ) -> Vec<&'a str> {
        let both = of(found.common).iter().chain(of(found.edits));
        both.map(text).collect()
    }
    DeviceEntry {
        name: found.name.to_string(),
        vendor: &found.name.vendor,
        class: &found.name.class,
        device: &found.name.name,
        path: found.path.display().to_string(),
        device_nodes: all(found, |edits| &edits.device_nodes, |node| &node.path),
        mounts: all(found, |edits| &edits.mounts, |mount| &mount.container_path),
        hooks: all(found, |edits| &edits.hooks, |hook| &hook.path),
    }
}
