//! What a step asks for, as the plugin says it: records `KEY=VALUE`, each ended by a NUL byte.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use super::helper::ImageMount;
use crate::config::settings::parse_switch;
use crate::container::fstab::{self, Entry, FstabError};
use crate::container::namespaces::Namespaces;
use crate::devices;
use crate::devices::cdi::name::{NameError, QualifiedName};
use crate::devices::question::Choice;

/// The first record. Plugin and program are of one release, or say that they are not.
pub(super) const VERSION: &[u8] = b"cista-step=1";
/// The last record.
pub(super) const END: &[u8] = b"end=";

/// Longest request that is read, in bytes.
const MAX_REQUEST: u64 = 64 << 20;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The job.
    pub job: u32,
    /// The step.
    pub step: u32,
    /// Tasks of the step on this node.
    pub local_tasks: u32,
    /// Tasks of the step.
    pub tasks: u32,
    /// The image: a path, or a URI.
    pub image: Option<OsString>,
    /// The container's name, as the user gave it.
    pub name: Option<OsString>,
    /// What is to be done with a container of that name.
    pub mode: Mode,
    /// Whether names belong to the job.
    pub job_scope: bool,
    /// Mounts, in order.
    pub mounts: Vec<OsString>,
    /// The working directory in the container.
    pub workdir: Option<PathBuf>,
    /// Where the container is saved at the end.
    pub save: Option<PathBuf>,
    /// Whether the home directory is mounted; None for what the settings say.
    pub mount_home: Option<bool>,
    /// Whether the user is root inside; None for what the settings say.
    pub remap_root: Option<bool>,
    /// Whether the root can be written to; None for what the settings say.
    pub writable: Option<bool>,
    /// Whether the entrypoint is executed.
    pub entrypoint: bool,
    /// Whether its output is shown.
    pub entrypoint_log: bool,
    /// Variables that win over the image's.
    pub environment: Vec<(OsString, OsString)>,
    /// Namespaces of its own.
    pub unshare: Namespaces,
    /// Devices.
    pub devices: devices::Request,
    /// The command line of the tasks.
    pub command: Vec<OsString>,
    /// The batch script, a file of the node.
    pub script: Option<PathBuf>,
    /// The terminal of the step, a device of the node.
    pub terminal: Option<PathBuf>,
    /// A program that gets images.
    pub importer: Option<PathBuf>,
    /// The user's directory for the state of running containers.
    pub runtime_path: Option<PathBuf>,
    /// How the site wants images to be mounted.
    pub image_mount: ImageMount,
}

