//! Squashfs 4.0: our own parallel streaming writer, and a reader good enough to serve files.
//!
//! The format has no formal specification; the authority is the kernel's `fs/squashfs/squashfs_fs.h` and
//! the kernel document `Documentation/filesystems/squashfs.rst`.
//!
//! - [`format`](mod@format): what stands where on disk, shared by both sides
//! - [`compression`]: the compressors by their squashfs names
//! - [`writer`]: content streams in, an image file comes out
//! - [`reader`]: an image file, by inode and block

pub mod compression;
pub mod format;
pub mod reader;
pub mod writer;
