//! `/etc/ld.so.cache`: where the GNU dynamic linker finds libraries that are in no usual directory.
//!
//! The host's says where the driver's libraries are. A container gets a copy of its image's with the granted libraries added: what ldconfig would make,
//! without running a program of the image, and also where the image has none. The format is glibc's own (`sysdeps/generic/dl-cache.h`): a header, entries
//! sorted by name in descending order, a table of strings, and since 2.32 extensions, which name the subdirectories of `glibc-hwcaps` that entries
//! refer to. Files of before 2.32 have the older format `ld.so-1.7.0` in front of it.
//!
//! The image's file is hostile, the host's may be damaged: every offset is checked, and what is out of bounds is left out.

use std::cmp::Ordering;
use std::collections::HashMap;

/// The longest file that is read, in bytes.
pub const MAX_SIZE: u64 = 16 << 20;

/// Where it is.
pub const PATH: &str = "/etc/ld.so.cache";

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
const OLD_HEADER: usize = 16;
const OLD_ENTRY: usize = 12;

/// Byte order in the header: `cache_file_new_flags_endian_*`.
const ENDIAN: u8 = if cfg!(target_endian = "little") { 2 } else { 3 };

/// `cache_extension_magic`.
const EXTENSIONS: u32 = 0xeaa4_2174;
const TAG_GENERATOR: u32 = 0;
const TAG_HWCAPS: u32 = 1;

/// In the `hwcap` of an entry: its lower half is an index among the extension's subdirectories.
const IS_HWCAP: u64 = 1 << 62;

/// The most entries and subdirectories that are read.
const MAX_ENTRIES: usize = 262_144;
const MAX_HWCAPS: usize = 1024;

/// What it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkerCache {
    /// Its entries, in the file's order.
    pub entries: Vec<Entry>,
    /// Subdirectories of `glibc-hwcaps`.
    hwcaps: Vec<Vec<u8>>,
}

/// A library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name by which it is asked for: a soname.
    pub name: Vec<u8>,
    /// The file.
    pub path: Vec<u8>,
    /// What kind of library; see [`flags`].
    pub flags: u32,
    /// What processor it is for.
    hwcap: u64,
}

/// The kind of a library of a machine (`e_machine` of ELF), as the dynamic linker of that machine asks for it. None for other machines.
#[must_use]
pub fn flags(machine: u16, is_32_bit: bool) -> Option<u32> {
    // FLAG_ELF_LIBC6 with the ABI in the second byte.
    match (machine, is_32_bit) {
        (62, false) => Some(0x0303),
        (3, true) => Some(0x0003),
        (183, false) => Some(0x0a03),
        (40, true) => Some(0x0903),
        (21, false) => Some(0x0503),
        _ => None,
    }
}

/// The flags of libraries for this machine: of 64 bits, and of the 32 bits that it also runs.
pub const NATIVE: [u32; 2] = if cfg!(target_arch = "aarch64") {
    [0x0a03, 0x0903]
} else {
    [0x0303, 0x0003]
};

