//! Where what is granted goes in an image, and how its programs find it.
//!
//! Most of it has a path of its own. Libraries go where the image has its libraries, since that is where its programs, and programs that
//! look at paths, expect them. In an image that nothing has changed the mount points are put into the upper layer before it is mounted
//! (see [`Seed`]), which makes forty mounts a matter of less than a millisecond.
//!
//! The GNU dynamic linker finds them by the image's linker cache with the libraries added, which is written here: what ldconfig would write, but without
//! running a program, and also where the image has neither the cache nor ldconfig (distroless images). Another dynamic linker
//! (musl's) gets `LD_LIBRARY_PATH`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};

use super::elf::{self, Version};
use super::grant::{Decision, Grant, Symlink};
use super::host::Host;
use super::linker_cache::{self, LinkerCache};
use crate::container::rootfs::Rootfs;
use crate::container::seed::Seed;
use crate::container::unmounted::Unmounted;
use crate::container::usual;
use crate::container::view::View;

/// What is known when the image is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Libraries: path in the container, and on the host.
    pub libraries: Vec<(PathBuf, PathBuf)>,
    /// Links, those to libraries included.
    pub symlinks: Vec<Symlink>,
    /// The content of the linker cache, where it changes.
    pub linker_cache: Option<Vec<u8>>,
    /// Directories to be searched by a dynamic linker that knows no cache.
    pub search: Vec<PathBuf>,
    /// What was decided here.
    pub decisions: Vec<Decision>,
    /// The newest version of the GNU C library that a granted library needs, and that library.
    needs_glibc: Option<(Version, PathBuf)>,
}

/// The name of this machine's libraries in Debian's directories, and that of the 32-bit ones that it can run; its dynamic linkers.
#[cfg(target_arch = "aarch64")]
const MACHINE: [(&str, &str); 2] = [
    ("aarch64-linux-gnu", "/lib/ld-linux-aarch64.so.1"),
    ("arm-linux-gnueabihf", "/lib/ld-linux-armhf.so.3"),
];
#[cfg(not(target_arch = "aarch64"))]
const MACHINE: [(&str, &str); 2] = [
    ("x86_64-linux-gnu", "/lib64/ld-linux-x86-64.so.2"),
    ("i386-linux-gnu", "/lib/ld-linux.so.2"),
];

/// Where images have the libraries that make a newer CUDA work with an older driver.
const CUDA_COMPAT: [&str; 2] = ["/usr/local/cuda/compat", "/usr/local/cuda/compat/lib.real"];

/// Which these are, the first one being the one whose version counts.
const CUDA_COMPAT_LIBRARIES: [&str; 6] = [
    "libcuda.so.1",
    "libcuda.so",
    "libcudadebugger.so.1",
    "libnvidia-ptxjitcompiler.so.1",
    "libnvidia-nvvm.so.4",
    "libnvidia-pkcs11-openssl3.so.1",
];

/// The directory in which an image has its libraries.
#[must_use]
pub fn library_directory(view: View<'_>, is_32_bit: bool) -> PathBuf {
    let is_directory = |path: &str| view.file_type(Path::new(path)) == Some(FileType::Directory);
    let debian = format!("/usr/lib/{}", MACHINE[usize::from(is_32_bit)].0);
    if is_directory(&debian) || view.file_type(Path::new("/etc/debian_version")).is_some() {
        debian.into()
    } else if !is_32_bit && is_directory("/usr/lib64") {
        "/usr/lib64".into()
    } else {
        "/usr/lib".into()
    }
}

/// A library as the linker cache has it: name, path in the container, flags.
type Cached = (String, PathBuf, u32);

impl Placed {
    /// Finds a place for everything.
    #[must_use]
    pub fn new(grant: &Grant, host: &Host, view: View<'_>) -> Self {
        let mut placed = Self::default();
        let mut cached: Vec<Cached> = Vec::new();
        placed.place_libraries(grant, host, view, &mut cached);
        placed.symlinks.extend_from_slice(&grant.edits.symlinks);
        for mount in &grant.edits.mounts {
            let is_found = |directory: &PathBuf| mount.path.parent() == Some(directory);
            if grant.edits.library_directories.iter().any(is_found)
                && let Some(library) = placed.look_at(host, &mount.host_path)
                && let Some(flags) = linker_cache::flags(library.machine, library.is_32_bit)
            {
                let name = mount.path.file_name().unwrap_or_default().to_string_lossy();
                let soname = library.soname.unwrap_or_else(|| name.into_owned());
                cached.push((soname, mount.path.clone(), flags));
            }
        }
        let compat = grant.edits.cuda_compat.as_deref();
        if let Some(compat) = compat.and_then(|driver| placed.cuda_compat(driver, view)) {
            cached.extend(compat);
        }
        if cached.is_empty() {
            return placed;
        }
        if view.file_type(Path::new(MACHINE[0].1)).is_some() {
            let cache = view.read(Path::new(linker_cache::PATH), linker_cache::MAX_SIZE);
            let mut cache = cache
                .ok()
                .flatten()
                .and_then(|file| LinkerCache::parse(&file))
                .unwrap_or_default();
            for (name, path, flags) in &cached {
                cache.add(name.as_bytes(), path.as_os_str().as_bytes(), *flags);
            }
            placed.linker_cache = Some(cache.write());
        } else {
            for (_, path, flags) in cached.iter().rev() {
                if let Some(directory) = path.parent().filter(|_| *flags == linker_cache::NATIVE[0])
                    && !placed.search.iter().any(|it| it == directory)
                {
                    placed.search.push(directory.to_owned());
                }
            }
            placed.no(
                "the linker cache",
                "the image has no GNU dynamic linker: `LD_LIBRARY_PATH` is set in its place",
            );
        }
        placed
    }

