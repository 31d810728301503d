//! The messages of `/dev/fuse`: what stands where, and the numbers that we use.
//!
//! Kernel: `include/uapi/linux/fuse.h`, protocol 7.31 (Linux 5.4) and later; fields that came after are zero towards an older
//! kernel. Integers have the byte order of the machine. Names are the kernel's without their `fuse_` and `FUSE_`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol major version; every Linux speaks it.
pub(super) const MAJOR: u32 = 7;
/// The newest minor version whose messages are described here.
pub(super) const MINOR: u32 = 38;
/// The oldest minor version that we serve (Linux 5.4): the first with everything that is sent here.
pub(super) const OLDEST_MINOR: u32 = 31;
/// Node id of the root directory. 0 is no node at all.
pub(super) const ROOT_ID: u64 = 1;
/// The kernel refuses to fill smaller buffers.
pub(super) const MIN_READ_BUFFER: usize = 8192;

/// Requests, by `InHeader::opcode`.
pub(super) mod opcode {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const FORGET: u32 = 2;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const READLINK: u32 = 5;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const STATFS: u32 = 17;
    pub(in super::super) const GETXATTR: u32 = 22;
    pub(in super::super) const LISTXATTR: u32 = 23;
    pub(in super::super) const INIT: u32 = 26;
    pub(in super::super) const READDIR: u32 = 28;
    pub(in super::super) const INTERRUPT: u32 = 36;
    pub(in super::super) const DESTROY: u32 = 38;
    pub(in super::super) const BATCH_FORGET: u32 = 42;
    pub(in super::super) const READDIRPLUS: u32 = 44;
}

/// Messages that nobody asked for, by `OutHeader::error`, with `OutHeader::unique` 0.
pub(super) mod notification {
    /// Content for the page cache of a file: a `NotifyStore`, then the content.
    pub(in super::super) const STORE: i32 = 4;
}

/// `InitIn::flags` and `InitOut::flags`.
pub(super) mod init {
    /// Several reads of one file may be under way.
    pub(in super::super) const ASYNC_READ: u32 = 1 << 0;
    /// READDIRPLUS instead of READDIR…
    pub(in super::super) const DO_READDIRPLUS: u32 = 1 << 13;
    /// … where the kernel expects that the attributes will be asked for.
    pub(in super::super) const READDIRPLUS_AUTO: u32 = 1 << 14;
    /// OPEN may answer ENOSYS: no OPEN and RELEASE from then on, and caches stay across opens.
    pub(in super::super) const NO_OPEN_SUPPORT: u32 = 1 << 17;
    /// LOOKUP and READDIR of one directory may run side by side.
    pub(in super::super) const PARALLEL_DIROPS: u32 = 1 << 18;
    /// `InitOut::max_pages` is there.
    pub(in super::super) const MAX_PAGES: u32 = 1 << 22;
    /// Targets of symbolic links are cached.
    pub(in super::super) const CACHE_SYMLINKS: u32 = 1 << 23;
    /// The same as `NO_OPEN_SUPPORT` for directories, whose listings are cached then.
    pub(in super::super) const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
    /// Cached content is dropped only when we say so.
    pub(in super::super) const EXPLICIT_INVAL_DATA: u32 = 1 << 25;
}

/// What every request begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InHeader {
    /// Bytes of the request with this header.
    pub(super) len: u32,
    pub(super) opcode: u32,
    /// What the answer must repeat.
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    pub(super) total_extlen: u16,
    pub(super) padding: u16,
}

