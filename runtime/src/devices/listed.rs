//! Devices that are chosen from a list, by their position or by a name: GPUs of AMD and Intel, and accelerators.
//!
//! Each vendor lists what there is; who may choose, and in whose numbers, is the same for all of them. What is chosen by name and cannot be
//! had is an error, unless a GPU of another vendor may be meant by it; what falls out of `all`, or of what an image or a job asks for, is noted
//! with the reason.

use std::path::PathBuf;

use super::host::{Host, Permission};
use super::question::{Choice, Question, Source, Variables, expand};
use super::{DeviceError, Grant};

/// A device of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its number.
    pub number: usize,
    /// What it is called in messages, such as `GPU 0 (gfx942, 0000:05:00.0)`.
    pub title: String,
    /// What it may be called besides its number.
    pub names: Vec<String>,
    /// The node that says whether a process may use it.
    pub node: PathBuf,
}

/// A list of devices.
#[derive(Clone, Copy)]
pub(super) struct List<'a> {
    /// The host.
    pub host: &'a Host,
    /// What one of them is called in errors: `AMD GPU`.
    pub what: &'static str,
    /// Their kind, as in `--device amd.com/gpu=0`.
    pub kind: (&'static str, &'static str),
    /// The variables that choose among them.
    pub variables: &'a Variables,
    /// The devices, in the order of their numbers.
    pub devices: &'a [Listed],
    /// Whether `--gpus` may mean others, because there are GPUs of another vendor.
    pub has_neighbours: bool,
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
    /// The devices that a container gets, in the order of the list. Those that it does not get are noted in `grant`, and so are the names of
    /// the command line that are answered.
    ///
    /// # Errors
    ///
    /// What was asked for by name cannot be had.
    pub(super) fn choose(
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
                _ => match self.host.permission(&device.node) {
                    Permission::Granted => None,
                    // What Slurm gives to a step may be more than one task of it may open; each task's control group sees to that.
                    Permission::NotOfThisJob if matches!(&limit, Some((Source::Step(_), _))) => {
                        None
                    }
                    Permission::NotOfThisJob => Some(format!(
                        "the control group of the job does not have `{}`",
                        device.node.display()
                    )),
                    Permission::Forbidden => {
                        Some(format!("you may not open `{}`", device.node.display()))
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
                        what: self.what,
                        name: device.title.clone(),
                        why,
                    });
                }
                Some(why) => grant.no(&device.title, why),
            }
        }
        grant.gpus += granted.len();
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
            if (name.vendor.as_str(), name.class.as_str()) != self.kind {
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
        let selection = question.selection(self.variables)?;
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
                    format!("{} {name}", self.what),
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
            return self.devices.iter().position(|it| it.number == number);
        }
        let is_seen = |it: &Listed| self.host.permission(&it.node) != Permission::NotOfThisJob;
        let devices = self.devices.iter().enumerate();
        let mut seen = devices.filter(|(_, device)| is_seen(device));
        seen.nth(number).map(|(position, _)| position)
    }

    /// The devices that a number, a range or a name stands for; none where it stands for one that is not there.
    fn find(&self, name: &str, source: &Source) -> Vec<usize> {
        if name == "all" {
            return all(self.devices);
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
            what: self.what,
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
