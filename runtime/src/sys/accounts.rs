//! The host's user and group databases through the C library: getpwuid_r(3) and getgrgid_r(3).
//!
//! On clusters the users are in LDAP more often than in `/etc/passwd`, and only the C library's name service switch
//! knows the way there.

use std::ffi::{CStr, c_char};

/// An entry of the user database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: Vec<u8>,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Real name and more.
    pub gecos: Vec<u8>,
    /// Home directory.
    pub home: Vec<u8>,
    /// Login shell.
    pub shell: Vec<u8>,
}

/// Room for the strings of an entry: first try, and where we give up.
const BUFFER: std::ops::RangeInclusive<usize> = 4096..=1 << 20;

/// The entry of a user; None when there is none or the database does not answer.
#[must_use]
pub fn user(uid: u32) -> Option<User> {
    let mut buffer = Vec::new();
    let mut size = *BUFFER.start();
    while size <= *BUFFER.end() {
        buffer.resize(size, 0);
        // SAFETY: all-zero bytes are a valid passwd (null pointers and zeros). `buffer` is as long as told, and it and `entry` and
        // `found` are valid for the call.
        let (error, entry, found) = unsafe {
            let mut entry: libc::passwd = std::mem::zeroed();
            let mut found = std::ptr::null_mut();
            let error = libc::getpwuid_r(
                uid,
                &raw mut entry,
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            );
            (error, entry, !found.is_null())
        };
        match error {
            0 if found => {
                // SAFETY: the call succeeded, so each string is null or NUL-terminated within `buffer`, which is alive.
                return Some(unsafe {
                    User {
                        name: bytes(entry.pw_name),
                        uid: entry.pw_uid,
                        gid: entry.pw_gid,
                        gecos: bytes(entry.pw_gecos),
                        home: bytes(entry.pw_dir),
                        shell: bytes(entry.pw_shell),
                    }
                });
            }
            libc::ERANGE => size *= 4,
            libc::EINTR => {}
            _ => return None,
        }
    }
    None
}

/// The name of a group; None when it has none or the database does not answer.
#[must_use]
pub fn group_name(gid: u32) -> Option<Vec<u8>> {
    let mut buffer = Vec::new();
    let mut size = *BUFFER.start();
    while size <= *BUFFER.end() {
        buffer.resize(size, 0);
        // SAFETY: as in `user`, with a group in place of a passwd.
        let (error, entry, found) = unsafe {
            let mut entry: libc::group = std::mem::zeroed();
            let mut found = std::ptr::null_mut();
            let error = libc::getgrgid_r(
                gid,
                &raw mut entry,
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            );
            (error, entry, !found.is_null())
        };
        match error {
            // SAFETY: the call succeeded, so the name is null or NUL-terminated within `buffer`, which is alive.
            0 if found => return Some(unsafe { bytes(entry.gr_name) }),
            libc::ERANGE => size *= 4,
            libc::EINTR => {}
            _ => return None,
        }
    }
    None
}

/// Copies a C string; a null pointer is an empty one.
///
/// # Safety
///
/// `string` is null or points to a NUL-terminated string.
unsafe fn bytes(string: *const c_char) -> Vec<u8> {
    if string.is_null() {
        return Vec::new();
    }
    // SAFETY: not null, and NUL-terminated by the caller's promise.
    unsafe { CStr::from_ptr(string) }.to_bytes().to_vec()
}
