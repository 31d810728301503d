//! `cista slurm epilog`: the containers that a job or a step has left on a node, removed by its user.
//!
//! The site's epilog has it executed for jobs; slurmstepd, by the plugin, for a step whose holder was killed before it could do so itself.

use std::ffi::OsStr;
use std::io;
use std::num::ParseIntError;
use std::process::ExitCode;
use std::str::FromStr;

use cista_images::unpack;

use super::{Context, Failure, Outcome};
use crate::config;
use crate::container::named::{self, Container};
use crate::container::temporary;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The job, or one of its steps; the job of the environment when left out
    #[arg(value_name = "JOB[.STEP]")]
    owner: Option<Owner>,
}

/// Who has containers of its own: a job, or a step of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    job: u32,
    step: Option<u32>,
}

impl FromStr for Owner {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (job, step) = match text.split_once('.') {
            Some((job, step)) => (job, Some(step.parse()?)),
            None => (text, None),
        };
        let job = job.parse()?;
        Ok(Self { job, step })
    }
}

impl Owner {
    /// Whether a container is its own, by the name on disk.
    fn has(self, name: &OsStr) -> bool {
        let name = name.to_string_lossy();
        let job = self.job;
        match self.step {
            Some(step) => name == format!("pyxis_{job}.{step}"),
            None => [format!("pyxis_{job}_"), format!("pyxis_{job}.")]
                .iter()
                .any(|prefix| name.starts_with(prefix)),
        }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Outcome {
    let of_environment = || {
        config::host_variable(OsStr::new("SLURM_JOB_ID"))?
            .to_str()?
            .parse()
            .ok()
    };
    let owner: Owner = args.owner.or_else(of_environment).ok_or_else(|| {
        Failure::new(io::Error::other("there is no job"))
            .with_hint("name it, or let Slurm execute this as a part of its epilog")
    })?;
    let data_path = &context.config.data_path;
    for name in named::names(data_path)? {
        if owner.has(&name) {
            let container = Container::open(data_path, &name)?;
            container.remove(&context.config.runtime_path)?;
        }
    }
    for (path, name) in temporary::unfinished(data_path) {
        // Its holder may still live, and be at it.
        if owner.has(&name)
            && let Err(error) = unpack::remove_tree(&path)
            && path.exists()
        {
            return Err(error.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_jobs_and_steps() {
        let has = |owner: &str, name: &str| owner.parse::<Owner>().unwrap().has(OsStr::new(name));
        assert!(has("7", "pyxis_7_name") && has("7", "pyxis_7.0") && has("7.0", "pyxis_7.0"));
        for (owner, name) in [
            ("7", "pyxis_71_name"),
            ("7", "pyxis_name"),
            ("7.0", "pyxis_7_name"),
            ("7.0", "pyxis_7.01"),
            ("7.1", "pyxis_7.0"),
        ] {
            assert!(!has(owner, name), "{owner} {name}");
        }
        for text in ["", "x", "7.", ".0", "7.0.1", "-7"] {
            assert!(text.parse::<Owner>().is_err(), "{text}");
        }
    }
}
