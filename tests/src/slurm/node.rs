//! A compute node: a set of namespaces on this machine, with a slurmd in them.
//!
//! The namespaces are a host's: its own processes, host name, System V objects, and cgroups; its own `/run` (spool, sockets, the
//! runtime directory of our plugin), `/dev` (with the nodes of GPUs that do not exist) and `/dev/shm`. The network is the machine's:
//! the registry of the tests has to be reached, and a slurmd has its own port.
//!
//! When process 1 of a process namespace dies the kernel kills all others in it (pid_namespaces(7)): slurmd, the slurmstepds, the
//! tasks, and what they left behind. That process is a shell that reaps orphans; its death signal makes it die with us.
//!
//! The cgroups are version 1, which Slurm 22.05 needs for process tracking without systemd. A hierarchy of version 1 can be mounted
//! for a controller that version 2 does not use at the moment, as freezer and devices are nowhere. Each node's cgroup namespace begins
//! at a directory of its own, so clusters on one machine are out of each other's way.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::case::chain;
use crate::error::{HarnessError, IoContext as _};
use crate::process;
use crate::program::Program;

use super::config::GPUS;
use super::daemon::{Daemon, WITH_US};

/// What a node is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As any.
    Plain,
    /// With GPUs in the eyes of Slurm: device nodes behind which there is nothing.
    Gpus,
    /// The same on a site that does not restrict devices: `ConstrainDevices=no`.
    OpenGpus,
    /// Where the program `cista` is not installed.
    WithoutProgram,
    /// Where nobody can create user namespaces: in a chroot(2), the kernel refuses (unshare(2), EPERM).
    WithoutUserNamespaces,
}

impl Kind {
    /// Whether Slurm sees GPUs there.
    #[must_use]
    pub fn has_gpus(self) -> bool {
        matches!(self, Self::Gpus | Self::OpenGpus)
    }

    /// The directory of its configuration, below that of the cluster.
    pub(super) fn configuration(self) -> &'static str {
        match self {
            Self::OpenGpus => "etc-open",
            _ => "etc",
        }
    }
}

/// A node's name and kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

const fn plan(name: &'static str, kind: Kind) -> Plan {
    Plan { name, kind }
}

/// The nodes of the cluster. The partition `main` has those on which containers run, `lacking` those where something is missing, `open` the one whose devices are open to all.
pub(super) const NODES: &[Plan] = &[
    plan("n1", Kind::Plain),
    plan("n2", Kind::Plain),
    plan("n3", Kind::Gpus),
    plan("n4", Kind::Gpus),
    plan("n5", Kind::WithoutUserNamespaces),
    plan("n6", Kind::WithoutProgram),
    plan("n7", Kind::OpenGpus),
];

/// How long a node may take to come up.
const LIMIT: Duration = Duration::from_secs(20);

/// Makes the namespaces a host, and stays as its process 1. Arguments: name, number of GPUs, whether `cista` is there, directory of the cluster, name of its cgroups.
const INIT: &str = r#"
set -eu
name=$1 gpus=$2 program=$3 root=$4 group=$5
hostname "$name"
# Cgroups: join this node's in each hierarchy. A temporary mount, as the machine may have none.
for controller in freezer devices; do
    mount -t cgroup -o "$controller" cgroup "$root/empty"
    mkdir -p "$root/empty/$group/$name"
    echo $$ >"$root/empty/$group/$name/cgroup.procs"
    umount "$root/empty"
done
# Files.
mount --bind "$root/etc/hosts" /etc/hosts
mount --bind "$root/etc/group" /etc/group
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/slurm/spool /run/slurm/tmp /run/lock /run/dev
chmod 1777 /run/slurm/tmp /run/lock
[ "$program" = yes ] || mount -t tmpfs tmpfs "$root/bin"
# Devices.
mount -t tmpfs -o mode=755,nosuid tmpfs /run/dev
for device in null zero full random urandom tty ptmx fuse loop-control; do
    if [ -e "/dev/$device" ]; then cp -a "/dev/$device" /run/dev/; fi
