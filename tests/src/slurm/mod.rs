//! A real Slurm cluster on this machine: munge, a controller, and a few nodes, all of Debian's packages.
//!
//! - [`node`]: a compute node in namespaces of its own
//! - [`login`]: what a user does on it
//! - `config`: its configuration files; `daemon`: programs that die with us
//!
//! It takes root and a kernel that has the freezer and devices controllers of cgroups version 1, and nothing of systemd. It is started
//! once for all tests, in less than two seconds, and is of no use to anybody else: its munge has a key of its own. Tests use it side
//! by side; one that changes its configuration, or that looks for what is left behind, has it alone.

mod config;
mod daemon;
pub mod login;
pub mod node;

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::time::{Duration, Instant};

use crate::environment::set_mode;
use crate::error::{HarnessError, IoContext as _};
use crate::packages::find_program;
use crate::process;
use crate::program::Program;
use crate::user::{UNPRIVILEGED, we_are_root};

pub use config::GPUS;
use daemon::{Daemon, WITH_US};
use node::{Kind, NODES, Node};

/// How long the cluster may take until all its nodes are idle.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Groups that the ordinary user is in on the cluster, besides its own: name and id.
pub const GROUPS: [(&str, u32); 2] = [("cista-lab", 61_001), ("cista-grid", 61_002)];

/// Beginning of the names of our cgroups; the pid of the process whose they are follows.
const GROUP_PREFIX: &str = "cista-test-";

/// A cluster that runs until this is dropped.
#[derive(Debug)]
pub struct Cluster {
    root: PathBuf,
    /// Dropped before the daemons that they talk to.
    nodes: Vec<Node>,
    _controller: Daemon,
    _munge: Daemon,
    group: String,
    /// Read by tests that run side by side, written by those that have the cluster alone.
    using: RwLock<()>,
}

/// Why a cluster cannot run here; None when it can. Whether it does is for its start to find out.
#[must_use]
pub fn unmet() -> Option<String> {
    if !we_are_root() {
        return Some("not root, so no Slurm cluster".into());
    }
    let programs = ["munged", "slurmctld", "slurmd", "srun"];
    if let Some(name) = programs
        .into_iter()
        .find(|name| find_program(name).is_none())
    {
        return Some(format!("`{name}` is not installed"));
    }
    let known = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    ["freezer", "devices"].into_iter().find_map(|controller| {
        let has = known
            .lines()
            .any(|line| line.split('\t').next() == Some(controller) && line.ends_with('1'));
        (!has).then(|| format!("the kernel has no cgroup controller `{controller}` of version 1"))
    })
}

impl Cluster {
    /// Starts a cluster with a `cista` and a plugin, below a directory that does not exist yet, and waits until its nodes are idle.
    pub fn start(root: &Path, program: &Path, plugin: &Path) -> Result<Self, HarnessError> {
        remove_abandoned_cgroups()?;
        let group = format!("{GROUP_PREFIX}{}", std::process::id());
        // The ports are free when we look and may be taken when a daemon comes; another try finds others.
        let mut error = None;
        for attempt in 0..3 {
            let root = root.join(attempt.to_string());
            match Self::start_once(&root, &group, program, plugin) {
                Ok(cluster) => return Ok(cluster),
                Err(failure) => error = Some(failure),
            }
        }
        Err(error.unwrap_or_else(|| HarnessError::Malformed {
            what: "the start of the cluster".into(),
            why: "nothing was tried".into(),
        }))
    }

