//! Which devices are asked for, by whom, and in whose numbers.
//!
//! The first of these that says something decides, for each vendor by itself:
//!
//! 1. the option `--gpus`;
//! 2. the vendor's variable where the user sets it for the container: `-e NVIDIA_VISIBLE_DEVICES=…`, or a file in `environ.d`;
//! 3. in a job of Slurm, the GPUs of the step: see [`job`](super::job);
//! 4. the vendor's variable as the image sets it.
//!
//! In a job the step's GPUs are also a limit: `all` means all of them, and naming another one is an error. What the job's control group does not
//! let this process open is not granted either; that is for the vendors to look at, by [`Host::permission`](super::Host::permission).

use std::ffi::OsString;
use std::fmt;

pub use super::cdi::name::QualifiedName;
use super::{DeviceError, Grant};

/// Most devices that a list may name; more is a mistake.
const MAX_NAMES: usize = 4096;

/// What the command line asks for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `--gpus`.
    pub gpus: Option<Choice>,
    /// `--device`.
    pub devices: Vec<QualifiedName>,
    /// `--explain-devices`: who gets the decisions, line by line.
    pub explain: Option<fn(&str)>,
}

impl Request {
    /// Whether the command line says something about devices.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gpus.is_none() && self.devices.is_empty() && self.explain.is_none()
    }
}

/// Which of a vendor's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nothing at all (`void`, or nobody asks).
    Nothing,
    /// The driver's files, and no device (`none`).
    DriverOnly,
    /// Every one that may be used.
    All,
    /// These, each an index, a UUID or what else the vendor knows.
    Names(Vec<String>),
}

impl Choice {
    /// Reads the value of `--gpus`, or of a variable such as `NVIDIA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    ///
    /// What the value should be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        // Docker's way to say it.
        let text = text.strip_prefix("device=").unwrap_or(text);
        match text {
            "" | "void" => return Ok(Self::Nothing),
            "none" => return Ok(Self::DriverOnly),
            "all" => return Ok(Self::All),
            _ => {}
        }
        let names: Vec<String> = text
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .take(MAX_NAMES + 1)
            .collect();
        if names.len() > MAX_NAMES || names.is_empty() {
            return Err("expected `all`, `none`, or indexes and UUIDs separated by commas".into());
        }
        // One `all` among names is all.
        if names.iter().any(|name| name == "all") {
            return Ok(Self::All);
        }
        Ok(Self::Names(names))
    }

    /// Reads the value of the option `--gpus`, where nothing is a mistake, and `none` means that there is nothing of GPUs.
    ///
    /// # Errors
    ///
    /// What the value should be.
    pub fn parse_option(text: &str) -> Result<Self, String> {
        match Self::parse(text)? {
            Self::Nothing if text != "void" => {
                Err("expected `all`, `none`, or indexes and UUIDs separated by commas".into())
            }
            Self::DriverOnly => Ok(Self::Nothing),
            choice => Ok(choice),
        }
    }
}

/// Who made a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The option of the command line.
    Option,
    /// The user, by a variable for the container.
    Variable(&'static str),
    /// Slurm, by a variable that has places in the list of the node's GPUs.
    Step(&'static str),
    /// Slurm, by a variable that has numbers among the devices that this process may open, or UUIDs.
    Library(&'static str),
    /// The image, by a variable.
    Image(&'static str),
    /// Nobody.
    Nobody,
}

impl Source {
    /// Whether somebody asked for just this, so that what cannot be granted is an error.
    #[must_use]
    pub fn is_explicit(&self) -> bool {
        matches!(self, Self::Option | Self::Variable(_))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option => formatter.write_str("`--gpus`"),
            Self::Variable(name) => write!(formatter, "`-e {name}`"),
            Self::Step(name) | Self::Library(name) => write!(formatter, "`{name}` of the job"),
            Self::Image(name) => write!(formatter, "`{name}` of the image"),
            Self::Nobody => formatter.write_str("nobody asks for it"),
        }
    }
}

/// The choice for one vendor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Which devices.
    pub choice: Choice,
    /// Who says so.
    pub source: Source,
    /// The GPUs of the step, which are a limit to what others choose.
    pub limit: Option<(Source, Choice)>,
}

/// The names of a vendor's variables.
#[derive(Clone, Copy, Debug)]
pub struct Variables {
    /// The one that images set.
    pub image: &'static str,
    /// Those that Slurm sets for the vendor's library; the first is set for this vendor alone.
    pub library: &'static [&'static str],
}

