//! Libraries of the host, by the names that the dynamic linker knows them by: in its cache first, then where distributions keep them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::Grant;
use super::grant::Library;
use super::host::Host;
use super::linker_cache::{self, LinkerCache};

/// Where distributions keep the libraries of 64-bit programs.
#[cfg(target_arch = "x86_64")]
const DIRECTORIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/local/lib64",
    "/usr/local/lib",
];
#[cfg(not(target_arch = "x86_64"))]
const DIRECTORIES: [&str; 4] = [
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/lib64",
    "/usr/lib",
];

/// Grants libraries for programs of 64 bits; those that the host lacks are noted.
pub(super) fn grant(host: &Host, names: &[String], why: &str, grant: &mut Grant) {
    let cache = host
        .read(linker_cache::PATH, linker_cache::MAX_SIZE)
        .ok()
        .and_then(|file| LinkerCache::parse(&file))
        .unwrap_or_default();
    for name in names {
        let cached = cache
            .entries
            .iter()
            .filter(|it| it.name == name.as_bytes() && it.flags == linker_cache::NATIVE[0])
            .map(|it| Path::new(OsStr::from_bytes(&it.path)).to_owned());
        let usual = DIRECTORIES.iter().map(|it| Path::new(it).join(name));
        let found = cached
            .chain(usual)
            .find_map(|path| host.canonical(&path).ok());
        let Some(host_path) = found else {
            grant.no(name, "the host does not have it");
            continue;
        };
        grant.yes(host_path.display().to_string(), why);
        grant.edits.libraries.push(Library {
            host_path,
            is_32_bit: false,
            below: None,
            links: vec![name.clone()],
        });
    }
}
