//! Which GPUs, and which parts of them, are meant: by index, UUID, place on the bus, and by the numbers of a job.
//!
//! Somebody asks ([`Selection`]), the job is a limit, and the control group and the permissions of the nodes have the last word. What was asked for
//! by name and cannot be had is an error; what falls out of `all`, or of what an image asks for, is noted with the reason.

use super::super::grant::Grant;
use super::super::host::{Host, Permission};
use super::super::question::{Choice, Question, Selection, Source};
use super::super::{DeviceError, job};
use super::gpus::{Gpu, Part};

/// Adds `--device nvidia.com/gpu=…` to a selection, where no specification of CDI has answered it.
pub(super) fn with_named(
    question: &Question<'_>,
    grant: &Grant,
    selection: Selection,
) -> Selection {
    let mut names: Vec<String> = question
        .request
        .devices
        .iter()
        .filter(|device| device.vendor == "nvidia.com" && device.class == "gpu")
        .filter(|device| !grant.names.contains(&device.to_string()))
        .map(|device| device.name.clone())
        .collect();
    if names.is_empty() {
        return selection;
    }
    if selection.source == Source::Option
        && let Choice::Names(more) = &selection.choice
    {
        names.extend(more.iter().cloned());
    }
    let is_all = names.iter().any(|name| name == "all")
        || selection.source == Source::Option && selection.choice == Choice::All;
    let limit = match selection.source {
        Source::Step(_) | Source::Library(_) => {
            Some((selection.source.clone(), selection.choice.clone()))
        }
        _ => selection.limit,
    };
    Selection {
        choice: if is_all {
            Choice::All
        } else {
            Choice::Names(names)
        },
        source: Source::Option,
        limit,
    }
}

/// A GPU that is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Its index.
    pub(super) index: usize,
    /// Indexes of its parts, where it has some.
    pub(super) parts: Vec<usize>,
}

/// Finds out which GPUs are meant.
pub(super) struct Chooser<'a> {
    /// The host.
    pub(super) host: &'a Host,
    /// Its GPUs.
    pub(super) gpus: &'a [Gpu],
    /// What is asked for.
    pub(super) selection: &'a Selection,
    /// Whether a name may mean a GPU of another vendor.
    pub(super) has_neighbours: bool,
}

