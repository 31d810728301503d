//! The files that every start of a container reads, and that an image therefore stores so that they are read without delay.
//!
//! A start needs the record of the image, its user database, and a few more files of some hundred bytes. In the order of the layers each would
//! be somewhere in another fragment block, and cost the decompression of 128 KiB. Kept back until the end of an import
//! ([`Writer::hold_file`](crate::squashfs::writer::Writer::hold_file)), they share one small block of their own, uncompressed where that makes
//! no difference to the image's size.
//!
//! The first that a program reads is the dynamic linker and the C library: some 2 MiB, of which almost every block is touched. Decompressing
//! them takes four milliseconds, as long as the rest of a start together. So larger images store them uncompressed ([`is_loaded_first`]).

/// Files, by path relative to the root.
const FILES: [&[u8]; 8] = [
    b".cista/image.json",
    b"etc/default/useradd",
    b"etc/environment",
    b"etc/fstab",
    b"etc/group",
    b"etc/passwd",
    b"etc/rc",
    b"etc/rc.local",
];

/// Directories, all of whose files are copied into new home directories.
const DIRECTORIES: [&[u8]; 1] = [b"etc/skel/"];

/// Longest file that is kept back, in bytes.
pub const MAX_SIZE: u64 = 32 << 10;

/// Whether a start reads the file at a path relative to the root (without `/` at its beginning), if it is there.
#[must_use]
pub fn contain(path: &[u8]) -> bool {
    FILES.contains(&path)
        || DIRECTORIES
            .iter()
            .any(|directory| path.starts_with(directory))
}

/// Sum of the layers' sizes from which an image stores [`is_loaded_first`] uncompressed, in bytes: it grows by about 1.3 MiB.
pub const MIN_LAYERS: u64 = 128 << 20;

/// Longest file that is stored uncompressed, in bytes.
pub const MAX_LOADER_SIZE: u64 = 4 << 20;

/// Where dynamic linkers and C libraries are; also directories below, for Debian's multiarch.
const LIBRARIES: [&[u8]; 4] = [b"lib/", b"lib64/", b"usr/lib/", b"usr/lib64/"];

/// Whether the file at a path relative to the root is a dynamic linker or a C library, as glibc and musl name them.
#[must_use]
pub fn is_loaded_first(path: &[u8]) -> bool {
    let Some(name) = path.rsplit(|&byte| byte == b'/').next() else {
        return false;
    };
    // Older versions of glibc have their version in the name: `ld-2.31.so`, `libc-2.31.so`.
    let versioned =
        name.ends_with(b".so") && (name.starts_with(b"ld-2.") || name.starts_with(b"libc-2."));
    let named = name == b"libc.so.6"
        || (name.starts_with(b"ld-linux") && name.windows(4).any(|part| part == b".so."))
        || name.starts_with(b"ld-musl-");
    (versioned || named)
        && LIBRARIES
            .iter()
            .any(|directory| path.starts_with(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_start_reads() {
        for path in ["etc/passwd", "etc/skel/.bashrc", ".cista/image.json"] {
            assert!(contain(path.as_bytes()), "{path}");
        }
        for path in [
            "",
            "/etc/passwd",
            "etc/passwd-",
            "etc/skel",
            "usr/etc/passwd",
        ] {
            assert!(!contain(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn only_dynamic_linkers_and_c_libraries() {
        for path in [
            "lib/x86_64-linux-gnu/libc.so.6",
            "usr/lib64/libc.so.6",
            "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            "lib/ld-linux-aarch64.so.1",
            "lib/x86_64-linux-gnu/ld-2.31.so",
            "usr/lib64/libc-2.28.so",
            "lib/ld-musl-x86_64.so.1",
        ] {
            assert!(is_loaded_first(path.as_bytes()), "{path}");
        }
        for path in [
            "",
            "libc.so.6",
            "opt/lib/libc.so.6",
            "lib/libcrypt.so.1",
            "usr/lib/ld-2.31.so.debug",
            "usr/lib/libc.so",
        ] {
            assert!(!is_loaded_first(path.as_bytes()), "{path}");
        }
    }
}