/// A process's, an image's or a container's variables, by name.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// What is asked for, by all who may ask.
pub struct Question<'a> {
    /// The command line.
    pub request: &'a Request,
    /// The variables that the user sets for the container.
    pub user: Lookup<'a>,
    /// The image's variables.
    pub image: Lookup<'a>,
    /// The names of all these that begin with a prefix.
    pub prefixed: &'a dyn Fn(&str) -> Vec<String>,
    /// The variables of the caller, which are those of the job.
    pub caller: Lookup<'a>,
}

impl Question<'_> {
    /// A variable that the container will have: the user's, or else the image's.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<String> {
        let text = |value: OsString| value.to_string_lossy().into_owned();
        (self.user)(name).or_else(|| (self.image)(name)).map(text)
    }

    /// A variable of the caller, unless it is empty.
    #[must_use]
    pub fn caller(&self, name: &str) -> Option<String> {
        let value = (self.caller)(name)?.to_string_lossy().into_owned();
        (!value.is_empty()).then_some(value)
    }

    /// Whether this is a job of Slurm.
    #[must_use]
    pub fn is_job(&self) -> bool {
        self.caller("SLURM_JOB_ID").is_some()
    }

    /// Whether an option names devices of a vendor, by its short name (`nvidia` for `nvidia.com`, `cdi` for any).
    #[must_use]
    pub fn names(&self, vendor: &str) -> bool {
        let mut devices = self.request.devices.iter();
        // A specification may be of any vendor.
        devices.any(|device| vendor == "cdi" || device.vendor.strip_suffix(".com") == Some(vendor))
    }

    /// What is chosen of a vendor's devices, of which the job has those of `limit`.
    ///
    /// # Errors
    ///
    /// A variable that is not understood.
    pub fn selection(
        &self,
        variables: &Variables,
        limit: Option<(Source, Choice)>,
    ) -> Result<Selection, DeviceError> {
        let parse = |name: &str, text: &str| {
            Choice::parse(text).map_err(|_| DeviceError::Option {
                option: name.to_owned(),
                value: text.to_owned(),
                expected: "expected `all`, `none`, `void`, or a list",
            })
        };
        let select = |choice, source, limit| Selection {
            choice,
            source,
            limit,
        };
        if let Some(choice) = &self.request.gpus {
            return Ok(select(choice.clone(), Source::Option, limit));
        }
        let name = variables.image;
        let text = |value: OsString| value.to_string_lossy().into_owned();
        if let Some(value) = (self.user)(name).map(text) {
            return Ok(select(parse(name, &value)?, Source::Variable(name), limit));
        }
        if let Some((source, choice)) = limit {
            return Ok(select(choice, source, None));
        }
        match (self.image)(name).map(text) {
            Some(value) => Ok(select(parse(name, &value)?, Source::Image(name), None)),
            None => Ok(select(Choice::Nothing, Source::Nobody, None)),
        }
    }

    /// Refuses GPUs and devices that an option names and nobody granted.
    ///
    /// # Errors
    ///
    /// The first such device.
    pub fn require_answers(&self, grant: &Grant) -> Result<(), DeviceError> {
        if let Some(choice @ (Choice::All | Choice::Names(_))) = &self.request.gpus
            && grant.gpus == 0
        {
            let name = match choice {
                Choice::Names(names) => names.join(","),
                _ => "all".to_owned(),
            };
            return Err(DeviceError::NotFound {
                what: "GPU",
                name,
                known: Vec::new(),
            });
        }
        for device in &self.request.devices {
            let name = device.to_string();
            if !grant.names.contains(&name) {
                return Err(DeviceError::NotFound {
                    what: "device",
                    name,
                    known: Vec::new(),
                });
            }
        }
        Ok(())
    }
}

