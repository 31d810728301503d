//! What is in the packages: every file with its place, for both families of distributions.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cista_tests::artifacts::workspace;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::program::Program;

use super::portable::Built;
use crate::docs;

/// The version of all packages.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How often this version was packaged.
pub(super) const RELEASE: &str = "1";
/// Who answers for the packages; the address is the one that GitHub keeps for the repository's owner.
pub(super) const MAINTAINER: &str = "The cista developers <cista-project@users.noreply.github.com>";
/// Where the source is.
pub(super) const HOMEPAGE: &str = env!("CARGO_PKG_REPOSITORY");

/// Distributions that agree on where files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Debian and Ubuntu.
    Debian,
    /// Red Hat Enterprise Linux and those made of it.
    RedHat,
}

/// A package.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    /// The package of ours that it needs, in its own version.
    pub(super) needs: Option<&'static str>,
    /// A package of others whose place it takes.
    pub(super) replaces: Option<&'static str>,
    pub(super) entries: Vec<Entry>,
    /// Scripts of dpkg, by name.
    pub(super) scripts: Vec<(&'static str, PathBuf)>,
}

/// Something in a package.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its place, below the root.
    pub(super) target: String,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// A copy of a file.
    File { source: PathBuf, mode: u32 },
    /// A file that the administrator may change: upgrades leave it alone.
    Config { source: PathBuf },
    /// A file with a text.
    Text(String),
    /// A symbolic link.
    Link(&'static str),
}

/// Writes what is made from the program's descriptions: manual pages and completions.
pub(super) fn generate(made: &Path) -> Result<(), HarnessError> {
    docs::describe("man", &made.join("man"))?;
    docs::describe("completions", &made.join("completions"))?;
    // man(1) reads them compressed; `-n` leaves the time out.
    for file in files_below(&made.join("man"))? {
        Program::new("gzip").args(["-9n"]).arg(file).check()?;
    }
    Ok(())
}

/// The packages.
pub(super) fn packages(
    built: &Built,
    made: &Path,
    family: Family,
) -> Result<Vec<Package>, HarnessError> {
    Ok(vec![
        runtime(built, made, family)?,
        plugin(built, family),
        Package {
            name: "cista-enroot",
            summary: "cista under the name of enroot",
            description: "A symbolic link, so that scripts which call enroot, and plugins that need it, use cista.",
            needs: Some("cista"),
            replaces: Some("enroot"),
            entries: vec![link("usr/bin/enroot", "cista")],
            scripts: Vec::new(),
        },
    ])
}

fn runtime(built: &Built, made: &Path, family: Family) -> Result<Package, HarnessError> {
    let root = workspace();
    let packaging = root.join("packaging");
    let mut entries = vec![
        file("usr/bin/cista", &built.program, 0o755),
        Entry {
            target: "etc/cista/cista.toml".into(),
            kind: Kind::Config {
                source: packaging.join("etc/cista.toml"),
            },
        },
        file(
            "usr/share/bash-completion/completions/cista",
            &made.join("completions/bash/cista"),
            0o644,
        ),
        file(
            match family {
                Family::Debian => "usr/share/zsh/vendor-completions/_cista",
                Family::RedHat => "usr/share/zsh/site-functions/_cista",
            },
            &made.join("completions/zsh/_cista"),
            0o644,
        ),
        file(
            "usr/share/fish/vendor_completions.d/cista.fish",
            &made.join("completions/fish/cista.fish"),
            0o644,
        ),
    ];
    // Beside README, as in the repository, so that links from page to page lead somewhere.
    for (from, to) in [
        (made.join("man"), "usr/share/man"),
        (root.join("docs"), "usr/share/doc/cista/docs"),
        (packaging.join("apparmor"), "usr/share/cista/apparmor"),
        (packaging.join("grafana"), "usr/share/cista/grafana"),
        (packaging.join("devices.d"), "usr/share/cista/devices.d"),
    ] {
        for source in files_below(&from)? {
            let below = source.strip_prefix(&from).unwrap_or(&source);
            entries.push(file(&format!("{to}/{}", below.display()), &source, 0o644));
        }
    }
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
    ] {
        entries.push(file(
            &format!("usr/share/doc/cista/{name}"),
            &root.join(name),
            0o644,
        ));
    }
    let mut scripts = Vec::new();
    if family == Family::Debian {
        entries.push(file(
            "usr/share/doc/cista/copyright",
            &packaging.join("debian/copyright"),
            0o644,
        ));
        scripts = ["postinst", "postrm"]
            .map(|name| (name, packaging.join("debian").join(name)))
            .to_vec();
    }
    Ok(Package {
        name: "cista",
        summary: "container runtime for HPC and AI clusters, without a daemon",
        description: "Imports OCI images into squashfs files and runs them as plain child processes: no daemon, no setuid program, no root. \
                      It takes the commands, the settings and the image files of enroot.",
        needs: None,
        replaces: None,
        entries,
        scripts,
    })
}

