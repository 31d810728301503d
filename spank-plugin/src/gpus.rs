//! The GPUs of a step's tasks: all of them share one container on a node, which has the GPUs of all.
//!
//! Slurm tells a task the GPUs that it is bound to, and no longer those of the step (`--gpus-per-task`, `--gpu-bind`); and where control groups keep devices back,
//! release 22.05 tells each task the place of the step's first GPU. So every task says what it was told, and which nodes of GPUs its control group allows; and the
//! container is made with all of that ([`Reports`], [`of_all`]): it has the step's GPUs and no others, on nodes with and without such control groups. They
//! are known when the environment of a task is, so the word to the holder is given by then, where a node has GPUs ([`are_there`]).
//!
//! In the container GPUs are numbered from 0. Where `CUDA_VISIBLE_DEVICES` and its like have the host's numbers, each task gets its own translated
//! ([`translate`]). That is where they are those of `SLURM_STEP_GPUS`; with `ConstrainDevices=yes` they count what the control group allows, in a
//! container as without one. What the numbers are is what the holder says, which knows the devices.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use crate::holder::name_of;
use crate::wire::{self, Text};

/// Devices whose presence makes the holder wait for what the step has of them.
const DEVICES: [&str; 6] = [
    "/dev/nvidiactl",
    "/dev/nvidia0",
    "/dev/kfd",
    "/dev/dri/renderD128",
    "/dev/accel/accel0",
    "/dev/hl0",
];

/// Places in the list of the node's GPUs, those of a step and those of a job.
const PLACES: [&str; 2] = ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"];

/// What is told to libraries: numbers or UUIDs.
const LIBRARIES: [&str; 5] = [
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "GPU_DEVICE_ORDINAL",
];

/// What the holder is told where control groups keep GPUs back: the numbers of the devices that some task may open, `MAJOR:MINOR,…`.
const DEVICE_NUMBERS: &str = "SPANK_CISTA_GPUS";

/// Where nodes of GPUs are, and how they are called before their number.
const NODES: [(&str, &str); 4] = [
    ("/dev", "nvidia"),
    ("/dev/dri", "renderD"),
    ("/dev/accel", "accel"),
    ("/dev", "hl"),
];

/// What a task says of a node of a GPU: that it may open it, or that the control group does not let it.
const ALLOWED: &str = "allowed";
const REFUSED: &str = "refused";

/// Most GPUs of a node.
const MAX_GPUS: usize = 1024;

/// Most entries of a directory that are looked at.
const MAX_NODES: usize = 65_536;

/// The longest value of such a variable, in bytes.
const MAX_VALUE: usize = 64 << 10;

/// Whether the node has GPUs, so that it matters which of them a step has.
pub(crate) fn are_there() -> bool {
    DEVICES.iter().any(|path| Path::new(path).exists())
}

/// Where the tasks of a step say which GPUs they have.
pub(crate) struct Reports {
    /// The end of the tasks. When it is closed everywhere, no task is left that could say something.
    tasks: Option<OwnedFd>,
    /// The end of who listens.
    listener: Option<OwnedFd>,
}

impl Reports {
    /// A way that nobody uses yet.
    ///
    /// # Errors
    ///
    /// Those of socketpair(2).
    pub(crate) fn new() -> io::Result<Self> {
        let (tasks, listener) = wire::pair()?;
        Ok(Self {
            tasks: Some(tasks),
            listener: Some(listener),
        })
    }

    /// Takes the listener's end, which is for one process alone.
    pub(crate) fn listener(&mut self) -> Option<OwnedFd> {
        self.listener.take()
    }

    /// In slurmstepd, which has nothing to say.
    pub(crate) fn close(&mut self) {
        self.tasks = None;
        self.listener = None;
    }

    /// In a task: says what it was told.
    pub(crate) fn send(&mut self, environment: &[OsString]) {
        let Some(socket) = self.tasks.take() else {
            return;
        };
        let mut text = Text::new();
        for name in PLACES[..1].iter().chain(&LIBRARIES) {
            if let Some(value) = value(environment, name) {
                text.add("gpus", format!("{name}={value}"));
            }
        }
        for (verdict, number) in nodes() {
            text.add("gpus", format!("{verdict}={number}"));
        }
        // Who does not hear it has ended, and there will be no container.
        if let Ok(file) = text.into_file() {
            let _ = wire::send(&socket, wire::GPUS, Some(file.as_fd()));
        }
    }
}

