//! What the user typed to name an image: `docker://…`, `dockerd://…`, `podman://…`, `oci:…`, `docker-archive:…`, `dir:…`, `tar:…`, `-`.
//!
//! Pure parsing: nothing here looks at a disk or a network. `docker://` follows enroot 4 (its URIs must keep working) with the grammar
//! of the OCI distribution specification for names and tags; the other schemes follow containers-transports(5).
//!
//! Where a path is followed by `:TAG`, the path ends at the first colon after its last slash: `oci:/a:b/c:d` is the path `/a:b/c` and
//! the tag `d`. For a path whose last component holds a colon, put a slash or the tag behind it.

mod local;
mod registry;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use local::LocalImage;
pub use registry::{DOCKER_HUB, RegistryReference, check_registry, check_repository};

use crate::digest::{Digest, DigestError};

/// The schemes that exist, as shown to a user who gave another one.
pub const SCHEMES: &str = "docker://IMAGE, dockerd://IMAGE, podman://IMAGE, oci:DIR, oci-archive:FILE, docker-archive:FILE, dir:PATH, tar:FILE, -";

/// Where an image comes from, as typed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// `docker://…`: an image in a registry.
    Registry(RegistryReference),
    /// `oci:DIR[:TAG][@DIGEST]`: a directory in the OCI image layout.
    OciLayout(LocalReference),
    /// `oci-archive:FILE[:TAG][@DIGEST]`: a tar of an OCI image layout.
    OciArchive(LocalReference),
    /// `docker-archive:FILE[:NAME[:TAG]]`: what `docker save` writes.
    DockerArchive(LocalReference),
    /// `dir:PATH`: a root file system as a directory.
    Directory(PathBuf),
    /// `tar:FILE`: a root file system as a tar; `tar:-` is standard input.
    Tar(TarFile),
    /// `dockerd://IMAGE[:TAG]`: an image of the Docker daemon of this machine.
    Docker(LocalImage),
    /// `podman://IMAGE[:TAG]`: an image of the user's podman.
    Podman(LocalImage),
    /// `-`: an image archive or a root file system on standard input, whichever comes.
    Stdin,
}

/// An image among those in a local directory or archive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalReference {
    /// The directory or archive.
    pub path: PathBuf,
    /// Which image: a tag or a name with a tag; None when there is just one.
    pub name: Option<String>,
    /// The image's manifest digest.
    pub digest: Option<Digest>,
}

