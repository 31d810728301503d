//! Writing a layer: tar, compressed, hashed twice (image-spec, "Image Layer Filesystem Changeset").

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::error::{HarnessError, IoContext as _};
use crate::listing::{hex, read_xattrs};

use super::layout::Descriptor;

/// How a layer blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// As most images are: zlib's default level.
    Gzip,
    /// zstd at its default level.
    Zstd,
    /// zstd at its fastest common level, for images whose size is the point.
    ZstdFast,
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd | Self::ZstdFast => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Counts and hashes what passes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            size: 0,
        }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(piece)?;
        self.hash.update(&piece[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

type Blob = Hashing<BufWriter<File>>;

enum Encoder {
    Plain(Blob),
    Gzip(flate2::write::GzEncoder<Blob>),
    Zstd(zstd::Encoder<'static, Blob>),
}

impl Encoder {
    fn new(blob: Blob, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(blob),
            Compression::Gzip => Self::Gzip(flate2::write::GzEncoder::new(
                blob,
                flate2::Compression::default(),
            )),
            Compression::Zstd => Self::Zstd(zstd::Encoder::new(blob, 3)?),
            Compression::ZstdFast => Self::Zstd(zstd::Encoder::new(blob, 1)?),
        })
    }

    fn finish(self) -> io::Result<Blob> {
        let mut blob = match self {
            Self::Plain(blob) => blob,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Zstd(encoder) => encoder.finish()?,
        };
        blob.flush()?;
        Ok(blob)
    }
}

impl Write for Encoder {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(blob) => blob.write(piece),
            Self::Gzip(encoder) => encoder.write(piece),
            Self::Zstd(encoder) => encoder.write(piece),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(blob) => blob.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// A layer that is being written.
pub struct LayerWriter {
    tar: tar::Builder<Hashing<Encoder>>,
    compression: Compression,
    /// The directory of the blobs.
    directory: PathBuf,
    /// Where the blob is until its digest is known.
    temporary: PathBuf,
    /// First name of each inode with several names, by device and inode number.
    links: std::collections::HashMap<(u64, u64), PathBuf>,
}

impl LayerWriter {
    /// Begins a layer whose blob goes to a directory, usually `blobs/sha256` of a layout.
    pub fn create(directory: &Path, compression: Compression) -> Result<Self, HarnessError> {
        let temporary = directory.join(format!(".layer-{:?}", std::thread::current().id()));
        let file = File::create(&temporary).context("create", &temporary)?;
        let blob = Hashing::new(BufWriter::with_capacity(1 << 20, file));
        let encoder = Encoder::new(blob, compression).context("compress", &temporary)?;
        let mut tar = tar::Builder::new(Hashing::new(encoder));
        tar.follow_symlinks(false);
        // No builder of images writes GNU's sparse entries, and umoci knows nothing of them.
        tar.sparse(false);
        Ok(Self {
            tar,
            compression,
            directory: directory.to_owned(),
            temporary,
            links: std::collections::HashMap::new(),
        })
    }

    /// The tar under the layer, for entries that no file system would give.
    pub fn tar(&mut self) -> &mut tar::Builder<impl Write + use<>> {
        &mut self.tar
    }

    /// Adds an entry with a header that is complete but for its path and checksum.
    pub fn entry(
        &mut self,
        path: &[u8],
        mut header: tar::Header,
        content: &[u8],
    ) -> Result<(), HarnessError> {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        self.tar
            .append_data(&mut header, path, content)
            .context("archive", path)
    }

    /// Adds a regular file of mode 0644.
    pub fn file(&mut self, path: &str, content: &[u8]) -> Result<(), HarnessError> {
        let header = header(tar::EntryType::Regular, 0o644, content.len() as u64);
        self.entry(path.as_bytes(), header, content)
    }

    /// Adds a directory of mode 0755.
    pub fn directory(&mut self, path: &str) -> Result<(), HarnessError> {
        let header = header(tar::EntryType::Directory, 0o755, 0);
        self.entry(path.as_bytes(), header, &[])
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), HarnessError> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.tar
            .append_link(&mut header, path, target)
            .context("archive", path)
    }

    /// Adds a hard link.
    pub fn hard_link(&mut self, path: &str, target: &str) -> Result<(), HarnessError> {
        let mut header = header(tar::EntryType::Link, 0o644, 0);
        self.tar
            .append_link(&mut header, path, target)
            .context("archive", path)
    }

    /// Adds a whiteout: the path is gone from the layers below.
    pub fn whiteout(&mut self, path: &str) -> Result<(), HarnessError> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let separator = if parent.is_empty() { "" } else { "/" };
        self.file(&format!("{parent}{separator}.wh.{name}"), &[])
    }

    /// Adds all that a directory contains, in byte order of names. Where it is the upper directory of an overlayfs mount, whiteouts
    /// and opaque directories (kernel, Documentation/filesystems/overlayfs.rst) become those of the image specification.
    /// Paths for which `skip` is true are left out, with all below them.
    pub fn tree(&mut self, root: &Path, skip: &dyn Fn(&Path) -> bool) -> Result<(), HarnessError> {
        self.subtree(root, Path::new(""), skip)
    }

    fn subtree(
        &mut self,
        root: &Path,
        below: &Path,
        skip: &dyn Fn(&Path) -> bool,
    ) -> Result<(), HarnessError> {
        let directory = root.join(below);
        let mut names = std::fs::read_dir(&directory)
            .and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.file_name()))
                    .collect::<io::Result<Vec<_>>>()
            })
            .context("read", &directory)?;
        names.sort();
        for name in names {
            let inside = below.join(&name);
            if skip(&inside) {
                continue;
            }
            let path = root.join(&inside);
            let metadata = path.symlink_metadata().context("look at", &path)?;
            let is_whiteout = metadata.file_type().is_char_device() && metadata.rdev() == 0;
            if is_whiteout {
                let marker = [b".wh.", name.as_bytes()].concat();
                let marker = below.join(std::ffi::OsStr::from_bytes(&marker));
                let header = header(tar::EntryType::Regular, 0o644, 0);
                self.entry(marker.as_os_str().as_bytes(), header, &[])?;
                continue;
            }
            self.existing(&path, &inside, &metadata)?;
            if metadata.is_dir() {
                let xattrs = read_xattrs(&path)?;
                if xattrs
                    .get("trusted.overlay.opaque".as_bytes())
                    .map(Vec::as_slice)
                    == Some(b"y")
                {
                    let marker = inside.join(".wh..wh..opq");
                    let header = header(tar::EntryType::Regular, 0o644, 0);
                    self.entry(marker.as_os_str().as_bytes(), header, &[])?;
                }
                self.subtree(root, &inside, skip)?;
            }
        }
        Ok(())
    }

    /// Adds a file of the file system under a name of the image.
    fn existing(
        &mut self,
        path: &Path,
        inside: &Path,
        metadata: &std::fs::Metadata,
    ) -> Result<(), HarnessError> {
        let xattrs = read_xattrs(path)?;
        let records: Vec<(String, &[u8])> = xattrs
            .iter()
            .filter(|(name, _)| !name.starts_with(b"trusted.overlay."))
            .map(|(name, value)| {
                let name = String::from_utf8_lossy(name);
                (format!("SCHILY.xattr.{name}"), value.as_slice())
            })
            .collect();
        if !records.is_empty() {
            self.tar
                .append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), *value)))
                .context("archive", path)?;
        }
        if metadata.is_file() && metadata.nlink() > 1 {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&key) {
                let mut header = tar::Header::new_gnu();
                header.set_metadata(metadata);
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                return self
                    .tar
                    .append_link(&mut header, inside, first)
                    .context("archive", path);
            }
            self.links.insert(key, inside.to_owned());
        }
        let kind = metadata.file_type();
        if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            return self.special(path, inside, metadata);
        }
        self.tar
            .append_path_with_name(path, inside)
            .context("archive", path)
    }

    /// Adds a named pipe or a device, whose name [`tar::Builder::append_path_with_name`] does not change.
    fn special(
        &mut self,
        path: &Path,
        inside: &Path,
        metadata: &std::fs::Metadata,
    ) -> Result<(), HarnessError> {
        let mut header = tar::Header::new_gnu();
        header.set_metadata(metadata);
        header.set_size(0);
        if !metadata.file_type().is_fifo() {
            let device = metadata.rdev();
            header
                .set_device_major(rustix::fs::major(device))
                .and_then(|()| header.set_device_minor(rustix::fs::minor(device)))
                .context("archive", path)?;
        }
        self.tar
            .append_data(&mut header, inside, io::empty())
            .context("archive", path)
    }

    /// Ends the layer: its blob gets its digest as name.
    pub fn finish(self) -> Result<Descriptor, HarnessError> {
        let place = &self.temporary;
        let uncompressed = self.tar.into_inner().context("write", place)?;
        let diff_id = format!("sha256:{}", hex(&uncompressed.hash.finalize()));
        let blob = uncompressed.inner.finish().context("write", place)?;
        let digest = hex(&blob.hash.finalize());
        let destination = self.directory.join(&digest);
        std::fs::rename(place, &destination).context("rename to", &destination)?;
        Ok(Descriptor {
            media_type: self.compression.media_type().to_owned(),
            digest: format!("sha256:{digest}"),
            size: blob.size,
            diff_id: Some(diff_id),
        })
    }
}

/// A GNU header with the owner root and a fixed time.
#[must_use]
pub fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(super::recipe::TIME);
    header
}