/// Numbers and ranges such as `0,2-4`, one by one. None for what is no such list.
#[must_use]
pub fn expand(list: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for part in list.split(',').map(str::trim) {
        match part.split_once('-') {
            Some((first, last)) => {
                let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
                if last < first || last - first >= MAX_NAMES {
                    return None;
                }
                found.extend((first..=last).map(|number| number.to_string()));
            }
            // A number, or with ZE_AFFINITY_MASK a number and a part of it: `0.1`.
            None if part.starts_with(|first: char| first.is_ascii_digit()) => {
                found.push(part.to_owned());
            }
            None => return None,
        }
        if found.len() > MAX_NAMES {
            return None;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NVIDIA: Variables = Variables {
        image: "NVIDIA_VISIBLE_DEVICES",
        library: &["CUDA_VISIBLE_DEVICES"],
    };

    fn names(list: &[&str]) -> Choice {
        Choice::Names(list.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn who_decides() {
        // Option, the user's variable, the image's, the job's GPUs; what is chosen, by whom.
        type Case<'a> = (
            Option<&'a str>,
            Option<&'a str>,
            Option<&'a str>,
            Option<Choice>,
            Choice,
            Source,
        );
        let variable = "NVIDIA_VISIBLE_DEVICES";
        let step = Source::Step("SLURM_STEP_GPUS");
        let (by_user, by_image) = (Source::Variable(variable), Source::Image(variable));
        let job = || Some(names(&["2", "3"]));
        let cases: &[Case<'_>] = &[
            (None, None, None, None, Choice::Nothing, Source::Nobody),
            (None, None, Some("all"), None, Choice::All, by_image.clone()),
            (
                None,
                None,
                Some("void"),
                None,
                Choice::Nothing,
                by_image.clone(),
            ),
            (None, None, Some("none"), None, Choice::DriverOnly, by_image),
            (
                None,
                Some("none"),
                Some("all"),
                job(),
                Choice::DriverOnly,
                by_user,
            ),
            (
                Some("0,1"),
                Some("2"),
                Some("3"),
                job(),
                names(&["0", "1"]),
                Source::Option,
            ),
            (
                Some("none"),
                None,
                Some("all"),
                job(),
                Choice::Nothing,
                Source::Option,
            ),
            (
                None,
                None,
                Some("all"),
                job(),
                names(&["2", "3"]),
                step.clone(),
            ),
            (
                None,
                None,
                Some("all"),
                Some(Choice::Nothing),
                Choice::Nothing,
                step.clone(),
            ),
        ];
        for (option, user, image, job, choice, source) in cases {
            let request = Request {
                gpus: option.map(|text| Choice::parse_option(text).unwrap()),
                ..Request::default()
            };
            let one = |value: Option<&str>| {
                let value = value.map(OsString::from);
                move |name: &str| value.clone().filter(|_| name == variable)
            };
            let question = Question {
                request: &request,
                user: &one(*user),
                image: &one(*image),
                prefixed: &|_| Vec::new(),
                caller: &|_| None,
            };
            let limit = job.clone().map(|job| (step.clone(), job));
            let found = question.selection(&NVIDIA, limit.clone()).unwrap();
            assert_eq!(
                (&found.choice, &found.source),
                (choice, source),
                "{option:?} {user:?} {image:?} {job:?}"
            );
            let is_limited = found.source == step || found.limit == limit;
            assert!(is_limited, "{option:?} {user:?} {image:?} {job:?}");
        }
    }

    #[test]
    fn lists() {
        for (text, expected) in [
            ("0", Some(vec!["0"])),
            ("0,2-4", Some(vec!["0", "2", "3", "4"])),
            ("0.1", Some(vec!["0.1"])),
            ("3-1", None),
            ("0-99999999999", None),
            ("x", None),
            ("", None),
        ] {
            let expected: Option<Vec<String>> =
                expected.map(|list| list.into_iter().map(str::to_owned).collect());
            assert_eq!(expand(text), expected, "{text}");
        }
        assert_eq!(Choice::parse_option("device=0,2"), Ok(names(&["0", "2"])));
        for wrong in ["", ",", " "] {
            assert!(Choice::parse_option(wrong).is_err(), "{wrong}");
        }
    }
}