/// Where a tar is read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TarFile {
    /// Standard input.
    Stdin,
    /// A file.
    Path(PathBuf),
}

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// There is no scheme, or one that does not exist.
    #[error("`{text}` has no scheme that is known: expected one of {SCHEMES}")]
    Scheme {
        /// The text.
        text: String,
    },
    /// Nothing stands where something is required.
    #[error("`{text}` lacks {what}")]
    Missing {
        /// The text.
        text: String,
        /// What is missing.
        what: &'static str,
    },
    /// A password was given in the reference, where process lists and logs would show it. The text is not repeated.
    #[error("the user part of a reference must not hold a password")]
    Password,
    /// The user name holds a character that cannot be in one.
    #[error("user name of the reference holds the character {character:?}, which is not allowed")]
    User {
        /// The first such character.
        character: char,
    },
    /// The registry is no host name or address with an optional port.
    #[error(
        "`{registry}` is not a registry: expected HOST or HOST:PORT, or an IPv6 address in brackets"
    )]
    Registry {
        /// The text that stands for the registry.
        registry: String,
    },
    /// A name breaks the grammar of the distribution specification.
    #[error("image name `{name}` is malformed: {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A tag breaks the grammar of the distribution specification.
    #[error("tag `{tag}` is malformed: {problem}")]
    Tag {
        /// The tag.
        tag: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The digest is malformed.
    #[error("the digest of the reference is malformed")]
    Digest(#[from] DigestError),
}

impl Reference {
    /// The name that a file with this image gets when the user gives none: `docker://ml/python:3` gives `ml+python+3.sqsh`.
    ///
    /// As enroot 4 names it: the repository without `library/`, then `+` and the digest, the tag or `latest`. Other sources are named after
    /// their file. None where nothing gives a name (standard input, `dir:/`).
    #[must_use]
    pub fn default_file_name(&self) -> Option<String> {
        let stem = match self {
            Self::Registry(reference) => reference.file_stem(),
            Self::OciLayout(local) | Self::OciArchive(local) | Self::DockerArchive(local) => {
                let mut stem = path_stem(&local.path)?;
                if let Some(name) = &local.name {
                    stem.push('+');
                    stem.push_str(&name.replace([':', '/'], "+"));
                }
                stem
            }
            Self::Directory(path) | Self::Tar(TarFile::Path(path)) => path_stem(path)?,
            Self::Docker(image) | Self::Podman(image) => image.file_stem(),
            Self::Tar(TarFile::Stdin) | Self::Stdin => return None,
        };
        Some(format!("{stem}.sqsh"))
    }

    /// The reference as provenance: complete, canonical, and without the user.
    #[must_use]
    pub fn canonical(&self) -> String {
        match self {
            Self::Registry(reference) => reference.canonical(),
            other => other.to_string(),
        }
    }
}

/// The last component of a path without the extensions of archives.
fn path_stem(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let stem = ["", ".gz", ".tgz", ".zst", ".xz"]
        .iter()
        .find_map(|extension| {
            let whole = name.strip_suffix(extension)?;
            whole
                .strip_suffix(".tar")
                .or((!extension.is_empty()).then_some(whole))
        })
        .unwrap_or(&name);
    Some(if stem.is_empty() {
        name.clone()
    } else {
        stem.to_owned()
    })
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Some(rest) = text.strip_prefix("docker://") {
            return rest.parse().map(Self::Registry);
        }
        // What parses both kinds of names speaks of registries.
        let of_engine = |error| match error {
            ReferenceError::Missing { what, .. } => ReferenceError::Missing {
                text: text.to_owned(),
                what,
            },
            error => error,
        };
        if let Some(rest) = text.strip_prefix("dockerd://") {
            return rest.parse().map(Self::Docker).map_err(of_engine);
        }
        if let Some(rest) = text.strip_prefix("podman://") {
            return rest.parse().map(Self::Podman).map_err(of_engine);
        }
        if text == "-" {
            return Ok(Self::Stdin);
        }
        let unknown = || ReferenceError::Scheme {
            text: text.to_owned(),
        };
        let (scheme, rest) = text.split_once(':').ok_or_else(unknown)?;
        let path = |what: &str| {
            if what.is_empty() {
                Err(ReferenceError::Missing {
                    text: text.to_owned(),
                    what: "a path",
                })
            } else {
                Ok(PathBuf::from(what))
            }
        };
        match scheme {
            "oci" => local(text, rest).map(Self::OciLayout),
            "oci-archive" => local(text, rest).map(Self::OciArchive),
            "docker-archive" => local(text, rest).map(Self::DockerArchive),
            "dir" => path(rest).map(Self::Directory),
            "tar" if rest == "-" => Ok(Self::Tar(TarFile::Stdin)),
            "tar" => path(rest).map(|path| Self::Tar(TarFile::Path(path))),
            _ => Err(unknown()),
        }
    }
}

/// `PATH[:NAME][@DIGEST]`.
fn local(text: &str, rest: &str) -> Result<LocalReference, ReferenceError> {
    // An `@` is common in paths; only one before something like a digest begins a digest.
    let (rest, digest) = match rest.rsplit_once("@sha256:") {
        Some((before, hex)) => (before, Some(format!("sha256:{hex}").parse()?)),
        None => (rest, None),
    };
    let last_component = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (path, name) = match rest[last_component..].find(':') {
        Some(colon) => {
            let colon = last_component + colon;
            (&rest[..colon], Some(&rest[colon + 1..]))
        }
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(ReferenceError::Missing {
            text: text.to_owned(),
            what: "a path",
        });
    }
    if let Some(name) = name {
        if name.is_empty() {
            return Err(ReferenceError::Missing {
                text: text.to_owned(),
                what: "a tag after the colon",
            });
        }
        let (tag, before) = match name.rsplit_once(':') {
            Some((before, tag)) => (tag, Some(before)),
            None => (name, None),
        };
        registry::check_tag(tag)?;
        before.map_or(Ok(()), registry::check_repository)?;
    }
    Ok(LocalReference {
        path: PathBuf::from(path),
        name: name.map(str::to_owned),
        digest,
    })
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => fmt::Display::fmt(reference, f),
            Self::OciLayout(local) => write!(f, "oci:{local}"),
            Self::OciArchive(local) => write!(f, "oci-archive:{local}"),
            Self::DockerArchive(local) => write!(f, "docker-archive:{local}"),
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::Tar(TarFile::Path(path)) => write!(f, "tar:{}", path.display()),
            Self::Tar(TarFile::Stdin) => f.write_str("tar:-"),
            Self::Docker(image) => write!(f, "dockerd://{image}"),
            Self::Podman(image) => write!(f, "podman://{image}"),
            Self::Stdin => f.write_str("-"),
        }
    }
}

