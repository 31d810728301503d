//! What a shared library says about itself: its soname, the machine it is for, and the versions of the C library that it needs or defines.
//!
//! Only what the dynamic linker itself looks at is read: program headers, the dynamic section, the string table and the version sections (System V
//! ABI, chapters 4 and 5; the GNU version sections of the Linux Standard Base). Every number is a claim of the file: offsets are checked, and no more
//! is read than the limits here say.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Longest of each: program headers, dynamic section, string table, version section, in bytes.
const MAX_HEADERS: usize = 64 << 10;
const MAX_DYNAMIC: usize = 64 << 10;
const MAX_STRINGS: usize = 4 << 20;
const MAX_VERSIONS: usize = 256 << 10;

/// A library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Library {
    /// Its soname.
    pub soname: Option<String>,
    /// Whether it is for 32-bit programs.
    pub is_32_bit: bool,
    /// `e_machine`: 62 for x86-64, 3 for i386, 183 for AArch64.
    pub machine: u16,
    /// The newest version of the GNU C library that it needs (`GLIBC_2.17`).
    pub needs_glibc: Option<Version>,
    /// The newest version of the GNU C library that it defines: what `libc.so.6` is.
    pub defines_glibc: Option<Version>,
}

/// A version of the GNU C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.0, self.1)
    }
}

impl Version {
    /// Reads `GLIBC_2.17`; the third number of old versions does not matter. `GLIBC_PRIVATE` is none.
    fn of_symbol(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name.strip_prefix(b"GLIBC_")?).ok()?;
        let mut numbers = name.split('.').map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

/// Where bytes of a file come from.
pub trait Source {
    /// Reads up to `buffer.len()` bytes at an offset; fewer at the end.
    ///
    /// # Errors
    ///
    /// The source's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Source for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

impl Source for [u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..));
        let length = rest.map_or(0, |rest| rest.len().min(buffer.len()));
        if let Some(rest) = rest {
            buffer[..length].copy_from_slice(&rest[..length]);
        }
        Ok(length)
    }
}

/// Reads a library. None for what is no ELF file of this machine's byte order, or is damaged.
pub fn read<S: Source + ?Sized>(source: &S) -> Option<Library> {
    let start = bytes(source, 0, 4096)?;
    if start.get(..4)? != b"\x7fELF" {
        return None;
    }
    let wide = match start[4] {
        1 => false,
        2 => true,
        _ => return None,
    };
    if start[5] != if cfg!(target_endian = "little") { 1 } else { 2 } {
        return None;
    }
    let layout = Layout { wide };
    let machine = u16::from_ne_bytes(start.get(18..20)?.try_into().ok()?);
    let (at, size, count) = if wide {
        (
            layout.word(&start, 32)?,
            layout.half(&start, 54)?,
            layout.half(&start, 56)?,
        )
    } else {
        (
            layout.word(&start, 28)?,
            layout.half(&start, 42)?,
            layout.half(&start, 44)?,
        )
    };
    let length = usize::from(size) * usize::from(count);
    if length > MAX_HEADERS || usize::from(size) < if wide { 56 } else { 32 } {
        return None;
    }
    // They usually stand right behind the file's header.
    let end = usize::try_from(at).ok()?.checked_add(length)?;
    let headers = match start.get(usize::try_from(at).ok()?..end) {
        Some(headers) => headers.to_vec(),
        None => bytes(source, at, length)?,
    };
    let mut loads = Vec::new();
    let mut dynamic = None;
    for header in headers.chunks_exact(usize::from(size)) {
        let kind = u32::from_ne_bytes(header.get(..4)?.try_into().ok()?);
        let (offset, address, length) = if wide {
            (
                layout.word(header, 8)?,
                layout.word(header, 16)?,
                layout.word(header, 32)?,
            )
        } else {
            (
                layout.word(header, 4)?,
                layout.word(header, 8)?,
                layout.word(header, 16)?,
            )
        };
        match kind {
            1 => loads.push((address, offset, length)),
            2 => dynamic = Some((offset, length)),
            _ => {}
        }
    }
    let mut library = Library {
        is_32_bit: !wide,
        machine,
        ..Library::default()
    };
    let Some((offset, length)) = dynamic else {
        return Some(library);
    };
    let length = usize::try_from(length).ok()?.min(MAX_DYNAMIC);
    let dynamic = bytes(source, offset, length)?;
    let mut tags = Tags::default();
    let word = layout.word_size();
    for entry in dynamic.chunks_exact(2 * word) {
        let (tag, value) = (layout.word(entry, 0)?, layout.word(entry, word)?);
        match tag {
            0 => break,
            5 => tags.strings = Some(value),
            10 => tags.strings_size = value,
            14 => tags.soname = Some(value),
            0x6fff_fffc => tags.defined = Some(value),
            0x6fff_fffe => tags.needed = Some(value),
            _ => {}
        }
    }
    let place = |address: u64| {
        let mut loads = loads.iter();
        let (start, offset, length) =
            loads.find(|(start, _, length)| address >= *start && address - *start < *length)?;
        let inside = address - start;
        Some((offset.checked_add(inside)?, length - inside))
    };
    let section = |address: Option<u64>, limit: usize| -> Option<Vec<u8>> {
        let (offset, length) = place(address?)?;
        bytes(source, offset, usize::try_from(length).ok()?.min(limit))
    };
    let strings_size = usize::try_from(tags.strings_size).ok()?.min(MAX_STRINGS);
    let Some(strings) = section(tags.strings, strings_size) else {
        return Some(library);
    };
    let text = |at: u64| {
        let rest = strings.get(usize::try_from(at).ok()?..)?;
        rest.split(|&byte| byte == 0).next()
    };
    library.soname = tags
        .soname
        .and_then(text)
        .and_then(|name| Some(std::str::from_utf8(name).ok()?.to_owned()));
    // The versions are short, and their number is not said beforehand.
    if let Some(needed) = section(tags.needed, MAX_VERSIONS.min(8192)) {
        library.needs_glibc = newest(&needed, &text, &NEEDED);
    }
    if let Some(defined) = section(tags.defined, MAX_VERSIONS.min(8192)) {
        library.defines_glibc = newest(&defined, &text, &DEFINED);
    }
    Some(library)
}