/// The nodes of GPUs that there are: whether this process may open them, as far as its control group is concerned, and the number of the device.
fn nodes() -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for (directory, prefix) in NODES {
        let Ok(entries) = std::fs::read_dir(directory) else {
            continue;
        };
        for entry in entries.flatten().take(MAX_NODES) {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
            if number.is_none_or(|number| number.parse::<u32>().is_err()) {
                continue;
            }
            let path = entry.path();
            let Ok(status) = rustix::fs::stat(&path) else {
                continue;
            };
            let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
            // Permissions of files say EACCES; only the control group says EPERM.
            let verdict = match rustix::fs::access(&path, access) {
                Err(rustix::io::Errno::PERM) => REFUSED,
                _ => ALLOWED,
            };
            let (major, minor) = (
                rustix::fs::major(status.st_rdev),
                rustix::fs::minor(status.st_rdev),
            );
            found.push((verdict, format!("{major}:{minor}")));
        }
    }
    found
}

/// What so many tasks say, as far as they live to say it.
pub(crate) fn listen(listener: &OwnedFd, tasks: u32) -> Vec<Vec<OsString>> {
    (0..tasks)
        .map_while(|_| wire::receive(listener))
        .map(|(_, files)| {
            let file = files.into_iter().next();
            let records = file.and_then(|file| wire::read(file).ok().flatten());
            records
                .unwrap_or_default()
                .into_iter()
                .map(|(_, assignment)| assignment)
                .collect()
        })
        .collect()
}

/// The environment of the holder: that of a task, with the GPUs of all tasks in place of its own.
pub(crate) fn of_all(mut environment: Vec<OsString>, reports: &[Vec<OsString>]) -> Vec<OsString> {
    let mut set = |name: &str, value: String| {
        environment.retain(|it| name_of(it) != name);
        environment.push(format!("{name}={value}").into());
    };
    let told = |name: &'static str| reports.iter().filter_map(move |it| value(it, name));
    let mut places = BTreeSet::new();
    for list in told(PLACES[0]) {
        places.extend(expand(list).unwrap_or_default());
    }
    if !places.is_empty() {
        let places: Vec<String> = places.iter().map(usize::to_string).collect();
        set(PLACES[0], places.join(","));
    }
    // Nothing is known better than what a control group keeps back.
    let numbers = |verdict: &str| {
        let prefix = format!("{verdict}=");
        reports
            .iter()
            .flatten()
            .filter_map(|it| it.to_str()?.strip_prefix(&prefix).map(str::to_owned))
            .filter(|it| {
                it.split_once(':').is_some_and(|(major, minor)| {
                    major.parse::<u32>().is_ok() && minor.parse::<u32>().is_ok()
                })
            })
            .collect::<BTreeSet<String>>()
    };
    if !numbers(REFUSED).is_empty() {
        let allowed: Vec<String> = numbers(ALLOWED).into_iter().take(MAX_GPUS).collect();
        set(DEVICE_NUMBERS, allowed.join(","));
    }
    for name in LIBRARIES {
        let mut uuids: Vec<&str> = Vec::new();
        for word in told(name).flat_map(|list| list.split(',')).map(str::trim) {
            let is_uuid = word.starts_with(|first: char| first.is_ascii_alphabetic());
            let is_plain = word
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-/:.".contains(&byte));
            if is_uuid && is_plain && !uuids.contains(&word) && uuids.len() < MAX_GPUS {
                uuids.push(word);
            }
        }
        if !uuids.is_empty() {
            set(name, uuids.join(","));
            continue;
        }
        // Numbers for a library are each task's own, unless nothing else says what the tasks have (shards of GPUs).
        let numbers: BTreeSet<usize> = match places.is_empty() {
            true => told(name).filter_map(expand).flatten().collect(),
            false => BTreeSet::new(),
        };
        if !numbers.is_empty() {
            let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
            set(name, numbers.join(","));
        }
    }
    environment
}

/// What GPUs of the host are called in the container, as the holder says it: the variables, whether every GPU of the node can be opened, and pairs of numbers.
pub(crate) struct Numbering {
    variables: Vec<String>,
    is_open: bool,
    numbers: Vec<(usize, usize)>,
}

impl Numbering {
    /// Reads `VARIABLE,VARIABLE open|closed HOST=INSIDE,…`.
    pub(crate) fn parse(text: &OsStr) -> Option<Self> {
        let mut fields = text.to_str()?.split(' ');
        let variables = fields.next()?.split(',').map(str::to_owned).collect();
        let is_open = match fields.next()? {
            "open" => true,
            "closed" => false,
            _ => return None,
        };
        let pair = |pair: &str| {
            let (host, inside) = pair.split_once('=')?;
            Some((host.parse().ok()?, inside.parse().ok()?))
        };
        let numbers: Option<Vec<_>> = fields.next()?.split(',').map(pair).collect();
        Some(Self {
            variables,
            is_open,
            numbers: numbers.filter(|it| it.len() <= MAX_GPUS)?,
        })
    }
}

