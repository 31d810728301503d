//! Versions of the CDI specification, and what each of them added.
//!
//! A document says which version it follows. One that uses what a later version added is refused, as is one of a version that we do not
//! know: what we do not understand could be what keeps a device from being misused. Patch releases do not change the specification.

use std::fmt;

use super::document::{Document, Edits, NodeEdit};

/// A minor release of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u64,
    minor: u64,
}

/// Those that were released.
const KNOWN: [Version; 10] = [
    Version::new(0, 1),
    Version::new(0, 2),
    Version::new(0, 3),
    Version::new(0, 4),
    Version::new(0, 5),
    Version::new(0, 6),
    Version::new(0, 7),
    Version::new(0, 8),
    Version::new(1, 0),
    Version::new(1, 1),
];

/// The first that has the fields that documents still have.
const FIRST: Version = Version::new(0, 3);

/// `type` of mounts.
const MOUNT_TYPE: Version = Version::new(0, 4);

/// `hostPath` of device nodes; names of devices that begin with a digit.
const HOST_PATH: Version = Version::new(0, 5);

/// Annotations; dots in classes.
const ANNOTATIONS: Version = Version::new(0, 6);

/// `intelRdt` and `additionalGids`.
const GROUPS: Version = Version::new(0, 7);

/// `netDevices`, `schemata` and `enableMonitoring`. `enableCMT` and `enableMBM` are gone.
const NET_DEVICES: Version = Version::new(1, 1);

impl Version {
    const fn new(major: u64, minor: u64) -> Self {
        Self { major, minor }
    }

    /// The latest one that is known.
    #[must_use]
    pub const fn latest() -> Self {
        KNOWN[KNOWN.len() - 1]
    }

    /// Reads a version such as `0.8.0`, perhaps with a `v` before it. None for one that is not known.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.strip_prefix('v').unwrap_or(text).split('.');
        let mut number = || {
            let digits = numbers.next()?;
            let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            let number: u64 = digits.parse().ok().filter(|_| is_plain)?;
            (number == 0 || !digits.starts_with('0')).then_some(number)
        };
        let version = Self::new(number()?, number()?);
        number()?;
        (numbers.next().is_none() && KNOWN.contains(&version)).then_some(version)
    }

    /// Whether documents of this version may have `enableCMT` and `enableMBM`.
    #[must_use]
    pub fn has_separate_monitoring(self) -> bool {
        self < NET_DEVICES
    }

    /// The first version that has all that a document uses, and what of it that is.
    #[must_use]
    pub fn needed_by(document: &Document) -> (Self, &'static str) {
        let mut needed = (FIRST, "its fields");
        let mut need = |version, what, is_used: bool| {
            if is_used && version > needed.0 {
                needed = (version, what);
            }
        };
        need(
            ANNOTATIONS,
            "`annotations`",
            !document.annotations.is_empty(),
        );
        need(
            ANNOTATIONS,
            "a dot in the class",
            document.kind.class.contains('.'),
        );
        for device in &document.devices {
            let begins_with_digit = device
                .name
                .starts_with(|first: char| first.is_ascii_digit());
            need(
                HOST_PATH,
                "a device name that begins with a digit",
                begins_with_digit,
            );
            need(ANNOTATIONS, "`annotations`", !device.annotations.is_empty());
        }
        for edits in document.all_edits() {
            let Edits {
                device_nodes,
                mounts,
                ..
            } = edits;
            let has_host_path = |node: &NodeEdit| !node.host_path.is_empty();
            need(
                MOUNT_TYPE,
                "`type` of a mount",
                mounts.iter().any(|mount| !mount.kind.is_empty()),
            );
            need(
                HOST_PATH,
                "`hostPath` of a device node",
                device_nodes.iter().any(has_host_path),
            );
            need(GROUPS, "`intelRdt`", edits.intel_rdt.is_some());
            need(
                GROUPS,
                "`additionalGids`",
                !edits.additional_gids.is_empty(),
            );
            need(NET_DEVICES, "`netDevices`", !edits.net_devices.is_empty());
            if let Some(rdt) = &edits.intel_rdt {
                need(
                    NET_DEVICES,
                    "`schemata` of `intelRdt`",
                    !rdt.schemata.is_empty(),
                );
                need(
                    NET_DEVICES,
                    "`enableMonitoring` of `intelRdt`",
                    rdt.enable_monitoring,
                );
            }
        }
        needed
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.0", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_are_known() {
        for (text, expected) in [
            ("0.3.0", Some("0.3.0")),
            ("v0.8.0", Some("0.8.0")),
            ("1.1.0", Some("1.1.0")),
            ("1.1.1", Some("1.1.0")),
            ("0.9.0", None),
            ("1.2.0", None),
            ("2.0.0", None),
            ("1.1", None),
            ("1.1.0.0", None),
            ("1.1.0-rc", None),
            ("+1.1.0", None),
            ("01.1.0", None),
            ("99999999999999999999.1.0", None),
            ("", None),
        ] {
            let found = Version::parse(text).map(|version| version.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
        assert_eq!(Version::latest().to_string(), "1.1.0");
    }
}
