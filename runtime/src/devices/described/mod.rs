//! Devices that are described in files: fabrics, and whatever else is a node in `/dev`.
//!
//! A [`Family`] says where its devices are and who gets them; see there for the format. The families that come with the program are such files
//! too ([`BUILT_IN`], shipped as examples); a file of `/etc/cista/devices.d` with the same name takes the place of one of them. Their
//! names on the command line are `host/FAMILY=all`, `host/FAMILY=INSTANCE`, `host/FAMILY=none` and, where the family has some,
//! `host/FAMILY=libraries`.
//!
//! Who gets what: the command line decides, then the family's variable, as the user or the image sets it, then the family's policy. By policy a
//! container gets what its user may open anyway, as it would without a container: programs of HPC expect the fabric, and hiding it
//! protects nobody. Of a family with some instances granted and some not, `/sys` shows the granted ones alone.
//!
//! A machine without any of it pays for six system calls.

pub mod family;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use self::family::{Family, Filter, Instances, Libraries, MAX_SIZE, Node, Policy, is_like};
use super::grant::{Directory, Entry};
use super::host::{Host, Permission};
use super::question::{Choice, QualifiedName, Question};
use super::{DeviceError, Grant, Vendor};

/// The vendor of devices that the host has, in names of the command line.
const VENDOR: &str = "host";

/// Where an administrator describes others.
const DIRECTORY: &str = "/etc/cista/devices.d";

/// What a machine has where there is something to grant that nobody asks for.
const SIGNS: [&str; 6] = [
    "/dev/infiniband",
    "/dev/cxi0",
    "/dev/gdrdrv",
    "/dev/xpmem",
    "/dev/knem",
    DIRECTORY,
];

/// A description that comes with the program, and what stands in `/dev` of machines with such devices.
struct BuiltIn {
    name: &'static str,
    text: &'static str,
    signs: &'static [&'static str],
}

macro_rules! built_in {
    ($($name:literal: $($sign:literal),+;)*) => {
        [$(BuiltIn {
            name: $name,
            text: include_str!(concat!("../../../../packaging/devices.d/", $name, ".toml")),
            signs: &[$($sign),+],
        }),*]
    };
}

/// The descriptions that come with the program.
static BUILT_IN: [BuiltIn; 10] = built_in! {
    "infiniband": "infiniband";
    "efa": "infiniband";
    "omni-path": "infiniband", "hfi1_*";
    "slingshot": "cxi*";
    "gdrcopy": "gdrdrv";
    "xpmem": "xpmem";
    "knem": "knem";
    "fuse": "fuse";
    "kvm": "kvm";
    "tun": "net";
};

/// Devices that files describe.
#[derive(Debug)]
pub struct Described;

impl Vendor for Described {
    fn name(&self) -> &'static str {
        VENDOR
    }

    fn is_there(&self, host: &Host) -> bool {
        SIGNS.iter().any(|path| host.exists(path))
    }

    fn inventory(&self, host: &Host) -> Result<Vec<String>, DeviceError> {
        let names = host.names("/dev");
        let mut lines = Vec::new();
        for family in families(host, |built_in| built_in.is_there(&names))? {
            let policy = match family.grant {
                Policy::Default => "granted by default",
                Policy::Asked => "granted when asked for",
                Policy::Never => "never granted",
            };
            for (instance, nodes) in found(host, &family) {
                let nodes: Vec<_> = nodes.iter().map(|it| it.display().to_string()).collect();
                if !nodes.is_empty() {
                    let title = title(&family, instance.as_deref());
                    lines.push(format!("{title}: {} ({policy})", nodes.join(" ")));
                }
            }
        }
        Ok(lines)
    }

    fn grant(
        &self,
        host: &Host,
        question: &Question<'_>,
        grant: &mut Grant,
    ) -> Result<(), DeviceError> {
        let names = host.names("/dev");
        let is_asked = |name: &str| {
            let mut devices = question.request.devices.iter();
            devices.any(|device| device.vendor == VENDOR && device.class == name)
        };
        let families = families(host, |built_in| {
            is_asked(built_in.name) || built_in.is_default() && built_in.is_there(&names)
        })?;
        let mut hidden = Hidden::default();
        for family in &families {
            Granting {
                host,
                question,
                family,
            }
            .grant(grant, &mut hidden)?;
        }
        grant.edits.directories.extend(hidden.views(host));
        Ok(())
    }
}