/// What is to be done with a container that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// One that runs is joined, one that does not is started, otherwise it is made.
    #[default]
    Auto,
    /// It must not be there.
    Create,
    /// It must run, and is joined.
    Exec,
    /// It is started, or made.
    NoExec,
}

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It cannot be read.
    #[error("cannot read what the plugin asks for")]
    Read(#[source] io::Error),
    /// It is not whole, or of another version.
    #[error("the plugin asks in a way that this program does not understand")]
    Version,
    /// A record is not understood.
    #[error("the plugin asks for `{key}`, which this program does not understand")]
    Record {
        /// Its key.
        key: String,
    },
    /// GPUs are not understood.
    #[error("`{value}` of `--container-gpus` is not understood: {expected}")]
    Gpus {
        /// What is asked for.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// The name of a device is not understood.
    #[error("`--container-device` is not understood")]
    Device(#[from] NameError),
    /// A mount is not understood.
    #[error(transparent)]
    Mount(#[from] FstabError),
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    ///
    /// One that is not whole, or says what is not understood: nothing may be left out of what a user asks for.
    pub fn read(file: OwnedFd) -> Result<Self, RequestError> {
        let mut text = Vec::new();
        let mut file = File::from(file);
        // It was read before where the program executes itself again.
        file.rewind()
            .and_then(|()| file.take(MAX_REQUEST).read_to_end(&mut text))
            .map_err(RequestError::Read)?;
        Self::parse(&text)
    }

    fn parse(text: &[u8]) -> Result<Self, RequestError> {
        let text = text.strip_suffix(b"\0").ok_or(RequestError::Version)?;
        let mut records: Vec<&[u8]> = text.split(|&byte| byte == 0).collect();
        if records.first() != Some(&VERSION) || records.pop() != Some(END) {
            return Err(RequestError::Version);
        }
        let mut request = Self::default();
        for record in &records[1..] {
            let at = record.iter().position(|&byte| byte == b'=');
            let (key, value) = record.split_at(at.ok_or(RequestError::Version)?);
            request.take(key, OsStr::from_bytes(&value[1..]))?;
        }
        Ok(request)
    }

    fn take(&mut self, key: &[u8], value: &OsStr) -> Result<(), RequestError> {
        let strange = || RequestError::Record {
            key: String::from_utf8_lossy(key).into_owned(),
        };
        let text = value.to_str().unwrap_or_default();
        let number = || text.parse().map_err(|_| strange());
        let switch = || parse_switch(text).ok_or_else(strange);
        match key {
            b"job" => self.job = number()?,
            b"step" => self.step = number()?,
            b"local-tasks" => self.local_tasks = number()?,
            b"tasks" => self.tasks = number()?,
            b"image" => self.image = Some(value.to_owned()),
            b"name" => self.name = Some(value.to_owned()),
            b"mode" => {
                self.mode = match text {
                    "auto" => Mode::Auto,
                    "create" => Mode::Create,
                    "exec" => Mode::Exec,
                    "no_exec" => Mode::NoExec,
                    _ => return Err(strange()),
                }
            }
            b"job-scope" => self.job_scope = switch()?,
            b"mount" => self.mounts.push(value.to_owned()),
            b"workdir" => self.workdir = Some(value.into()),
            b"save" => self.save = Some(value.into()),
            b"mount-home" => self.mount_home = Some(switch()?),
            b"remap-root" => self.remap_root = Some(switch()?),
            b"writable" => self.writable = Some(switch()?),
            b"entrypoint" => self.entrypoint = switch()?,
            b"entrypoint-log" => self.entrypoint_log = switch()?,
            b"env" => {
                let bytes = value.as_bytes();
                let at = bytes.iter().position(|&byte| byte == b'=');
                let (name, value) = bytes.split_at(at.ok_or_else(strange)?);
                let string = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
                self.environment.push((string(name), string(&value[1..])));
            }
            b"unshare" => match text {
                "net" => self.unshare.net = true,
                "ipc" => self.unshare.ipc = true,
                "uts" => self.unshare.uts = true,
                _ => return Err(strange()),
            },
            b"gpus" => {
                let choice = Choice::parse_option(text);
                self.devices.gpus = Some(choice.map_err(|expected| RequestError::Gpus {
                    value: value.to_string_lossy().into_owned(),
                    expected,
                })?);
            }
            b"device" => self.devices.devices.push(QualifiedName::parse(text)?),
            b"command" => self.command.push(value.to_owned()),
            b"script" => self.script = Some(value.into()),
            b"terminal" => self.terminal = Some(value.into()),
            b"importer" => self.importer = Some(value.into()),
            b"image-mount" => {
                self.image_mount = match text {
                    "fuse" => ImageMount::Fuse,
                    "kernel" => ImageMount::Kernel,
                    "auto" => ImageMount::Auto,
                    _ => return Err(strange()),
                }
            }
            b"runtime-path" => self.runtime_path = Some(value.into()),
            _ => return Err(strange()),
        }
        Ok(())
    }

    /// The container's name on disk; that of a container which ends with the step where the user gave none.
    #[must_use]
    pub fn container_name(&self) -> OsString {
        let mut name = OsString::from("pyxis_");
        match &self.name {
            Some(given) => {
                if self.job_scope {
                    name.push(format!("{}_", self.job));
                }
                name.push(given);
            }
            None => name.push(format!("{}.{}", self.job, self.step)),
        }
        name
    }

    /// The image's path, where it is one; the URI otherwise.
    #[must_use]
    pub fn source(&self) -> Option<ImageSource> {
        let image = self.image.as_ref()?;
        if matches!(image.as_bytes().first(), Some(b'/' | b'.')) {
            return Some(ImageSource::File(image.into()));
        }
        let text = image.to_string_lossy();
        let has_scheme = text.contains("://") || SCHEMES.iter().any(|it| text.starts_with(it));
        Some(ImageSource::Uri(if has_scheme {
            text.into_owned()
        } else {
            format!("docker://{text}")
        }))
    }

    /// The mounts, as entries of fstab(5). A source that is no absolute path is relative to the job's working directory.
    ///
    /// # Errors
    ///
    /// A mount that is not understood.
    pub fn entries(&self) -> Result<Vec<Entry>, RequestError> {
        self.mounts.iter().map(|mount| entry(mount)).collect()
    }
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// A file of the node.
    File(PathBuf),
    /// Somewhere to import from.
    Uri(String),
}

/// How URIs begin that have no `//`.
const SCHEMES: [&str; 5] = ["oci:", "oci-archive:", "docker-archive:", "tar:", "dir:"];

/// `SRC[:DST[:FLAGS]]`.
fn entry(mount: &OsStr) -> Result<Entry, RequestError> {
    let mut fields = mount.as_bytes().splitn(3, |&byte| byte == b':');
    let source = fields.next().unwrap_or_default();
    let target = fields.next().unwrap_or(source);
    let flags = fields.next().unwrap_or_default();
    let (kind, mut options) = match source {
        b"tmpfs" => ("tmpfs", b"x-create=dir".to_vec()),
        b"umount" => ("none", b"x-detach".to_vec()),
        _ => ("none", b"x-create=auto,rbind".to_vec()),
    };
    for flag in flags.split(|byte| matches!(byte, b'+' | b',')) {
        if !flag.is_empty() {
            options.push(b',');
            options.extend_from_slice(flag);
        }
    }
    Ok(fstab::parse_fields(
        [source, target, kind.as_bytes(), &options].map(OsStr::from_bytes),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::fstab::{CreateOption, Kind};
    use rustix::mount::MountAttrFlags;
    use std::path::Path;

    fn parse(records: &[&str]) -> Result<Request, RequestError> {
        let mut text = VERSION.to_vec();
        for record in records {
            text.push(0);
            text.extend_from_slice(record.as_bytes());
        }
        text.extend_from_slice(b"\0end=\0");
        Request::parse(&text)
    }

    #[test]
    fn a_request() {
        let request = parse(&[
            "job=7",
            "step=0",
            "image=ubuntu:24.04",
            "name=n",
            "mode=no_exec",
            "job-scope=yes",
            "env=A=b=c",
            "unshare=net",
            "writable=no",
        ])
        .unwrap();
        assert_eq!(request.container_name(), "pyxis_7_n");
        assert_eq!(
            request.source(),
            Some(ImageSource::Uri("docker://ubuntu:24.04".into()))
        );
        assert_eq!(request.environment, [("A".into(), "b=c".into())]);
        assert_eq!((request.writable, request.remap_root), (Some(false), None));
        assert!(request.unshare.net && request.mode == Mode::NoExec);
        let request = parse(&["job=7", "step=3", "image=oci:x"]).unwrap();
        assert_eq!(request.container_name(), "pyxis_7.3");
        assert_eq!(request.source(), Some(ImageSource::Uri("oci:x".into())));
        let request = parse(&["image=./x"]).unwrap();
        assert_eq!(request.source(), Some(ImageSource::File("./x".into())));
    }

    #[test]
    fn nothing_is_left_out() {
        for record in [
            "future=1",
            "job=x",
            "writable=perhaps",
            "unshare=pid",
            "env=A",
            "mode=run",
            "image-mount=loop",
            "gpus=,",
            "device=nvidia.com/gpu",
            "noequals",
        ] {
            parse(&[record]).unwrap_err();
        }
        for text in [&b""[..], b"cista-step=1\0", b"cista-step=2\0end=\0"] {
            Request::parse(text).unwrap_err();
        }
    }

    #[test]
    fn mounts() {
        let plain = entry(OsStr::new("/data")).unwrap();
        assert_eq!(
            (plain.source.as_path(), plain.target.as_path()),
            (Path::new("/data"), Path::new("/data"))
        );
        assert_eq!(plain.kind, Kind::Bind { recursive: true });
        assert_eq!(plain.create, CreateOption::Auto);
        let flags = entry(OsStr::new("/a:/b:ro+nosuid")).unwrap();
        let both = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
        assert!(flags.set.contains(both));
        let memory = entry(OsStr::new("tmpfs:/x:size=1m")).unwrap();
        assert!(matches!(memory.kind, Kind::Filesystem { .. }));
        assert_eq!(entry(OsStr::new("umount:/x")).unwrap().kind, Kind::Detach);
    }
}