fn plugin(built: &Built, family: Family) -> Package {
    // Slurm of its makers' packages, and of Debian's own, look into different directories; plugstack.conf names the file by its path.
    let target = match family {
        Family::Debian => format!(
            "usr/lib/{}-linux-gnu/slurm/spank_cista.so",
            std::env::consts::ARCH
        ),
        Family::RedHat => "usr/lib64/slurm/spank_cista.so".to_owned(),
    };
    let packaging = workspace().join("packaging/slurm");
    let example = include_str!("../../../../../packaging/slurm/cista.conf");
    let mut entries = vec![
        file(&target, &built.plugin, 0o644),
        file(
            "usr/share/cista/slurm/epilog.sh",
            &packaging.join("epilog.sh"),
            0o755,
        ),
        Entry {
            target: "usr/share/cista/slurm/cista.conf".into(),
            kind: Kind::Text(example.replace("@PLUGIN@", &format!("/{target}"))),
        },
    ];
    if family == Family::Debian {
        entries.push(Entry {
            target: format!(
                "usr/lib/{}-linux-gnu/slurm-wlm/spank_cista.so",
                std::env::consts::ARCH
            ),
            kind: Kind::Link("../slurm/spank_cista.so"),
        });
    }
    Package {
        name: "cista-slurm",
        summary: "containers for steps of Slurm, by cista",
        description: "A SPANK plugin for every Slurm from 20.11 on, with the options of pyxis: srun --container-image=… and the rest.",
        needs: Some("cista"),
        replaces: None,
        entries,
        scripts: Vec::new(),
    }
}

fn file(target: &str, source: &Path, mode: u32) -> Entry {
    Entry {
        target: target.to_owned(),
        kind: Kind::File {
            source: source.to_owned(),
            mode,
        },
    }
}

fn link(target: &str, to: &'static str) -> Entry {
    Entry {
        target: target.to_owned(),
        kind: Kind::Link(to),
    }
}

/// The files below a directory, sorted.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>, HarnessError> {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).context("read", &directory)? {
            let path = entry.context("read", &directory)?.path();
            if path.is_dir() {
                pending.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

impl Package {
    /// The directories that belong to it and to packages of its family alone, the highest first.
    pub(super) fn directories(&self) -> BTreeSet<String> {
        let mut directories = BTreeSet::new();
        for entry in &self.entries {
            let parents = Path::new(&entry.target).ancestors().skip(1);
            directories.extend(
                parents
                    .filter(|path| path.components().any(|part| part.as_os_str() == "cista"))
                    .map(|path| path.display().to_string()),
            );
        }
        directories
    }

    /// Lays the package out below a directory, as it will be below `/`.
    pub(super) fn stage(&self, root: &Path) -> Result<(), HarnessError> {
        use std::os::unix::fs::symlink;

        use cista_tests::environment::set_mode;

        for entry in &self.entries {
            let target = root.join(&entry.target);
            if target.symlink_metadata().is_ok() {
                return Err(HarnessError::Malformed {
                    what: format!("the package `{}`", self.name),
                    why: format!("two files of it are `/{}`", entry.target),
                });
            }
            if let Some(directory) = target.parent() {
                std::fs::create_dir_all(directory).context("create", directory)?;
            }
            let (source, mode) = match &entry.kind {
                Kind::Link(to) => {
                    symlink(to, &target).context("create", &target)?;
                    continue;
                }
                Kind::Text(text) => {
                    std::fs::write(&target, text).context("write", &target)?;
                    set_mode(&target, 0o644)?;
                    continue;
                }
                Kind::File { source, mode } => (source, *mode),
                Kind::Config { source } => (source, 0o644),
            };
            std::fs::copy(source, &target).context("copy", source)?;
            set_mode(&target, mode)?;
        }
        // Whatever the umask of who builds it.
        Program::new("find")
            .arg(root)
            .args(["-type", "d", "-exec", "chmod", "0755", "{}", "+"])
            .check()?;
        Ok(())
    }
}