impl Chooser<'_> {
    /// The GPUs of a container. What it does not get is noted in `grant`.
    ///
    /// # Errors
    ///
    /// What was asked for by name cannot be had.
    pub(super) fn choose(&self, grant: &mut Grant) -> Result<Vec<Chosen>, DeviceError> {
        let Selection {
            choice,
            source,
            limit,
        } = self.selection;
        let limit = match limit {
            Some((source, Choice::Names(names))) => {
                Some((source, self.resolve_all(names, source)?))
            }
            Some((source, _)) => Some((source, Vec::new())),
            None => None,
        };
        let is_within = |index: usize, part: Option<usize>| {
            limit.as_ref().is_none_or(|(_, limit)| {
                limit.iter().any(|(gpu, limited)| {
                    *gpu == index && (limited.is_none() || part.is_none() || *limited == part)
                })
            })
        };
        let mut wanted: Vec<(usize, Option<usize>)> = Vec::new();
        match choice {
            Choice::Nothing | Choice::DriverOnly => {
                grant.no("NVIDIA GPUs", format!("{source} asks for the driver alone"));
            }
            Choice::All => match &limit {
                Some((_, limit)) => wanted.clone_from(limit),
                None => wanted.extend((0..self.gpus.len()).map(|index| (index, None))),
            },
            Choice::Names(names) => match source {
                Source::Step(_) => wanted = self.resolve_all(names, source)?,
                source if self.has_neighbours || matches!(source, Source::Image(_)) => {
                    for name in names {
                        match self.resolve(name, source) {
                            Ok(found) => wanted.extend(found),
                            Err(error) => grant.no(format!("GPU {name}"), error.to_string()),
                        }
                    }
                }
                _ => wanted = self.resolve_all(names, source)?,
            },
        }
        let is_named = matches!(choice, Choice::Names(_)) && source.is_explicit();
        let mut chosen: Vec<Chosen> = Vec::new();
        for (index, gpu) in self.gpus.iter().enumerate() {
            let name = format!("GPU {index} ({}, {})", gpu.model, gpu.bus);
            let mut meant = wanted.iter().filter(|(it, _)| *it == index).peekable();
            if meant.peek().is_none() {
                let why = match &limit {
                    Some((limit, _)) if *choice == Choice::All => {
                        format!("{limit} does not have it")
                    }
                    _ if *choice == Choice::DriverOnly => continue,
                    _ => format!("{source} does not have it"),
                };
                grant.no(name, why);
                continue;
            }
            let parts: Vec<Option<usize>> = meant.map(|(_, part)| *part).collect();
            let refusal = self.refusal(index, &parts, &is_within);
            match refusal {
                Some(why) if is_named => {
                    return Err(DeviceError::Denied {
                        what: "GPU",
                        name: index.to_string(),
                        why,
                    });
                }
                Some(why) => {
                    grant.no(name, why);
                    continue;
                }
                None => grant.yes(name, source.to_string()),
            }
            let parts = self.parts(index, &parts, &is_within, grant);
            chosen.push(Chosen { index, parts });
        }
        Ok(chosen)
    }

    /// Why a GPU cannot be granted.
    fn refusal(
        &self,
        index: usize,
        parts: &[Option<usize>],
        is_within: &dyn Fn(usize, Option<usize>) -> bool,
    ) -> Option<String> {
        let gpu = &self.gpus[index];
        let node = gpu.node();
        if parts.iter().any(|part| !is_within(index, *part)) {
            let limit = self.selection.limit.as_ref().map(|(source, _)| source);
            let limit = limit.map_or_else(String::new, ToString::to_string);
            return Some(format!("it is not of this job ({limit})"));
        }
        if gpu.is_excluded {
            return Some("the administrator has excluded it".into());
        }
        if self.host.node(&node).is_none() {
            return Some(format!(
                "`{node}` is not there: `nvidia-modprobe -c 0 -u` makes it"
            ));
        }
        // What Slurm gives to a step may be more than one task of it may open; each task's control group sees to that.
        if matches!(self.selection.source, Source::Step(_)) {
            return None;
        }
        match self.host.permission(&node) {
            Permission::Granted => None,
            Permission::NotOfThisJob => Some(format!(
                "the control group of this job does not have `{node}`"
            )),
            Permission::Forbidden => Some(format!("`{node}` is not open to this user")),
        }
    }

    /// The parts of a GPU that are granted: those that were named, or all that may be used.
    fn parts(
        &self,
        index: usize,
        named: &[Option<usize>],
        is_within: &dyn Fn(usize, Option<usize>) -> bool,
        grant: &mut Grant,
    ) -> Vec<usize> {
        let mut found = Vec::new();
        for (number, part) in self.gpus[index].parts.iter().enumerate() {
            let name = format!("GPU {index}:{number} (MIG {}/{})", part.gi, part.ci);
            let is_named = named.contains(&Some(number)) || named.contains(&None);
            if !is_named || !is_within(index, Some(number)) {
                grant.no(name, "another part is meant");
            } else if !self.is_open(part) {
                grant.no(name, "the control group of this job does not have it");
            } else {
                grant.yes(name, self.selection.source.to_string());
                found.push(number);
            }
        }
        found
    }

    fn is_open(&self, part: &Part) -> bool {
        [part.gi_minor, part.ci_minor].iter().all(|minor| {
            self.host
                .may_read(format!("{}/nvidia-cap{minor}", super::nodes::CAPS))
                == Permission::Granted
        })
    }

    /// Which GPUs, and which parts of them, names mean.
    ///
    /// # Errors
    ///
    /// A name that means nothing here.
    pub(super) fn resolve_all(
        &self,
        names: &[String],
        source: &Source,
    ) -> Result<Vec<(usize, Option<usize>)>, DeviceError> {
        let mut found = Vec::new();
        if matches!(source, Source::Step(_)) {
            return Ok(self
                .places(names)?
                .into_iter()
                .map(|index| (index, None))
                .collect());
        }
        let (unknown, names): (Vec<&String>, Vec<&String>) =
            names.iter().partition(|name| is_uuid_of_part(name));
        for name in names {
            found.extend(self.resolve(name, source)?);
        }
        if !unknown.is_empty() {
            found.extend(self.resolve_uuids(&unknown)?);
        }
        Ok(found)
    }

    /// The GPUs that Slurm names by their places in its list ([`job`](super::super::job)). The list is in the order of the bus, or in that of the device files where gres.conf
    /// names these. Where that differs, those are meant that the control group allows; without one, those that CUDA takes the numbers for.
    fn places(&self, names: &[String]) -> Result<Vec<usize>, DeviceError> {
        let numbers: Vec<_> = names
            .iter()
            .filter_map(|name| job::device_numbers(name))
            .collect();
        if !numbers.is_empty() {
            // Those of other vendors are among them.
            let is_meant = |gpu: &Gpu| {
                let node = self.host.node(gpu.node()).and_then(|node| node.numbers);
                node.is_some_and(|node| numbers.contains(&node))
            };
            let gpus = self.gpus.iter().enumerate();
            return Ok(gpus
                .filter(|(_, gpu)| is_meant(gpu))
                .map(|(index, _)| index)
                .collect());
        }
        let find = |is: &dyn Fn(&Gpu, usize, usize) -> bool| -> Result<Vec<usize>, DeviceError> {
            let mut found = Vec::new();
            for name in names {
                let at: Option<usize> = name.parse().ok();
                let mut gpus = self.gpus.iter().enumerate();
                let index = at.and_then(|at| gpus.position(|(index, gpu)| is(gpu, index, at)));
                match index {
                    Some(index) => found.push(index),
                    // One of another vendor in the same list.
                    None if self.has_neighbours => {}
                    None => return Err(self.not_found(name)),
                }
            }
            found.sort_unstable();
            Ok(found)
        };
        let by_bus = find(&|_, index, at| index == at)?;
        let by_file = find(&|gpu, _, at| gpu.minor as usize == at)?;
        let is_allowed = |indexes: &[usize]| {
            let mut nodes = indexes.iter().map(|index| self.gpus[*index].node());
            nodes.all(|node| self.host.permission(node) != Permission::NotOfThisJob)
        };
        if by_bus != by_file && !is_allowed(&by_bus) && is_allowed(&by_file) {
            return Ok(by_file);
        }
        Ok(by_bus)
    }

    fn not_found(&self, name: &str) -> DeviceError {
        DeviceError::NotFound {
            what: "GPU",
            name: name.to_owned(),
            known: self.known(),
        }
    }

    /// UUIDs of parts stand in no file. They are the job's parts where there are as many of these as of those.
    fn resolve_uuids(&self, names: &[&String]) -> Result<Vec<(usize, Option<usize>)>, DeviceError> {
        let mut open = Vec::new();
        for (index, gpu) in self.gpus.iter().enumerate() {
            let parts = gpu.parts.iter().enumerate();
            open.extend(
                parts
                    .filter(|(_, part)| self.is_open(part))
                    .map(|(number, _)| (index, Some(number))),
            );
        }
        if open.len() == names.len() {
            return Ok(open);
        }
        Err(DeviceError::Denied {
            what: "MIG device",
            name: names[0].clone(),
            why: format!(
                "which part of a GPU that is only NVML could tell, and {} parts may be used here; name it as `GPU:PART`, by the numbers of `cista check gpu`",
                open.len()
            ),
        })
    }

    /// Which GPU, and which part of it, a name means.
    fn resolve(
        &self,
        name: &str,
        source: &Source,
    ) -> Result<Vec<(usize, Option<usize>)>, DeviceError> {
        let name = name.rsplit_once("/gpu=").map_or(name, |(_, name)| name);
        if name == "all" {
            return Ok((0..self.gpus.len()).map(|index| (index, None)).collect());
        }
        let by = |is: &dyn Fn(&Gpu) -> bool| self.gpus.iter().position(is);
        let number = |text: &str| {
            text.parse::<usize>()
                .ok()
                .filter(|_| !text.starts_with('+'))
        };
        let found = if let Some(at) = number(name) {
            match source {
                Source::Library(_) => {
                    let may = |(_, gpu): &(usize, &Gpu)| {
                        self.host.permission(gpu.node()) == Permission::Granted
                    };
                    let mut open = self.gpus.iter().enumerate().filter(may);
                    open.nth(at).map(|(index, _)| (index, None))
                }
                _ => (at < self.gpus.len()).then_some((at, None)),
            }
        } else if let Some(index) = by(&|gpu| gpu.bus.eq_ignore_ascii_case(name)) {
            Some((index, None))
        } else if let Some(rest) = name.strip_prefix("MIG-GPU-") {
            self.old_part(rest)
        } else if name.starts_with("GPU-") {
            let mut fitting = self
                .gpus
                .iter()
                .enumerate()
                .filter(|(_, gpu)| gpu.uuid.starts_with(name));
            match (fitting.next(), fitting.next()) {
                (Some((index, _)), None) => Some((index, None)),
                _ => None,
            }
        } else if let Some((gpu, part)) = name.split_once(':') {
            let (gpu, part) = (number(gpu), number(part));
            gpu.zip(part)
                .filter(|(gpu, part)| {
                    self.gpus
                        .get(*gpu)
                        .is_some_and(|gpu| *part < gpu.parts.len())
                })
                .map(|(gpu, part)| (gpu, Some(part)))
        } else {
            None
        };
        found
            .map(|found| vec![found])
            .ok_or_else(|| self.not_found(name))
    }

    /// `MIG-GPU-UUID/GI/CI`, as drivers before 470 name parts.
    fn old_part(&self, rest: &str) -> Option<(usize, Option<usize>)> {
        let mut fields = rest.split('/');
        let uuid = format!("GPU-{}", fields.next()?);
        let (gi, ci) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let index = self.gpus.iter().position(|gpu| gpu.uuid == uuid)?;
        let mut parts = self.gpus[index].parts.iter();
        let part = parts.position(|part: &Part| (part.gi, part.ci) == (gi, ci))?;
        Some((index, Some(part)))
    }

    fn known(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (index, gpu) in self.gpus.iter().enumerate() {
            names.push(index.to_string());
            names.extend((0..gpu.parts.len()).map(|part| format!("{index}:{part}")));
        }
        names.truncate(64);
        names
    }
}

/// Whether a name is a UUID of a part as drivers from 470 on have them.
fn is_uuid_of_part(name: &str) -> bool {
    name.starts_with("MIG-") && !name.starts_with("MIG-GPU-")
}
