//! The GPUs of a job of Slurm: which they are, whose they are, and what their numbers mean.
//!
//! Slurm tells a process of a step (gres.html, gres.conf(5), sbatch(1), srun(1)):
//!
//! | variable | has |
//! |---|---|
//! | `SLURM_STEP_GPUS` | the GPUs of the step; those of the task alone where tasks are bound to some (`--gpus-per-task`, `--gpu-bind`) |
//! | `SLURM_JOB_GPUS` | the job's GPUs on the node of the batch script or interactive step, for which it is set; steps inherit it, also those on other nodes |
//! | `CUDA_VISIBLE_DEVICES`, `ROCR_VISIBLE_DEVICES`, `ZE_AFFINITY_MASK`, `GPU_DEVICE_ORDINAL` | the same GPUs as libraries count them, or UUIDs for parts of GPUs |
//!
//! **Numbers.** The first two have places in the node's list of GPUs, whatever a control group allows. The list is in the order of the bus where Slurm has
//! found the GPUs itself (`AutoDetect`), which is also how libraries count them; where gres.conf names the files it is in their order; and
//! before release 21.08 it was the number of the file. Where these differ the control group tells what is meant, see
//! [`nvidia`](super::nvidia). Without one every process of the node takes the numbers for those of its library, and so do we.
//!
//! The variables of libraries have the same numbers, or, with `ConstrainDevices=yes` in cgroup.conf, numbers from 0 among what the control group of the step or task
//! allows. So they are the host's where they are equal to `SLURM_STEP_GPUS`: numbers of either kind that are equal mean the same GPU.
//!
//! **Whose.** A node may have GPUs of several vendors, such as one of Intel's in its processor, and the numbers do not say whose they are. Slurm sets the
//! variable of the vendor's library alone, where it has found the GPUs itself or gres.conf says so (`Flags=nvidia_gpu_env`); where it
//! sets all of them or none the first vendor of [`VENDORS`] that has GPUs is meant: Intel, whose GPUs come with processors, is the last.

use super::grant::{Grant, Translation};
use super::host::Host;
use super::question::{Choice, Question, Source, Variables, expand};
use super::{DeviceError, VENDORS, Vendor};

/// The GPUs of a step.
const STEP: &str = "SLURM_STEP_GPUS";

/// The GPUs of a job on the node of its batch script.
const JOB: &str = "SLURM_JOB_GPUS";

/// The same, from the plugin of Slurm to the program: numbers of the devices that the control groups of the step's tasks allow, `MAJOR:MINOR,…`.
const DEVICE_NUMBERS: &str = "SPANK_CISTA_GPUS";

/// Steps from this number on are no ordinary ones: the batch script's, the interactive one (slurm.h, `SLURM_INTERACTIVE_STEP`).
const FIRST_SPECIAL: u32 = 0xffff_fff0;

/// What Slurm says of a job without GPUs, up to release 20.11.
const NONE: &str = "NoDevFiles";

