//! What can be said about the value of an option without the node it is for: an error says what is wrong with it, and goes behind the option's name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

/// What is said of a password.
pub(crate) const PASSWORD: &str =
    "a password does not belong into a reference, where others see it: `cista login` stores it";

/// Longest value, in bytes: more than the kernel takes as a path.
const MAX_VALUE: usize = 64 << 10;

/// What may stand behind the name of a container.
const MODES: [&str; 4] = ["auto", "create", "exec", "no_exec"];

/// Namespaces that a container can have of its own.
const NAMESPACES: [&str; 3] = ["net", "ipc", "uts"];

/// Whether there is a value, of a length that Slurm can pass on. `shown` is the option.
pub(crate) fn check_length(shown: &str, value: &OsStr) -> Result<(), String> {
    if value.is_empty() {
        return Err(format!("{shown}: an argument is missing"));
    }
    if value.len() > MAX_VALUE {
        return Err(format!("{shown}: the argument is too long"));
    }
    Ok(())
}

/// Whether the value of `--container-image` is a path.
fn is_path(image: &OsStr) -> bool {
    matches!(image.as_bytes().first(), Some(b'/' | b'.'))
}

/// `--container-image`: a path, or what `cista import` takes from elsewhere.
pub(crate) fn check_image(image: &OsStr) -> Result<(), String> {
    let bytes = image.as_bytes();
    if is_path(image) {
        return if bytes.ends_with(b"/") {
            Err("is a directory: name an image file, or `dir:PATH` in `cista import`".into())
        } else {
            Ok(())
        };
    }
    if bytes
        .iter()
        .any(|byte| byte.is_ascii_control() || *byte == b' ')
    {
        return Err("is no reference to an image: it has a blank in it".into());
    }
    if bytes.ends_with(b":") || bytes.ends_with(b"/") || bytes.ends_with(b"@") {
        return Err("is no reference to an image: something is missing at its end".into());
    }
    if image == "-" || bytes.starts_with(b":") {
        return Err("is no reference to an image".into());
    }
    let text = image.to_string_lossy();
    let (scheme, rest) = text.split_once("://").unwrap_or(("docker", &text));
    if !["docker", "dockerd", "podman"].contains(&scheme) {
        return Err(
            "is no reference to an image: `docker://`, `dockerd://` and `podman://` are known, and URIs of files such as `oci:PATH`"
                .into(),
        );
    }
    // `USER:PASSWORD@REGISTRY#IMAGE`, where every process list would show it. A digest has the sign too.
    let (user, behind) = rest.split_once('@').unwrap_or_default();
    if user.contains(':') && !user.contains('/') && !behind.starts_with("sha") {
        return Err(PASSWORD.into());
    }
    Ok(())
}

/// `--container-name`: a name, and how it is meant.
pub(crate) fn check_name(value: &OsStr) -> Result<(), String> {
    let (name, mode) = split_name(value);
    if name.is_empty() {
        return Err("has no name in it".into());
    }
    if name.as_bytes().first() == Some(&b'.')
        || name.len() > 150
        || name
            .as_bytes()
            .iter()
            .any(|byte| *byte == b'/' || byte.is_ascii_control())
    {
        return Err(
            "is no name for a container: it begins with `.`, is too long, or holds `/` or a control character"
                .into(),
        );
    }
    if mode.is_some_and(|mode| !MODES.iter().any(|known| mode == *known)) {
        return Err("ends in none of `:auto`, `:create`, `:exec` and `:no_exec`".into());
    }
    Ok(())
}

/// Name and mode.
pub(crate) fn split_name(value: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let bytes = value.as_bytes();
    match bytes.iter().position(|&byte| byte == b':') {
        Some(at) => (
            OsStr::from_bytes(&bytes[..at]),
            Some(OsStr::from_bytes(&bytes[at + 1..])).filter(|mode| !mode.is_empty()),
        ),
        None => (value, None),
    }
}

/// A part of `--container-mounts`.
pub(crate) fn check_mount(mount: &OsStr) -> Result<(), String> {
    let mut fields = mount.as_bytes().splitn(3, |&byte| byte == b':');
    let source = fields.next().unwrap_or_default();
    let target = fields.next();
    let is_path = |path: &[u8]| matches!(path.first(), Some(b'/' | b'.'));
    if source.is_empty() || target.is_some_and(<[u8]>::is_empty) {
        return Err("is no mount: expected SRC, SRC:DST or SRC:DST:FLAGS".into());
    }
    match target {
        None if !is_path(source) => Err("is no path: it begins with `/` or `.`".into()),
        Some(_) if !is_path(source) && source != b"tmpfs" && source != b"umount" => Err(
            "is no mount: SRC is a path, which begins with `/` or `.`, `tmpfs` or `umount`".into(),
        ),
        Some(target) if !is_path(target) => {
            Err("is no mount: DST is a path, which begins with `/` or `.`".into())
        }
        _ => match fields.next() {
            Some(flags) if source != b"tmpfs" => check_flags(flags),
            _ => Ok(()),
        },
    }
}

/// Flags of mounts that are not those of a file system.
const FLAGS: &[&str] = &[
    "ro",
    "rw",
    "rro",
    "bind",
    "rbind",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "sync",
    "async",
    "dirsync",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    "silent",
    "loud",
    "defaults",
    "remount",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
    "nofail",
    "x-create=dir",
    "x-create=file",
    "x-create=auto",
    "x-move",
    "x-detach",
    "nosymfollow",
    "symfollow",
    "auto",
    "noauto",
    "user",
    "nouser",
];

fn check_flags(flags: &[u8]) -> Result<(), String> {
    for flag in flags.split(|byte| matches!(byte, b'+' | b',')) {
        if !flag.is_empty() && !FLAGS.iter().any(|known| known.as_bytes() == flag) {
            return Err(format!(
                "has an unknown flag `{}`",
                String::from_utf8_lossy(flag)
            ));
        }
    }
    Ok(())
}

/// A part of `--container-env`.
pub(crate) fn check_variable(name: &OsStr) -> Result<(), String> {
    let bytes = name.as_bytes();
    let is_name = !bytes.is_empty()
        && !bytes[0].is_ascii_digit()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    if is_name {
        Ok(())
    } else {
        Err("is no name of a variable".into())
    }
}

/// A part of `--container-unshare`.
pub(crate) fn check_namespace(name: &OsStr) -> Result<(), String> {
    if NAMESPACES.iter().any(|known| name == *known) {
        Ok(())
    } else {
        Err("is none of `net`, `ipc` and `uts`".into())
    }
}

/// `--container-gpus`.
pub(crate) fn check_gpus(value: &OsStr) -> Result<(), String> {
    let is_good = |name: &[u8]| !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
    if value.as_bytes().split(|&byte| byte == b',').all(is_good) {
        Ok(())
    } else {
        Err("is none of `all`, `none`, or indexes and UUIDs separated by commas".into())
    }
}

/// `VENDOR/CLASS=NAME`, of which the program says more.
pub(crate) fn check_device(name: &OsStr) -> Result<(), String> {
    let bytes = name.as_bytes();
    let at = |wanted: u8| bytes.iter().position(|&byte| byte == wanted);
    let is_good = bytes.iter().all(u8::is_ascii_graphic)
        && matches!((at(b'/'), at(b'=')), (Some(slash), Some(equals))
            if slash > 0 && equals > slash + 1 && equals + 1 < bytes.len());
    if is_good {
        Ok(())
    } else {
        Err("is no name of a device: expected VENDOR/CLASS=NAME".into())
    }
}
