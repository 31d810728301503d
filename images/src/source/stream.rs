//! Images that come as a stream: on standard input, from the Docker daemon, from podman.
//!
//! The first bytes tell what comes. A root file system is imported as it comes. An image archive is not: its members stand in any order,
//! the list of its layers mostly last, and the uppermost layer has to be read first. So it is kept in a file without a name, once, until the
//! import is done; the file goes away with the process, however that ends.

use std::fs::{DirBuilder, File};
use std::io::{self, Cursor, Read, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::archive::{Archive, compression_of};
use super::docker_archive::DockerArchive;
use super::engine::{self, Export};
use super::flat::{self, FlatTar, Interruptible};
use super::layout::OciLayout;
use super::verified::stream_error;
use super::{ResolvedImage, Settings, Source, SourceError, Task};
use crate::digest::Digest;
use crate::layer::Limits;
use crate::layer::decompress::Decoder;
use crate::platform::Platform;
use crate::progress::Event;
use crate::reference::Reference;

/// Bytes by which a stream is recognised: more than the first compressed block of any format.
const START: u64 = 256 << 10;

/// Bytes that are passed on at once.
const PIECE: usize = 256 << 10;

/// Where a temporary file goes unless it is told.
const TEMPORARY: &str = "/var/tmp";

/// An image that comes as a stream, which is looked into when it is first asked for.
pub(super) struct StreamSource {
    reference: Reference,
    temporary: PathBuf,
    docker_socket: Option<PathBuf>,
    limits: Limits,
    found: OnceLock<Box<dyn Source>>,
}

impl StreamSource {
    pub(super) fn new(reference: Reference, settings: &Settings) -> Self {
        Self {
            reference,
            temporary: settings
                .temporary
                .clone()
                .unwrap_or_else(|| PathBuf::from(TEMPORARY)),
            docker_socket: settings.docker_socket.clone(),
            limits: settings.limits,
            found: OnceLock::new(),
        }
    }

    fn source(&self, task: Task<'_>) -> Result<&dyn Source, SourceError> {
        if let Some(found) = self.found.get() {
            return Ok(found.as_ref());
        }
        let found = self.look(task)?;
        Ok(self.found.get_or_init(|| found).as_ref())
    }

    /// Looks at the beginning of the stream, and keeps it where it has to be kept.
    fn look(&self, task: Task<'_>) -> Result<Box<dyn Source>, SourceError> {
        let (stream, before, export) = match &self.reference {
            Reference::Docker(image) => {
                let socket = self.docker_socket.as_deref();
                opened(engine::from_docker(socket, &image.wanted())?)?
            }
            Reference::Podman(image) => opened(engine::from_podman(&image.wanted())?)?,
            _ => (flat::stdin()?, Vec::new(), None),
        };
        let name = PathBuf::from(self.reference.to_string());
        let unreadable = |source| SourceError::Read {
            path: name.clone(),
            source,
        };
        let rest = stream.try_clone().map_err(unreadable)?;
        let mut stream = Cursor::new(before).chain(Interruptible::new(stream, task));
        let mut start = Vec::new();
        stream
            .by_ref()
            .take(START)
            .read_to_end(&mut start)
            .map_err(|error| read_error(&name, error))?;
        // An engine that fails mostly says nothing at all.
        let is_archive = export.is_some() || is_image_archive(&start);
        if !is_archive {
            let reference = self.reference.canonical();
            return Ok(Box::new(FlatTar::stream(start, rest, reference)));
        }
        let is_compressed = compression_of(&start).is_some();
        let whole = Cursor::new(start).chain(stream);
        let file = self.keep(whole, is_compressed, &name, task)?;
        if let Some(export) = export {
            export.finish()?;
        }
        self.open(file, name)
    }

    /// Opens what was kept.
    fn open(&self, file: File, name: PathBuf) -> Result<Box<dyn Source>, SourceError> {
        let reference = self.reference.canonical();
        let again = file.try_clone().map_err(|source| SourceError::Read {
            path: name.clone(),
            source,
        })?;
        let archive = Archive::of(file, &name)?;
        // Docker 25 and later write both; what they have in common is enough.
        Ok(if archive.has("manifest.json") {
            Box::new(DockerArchive::of(archive, reference))
        } else if archive.has("index.json") {
            Box::new(OciLayout::of(archive, reference))
        } else {
            Box::new(FlatTar::whole(again, name, reference)?)
        })
    }

    /// Writes a stream to a file without a name, decompressed.
    fn keep<'a>(
        &self,
        stream: impl Read + Send + 'a,
        is_compressed: bool,
        name: &Path,
        task: Task<'a>,
    ) -> Result<File, SourceError> {
        let cannot_keep = |source| SourceError::Spool {
            path: self.temporary.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.temporary)
            .map_err(cannot_keep)?;
        let mut file = nameless_file(&self.temporary).map_err(cannot_keep)?;
        let mut stream: Box<dyn Read + Send + 'a> = if is_compressed {
            let decoder = Decoder::new(Box::new(stream), self.limits);
            let decoder = decoder.map_err(|error| read_error(name, io::Error::other(error)))?;
            Box::new(Decoded(decoder))
        } else {
            Box::new(stream)
        };
        let mut piece = vec![0; PIECE];
        loop {
            let read = match stream.read(&mut piece) {
                Ok(0) => return Ok(file),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_error(name, error)),
            };
            file.write_all(&piece[..read]).map_err(cannot_keep)?;
            task.progress
                .event(Event::ArchiveReceived { bytes: read as u64 });
            task.cancel.check()?;
        }
    }
}