impl BuiltIn {
    fn is_there(&self, names: &[std::ffi::OsString]) -> bool {
        names.iter().filter_map(|name| name.to_str()).any(|name| {
            let mut signs = self.signs.iter();
            signs.any(|sign| is_like(name, sign))
        })
    }

    /// Whether containers get it unasked, which a start wants to know without reading the description.
    fn is_default(&self) -> bool {
        !matches!(self.name, "fuse" | "kvm" | "tun")
    }
}

/// The families that matter: those that come with the program as far as they are `wanted`, and those of the administrator.
fn families(host: &Host, wanted: impl Fn(&BuiltIn) -> bool) -> Result<Vec<Family>, DeviceError> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut add = |path: PathBuf, text: &str| match Family::parse(text) {
        Ok(family) => {
            families.insert(family.name.clone(), family);
            Ok(())
        }
        Err(error) => Err(DeviceError::Description {
            path,
            message: error.to_string(),
        }),
    };
    for built_in in BUILT_IN.iter().filter(|it| wanted(it)) {
        add(built_in.name.into(), built_in.text)?;
    }
    for name in host.names(DIRECTORY) {
        let path = Path::new(DIRECTORY).join(name);
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let content = host
            .read(&path, MAX_SIZE)
            .map_err(|source| DeviceError::Read {
                path: path.clone(),
                source,
            })?;
        add(path, &String::from_utf8_lossy(&content))?;
    }
    Ok(families.into_values().collect())
}

/// What an instance, or a family that is one thing, is called in messages.
fn title(family: &Family, instance: Option<&str>) -> String {
    match instance {
        Some(name) => format!("{} {name}", family.title),
        None => family.title.clone(),
    }
}

/// The names of a family's instances, in the order of their numbers where they have some.
fn instances(host: &Host, instances: &Instances) -> Vec<String> {
    let directory = Path::new(&instances.directory);
    let driver = |name: &str| {
        let link = directory.join(name).join("device/driver");
        host.link(&link)
            .ok()
            .and_then(|path| super::last_name(&path))
    };
    let is_one = |name: &String| {
        let has_driver =
            |drivers: &[String]| driver(name).is_some_and(|driver| drivers.contains(&driver));
        is_like(name, &instances.names)
            && (instances.drivers.is_empty() || has_driver(&instances.drivers))
            && (instances.not_drivers.is_empty() || !has_driver(&instances.not_drivers))
    };
    let names = host.names(directory).into_iter();
    let mut found: Vec<String> = names
        .filter_map(|name| name.into_string().ok())
        .filter(is_one)
        .collect();
    // `mlx5_10` comes after `mlx5_9`.
    found.sort_by(|one, other| key(one).cmp(&key(other)));
    found
}

/// A name as its text and the number at its end.
fn key(name: &str) -> (&str, u64) {
    let text = name.trim_end_matches(|last: char| last.is_ascii_digit());
    (text, name[text.len()..].parse().unwrap_or(0))
}

/// Whether an entry of a directory belongs to an instance: the file that says so has its name.
fn belongs(host: &Host, entry: &Path, matching: Option<&String>, instance: Option<&str>) -> bool {
    match (matching, instance) {
        (Some(file), Some(instance)) => {
            let owner = host.text(entry.join(file));
            owner.is_some_and(|owner| owner.trim() == instance)
        }
        _ => true,
    }
}

/// The paths that a description of nodes stands for.
fn paths(host: &Host, node: &Node, instance: Option<&str>) -> Vec<PathBuf> {
    let fill = |text: &str| text.replace("{instance}", instance.unwrap_or_default());
    let path = fill(&node.path);
    let found: Vec<PathBuf> = match &node.entries {
        None => vec![path.into()],
        Some(directory) => {
            let directory = PathBuf::from(fill(directory));
            host.names(&directory)
                .into_iter()
                .filter_map(|name| name.into_string().ok())
                .filter(|name| {
                    belongs(
                        host,
                        &directory.join(name),
                        node.matching.as_ref(),
                        instance,
                    )
                })
                .map(|name| path.replace("{entry}", &name).into())
                .collect()
        }
    };
    found
        .into_iter()
        .filter(|path| host.node(path).is_some())
        .collect()
}

