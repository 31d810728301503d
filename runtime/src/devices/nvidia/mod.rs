//! NVIDIA: GPUs, parts of them (MIG), what connects them (NVSwitch, IMEX), and the driver's libraries and programs.
//!
//! A container gets, of what NVIDIA's container tools give one:
//!
//! | what | when |
//! |---|---|
//! | `/dev/nvidiaN`, and the nodes of `/dev/nvidia-caps` for parts | the GPU, or the part, is chosen |
//! | `/dev/nvidiactl` | always |
//! | `/dev/nvidia-uvm`, `-uvm-tools`; the directory of MPS; `/dev/gdrdrv` | capability `compute` |
//! | `/dev/nvidia-modeset`, `/dev/dri/…` of the chosen GPUs | `graphics` or `display` |
//! | the sockets of the persistence daemon and of the fabric manager | `utility` |
//! | libraries and programs | by capability; see [`libraries`] |
//! | firmware of the driver | where the host has it |
//! | `/dev/nvidia-caps` for configuring and watching MIG | `NVIDIA_MIG_CONFIG_DEVICES`, `NVIDIA_MIG_MONITOR_DEVICES` |
//! | IMEX channels; NVSwitches | `NVIDIA_IMEX_CHANNELS`; `NVIDIA_NVSWITCH=enabled` |
//! | a `/proc/driver/nvidia` with the chosen GPUs alone | always |
//!
//! The facts are those of libnvidia-container and of the NVIDIA container toolkit; none of their code is needed or used.

mod capabilities;
mod gpus;
mod libraries;
mod require;

use std::path::Path;

use capabilities::{Capabilities, Capability};
use gpus::{Gpu, PROC, Part};

use super::grant::{Directory, Entry, Grant, Mount, Translation};
use super::host::{Host, Permission};
use super::question::{Choice, Question, Selection, Source, Variables};
use super::{DeviceError, Vendor};

/// This vendor.
pub(super) struct Nvidia;

/// Its variables.
const VARIABLES: Variables = Variables {
    image: "NVIDIA_VISIBLE_DEVICES",
    library: &[CUDA_DEVICES],
};

/// The variable by which CUDA is told which of the GPUs that it sees it uses.
const CUDA_DEVICES: &str = "CUDA_VISIBLE_DEVICES";

/// Where the nodes of capabilities are.
const CAPS: &str = "/dev/nvidia-caps";

/// Where the nodes of IMEX channels are.
const CHANNELS: &str = "/dev/nvidia-caps-imex-channels";

/// The directory in which clients and servers of MPS meet, unless `CUDA_MPS_PIPE_DIRECTORY` says otherwise.
const MPS: &str = "/tmp/nvidia-mps";

/// Sockets of daemons.
const SOCKETS: [(&str, &str); 2] = [
    (
        "/run/nvidia-persistenced/socket",
        "the socket of the persistence daemon",
    ),
    (
        "/run/nvidia-fabricmanager/socket",
        "the socket of the fabric manager",
    ),
];

