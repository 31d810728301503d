//! What enroot's standard hooks do, natively: the user's home, the variables that PyTorch wants under Slurm, PMI and PMIx.
//!
//! The others stand where their files are made: users and groups in [`accounts`](super::accounts) and [`plan`](super::plan), the
//! time zone, the control groups and `/dev` in [`usual`]. None of them writes to an image, and none is a program.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::MountAttrFlags;

use super::additions::Additions;
use super::environment::Environment;
use super::fstab::{CreateOption, Entry, Propagation, PropagationKind};
use super::start::Spec;
use super::usual;
use crate::config::{Config, host_variable, host_variables};

/// What is added to a container.
#[derive(Debug, Default)]
pub struct Standard {
    /// Mounts of the host.
    pub mounts: Vec<Entry>,
    /// Variables that win over the image's.
    pub variables: Vec<(OsString, OsString)>,
}

/// Variables of a process, by name.
type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Standard {
    /// What the settings and the environment ask for.
    #[must_use]
    pub fn load(config: &Config, spec: &Spec) -> Self {
        let mut standard = Self::default();
        let variable =
            |name: &str| host_variable(OsStr::new(name)).filter(|value| !value.is_empty());
        if config.mount_home
            && let Some(home) = variable("HOME").map(PathBuf::from)
        {
            standard.mount_home(home, spec.remap_root);
        }
        if wants_pmi(config, &spec.additions) {
            standard.pass_pmi_on(&variable);
        }
        standard
    }

    /// The user's home directory, which root inside has at its own place.
    fn mount_home(&mut self, home: PathBuf, remap_root: bool) {
        let target = if remap_root {
            PathBuf::from("/root")
        } else {
            self.variables.push(("HOME".into(), home.clone().into()));
            home.clone()
        };
        let entry = usual::entry(
            "",
            CreateOption::Directory,
            true,
            MountAttrFlags::MOUNT_ATTR_NOSUID,
        );
        self.mounts.push(Entry {
            source: home,
            target,
            pass: 0,
            place: Some("the home directory (`CISTA_MOUNT_HOME`)".into()),
            ..entry
        });
    }

    /// The step's variables, and the directories in which a PMIx server meets its clients.
    fn pass_pmi_on(&mut self, variable: Variables<'_>) {
        for prefix in ["SLURM_", "PMI_", "PMIX_"] {
            self.variables.extend(host_variables(prefix));
        }
        let with_pmix = self
            .variables
            .iter()
            .any(|(name, _)| name.as_bytes().starts_with(b"PMIX_"))
            && variable("SLURM_MPI_TYPE").is_none_or(|kind| kind.as_bytes().starts_with(b"pmix"));
        if !with_pmix {
            return;
        }
        // The client library of the image must choose the modules that the server has.
        for (name, module) in [
            ("PMIX_MCA_ptl", "PMIX_PTL_MODULE"),
            ("PMIX_MCA_psec", "PMIX_SECURITY_MODE"),
            ("PMIX_MCA_gds", "PMIX_GDS_MODULE"),
        ] {
            if let (None, Some(value)) = (variable(name), variable(module)) {
                self.variables.push((name.into(), value));
            }
        }
        let usual_place = ["TMPDIR", "TEMP", "TMP"]
            .into_iter()
            .find_map(variable)
            .unwrap_or_else(|| "/tmp".into());
        let place = |name| variable(name).unwrap_or_else(|| usual_place.clone());
        let text = |name| variable(name).unwrap_or_default();
        let step = [text("SLURM_JOB_ID"), text("SLURM_STEP_ID")].join(OsStr::new("."));
        let system = PathBuf::from(place("PMIX_SYSTEM_TMPDIR"));
        let below = |names: &[&OsStr]| system.join(names.join(OsStr::new("_")));
        let name = OsStr::new("spmix_appdir");
        let of_user = below(&[name, &text("SLURM_JOB_UID"), &step]);
        let application = if of_user.exists() {
            of_user
        } else {
            below(&[name, &step])
        };
        self.mount_in_place(application, true);
        self.mount_in_place(place("PMIX_SERVER_TMPDIR").into(), false);
    }

    fn mount_in_place(&mut self, path: PathBuf, optional: bool) {
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let entry = usual::entry("", CreateOption::Directory, false, flags);
        self.mounts.push(Entry {
            source: path.clone(),
            target: path,
            pass: 0,
            optional,
            propagation: Some(Propagation {
                kind: PropagationKind::Private,
                recursive: false,
            }),
            place: Some("a directory of PMIx (`CISTA_SLURM_PMI`)".into()),
            ..entry
        });
    }
}

