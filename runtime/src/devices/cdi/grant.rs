//! From documents to what a container is granted.
//!
//! The edits of a document are done as far as a runtime without privileges can, and refused as a whole otherwise: a device that is there by half
//! fails later and worse. A few things are different from what a privileged runtime makes of them:
//!
//! - A device node is a mount of the host's node: its owner, permissions and numbers stay as they are. Numbers that contradict the host's are an
//!   error.
//! - Groups cannot be added in a namespace of one user; those that the user has on the host count.
//! - `intelRdt`, `netDevices`, and hooks that come after the container's program has started, are errors.
//!
//! In a job, a node of a GPU that is not the job's is an error too, whoever describes it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::document::{Edits, HookEdit, MountEdit, NodeEdit};
use super::hooks::Native;
use super::name::QualifiedName;
use super::registry::{Asked, CdiError, Registry};
use crate::devices::grant::{DeviceNode, GeneratedFile, Hook, Mount, Stage, Symlink};
use crate::devices::host::{Host, Permission};
use crate::devices::question::Question;
use crate::devices::{DeviceError, Grant, Vendor};

/// Where documents are, the later of which count more.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// The variable that names devices to NVIDIA's runtime, also such of CDI.
const NVIDIA: &str = "NVIDIA_VISIBLE_DEVICES";

/// What tells NVIDIA's programs whether they make device nodes.
const NVIDIA_PARAMS: &str = "/proc/driver/nvidia/params";

/// Devices that documents describe.
#[derive(Debug)]
pub struct Cdi;

