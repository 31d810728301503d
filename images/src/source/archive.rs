//! The members of a tar archive, found once and read where they lie.
//!
//! `docker save` and `podman save` write image archives whose members come in no useful order, so the headers are walked once, skipping
//! over the content, and members are then read at their offsets, by any number of readers at once. Header bytes are read through a budget:
//! a hostile archive costs a bounded amount of memory and time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SourceError;

/// Most header bytes that are read from an archive: 100,000 members with long names are about this.
const MAX_HEADERS: u64 = 128 << 20;

/// Most links that are followed from a name to its content.
const MAX_LINKS: usize = 8;

/// A part of a file, read from its first byte without moving the file's position.
#[derive(Clone, Debug)]
pub(crate) struct FileRange {
    file: Arc<File>,
    offset: u64,
    remaining: u64,
}

impl FileRange {
    /// The first `size` bytes of a file.
    pub(crate) fn whole(file: File, size: u64) -> Self {
        Self {
            file: Arc::new(file),
            offset: 0,
            remaining: size,
        }
    }

    /// Bytes left to read.
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }

    /// All of a small file, the member or file `name` of `container`, if it is not larger than `limit`.
    pub(super) fn read_small(
        self,
        container: &Path,
        name: &str,
        limit: u64,
    ) -> Result<Vec<u8>, SourceError> {
        if self.remaining > limit {
            return Err(SourceError::TooLarge {
                what: format!("`{name}` of `{}`", container.display()),
                expected: limit,
            });
        }
        let mut content = Vec::new();
        self.take(limit)
            .read_to_end(&mut content)
            .map_err(|source| SourceError::Read {
                path: container.join(name),
                source,
            })?;
        Ok(content)
    }
}

impl Read for FileRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted =
            usize::try_from(self.remaining).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += read as u64;
        self.remaining -= read as u64;
        Ok(read)
    }
}

#[derive(Debug)]
enum Member {
    Content { offset: u64, size: u64 },
    Link(String),
}

/// The index of an archive.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: HashMap<String, Member>,
}

impl Archive {
    /// Opens an archive and walks its headers.
    pub(crate) fn open(path: &Path) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(|source| SourceError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::of(file, path)
    }

    /// An archive in an open file, which `path` names in messages.
    pub(crate) fn of(file: File, path: &Path) -> Result<Self, SourceError> {
        let unreadable = |source| SourceError::Read {
            path: path.to_owned(),
            source,
        };
        let metadata = file.metadata().map_err(unreadable)?;
        let not_an_archive = |problem: String| SourceError::NotA {
            path: path.to_owned(),
            expected: "image archive",
            problem,
        };
        if !metadata.is_file() {
            return Err(not_an_archive("it is not a regular file".to_owned()));
        }
        let mut magic = [0; 6];
        let read = file.read_at(&mut magic, 0).map_err(unreadable)?;
        if let Some(compression) = compression_of(&magic[..read]) {
            return Err(SourceError::CompressedArchive {
                path: path.to_owned(),
                compression,
            });
        }
        let members = index(&file, metadata.len()).map_err(|source| {
            not_an_archive(format!("it is no tar archive, or is cut short ({source})"))
        })?;
        if members.is_empty() {
            return Err(not_an_archive("it has no members".to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            members,
        })
    }

    /// The archive's own path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is such a file in the archive.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.member(name).is_some()
    }

    /// The content of a member; None when there is no such file in the archive.
    pub(crate) fn member(&self, name: &str) -> Option<FileRange> {
        let mut name = normalize(name)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                Member::Content { offset, size } => {
                    return Some(FileRange {
                        file: Arc::clone(&self.file),
                        offset: *offset,
                        remaining: *size,
                    });
                }
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

/// What a file that is no tar is compressed with, by its first bytes.
pub(super) fn compression_of(magic: &[u8]) -> Option<&'static str> {
    [
        (&b"\x1f\x8b"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
    ]
    .into_iter()
    .find_map(|(start, name)| magic.starts_with(start).then_some(name))
}

/// Reads at most so many bytes; seeking is free.
struct Budget<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Budget<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("it has too many members"))?;
        Ok(read)
    }
}

impl<R: Seek> Seek for Budget<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}