    fn start_once(
        root: &Path,
        group: &str,
        program: &Path,
        plugin: &Path,
    ) -> Result<Self, HarnessError> {
        for below in [
            "etc", "etc-open", "munge", "log", "state", "empty", "chroot", "bin", "lib",
        ] {
            let path = root.join(below);
            std::fs::create_dir_all(&path).context("create", &path)?;
        }
        set_mode(root, 0o755)?;
        // A program of its own, so that what runs on the cluster is told from what other tests run.
        for (from, to) in [(program, "bin/cista"), (plugin, "lib/spank_cista.so")] {
            let to = root.join(to);
            std::fs::copy(from, &to).context("copy", from)?;
            set_mode(&to, 0o755)?;
        }
        configure(root)?;
        let munge = start_munge(root)?;
        let controller = start_controller(root)?;
        // A node takes a tenth of a second, most of it waiting for processes to start.
        let nodes = std::thread::scope(|scope| {
            let starting: Vec<_> = NODES
                .iter()
                .map(|plan| scope.spawn(|| Node::start(*plan, root, group)))
                .collect();
            starting
                .into_iter()
                .map(|thread| match thread.join() {
                    Ok(node) => node,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect::<Result<Vec<_>, _>>()
        })?;
        let cluster = Self {
            root: root.to_owned(),
            nodes,
            _controller: controller,
            _munge: munge,
            group: group.to_owned(),
            using: RwLock::new(()),
        };
        for node in &cluster.nodes {
            node.start_slurmd()?;
        }
        cluster.wait_until_idle(START_LIMIT)?;
        Ok(cluster)
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<&Node, HarnessError> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .ok_or_else(|| HarnessError::Missing {
                what: format!("the node `{name}`"),
                hint: "see NODES in tests/src/slurm/node.rs".into(),
            })
    }

    /// A command of Slurm, as root.
    #[must_use]
    pub fn command(&self, program: &str) -> Program {
        Program::new(program)
            .env("SLURM_CONF", self.conf())
            .timeout(Duration::from_secs(60))
    }

    /// Its directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its `slurm.conf`.
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.root.join("etc/slurm.conf")
    }

    /// Its `cista` program.
    #[must_use]
    pub fn program_path(&self) -> PathBuf {
        self.root.join("bin/cista")
    }

    /// Its plugin.
    #[must_use]
    pub fn plugin_path(&self) -> PathBuf {
        self.root.join("lib/spank_cista.so")
    }

    /// Writes the line of plugstack.conf, with further arguments. Steps that begin from now on go by it.
    pub fn set_plugin_arguments<A: AsRef<str>>(&self, arguments: &[A]) -> Result<(), HarnessError> {
        let path = self.root.join("etc/plugstack.conf");
        let new = self.root.join("etc/plugstack.conf.new");
        std::fs::write(&new, config::plugstack(&self.root, arguments)).context("write", &new)?;
        std::fs::rename(&new, &path).context("rename to", &path)
    }

    /// A file of its logs: `slurmctld`, or a node's name.
    pub fn log(&self, name: &str) -> Result<String, HarnessError> {
        let path = self.root.join("log").join(name);
        let bytes = std::fs::read(&path).context("read", &path)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Name and state of each node, as the controller sees them: `n1 idle`.
    pub fn states(&self) -> Result<Vec<String>, HarnessError> {
        let text = self
            .command("sinfo")
            .args(["--noheader", "--Node", "--format=%n %t"])
            .text()?;
        let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        Ok(lines)
    }

    /// Waits until every node is idle: up, not drained, without a job.
    pub fn wait_until_idle(&self, limit: Duration) -> Result<(), HarnessError> {
        let begin = Instant::now();
        loop {
            // The controller may not answer yet.
            let states = self.states().unwrap_or_default();
            if states.len() == NODES.len() && states.iter().all(|line| line.ends_with(" idle")) {
                return Ok(());
            }
            if begin.elapsed() > limit {
                let logs: Vec<String> = ["slurmctld", "n1"]
                    .iter()
                    .map(|name| {
                        let log = self.log(name).unwrap_or_default();
                        log[log.len().saturating_sub(1500)..].to_owned()
                    })
                    .collect();
                return Err(HarnessError::Malformed {
                    what: "the cluster".into(),
                    why: format!("not all nodes are idle: {states:?}; {}", logs.join("\n")),
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The processes first: a cgroup with a process cannot be removed.
        self.nodes.clear();
        // What stays is removed when the next cluster starts.
        let _ = remove_cgroups(&self.group);
    }
}

/// Writes the configuration files.
fn configure(root: &Path) -> Result<(), HarnessError> {
    let etc = root.join("etc");
    let write = |name: &str, text: &str| {
        let path = etc.join(name);
        std::fs::write(&path, text).context("write", &path)
    };
    write(
        "slurm.conf",
        &config::slurm(root, &free_ports(1 + NODES.len())?),
    )?;
    write("cgroup.conf", config::CGROUP)?;
    write("gres.conf", &config::gres())?;
    // Nodes of another kind have another cgroup.conf beside the same files.
    let open = root.join(Kind::OpenGpus.configuration());
    for name in ["slurm.conf", "gres.conf"] {
        let link = open.join(name);
        std::os::unix::fs::symlink(etc.join(name), &link).context("link", &link)?;
    }
    let path = open.join("cgroup.conf");
    std::fs::write(&path, config::OPEN_CGROUP).context("write", &path)?;
    write("plugstack.conf", &config::plugstack::<&str>(root, &[]))?;
    write("hosts", &config::hosts())?;
    let mut groups = std::fs::read_to_string("/etc/group").context("read", "/etc/group")?;
    for (name, id) in GROUPS {
        groups.push_str(&format!("{name}:x:{id}:{UNPRIVILEGED}\n"));
    }
    write("group", &groups)
}

fn start_munge(root: &Path) -> Result<Daemon, HarnessError> {
    let directory = root.join("munge");
    let (key, socket) = (directory.join("key"), directory.join("socket"));
    let mut bytes = [0; 128];
    let random = File::open("/dev/urandom").context("open", "/dev/urandom")?;
    std::io::Read::read_exact(&mut &random, &mut bytes).context("read", "/dev/urandom")?;
    std::fs::write(&key, bytes).context("write", &key)?;
    set_mode(&key, 0o600)?;
    let log = root.join("log/munged.out");
    let program = Program::new(WITH_US[0])
        .args(&WITH_US[1..])
        // Our directories may be below one that all can write to, as /var/tmp is.
        .args(["munged", "--foreground", "--force"])
        .args(
            [
                ("key-file", &key),
                ("socket", &socket),
                ("pid-file", &directory.join("pid")),
                ("log-file", &directory.join("log")),
                ("seed-file", &directory.join("seed")),
            ]
            .map(|(option, path)| format!("--{option}={}", path.display())),
        )
        .stderr_file(File::create(&log).context("create", &log)?);
    let daemon = Daemon::start(program, None)?;
    let begin = Instant::now();
    while !socket.exists() {
        if begin.elapsed() > START_LIMIT || !process::is_alive(daemon.pid()) {
            return Err(HarnessError::Malformed {
                what: "the start of munged".into(),
                why: std::fs::read_to_string(&log).unwrap_or_default(),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(daemon)
}

/// The controller has a host name of its own, and processes of its own that end with it.
fn start_controller(root: &Path) -> Result<Daemon, HarnessError> {
    const SETUP: &str = r#"
set -eu
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/group" /etc/group
exec slurmctld -D
"#;
    let log = root.join("log/slurmctld.out");
    let program = Program::new(WITH_US[0])
        .args(&WITH_US[1..])
        .args(["unshare", "--fork", "--kill-child", "--pid", "--mount-proc"])
        .args(["--mount", "--uts", "sh", "-c", SETUP, "setup"])
        .arg(config::CONTROLLER)
        .arg(root.join("etc"))
        .current_dir("/")
        .env("SLURM_CONF", root.join("etc/slurm.conf"))
        .stderr_file(File::create(&log).context("create", &log)?);
    Daemon::start(program, None)
}

/// Ports of loopback that are free now.
fn free_ports(count: usize) -> Result<Vec<u16>, HarnessError> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<Vec<_>, _>>()
        .context("bind a port of", "127.0.0.1")?;
    listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.port()))
        .collect::<Result<Vec<_>, _>>()
        .context("ask for the port of", "127.0.0.1")
}

/// Removes the cgroups of one of our processes.
fn remove_cgroups(group: &str) -> Result<(), HarnessError> {
    // In a mount namespace of its own, as the machine may have no such mount. The kernel takes a moment to forget the processes.
    const REMOVE: &str = r#"
for controller in freezer devices; do
    mount -t cgroup -o "$controller" cgroup /mnt
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        [ -d "/mnt/$1" ] || break
        find "/mnt/$1" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
    done
    umount /mnt
done
"#;
    Program::new("unshare")
        .args(["--mount", "sh", "-c", REMOVE, "remove", group])
        .check()
        .map(drop)
}

/// Removes the cgroups of processes of ours that were killed.
fn remove_abandoned_cgroups() -> Result<(), HarnessError> {
    const LIST: &str = "mount -t cgroup -o freezer cgroup /mnt && ls /mnt";
    let names = Program::new("unshare")
        .args(["--mount", "sh", "-c", LIST])
        .text()?;
    for name in names.lines() {
        let owner = name
            .strip_prefix(GROUP_PREFIX)
            .and_then(|pid| pid.parse().ok());
        if owner.is_some_and(|pid| !process::is_alive(pid)) {
            remove_cgroups(name)?;
        }
    }
    Ok(())
}
