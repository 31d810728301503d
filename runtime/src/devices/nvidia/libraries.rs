//! The driver's libraries and programs, by what they are for.
//!
//! What a library is for are the driver capabilities of NVIDIA's container tools (`NVIDIA_DRIVER_CAPABILITIES`). A library is looked for in the
//! host's linker cache first, then, by the driver's version in its file name, in the directories where distributions and installers put it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::super::elf;
use super::super::grant::{Grant, Library, Mount};
use super::super::host::Host;
use super::super::linker_cache::{self, LinkerCache};
use super::capabilities::{Capabilities, Capability};

/// Libraries: the name before `.so`, and what it is for.
const LIBRARIES: &[(&str, &[Capability])] = {
    use Capability::{Compute, Display, Graphics, Ngx, Utility, Video};
    &[
        ("libnvidia-ml", &[Utility]),
        ("libnvidia-cfg", &[Utility]),
        ("libnvidia-nscq", &[Utility]),
        ("libnvidia-sandboxutils", &[Utility]),
        ("libcuda", &[Compute]),
        ("libcudadebugger", &[Compute]),
        ("libnvidia-opencl", &[Compute]),
        ("libnvidia-gpucomp", &[Compute, Graphics]),
        ("libnvidia-ptxjitcompiler", &[Compute]),
        ("libnvidia-fatbinaryloader", &[Compute]),
        ("libnvidia-allocator", &[Compute, Graphics]),
        ("libnvidia-compiler", &[Compute]),
        ("libnvidia-pkcs11", &[Compute]),
        ("libnvidia-pkcs11-openssl3", &[Compute]),
        ("libnvidia-nvvm", &[Compute]),
        ("libnvidia-nvvm70", &[Compute]),
        ("libvdpau_nvidia", &[Video]),
        ("libnvidia-encode", &[Video]),
        ("libnvidia-opticalflow", &[Video]),
        ("libnvcuvid", &[Video]),
        ("libnvidia-eglcore", &[Graphics]),
        ("libnvidia-glcore", &[Graphics]),
        ("libnvidia-tls", &[Graphics]),
        ("libnvidia-glsi", &[Graphics]),
        ("libnvidia-fbc", &[Graphics]),
        ("libnvidia-ifr", &[Graphics]),
        ("libnvidia-rtcore", &[Graphics]),
        ("libnvoptix", &[Graphics]),
        ("libGLX_nvidia", &[Graphics]),
        ("libEGL_nvidia", &[Graphics]),
        ("libGLESv2_nvidia", &[Graphics]),
        ("libGLESv1_CM_nvidia", &[Graphics]),
        ("libnvidia-glvkspirv", &[Graphics]),
        ("libnvidia-cbl", &[Graphics]),
        ("libnvidia-vksc-core", &[Graphics]),
        ("libnvidia-present", &[Graphics, Display]),
        ("libnvidia-egl-gbm", &[Graphics, Display]),
        ("libnvidia-egl-wayland", &[Graphics, Display]),
        ("libnvidia-egl-xcb", &[Display]),
        ("libnvidia-egl-xlib", &[Display]),
        ("libnvidia-ngx", &[Ngx]),
    ]
};

/// Those without which nothing of their kind works.
const ESSENTIAL: [&str; 2] = ["libnvidia-ml", "libcuda"];

/// Links that programs expect besides sonames: of which library, and by which name.
const FURTHER_LINKS: [(&str, &str); 3] = [
    ("libcuda", "libcuda.so"),
    ("libnvidia-opticalflow", "libnvidia-opticalflow.so"),
    ("libGLX_nvidia", "libGLX_indirect.so.0"),
];

/// Libraries that are looked for in a subdirectory.
const BELOW: [(&str, &str); 1] = [("libvdpau_nvidia", "vdpau")];

/// Programs.
const PROGRAMS: &[(&str, Capability)] = &[
    ("nvidia-smi", Capability::Utility),
    ("nvidia-debugdump", Capability::Utility),
    ("nvidia-persistenced", Capability::Utility),
    ("nv-fabricmanager", Capability::Utility),
    ("nvidia-cuda-mps-control", Capability::Compute),
    ("nvidia-cuda-mps-server", Capability::Compute),
];

/// Where programs are.
const PROGRAM_DIRECTORIES: [&str; 6] = [
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/nvidia/bin",
    "/opt/bin",
    "/run/current-system/sw/bin",
];