fn index(mut file: &File, length: u64) -> io::Result<HashMap<String, Member>> {
    file.rewind()?;
    let mut archive = tar::Archive::new(Budget {
        inner: BufReader::with_capacity(4096, file),
        left: MAX_HEADERS,
    });
    let mut members = HashMap::new();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = entry.path_bytes();
        // A name that is not UTF-8 cannot be one that a manifest names.
        let Some(name) = std::str::from_utf8(&path).ok().and_then(normalize) else {
            continue;
        };
        let kind = entry.header().entry_type();
        let member = if kind.is_file() || kind.is_contiguous() {
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(size).is_none_or(|end| end > length) {
                return Err(io::Error::other(format!("it is truncated within `{name}`")));
            }
            Member::Content { offset, size }
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let Ok(target) = std::str::from_utf8(&target) else {
                continue;
            };
            let from = if kind.is_symlink() {
                // Relative to the directory of the link: archives of Docker before 25 share layers so.
                match name.rsplit_once('/') {
                    Some((directory, _)) => format!("{directory}/{target}"),
                    None => target.to_owned(),
                }
            } else {
                target.to_owned()
            };
            match normalize(&from) {
                Some(target) => Member::Link(target),
                None => continue,
            }
        } else {
            continue;
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// A name without `.`, `..` and doubled slashes; None when it leads out of the archive or names its root.
fn normalize(name: &str) -> Option<String> {
    let mut components = Vec::new();
    for component in name.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop()?;
            }
            component => components.push(component),
        }
    }
    (!components.is_empty()).then(|| components.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (tempfile::TempDir, Vec<u8>) {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        (tempfile::tempdir().unwrap(), builder.into_inner().unwrap())
    }

    fn open(directory: &tempfile::TempDir, content: &[u8]) -> Result<Archive, SourceError> {
        let path = directory.path().join("archive.tar");
        std::fs::write(&path, content).unwrap();
        Archive::open(&path)
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, content).unwrap();
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, name: &str, target: &str, kind: tar::EntryType) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, name, target).unwrap();
    }

    #[test]
    fn members_are_found_through_links_and_long_names() {
        let long = format!("{}/layer.tar", "d".repeat(180));
        let (directory, content) = archive(|builder| {
            add(builder, "a/layer.tar", b"content");
            add(builder, &long, b"long");
            link(
                builder,
                "b/layer.tar",
                "../a/layer.tar",
                tar::EntryType::Symlink,
            );
            link(builder, "c/layer.tar", "b/layer.tar", tar::EntryType::Link);
            link(builder, "loop", "loop", tar::EntryType::Symlink);
            link(builder, "out", "../../etc/passwd", tar::EntryType::Symlink);
        });
        let archive = open(&directory, &content).unwrap();
        for (name, expected) in [
            ("a/layer.tar", Some("content")),
            ("./a//layer.tar", Some("content")),
            ("b/layer.tar", Some("content")),
            ("c/layer.tar", Some("content")),
            (long.as_str(), Some("long")),
            ("loop", None),
            ("out", None),
            ("a", None),
            ("../a/layer.tar", None),
        ] {
            let read = archive.member(name).map(|mut range| {
                let mut text = String::new();
                range.read_to_string(&mut text).unwrap();
                text
            });
            assert_eq!(read.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_archive_is_told_apart() {
        let (directory, content) = archive(|builder| add(builder, "a", &[7; 4096]));
        let truncated = open(&directory, &content[..2048]).unwrap_err();
        assert!(truncated.to_string().contains("truncated"), "{truncated}");
        let gzip = open(&directory, b"\x1f\x8b\x08\0\0\0\0\0").unwrap_err();
        assert!(matches!(
            gzip,
            SourceError::CompressedArchive {
                compression: "gzip",
                ..
            }
        ));
        for garbage in [&b"hello"[..], &[], &[0; 1024], &[b'x'; 4096]] {
            assert!(matches!(
                open(&directory, garbage),
                Err(SourceError::NotA { .. })
            ));
        }
        assert!(matches!(
            Archive::open(directory.path()),
            Err(SourceError::NotA { .. })
        ));
        assert!(matches!(
            Archive::open(Path::new("/nonexistent")),
            Err(SourceError::Read { .. })
        ));
    }

    #[test]
    fn endless_headers_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive.tar");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(1 << 40);
        header.set_cksum();
        let mut file = File::create(&path).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        // Sparse: costs no disk, but would be read to its end as one extended header.
        file.set_len(1 << 40).unwrap();
        let error = Archive::open(&path).unwrap_err();
        assert!(error.to_string().contains("too many"), "{error}");
    }
}
