//! What is no device of a grant and no library: sockets of daemons, the directory of MPS, firmware, and what the driver tells in `/proc`.

use std::path::{Path, PathBuf};

use super::super::grant::{Directory, Entry, Grant, Mount};
use super::super::host::Host;
use super::super::question::Question;
use super::capabilities::{Capabilities, Capability};
use super::choose::Chosen;
use super::gpus::{Gpu, PROC};

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

/// Grants sockets, the directory of MPS, and firmware.
pub(super) fn sockets_and_firmware(
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
pub(super) fn view_of_proc(
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
    entries.sort_by(|(one, _): &(PathBuf, Entry), (other, _)| one.cmp(other));
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