/// The nodes of each instance, those of all of the family last.
fn found(host: &Host, family: &Family) -> Vec<(Option<String>, Vec<PathBuf>)> {
    let of = |instance: Option<&str>, is_of_instance| {
        let nodes = family.nodes.iter();
        nodes
            .filter(|node| node.is_of_instance() == is_of_instance)
            .flat_map(|node| paths(host, node, instance))
            .collect::<Vec<_>>()
    };
    let Some(described) = &family.instances else {
        let mut nodes = of(None, false);
        nodes.extend(of(None, true));
        return vec![(None, nodes)];
    };
    let mut found: Vec<(Option<String>, Vec<PathBuf>)> = instances(host, described)
        .into_iter()
        .map(|name| (Some(name.clone()), of(Some(&name), true)))
        .collect();
    if !found.is_empty() {
        found.push((None, of(None, false)));
    }
    found
}

/// What is granted of one family.
struct Granting<'a> {
    host: &'a Host,
    question: &'a Question<'a>,
    family: &'a Family,
}

impl Granting<'_> {
    fn grant(&self, grant: &mut Grant, hidden: &mut Hidden) -> Result<(), DeviceError> {
        let family = self.family;
        let found = found(self.host, family);
        let (choice, why, is_explicit) = self.choice(grant, &found)?;
        let names: Vec<&str> = found
            .iter()
            .filter_map(|(name, _)| name.as_deref())
            .collect();
        let mut has_any = false;
        for (instance, nodes) in &found {
            let title = title(family, instance.as_deref());
            let Some(name) = instance else {
                // What all instances share, or a family that is one thing.
                let is_wanted = match family.instances {
                    Some(_) => has_any,
                    None => choice == Choice::All,
                };
                if is_wanted {
                    self.nodes(&title, nodes, &why, is_explicit, grant)?;
                } else {
                    nodes
                        .iter()
                        .for_each(|node| grant.no(node.display().to_string(), &why));
                }
                continue;
            };
            let is_chosen = match &choice {
                Choice::All => true,
                Choice::Names(chosen) => {
                    let number = names.iter().position(|known| known == name);
                    chosen
                        .iter()
                        .any(|it| it == name || it.parse().ok() == number)
                }
                Choice::Nothing | Choice::DriverOnly => false,
            };
            if is_chosen && self.nodes(&title, nodes, &why, is_explicit, grant)? {
                has_any = true;
            } else {
                if !is_chosen {
                    grant.no(&title, &why);
                }
                hidden.add(self.host, &family.filter, name);
            }
        }
        self.libraries(grant);
        Ok(())
    }

    /// Which instances, who says so, and whether what cannot be had is an error.
    fn choice(
        &self,
        grant: &mut Grant,
        found: &[(Option<String>, Vec<PathBuf>)],
    ) -> Result<(Choice, String, bool), DeviceError> {
        let family = self.family;
        let mut named = None;
        for device in self.asked() {
            let text = device.to_string();
            let has = |name: &str| {
                found
                    .iter()
                    .any(|(known, _)| known.as_deref() == Some(name))
            };
            let choice = named.get_or_insert_with(|| (Vec::new(), format!("`--device {text}`")));
            match device.name.as_str() {
                "none" => {}
                "all" if found.iter().any(|(_, nodes)| !nodes.is_empty()) => {
                    choice.0.push("all".to_owned());
                }
                "libraries" if family.libraries.is_some() => {
                    choice.0.push("libraries".to_owned());
                }
                name if has(name) => choice.0.push(name.to_owned()),
                _ => {
                    return Err(DeviceError::NotFound {
                        what: "device",
                        name: text,
                        known: found.iter().filter_map(|(name, _)| name.clone()).collect(),
                    });
                }
            }
            grant.names.push(text);
        }
        let refused = family.grant == Policy::Never;
        match named {
            Some((names, why)) if refused && !names.is_empty() => Err(DeviceError::Denied {
                what: "device",
                name: format!("{VENDOR}/{}", family.name),
                why: format!("the administrator grants it to nobody ({why})"),
            }),
            Some((names, why)) => {
                let only_libraries = !names.is_empty() && names.iter().all(|it| it == "libraries");
                match only_libraries {
                    true => Ok(self.unnamed(refused)?),
                    false if names.iter().any(|it| it == "all") => Ok((Choice::All, why, true)),
                    false if names.is_empty() => Ok((Choice::Nothing, why, true)),
                    false => Ok((Choice::Names(names), why, true)),
                }
            }
            None => self.unnamed(refused),
        }
    }

    /// The same, where the command line names none: by the family's variable or by policy.
    fn unnamed(&self, refused: bool) -> Result<(Choice, String, bool), DeviceError> {
        let family = self.family;
        if refused {
            return Ok((Choice::Nothing, "granted to nobody".into(), false));
        }
        if let Some(name) = &family.variable
            && let Some(value) = self.question.variable(name)
        {
            let choice = Choice::parse(&value).map_err(|_| DeviceError::Option {
                option: name.clone(),
                value,
                expected: "expected `all`, `none`, `void`, or a list",
            })?;
            return Ok((choice, format!("`{name}`"), false));
        }
        Ok(match family.grant {
            Policy::Default => (Choice::All, "granted by default".into(), false),
            Policy::Asked | Policy::Never => {
                (Choice::Nothing, "granted when asked for".into(), false)
            }
        })
    }

    fn asked(&self) -> impl Iterator<Item = &QualifiedName> {
        let devices = self.question.request.devices.iter();
        devices.filter(|it| it.vendor == VENDOR && it.class == self.family.name)
    }

    /// Grants nodes as far as they may be opened. Whether any was.
    fn nodes(
        &self,
        title: &str,
        nodes: &[PathBuf],
        why: &str,
        is_explicit: bool,
        grant: &mut Grant,
    ) -> Result<bool, DeviceError> {
        let mut refused = None;
        let mut is_any = false;
        for node in nodes {
            match self.host.permission(node) {
                Permission::Granted => {
                    is_any = true;
                    grant.device(node, format!("{title}, {why}"));
                    continue;
                }
                Permission::NotOfThisJob => {
                    grant.no(
                        node.display().to_string(),
                        "the control group of the job does not have it",
                    );
                }
                Permission::Forbidden => {
                    grant.no(node.display().to_string(), "you may not open it");
                }
            }
            refused.get_or_insert(node);
        }
        match refused {
            Some(node) if is_explicit && !is_any => Err(DeviceError::Denied {
                what: "device",
                name: title.to_owned(),
                why: format!("you may not open `{}`", node.display()),
            }),
            _ => Ok(is_any),
        }
    }

    /// Libraries, for those who ask for them.
    fn libraries(&self, grant: &mut Grant) {
        let Some(libraries) = &self.family.libraries else {
            return;
        };
        if !self.asked().any(|device| device.name == "libraries") {
            return;
        }
        let why = format!("`--device {VENDOR}/{}=libraries`", self.family.name);
        let Libraries { names, paths } = libraries;
        for path in paths.iter().filter(|path| self.host.exists(path)) {
            grant.file(path, why.as_str());
        }
        super::libraries::grant(self.host, names, &why, grant);
    }
}