/// The GPUs of the job that are of a vendor, and who says so. None where Slurm says nothing of GPUs: on a cluster that does not manage them, a job has
/// what its nodes have.
///
/// # Errors
///
/// A variable of Slurm that is not understood.
pub(super) fn gpus(
    host: &Host,
    question: &Question<'_>,
    vendor: &dyn Vendor,
) -> Result<Option<(Source, Choice)>, DeviceError> {
    let Some(variables) = vendor.variables().filter(|_| question.is_job()) else {
        return Ok(None);
    };
    let library = library(question, variables);
    // UUIDs say it best, and to whom they belong.
    if let Some((name, value)) = &library {
        if value == NONE {
            return Ok(Some((Source::Library(name), Choice::Nothing)));
        }
        if value.starts_with(|first: char| first.is_ascii_alphabetic()) && value != "all" {
            let names = value.split(',').map(str::trim).map(str::to_owned);
            return Ok(Some((
                Source::Library(name),
                Choice::Names(names.collect()),
            )));
        }
    }
    if let Some(list) = question.caller(DEVICE_NUMBERS) {
        let choice = match owns(host, question, vendor) {
            true => Choice::Names(list.split(',').map(str::to_owned).collect()),
            false => Choice::Nothing,
        };
        return Ok(Some((Source::Step(STEP), choice)));
    }
    let (source, name, value) = match (places(question), library) {
        (Some((name, value)), _) => (Source::Step(name), name, value),
        (None, Some((name, value))) => (Source::Library(name), name, value),
        // The job has GPUs, and the step was given none of them.
        (None, None) if question.caller(JOB).is_some() => {
            return Ok(Some((Source::Step(JOB), Choice::Nothing)));
        }
        (None, None) => return Ok(None),
    };
    if matches!(source, Source::Step(_)) && !owns(host, question, vendor) {
        return Ok(Some((source, Choice::Nothing)));
    }
    let names = expand(&value).ok_or_else(|| DeviceError::Option {
        option: name.to_owned(),
        value: value.clone(),
        expected: "expected numbers and ranges, separated by commas",
    })?;
    Ok(Some((source, Choice::Names(names))))
}

/// Whether a value of a variable for libraries has the host's numbers, and not numbers among what the control group allows. `is_open` says
/// whether the control group allows all that there is; then a user may have left out some of the job's.
fn has_host_numbers(question: &Question<'_>, value: &str, is_open: bool) -> bool {
    let Some((_, places)) = places(question) else {
        return is_open;
    };
    match (expand(&places), expand(value)) {
        (Some(places), Some(numbers)) => {
            numbers == places || is_open && numbers.iter().all(|it| places.contains(it))
        }
        _ => false,
    }
}

/// Translates the variables of the job for the container, and notes that.
pub(super) fn translate(question: &Question<'_>, grant: &mut Grant) {
    let mut found: Vec<Translation> = Vec::new();
    for numbering in &grant.numberings {
        for name in numbering.variables {
            let Some(from) = question.caller(name) else {
                continue;
            };
            if has_host_numbers(question, &from, numbering.is_open)
                && let Some(to) = numbering.translate(&from)
                && !found.iter().any(|it| it.name == *name)
            {
                found.push(Translation { name, from, to });
            }
        }
    }
    for Translation { name, from, to } in &found {
        grant.yes(
            *name,
            format!(
                "`{to}` in the container, where GPUs are numbered anew, is `{from}` of the job"
            ),
        );
    }
    grant.translations = found;
}

