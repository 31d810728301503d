//! Devices that are chosen from a list, by their position or by a name: GPUs of AMD and Intel, and accelerators.
//!
//! Each vendor lists what there is; who may choose, and in whose numbers, is the same for all of them. What is chosen by name and cannot be
//! had is an error, unless a GPU of another vendor may be meant by it; what falls out of `all`, or of what an image or a job asks for, is noted
//! with the reason.

use std::path::{Path, PathBuf};

use super::grant::{Numbering, Symlink};
use super::host::{Host, Permission};
use super::question::{Choice, Question, Source, Variables, expand};
use super::{DeviceError, Grant, Vendor, job};

/// A device of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its number.
    pub number: usize,
    /// What it is called in messages, such as `GPU 0 (gfx942, 0000:05:00.0)`.
    pub title: String,
    /// What it may be called besides its number.
    pub names: Vec<String>,
    /// What identifies it on every machine, where the driver tells that.
    pub uuid: Option<String>,
    /// Its nodes. The first says whether a process may use it; others are granted where they are there.
    pub nodes: Vec<PathBuf>,
    /// Links by which programs find its nodes.
    pub links: Vec<Symlink>,
}

impl Listed {
    /// The node that says whether a process may use it.
    fn node(&self) -> &Path {
        self.nodes.first().map_or(Path::new("/"), PathBuf::as_path)
    }
}

/// What a vendor's list is called.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    /// What one of them is called in errors: `AMD GPU`.
    pub what: &'static str,
    /// Whose they are, in the line of one: `AMD`.
    pub maker: &'static str,
    /// Their kind, as in `--device amd.com/gpu=0`.
    pub name: (&'static str, &'static str),
    /// The variables that choose among them.
    pub variables: &'static Variables,
}

impl Kind {
    /// A line for each of them.
    pub(super) fn inventory(&self, devices: &[Listed]) -> Vec<String> {
        let line = |device: &Listed| {
            let uuid = device.uuid.as_ref();
            let uuid = uuid.map_or_else(String::new, |uuid| format!(" UUID {uuid}"));
            let node = device.node().display();
            format!("{} {}{uuid}: {node}", self.maker, device.title)
        };
        devices.iter().map(line).collect()
    }

    /// The devices that a container gets, in the order of the list. Those that it does not get are noted in `grant`, and so are the names of
    /// the command line that are answered.
    ///
    /// # Errors
    ///
    /// What was asked for by name cannot be had.
    pub(super) fn choose(
        &self,
        vendor: &dyn Vendor,
        host: &Host,
        devices: &[Listed],
        question: &Question<'_>,
        grant: &mut Grant,
    ) -> Result<Vec<Chosen>, DeviceError> {
        List {
            host,
            kind: *self,
            of_job: job::gpus(host, question, vendor)?,
            has_neighbours: super::has_other_gpus(host, vendor.name()),
            devices,
        }
        .choose(question, grant)
    }

    /// Grants the nodes and links of devices that are chosen, and notes their numbers in the container.
    pub(super) fn grant(
        &self,
        host: &Host,
        devices: &[Listed],
        chosen: &[Chosen],
        question: &Question<'_>,
        grant: &mut Grant,
    ) {
        grant.gpus += chosen.len();
        let mut numbers = Vec::new();
        for (inside, chosen) in chosen.iter().enumerate() {
            let device = &devices[chosen.position];
            numbers.push((device.number, inside));
            let why = format!("{}, {}", device.title, chosen.why);
            for node in device.nodes.iter().filter(|node| host.exists(node)) {
                grant.device(node, why.as_str());
            }
            let links = device.links.iter().filter(|link| host.exists(&link.path));
            grant.edits.symlinks.extend(links.cloned());
        }
        let is_counted = question.is_job() && !self.variables.library.is_empty();
        if is_counted && numbers.iter().any(|(host, inside)| host != inside) {
            let is_closed =
                |device: &Listed| host.permission(device.node()) == Permission::NotOfThisJob;
            grant.numberings.push(Numbering {
                variables: self.variables.library,
                numbers,
                is_open: !devices.iter().any(is_closed),
            });
        }
    }
}

