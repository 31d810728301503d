//! Names of capabilities, and the sets of a bundle.

use rustix::thread::CapabilitySet;

use super::config::Capabilities;
use crate::container::privileges::Limits;

/// `include/uapi/linux/capability.h`, by number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The sets of a bundle; none at all where it names none. Those that this kernel does not have are left out.
#[must_use]
pub fn limits(capabilities: Option<&Capabilities>) -> Limits {
    let Some(asked) = capabilities else {
        return Limits::NONE;
    };
    let known =
        rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted);
    let set = |listed: &Option<Vec<String>>| {
        listed
            .iter()
            .flatten()
            .filter_map(|name| number(name))
            .fold(CapabilitySet::empty(), |set, number| {
                set | CapabilitySet::from_bits_retain(1 << number)
            })
            & known
    };
    let permitted = set(&asked.permitted);
    let inheritable = set(&asked.inheritable);
    Limits {
        bounding: set(&asked.bounding),
        effective: set(&asked.effective) & permitted,
        permitted,
        inheritable,
        // The kernel takes only what is in both.
        ambient: set(&asked.ambient) & permitted & inheritable,
    }
}

fn number(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (name, bit) in [
            ("CAP_CHOWN", CapabilitySet::CHOWN),
            ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
            ("CAP_AUDIT_WRITE", CapabilitySet::AUDIT_WRITE),
            ("CAP_CHECKPOINT_RESTORE", CapabilitySet::CHECKPOINT_RESTORE),
        ] {
            assert_eq!(number(name).map(|number| 1 << number), Some(bit.bits()));
        }
        assert_eq!(number("CAP_NONE"), None);
    }
}
