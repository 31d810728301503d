//! `cista migrate`: move from enroot and pyxis

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Context, Failure, Outcome};
use crate::config::settings;
use crate::config::{Dialect, host_variables};
use crate::migrate::{self, Fate, Plan, Step, Written};
use crate::ui;

/// Where the administrator's files are, of enroot and ours.
const SYSTEM: [&str; 2] = ["/etc/enroot", "/etc/cista"];
/// What the settings of enroot become, in our directory.
const SETTINGS: &str = "conf.d/50-enroot.toml";
/// What the line of pyxis becomes, in our directory.
const PLUGSTACK: &str = "plugstack.conf";

/// Move from enroot and pyxis: take over what their files say
///
/// Reads enroot.conf, enroot.conf.d, environ.d, mounts.d, hooks.d and the line of pyxis in plugstack.conf, says of each line whether it is kept, translated
/// or not needed, and writes files of cista. Nothing of enroot's is changed. As root it moves /etc/enroot to /etc/cista, as another user the user's
/// directory; see `cista help enroot` for what works without being moved.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Say what would be written, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Replace files of cista that say something else
    #[arg(short, long)]
    force: bool,
    /// Move the administrator's files, whoever asks for it
    #[arg(long, conflicts_with = "user")]
    system: bool,
    /// Move the files of the user, whoever asks for it
    #[arg(long)]
    user: bool,
    /// Where Slurm's plugstack.conf is
    #[arg(long, value_name = "DIR", default_value = "/etc/slurm")]
    slurm: PathBuf,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let sources = &context.config.sources;
    if sources.dialect() == Dialect::Enroot {
        return Err(Failure::new(std::io::Error::other(
            "called as `enroot`, the files of enroot are used where they are",
        ))
        .with_hint("`cista migrate` moves them"));
    }
    let directory = |name: &str, usual: &str| {
        sources
            .variable(name)
            .map_or_else(|| PathBuf::from(usual), PathBuf::from)
    };
    let enroot = directory("ENROOT_SYSCONF_PATH", SYSTEM[0]);
    let system = directory("CISTA_SYSCONF_PATH", SYSTEM[1]);
    let is_system = args.system || !args.user && rustix::process::getuid().is_root();
    let mut plan = Plan::default();
    if is_system {
        migrate::conf::plan(&enroot, &system.join(SETTINGS), &mut plan)?;
        migrate::additions::plan(&enroot, &system, &mut plan)?;
        migrate::plugstack::plan(&args.slurm, &system.join(PLUGSTACK), &mut plan)?;
    } else {
        let variable = |name: &str| sources.variable(name);
        let theirs = sources
            .variable("ENROOT_CONFIG_PATH")
            .map(PathBuf::from)
            .or_else(|| migrate::conf::user_directory(&enroot, &variable))
            .or_else(|| beside(&context.config.config_path));
        if let Some(theirs) = theirs {
            migrate::additions::plan(&theirs, &context.config.config_path, &mut plan)?;
        }
        variables(&mut plan);
    }
    if plan.steps.is_empty() {
        ui::message("nothing of enroot was found");
        return Ok(ExitCode::SUCCESS);
    }
    for step in &plan.steps {
        show(step);
    }
    tell_files(&plan, &args)?;
    let counts: Vec<String> = [
        Fate::Kept,
        Fate::Translated,
        Fate::NotNeeded,
        Fate::Attention,
    ]
    .iter()
    .map(|fate| {
        let count = plan.steps.iter().filter(|step| step.fate == *fate).count();
        format!("{count} {}", fate.name())
    })
    .collect();
    ui::message(counts.join(", "));
    if !is_system && enroot.is_dir() {
        ui::message(format_args!(
            "the administrator's files in `{}` are moved by root",
            enroot.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// The directory of enroot beside one of ours, where both are in the places of the XDG base directory specification.
fn beside(ours: &Path) -> Option<PathBuf> {
    (ours.file_name()? == Dialect::Cista.name())
        .then(|| ours.with_file_name(Dialect::Enroot.name()))
}

/// Variables of enroot that the user has set: they count for the name `enroot` alone.
fn variables(plan: &mut Plan) {
    for (name, value) in host_variables("ENROOT_") {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        let setting = settings::ALL
            .iter()
            .find(|setting| setting.enroot == Some(&name));
        let (fate, note) = match setting.and_then(|setting| setting.variables.first()) {
            Some(ours) => (Fate::Attention, format!("set `{ours}` in its place")),
            None => (Fate::NotNeeded, "it says nothing to cista".to_owned()),
        };
        plan.steps.push(Step {
            fate,
            place: "environment".to_owned(),
            text: format!("{name}={value}"),
            note,
        });
    }
}

fn show(step: &Step) {
    let gap = if step.text.is_empty() { "" } else { "  " };
    ui::data(format_args!(
        "{:<11} {}{gap}{}",
        step.fate.name(),
        step.place,
        step.text
    ));
    ui::data(format_args!("{:<11}   {}", "", step.note));
}

fn tell_files(plan: &Plan, args: &Args) -> Result<(), Failure> {
    if args.dry_run {
        for file in &plan.files {
            ui::message(format_args!("would write `{}`", file.path.display()));
        }
        return Ok(());
    }
    for (path, written) in plan.write(args.force)? {
        match written {
            Written::New => ui::message(format_args!("wrote `{}`", path.display())),
            Written::Same => ui::message(format_args!("`{}` is as it should be", path.display())),
            Written::Differs => ui::warning(format_args!(
                "`{}` says something else and was left alone; `-f` replaces it",
                path.display()
            )),
        }
    }
    Ok(())
}
