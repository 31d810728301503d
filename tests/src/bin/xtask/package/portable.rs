//! Programs that run with glibc 2.28 (RHEL 8, Debian 10) and later, whatever this machine has.
//!
//! A program needs the newest version among the symbols that it was linked with, and a linker takes the newest that it finds. `zig cc`
//! has the symbol tables of every glibc, and links for the one that is asked for; cargo-zigbuild makes it cargo's linker and C
//! compiler. Both come as wheels from PyPI, into a virtual environment of their own. What came out is then looked at.

use std::path::{Path, PathBuf};
use std::process::Command;

use cista_tests::artifacts::{target, workspace};
use cista_tests::error::HarnessError;
use cista_tests::program::Program;

use crate::{machine, say};

/// The oldest glibc that is served.
pub(super) const GLIBC: &str = "2.28";

/// What is installed from PyPI.
const TOOLS: [&str; 2] = ["cargo-zigbuild==0.24.*", "ziglang==0.17.*"];

/// What was built.
#[derive(Debug)]
pub(super) struct Built {
    /// The program `cista`.
    pub(super) program: PathBuf,
    /// Slurm's plugin.
    pub(super) plugin: PathBuf,
    /// The newest glibc that either asks for.
    pub(super) newest: String,
}

/// Builds program and plugin; the tools are kept in a directory.
pub(super) fn build(tools: &Path) -> Result<Built, HarnessError> {
    let zigbuild = zigbuild(tools)?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    say("building for packages");
    // The plugin's profile differs: a panic must not end slurmd. The profiles have directories of their own, so both are built at once:
    // most of the program's time goes to one thread that optimizes all of it.
    let make = |package: &str, profile: &str| {
        let mut command = Command::new(&zigbuild);
        command
            .current_dir(workspace())
            .args(["zigbuild", "--quiet", "--package", package])
            .args(["--profile", profile])
            .args(["--target", &format!("{triple}.{GLIBC}")])
            .env("PATH", path_with(&tools.join("bin")));
        machine::must_succeed("cargo zigbuild", &mut command)
    };
    std::thread::scope(|scope| {
        let plugin = scope.spawn(|| make("spank-cista", "plugin"));
        let program = make("cista", "release");
        let plugin = match plugin.join() {
            Ok(plugin) => plugin,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        program.and(plugin)
    })?;
    let directory = target().join(triple);
    let built = [
        directory.join("release/cista"),
        directory.join("plugin/libspank_cista.so"),
    ];
    let mut newest = Vec::new();
    for file in &built {
        let version = newest_symbol(file)?;
        if version > parse(GLIBC) {
            return Err(HarnessError::Malformed {
                what: format!("`{}`", file.display()),
                why: format!("it needs glibc {}", shown(&version)),
            });
        }
        newest.push(version);
    }
    let [program, plugin] = built;
    Ok(Built {
        program,
        plugin,
        newest: newest
            .iter()
            .max()
            .map(|version| shown(version))
            .unwrap_or_default(),
    })
}

/// cargo-zigbuild: the one on the search path, else one of our own.
fn zigbuild(tools: &Path) -> Result<PathBuf, HarnessError> {
    let own = tools.join("bin/cargo-zigbuild");
    if own.is_file() {
        return Ok(own);
    }
    say("installing cargo-zigbuild and ziglang from PyPI");
    Program::new("python3")
        .args(["-m", "venv"])
        .arg(tools)
        .check()?;
    Program::new(tools.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(TOOLS)
        .check()?;
    Ok(own)
}

/// The search path with a directory before all others.
fn path_with(directory: &Path) -> std::ffi::OsString {
    let mut path = directory.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("PATH") {
        path.push(":");
        path.push(others);
    }
    path
}

/// The newest version of glibc among the symbols that a file wants.
fn newest_symbol(file: &Path) -> Result<Vec<u32>, HarnessError> {
    let listed = Program::new("objdump")
        .arg("--dynamic-syms")
        .arg(file)
        .text()?;
    newest(&listed).ok_or_else(|| HarnessError::Malformed {
        what: format!("the symbols of `{}`", file.display()),
        why: "none of them is of glibc".into(),
    })
}

/// Whether a dependency of an rpm package, such as `libc.so.6(GLIBC_2.14)(64bit)`, is met by the oldest glibc that is served.
pub(super) fn is_old_enough(need: &str) -> bool {
    newest(need).is_none_or(|version| version <= parse(GLIBC))
}

fn newest(symbols: &str) -> Option<Vec<u32>> {
    symbols
        .split("GLIBC_")
        .skip(1)
        .map(|text| {
            let end = text
                .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
                .unwrap_or(text.len());
            parse(&text[..end])
        })
        .filter(|version| !version.is_empty())
        .max()
}

fn parse(version: &str) -> Vec<u32> {
    version
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn shown(version: &[u32]) -> String {
    let parts: Vec<String> = version.iter().map(u32::to_string).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let symbols = "0000      DF *UND*  0000 (GLIBC_2.2.5) free\n0000 w DF *UND*  0000 (GLIBC_2.28) statx\n\
                       0000      DF *UND*  0000 (GLIBC_2.4) __stack_chk_fail\n0000 DF *UND* 0000 (GLIBC_PRIVATE) x\n";
        assert_eq!(newest(symbols), Some(vec![2, 28]));
        assert!(parse("2.34") > parse(GLIBC) && parse("2.4") < parse(GLIBC));
        assert_eq!(newest("no symbols"), None);
        assert!(is_old_enough("libc.so.6()(64bit)"));
        assert!(is_old_enough("libc.so.6(GLIBC_2.28)(64bit)"));
        assert!(!is_old_enough("libc.so.6(GLIBC_2.34)(64bit)"));
    }
}
