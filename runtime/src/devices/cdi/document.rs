//! A document that describes devices: one file of `/etc/cdi` or `/var/run/cdi`, in JSON or YAML (CDI specification, "JSON Definition").
//!
//! Documents are written by an administrator or a driver, but by programs of many makers: everything is checked before anything of it is
//! used. A field that we do not know makes the whole document unusable, as the specification wants. `null` counts as left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::name::{self, Kind, NameError};
use super::version::Version;

/// Longest document that is read, in bytes. Those of machines with eight partitioned GPUs have some 200 KB.
pub const MAX_SIZE: u64 = 8 << 20;

/// Most bytes of all annotations together, as Kubernetes has it, where they come from.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// Longest `closID`: it becomes the name of a directory.
const MAX_CLOS: usize = 255;

/// Longest name of a network interface (`IFNAMSIZ` less the end).
const MAX_INTERFACE: usize = 15;

/// In what a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `*.json`
    Json,
    /// `*.yaml`
    Yaml,
}

/// A description of devices of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The version of the specification that it follows.
    pub version: Version,
    /// Kind of the devices.
    pub kind: Kind,
    /// What somebody wants to be known of them.
    pub annotations: BTreeMap<String, String>,
    /// The devices.
    pub devices: Vec<Device>,
    /// What every one of them needs.
    pub edits: Edits,
}

/// A device that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Its name within its kind.
    pub name: String,
    /// What somebody wants to be known of it.
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    /// What it needs.
    #[serde(rename = "containerEdits", default, deserialize_with = "or_default")]
    pub edits: Edits,
}

/// What a container gets with a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    /// Variables, as `NAME=VALUE`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Nodes in `/dev`.
    #[serde(deserialize_with = "or_default")]
    pub device_nodes: Vec<NodeEdit>,
    /// Network interfaces that move into the container.
    #[serde(deserialize_with = "or_default")]
    pub net_devices: Vec<NetDeviceEdit>,
    /// Mounts.
    #[serde(deserialize_with = "or_default")]
    pub mounts: Vec<MountEdit>,
    /// Programs to run.
    #[serde(deserialize_with = "or_default")]
    pub hooks: Vec<HookEdit>,
    /// Groups for the program; 0 means none.
    #[serde(deserialize_with = "or_default")]
    pub additional_gids: Vec<u32>,
    /// Shares of caches and of the memory's bandwidth.
    pub intel_rdt: Option<IntelRdt>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeEdit {
    /// Path in the container.
    #[serde(deserialize_with = "or_default")]
    pub path: String,
    /// Path on the host; empty for the same.
    #[serde(deserialize_with = "or_default")]
    pub host_path: String,
    /// `c`, `u` for a character device, `b` for a block device, `p` for a pipe; empty for what the host has.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// Its number; 0 for that of the host's node.
    #[serde(deserialize_with = "or_default")]
    pub major: i64,
    /// Its minor number.
    #[serde(deserialize_with = "or_default")]
    pub minor: i64,
    /// Its permissions.
    pub file_mode: Option<u32>,
    /// What a control group is to allow: letters of `rwm`.
    #[serde(deserialize_with = "or_default")]
    pub permissions: String,
    /// Its owner in the container.
    pub uid: Option<u32>,
    /// Its group in the container.
    pub gid: Option<u32>,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetDeviceEdit {
    /// Its name on the host.
    #[serde(deserialize_with = "or_default")]
    pub host_interface_name: String,
    /// Its name in the container.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MountEdit {
    /// Path on the host.
    #[serde(deserialize_with = "or_default")]
    pub host_path: String,
    /// Path in the container.
    #[serde(deserialize_with = "or_default")]
    pub container_path: String,
    /// Options of mount(8).
    #[serde(deserialize_with = "or_default")]
    pub options: Vec<String>,
    /// Type of the file system; empty for a bind mount.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
}

/// A program to run when the container is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HookEdit {
    /// When: a name of the OCI runtime specification.
    #[serde(deserialize_with = "or_default")]
    pub hook_name: String,
    /// The program, an absolute path.
    #[serde(deserialize_with = "or_default")]
    pub path: String,
    /// Its arguments, with its own name first.
    #[serde(deserialize_with = "or_default")]
    pub args: Vec<String>,
    /// Its variables, all of them.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Seconds that it may take.
    pub timeout: Option<i64>,
}

/// Settings of resctrl.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IntelRdt {
    /// Name of the class of service.
    #[serde(rename = "closID", deserialize_with = "or_default")]
    pub clos_id: String,
    /// Its share of the third level cache.
    #[serde(deserialize_with = "or_default")]
    pub l3_cache_schema: String,
    /// Its share of the memory's bandwidth.
    #[serde(deserialize_with = "or_default")]
    pub mem_bw_schema: String,
    /// Lines of its `schemata`.
    #[serde(deserialize_with = "or_default")]
    pub schemata: Vec<String>,
    /// Whether it is monitored.
    #[serde(deserialize_with = "or_default")]
    pub enable_monitoring: bool,
    /// The same for caches, before version 1.1.
    #[serde(rename = "enableCMT")]
    pub enable_cmt: Option<bool>,
    /// The same for memory, before version 1.1.
    #[serde(rename = "enableMBM")]
    pub enable_mbm: Option<bool>,
}