/// Files that tell other software of the driver.
const FILES: &[(&str, &[Capability])] = {
    use Capability::{Compute, Display, Graphics};
    &[
        ("/etc/OpenCL/vendors/nvidia.icd", &[Compute]),
        (
            "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
            &[Graphics, Display],
        ),
        (
            "/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
            &[Graphics, Display],
        ),
        (
            "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
            &[Graphics, Display],
        ),
        ("/usr/share/vulkan/icd.d/nvidia_icd.json", &[Graphics]),
        (
            "/usr/share/vulkan/icd.d/nvidia_icd.x86_64.json",
            &[Graphics],
        ),
        ("/etc/vulkan/icd.d/nvidia_icd.json", &[Graphics]),
        (
            "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
            &[Graphics],
        ),
        (
            "/etc/vulkan/implicit_layer.d/nvidia_layers.json",
            &[Graphics],
        ),
        ("/usr/share/nvidia/nvoptix.bin", &[Graphics]),
    ]
};

/// Directories of libraries, besides those where the linker cache has some: of 64 and of 32 bits.
#[cfg(target_arch = "aarch64")]
const DIRECTORIES: [&[&str]; 2] = [
    &[
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu/nvidia/current",
        "/usr/lib64",
        "/usr/local/nvidia/lib64",
        "/run/opengl-driver/lib",
    ],
    &["/usr/lib/arm-linux-gnueabihf"],
];
#[cfg(not(target_arch = "aarch64"))]
const DIRECTORIES: [&[&str]; 2] = [
    &[
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu/nvidia/current",
        "/usr/lib64",
        "/usr/local/nvidia/lib64",
        "/run/opengl-driver/lib",
    ],
    &[
        "/usr/lib/i386-linux-gnu",
        "/usr/lib/i386-linux-gnu/nvidia/current",
        "/usr/lib",
        "/usr/lib32",
        "/run/opengl-driver-32/lib",
    ],
];

/// A library that was found.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    links: Vec<String>,
}

/// Grants what the capabilities say, of the driver's version.
pub(super) fn grant(host: &Host, version: &str, capabilities: &Capabilities, grant: &mut Grant) {
    let cache = host
        .read(linker_cache::PATH, linker_cache::MAX_SIZE)
        .ok()
        .and_then(|file| LinkerCache::parse(&file))
        .unwrap_or_default();
    let widths = if capabilities.has(Capability::Compat32) {
        2
    } else {
        1
    };
    for width in 0..widths {
        let search = Search::new(host, &cache, width, version);
        for (stem, kinds) in LIBRARIES {
            let Some(kind) = kinds.iter().find(|kind| capabilities.has(**kind)) else {
                if width == 0 && search.is_cached(stem) {
                    grant.no(
                        format!("{stem}.so"),
                        format!(
                            "of the capability `{}`, which is not asked for",
                            kinds[0].name()
                        ),
                    );
                }
                continue;
            };
            match search.find(stem) {
                Ok(found) => search.add(stem, found, kind.name(), grant),
                Err(Some(other)) => {
                    let why = format!(
                        "it is of another version than the driver in the kernel, {version}"
                    );
                    if ESSENTIAL.contains(stem) {
                        grant
                            .warnings
                            .push(format!("`{}` is not granted: {why}", other.display()));
                    }
                    grant.no(other.display().to_string(), why);
                }
                Err(None) if width == 0 && ESSENTIAL.contains(stem) => {
                    let why = "the host has none in its linker cache nor in the usual directories";
                    grant
                        .warnings
                        .push(format!("`{stem}.so` of the driver is not granted: {why}"));
                    grant.no(format!("{stem}.so"), why);
                }
                Err(None) => {}
            }
        }
    }
    for (name, kind) in PROGRAMS {
        if !capabilities.has(*kind) {
            continue;
        }
        let mut places = PROGRAM_DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(name));
        if let Some(path) = places.find(|path| host.exists(path)) {
            grant.yes(
                path.display().to_string(),
                format!("a program of the driver, for `{}`", kind.name()),
            );
            let target = Path::new("/usr/bin").join(name);
            grant.edits.mounts.push(Mount::read_only(target, path));
        }
    }
    for (path, kinds) in FILES {
        if let Some(kind) = kinds.iter().find(|kind| capabilities.has(**kind))
            && host.exists(path)
        {
            grant.file(path, format!("for `{}`", kind.name()));
        }
    }
}

