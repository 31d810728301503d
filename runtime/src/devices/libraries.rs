//! Libraries of the host, by the names that the dynamic linker knows them by.

use std::path::Path;

use super::Grant;
use super::grant::Library;
use super::host::Host;

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

/// Grants libraries; those that the host lacks are noted.
pub(super) fn grant(host: &Host, names: &[String], why: &str, grant: &mut Grant) {
    for name in names {
        let mut places = DIRECTORIES.iter().map(|it| Path::new(it).join(name));
        let found = places.find_map(|path| host.canonical(&path).ok());
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