/// The stream of an engine, what was read of it, and the engine to ask at the end.
fn opened(mut export: Export) -> Result<(File, Vec<u8>, Option<Export>), SourceError> {
    let start = std::mem::take(&mut export.start);
    let stream = export
        .stream
        .try_clone()
        .map_err(|source| SourceError::Read {
            path: PathBuf::from("an engine"),
            source,
        })?;
    Ok((stream, start, Some(export)))
}

/// A file that goes away with its last descriptor.
fn nameless_file(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => return Ok(File::from(file)),
        // What file systems without O_TMPFILE say (open(2)).
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    let path = directory.join(format!(".cista-archive-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// An error of reading a stream, which may carry one of ours.
fn read_error(name: &Path, error: io::Error) -> SourceError {
    match error.downcast::<SourceError>() {
        Ok(error) => error,
        Err(source) => SourceError::Read {
            path: name.to_owned(),
            source,
        },
    }
}

/// A decoder as a reader.
struct Decoded<'a>(Decoder<'a>);

impl Read for Decoded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.fill(buffer).map_err(|error| match error {
            crate::layer::decompress::DecodeError::Read(error) => error,
            error => stream_error(SourceError::Read {
                path: PathBuf::from("-"),
                source: io::Error::other(error),
            }),
        })
    }
}

/// Whether a stream that begins so is an image archive: its first names are those that archives begin with.
fn is_image_archive(start: &[u8]) -> bool {
    let Ok(mut decoder) = Decoder::new(Box::new(Cursor::new(start)), Limits::default()) else {
        return false;
    };
    // Two headers without content, or one of a file.
    let mut headers = vec![0; 1024];
    let mut filled = 0;
    for header in headers.chunks_mut(512) {
        match decoder.fill(header) {
            Ok(length) => filled += length,
            Err(_) => break,
        }
    }
    let names = headers[..filled].chunks_exact(512).map(header_name);
    let mut names = names.map(|name| name.trim_start_matches("./").to_owned());
    let first = names.next().unwrap_or_default();
    match first.as_str() {
        "blobs/" => names
            .next()
            .is_some_and(|name| name.starts_with("blobs/sha256")),
        // Some tools begin with the root itself.
        "" => names.next().is_some_and(|name| is_member(&name)),
        name => is_member(name),
    }
}

/// The name in a tar header, as far as it is text.
fn header_name(header: &[u8]) -> String {
    let name = &header[..100];
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(100);
    String::from_utf8_lossy(&name[..end]).into_owned()
}

fn is_member(name: &str) -> bool {
    let stem = name.split(['/', '.']).next().unwrap_or_default();
    let is_number = stem.len() == 64 && stem.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_number
        || name.starts_with("blobs/sha256")
        || matches!(
            name,
            "oci-layout" | "index.json" | "manifest.json" | "repositories" | "blobs/"
        )
}

impl Source for StreamSource {
    fn resolve(&self, platform: &Platform, task: Task<'_>) -> Result<ResolvedImage, SourceError> {
        self.source(task)?.resolve(platform, task)
    }

    fn digest(&self, platform: &Platform, task: Task<'_>) -> Result<Option<Digest>, SourceError> {
        self.source(task)?.digest(platform, task)
    }

    fn open_layer<'a>(
        &'a self,
        image: &ResolvedImage,
        layer: usize,
        task: Task<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>, SourceError> {
        self.source(task)?.open_layer(image, layer, task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(names: &[&str]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
            }
            builder.append_data(&mut header, name, &b""[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn archives_are_told_from_root_file_systems() {
        let number = "0123456789abcdef".repeat(4);
        for (names, expected) in [
            (&["blobs/", "blobs/sha256/"][..], true),
            (&["oci-layout"], true),
            (&["manifest.json"], true),
            (&[&format!("{number}.tar")], true),
            (&[&format!("{number}/"), &format!("{number}/VERSION")], true),
            (&["bin/", "bin/sh"], false),
            (&["./", "./bin"], false),
            (&["blobs/", "blobs/mine"], false),
            (&[".dockerenv"], false),
            (&[], false),
        ] {
            let plain = tar(names);
            assert_eq!(is_image_archive(&plain), expected, "{names:?}");
            let zstd = zstd::encode_all(&plain[..], 1).unwrap();
            assert_eq!(is_image_archive(&zstd), expected, "{names:?}");
        }
        assert!(!is_image_archive(b"no archive at all"));
    }

    #[test]
    fn a_kept_file_has_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = nameless_file(directory.path()).unwrap();
        file.write_all(b"x").unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
