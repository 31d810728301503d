//! A package of Red Hat: rpm(8), made by rpmbuild(8) from files that are there already.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::program::Program;

use super::contents::{HOMEPAGE, Kind, MAINTAINER, Package, RELEASE, VERSION};

/// Settings of rpmbuild: our files are taken as they are, and nothing is left behind.
const DEFINITIONS: [&str; 5] = [
    "debug_package %{nil}",
    "__os_install_post %{nil}",
    "_build_id_links none",
    "_binary_payload w19.zstdio",
    "_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
];

/// Builds a package in a directory, and returns its file.
pub(super) fn build(
    package: &Package,
    work: &Path,
    output: &Path,
) -> Result<PathBuf, HarnessError> {
    let stage = work.join(format!("{}-rpm", package.name));
    package.stage(&stage)?;
    let spec = work.join(format!("{}.spec", package.name));
    std::fs::write(&spec, description(package, &stage)).context("write", &spec)?;
    let architecture = std::env::consts::ARCH;
    let top = work.join("rpmbuild");
    let mut program = Program::new("rpmbuild")
        .args(["-bb", "--quiet", "--target", architecture])
        .arg("--define")
        .arg(format!("_topdir {}", top.display()))
        .arg("--define")
        .arg(format!("_rpmdir {}", output.display()));
    for definition in DEFINITIONS {
        program = program.args(["--define", definition]);
    }
    program.arg(&spec).check()?;
    Ok(output.join(format!(
        "{}-{VERSION}-{RELEASE}.{architecture}.rpm",
        package.name
    )))
}

/// The specification: what `%install` copies is what `%files` lists.
fn description(package: &Package, stage: &Path) -> String {
    let mut text = format!(
        "Name: {}\nVersion: {VERSION}\nRelease: {RELEASE}\nSummary: {}\nLicense: Apache-2.0 OR MIT\nURL: {HOMEPAGE}\nVendor: {MAINTAINER}\nPackager: {MAINTAINER}\n",
        package.name, package.summary,
    );
    if let Some(name) = package.needs {
        let _ = writeln!(text, "Requires: {name} = {VERSION}-{RELEASE}");
    }
    if let Some(other) = package.replaces {
        let _ = write!(text, "Provides: {other}\nConflicts: {other}\n");
    }
    let _ = write!(
        text,
        "\n%description\n{}\n\n%install\ncp -a '{}/.' '%{{buildroot}}'\n\n%files\n%defattr(-,root,root,-)\n",
        package.description,
        stage.display()
    );
    for directory in package.directories() {
        let _ = writeln!(text, "%dir /{directory}");
    }
    for entry in &package.entries {
        let target = &entry.target;
        let line = match entry.kind {
            Kind::Config { .. } => format!("%config(noreplace) /{target}"),
            _ if target.contains("/LICENSE-") => format!("%license /{target}"),
            _ if target.starts_with("usr/share/doc/") => format!("%doc /{target}"),
            _ => format!("/{target}"),
        };
        let _ = writeln!(text, "{line}");
    }
    text
}