impl Vendor for Nvidia {
    fn name(&self) -> &'static str {
        "nvidia"
    }

    fn is_there(&self, host: &Host) -> bool {
        host.exists(format!("{PROC}/version"))
    }

    fn inventory(&self, host: &Host) -> Result<Vec<String>, DeviceError> {
        let version = gpus::driver_version(host).unwrap_or_else(|| "of an unknown version".into());
        let cuda =
            require::cuda(&version).map_or_else(String::new, |cuda| format!(", CUDA {cuda}"));
        let mut lines = vec![format!("driver {version}{cuda}")];
        for (index, gpu) in gpus::all(host).iter().enumerate() {
            let state = match (host.node(gpu.node()), permission(host, &gpu.node())) {
                (None, _) => "has no device file: run `nvidia-modprobe -c 0 -u`",
                (Some(_), Permission::Granted) => "may be used",
                (Some(_), Permission::NotOfThisJob) => "is not of this job",
                (Some(_), Permission::Forbidden) => "is not open to this user",
            };
            let uuid = if gpu.uuid.is_empty() {
                "no UUID yet"
            } else {
                &gpu.uuid
            };
            lines.push(format!(
                "GPU {index}: {}, {uuid}, {}, {} {state}",
                gpu.model,
                gpu.bus,
                gpu.node()
            ));
            for (number, part) in gpu.parts.iter().enumerate() {
                lines.push(format!(
                    "GPU {index}:{number}: MIG, GPU instance {}, compute instance {}",
                    part.gi, part.ci
                ));
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
        let selection = with_named(question, grant, question.selection(&VARIABLES)?);
        if selection.choice == Choice::Nothing {
            if host.exists(format!("{PROC}/version")) {
                grant.no("NVIDIA GPUs", selection.source.to_string());
            }
            return Ok(());
        }
        let Some(version) = gpus::driver_version(host) else {
            grant.no("NVIDIA GPUs", "the driver is not loaded here");
            return Ok(());
        };
        let gpus = gpus::all(host);
        let chosen = Chooser {
            host,
            gpus: &gpus,
            selection: &selection,
            has_neighbours: super::has_other_gpus(host, self.name()),
        }
        .choose(grant)?;
        let capabilities =
            Capabilities::parse(question.variable(capabilities::VARIABLE).as_deref())?;
        if let Some(unmet) = unmet(question, &version, &gpus, &chosen)? {
            return Err(unmet);
        }
        for device in question
            .request
            .devices
            .iter()
            .filter(|it| it.vendor == "nvidia.com")
        {
            grant.names.push(device.to_string());
        }
        grant.gpus += chosen.len();
        devices(host, question, &gpus, &chosen, &capabilities, grant);
        libraries::grant(host, &version, &capabilities, grant);
        sockets_and_firmware(host, question, &version, &capabilities, grant);
        view_of_proc(host, question, &gpus, &chosen, grant);
        if capabilities.has(Capability::Compute) {
            // Other GPUs than those of data centers do not take them.
            let is_possible = chosen
                .iter()
                .all(|it| gpus[it.index].brands().contains(&"tesla"));
            if is_possible {
                grant.edits.cuda_compat = Some(version);
            }
        }
        renumber(host, question, &selection, &gpus, &chosen, grant);
        Ok(())
    }
}

/// Adds `--device nvidia.com/gpu=…` to a selection, where no specification of CDI has answered it.
fn with_named(question: &Question<'_>, grant: &Grant, selection: Selection) -> Selection {
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
struct Chosen {
    /// Its index.
    index: usize,
    /// Indexes of its parts, where it has some.
    parts: Vec<usize>,
}

/// Finds out which GPUs are meant.
struct Chooser<'a> {
    host: &'a Host,
    gpus: &'a [Gpu],
    selection: &'a Selection,
    /// Whether a name may mean a GPU of another vendor.
    has_neighbours: bool,
}

impl Chooser<'_> {
    fn choose(&self, grant: &mut Grant) -> Result<Vec<Chosen>, DeviceError> {
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
        match permission(self.host, &node) {
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
            self.host.may_read(format!("{CAPS}/nvidia-cap{minor}")) == Permission::Granted
        })
    }

    fn resolve_all(
        &self,
        names: &[String],
        source: &Source,
    ) -> Result<Vec<(usize, Option<usize>)>, DeviceError> {
        let mut found = Vec::new();
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
                Source::Step(_) => by(&|gpu| gpu.minor as usize == at).map(|index| (index, None)),
                Source::Library(_) => {
                    let may = |(_, gpu): &(usize, &Gpu)| {
                        permission(self.host, &gpu.node()) == Permission::Granted
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
            .ok_or_else(|| DeviceError::NotFound {
                what: "GPU",
                name: name.to_owned(),
                known: self.known(),
            })
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

fn permission(host: &Host, node: &str) -> Permission {
    host.permission(node)
}

/// The first condition of the image that is not met.
fn unmet(
    question: &Question<'_>,
    version: &str,
    gpus: &[Gpu],
    chosen: &[Chosen],
) -> Result<Option<DeviceError>, DeviceError> {
    let is_off = |value: String| !matches!(value.as_str(), "" | "0" | "false");
    if question
        .variable("NVIDIA_DISABLE_REQUIRE")
        .is_some_and(is_off)
    {
        return Ok(None);
    }
    let brands: Vec<_> = chosen.iter().map(|it| gpus[it.index].brands()).collect();
    let facts = require::Facts {
        driver: version,
        brands: &brands,
    };
    for name in (question.prefixed)("NVIDIA_REQUIRE_") {
        let Some(value) = question.variable(&name) else {
            continue;
        };
        let is_met = require::is_met(&value, facts).map_err(|part| DeviceError::Option {
            option: name.clone(),
            value: part,
            expected: "expected conditions such as `cuda>=12.4`",
        })?;
        if !is_met {
            let cuda = require::cuda(version)
                .map_or_else(String::new, |cuda| format!(", which has CUDA {cuda}"));
            let first = value.split_ascii_whitespace().next().unwrap_or_default();
            return Ok(Some(DeviceError::Requirement {
                requirement: format!("`{first}` (`{name}`)"),
                found: format!("the driver is {version}{cuda}"),
            }));
        }
    }
    Ok(None)
}

/// The nodes.
fn devices(
    host: &Host,
    question: &Question<'_>,
    gpus: &[Gpu],
    chosen: &[Chosen],
    capabilities: &Capabilities,
    grant: &mut Grant,
) {
    let compute = capabilities.has(Capability::Compute);
    let shows = capabilities.has(Capability::Graphics) || capabilities.has(Capability::Display);
    for (path, is_wanted, why) in [
        (
            "/dev/nvidiactl",
            true,
            "every program asks the driver by it",
        ),
        ("/dev/nvidia-uvm", compute, "for `compute`"),
        ("/dev/nvidia-uvm-tools", compute, "for `compute`"),
        ("/dev/nvidia-modeset", shows, "for `graphics` and `display`"),
        ("/dev/gdrdrv", compute, "GDRCopy, for `compute`"),
    ] {
        match (is_wanted, host.node(path).is_some()) {
            (true, true) => grant.device(path, why),
            (false, true) => grant.no(path, format!("{why}, which is not asked for")),
            (true, false) if path == "/dev/nvidia-uvm" => {
                grant.no(
                    path,
                    "it is not there: `modprobe nvidia-uvm; nvidia-modprobe -c 0 -u` makes it",
                );
                grant.warnings.push(
                    "CUDA will not work: `/dev/nvidia-uvm` is not there (as root: `modprobe nvidia-uvm; nvidia-modprobe -c 0 -u`)".into(),
                );
            }
            _ => {}
        }
    }
    for it in chosen {
        let gpu = &gpus[it.index];
        grant.device(gpu.node(), format!("GPU {}", it.index));
        for number in &it.parts {
            let part = &gpu.parts[*number];
            for minor in [part.gi_minor, part.ci_minor] {
                grant.device(
                    format!("{CAPS}/nvidia-cap{minor}"),
                    format!("GPU {}:{number}", it.index),
                );
            }
        }
        if shows {
            for name in host.names(format!("/sys/bus/pci/devices/{}/drm", gpu.bus)) {
                let Some(name) = name.to_str() else { continue };
                let kind = name.trim_end_matches(|char: char| char.is_ascii_digit());
                let path = format!("/dev/dri/{name}");
                if matches!(kind, "card" | "renderD") && host.node(&path).is_some() {
                    grant.device(&path, format!("displays and rendering of GPU {}", it.index));
                    let short = if kind == "card" { "card" } else { "render" };
                    grant.edits.symlinks.push(super::grant::Symlink {
                        path: format!("/dev/dri/by-path/pci-{}-{short}", gpu.bus).into(),
                        target: format!("../{name}").into(),
                    });
                }
            }
        }
    }
    for (variable, name) in [
        ("NVIDIA_MIG_CONFIG_DEVICES", "config"),
        ("NVIDIA_MIG_MONITOR_DEVICES", "monitor"),
    ] {
        let path = format!("{PROC}/capabilities/mig/{name}");
        if question
            .variable(variable)
            .is_none_or(|value| matches!(value.as_str(), "" | "none" | "void"))
        {
            continue;
        }
        let node = gpus::capability(host, &path).map(|minor| format!("{CAPS}/nvidia-cap{minor}"));
        match node {
            Some(node) if host.may_read(&node) == Permission::Granted => {
                grant.device(&node, format!("`{variable}`"));
            }
            Some(node) => grant.no(
                node,
                format!("`{variable}` asks for it, and this user may not open it"),
            ),
            None => grant.no(
                path,
                format!("`{variable}` asks for it, and the driver does not have it"),
            ),
        }
    }
    imex(host, question, grant);
    let switches = host.numbered("/dev", "nvidia-nvswitch");
    let is_asked = question.variable("NVIDIA_NVSWITCH").as_deref() == Some("enabled");
    let control = ["nvidia-nvswitchctl".to_owned()];
    for name in control.iter().chain(switches.iter().map(|(_, name)| name)) {
        let path = format!("/dev/{name}");
        match (host.node(&path).is_some(), is_asked) {
            (true, true) => grant.device(&path, "`NVIDIA_NVSWITCH`"),
            (true, false) => grant.no(
                path,
                "only the fabric manager needs it; `NVIDIA_NVSWITCH=enabled` asks for it",
            ),
            (false, _) => {}
        }
    }
}

/// The channels by which programs of several machines share the memory of GPUs.
fn imex(host: &Host, question: &Question<'_>, grant: &mut Grant) {
    let channels = host.numbered(CHANNELS, "channel");
    let asked = question
        .variable("NVIDIA_IMEX_CHANNELS")
        .unwrap_or_default();
    let is_asked = |number: u32| {
        asked == "all"
            || asked
                .split(',')
                .any(|word| word.trim().parse() == Ok(number))
    };
    for (number, name) in &channels {
        let path = format!("{CHANNELS}/{name}");
        if !is_asked(*number) {
            grant.no(path, "`NVIDIA_IMEX_CHANNELS` does not ask for it");
        } else if permission(host, &path) == Permission::Granted {
            grant.device(&path, "`NVIDIA_IMEX_CHANNELS`");
        } else {
            grant.no(path, "this job may not open it");
        }
    }
    for word in asked
        .split(',')
        .filter_map(|word| word.trim().parse::<u32>().ok())
    {
        if !channels.iter().any(|(number, _)| *number == word) {
            grant.no(
                format!("{CHANNELS}/channel{word}"),
                "`NVIDIA_IMEX_CHANNELS` asks for it, and it is not there",
            );
        }
    }
}

fn sockets_and_firmware(
    host: &Host,
    question: &Question<'_>,
    version: &str,
    capabilities: &Capabilities,
    grant: &mut Grant,
) {
    let meeting_point = |path: &Path| Mount {
        path: path.to_owned(),
        host_path: path.to_owned(),
        kind: None,
        options: ["nosuid", "nodev", "noexec", "bind"]
            .map(str::to_owned)
            .into(),
    };
    if capabilities.has(Capability::Utility) {
        for (path, what) in SOCKETS {
            if host.exists(path) {
                grant.yes(path, what);
                // `/var/run` is memory of the container, wherever the image's link says that is.
                let target = Path::new("/var").join(path.trim_start_matches('/'));
                grant.edits.mounts.push(Mount {
                    path: target,
                    ..meeting_point(Path::new(path))
                });
            }
        }
    }
    if capabilities.has(Capability::Compute) {
        let asked = question.caller("CUDA_MPS_PIPE_DIRECTORY");
        let directory = asked.as_deref().unwrap_or(MPS);
        if Path::new(directory).is_absolute()
            && host.file_type(directory) == Some(rustix::fs::FileType::Directory)
        {
            grant.yes(directory, "programs meet the servers of MPS there");
            grant.edits.mounts.push(meeting_point(Path::new(directory)));
            if asked.is_some() {
                let variable = ("CUDA_MPS_PIPE_DIRECTORY".into(), directory.into());
                grant.edits.environment.push(variable);
            }
        }
    }
    let firmware = format!("/lib/firmware/nvidia/{version}");
    if host.file_type(&firmware) == Some(rustix::fs::FileType::Directory) {
        grant.file(firmware, "firmware of the driver");
    }
}

/// A `/proc/driver/nvidia` that has the granted GPUs alone. The driver's `params` tell its libraries not to make device files.
fn view_of_proc(
    host: &Host,
    question: &Question<'_>,
    gpus: &[Gpu],
    chosen: &[Chosen],
    grant: &mut Grant,
) {
    let mut entries = Vec::new();
    let mut of_host = |path: String| {
        if host.exists(format!("{PROC}/{path}")) {
            entries.push((
                path.clone().into(),
                Entry::Host(format!("{PROC}/{path}").into()),
            ));
        }
    };
    of_host("version".into());
    of_host("registry".into());
    for it in chosen {
        let gpu = &gpus[it.index];
        of_host(format!("gpus/{}", gpu.bus));
        for number in &it.parts {
            let part = &gpu.parts[*number];
            let instance = format!("capabilities/gpu{}/mig/gi{}", gpu.minor, part.gi);
            of_host(format!("{instance}/access"));
            of_host(format!("{instance}/ci{}/access", part.ci));
        }
    }
    for (variable, name) in [
        ("NVIDIA_MIG_CONFIG_DEVICES", "config"),
        ("NVIDIA_MIG_MONITOR_DEVICES", "monitor"),
    ] {
        if question.variable(variable).is_some() {
            of_host(format!("capabilities/mig/{name}"));
        }
    }
    // A GPU instance may have several compute instances that are granted.
    entries.sort_by(|(one, _): &(std::path::PathBuf, Entry), (other, _)| one.cmp(other));
    entries.dedup_by(|(one, _), (other, _)| one == other);
    if let Some(params) = host.text(format!("{PROC}/params")) {
        let params = params.replace("ModifyDeviceFiles: 1", "ModifyDeviceFiles: 0");
        entries.push(("params".into(), Entry::File(params.into_bytes())));
    }
    entries.push(("gpus".into(), Entry::Directory));
    grant.edits.directories.push(Directory {
        path: PROC.into(),
        entries,
    });
}

/// Translates `CUDA_VISIBLE_DEVICES` of a job. Where Slurm does not restrict devices it has the host's numbers, and in the container the granted
/// GPUs are numbered from 0.
fn renumber(
    host: &Host,
    question: &Question<'_>,
    selection: &Selection,
    gpus: &[Gpu],
    chosen: &[Chosen],
    grant: &mut Grant,
) {
    let Some(value) = question.caller(CUDA_DEVICES).filter(|_| question.is_job()) else {
        return;
    };
    let by_step = |source: &Source| matches!(source, Source::Step(_));
    let is_by_step = by_step(&selection.source)
        || selection
            .limit
            .as_ref()
            .is_some_and(|(source, _)| by_step(source));
    // Where some are out of reach, the numbers count those within.
    let is_restricted = gpus
        .iter()
        .any(|gpu| permission(host, &gpu.node()) == Permission::NotOfThisJob);
    if !is_by_step || is_restricted {
        return;
    }
    let translated: Option<Vec<String>> = value
        .split(',')
        .map(|number| {
            let minor: u32 = number.trim().parse().ok()?;
            let inside = chosen.iter().position(|it| gpus[it.index].minor == minor)?;
            Some(inside.to_string())
        })
        .collect();
    if let Some(translated) = translated
        .map(|numbers| numbers.join(","))
        .filter(|it| *it != value)
    {
        grant.yes(CUDA_DEVICES, format!("`{translated}` in the container, where GPUs are numbered anew, is `{value}` of the job"));
        grant.translations.push(Translation {
            name: CUDA_DEVICES,
            from: value,
            to: translated,
        });
    }
}

#[cfg(test)]
mod tests;
