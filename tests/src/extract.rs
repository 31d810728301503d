//! The independent opinion on what an image contains: GNU tar extracts its layers one above the other, bottom-up, and
//! this file removes what whiteouts hide (image-spec, "Image Layer Filesystem Changeset"). `cista` works top-down, with
//! other code in every part; the two have to agree.
//!
//! It needs root, for device nodes, owners and `trusted.` attributes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};

use crate::error::{HarnessError, IoContext as _};
use crate::image::{Descriptor, Layout};
use crate::listing::{Listing, plain_path};
use crate::program::Program;

/// An image extracted to a directory.
#[derive(Debug)]
pub struct Extracted {
    root: PathBuf,
    /// Directories that no layer has an entry for: they exist because something is in them.
    implied: Vec<Vec<u8>>,
}

impl Extracted {
    /// Lists what was extracted. The times of implied directories are not known, since no layer tells them.
    pub fn listing(&self) -> Result<Listing, HarnessError> {
        let mut listing = Listing::of_directory(&self.root)?;
        for path in &self.implied {
            if let Some(entry) = listing.entries.get_mut(path) {
                entry.mtime = None;
            }
        }
        Ok(listing)
    }
}

/// Extracts an image into a directory, which is made unless it is there, and empty then.
pub fn extract(layout: &Layout, root: &Path) -> Result<Extracted, HarnessError> {
    std::fs::create_dir_all(root).context("create", root)?;
    let plain = root.with_extension("layer.tar");
    // Modification times of directories, from the topmost layer with an entry for each.
    let mut times = BTreeMap::new();
    for layer in &layout.manifest.layers {
        decompress(layout, layer, &plain)?;
        apply(&plain, root, &mut times)?;
    }
    std::fs::remove_file(&plain).context("remove", &plain)?;
    let mut implied = Vec::new();
    for path in directories_below(root)? {
        let below = path
            .strip_prefix(root)
            .unwrap_or(&path)
            .as_os_str()
            .as_bytes()
            .to_vec();
        match times.get(&below) {
            Some(seconds) => set_time(&path, *seconds)?,
            None => implied.push(below),
        }
    }
    Ok(Extracted {
        root: root.to_owned(),
        implied,
    })
}

/// Opens a layer for reading its tar, whatever compression its media type names.
pub fn open_layer(
    layout: &Layout,
    layer: &Descriptor,
) -> Result<Box<dyn Read + Send>, HarnessError> {
    let path = layout.blob(&layer.digest);
    let file = io::BufReader::with_capacity(1 << 18, File::open(&path).context("open", &path)?);
    Ok(if layer.media_type.ends_with("gzip") {
        Box::new(flate2::bufread::MultiGzDecoder::new(file))
    } else if layer.media_type.ends_with("zstd") {
        Box::new(zstd::Decoder::with_buffer(file).context("decompress", &path)?)
    } else {
        Box::new(file)
    })
}

fn decompress(layout: &Layout, layer: &Descriptor, to: &Path) -> Result<(), HarnessError> {
    let mut tar = open_layer(layout, layer)?;
    let mut file = File::create(to).context("create", to)?;
    io::copy(&mut tar, &mut file).context("decompress to", to)?;
    Ok(())
}

fn apply(
    layer: &Path,
    root: &Path,
    times: &mut BTreeMap<Vec<u8>, i64>,
) -> Result<(), HarnessError> {
    let file = File::open(layer).context("open", layer)?;
    let mut archive = tar::Archive::new(file);
    let entries = archive.entries_with_seek().context("read", layer)?;
    let mut here = BTreeMap::new();
    for entry in entries {
        let entry = entry.context("read", layer)?;
        let path = plain_path(&entry.path_bytes());
        let split = path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) =
            split.map_or((&b""[..], &path[..]), |at| (&path[..at], &path[at + 1..]));
        if name == b".wh..wh..opq" {
            remove_below(root, parent, times)?;
        } else if name.starts_with(b".wh..wh.") {
            // What AUFS noted for itself.
        } else if let Some(hidden) = name.strip_prefix(b".wh.") {
            let separator: &[u8] = if parent.is_empty() { b"" } else { b"/" };
            let hidden = [parent, separator, hidden].concat();
            remove(root, &hidden, times)?;
        } else if entry.header().entry_type().is_dir() {
            let mtime = entry.header().mtime().context("read", layer)?;
            here.insert(path, i64::try_from(mtime).unwrap_or(i64::MAX));
        } else {
            // GNU tar replaces files by itself, but not a directory that is not empty.
            if inside(root, &path)
                .symlink_metadata()
                .is_ok_and(|place| place.is_dir())
            {
                remove(root, &path, times)?;
            }
            forget(times, &path);
        }
    }
    times.append(&mut here);
    Program::new("tar")
        .args([
            "--extract",
            "--preserve-permissions",
            "--same-owner",
            "--numeric-owner",
        ])
        .args(["--xattrs", "--xattrs-include=*"])
        .args([
            "--exclude=.wh.*",
            "--wildcards",
            "--anchored",
            "--exclude=*/.wh.*",
        ])
        .arg("--directory")
        .arg(root)
        .arg("--file")
        .arg(layer)
        .check()
        .map(drop)
}

fn inside(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}

fn remove(
    root: &Path,
    path: &[u8],
    times: &mut BTreeMap<Vec<u8>, i64>,
) -> Result<(), HarnessError> {
    forget(times, path);
    let place = inside(root, path);
    match place.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(metadata) if metadata.is_dir() => {
            std::fs::remove_dir_all(&place).context("remove", &place)
        }
        Ok(_) => std::fs::remove_file(&place).context("remove", &place),
    }
}

fn remove_below(
    root: &Path,
    directory: &[u8],
    times: &mut BTreeMap<Vec<u8>, i64>,
) -> Result<(), HarnessError> {
    let place = inside(root, directory);
    let Ok(entries) = std::fs::read_dir(&place) else {
        return Ok(());
    };
    for entry in entries {
        let name = entry.context("read", &place)?.file_name();
        let path = [directory, b"/", name.as_bytes()].concat();
        remove(root, &plain_path(&path), times)?;
    }
    Ok(())
}

/// Forgets the times of a path and of all below it.
fn forget(times: &mut BTreeMap<Vec<u8>, i64>, path: &[u8]) {
    times.retain(|known, _| {
        !known
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    });
}

/// The directories of a tree, the deepest first, the root last.
fn directories_below(root: &Path) -> Result<Vec<PathBuf>, HarnessError> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while next < found.len() {
        let directory = found[next].clone();
        for entry in std::fs::read_dir(&directory).context("read", &directory)? {
            let entry = entry.context("read", &directory)?;
            if entry.file_type().context("look at", entry.path())?.is_dir() {
                found.push(entry.path());
            }
        }
        next += 1;
    }
    found.reverse();
    Ok(found)
}

fn set_time(path: &Path, seconds: i64) -> Result<(), HarnessError> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).context("set the time of", path)
}