impl fmt::Display for LocalReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(name) = &self.name {
            write!(f, ":{name}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Reference {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn local_references_split_into_path_name_and_digest() {
        let with_digest = format!("oci:/a/b:1.0@sha256:{HEX}");
        for (text, path, name, digest) in [
            ("oci:dir", "dir", None, false),
            ("oci:/a/b:latest", "/a/b", Some("latest"), false),
            ("oci:/a:b/c", "/a:b/c", None, false),
            ("oci:/a:b/c:d", "/a:b/c", Some("d"), false),
            ("oci:/a@b/c", "/a@b/c", None, false),
            ("oci-archive:x.tar:1", "x.tar", Some("1"), false),
            (
                "docker-archive:x.tar:name:tag",
                "x.tar",
                Some("name:tag"),
                false,
            ),
            (with_digest.as_str(), "/a/b", Some("1.0"), true),
        ] {
            let (Reference::OciLayout(local)
            | Reference::OciArchive(local)
            | Reference::DockerArchive(local)) = parse(text)
            else {
                panic!("{text}");
            };
            assert_eq!(local.path, Path::new(path), "{text}");
            assert_eq!(local.name.as_deref(), name, "{text}");
            assert_eq!(local.digest.is_some(), digest, "{text}");
        }
    }

    #[test]
    fn every_reference_shows_what_was_parsed() {
        for text in [
            "oci:dir",
            "oci:/a/b:latest",
            "oci-archive:x.tar",
            "docker-archive:x.tar:name:tag",
            "dir:/srv/root",
            "tar:root.tar.gz",
            "tar:-",
            "-",
            "dockerd://x:1",
            "podman://localhost/a/b:1",
        ] {
            assert_eq!(parse(text).to_string(), text);
            assert_eq!(parse(text).canonical(), text);
        }
    }

    #[test]
    fn default_file_names() {
        let digest = format!("docker://ubuntu@sha256:{HEX}");
        let digest_name = format!("ubuntu+sha256:{HEX}.sqsh");
        for (text, name) in [
            ("docker://127.0.0.1:5000/ml/python:3", "ml+python+3.sqsh"),
            ("docker://ubuntu", "ubuntu+latest.sqsh"),
            ("docker://library/ubuntu:22.04", "ubuntu+22.04.sqsh"),
            (
                "docker://nvcr.io#nvidia/pytorch:23.01-py3",
                "nvidia+pytorch+23.01-py3.sqsh",
            ),
            (digest.as_str(), digest_name.as_str()),
            ("docker://quay.io/library/x:1", "library+x+1.sqsh"),
            ("oci:/a/layout:1", "layout+1.sqsh"),
            ("oci-archive:/a/image.tar", "image.sqsh"),
            ("docker-archive:image.tar:name:tag", "image+name+tag.sqsh"),
            ("dir:/srv/root", "root.sqsh"),
            ("tar:root.tar.zst", "root.sqsh"),
            ("tar:root.tgz", "root.sqsh"),
            ("tar:.tar", ".tar.sqsh"),
            ("dockerd://ubuntu", "ubuntu+latest.sqsh"),
            ("dockerd://quay.io/a/b:1", "a+b+1.sqsh"),
            ("podman://localhost/mine:2", "mine+2.sqsh"),
            ("podman://0123456789ab", "0123456789ab.sqsh"),
        ] {
            assert_eq!(
                parse(text).default_file_name().as_deref(),
                Some(name),
                "{text}"
            );
        }
        assert_eq!(parse("tar:-").default_file_name(), None);
        assert_eq!(parse("dir:/").default_file_name(), None);
    }

    #[test]
    fn unknown_schemes_are_answered_with_those_that_exist() {
        for text in [
            "",
            "ubuntu",
            "ubuntu:22.04",
            "docker:ubuntu",
            "http://x",
            "OCI:x",
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(matches!(error, ReferenceError::Scheme { .. }), "{text}");
            assert!(error.to_string().contains("oci-archive:FILE"), "{error}");
        }
    }

    #[test]
    fn incomplete_local_references_are_refused() {
        for text in [
            "oci:",
            "oci::tag",
            "oci:dir:",
            "dir:",
            "tar:",
            "docker-archive:x:Name:tag",
            "oci:x:-tag",
            "oci:x@sha256:00",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