/// Entries of directories of `/sys` that a container is not to see.
#[derive(Default)]
struct Hidden(BTreeMap<PathBuf, BTreeSet<String>>);

impl Hidden {
    fn add(&mut self, host: &Host, filters: &[Filter], instance: &str) {
        for filter in filters {
            let directory = Path::new(&filter.directory);
            let names: Vec<String> = match &filter.matching {
                None => vec![instance.to_owned()],
                Some(_) => host
                    .names(directory)
                    .into_iter()
                    .filter_map(|name| name.into_string().ok())
                    .filter(|name| {
                        let entry = directory.join(name);
                        // Files that tell of the whole class have no owner.
                        host.file_type(&entry) == Some(rustix::fs::FileType::Directory)
                            && belongs(host, &entry, filter.matching.as_ref(), Some(instance))
                    })
                    .collect(),
            };
            let hidden = self.0.entry(directory.to_owned()).or_default();
            hidden.extend(names);
        }
    }

    /// The directories as the container is to see them.
    fn views(self, host: &Host) -> Vec<Directory> {
        let mut views = Vec::new();
        for (directory, hidden) in self.0 {
            if hidden.is_empty() || !host.exists(&directory) {
                continue;
            }
            let names = host.names(&directory).into_iter();
            let entries = names
                .filter(|name| name.to_str().is_none_or(|name| !hidden.contains(name)))
                .map(|name| {
                    let path = directory.join(&name);
                    // Links lead to where they led: the view stands in the place of the directory.
                    let entry = match host.link(&path) {
                        Ok(target) => Entry::Symlink(target),
                        Err(_) => Entry::Host(path),
                    };
                    (PathBuf::from(name), entry)
                })
                .collect();
            views.push(Directory {
                path: directory,
                entries,
            });
        }
        views
    }
}