/// A task's variables with the container's numbers, as far as they have the host's.
pub(crate) fn translate(
    environment: &[OsString],
    numberings: &[Numbering],
) -> Vec<(String, String)> {
    let places = PLACES.iter().find_map(|name| value(environment, name));
    let places = places.map(|list| expand(list).unwrap_or_default());
    let mut translated: Vec<(String, String)> = Vec::new();
    for numbering in numberings {
        for name in &numbering.variables {
            let Some(list) = value(environment, name) else {
                continue;
            };
            let is_known = translated.iter().any(|(known, _)| known == name);
            if let Some(inside) = inside(list, places.as_deref(), numbering).filter(|_| !is_known) {
                translated.push((name.clone(), inside));
            }
        }
    }
    translated
}

fn inside(list: &str, places: Option<&[usize]>, numbering: &Numbering) -> Option<String> {
    let numbers = expand(list)?;
    let is_hosts = match places {
        Some(places) => {
            numbers == places || numbering.is_open && numbers.iter().all(|it| places.contains(it))
        }
        None => numbering.is_open,
    };
    let words = list.split(',').zip(numbers).map(|(word, number)| {
        let known = numbering.numbers.iter().find(|(host, _)| *host == number)?;
        // Of `1.0`, a part of a GPU, the GPU.
        let part = word
            .split_once('.')
            .map_or_else(String::new, |(_, part)| format!(".{}", part.trim()));
        Some(format!("{}{part}", known.1))
    });
    let words: Option<Vec<String>> = words.collect();
    words
        .filter(|_| is_hosts && !list.contains('-'))
        .map(|words| words.join(","))
}

/// A variable's value, unless it is empty or too long to be a list of GPUs.
fn value<'a>(environment: &'a [OsString], name: &str) -> Option<&'a str> {
    let of_name = environment.iter().find(|it| name_of(it) == name)?;
    let (_, value) = of_name.to_str()?.split_once('=')?;
    (!value.is_empty() && value.len() <= MAX_VALUE).then_some(value)
}

