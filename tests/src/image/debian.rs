//! Root file systems of Debian packages, as the layers that a Dockerfile with a `RUN apt-get install` a line would give.
//!
//! `mmdebstrap` makes the base. Each step then mounts an overlayfs over all that is there, lets the host's apt-get install
//! into it, and what ends up in the upper directory is the layer: whiteouts, changed files and all. Each step runs in a
//! mount namespace of its own, so no mount can be left behind. Downloaded packages are kept beside the trees.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{HarnessError, IoContext as _};
use crate::program::Program;
use crate::user::we_are_root;

/// Release of Debian.
const RELEASE: &str = "bookworm";

/// What each step installs, lowest layer first, above the base.
pub(super) const STEPS: &[&[&str]] = &[
    &["python3"],
    &["g++", "python3-dev"],
    &["libboost-dev"],
    &["python3-numpy", "libopenblas-dev"],
    &["python3-scipy"],
    &["python3-pandas"],
    &["python3-sklearn"],
];

/// What the MPI image has above the base: both libraries, without their compilers and launchers.
pub(super) const MPI: &[&str] = &["libopenmpi3", "libmpich12"];

/// One step, as a script: it gets the directories as arguments, and the packages after them.
const STEP: &str = r#"
set -eu
lower=$1 upper=$2 work=$3 merged=$4 cache=$5
shift 5
mkdir -p "$cache/archives/partial" "$cache/lists/partial"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work" "$merged"
mount --bind "$cache/archives" "$merged/var/cache/apt/archives"
mount --bind "$cache/lists" "$merged/var/lib/apt/lists"
mount -t proc proc "$merged/proc"
root=$(realpath "$merged")
apt() {
    apt-get --quiet --quiet -o "Dir=$root" -o "DPkg::Chroot-Directory=$root" -o APT::Sandbox::User=root \
        -o DPkg::Options::=--force-unsafe-io -o Acquire::Languages=none -o Dpkg::Use-Pty=0 "$@"
}
[ -e "$cache/updated" ] || { apt update && touch "$cache/updated"; }
apt install --yes --no-install-recommends "$@"
"#;

/// The trees of the base and of each step, below a directory.
#[derive(Debug)]
pub(super) struct Trees {
    root: PathBuf,
}

impl Trees {
    /// Builds the trees in an empty directory. Packages are kept in `cache`.
    pub(super) fn build(root: &Path, cache: &Path, say: &dyn Fn(&str)) -> Result<(), HarnessError> {
        if !we_are_root() {
            return Err(HarnessError::Missing {
                what: "images of Debian packages, which only root can build".into(),
                hint: "run `cargo xtask images` once as root".into(),
            });
        }
        let base = root.join("base");
        say(&format!("mmdebstrap: {RELEASE} minbase"));
        Program::new("mmdebstrap")
            .args(["--quiet", "--mode=root", "--variant=minbase", RELEASE])
            .arg(&base)
            .timeout(Duration::from_secs(900))
            .check()?;
        // The lists of an earlier build are too old by now.
        let _ = std::fs::remove_file(cache.join("updated"));
        std::fs::create_dir_all(cache).context("create", cache)?;
        let mut lower = "base".to_owned();
        for (index, packages) in STEPS.iter().enumerate() {
            say(&format!("apt-get install {}", packages.join(" ")));
            let upper = index.to_string();
            install(root, &lower, &upper, cache, packages)?;
            lower = format!("{upper}:{lower}");
        }
        Ok(())
    }

    /// Installs packages above the base; what they add is the tree `tree` in an empty directory.
    pub(super) fn build_above_base(
        &self,
        root: &Path,
        cache: &Path,
        packages: &[&str],
    ) -> Result<(), HarnessError> {
        let base = self.root.join("base").display().to_string();
        install(root, &base, "tree", cache, packages)
    }

    /// The trees that are in a directory.
    pub(super) fn open(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The trees to make layers of, lowest first: the base, then each step.
    pub(super) fn layers(&self) -> Vec<PathBuf> {
        std::iter::once(self.root.join("base"))
            .chain((0..STEPS.len()).map(|index| self.root.join(index.to_string())))
            .collect()
    }
}

/// Installs packages above trees, the uppermost first and joined by colons. What they add is in `upper`, below `root`.
fn install(
    root: &Path,
    lower: &str,
    upper: &str,
    cache: &Path,
    packages: &[&str],
) -> Result<(), HarnessError> {
    for name in [upper, "work", "merged"] {
        let path = root.join(name);
        std::fs::create_dir(&path).context("create", &path)?;
    }
    Program::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(["sh", "-c", STEP, "step"])
        .args([lower, upper, "work", "merged"])
        .arg(cache)
        .args(packages)
        .current_dir(root)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8")
        .timeout(Duration::from_secs(900))
        .check()?;
    for name in ["work", "merged"] {
        let path = root.join(name);
        std::fs::remove_dir_all(&path).context("remove", &path)?;
    }
    Ok(())
}

/// What belongs to the machine that built a tree, and no layer should carry.
pub(super) fn is_of_the_build(path: &Path) -> bool {
    [
        "etc/hostname",
        "etc/resolv.conf",
        "var/cache/apt/archives",
        "var/lib/apt/lists",
        "var/log",
        "run",
        "tmp",
    ]
    .iter()
    .any(|place| path.starts_with(place) && path != Path::new(place))
        || path == Path::new("etc/hostname")
        || path == Path::new("etc/resolv.conf")
}