/// The file by which a step's PMI talks to its program, where it is to be passed on. To be asked before this process opens files of its own,
/// which could have the number of one that is not there any more.
#[must_use]
pub fn pmi_file(config: &Config, additions: &Additions) -> Option<RawFd> {
    if !wants_pmi(config, additions) {
        return None;
    }
    let number = host_variable(OsStr::new("PMI_FD"))?;
    let file: RawFd = number.to_str()?.parse().ok().filter(|file| *file > 2)?;
    let is_open = Path::new("/proc/self/fd")
        .join(number)
        .symlink_metadata()
        .is_ok();
    is_open.then_some(file)
}

fn wants_pmi(config: &Config, additions: &Additions) -> bool {
    (config.slurm_pmi || additions.slurm_pmi)
        && ["SLURM_JOB_ID", "SLURM_STEP_ID"]
            .iter()
            .all(|name| host_variable(OsStr::new(name)).is_some())
}

/// Tells PyTorch of its place among the tasks of a step, where the image has PyTorch and nobody told it before. `torch.distributed` finds the other
/// tasks by these variables.
pub fn tell_pytorch(environment: &mut Environment) {
    let variable = |name: &str| host_variable(OsStr::new(name)).filter(|value| !value.is_empty());
    if environment.get("PYTORCH_VERSION").is_some() {
        for (name, value) in pytorch(&variable) {
            environment.set_default(name, value);
        }
    }
}

fn pytorch(variable: Variables<'_>) -> Vec<(&'static str, OsString)> {
    let number = |name| -> Option<u64> { variable(name)?.to_str()?.parse().ok() };
    let mut found = Vec::new();
    if let Some(first) = variable("SLURM_STEP_NODELIST").and_then(|list| first_host(list.to_str()?))
    {
        found.push(("MASTER_ADDR", first.into()));
    }
    if let Some(job) = number("SLURM_JOB_ID") {
        found.push(("MASTER_PORT", (job % 4536 + 61_000).to_string().into()));
    }
    for (name, of_slurm) in [
        ("WORLD_SIZE", "SLURM_NTASKS"),
        ("RANK", "SLURM_PROCID"),
        ("LOCAL_RANK", "SLURM_LOCALID"),
    ] {
        found.extend(variable(of_slurm).map(|value| (name, value)));
    }
    // As torch.distributed.run does: several tasks of a node would otherwise each take all its processors.
    let count = |name| number(name).unwrap_or(1);
    if count("SLURM_STEP_NUM_TASKS") > count("SLURM_STEP_NUM_NODES") {
        found.push(("OMP_NUM_THREADS", "1".into()));
    }
    found
}

/// The first host of a list of Slurm's, such as `rack[2-4]node[08-15],login`: `rack2node08`.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list;
    loop {
        let end = rest.find(['[', ',']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        match rest[end..].strip_prefix('[') {
            Some(ranges) => {
                let (ranges, after) = ranges.split_once(']')?;
                host.push_str(ranges.split(['-', ',']).next()?);
                rest = after;
            }
            None => break,
        }
    }
    (!host.is_empty() && !Path::new(&host).is_absolute()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_hosts() {
        for (list, expected) in [
            ("node1", Some("node1")),
            ("node1,node2", Some("node1")),
            ("node[01-04,07],x", Some("node01")),
            ("rack[2-4]node[08-15],login", Some("rack2node08")),
            ("a[3]-ib", Some("a3-ib")),
            ("a[3", None),
            ("", None),
        ] {
            assert_eq!(first_host(list).as_deref(), expected, "{list}");
        }
    }

    #[test]
    fn variables_of_pytorch() {
        let variable = |name: &str| {
            let value = match name {
                "SLURM_STEP_NODELIST" => "n[3-4]",
                "SLURM_JOB_ID" => "4537",
                "SLURM_NTASKS" | "SLURM_STEP_NUM_TASKS" => "8",
                "SLURM_PROCID" => "5",
                "SLURM_LOCALID" => "1",
                "SLURM_STEP_NUM_NODES" => "2",
                _ => return None,
            };
            Some(OsString::from(value))
        };
        let found = pytorch(&variable);
        let shown: Vec<String> = found
            .iter()
            .map(|(name, value)| format!("{name}={}", value.display()))
            .collect();
        assert_eq!(
            shown,
            [
                "MASTER_ADDR=n3",
                "MASTER_PORT=61001",
                "WORLD_SIZE=8",
                "RANK=5",
                "LOCAL_RANK=1",
                "OMP_NUM_THREADS=1"
            ]
        );
        assert!(pytorch(&|_| None).is_empty());
    }
}
