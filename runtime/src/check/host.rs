//! What is looked up: the kernel's version, directories, control groups, devices, Slurm.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::config::{Config, host_variable};

/// The oldest kernel that a start works on: `mount_setattr(2)`.
const OLDEST: (u32, u32) = (5, 12);

pub(super) fn kernel() -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    match version(&release) {
        Some(found) if found < OLDEST => Finding::missing(
            "kernel",
            format!("Linux {release} is too old"),
            format!("update it to {}.{} or later", OLDEST.0, OLDEST.1),
        ),
        _ => Finding::ok("kernel", format!("Linux {release}")),
    }
}

/// The first two numbers of a release such as `6.1.0-13-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|char: char| !char.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The directories that commands write to.
pub(super) fn directories(config: &Config) -> Vec<Finding> {
    [
        ("image cache", &config.cache_path, "CISTA_CACHE_PATH"),
        (
            "run-time directory",
            &config.runtime_path,
            "CISTA_RUNTIME_PATH",
        ),
    ]
    .into_iter()
    .map(|(name, path, variable)| {
        let existing = path
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or(Path::new("/"));
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        match rustix::fs::access(existing, access) {
            Ok(()) if existing.is_dir() => {
                Finding::ok(name, format!("`{}` can be used", path.display()))
            }
            Ok(()) => Finding::degraded(
                name,
                format!("`{}` is no directory", existing.display()),
                format!("set `{variable}` to a directory of your own"),
            ),
            Err(error) => Finding::degraded(
                name,
                format!("`{}` cannot be written to: {error}", existing.display()),
                format!("set `{variable}` to a directory of your own"),
            ),
        }
    })
    .collect()
}

pub(super) fn kernel_squashfs() -> Finding {
    const NAME: &str = "kernel squashfs";
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim_start() == "squashfs") {
        Finding::ok(NAME, "there is one, for sites that mount images as root")
    } else {
        Finding::degraded(
            NAME,
            "there is none; only sites that mount images as root want it",
            "modprobe squashfs",
        )
    }
}

pub(super) fn control_groups() -> Finding {
    const NAME: &str = "control groups";
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_mounted = |kind: &str| {
        mounts.lines().any(|line| {
            line.split_once(" - ")
                .is_some_and(|(_, rest)| rest.split(' ').next() == Some(kind))
        })
    };
    match (is_mounted("cgroup"), is_mounted("cgroup2")) {
        (false, true) => Finding::ok(NAME, "version 2"),
        (true, false) => Finding::ok(NAME, "version 1"),
        (true, true) => Finding::ok(NAME, "version 1, with version 2 beside it"),
        (false, false) => Finding::degraded(
            NAME,
            "none are mounted: containers do not see their limits",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ),
    }
}

/// Names in a directory that begin with something and end with a number.
fn numbered(directory: &str, prefix: &str) -> usize {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_prefix(prefix))
                .is_some_and(|rest| {
                    !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit())
                })
        })
        .count()
}

/// Display controllers on the PCI bus of a vendor; class 0x03 of the PCI code assignment.
fn display_controllers(vendor: &str) -> usize {
    fs::read_dir("/sys/bus/pci/devices")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|device| {
            let is = |name: &str, prefix: &str| {
                fs::read_to_string(device.path().join(name))
                    .is_ok_and(|text| text.trim().starts_with(prefix))
            };
            is("vendor", vendor) && is("class", "0x03")
        })
        .count()
}

pub(super) fn gpus() -> Vec<Finding> {
    vec![nvidia(), amd(), intel()]
}

fn nvidia() -> Finding {
    const NAME: &str = "NVIDIA GPUs";
    let nodes = numbered("/dev", "nvidia");
    let cards = display_controllers("0x10de").max(numbered_entries("/proc/driver/nvidia/gpus"));
    let exists = |path: &str| Path::new(path).exists();
    if nodes == 0 && cards == 0 {
        return Finding::ok(NAME, "none");
    }
    let driver = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    if driver.is_empty() {
        return Finding::degraded(
            NAME,
            format!("{cards} without their driver"),
            "modprobe nvidia nvidia_uvm",
        );
    }
    if nodes == 0 || !exists("/dev/nvidiactl") || !exists("/dev/nvidia-uvm") {
        return Finding::degraded(
            NAME,
            format!(
                "{nodes} of {cards} have their device files, or those of the driver are missing"
            ),
            "nvidia-modprobe -c 0 -u",
        );
    }
    let version = driver
        .split_ascii_whitespace()
        .find(|word| word.starts_with(|char: char| char.is_ascii_digit()) && word.contains('.'))
        .unwrap_or("of an unknown version");
    Finding::ok(NAME, format!("{nodes}, driver {version}"))
}

