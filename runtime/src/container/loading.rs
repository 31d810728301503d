//! What will be read first when a program starts: the program, the dynamic linker that it names, the libraries that it needs.
//!
//! A new mount begins with nothing decoded, and the way to `main` leads through a few files of which almost every block is read. The server of an image
//! learns from here which, and decodes them while the starter still makes namespaces and mounts. This is a guess: wrong, it costs a little
//! processor time and nothing else.
//!
//! Formats: ELF (elf(5)), of this machine's class and byte order only, and the first line of scripts (execve(2)).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use cista_images::squashfs::reader::{Inode, InodeKind, ReadError, Reader};

use super::rootfs::Rootfs;
use super::unmounted::{Node, Unmounted};

/// Most files that are named, and most libraries of one program that are looked for.
const MAX_FILES: usize = 32;
/// Scripts whose interpreter is a script.
const MAX_SCRIPTS: usize = 4;
/// Longest path that is followed, in bytes.
const MAX_PATH: usize = 4096;
/// Longest dynamic section that is read, in bytes.
const MAX_DYNAMIC: usize = 16 << 10;
/// Most program headers.
const MAX_HEADERS: usize = 64;

/// Where distributions keep libraries, besides beside the dynamic linker itself.
const LIBRARY_PATHS: [&str; 4] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"];

/// Where the dynamic linker looks first (ld.so(8)).
const LINKER_CACHE: &str = "/etc/ld.so.cache";

/// Sizes and offsets of the 64-bit formats.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// The files that are read to start a program, in the order of their reading. Never fails: what is not understood is left out.
#[must_use]
pub fn files(reader: &Reader, program: &Path) -> Vec<Inode> {
    let mut files = Vec::new();
    let mut program = program.to_owned();
    for _ in 0..MAX_SCRIPTS {
        let Some(inode) = file(reader, &program) else {
            break;
        };
        let script = interpreter_of_script(reader, &inode);
        let elf = Elf::read(reader, &inode);
        files.push(inode);
        if let Some(interpreter) = script {
            program = interpreter;
            continue;
        }
        if let Some(elf) = elf {
            libraries(reader, &elf, &mut files);
        }
        break;
    }
    files
}

/// The dynamic linker and the C library, where most images have them.
#[cfg(target_arch = "x86_64")]
const USUAL: (&str, &[&str]) = (
    "/lib64/ld-linux-x86-64.so.2",
    &["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6"],
);
#[cfg(target_arch = "aarch64")]
const USUAL: (&str, &[&str]) = (
    "/lib/ld-linux-aarch64.so.1",
    &["/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6"],
);

/// Looks up what will be read to start a program. It has to be looked up sooner or later; sooner, the server of the image can give the content to the
/// kernel while the rest of the container is made.
pub(super) fn announce(rootfs: &Rootfs, program: &Path) {
    if rootfs.file_type(program).is_some() && rootfs.file_type(Path::new(USUAL.0)).is_some() {
        let _ = USUAL
            .1
            .iter()
            .find(|path| rootfs.file_type(Path::new(path)).is_some());
    }
}

/// Adds the dynamic linker of a program and the libraries that it names.
fn libraries(reader: &Reader, elf: &Elf, files: &mut Vec<Inode>) {
    let Some(linker) = &elf.interpreter else {
        return;
    };
    let Ok(found) = Unmounted::image(reader).resolve(linker) else {
        return;
    };
    // The libraries of the linker's own C library stand beside it.
    let beside = Path::new("/").join(found.path.parent().unwrap_or(Path::new("")));
    files.extend(found.node.and_then(into_file));
    files.extend(file(reader, Path::new(LINKER_CACHE)));
    for name in &elf.needed {
        let mut directories = std::iter::once(beside.as_path()).chain(LIBRARY_PATHS.map(Path::new));
        let library = directories.find_map(|directory| file(reader, &directory.join(name)));
        files.extend(library);
        if files.len() >= MAX_FILES {
            return;
        }
    }
}

fn file(reader: &Reader, path: &Path) -> Option<Inode> {
    into_file(Unmounted::image(reader).resolve(path).ok()?.node?)
}

fn into_file(node: Node) -> Option<Inode> {
    match node {
        Node::Image(inode) if matches!(inode.kind, InodeKind::File(_)) => Some(inode),
        Node::Image(_) | Node::Changed(_) => None,
    }
}

fn interpreter_of_script(reader: &Reader, inode: &Inode) -> Option<PathBuf> {
    let start = read(reader, inode, 0, 256).ok()?;
    let line = start.strip_prefix(b"#!")?;
    let line = line.split(|&byte| byte == b'\n').next()?.trim_ascii();
    let path = line.split(u8::is_ascii_whitespace).next()?;
    path.starts_with(b"/")
        .then(|| Path::new(OsStr::from_bytes(path)).to_owned())
}

