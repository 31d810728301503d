//! The small files that every start of a container reads, and that therefore stand together in an image.
//!
//! A start needs the record of the image, its user database, and a few more files of some hundred bytes. In the order of the layers each would
//! be somewhere in another fragment block, and cost the decompression of 128 KiB. Kept back until the end of an import
//! ([`Writer::hold_file`](crate::squashfs::writer::Writer::hold_file)), they share one small block of their own.

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
}