impl Vendor for Cdi {
    fn name(&self) -> &'static str {
        "cdi"
    }

    fn is_there(&self, host: &Host) -> bool {
        DIRECTORIES.iter().any(|directory| host.exists(directory))
    }

    fn inventory(&self, host: &Host) -> Result<Vec<String>, DeviceError> {
        let registry = Registry::load(host);
        let devices = registry
            .devices()
            .map(|found| format!("CDI {}: {}", found.name, found.path.display()));
        Ok(devices.chain(registry.problems()).collect())
    }

    fn grant(
        &self,
        host: &Host,
        question: &Question<'_>,
        grant: &mut Grant,
    ) -> Result<(), DeviceError> {
        // Each name, and whether it is an error that it cannot be had: not where an image asks for it.
        let mut wanted: Vec<(QualifiedName, bool)> = question
            .request
            .devices
            .iter()
            .map(|name| (name.clone(), true))
            .collect();
        if let Some(value) = question.variable(NVIDIA) {
            let is_users = (question.user)(NVIDIA).is_some();
            let names = value.split(',').map(str::trim);
            for name in names.filter(|name| QualifiedName::is_meant(name)) {
                match QualifiedName::parse(name) {
                    Ok(name) => wanted.push((name, is_users)),
                    Err(error) if is_users => return Err(CdiError::from(error).into()),
                    Err(error) => grant.no(name, error.to_string()),
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let registry = Registry::load(host);
        let mut names = Vec::new();
        for (name, is_required) in wanted {
            match registry.find(&name) {
                Ok(_) => {
                    grant.names.push(name.to_string());
                    names.push(name);
                }
                // One that we know without documents may still be granted.
                Err(CdiError::NoKind { .. } | CdiError::NoDevice { .. })
                    if crate::devices::knows_kind(&name) => {}
                Err(error) if is_required => return Err(error.into()),
                Err(error) => grant.no(name.to_string(), error.to_string()),
            }
        }
        for asked in registry.edits(&names)? {
            Granting {
                host,
                question,
                asked,
            }
            .grant(grant)?;
        }
        Ok(())
    }
}

/// What is granted for one device.
struct Granting<'a> {
    host: &'a Host,
    question: &'a Question<'a>,
    asked: Asked<'a>,
}

impl Granting<'_> {
    fn grant(&self, grant: &mut Grant) -> Result<(), DeviceError> {
        let Edits {
            env,
            device_nodes,
            net_devices,
            mounts,
            hooks,
            additional_gids,
            intel_rdt,
        } = self.asked.edits;
        for node in device_nodes {
            self.node(node, grant)?;
        }
        for mount in mounts {
            self.mount(mount, grant)?;
        }
        for variable in env {
            if let Some((name, value)) = variable.split_once('=') {
                let variable = (OsString::from(name), OsString::from(value));
                grant.edits.environment.push(variable);
            }
        }
        for hook in hooks {
            self.hook(hook, grant)?;
        }
        for gid in additional_gids.iter().filter(|gid| **gid > 0) {
            grant.edits.groups.push(*gid);
            if !has_group(*gid) {
                grant.no(
                    format!("group {gid}"),
                    format!(
                        "{}: you are not in it, and a container without privileges gets no groups",
                        self.why()
                    ),
                );
            }
        }
        if let Some(interface) = net_devices.first() {
            return Err(self.denied(format!(
                "it moves the network interface `{}` into the container, which takes privileges on the host",
                interface.host_interface_name
            )));
        }
        if intel_rdt.is_some() {
            return Err(self.denied(
                "it gives the container shares of caches (`intelRdt`), which takes privileges on the host".into(),
            ));
        }
        Ok(())
    }

    /// Whose edits these are.
    fn why(&self) -> String {
        let Asked { name, path, .. } = self.asked;
        format!("CDI device {name} of `{}`", path.display())
    }

    fn denied(&self, why: String) -> DeviceError {
        DeviceError::Denied {
            what: "CDI device",
            name: self.asked.name.to_string(),
            why,
        }
    }

    fn missing(&self, path: &Path) -> DeviceError {
        self.denied(format!(
            "`{}`, which `{}` names, is not there",
            path.display(),
            self.asked.path.display()
        ))
    }

    fn node(&self, edit: &NodeEdit, grant: &mut Grant) -> Result<(), DeviceError> {
        let path = PathBuf::from(&edit.path);
        let host_path = match edit.host_path.as_str() {
            "" => path.clone(),
            other => other.into(),
        };
        if edit.kind == "p" {
            return self.pipe(path, host_path, grant);
        }
        let node = self
            .host
            .node(&host_path)
            .ok_or_else(|| self.missing(&host_path))?;
        let is_other = matches!(edit.kind.as_str(), "b") != node.is_block && !edit.kind.is_empty();
        let stated = (edit.major != 0 || edit.minor != 0).then_some((edit.major, edit.minor));
        let numbers = node
            .numbers
            .map(|(major, minor)| (i64::from(major), i64::from(minor)));
        if let (Some(stated), Some(numbers)) = (stated, numbers)
            && (is_other || stated != numbers)
        {
            return Err(self.denied(format!(
                "`{}` is device {}:{}, and the description says {}:{}",
                host_path.display(),
                numbers.0,
                numbers.1,
                stated.0,
                stated.1
            )));
        }
        if is_other {
            return Err(self.denied(format!(
                "`{}` is no device of the type `{}`",
                host_path.display(),
                edit.kind
            )));
        }
        crate::devices::nvidia::check_limit(self.host, self.question, &host_path)
            .map_err(|why| self.denied(why))?;
        let mut why = self.why();
        match self.host.permission(&host_path) {
            Permission::Granted => {}
            Permission::NotOfThisJob => {
                return Err(self.denied(format!(
                    "the control group of the job does not have `{}`",
                    host_path.display()
                )));
            }
            // Not all that a document names is for every user: card nodes are for those who have a screen.
            Permission::Forbidden => why.push_str("; you may not open it"),
        }
        if grant.edits.devices.iter().any(|known| known.path == path) {
            return Ok(());
        }
        grant.yes(path.display().to_string(), why);
        grant.edits.devices.push(DeviceNode {
            path,
            host_path,
            is_read_only: !edit.permissions.is_empty() && !edit.permissions.contains('w'),
        });
        Ok(())
    }

    fn pipe(
        &self,
        path: PathBuf,
        host_path: PathBuf,
        grant: &mut Grant,
    ) -> Result<(), DeviceError> {
        if self.host.file_type(&host_path) != Some(rustix::fs::FileType::Fifo) {
            return Err(self.missing(&host_path));
        }
        grant.yes(path.display().to_string(), self.why());
        grant.edits.mounts.push(Mount {
            path,
            host_path,
            kind: None,
            options: ["bind", "nosuid", "nodev", "noexec"]
                .map(str::to_owned)
                .into(),
        });
        Ok(())
    }

    fn mount(&self, edit: &MountEdit, grant: &mut Grant) -> Result<(), DeviceError> {
        let is_bind = edit.options.iter().any(|it| it == "bind" || it == "rbind");
        let kind = match edit.kind.as_str() {
            "" | "none" | "bind" => None,
            _ if is_bind => None,
            other => Some(other.to_owned()),
        };
        let host_path = PathBuf::from(&edit.host_path);
        if kind.is_none() && !self.host.exists(&host_path) {
            return Err(self.missing(&host_path));
        }
        let path = PathBuf::from(&edit.container_path);
        // As with other runtimes, a later mount takes the place of an earlier one at the same path.
        grant.edits.mounts.retain(|known| known.path != path);
        grant.yes(path.display().to_string(), self.why());
        grant.edits.mounts.push(Mount {
            path,
            host_path,
            kind,
            options: edit.options.clone(),
        });
        Ok(())
    }

    fn hook(&self, edit: &HookEdit, grant: &mut Grant) -> Result<(), DeviceError> {
        let native = Native::of(edit).map_err(|error| self.denied(error.to_string()))?;
        match native {
            None => self.program(edit, grant),
            Some(native) => self.native(native, grant),
        }
    }

    fn native(&self, native: Native, grant: &mut Grant) -> Result<(), DeviceError> {
        let edits = &mut grant.edits;
        match native {
            Native::Links(links) => edits.symlinks.extend(links.into_iter().map(|link| Symlink {
                path: link.path,
                target: link.target,
            })),
            Native::LinkerCache(directories) => {
                for directory in directories {
                    if !edits.library_directories.contains(&directory) {
                        edits.library_directories.push(directory);
                    }
                }
            }
            Native::CudaCompat { driver, directory } => {
                if directory == Path::new(super::hooks::CUDA_COMPAT) && driver.is_some() {
                    edits.cuda_compat = driver;
                } else {
                    grant.no(
                        directory.display().to_string(),
                        "compatibility libraries there are left to the image",
                    );
                }
            }
            Native::Modes { mode, paths } => {
                // Directories that are made for nodes can be entered by all.
                let other = paths.iter().find(|path| !path.starts_with("/dev"));
                if let Some(path) = other {
                    return Err(self.denied(format!(
                        "it changes the permissions of `{}` to {mode:o}, which is not supported outside of `/dev`",
                        path.display()
                    )));
                }
            }
            Native::NoDeviceNodes => {
                let is_there = edits
                    .files
                    .iter()
                    .any(|it| it.path == Path::new(NVIDIA_PARAMS));
                if let Some(text) = self.host.text(NVIDIA_PARAMS).filter(|_| !is_there) {
                    edits.files.push(GeneratedFile {
                        path: NVIDIA_PARAMS.into(),
                        content: without_device_files(&text).into_bytes(),
                    });
                }
            }
            Native::Nothing(command) => {
                let why = format!("hook of {}, not needed here", self.asked.name);
                grant.no(command, why);
            }
        }
        Ok(())
    }

    fn program(&self, edit: &HookEdit, grant: &mut Grant) -> Result<(), DeviceError> {
        let stage = Stage::parse(&edit.hook_name).ok_or_else(|| {
            self.denied(format!(
                "its hook `{}` runs at `{}`, which the OCI runtime specification does not have",
                edit.path, edit.hook_name
            ))
        })?;
        // That of the container is looked for in the container.
        let is_inside = stage == Stage::StartContainer;
        if !is_inside && !self.host.exists(&edit.path) {
            return Err(self.missing(Path::new(&edit.path)));
        }
        grant.yes(&edit.path, format!("hook of {}", self.why()));
        let words = |texts: &[String]| texts.iter().map(OsString::from).collect();
        grant.edits.hooks.push(Hook {
            stage,
            path: match is_inside {
                true => PathBuf::from(&edit.path),
                false => self.host.outside(Path::new(&edit.path)),
            },
            arguments: words(&edit.args),
            environment: words(&edit.env),
            timeout: edit.timeout.map(|it| u32::try_from(it).unwrap_or(u32::MAX)),
        });
        Ok(())
    }
}

/// The parameters of NVIDIA's driver, with which its programs make no device nodes.
fn without_device_files(text: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(':') {
        Some(("ModifyDeviceFiles", _)) => "ModifyDeviceFiles: 0",
        _ => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Whether this process is in a group.
fn has_group(gid: u32) -> bool {
    rustix::process::getegid().as_raw() == gid
        || rustix::process::getgroups()
            .is_ok_and(|groups| groups.iter().any(|group| group.as_raw() == gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_the_driver() {
        let text = "ResmanDebugLevel: 1\nModifyDeviceFiles: 1\nDeviceFileMode: 438\n";
        let expected = "ResmanDebugLevel: 1\nModifyDeviceFiles: 0\nDeviceFileMode: 438\n";
        assert_eq!(without_device_files(text), expected);
    }
}
