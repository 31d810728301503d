//! What a file system tree contains, entry by entry, in a form that two trees can be compared in.
//!
//! Content is kept as its sha256, hard links as the name that sorts first among the names of the inode. So a listing
//! of an extracted image, of a mounted one and of a tar stream from inside a container can be held against each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::error::{HarnessError, IoContext as _};

/// Extended attributes: name to value.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Type and content of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Directory,
    /// A regular file: size in bytes, sha256.
    File(u64, String),
    /// A symbolic link to a target.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
    /// A character or block device.
    Device,
}

/// One name in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type and content.
    pub content: Content,
    /// The low 12 bits of `st_mode`.
    pub mode: u32,
    /// Modification time in whole seconds; None where it is not known.
    pub mtime: Option<i64>,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Of a file with several names: the one that sorts first. None for a file with one name, and for directories.
    pub linked_to: Option<Vec<u8>>,
    /// Number of links that the file system tells; None where it is not known.
    pub nlink: Option<u64>,
}

/// A tree: path below the root, without a leading slash, to entry. The root is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The entries.
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

impl Listing {
    /// Lists a directory, without following symbolic links and without crossing into directories of other file systems.
    pub fn of_directory(root: &Path) -> Result<Self, HarnessError> {
        let mut walk = Walk {
            root,
            listing: Self::default(),
            first_names: HashMap::new(),
            device: root.symlink_metadata().context("look at", root)?.dev(),
        };
        walk.visit(Path::new(""))?;
        Ok(walk.listing.with_links_named_by_their_first())
    }

    /// Lists a tar stream of the PAX format as GNU tar writes it. Link counts are not known from it.
    pub fn of_tar(stream: impl Read, what: &str) -> Result<Self, HarnessError> {
        let malformed = |why: &dyn std::fmt::Display| HarnessError::Malformed {
            what: what.to_owned(),
            why: why.to_string(),
        };
        let mut listing = Self::default();
        let mut archive = tar::Archive::new(stream);
        let mut records = BTreeMap::new();
        // The raw entries, since the records of attributes may hold newlines, which the crate takes for their ends.
        let entries = archive.entries().map_err(|error| malformed(&error))?;
        for entry in entries.raw(true) {
            let mut entry = entry.map_err(|error| malformed(&error))?;
            if entry.header().entry_type().is_pax_local_extensions() {
                let mut text = Vec::new();
                entry
                    .read_to_end(&mut text)
                    .map_err(|error| malformed(&error))?;
                records = pax_records(&text).ok_or_else(|| malformed(&"a PAX record"))?;
                continue;
            }
            let records = std::mem::take(&mut records);
            listing
                .add_entry(&mut entry, &records)
                .map_err(|error| malformed(&error))?;
        }
        Ok(listing.with_links_named_by_their_first())
    }

