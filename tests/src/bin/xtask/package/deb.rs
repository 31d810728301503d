//! A package of Debian: deb(5), made by dpkg-deb(1).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cista_tests::environment::set_mode;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::program::Program;

use super::contents::{HOMEPAGE, Kind, MAINTAINER, Package, RELEASE, VERSION};
use super::portable::GLIBC;

/// Builds a package in a directory, and returns its file.
pub(super) fn build(
    package: &Package,
    work: &Path,
    output: &Path,
) -> Result<PathBuf, HarnessError> {
    let root = work.join(format!("{}-deb", package.name));
    package.stage(&root)?;
    let debian = root.join("DEBIAN");
    std::fs::create_dir(&debian).context("create", &debian)?;
    let write = |name: &str, text: String| {
        let path = debian.join(name);
        std::fs::write(&path, text).context("write", &path)
    };
    write("control", control(package, size_below(&root)?))?;
    let configs: String = package
        .entries
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::Config { .. }))
        .map(|entry| format!("/{}\n", entry.target))
        .collect();
    if !configs.is_empty() {
        write("conffiles", configs)?;
    }
    for (name, source) in &package.scripts {
        let path = debian.join(name);
        std::fs::copy(source, &path).context("copy", source)?;
        set_mode(&path, 0o755)?;
    }
    let file = output.join(format!(
        "{}_{VERSION}-{RELEASE}_{}.deb",
        package.name,
        architecture()
    ));
    Program::new("dpkg-deb")
        .args(["--build", "--root-owner-group", "-Zxz"])
        .arg(&root)
        .arg(&file)
        .check()?;
    Ok(file)
}

/// What dpkg says that a package needs on disk, in KiB.
fn size_below(root: &Path) -> Result<u64, HarnessError> {
    let mut size = 0;
    for file in cista_tests::listing::files_below(root)? {
        size += file
            .symlink_metadata()
            .context("look at", &file)?
            .len()
            .div_ceil(1024);
    }
    Ok(size)
}

fn control(package: &Package, size: u64) -> String {
    let mut text = format!(
        "Package: {}\nVersion: {VERSION}-{RELEASE}\nArchitecture: {}\nMaintainer: {MAINTAINER}\nHomepage: {HOMEPAGE}\nInstalled-Size: {size}\nSection: utils\nPriority: optional\n",
        package.name,
        architecture(),
    );
    let depends = match package.needs {
        Some(name) => format!("{name} (= {VERSION}-{RELEASE})"),
        None => format!("libc6 (>= {GLIBC})"),
    };
    let _ = writeln!(text, "Depends: {depends}");
    if let Some(other) = package.replaces {
        let _ = write!(
            text,
            "Provides: {other}\nConflicts: {other}\nReplaces: {other}\n"
        );
    }
    let _ = write!(
        text,
        "Description: {}\n {}\n",
        package.summary, package.description
    );
    text
}

/// This machine's processor, as Debian calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