/// The numbers of a device, where a name of a [`Source::Step`] is such.
pub(super) fn device_numbers(name: &str) -> Option<(u32, u32)> {
    let (major, minor) = name.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// What Slurm tells a library of the vendor.
fn library(question: &Question<'_>, variables: &Variables) -> Option<(&'static str, String)> {
    let mut names = variables.library.iter();
    names.find_map(|name| Some((*name, question.caller(name)?)))
}

/// The places of the step's GPUs in the list of the node.
fn places(question: &Question<'_>) -> Option<(&'static str, String)> {
    if let Some(value) = question.caller(STEP) {
        return Some((STEP, value));
    }
    let step = question.caller("SLURM_STEP_ID");
    let is_ordinary = step.is_some_and(|step| {
        step.parse::<u32>()
            .is_ok_and(|number| number < FIRST_SPECIAL)
    });
    let value = question.caller(JOB).filter(|_| !is_ordinary)?;
    Some((JOB, value))
}

/// Whether the numbers of the job are those of this vendor's GPUs.
fn owns(host: &Host, question: &Question<'_>, vendor: &dyn Vendor) -> bool {
    let there: Vec<&&dyn Vendor> = VENDORS
        .iter()
        .filter(|it| it.variables().is_some() && it.is_there(host))
        .collect();
    let is_told = |it: &&&dyn Vendor| {
        let own = it.variables().and_then(|it| it.library.first());
        own.is_some_and(|name| question.caller(name).is_some())
    };
    let owner = there.iter().find(|it| is_told(it)).or(there.first());
    owner.is_none_or(|owner| owner.name() == vendor.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::question::Request;
    use std::ffi::OsString;

    /// Asks with the variables of a job, written as `NAME=VALUE` and separated by blanks, on a machine with GPUs of some vendors.
    fn ask<T>(vendors: &str, job: &str, answer: impl Fn(&Host, &Question<'_>) -> T) -> T {
        let tree = tempfile::tempdir().unwrap();
        for vendor in vendors.split(' ').filter(|it| !it.is_empty()) {
            let sign = match vendor {
                "nvidia" => "proc/driver/nvidia/version",
                "amd" => "dev/kfd",
                "gaudi" => "sys/bus/pci/drivers/habanalabs/bind",
                _ => "sys/bus/pci/drivers/i915/bind",
            };
            for sign in [sign, "dev/dri/card0"] {
                let sign = tree.path().join(sign);
                std::fs::create_dir_all(sign.parent().unwrap()).unwrap();
                std::fs::write(sign, "").unwrap();
            }
        }
        let host = Host::open(Some(tree.path())).unwrap();
        let request = Request::default();
        let caller = |name: &str| {
            let found = job
                .split(' ')
                .filter_map(|assignment| assignment.split_once('='));
            let mut found = found.filter(|(known, _)| *known == name);
            found.next().map(|(_, value)| OsString::from(value))
        };
        let question = Question {
            request: &request,
            user: &|_| None,
            image: &|_| None,
            prefixed: &|_| Vec::new(),
            caller: &caller,
        };
        answer(&host, &question)
    }

    /// The GPUs of each vendor, as `VENDOR NAMES` where Slurm says something.
    fn answers(vendors: &str, job: &str) -> String {
        ask(vendors, job, |host, question| {
            let mut told = Vec::new();
            for vendor in VENDORS
                .iter()
                .filter(|it| vendors.split(' ').any(|name| name == it.name()))
            {
                if let Some((source, choice)) = gpus(host, question, *vendor).unwrap() {
                    let names = match choice {
                        Choice::Names(names) => names.join(","),
                        _ => "none".into(),
                    };
                    let by = match source {
                        Source::Step(_) => "place",
                        _ => "library",
                    };
                    told.push(format!("{} {by} {names}", vendor.name()));
                }
            }
            told.join("; ")
        })
    }

    #[test]
    fn whose_gpus_a_job_has() {
        for (vendors, job, expected) in [
            ("nvidia", "SLURM_STEP_GPUS=0", ""),
            ("nvidia", "SLURM_JOB_ID=1", ""),
            (
                "nvidia",
                "SLURM_JOB_ID=1 SLURM_STEP_GPUS=0,2-3",
                "nvidia place 0,2,3",
            ),
            // Of a batch script, of an interactive step, and not of an ordinary step, which has inherited it.
            (
                "nvidia",
                "SLURM_JOB_ID=1 SLURM_JOB_GPUS=4",
                "nvidia place 4",
            ),
            (
                "nvidia",
                "SLURM_JOB_ID=1 SLURM_STEP_ID=4294967290 SLURM_JOB_GPUS=4 CUDA_VISIBLE_DEVICES=0",
                "nvidia place 4",
            ),
            (
                "nvidia",
                "SLURM_JOB_ID=1 SLURM_STEP_ID=0 SLURM_JOB_GPUS=4",
                "nvidia place none",
            ),
            (
                "nvidia",
                "SLURM_JOB_ID=1 SLURM_STEP_ID=0 SLURM_JOB_GPUS=4 SLURM_STEP_GPUS=1",
                "nvidia place 1",
            ),
            // Numbers of a control group do not matter where the places are known.
            (
                "nvidia",
                "SLURM_JOB_ID=1 SLURM_STEP_GPUS=2,3 CUDA_VISIBLE_DEVICES=0,1",
                "nvidia place 2,3",
            ),
            (
                "nvidia",
                "SLURM_JOB_ID=1 CUDA_VISIBLE_DEVICES=0,1",
                "nvidia library 0,1",
            ),
            (
                "nvidia",
                "SLURM_JOB_ID=1 CUDA_VISIBLE_DEVICES=NoDevFiles",
                "nvidia library none",
            ),
            (
                "nvidia",
                "SLURM_JOB_ID=1 SLURM_STEP_GPUS=2 CUDA_VISIBLE_DEVICES=MIG-a,MIG-b",
                "nvidia library MIG-a,MIG-b",
            ),
            // What the plugin knows of the tasks' control groups.
            (
                "nvidia intel",
                "SLURM_JOB_ID=1 SLURM_STEP_GPUS=0 CUDA_VISIBLE_DEVICES=0 SPANK_CISTA_GPUS=195:0,195:3,226:128",
                "nvidia place 195:0,195:3,226:128; intel place none",
            ),
            // One vendor is meant: that whose library is told, else the first.
            (
                "nvidia intel",
                "SLURM_JOB_ID=1 SLURM_STEP_GPUS=0 CUDA_VISIBLE_DEVICES=0",
                "nvidia place 0; intel place none",
            ),
            (
                "nvidia intel",
                "SLURM_JOB_ID=1 SLURM_STEP_GPUS=0 ZE_AFFINITY_MASK=0",
                "nvidia place none; intel place 0",
            ),
            (
                "nvidia amd intel",
                "SLURM_JOB_ID=1 SLURM_STEP_GPUS=1 ROCR_VISIBLE_DEVICES=0 GPU_DEVICE_ORDINAL=0",
                "nvidia place none; amd place 1; intel place none",
            ),
            (
                "nvidia amd intel",
                "SLURM_JOB_ID=1 SLURM_STEP_GPUS=1 CUDA_VISIBLE_DEVICES=1 ROCR_VISIBLE_DEVICES=1 ZE_AFFINITY_MASK=1",
                "nvidia place 1; amd place none; intel place none",
            ),
            (
                "amd intel",
                "SLURM_JOB_ID=1 SLURM_STEP_GPUS=1",
                "amd place 1; intel place none",
            ),
            (
                "gaudi intel",
                "SLURM_JOB_ID=1 SLURM_STEP_GPUS=3",
                "gaudi place 3; intel place none",
            ),
            ("intel", "SLURM_JOB_ID=1 SLURM_STEP_GPUS=1", "intel place 1"),
        ] {
            assert_eq!(answers(vendors, job), expected, "{vendors}: {job}");
        }
        let wrong = "SLURM_JOB_ID=1 SLURM_STEP_GPUS=a";
        ask("nvidia", wrong, |host, question| {
            gpus(host, question, VENDORS[1]).unwrap_err();
        });
    }

    #[test]
    fn whose_numbers_a_library_is_told() {
        for (job, value, is_open, expected) in [
            ("SLURM_STEP_GPUS=2,3", "2,3", true, true),
            ("SLURM_STEP_GPUS=2-3", "2,3", false, true),
            ("SLURM_STEP_GPUS=2,3", "0,1", false, false),
            ("SLURM_STEP_GPUS=2,3", "0,1", true, false),
            ("SLURM_STEP_GPUS=2,3", "3", true, true),
            ("SLURM_STEP_GPUS=1,3", "1", false, false),
            ("SLURM_JOB_GPUS=5", "5", true, true),
            ("", "5", true, true),
            ("", "0", false, false),
        ] {
            let found = ask("nvidia", job, |_, question| {
                has_host_numbers(question, value, is_open)
            });
            assert_eq!(found, expected, "{job} {value} {is_open}");
        }
    }
}