/// A list of devices on a host, for a job.
struct List<'a> {
    host: &'a Host,
    kind: Kind,
    of_job: Option<(Source, Choice)>,
    /// The devices, in the order of their numbers.
    devices: &'a [Listed],
    /// Whether `--gpus` may mean others, because there are GPUs of another vendor.
    has_neighbours: bool,
}

/// A device that is granted: its position, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Position in the list.
    pub position: usize,
    /// Why.
    pub why: String,
}

impl List<'_> {
    fn choose(
        &self,
        question: &Question<'_>,
        grant: &mut Grant,
    ) -> Result<Vec<Chosen>, DeviceError> {
        let (chosen, limit) = self.wanted(question, grant)?;
        let mut granted = Vec::new();
        for (position, device) in self.devices.iter().enumerate() {
            let Some(wish) = chosen.iter().find(|wish| wish.position == position) else {
                grant.no(&device.title, "not asked for");
                continue;
            };
            let refusal = match &limit {
                Some((source, positions)) if !positions.contains(&position) => {
                    Some(format!("not of this job: see {source}"))
                }
                _ => match self.host.permission(device.node()) {
                    Permission::Granted => None,
                    // What Slurm gives to a step may be more than one task of it may open; each task's control group sees to that.
                    Permission::NotOfThisJob if matches!(&limit, Some((Source::Step(_), _))) => {
                        None
                    }
                    Permission::NotOfThisJob => Some(format!(
                        "the control group of the job does not have `{}`",
                        device.node().display()
                    )),
                    Permission::Forbidden => {
                        Some(format!("you may not open `{}`", device.node().display()))
                    }
                },
            };
            match refusal {
                None => granted.push(Chosen {
                    position,
                    why: wish.why.clone(),
                }),
                Some(why) if wish.is_named => {
                    return Err(DeviceError::Denied {
                        what: self.kind.what,
                        name: device.title.clone(),
                        why,
                    });
                }
                Some(why) => grant.no(&device.title, why),
            }
        }
        Ok(granted)
    }

    /// What is asked for, and within which limit.
    #[expect(clippy::type_complexity, reason = "the pair is taken apart at once")]
    fn wanted(
        &self,
        question: &Question<'_>,
        grant: &mut Grant,
    ) -> Result<(Vec<Wish>, Option<(Source, Vec<usize>)>), DeviceError> {
        let mut chosen = Vec::new();
        let mut is_answered = false;
        for name in &question.request.devices {
            let text = name.to_string();
            if (name.vendor.as_str(), name.class.as_str()) != self.kind.name {
                continue;
            }
            is_answered = true;
            if grant.names.contains(&text) {
                continue;
            }
            let found = self.find(&name.name, &Source::Option);
            if found.is_empty() {
                return Err(self.not_found(&name.name));
            }
            let is_named = name.name != "all";
            let why = format!("`--device {text}`");
            chosen.extend(found.into_iter().map(|position| Wish {
                position,
                is_named,
                why: why.clone(),
            }));
            grant.names.push(text);
        }
        let selection = question.selection(self.kind.variables, self.of_job.clone())?;
        let limit = selection
            .limit
            .map(|(source, choice)| (self.positions(&choice, &source), source))
            .map(|(positions, source)| (source, positions))
            .or_else(|| {
                matches!(selection.source, Source::Step(_)).then(|| {
                    let positions = self.positions(&selection.choice, &selection.source);
                    (selection.source.clone(), positions)
                })
            });
        // Who names devices of this kind means those, whatever an image or a job says; the job's remain the limit.
        if is_answered && question.request.gpus.is_none() {
            let limit = limit.or_else(|| {
                matches!(selection.source, Source::Library(_)).then(|| {
                    let positions = self.positions(&selection.choice, &selection.source);
                    (selection.source.clone(), positions)
                })
            });
            return Ok((chosen, limit));
        }
        let why = selection.source.to_string();
        let Choice::Names(names) = &selection.choice else {
            let positions = self.positions(&selection.choice, &selection.source);
            chosen.extend(positions.into_iter().map(|position| Wish {
                position,
                is_named: false,
                why: why.clone(),
            }));
            return Ok((chosen, limit));
        };
        for name in names {
            let found = self.find(name, &selection.source);
            if !found.is_empty() {
                chosen.extend(found.into_iter().map(|position| Wish {
                    position,
                    is_named: selection.source.is_explicit(),
                    why: why.clone(),
                }));
            } else if selection.source.is_explicit() && !self.has_neighbours {
                return Err(self.not_found(name));
            } else {
                grant.no(
                    format!("{} {name}", self.kind.what),
                    format!("asked for by {why}, and not there"),
                );
            }
        }
        Ok((chosen, limit))
    }

    /// Where the devices of a choice stand in the list.
    fn positions(&self, choice: &Choice, source: &Source) -> Vec<usize> {
        match choice {
            Choice::Nothing | Choice::DriverOnly => Vec::new(),
            Choice::All => all(self.devices),
            Choice::Names(names) => names
                .iter()
                .flat_map(|name| self.find(name, source))
                .collect(),
        }
    }

    /// Where the device of a number stands. A library counts from 0 what the control group lets it see.
    fn position(&self, number: usize, source: &Source) -> Option<usize> {
        if !matches!(source, Source::Library(_)) {
            let by_number = self.devices.iter().position(|it| it.number == number);
            // Releases of Slurm before 21.08 have the number of the render node.
            let render = format!("renderD{number}");
            let is_render = |it: &Listed| it.names.contains(&render);
            return by_number.or_else(|| match source {
                Source::Step(_) => self.devices.iter().position(is_render),
                _ => None,
            });
        }
        let is_seen = |it: &Listed| self.host.permission(it.node()) != Permission::NotOfThisJob;
        let devices = self.devices.iter().enumerate();
        let mut seen = devices.filter(|(_, device)| is_seen(device));
        seen.nth(number).map(|(position, _)| position)
    }

    /// The devices that a number, a range or a name stands for; none where it stands for one that is not there.
    fn find(&self, name: &str, source: &Source) -> Vec<usize> {
        if name == "all" {
            return all(self.devices);
        }
        if matches!(source, Source::Step(_))
            && let Some(numbers) = job::device_numbers(name)
        {
            let is_meant = |it: &Listed| {
                let node = self.host.node(it.node());
                node.and_then(|node| node.numbers) == Some(numbers)
            };
            let devices = self.devices.iter().enumerate();
            return devices
                .filter(|(_, device)| is_meant(device))
                .map(|(position, _)| position)
                .collect();
        }
        if let Some(numbers) = expand(name) {
            // Of `0.1`, which is a tile, the GPU.
            let whole = |number: &str| number.split('.').next()?.parse::<usize>().ok();
            let found: Option<Vec<usize>> = numbers
                .iter()
                .map(|number| self.position(whole(number)?, source))
                .collect();
            if let Some(found) = found {
                return found;
            }
        }
        let is_called = |device: &Listed| {
            device
                .names
                .iter()
                .any(|known| known.eq_ignore_ascii_case(name))
        };
        let devices = self.devices.iter().enumerate();
        devices
            .filter(|(_, device)| is_called(device))
            .map(|(position, _)| position)
            .collect()
    }

    fn not_found(&self, name: &str) -> DeviceError {
        DeviceError::NotFound {
            what: self.kind.what,
            name: name.to_owned(),
            known: self
                .devices
                .iter()
                .map(|device| device.title.clone())
                .collect(),
        }
    }
}

/// A device that somebody wants.
struct Wish {
    position: usize,
    /// Whether just this one was asked for, so that it is an error when it cannot be had.
    is_named: bool,
    why: String,
}

fn all(devices: &[Listed]) -> Vec<usize> {
    (0..devices.len()).collect()
}