done
# Those that the kernel makes when they are asked for appear in its own /dev alone.
number=0
while [ "$number" -lt 64 ]; do
    mknod -m 660 "/run/dev/loop$number" b 7 "$number"
    number=$((number + 1))
done
mkdir /run/dev/pts /run/dev/shm /run/dev/mqueue
mount --bind /dev/pts /run/dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /run/dev/shm
ln -s /proc/self/fd /run/dev/fd
ln -s fd/0 /run/dev/stdin
ln -s fd/1 /run/dev/stdout
ln -s fd/2 /run/dev/stderr
number=0
while [ "$number" -lt "$gpus" ]; do
    mknod -m 666 "/run/dev/nvidia$number" c 195 "$number"
    number=$((number + 1))
done
mount --move /run/dev /dev
rmdir /run/dev
exec unshare --cgroup sh -euc '
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
for controller in freezer devices; do
    mkdir "/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
done
# For the node whose slurmd is in a chroot.
mount --rbind / "$1/chroot"
echo up
exec </dev/null >/dev/null
# The shell reaps every child that it waits for, adopted ones too.
while :; do sleep 1000 & wait; done
' init "$root"
"#;

/// A compute node. Its namespaces and all that is in them end when this is dropped.
#[derive(Debug)]
pub struct Node {
    plan: Plan,
    root: PathBuf,
    /// The process 1 of its namespace, as we number processes.
    init: u32,
    slurmd: Mutex<Option<Daemon>>,
    /// Dropped last: it ends everything.
    _namespaces: Daemon,
}