/// What stands in the file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    cdi_version: String,
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    devices: Vec<Device>,
    #[serde(default, deserialize_with = "or_default")]
    container_edits: Edits,
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is not JSON of this shape.
    #[error("it is not understood")]
    Json(#[from] serde_json::Error),
    /// It is not YAML of this shape.
    #[error("it is not understood")]
    Yaml(#[source] Box<serde_saphyr::Error>),
    /// Its version is not known.
    #[error(
        "it is of version `{0}` of the CDI specification, this program knows those up to {latest}",
        latest = Version::latest()
    )]
    Version(String),
    /// It uses what its version does not have.
    #[error(
        "it says that it is of version {stated} of the CDI specification, but uses {what}, which came with {needed}"
    )]
    TooNew {
        /// The version that it states.
        stated: Version,
        /// The version that it needs.
        needed: Version,
        /// For what.
        what: &'static str,
    },
    /// It uses what its version has no longer.
    #[error(
        "it says that it is of version {stated} of the CDI specification, which has no `{field}`"
    )]
    Gone {
        /// The version that it states.
        stated: Version,
        /// The field.
        field: &'static str,
    },
    /// A name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It describes nothing.
    #[error("it has no devices")]
    Empty,
    /// Two devices have one name.
    #[error("it has two devices of the name `{0}`")]
    Twice(String),
    /// A device needs nothing.
    #[error("its device `{0}` has no `containerEdits`")]
    NoEdits(String),
    /// A value is wrong.
    #[error("`{field}`{} is {value:?}: expected {expected}", of(.device))]
    Value {
        /// The device; None for what all have.
        device: Option<String>,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

fn of(device: &Option<String>) -> String {
    device
        .as_ref()
        .map_or_else(String::new, |device| format!(" of device `{device}`"))
}

/// Takes `null` for what is left out.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// What is read of a document in YAML: nothing that repeats itself beyond measure.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_depth: 32,
            max_aliases: 4096,
            max_anchors: 1024,
            max_nodes: 1 << 20,
            max_events: 4 << 20,
            max_merge_keys: 1024,
        },
        // `fileMode: 0666` is octal for the parsers that others use.
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    ///
    /// One that is not understood, or that describes what cannot be.
    pub fn parse(text: &[u8], format: Format) -> Result<Self, DocumentError> {
        let written: Written = match format {
            Format::Json => serde_json::from_slice(text)?,
            Format::Yaml => serde_saphyr::from_slice_with_options(text, yaml_options())
                .map_err(|error| DocumentError::Yaml(Box::new(error)))?,
        };
        let version = Version::parse(&written.cdi_version)
            .ok_or(DocumentError::Version(written.cdi_version))?;
        let document = Self {
            version,
            kind: written.kind.parse()?,
            annotations: written.annotations,
            devices: written.devices,
            edits: written.container_edits,
        };
        document.check()?;
        Ok(document)
    }

    /// What all devices need, and what each of them needs.
    pub fn all_edits(&self) -> impl Iterator<Item = &Edits> {
        std::iter::once(&self.edits).chain(self.devices.iter().map(|device| &device.edits))
    }

    fn check(&self) -> Result<(), DocumentError> {
        let stated = self.version;
        let (needed, what) = Version::needed_by(self);
        if needed > stated {
            return Err(DocumentError::TooNew {
                stated,
                needed,
                what,
            });
        }
        check_annotations(&self.annotations, None)?;
        self.check_edits(&self.edits, None)?;
        if self.devices.is_empty() {
            return Err(DocumentError::Empty);
        }
        let mut names = std::collections::BTreeSet::new();
        for device in &self.devices {
            name::check_device(&device.name)?;
            if !names.insert(&device.name) {
                return Err(DocumentError::Twice(device.name.clone()));
            }
            if device.edits == Edits::default() {
                return Err(DocumentError::NoEdits(device.name.clone()));
            }
            check_annotations(&device.annotations, Some(&device.name))?;
            self.check_edits(&device.edits, Some(&device.name))?;
        }
        Ok(())
    }

    fn check_edits(&self, edits: &Edits, device: Option<&str>) -> Result<(), DocumentError> {
        let checked = Checked { device };
        for variable in &edits.env {
            checked.variable("env", variable)?;
        }
        for node in &edits.device_nodes {
            checked.path("deviceNodes.path", &node.path)?;
            if !node.host_path.is_empty() {
                checked.path("deviceNodes.hostPath", &node.host_path)?;
            }
            let is_type = matches!(node.kind.as_str(), "" | "b" | "c" | "u" | "p");
            checked.holds(
                is_type,
                "deviceNodes.type",
                &node.kind,
                "`b`, `c`, `u` or `p`",
            )?;
            let is_permission = node.permissions.bytes().all(|byte| b"rwm".contains(&byte));
            let field = "deviceNodes.permissions";
            checked.holds(is_permission, field, &node.permissions, "letters of `rwm`")?;
            for (field, number) in [
                ("deviceNodes.major", node.major),
                ("deviceNodes.minor", node.minor),
            ] {
                let is_number = u32::try_from(number).is_ok();
                checked.holds(
                    is_number,
                    field,
                    &number.to_string(),
                    "the number of a device",
                )?;
            }
        }
        for interface in &edits.net_devices {
            let names = [
                (
                    "netDevices.hostInterfaceName",
                    &interface.host_interface_name,
                ),
                ("netDevices.name", &interface.name),
            ];
            for (field, text) in names {
                let is_name = (1..=MAX_INTERFACE).contains(&text.len())
                    && text
                        .bytes()
                        .all(|byte| byte.is_ascii_graphic() && byte != b'/');
                checked.holds(is_name, field, text, "the name of a network interface")?;
            }
        }
        for mount in &edits.mounts {
            checked.path("mounts.containerPath", &mount.container_path)?;
            let expected = "a path or the name of a source";
            let is_source = !mount.host_path.is_empty() && !mount.host_path.contains('\0');
            checked.holds(is_source, "mounts.hostPath", &mount.host_path, expected)?;
            for text in mount.options.iter().chain([&mount.kind]) {
                checked.holds(!text.contains('\0'), "mounts.options", text, "an option")?;
            }
        }
        for hook in &edits.hooks {
            let is_known = crate::devices::grant::Stage::parse(&hook.hook_name).is_some();
            let expected = "the name of a hook of the OCI runtime specification";
            checked.holds(is_known, "hooks.hookName", &hook.hook_name, expected)?;
            checked.path("hooks.path", &hook.path)?;
            for variable in &hook.env {
                checked.variable("hooks.env", variable)?;
            }
            for argument in &hook.args {
                checked.holds(
                    !argument.contains('\0'),
                    "hooks.args",
                    argument,
                    "an argument",
                )?;
            }
            if let Some(seconds) = hook.timeout {
                let expected = "a number of seconds from 1 on";
                checked.holds(seconds > 0, "hooks.timeout", &seconds.to_string(), expected)?;
            }
        }
        match &edits.intel_rdt {
            Some(rdt) => self.check_rdt(rdt, &checked),
            None => Ok(()),
        }
    }

    fn check_rdt(&self, rdt: &IntelRdt, checked: &Checked<'_>) -> Result<(), DocumentError> {
        let id = &rdt.clos_id;
        let is_name =
            id.len() <= MAX_CLOS && id != "." && id != ".." && !id.contains(['/', '\n', '\0']);
        checked.holds(is_name, "intelRdt.closID", id, "the name of a directory")?;
        let old = [
            ("enableCMT", rdt.enable_cmt.is_some()),
            ("enableMBM", rdt.enable_mbm.is_some()),
        ];
        match old.into_iter().find(|(_, is_there)| *is_there) {
            Some((field, _)) if !self.version.has_separate_monitoring() => {
                Err(DocumentError::Gone {
                    stated: self.version,
                    field,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Whose edits are checked.
struct Checked<'a> {
    device: Option<&'a str>,
}

impl Checked<'_> {
    fn holds(
        &self,
        is_so: bool,
        field: &'static str,
        value: &str,
        expected: &'static str,
    ) -> Result<(), DocumentError> {
        if is_so {
            return Ok(());
        }
        Err(DocumentError::Value {
            device: self.device.map(str::to_owned),
            field,
            value: value.chars().take(200).collect(),
            expected,
        })
    }

    fn path(&self, field: &'static str, text: &str) -> Result<(), DocumentError> {
        let is_path = text.starts_with('/') && !text.contains('\0');
        self.holds(is_path, field, text, "an absolute path")
    }

    /// Only the name of a variable is shown: what follows may be meant for nobody else.
    fn variable(&self, field: &'static str, text: &str) -> Result<(), DocumentError> {
        let name = text.split('=').next().unwrap_or_default();
        let is_variable = text.contains('=') && !name.is_empty() && !text.contains('\0');
        self.holds(is_variable, field, name, "`NAME=VALUE`")
    }
}

/// Keys look like `prefix/name` or `name`, as those of Kubernetes.
fn check_annotations(
    annotations: &BTreeMap<String, String>,
    device: Option<&str>,
) -> Result<(), DocumentError> {
    let checked = Checked { device };
    let is_word = |text: &str, longest: usize| {
        let bytes = text.as_bytes();
        (1..=longest).contains(&bytes.len())
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(byte))
    };
    let mut total = 0;
    for (key, value) in annotations {
        let is_key = match key.split_once('/') {
            Some((prefix, name)) => is_word(prefix, 253) && is_word(name, 63),
            None => is_word(key, 63),
        };
        checked.holds(
            is_key,
            "annotations",
            key,
            "a key such as `vendor.com/name`",
        )?;
        total += key.len() + value.len();
    }
    let expected = "256 KiB together at most";
    checked.holds(
        total <= MAX_ANNOTATIONS,
        "annotations",
        &format!("{total} bytes"),
        expected,
    )
}