impl LinkerCache {
    /// Reads a file. None where it is none of the formats.
    #[must_use]
    pub fn parse(file: &[u8]) -> Option<Self> {
        let file = current_part(file)?;
        let word = |at: usize| {
            let bytes = file.get(at..at.checked_add(4)?)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let string = |at: u32| {
            let rest = file.get(at as usize..)?;
            let end = rest.iter().position(|&byte| byte == 0)?;
            Some(rest[..end].to_vec())
        };
        let endian = *file.get(28)?;
        if endian != 0 && endian != ENDIAN {
            return None;
        }
        let count = (word(20)? as usize)
            .min(file.len() / ENTRY)
            .min(MAX_ENTRIES);
        let mut cache = Self::default();
        for number in 0..count {
            let at = HEADER + number * ENTRY;
            let Some(bytes) = file.get(at..at + ENTRY) else {
                break;
            };
            let half = |at: usize| {
                u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            let (Some(name), Some(path)) = (string(half(4)), string(half(8))) else {
                continue;
            };
            let hwcap = if cfg!(target_endian = "little") {
                u64::from(half(16)) | u64::from(half(20)) << 32
            } else {
                u64::from(half(20)) | u64::from(half(16)) << 32
            };
            cache.entries.push(Entry {
                name,
                path,
                flags: half(0),
                hwcap,
            });
        }
        let extensions = word(32)? as usize;
        if extensions != 0 && word(extensions) == Some(EXTENSIONS) {
            let sections = (word(extensions + 4).unwrap_or(0) as usize).min(16);
            for section in 0..sections {
                let at = extensions + 8 + section * 16;
                let (Some(tag), Some(offset), Some(size)) = (word(at), word(at + 8), word(at + 12))
                else {
                    break;
                };
                if tag == TAG_HWCAPS {
                    let number = (size as usize / 4).min(MAX_HWCAPS);
                    let names = (0..number)
                        .map(|number| word(offset as usize + number * 4).and_then(string));
                    cache.hwcaps = names.collect::<Option<_>>().unwrap_or_default();
                }
            }
        }
        // An entry for a subdirectory that is not known cannot be found.
        let known = cache.hwcaps.len() as u64;
        cache
            .entries
            .retain(|entry| entry.hwcap & IS_HWCAP == 0 || entry.hwcap & 0xffff_ffff < known);
        Some(cache)
    }

    /// Adds a library, in front of others of that name.
    pub fn add(&mut self, name: &[u8], path: &[u8], flags: u32) {
        let entry = Entry {
            name: name.to_vec(),
            path: path.to_vec(),
            flags,
            hwcap: 0,
        };
        if !self.entries.contains(&entry) {
            self.entries.insert(0, entry);
        }
    }

    /// The file that says it.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut order: Vec<&Entry> = self.entries.iter().collect();
        // Stable: what was added stays in front.
        order.sort_by(|one, other| compare(&other.name, &one.name));
        let base = HEADER + order.len() * ENTRY;
        let mut strings = Strings {
            base,
            bytes: Vec::new(),
            known: HashMap::new(),
        };
        let mut entries = Vec::with_capacity(order.len() * ENTRY);
        for entry in order {
            entries.extend(entry.flags.to_ne_bytes());
            entries.extend(strings.add(&entry.name).to_ne_bytes());
            entries.extend(strings.add(&entry.path).to_ne_bytes());
            entries.extend(0_u32.to_ne_bytes());
            entries.extend(entry.hwcap.to_ne_bytes());
        }
        let hwcaps: Vec<u32> = self.hwcaps.iter().map(|name| strings.add(name)).collect();
        let strings = strings.bytes;
        let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes();
        let extensions = (base + strings.len()).next_multiple_of(4);
        let mut file = Vec::with_capacity(extensions + 128);
        file.extend(MAGIC);
        file.extend(number(entries.len() / ENTRY));
        file.extend(number(strings.len()));
        file.extend([ENDIAN, 0, 0, 0]);
        file.extend(number(extensions));
        file.extend([0; 12]);
        file.extend(entries);
        file.extend(strings);
        file.resize(extensions, 0);
        let generator = b"cista";
        let sections = if hwcaps.is_empty() { 1 } else { 2 };
        let data = extensions + 8 + sections * 16;
        file.extend(EXTENSIONS.to_ne_bytes());
        file.extend(number(sections));
        let section = |file: &mut Vec<u8>, tag: u32, at: usize, size: usize| {
            file.extend(tag.to_ne_bytes());
            file.extend([0; 4]);
            file.extend(number(at));
            file.extend(number(size));
        };
        section(
            &mut file,
            TAG_GENERATOR,
            data + hwcaps.len() * 4,
            generator.len(),
        );
        if !hwcaps.is_empty() {
            section(&mut file, TAG_HWCAPS, data, hwcaps.len() * 4);
        }
        for at in &hwcaps {
            file.extend(at.to_ne_bytes());
        }
        file.extend(generator);
        file
    }
}

/// The table of strings while it is written.
struct Strings {
    base: usize,
    bytes: Vec<u8>,
    known: HashMap<Vec<u8>, u32>,
}

impl Strings {
    /// Where a string is, from the start of the file.
    fn add(&mut self, text: &[u8]) -> u32 {
        if let Some(at) = self.known.get(text) {
            return *at;
        }
        let at = u32::try_from(self.base + self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.extend(text);
        self.bytes.push(0);
        self.known.insert(text.to_vec(), at);
        at
    }
}

/// The part of a file that is in the current format.
fn current_part(file: &[u8]) -> Option<&[u8]> {
    if file.starts_with(MAGIC) {
        return Some(file);
    }
    if !file.starts_with(OLD_MAGIC) {
        return None;
    }
    let count = u32::from_ne_bytes(file.get(12..16)?.try_into().ok()?) as usize;
    let end = count.checked_mul(OLD_ENTRY)?.checked_add(OLD_HEADER)?;
    // It is aligned as its numbers of 64 bits are, which differs among machines.
    [8, 4]
        .into_iter()
        .filter_map(|alignment| file.get(end.checked_next_multiple_of(alignment)?..))
        .find(|rest| rest.starts_with(MAGIC))
}

/// The order of names: numbers in them count as numbers. The dynamic linker searches by this very order (`_dl_cache_libcmp`).
fn compare(one: &[u8], other: &[u8]) -> Ordering {
    let (mut one, mut other) = (one, other);
    loop {
        match (one.first(), other.first()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(a), Some(b)) if a.is_ascii_digit() && b.is_ascii_digit() => {
                let (first, rest) = number(one);
                let (second, other_rest) = number(other);
                match first.cmp(&second) {
                    Ordering::Equal => (one, other) = (rest, other_rest),
                    order => return order,
                }
            }
            (Some(a), _) if a.is_ascii_digit() => return Ordering::Greater,
            (Some(_), Some(b)) if b.is_ascii_digit() => return Ordering::Less,
            (Some(a), Some(b)) if a == b => (one, other) = (&one[1..], &other[1..]),
            // As signed characters, which names of libraries are not beyond.
            (Some(a), Some(b)) => return a.cmp(b),
            (Some(_), None) => return Ordering::Greater,
        }
    }
}

/// The number at the start of a text, and what comes after it.
fn number(text: &[u8]) -> (u64, &[u8]) {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    let value = text[..end].iter().fold(0_u64, |value, digit| {
        value
            .saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    });
    (value, &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_of_names() {
        for (one, other, expected) in [
            ("liba.so.2", "liba.so.10", Ordering::Less),
            ("liba.so.1", "liba.so.1", Ordering::Equal),
            ("liba.so", "liba.so.1", Ordering::Less),
            ("lib1", "liba", Ordering::Greater),
            ("libb", "liba", Ordering::Greater),
        ] {
            assert_eq!(
                compare(one.as_bytes(), other.as_bytes()),
                expected,
                "{one} {other}"
            );
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut cache = LinkerCache {
            hwcaps: vec![b"x86-64-v3".to_vec()],
            ..LinkerCache::default()
        };
        cache.add(b"libold.so.1", b"/lib/libold.so.1", 0x303);
        cache.entries[0].hwcap = IS_HWCAP;
        cache.add(b"libcuda.so.1", b"/usr/lib/libcuda.so.1", 0x303);
        cache.add(b"libcuda.so.1", b"/new/libcuda.so.1", 0x303);
        cache.add(b"libcuda.so.1", b"/new/libcuda.so.1", 0x303);
        let read = LinkerCache::parse(&cache.write()).unwrap();
        let shown: Vec<String> = read
            .entries
            .iter()
            .map(|entry| {
                format!(
                    "{} {} {:x}",
                    String::from_utf8_lossy(&entry.name),
                    String::from_utf8_lossy(&entry.path),
                    entry.hwcap >> 60
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "libold.so.1 /lib/libold.so.1 4",
                "libcuda.so.1 /new/libcuda.so.1 0",
                "libcuda.so.1 /usr/lib/libcuda.so.1 0",
            ]
        );
        assert_eq!(read.hwcaps, cache.hwcaps);
        // The same in the older format's company.
        let mut old = b"ld.so-1.7.0\0".to_vec();
        old.extend(1_u32.to_ne_bytes());
        old.extend([0; OLD_ENTRY]);
        old.extend([0; 4]);
        old.extend(cache.write());
        assert_eq!(LinkerCache::parse(&old).unwrap(), read);
    }

    /// The cache of this machine, which its ldconfig wrote: it is in the order that we write, and nothing of it is lost.
    #[test]
    fn the_cache_of_this_machine() {
        let file = std::fs::read(PATH).unwrap();
        let cache = LinkerCache::parse(&file).unwrap();
        assert!(cache.entries.iter().any(|entry| entry.name == b"libc.so.6"));
        assert_eq!(LinkerCache::parse(&cache.write()).unwrap(), cache);
    }

    proptest! {
        #[test]
        fn damage_is_survived(changes in proptest::collection::vec((0_usize..600, any::<u8>()), 1..8), cut in 0_usize..600) {
            let mut cache = LinkerCache { hwcaps: vec![b"a".to_vec()], ..LinkerCache::default() };
            for number in 0..8 {
                cache.add(format!("lib{number}.so").as_bytes(), b"/x", 3);
            }
            let mut file = cache.write();
            for (at, byte) in changes {
                if let Some(place) = file.get_mut(at) {
                    *place = byte;
                }
            }
            file.truncate(cut.max(20));
            if let Some(read) = LinkerCache::parse(&file) {
                let _ = read.write();
            }
        }
    }
}