    /// Adds an entry of an archive with its PAX records.
    fn add_entry(
        &mut self,
        entry: &mut tar::Entry<'_, impl Read>,
        records: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> io::Result<()> {
        let text = |name: &str| records.get(name.as_bytes());
        let path = plain_path(text("path").map_or(&*entry.path_bytes(), Vec::as_slice));
        let target = text("linkpath").cloned();
        let target = target
            .or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let mut xattrs: Xattrs = records
            .iter()
            .filter_map(|(name, value)| {
                let name = name.strip_prefix(b"SCHILY.xattr.")?;
                Some((name.to_vec(), value.clone()))
            })
            .collect();
        let mode = entry.header().mode()? & 0o7777;
        let mtime = match text("mtime") {
            // Seconds, with a fraction that squashfs has no place for.
            Some(value) => String::from_utf8_lossy(value)
                .split('.')
                .next()
                .and_then(|seconds| seconds.parse().ok()),
            None => i64::try_from(entry.header().mtime()?).ok(),
        };
        let (content, linked_to) = match entry.header().entry_type() {
            tar::EntryType::Directory => (Content::Directory, None),
            tar::EntryType::Symlink => (Content::Symlink(target), None),
            tar::EntryType::Fifo => (Content::Fifo, None),
            tar::EntryType::Char | tar::EntryType::Block => (Content::Device, None),
            tar::EntryType::Link => {
                let first = plain_path(&target);
                let Some(named) = self.entries.get_mut(&first) else {
                    let why = format!("a link to the unknown {}", first.escape_ascii());
                    return Err(io::Error::other(why));
                };
                named.linked_to.get_or_insert_with(|| first.clone());
                xattrs = named.xattrs.clone();
                (named.content.clone(), Some(first))
            }
            _ => {
                let (size, hash) = hash_of(entry)?;
                (Content::File(size, hash), None)
            }
        };
        let entry = Entry {
            content,
            mode,
            mtime,
            xattrs,
            linked_to,
            nlink: None,
        };
        self.entries.insert(path, entry);
        Ok(())
    }

    /// What `cista import` makes of a tree (DESIGN.md section 2): no device nodes, files that their owner can read,
    /// directories that their owner can use, only the `user.` attributes and `security.capability`.
    #[must_use]
    pub fn as_imported(mut self) -> Self {
        self.entries
            .retain(|_, entry| entry.content != Content::Device);
        for entry in self.entries.values_mut() {
            match entry.content {
                Content::Directory => entry.mode |= 0o700,
                Content::File(..) => entry.mode |= 0o400,
                _ => {}
            }
            entry.xattrs.retain(|name, _| {
                name.starts_with(b"user.") || name.as_slice() == b"security.capability"
            });
        }
        self.with_links_named_by_their_first()
    }

    /// Leaves out paths, with all below them.
    #[must_use]
    pub fn without(mut self, paths: &[&str]) -> Self {
        self.entries.retain(|path, _| {
            !paths.iter().any(|excluded| {
                path.strip_prefix(excluded.as_bytes())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            })
        });
        self.with_links_named_by_their_first()
    }

    /// Forgets the times of these paths: whoever changed what is in them had to change the times.
    #[must_use]
    pub fn without_times_of(mut self, paths: &[&str]) -> Self {
        for path in paths {
            if let Some(entry) = self.entries.get_mut(path.as_bytes()) {
                entry.mtime = None;
            }
        }
        self
    }

    /// Changes every entry.
    #[must_use]
    pub fn map(mut self, change: impl Fn(&[u8], &mut Entry)) -> Self {
        for (path, entry) in &mut self.entries {
            change(path, entry);
        }
        self
    }

    /// What differs from another listing, a line each, at most 20 lines. What either does not know is not compared.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let paths: BTreeSet<_> = self.entries.keys().chain(other.entries.keys()).collect();
        for path in paths {
            let shown = path.escape_ascii();
            match (self.entries.get(path), other.entries.get(path)) {
                (Some(left), Some(right)) => {
                    let mut aspects = String::new();
                    if left.content != right.content {
                        let _ = write!(aspects, " {:?} | {:?}", left.content, right.content);
                    }
                    if left.mode != right.mode && !matches!(left.content, Content::Symlink(_)) {
                        let _ = write!(aspects, " mode {:o} | {:o}", left.mode, right.mode);
                    }
                    if differ(left.mtime, right.mtime) {
                        let _ = write!(aspects, " mtime {:?} | {:?}", left.mtime, right.mtime);
                    }
                    if left.xattrs != right.xattrs {
                        let (left, right) = (shown_xattrs(left), shown_xattrs(right));
                        let _ = write!(aspects, " xattrs {left} | {right}");
                    }
                    if left.linked_to != right.linked_to {
                        let show = |name: &Option<Vec<u8>>| {
                            name.as_ref().map(|name| name.escape_ascii().to_string())
                        };
                        let (left, right) = (show(&left.linked_to), show(&right.linked_to));
                        let _ = write!(aspects, " link {left:?} | {right:?}");
                    }
                    if differ(left.nlink, right.nlink) {
                        let _ = write!(aspects, " nlink {:?} | {:?}", left.nlink, right.nlink);
                    }
                    if !aspects.is_empty() {
                        found.push(format!("/{shown}:{aspects}"));
                    }
                }
                (Some(_), None) => found.push(format!("/{shown}: only on the left")),
                (None, _) => found.push(format!("/{shown}: only on the right")),
            }
            if found.len() == 20 {
                found.push("…".into());
                break;
            }
        }
        found
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it lists nothing at all, not even a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names every group of hard links by the name that sorts first, and counts the names.
    fn with_links_named_by_their_first(mut self) -> Self {
        let mut groups: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
        for (path, entry) in &self.entries {
            if let Some(group) = &entry.linked_to {
                groups.entry(group.clone()).or_default().push(path.clone());
            }
        }
        for names in groups.into_values() {
            for name in &names {
                if let Some(entry) = self.entries.get_mut(name) {
                    entry.linked_to = (names.len() > 1).then(|| names[0].clone());
                    if entry.nlink.is_some() {
                        entry.nlink = Some(names.len() as u64);
                    }
                }
            }
        }
        self
    }
}

/// Attributes for a message, long values cut.
fn shown_xattrs(entry: &Entry) -> String {
    let each = entry.xattrs.iter().map(|(name, value)| {
        let value = &value[..value.len().min(20)];
        format!("{}={}", name.escape_ascii(), value.escape_ascii())
    });
    each.collect::<Vec<_>>().join(" ")
}

fn differ<T: PartialEq>(left: Option<T>, right: Option<T>) -> bool {
    matches!((left, right), (Some(left), Some(right)) if left != right)
}

struct Walk<'a> {
    root: &'a Path,
    listing: Listing,
    /// First name met of each inode with several names.
    first_names: HashMap<u64, Vec<u8>>,
    device: u64,
}