/// Where libraries of a width are looked for.
struct Search<'a> {
    host: &'a Host,
    width: usize,
    version: &'a str,
    /// By the name before `.so`: names and paths in the cache.
    cached: BTreeMap<&'a [u8], Vec<(&'a [u8], &'a Path)>>,
    directories: Vec<PathBuf>,
}

impl<'a> Search<'a> {
    fn new(host: &'a Host, cache: &'a LinkerCache, width: usize, version: &'a str) -> Self {
        let mut cached: BTreeMap<&[u8], Vec<(&[u8], &Path)>> = BTreeMap::new();
        for entry in cache
            .entries
            .iter()
            .filter(|entry| entry.flags == linker_cache::NATIVE[width])
        {
            let end = entry.name.windows(3).position(|part| part == b".so");
            let stem = &entry.name[..end.unwrap_or(0)];
            if LIBRARIES.iter().any(|(known, _)| known.as_bytes() == stem) {
                let path = Path::new(OsStr::from_bytes(&entry.path));
                cached.entry(stem).or_default().push((&entry.name, path));
            }
        }
        // Where some are, the others may be too.
        let mut directories: Vec<PathBuf> = Vec::new();
        let known = ESSENTIAL
            .iter()
            .filter_map(|stem| cached.get(stem.as_bytes()))
            .flatten();
        let known = known.filter_map(|(_, path)| path.parent());
        for directory in known.chain(DIRECTORIES[width].iter().map(Path::new)) {
            if !directories.iter().any(|it| it == directory) {
                directories.push(directory.to_owned());
            }
        }
        Self {
            host,
            width,
            version,
            cached,
            directories,
        }
    }

    fn is_cached(&self, stem: &str) -> bool {
        self.cached.contains_key(stem.as_bytes())
    }

    /// Finds a library. The error is one of another version, where there is only such a one.
    fn find(&self, stem: &str) -> Result<Found, Option<PathBuf>> {
        let mut other = None;
        let mut found: Option<Found> = None;
        for (name, path) in self.cached.get(stem.as_bytes()).into_iter().flatten() {
            let Ok(path) = self.host.canonical(path) else {
                continue;
            };
            if !self.fits(&path) {
                other.get_or_insert(path);
                continue;
            }
            let name = String::from_utf8_lossy(name).into_owned();
            match &mut found {
                None => {
                    found = Some(Found {
                        path,
                        links: vec![name],
                    });
                }
                Some(found) if found.path == path => found.links.push(name),
                Some(_) => {}
            }
        }
        if let Some(found) = found {
            return Ok(found);
        }
        let below = BELOW.iter().find(|(known, _)| *known == stem);
        let file = format!("{stem}.so.{}", self.version);
        for directory in &self.directories {
            let inside = below.map(|(_, below)| directory.join(below).join(&file));
            for path in inside.into_iter().chain([directory.join(&file)]) {
                if let Ok(path) = self.host.canonical(&path) {
                    return Ok(Found {
                        path,
                        links: Vec::new(),
                    });
                }
            }
        }
        Err(other)
    }

    /// Whether a file may be of this driver: its name ends with the driver's version, or with what is no version of a driver.
    fn fits(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let Some((_, version)) = name.split_once(".so.") else {
            return true;
        };
        let branch = version
            .split('.')
            .next()
            .and_then(|part| part.parse::<u32>().ok());
        version == self.version || branch.is_none_or(|branch| branch < 300)
    }

    fn add(&self, stem: &str, found: Found, kind: &str, grant: &mut Grant) {
        let mut links = found.links;
        if links.is_empty()
            && let Ok(file) = self.host.open_file(&found.path)
        {
            links.extend(elf::read(&file).and_then(|library| library.soname));
        }
        let further = FURTHER_LINKS.iter().filter(|(known, _)| *known == stem);
        links.extend(further.map(|(_, link)| (*link).to_owned()));
        links.retain(|link| !link.contains('/'));
        links.sort_unstable();
        links.dedup();
        let width = if self.width == 0 { "" } else { ", of 32 bits" };
        grant.yes(
            found.path.display().to_string(),
            format!("a library of the driver, for `{kind}`{width}"),
        );
        let below = BELOW.iter().find(|(known, _)| *known == stem);
        grant.edits.libraries.push(Library {
            host_path: found.path,
            is_32_bit: self.width == 1,
            below: below.map(|(_, below)| *below),
            links,
        });
    }
}