/// What a program says about the files that it needs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Elf {
    interpreter: Option<PathBuf>,
    needed: Vec<PathBuf>,
}

/// A program header, as far as we use it.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

impl Elf {
    /// None where the file is no ELF file of this machine.
    fn read(reader: &Reader, inode: &Inode) -> Option<Self> {
        Self::parse(inode.size(), |offset, length| {
            read(reader, inode, offset, length).ok()
        })
    }

    /// Parses a file of `size` bytes, whose parts `read` gives.
    fn parse(size: u64, read: impl Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Self> {
        let header = read(0, HEADER)?;
        let class_and_order = [2, if cfg!(target_endian = "little") { 1 } else { 2 }];
        if header.len() < HEADER
            || !header.starts_with(b"\x7fELF")
            || header[4..6] != class_and_order
        {
            return None;
        }
        let table = u64_at(&header, 32)?;
        let entry_size = usize::from(u16_at(&header, 54)?);
        let count = usize::from(u16_at(&header, 56)?);
        if entry_size != PROGRAM_HEADER || count > MAX_HEADERS {
            return None;
        }
        let table = read(table, count * PROGRAM_HEADER)?;
        let segments: Vec<Segment> = table
            .chunks_exact(PROGRAM_HEADER)
            .map(|entry| {
                Some(Segment {
                    kind: u32_at(entry, 0)?,
                    offset: u64_at(entry, 8)?,
                    address: u64_at(entry, 16)?,
                    size: u64_at(entry, 32)?,
                })
            })
            .collect::<Option<_>>()?;
        let content = |kind, limit: usize| {
            let segment = segments.iter().find(|segment| segment.kind == kind)?;
            let length = usize::try_from(segment.size.min(size)).ok()?.min(limit);
            read(segment.offset, length)
        };
        let mut elf = Self {
            interpreter: content(PT_INTERP, MAX_PATH).and_then(|path| path_of(&path)),
            needed: Vec::new(),
        };
        let Some(dynamic) = content(PT_DYNAMIC, MAX_DYNAMIC) else {
            return Some(elf);
        };
        let entries = || {
            dynamic
                .chunks_exact(16)
                .filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)))
        };
        let strings = entries().find(|(tag, _)| *tag == DT_STRTAB)?.1;
        // The table of strings is named by its address; the segment that loads it tells the place in the file.
        let strings = segments.iter().find_map(|segment| {
            let inside = strings.checked_sub(segment.address)?;
            (segment.kind == PT_LOAD && inside < segment.size)
                .then(|| segment.offset.checked_add(inside))?
        })?;
        for (_, name) in entries()
            .filter(|(tag, _)| *tag == DT_NEEDED)
            .take(MAX_FILES)
        {
            let name = strings.checked_add(name).and_then(|at| read(at, 256));
            elf.needed.extend(name.and_then(|name| path_of(&name)));
        }
        Some(elf)
    }
}

/// The path that stands at the beginning of some bytes, up to a zero; None without one, or where it is empty.
fn path_of(bytes: &[u8]) -> Option<PathBuf> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    (end > 0).then(|| Path::new(OsStr::from_bytes(&bytes[..end])).to_owned())
}

fn read(reader: &Reader, inode: &Inode, offset: u64, length: usize) -> Result<Vec<u8>, ReadError> {
    let map = reader.file_map(inode)?;
    let mut buffer = vec![0; length];
    let got = reader.read_at(&map, offset, &mut buffer)?;
    buffer.truncate(got);
    Ok(buffer)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Option<Elf> {
        Elf::parse(bytes.len() as u64, |offset, length| {
            let start = usize::try_from(offset).ok()?.min(bytes.len());
            let end = start.saturating_add(length).min(bytes.len());
            Some(bytes[start..end].to_vec())
        })
    }

    /// This test is itself a dynamically linked program.
    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn a_program_names_its_linker_and_libraries() {
        let elf = parse(&own()).unwrap();
        assert!(elf.interpreter.unwrap().exists());
        let needed: Vec<String> = elf
            .needed
            .iter()
            .map(|name| name.display().to_string())
            .collect();
        assert!(
            needed.iter().any(|name| name.starts_with("libc.so")),
            "{needed:?}"
        );
    }

    #[test]
    fn what_is_no_program_names_nothing() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"#!/bin/sh\n"), None);
        assert_eq!(parse(&own()[..100]).unwrap_or_default(), Elf::default());
    }

    proptest! {
        /// Whatever an image has for a program, looking at it ends and asks for no more than the bounds say.
        #[test]
        fn damaged_programs_do_no_harm(changes in prop::collection::vec((0..4096_usize, any::<u8>()), 1..64)) {
            let mut bytes = own();
            for (at, value) in changes {
                bytes[at] = value;
            }
            if let Some(elf) = parse(&bytes) {
                prop_assert!(elf.needed.len() <= MAX_FILES);
            }
        }
    }
}