impl Walk<'_> {
    fn visit(&mut self, below: &Path) -> Result<(), HarnessError> {
        let path = if below.as_os_str().is_empty() {
            self.root.to_owned()
        } else {
            self.root.join(below)
        };
        let metadata = path.symlink_metadata().context("look at", &path)?;
        let kind = metadata.file_type();
        let content = if kind.is_dir() {
            Content::Directory
        } else if kind.is_file() {
            let mut file = std::fs::File::open(&path).context("open", &path)?;
            let (size, hash) = hash_of(&mut file).context("read", &path)?;
            Content::File(size, hash)
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).context("read", &path)?;
            Content::Symlink(target.into_os_string().into_encoded_bytes())
        } else if kind.is_fifo() {
            Content::Fifo
        } else if kind.is_socket() {
            Content::Socket
        } else {
            Content::Device
        };
        let name = below.as_os_str().as_bytes().to_vec();
        let linked_to = (!kind.is_dir() && metadata.nlink() > 1).then(|| {
            self.first_names
                .entry(metadata.ino())
                .or_insert_with(|| name.clone())
                .clone()
        });
        self.listing.entries.insert(
            name,
            Entry {
                content,
                mode: metadata.mode() & 0o7777,
                mtime: Some(metadata.mtime()),
                xattrs: read_xattrs(&path)?,
                linked_to,
                // Some file systems count the subdirectories of a directory, others say 1.
                nlink: (!kind.is_dir()).then(|| metadata.nlink()),
            },
        );
        if kind.is_dir() && metadata.dev() == self.device {
            let entries = std::fs::read_dir(&path).context("read", &path)?;
            for entry in entries {
                let entry = entry.context("read", &path)?;
                self.visit(&below.join(entry.file_name()))?;
            }
        }
        Ok(())
    }
}

/// The extended attributes of a file, of a symbolic link its own. None where the file system has no such thing.
pub fn read_xattrs(path: &Path) -> Result<Xattrs, HarnessError> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => return Ok(Xattrs::new()),
        Err(errno) => return Err(errno).context("list the attributes of", path),
    };
    let mut xattrs = Xattrs::new();
    let mut value = vec![0; 1 << 16];
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(length) => {
                xattrs.insert(name.to_vec(), value[..length].to_vec());
            }
            // Listed but not to be read: for other eyes than ours.
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::PERM) => {}
            Err(errno) => return Err(errno).context("read an attribute of", path),
        }
    }
    Ok(xattrs)
}