fn numbered_entries(directory: &str) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

fn amd() -> Finding {
    const NAME: &str = "AMD GPUs";
    let cards = display_controllers("0x1002");
    if cards == 0 {
        Finding::ok(NAME, "none")
    } else if Path::new("/dev/kfd").exists() {
        Finding::ok(NAME, format!("{cards}, with `/dev/kfd`"))
    } else {
        Finding::degraded(
            NAME,
            format!("{cards} without `/dev/kfd`"),
            "modprobe amdgpu",
        )
    }
}

fn intel() -> Finding {
    const NAME: &str = "Intel GPUs";
    let cards = display_controllers("0x8086");
    let nodes = numbered("/dev/dri", "renderD");
    if cards == 0 {
        Finding::ok(NAME, "none")
    } else if nodes > 0 {
        Finding::ok(NAME, format!("{cards}, with `/dev/dri`"))
    } else {
        Finding::degraded(
            NAME,
            format!("{cards} without `/dev/dri`"),
            "modprobe xe || modprobe i915",
        )
    }
}

pub(super) fn fabric() -> Finding {
    const NAME: &str = "fabric";
    let adapters = numbered_entries("/sys/class/infiniband");
    let verbs = numbered("/dev/infiniband", "uverbs");
    let others: usize = [("/dev", "cxi"), ("/dev", "hfi1_")]
        .map(|(directory, prefix)| numbered(directory, prefix))
        .iter()
        .sum();
    match (adapters, verbs, others) {
        (0, 0, 0) => Finding::ok(NAME, "none"),
        (adapters, 0, 0) => Finding::degraded(
            NAME,
            format!("{adapters} InfiniBand or RoCE adapters without `/dev/infiniband/uverbs…`"),
            "modprobe ib_uverbs rdma_ucm",
        ),
        _ => Finding::ok(NAME, format!("{} devices", verbs + others)),
    }
}

/// The places of Slurm's configuration.
const SLURM: [&str; 3] = ["/etc/slurm", "/etc/slurm-llnl", "/usr/local/etc/slurm"];

pub(super) fn slurm() -> Finding {
    const NAME: &str = "Slurm";
    let path = host_variable(OsStr::new("PATH")).unwrap_or_default();
    let program = std::env::split_paths(&path)
        .map(|directory| directory.join("srun"))
        .find(|program| program.is_file());
    let Some(program) = program else {
        return Finding::ok(NAME, "not here");
    };
    let configured = host_variable(OsStr::new("SLURM_CONF"))
        .and_then(|file| Path::new(&file).parent().map(Path::to_owned));
    let directories = configured.into_iter().chain(SLURM.map(PathBuf::from));
    let mut texts = directories.flat_map(|directory| {
        let plugins = directory.join("plugstack.conf.d");
        let files = fs::read_dir(plugins).into_iter().flatten().flatten();
        let files = files.map(|entry| entry.path());
        std::iter::once(directory.join("plugstack.conf"))
            .chain(files)
            .filter_map(|file| fs::read_to_string(file).ok())
            .collect::<Vec<_>>()
    });
    let loads = |text: &String| {
        text.lines()
            .map(str::trim_start)
            .any(|line| !line.starts_with('#') && line.contains("spank_cista.so"))
    };
    if texts.any(|text| loads(&text)) {
        Finding::ok(NAME, format!("`{}`, with our plugin", program.display()))
    } else {
        Finding::degraded(
            NAME,
            format!("`{}` does not know our plugin", program.display()),
            "echo 'required spank_cista.so' >>/etc/slurm/plugstack.conf",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels() {
        for (release, expected) in [
            ("6.1.0-13-amd64", Some((6, 1))),
            ("5.12", Some((5, 12))),
            ("5.4.0", Some((5, 4))),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
        assert!(version("5.4.0") < Some(OLDEST) && version("5.14.0") > Some(OLDEST));
    }
}
