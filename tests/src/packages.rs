//! The Debian packages that the tests, the demo and the benches are made of, and how they get here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::HarnessError;
use crate::program::Program;
use crate::user::we_are_root;

/// A program and the Debian package that brings it.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Its name in Debian.
    pub name: &'static str,
    /// A program that it brings, or the path of another file.
    pub program: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
}

const fn package(name: &'static str, program: &'static str, purpose: &'static str) -> Package {
    Package {
        name,
        program,
        purpose,
    }
}

/// What the demo needs to show the whole journey from a registry.
pub const DEMO: &[Package] = &[
    package(
        "docker-registry",
        "docker-registry",
        "a registry to import from",
    ),
    package(
        "skopeo",
        "skopeo",
        "pushes the test images into the registry",
    ),
    package(
        "mmdebstrap",
        "mmdebstrap",
        "makes root file systems of Debian packages",
    ),
    package("busybox-static", "busybox", "the smallest image"),
];

/// What the tests need besides.
pub const TESTS: &[Package] = &[
    package("umoci", "umoci", "unpacks images, to compare with"),
    package(
        "squashfs-tools",
        "unsquashfs",
        "reads image files, to compare with",
    ),
    package("sshfs", "sshfs", "a file system without hard links"),
    package(
        "openssh-sftp-server",
        "/usr/lib/openssh/sftp-server",
        "what sshfs talks to",
    ),
    package(
        "squashfuse",
        "squashfuse",
        "mounts image files, to compare with",
    ),
    package(
        "bubblewrap",
        "bwrap",
        "turns user namespaces off for a test",
    ),
    package("docker.io", "dockerd", "a daemon to import from"),
    package("openssl", "openssl", "makes certificates and signatures"),
    package("podman", "podman", "a storage to import from"),
    package(
        "strace",
        "strace",
        "lets system calls fail, and counts programs",
    ),
    package("attr", "setfattr", "gives test files extended attributes"),
];

/// What the Slurm cluster of the tests and of a bench is made of.
pub const SLURM: &[Package] = &[
    package("munge", "munged", "tells users of a cluster apart"),
    package("slurmctld", "slurmctld", "the controller of a cluster"),
    package("slurmd", "slurmd", "the daemon of a node"),
    package("slurm-client", "srun", "the commands of a cluster"),
    package(
        "libpmix-dev",
        "/usr/share/doc/libpmix-dev/copyright",
        "the library that Slurm opens for PMIx, by this package's name for it",
    ),
    package("openmpi-bin", "mpicc.openmpi", "the compiler of Open MPI"),
    package(
        "libopenmpi-dev",
        "/usr/share/doc/libopenmpi-dev/copyright",
        "the headers of Open MPI",
    ),
    package("mpich", "mpicc.mpich", "the compiler of MPICH"),
    package(
        "libmpich-dev",
        "/usr/share/doc/libmpich-dev/copyright",
        "the headers of MPICH",
    ),
];

/// What packages are built with.
pub const PACKAGING: &[Package] = &[
    package(
        "python3-venv",
        "/usr/lib/python3.11/ensurepip/__init__.py",
        "brings cargo-zigbuild",
    ),
    package("binutils", "objdump", "shows which symbols a program needs"),
    package("rpm", "rpmbuild", "builds packages of Red Hat"),
];

/// What the benches need besides.
pub const BENCHES: &[Package] = &[
    package(
        "squashfs-tools",
        "mksquashfs",
        "makes image files, to compare with",
    ),
    package(
        "squashfs-tools-ng",
        "tar2sqfs",
        "the pace that the import has to keep",
    ),
    package("squashfuse", "squashfuse", "the pace of other FUSE servers"),
    package("bubblewrap", "bwrap", "the pace of a bare container start"),
];

/// Where a program is, as the shell would find it, with the directories of system administration added.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    // Joining an absolute path gives that path, so one is found as it stands.
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// The packages whose programs are not here.
#[must_use]
pub fn missing(packages: &[Package]) -> Vec<Package> {
    packages
        .iter()
        .filter(|package| find_program(package.program).is_none())
        .copied()
        .collect()
}

/// Installs the packages whose programs are not here; `say` is told what is done.
///
/// # Errors
/// [`HarnessError::Missing`] names them when we are not root or this is no Debian; otherwise what apt-get said.
pub fn install(packages: &[Package], say: &mut dyn FnMut(&str)) -> Result<(), HarnessError> {
    let wanted = missing(packages);
    if wanted.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = wanted.iter().map(|package| package.name).collect();
    if !we_are_root() || find_program("apt-get").is_none() {
        return Err(HarnessError::Missing {
            what: format!("the Debian packages `{}`", names.join(" ")),
            hint: format!("as root: apt-get install {}", names.join(" ")),
        });
    }
    say(&format!("installing {}", names.join(" ")));
    // The lists may be there and good enough: fetching them again costs more than finding out.
    let first = if Path::new("/var/lib/apt/lists/partial").exists() {
        apt_install(&names)
    } else {
        Err(HarnessError::Missing {
            what: "the package lists of apt".into(),
            hint: "apt-get update".into(),
        })
    };
    if first.is_err() {
        say("the package lists are missing or old: apt-get update");
        apt(&["update"])?;
        apt_install(&names)?;
    }
    match missing(packages).as_slice() {
        [] => Ok(()),
        [package, ..] => Err(HarnessError::Missing {
            what: format!("`{}`", package.program),
            hint: format!("`{}` is installed but does not bring it", package.name),
        }),
    }
}

fn apt_install(names: &[&str]) -> Result<(), HarnessError> {
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(names);
    apt(&args)
}

fn apt(args: &[&str]) -> Result<(), HarnessError> {
    Program::new("apt-get")
        .arg("--quiet")
        // Another apt that runs at the same time ends sooner or later.
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .timeout(Duration::from_secs(600))
        .check()
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let absent = package("no-such-package", "no-such-program-anywhere", "this test");
        let names: Vec<_> = missing(&[absent]).iter().map(|found| found.name).collect();
        assert_eq!(names, ["no-such-package"]);
    }
}