/// Numbers and ranges such as `0,2-4`, one by one, of `1.0` the `1`. None for what is no such list.
fn expand(list: &str) -> Option<Vec<usize>> {
    let mut found = Vec::new();
    for word in list.split(',').map(str::trim) {
        match word.split_once('-') {
            Some((first, last)) => {
                let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
                if last < first || last - first >= MAX_GPUS {
                    return None;
                }
                found.extend(first..=last);
            }
            None => found.push(word.split('.').next()?.parse().ok()?),
        }
        if found.len() > MAX_GPUS {
            return None;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_container_has_the_gpus_of_all_tasks() {
        for (tasks, places, cuda) in [
            // Each its own: with a control group CUDA counts from 0 in each, without one it has the host's numbers.
            (
                &[
                    "SLURM_STEP_GPUS=3 CUDA_VISIBLE_DEVICES=0",
                    "SLURM_STEP_GPUS=1 CUDA_VISIBLE_DEVICES=0",
                ][..],
                "1,3",
                "0",
            ),
            (
                &[
                    "SLURM_STEP_GPUS=2 CUDA_VISIBLE_DEVICES=2",
                    "SLURM_STEP_GPUS=10 CUDA_VISIBLE_DEVICES=10",
                ],
                "2,10",
                "2",
            ),
            // All the same.
            (
                &[
                    "SLURM_STEP_GPUS=2-4 CUDA_VISIBLE_DEVICES=0,1,2",
                    "SLURM_STEP_GPUS=2-4 CUDA_VISIBLE_DEVICES=0,1,2",
                ],
                "2,3,4",
                "0,1,2",
            ),
            // A task that is bound to none, and one that did not live to say it.
            (
                &["SLURM_STEP_GPUS=2 CUDA_VISIBLE_DEVICES=0", "A=b", ""],
                "2",
                "0",
            ),
            (
                &[
                    "SLURM_STEP_GPUS=0 CUDA_VISIBLE_DEVICES=MIG-a",
                    "SLURM_STEP_GPUS=1 CUDA_VISIBLE_DEVICES=MIG-b,MIG-a",
                ],
                "0,1",
                "MIG-a,MIG-b",
            ),
            // Who lies has what it could say without lying.
            (
                &[
                    "SLURM_STEP_GPUS=2 CUDA_VISIBLE_DEVICES=0",
                    "SLURM_STEP_GPUS=0-999999999 CUDA_VISIBLE_DEVICES=x\ny",
                ],
                "2",
                "0",
            ),
        ] {
            let reports: Vec<_> = tasks.iter().map(|text| variables(text)).collect();
            let found = of_all(reports[0].clone(), &reports);
            let shown = format!("{tasks:?}");
            assert_eq!(value(&found, "SLURM_STEP_GPUS"), Some(places), "{shown}");
            assert_eq!(value(&found, "CUDA_VISIBLE_DEVICES"), Some(cuda), "{shown}");
        }
        let shards = [
            variables("CUDA_VISIBLE_DEVICES=3"),
            variables("CUDA_VISIBLE_DEVICES=1"),
        ];
        let found = of_all(shards[0].clone(), &shards);
        assert_eq!(value(&found, "CUDA_VISIBLE_DEVICES"), Some("1,3"));
        // What control groups allow, of all tasks.
        let closed = [
            variables("SLURM_STEP_GPUS=0 allowed=195:0 refused=195:1 refused=195:2"),
            variables("SLURM_STEP_GPUS=0 allowed=195:2 refused=195:0 refused=x refused=195:1"),
        ];
        let found = of_all(closed[0].clone(), &closed);
        assert_eq!(value(&found, DEVICE_NUMBERS), Some("195:0,195:2"));
        let open = [variables("SLURM_STEP_GPUS=0 allowed=195:0 allowed=195:1")];
        assert_eq!(value(&of_all(open[0].clone(), &open), DEVICE_NUMBERS), None);
        let none = variables("SLURM_JOB_ID=1");
        assert_eq!(of_all(none.clone(), std::slice::from_ref(&none)), none);
    }

    #[test]
    fn reports_end_with_the_tasks() {
        let mut reports = Reports::new().unwrap();
        let listener = reports.listener().unwrap();
        reports.send(&variables("SLURM_STEP_GPUS=3 SLURM_JOB_GPUS=9 OTHER=1"));
        // The second task is gone.
        let mut told = listen(&listener, 2);
        assert_eq!(told.len(), 1);
        told[0].truncate(1);
        assert_eq!(told, [variables("SLURM_STEP_GPUS=3")]);
    }

    #[test]
    fn a_task_gets_the_numbers_of_the_container() {
        let cuda = "CUDA_VISIBLE_DEVICES,GPU_DEVICE_ORDINAL";
        for (numbering, variable, expected) in [
            // The container has the GPUs 4 and 6 of the host.
            (
                "open 4=0,6=1",
                "SLURM_STEP_GPUS=6 CUDA_VISIBLE_DEVICES=6",
                "CUDA_VISIBLE_DEVICES=1",
            ),
            (
                "open 4=0,6=1",
                "SLURM_STEP_GPUS=4,6 CUDA_VISIBLE_DEVICES=4,6 GPU_DEVICE_ORDINAL=4,6",
                "CUDA_VISIBLE_DEVICES=0,1 GPU_DEVICE_ORDINAL=0,1",
            ),
            // The user has left one out.
            (
                "open 4=0,6=1",
                "SLURM_STEP_GPUS=4,6 CUDA_VISIBLE_DEVICES=6",
                "CUDA_VISIBLE_DEVICES=1",
            ),
            (
                "open 1=0,3=1",
                "SLURM_STEP_GPUS=1,3 CUDA_VISIBLE_DEVICES=0",
                "",
            ),
            // What a control group allows is counted from 0 everywhere.
            (
                "closed 4=0,6=1",
                "SLURM_STEP_GPUS=6 CUDA_VISIBLE_DEVICES=0",
                "",
            ),
            (
                "closed 1=0,3=1",
                "SLURM_STEP_GPUS=1,3 CUDA_VISIBLE_DEVICES=1",
                "",
            ),
            // Of a batch script; of a site that says nothing else.
            (
                "open 4=0,6=1",
                "SLURM_JOB_GPUS=4,6 CUDA_VISIBLE_DEVICES=4,6",
                "CUDA_VISIBLE_DEVICES=0,1",
            ),
            (
                "open 4=0,6=1",
                "CUDA_VISIBLE_DEVICES=6",
                "CUDA_VISIBLE_DEVICES=1",
            ),
            // What the container does not have, and what is no number.
            (
                "open 4=0,6=1",
                "SLURM_STEP_GPUS=6,7 CUDA_VISIBLE_DEVICES=6,7",
                "",
            ),
            (
                "open 4=0,6=1",
                "SLURM_STEP_GPUS=6 CUDA_VISIBLE_DEVICES=GPU-6",
                "",
            ),
        ] {
            let numbering = Numbering::parse(OsStr::new(&format!("{cuda} {numbering}"))).unwrap();
            let found: Vec<String> = translate(&variables(variable), &[numbering])
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            assert_eq!(found.join(" "), expected, "{variable}");
        }
        let tiles = Numbering::parse(OsStr::new("ZE_AFFINITY_MASK open 2=0")).unwrap();
        let found = translate(
            &variables("SLURM_STEP_GPUS=2 ZE_AFFINITY_MASK=2.1"),
            &[tiles],
        );
        assert_eq!(found, [("ZE_AFFINITY_MASK".to_owned(), "0.1".to_owned())]);
        for wrong in ["", "A", "A open", "A ajar 1=0", "A open 1", "A open x=0"] {
            assert!(Numbering::parse(OsStr::new(wrong)).is_none(), "{wrong}");
        }
    }
}