impl Node {
    /// Makes a node, without a slurmd, for a cluster below `root` whose cgroups have the name `group`.
    pub(super) fn start(plan: Plan, root: &Path, group: &str) -> Result<Self, HarnessError> {
        let gpus = if plan.kind.has_gpus() { GPUS } else { 0 };
        let program = match plan.kind {
            Kind::WithoutProgram => "no",
            _ => "yes",
        };
        let log = root.join(format!("log/{}.init", plan.name));
        let program = Program::new(WITH_US[0])
            .args(&WITH_US[1..])
            .args(["unshare", "--fork", "--kill-child", "--pid", "--mount-proc"])
            .args(["--mount", "--uts", "--ipc", "sh", "-c", INIT, "init"])
            .args([plan.name, &gpus.to_string(), program])
            .arg(root)
            .arg(group)
            .current_dir("/")
            .stderr_file(File::create(&log).context("create", &log)?);
        let namespaces = Daemon::start(program, Some(("up", LIMIT))).map_err(|error| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            HarnessError::Malformed {
                what: format!("the start of the node {}", plan.name),
                why: format!("{}: {}", chain(&error), said.trim()),
            }
        })?;
        let init = process::children(namespaces.pid())
            .first()
            .copied()
            .ok_or_else(|| HarnessError::Malformed {
                what: format!("the node {}", plan.name),
                why: "it has no process 1".into(),
            })?;
        Ok(Self {
            plan,
            root: root.to_owned(),
            init,
            slurmd: Mutex::new(None),
            _namespaces: namespaces,
        })
    }

    /// Its name, which is its host name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.plan.name
    }

    /// What it is like.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.plan.kind
    }

    /// A program to run on it as root; arguments are to be added.
    #[must_use]
    pub fn program(&self, program: &str) -> Program {
        self.enter(Program::new("nsenter")).arg(program)
    }

    fn enter(&self, nsenter: Program) -> Program {
        nsenter
            .args(["--target", &self.init.to_string()])
            .args(["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--"])
            .current_dir("/")
    }

    /// A path of its file system, as we see it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Its mount points.
    pub fn mounts(&self) -> Result<Vec<String>, HarnessError> {
        let path = format!("/proc/{}/mounts", self.init);
        let table = std::fs::read_to_string(&path).context("read", &path)?;
        let mut mounts: Vec<String> = table
            .lines()
            .filter_map(|line| line.split(' ').nth(1).map(ToOwned::to_owned))
            .collect();
        mounts.sort();
        Ok(mounts)
    }

    /// The processes on it besides slurmd and process 1 with its `sleep`: pid, as we number processes, and command line.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        let namespace = process::pid_namespace(self.init);
        let slurmd = self.slurmd_pid();
        process::all()
            .into_iter()
            .filter(|pid| *pid != self.init && Some(*pid) != slurmd)
            .filter(|pid| namespace.is_some() && process::pid_namespace(*pid) == namespace)
            .map(|pid| (pid, process::command_line(pid)))
            .filter(|(_, line)| !line.starts_with("sleep 1000"))
            .collect()
    }

    /// The processes that are left of jobs that have ended, zombies among them. Waits a while for their end: a slurmstepd needs a moment
    /// longer than its job.
    pub fn leftovers(&self, limit: Duration) -> Vec<String> {
        let begin = Instant::now();
        loop {
            let processes = self.processes().into_iter();
            let found: Vec<String> = processes
                .map(|(pid, line)| format!("process {pid} `{line}` on {}", self.name()))
                .collect();

            if found.is_empty() || begin.elapsed() > limit {
                return found;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The directories of jobs in its cgroups.
    pub fn job_cgroups(&self) -> Result<Vec<String>, HarnessError> {
        let found = self
            .program("find")
            .args([
                "/sys/fs/cgroup",
                "-path",
                "*/uid_*/job_*",
                "-prune",
                "-print",
            ])
            .text()?;
        Ok(found.lines().map(ToOwned::to_owned).collect())
    }

    /// The pid of its slurmd, as we number processes; None when none runs.
    #[must_use]
    pub fn slurmd_pid(&self) -> Option<u32> {
        // Entering a process namespace takes a fork: slurmd is the child of nsenter.
        let slurmd = self.slurmd();
        process::children(slurmd.as_ref()?.pid()).first().copied()
    }

    fn slurmd(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.slurmd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts its slurmd.
    pub fn start_slurmd(&self) -> Result<(), HarnessError> {
        let log = self.root.join(format!("log/{}.slurmd", self.plan.name));
        let mut program = self
            .enter(Program::new(WITH_US[0]).args(&WITH_US[1..]).arg("nsenter"))
            .env(
                "SLURM_CONF",
                self.root
                    .join(self.plan.kind.configuration())
                    .join("slurm.conf"),
            )
            .stderr_file(File::create(&log).context("create", &log)?);
        if self.plan.kind == Kind::WithoutUserNamespaces {
            program = program.arg("chroot").arg(self.root.join("chroot"));
        }
        // In the foreground: so it is ours, and goes with us.
        let daemon = Daemon::start(program.args(["slurmd", "-D", "-N", self.plan.name]), None)?;
        let begin = Instant::now();
        let is_executed = || {
            let children = process::children(daemon.pid());
            children
                .first()
                .is_some_and(|pid| process::wait_until_it_executes(*pid, "slurmd", LIMIT))
        };
        // Before that nobody could stop it.
        while !is_executed() {
            if begin.elapsed() > LIMIT || !process::is_alive(daemon.pid()) {
                return Err(HarnessError::Malformed {
                    what: format!("the start of slurmd on {}", self.plan.name),
                    why: std::fs::read_to_string(&log).unwrap_or_default(),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        *self.slurmd() = Some(daemon);
        Ok(())
    }

    /// Ends its slurmd with a signal, and waits for that. The steps that run go on.
    pub fn stop_slurmd(&self, signal: Signal) -> Result<(), HarnessError> {
        let Some(pid) = self.slurmd_pid() else {
            return Ok(());
        };
        process::send(pid, signal)?;
        let begin = Instant::now();
        while process::is_alive(pid) {
            if begin.elapsed() > LIMIT {
                return Err(HarnessError::Malformed {
                    what: format!("slurmd of {}", self.plan.name),
                    why: format!("it still runs after a {signal:?}"),
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(self.slurmd().take());
        Ok(())
    }
}