    fn place_libraries(
        &mut self,
        grant: &Grant,
        host: &Host,
        view: View<'_>,
        cached: &mut Vec<Cached>,
    ) {
        let mut directories: [Option<PathBuf>; 2] = [None, None];
        for library in &grant.edits.libraries {
            let Some(name) = library.host_path.file_name() else {
                continue;
            };
            let width = usize::from(library.is_32_bit);
            let directory = directories[width]
                .get_or_insert_with(|| library_directory(view, library.is_32_bit));
            let directory = match library.below {
                Some(below) => directory.join(below),
                None => directory.clone(),
            };
            let path = directory.join(name);
            for link in &library.links {
                let place = directory.join(link);
                if library.below.is_none() {
                    cached.push((link.clone(), place.clone(), linker_cache::NATIVE[width]));
                }
                if link.as_str() != name {
                    self.symlinks.push(Symlink {
                        path: place,
                        target: name.into(),
                    });
                }
            }
            // What the file itself says matters for the C library alone.
            if !library.is_32_bit {
                self.look_at(host, &library.host_path);
            }
            self.libraries.push((path, library.host_path.clone()));
        }
    }

    /// Reads a library, and notes what it needs of the C library.
    fn look_at(&mut self, host: &Host, path: &Path) -> Option<elf::Library> {
        let library = elf::read(&host.open_file(path).ok()?)?;
        if let Some(needed) = library.needs_glibc.filter(|_| !library.is_32_bit)
            && self
                .needs_glibc
                .as_ref()
                .is_none_or(|(most, _)| needed > *most)
        {
            self.needs_glibc = Some((needed, path.to_owned()));
        }
        Some(library)
    }

    /// The image's own libraries for a newer CUDA, where they are newer than the driver.
    fn cuda_compat(&mut self, driver: &str, view: View<'_>) -> Option<Vec<Cached>> {
        let branch = |version: &str| version.split('.').next()?.parse::<u32>().ok();
        for directory in CUDA_COMPAT.map(Path::new) {
            let Some(name) = view.real_name(&directory.join(CUDA_COMPAT_LIBRARIES[0])) else {
                continue;
            };
            let version = name.to_str()?.strip_prefix("libcuda.so.")?;
            let subject = format!("{} of the image", directory.join(&name).display());
            if branch(version)? <= branch(driver)? {
                self.no(&subject, &format!("the driver, {driver}, is as new"));
                return None;
            }
            self.decisions.push(Decision {
                subject,
                is_granted: true,
                why: format!("CUDA compatibility: it is newer than the driver, {driver}"),
            });
            let paths = CUDA_COMPAT_LIBRARIES
                .iter()
                .map(|name| (*name, directory.join(name)));
            return Some(
                paths
                    .filter(|(_, path)| view.file_type(path).is_some())
                    .map(|(name, path)| (name.to_owned(), path, linker_cache::NATIVE[0]))
                    .collect(),
            );
        }
        None
    }

    fn no(&mut self, subject: &str, why: &str) {
        self.decisions.push(Decision {
            subject: subject.to_owned(),
            is_granted: false,
            why: why.to_owned(),
        });
    }

    /// Puts links, the linker cache and mount points into the upper layer of an image. What finds no place there is left to the mounted root.
    /// Returns whether everything that a program could be found below has its place.
    pub fn plant(
        &self,
        grant: &Grant,
        host: &Host,
        seed: &mut Seed,
        image: &Unmounted<'_>,
    ) -> bool {
        let mut is_all = true;
        // What is below these is not in the upper layer.
        let is_hidden = |path: &Path| usual::directories().any(|above| path.starts_with(above));
        for (path, _) in &self.libraries {
            let _ = seed.file(image, path, Vec::new());
        }
        if let Some(cache) = &self.linker_cache {
            let _ = seed.file(image, Path::new(linker_cache::PATH), cache.clone());
        }
        for mount in &grant.edits.mounts {
            if is_hidden(&mount.path) {
                continue;
            }
            match host.file_type(&mount.host_path) {
                Some(FileType::Directory) => drop(seed.mount_directory(image, &mount.path)),
                Some(_) => drop(seed.file(image, &mount.path, Vec::new())),
                None => {}
            }
            is_all &= seed.place(&mount.path).is_some();
        }
        for file in grant.edits.files.iter().filter(|it| !is_hidden(&it.path)) {
            let _ = seed.file(image, &file.path, Vec::new());
        }
        for link in self.symlinks.iter().filter(|it| !is_hidden(&it.path)) {
            is_all &= matches!(seed.symlink(image, &link.path, &link.target), Ok(true));
        }
        is_all
    }

    /// Compares what the granted libraries need of the C library with what the image has. The warning names both.
    #[must_use]
    pub fn c_library_warning(&self, rootfs: &Rootfs) -> Option<String> {
        let (needed, library) = self.needs_glibc.as_ref()?;
        let debian = format!("/lib/{}/libc.so.6", MACHINE[0].0);
        let places = [
            &debian,
            "/lib64/libc.so.6",
            "/usr/lib64/libc.so.6",
            "/usr/lib/libc.so.6",
            "/lib/libc.so.6",
        ];
        let defined = places.iter().find_map(|path| {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            let file = std::fs::File::from(rootfs.open(Path::new(path), flags).ok()?);
            file.metadata().ok().filter(std::fs::Metadata::is_file)?;
            elf::read(&file)?.defines_glibc
        })?;
        (*needed > defined).then(|| {
            let name = library.file_name().unwrap_or(OsStr::new("a library"));
            format!(
                "`{}` of the host needs version {needed} of the GNU C library, and the image has {defined}: programs that load it will fail",
                name.display()
            )
        })
    }
}