/// What every answer begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct OutHeader {
    /// Bytes of the answer with this header.
    pub(super) len: u32,
    /// 0, or the negated error number.
    pub(super) error: i32,
    pub(super) unique: u64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InitIn {
    pub(super) major: u32,
    pub(super) minor: u32,
    /// In bytes.
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InitOut {
    pub(super) major: u32,
    pub(super) minor: u32,
    /// In bytes.
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
    /// Read-ahead requests that may be under way.
    pub(super) max_background: u16,
    pub(super) congestion_threshold: u16,
    /// In bytes.
    pub(super) max_write: u32,
    /// Of times, in nanoseconds.
    pub(super) time_gran: u32,
    /// Most pages of a READ.
    pub(super) max_pages: u16,
    pub(super) map_alignment: u16,
    pub(super) flags2: u32,
    pub(super) unused: [u32; 7],
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Attr {
    pub(super) ino: u64,
    pub(super) size: u64,
    /// In units of 512 bytes.
    pub(super) blocks: u64,
    pub(super) atime: u64,
    pub(super) mtime: u64,
    pub(super) ctime: u64,
    pub(super) atimensec: u32,
    pub(super) mtimensec: u32,
    pub(super) ctimensec: u32,
    /// Type and permissions as in `st_mode`.
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// In the kernel's 32-bit encoding.
    pub(super) rdev: u32,
    pub(super) blksize: u32,
    pub(super) flags: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct EntryOut {
    /// 0 where there is no such entry, which the kernel then remembers.
    pub(super) nodeid: u64,
    pub(super) generation: u64,
    /// In seconds.
    pub(super) entry_valid: u64,
    /// In seconds.
    pub(super) attr_valid: u64,
    pub(super) entry_valid_nsec: u32,
    pub(super) attr_valid_nsec: u32,
    pub(super) attr: Attr,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct AttrOut {
    /// In seconds.
    pub(super) attr_valid: u64,
    pub(super) attr_valid_nsec: u32,
    pub(super) dummy: u32,
    pub(super) attr: Attr,
}

/// READ, READDIR and READDIRPLUS.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ReadIn {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) read_flags: u32,
    pub(super) lock_owner: u64,
    pub(super) flags: u32,
    pub(super) padding: u32,
}

/// A directory entry; its name follows, and zeros up to a multiple of 8.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Dirent {
    pub(super) ino: u64,
    /// Where the listing goes on behind this entry.
    pub(super) off: u64,
    pub(super) namelen: u32,
    /// As in `d_type`: the type bits of `st_mode` shifted right by 12.
    pub(super) kind: u32,
}

/// A directory entry with what a LOOKUP would answer; its name follows as that of a [`Dirent`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DirentPlus {
    pub(super) entry: EntryOut,
    pub(super) dirent: Dirent,
}

/// GETXATTR, where a name follows, and LISTXATTR. The answer to `size` 0 is the same struct with the size needed.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct GetxattrIn {
    /// Of the caller's buffer; 0 asks for the size only.
    pub(super) size: u32,
    pub(super) padding: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct StatfsOut {
    pub(super) blocks: u64,
    pub(super) bfree: u64,
    pub(super) bavail: u64,
    pub(super) files: u64,
    pub(super) ffree: u64,
    pub(super) bsize: u32,
    pub(super) namelen: u32,
    pub(super) frsize: u32,
    pub(super) padding: u32,
    pub(super) spare: [u32; 6],
}

/// What begins a notification to store content.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct NotifyStore {
    pub(super) nodeid: u64,
    /// Where in the file, in bytes.
    pub(super) offset: u64,
    /// In bytes.
    pub(super) size: u32,
    pub(super) padding: u32,
}

// Sizes are part of the ABI.
const _: () = assert!(size_of::<InHeader>() == 40);
const _: () = assert!(size_of::<OutHeader>() == 16);
const _: () = assert!(size_of::<InitOut>() == 64);
const _: () = assert!(size_of::<Attr>() == 88);
const _: () = assert!(size_of::<EntryOut>() == 128);
const _: () = assert!(size_of::<AttrOut>() == 104);
const _: () = assert!(size_of::<ReadIn>() == 40);
const _: () = assert!(size_of::<Dirent>() == 24);
const _: () = assert!(size_of::<DirentPlus>() == 152);
const _: () = assert!(size_of::<StatfsOut>() == 80);
const _: () = assert!(size_of::<NotifyStore>() == 24);
