//! The device nodes of a grant.

use super::super::grant::{Grant, Symlink};
use super::super::host::{Host, Permission};
use super::super::question::Question;
use super::capabilities::{Capabilities, Capability};
use super::choose::Chosen;
use super::gpus::{self, Gpu, PROC};

/// Where the nodes of capabilities are.
pub(super) const CAPS: &str = "/dev/nvidia-caps";

/// Where the nodes of IMEX channels are.
const CHANNELS: &str = "/dev/nvidia-caps-imex-channels";

/// Grants the nodes.
pub(super) fn grant(
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
                    grant.edits.symlinks.push(Symlink {
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
        } else if host.permission(&path) == Permission::Granted {
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