/// Size and sha256 of a stream.
pub fn hash_of(stream: &mut impl Read) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut piece = vec![0; 1 << 17];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok((size, hex(&hash.finalize()))),
            Ok(length) => {
                hash.update(&piece[..length]);
                size += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sha256 of a file, in hexadecimal.
pub fn hash_of_file(path: &Path) -> Result<String, HarnessError> {
    let mut file = std::fs::File::open(path).context("open", path)?;
    Ok(hash_of(&mut file).context("read", path)?.1)
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A path of a tar entry without `./`, and without slashes at its ends.
#[must_use]
pub fn plain_path(path: &[u8]) -> Vec<u8> {
    path.split(|byte| *byte == b'/')
        .filter(|component| !component.is_empty() && *component != b".")
        .collect::<Vec<_>>()
        .join(&b'/')
}

/// The records of a PAX header (POSIX pax, "pax Header Block"): `LENGTH KEY=VALUE\n`, the length being that of the whole record.
fn pax_records(mut text: &[u8]) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut records = BTreeMap::new();
    while !text.is_empty() {
        let space = text.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
        let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        text = &text[length..];
    }
    Some(records)
}

/// All regular files below a directory.
pub fn files_below(directory: &Path) -> Result<Vec<PathBuf>, HarnessError> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).context("read", &directory)? {
            let entry = entry.context("read", &directory)?;
            let kind = entry.file_type().context("look at", entry.path())?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(linked_to: Option<&str>) -> Entry {
        Entry {
            content: Content::File(0, String::new()),
            mode: 0o200,
            mtime: Some(1),
            xattrs: Xattrs::new(),
            linked_to: linked_to.map(|name| name.as_bytes().to_vec()),
            nlink: Some(if linked_to.is_some() { 2 } else { 1 }),
        }
    }

    fn listing(entries: &[(&str, Entry)]) -> Listing {
        Listing {
            entries: entries
                .iter()
                .map(|(path, entry)| (path.as_bytes().to_vec(), entry.clone()))
                .collect(),
        }
    }

    #[test]
    fn every_aspect_is_compared() {
        let left = listing(&[("a", file(None))]);
        assert_eq!(left.differences(&left.clone()), Vec::<String>::new());
        let changes: [fn(&mut Entry); 6] = [
            |entry| entry.content = Content::Fifo,
            |entry| entry.mode = 0o644,
            |entry| entry.mtime = Some(2),
            |entry| drop(entry.xattrs.insert(b"user.a".to_vec(), Vec::new())),
            |entry| entry.linked_to = Some(b"b".to_vec()),
            |entry| entry.nlink = Some(7),
        ];
        for change in changes {
            let right = left.clone().map(|_, entry| change(entry));
            assert_eq!(left.differences(&right).len(), 1);
        }
        assert_eq!(left.differences(&Listing::default()).len(), 1);
        assert_eq!(Listing::default().differences(&left).len(), 1);
    }

    #[test]
    fn the_rest_of_a_link_group_is_renamed_when_a_name_goes() {
        let left = listing(&[
            ("a", file(Some("a"))),
            ("b", file(Some("a"))),
            ("c", file(Some("a"))),
        ]);
        let left = left.without(&["a"]);
        assert_eq!(left.entries[b"c".as_slice()].linked_to, Some(b"b".to_vec()));
        assert_eq!(left.entries[b"c".as_slice()].nlink, Some(2));
        let left = left.without(&["b"]);
        assert_eq!(left.entries[b"c".as_slice()].linked_to, None);
    }

    #[test]
    fn pax_records_may_hold_newlines() {
        let records = pax_records(b"9 a=\nb=c\n12 path=x=y\n").expect("two records");
        assert_eq!(records[b"a".as_slice()], b"\nb=c");
        assert_eq!(records[b"path".as_slice()], b"x=y");
        assert_eq!(pax_records(b"99 a=b\n"), None);
        assert_eq!(pax_records(b"x"), None);
    }

    #[test]
    fn paths_of_archives_become_plain() {
        assert_eq!(plain_path(b"./a//b/"), b"a/b");
        assert_eq!(plain_path(b"/"), b"");
    }
}
