//! Where what is granted goes in an image.
//!
//! Most of it has a path of its own. Libraries go where the image has its libraries, since that is where its programs, and programs that
//! look at paths, expect them. In an image that nothing has changed the mount points are put into the upper layer before it is mounted
//! (see [`Seed`]), which makes forty mounts a matter of less than a millisecond.

use std::path::{Path, PathBuf};

use cista_images::squashfs::reader::Reader;
use rustix::fs::FileType;

use super::grant::{Grant, Symlink};
use super::host::Host;
use crate::container::seed::Seed;
use crate::container::usual;
use crate::container::view::View;

/// What is known when the image is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Libraries: path in the container, and on the host.
    pub libraries: Vec<(PathBuf, PathBuf)>,
    /// Links, those to libraries included.
    pub symlinks: Vec<Symlink>,
}

/// The name of this machine's libraries in Debian's directories, and that of the 32-bit ones that it can run.
#[cfg(target_arch = "x86_64")]
const TRIPLETS: [&str; 2] = ["x86_64-linux-gnu", "i386-linux-gnu"];
#[cfg(target_arch = "aarch64")]
const TRIPLETS: [&str; 2] = ["aarch64-linux-gnu", "arm-linux-gnueabihf"];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const TRIPLETS: [&str; 2] = ["linux-gnu", "linux-gnu"];

/// The directory in which an image has its libraries.
#[must_use]
pub fn library_directory(view: View<'_>, is_32_bit: bool) -> PathBuf {
    let is_directory = |path: &str| view.file_type(Path::new(path)) == Some(FileType::Directory);
    let debian = format!("/usr/lib/{}", TRIPLETS[usize::from(is_32_bit)]);
    if is_directory(&debian) || view.file_type(Path::new("/etc/debian_version")).is_some() {
        debian.into()
    } else if !is_32_bit && is_directory("/usr/lib64") {
        "/usr/lib64".into()
    } else {
        "/usr/lib".into()
    }
}

impl Placed {
    /// Finds a place for everything.
    #[must_use]
    pub fn new(grant: &Grant, view: View<'_>) -> Self {
        let mut placed = Self::default();
        let mut directories: [Option<PathBuf>; 2] = [None, None];
        for library in &grant.edits.libraries {
            let Some(name) = library.host_path.file_name() else {
                continue;
            };
            let directory = directories[usize::from(library.is_32_bit)]
                .get_or_insert_with(|| library_directory(view, library.is_32_bit));
            let directory = match library.below {
                Some(below) => directory.join(below),
                None => directory.clone(),
            };
            for link in library.links.iter().filter(|link| link.as_str() != name) {
                placed.symlinks.push(Symlink {
                    path: directory.join(link),
                    target: name.into(),
                });
            }
            let path = directory.join(name);
            placed.libraries.push((path, library.host_path.clone()));
        }
        placed.symlinks.extend_from_slice(&grant.edits.symlinks);
        placed
    }

    /// Puts links and mount points into the upper layer of an image. What finds no place there is left to the mounted root. Returns whether
    /// everything that a program could be found below has its place.
    pub fn plant(&self, grant: &Grant, host: &Host, seed: &mut Seed, reader: &Reader) -> bool {
        let mut is_all = true;
        // What is below these is not in the upper layer.
        let is_hidden = |path: &Path| usual::directories().any(|above| path.starts_with(above));
        for (path, _) in &self.libraries {
            let _ = seed.file(reader, path, Vec::new());
        }
        for mount in &grant.edits.mounts {
            if is_hidden(&mount.path) {
                continue;
            }
            match host.file_type(&mount.host_path) {
                Some(FileType::Directory) => drop(seed.mount_directory(reader, &mount.path)),
                Some(_) => drop(seed.file(reader, &mount.path, Vec::new())),
                None => {}
            }
            is_all &= seed.place(&mount.path).is_some();
        }
        for file in grant.edits.files.iter().filter(|it| !is_hidden(&it.path)) {
            let _ = seed.file(reader, &file.path, Vec::new());
        }
        for link in self.symlinks.iter().filter(|it| !is_hidden(&it.path)) {
            is_all &= matches!(seed.symlink(reader, &link.path, &link.target), Ok(true));
        }
        is_all
    }
}
