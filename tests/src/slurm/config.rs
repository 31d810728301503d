//! The files that configure the cluster: slurm.conf(5), cgroup.conf(5), gres.conf(5), plugstack.conf (spank(7)).

use std::fmt::Write as _;
use std::path::Path;

use super::node::{Kind, NODES};

/// Processors that a node claims to have: enough for many steps at once, whatever the machine has.
const PROCESSORS: usize = 64;

/// GPUs of a node that has some.
pub const GPUS: usize = 4;

/// Name of the controller's host.
pub(super) const CONTROLLER: &str = "head";

/// `slurm.conf`, for a cluster below a directory. The first port is the controller's, the others are those of the nodes.
pub(super) fn slurm(root: &Path, ports: &[u16]) -> String {
    let root = root.display();
    let mut text = format!(
        "ClusterName=cista
SlurmctldHost={CONTROLLER}(127.0.0.1)
SlurmctldPort={}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmctldLogFile={root}/log/slurmctld
SlurmdLogFile={root}/log/%n
SlurmdSpoolDir=/run/slurm/spool
SlurmdPidFile=/run/slurm/slurmd.pid
TmpFS=/run/slurm/tmp
PlugStackConfig={root}/etc/plugstack.conf
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
MailProg=/bin/true
KillWait=2
ReturnToService=2
",
        ports.first().copied().unwrap_or_default(),
    );
    for (node, port) in NODES.iter().zip(ports.iter().skip(1)) {
        let gres = match node.kind {
            kind if kind.has_gpus() => format!(" Gres=gpu:{GPUS}"),
            _ => String::new(),
        };
        let _ = writeln!(
            text,
            "NodeName={0} NodeHostname={0} NodeAddr=127.0.0.1 Port={port} CPUs={PROCESSORS}{gres} State=UNKNOWN",
            node.name
        );
    }
    for (partition, extra) in [("main", " Default=YES"), ("lacking", ""), ("open", "")] {
        let of = |kind: Kind| match kind {
            Kind::Plain | Kind::Gpus => "main",
            Kind::WithoutProgram | Kind::WithoutUserNamespaces => "lacking",
            Kind::OpenGpus => "open",
        };
        let names: Vec<&str> = NODES
            .iter()
            .filter(|node| of(node.kind) == partition)
            .map(|node| node.name)
            .collect();
        let _ = writeln!(
            text,
            "PartitionName={partition} Nodes={}{extra} MaxTime=INFINITE State=UP",
            names.join(",")
        );
    }
    text
}

/// `cgroup.conf`: a job sees the devices that it was granted, and no others of those that `gres.conf` names.
pub(super) const CGROUP: &str = "CgroupPlugin=cgroup/v1\nConstrainDevices=yes\n";

/// The same of a site that restricts no devices.
pub(super) const OPEN_CGROUP: &str = "CgroupPlugin=cgroup/v1\nConstrainDevices=no\n";

/// `plugstack.conf`, with further arguments for the plugin.
pub(super) fn plugstack<A: AsRef<str>>(root: &Path, arguments: &[A]) -> String {
    let root = root.display();
    let more: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    format!(
        "required {root}/lib/spank_cista.so program={root}/bin/cista {}\n",
        more.join(" ")
    )
}

/// `gres.conf`.
pub(super) fn gres() -> String {
    NODES
        .iter()
        .filter(|node| node.kind.has_gpus())
        .map(|node| {
            format!(
                "NodeName={} Name=gpu File=/dev/nvidia[0-{}]\n",
                node.name,
                GPUS - 1
            )
        })
        .collect()
}

/// `/etc/hosts` of the cluster's hosts: all are this machine.
pub(super) fn hosts() -> String {
    let machine = rustix::system::uname();
    let names: Vec<&str> = NODES.iter().map(|node| node.name).collect();
    format!(
        "127.0.0.1 localhost {CONTROLLER} {} {}\n",
        names.join(" "),
        machine.nodename().to_string_lossy()
    )
}