#[derive(Default)]
struct Tags {
    strings: Option<u64>,
    strings_size: u64,
    soname: Option<u64>,
    needed: Option<u64>,
    defined: Option<u64>,
}

/// Where a version section has what: the same for both classes. All numbers are offsets in bytes.
struct VersionLayout {
    /// Of the number of auxiliary entries, the offset of the first, and the offset of the next entry.
    count: usize,
    auxiliary: usize,
    next: usize,
    /// In an auxiliary entry: the name, and the offset of the next.
    name: usize,
    auxiliary_next: usize,
}

/// `Elf64_Verneed` and `Elf64_Vernaux`.
const NEEDED: VersionLayout = VersionLayout {
    count: 2,
    auxiliary: 8,
    next: 12,
    name: 8,
    auxiliary_next: 12,
};

/// `Elf64_Verdef` and `Elf64_Verdaux`.
const DEFINED: VersionLayout = VersionLayout {
    count: 6,
    auxiliary: 12,
    next: 16,
    name: 0,
    auxiliary_next: 4,
};

/// The newest version of the GNU C library that a version section names.
fn newest<'a>(
    section: &[u8],
    text: &dyn Fn(u64) -> Option<&'a [u8]>,
    layout: &VersionLayout,
) -> Option<Version> {
    let half = |at: usize| {
        Some(u16::from_ne_bytes(
            section.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let word = |at: usize| {
        Some(u32::from_ne_bytes(
            section.get(at..at + 4)?.try_into().ok()?,
        ))
    };
    let mut found = None;
    let mut at = 0_usize;
    // Every step goes forward, so that a file cannot keep us here.
    loop {
        let (Some(count), Some(first), Some(next)) = (
            half(at + layout.count),
            word(at + layout.auxiliary),
            word(at + layout.next),
        ) else {
            return found;
        };
        let mut auxiliary = at.checked_add(first as usize)?;
        for _ in 0..count {
            let (Some(name), Some(next)) = (
                word(auxiliary + layout.name),
                word(auxiliary + layout.auxiliary_next),
            ) else {
                break;
            };
            found = found.max(text(u64::from(name)).and_then(Version::of_symbol));
            if next == 0 {
                break;
            }
            auxiliary = auxiliary.checked_add(next as usize)?;
        }
        if next == 0 {
            return found;
        }
        at = at.checked_add(next as usize)?;
    }
}

struct Layout {
    wide: bool,
}

impl Layout {
    fn word_size(&self) -> usize {
        if self.wide { 8 } else { 4 }
    }

    fn word(&self, from: &[u8], at: usize) -> Option<u64> {
        Some(if self.wide {
            u64::from_ne_bytes(from.get(at..at + 8)?.try_into().ok()?)
        } else {
            u64::from(u32::from_ne_bytes(from.get(at..at + 4)?.try_into().ok()?))
        })
    }

    #[expect(
        clippy::unused_self,
        reason = "stands beside the words, whose size depends on the class"
    )]
    fn half(&self, from: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(from.get(at..at + 2)?.try_into().ok()?))
    }
}

/// Up to so many bytes of a file.
fn bytes<S: Source + ?Sized>(source: &S, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match source.read_at(&mut buffer[filled..], offset.checked_add(filled as u64)?) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    buffer.truncate(filled);
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// This test itself is a program of the C library, and its libraries are on every machine that runs it.
    #[test]
    fn the_c_library_of_this_machine() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps
            .lines()
            .filter_map(|line| line.split_once('/'))
            .map(|(_, path)| format!("/{path}"))
            .find(|path| path.contains("/libc.so") || path.contains("/libc-2"))
            .unwrap();
        let libc = read(&File::open(path).unwrap()).unwrap();
        assert_eq!(libc.soname.as_deref(), Some("libc.so.6"));
        assert!(libc.defines_glibc > Some(Version(2, 17)), "{libc:?}");
        let own = read(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert!(own.needs_glibc >= Some(Version(2, 2)), "{own:?}");
        assert!(own.needs_glibc <= libc.defines_glibc);
        assert_eq!(own.machine, libc.machine);
    }

    #[test]
    fn versions() {
        for (name, expected) in [
            ("GLIBC_2.17", Some(Version(2, 17))),
            ("GLIBC_2.2.5", Some(Version(2, 2))),
            ("GLIBC_PRIVATE", None),
            ("GLIBCXX_3.4", None),
            ("GLIBC_", None),
        ] {
            assert_eq!(Version::of_symbol(name.as_bytes()), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn damaged_files_are_refused(at in 0_usize..4096, byte: u8, cut in 64_usize..60_000) {
            let mut file = vec![0; 60_000];
            FileExt::read_exact_at(&File::open("/proc/self/exe").unwrap(), &mut file, 0).unwrap();
            file.truncate(cut.max(at + 1));
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
            let _ = read(&file[..]);
        }
    }
}
