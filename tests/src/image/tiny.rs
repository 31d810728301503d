//! Images that need nothing from Debian's archive: a static busybox, or a static program compiled on the spot.

use std::path::{Path, PathBuf};

use crate::artifacts;
use crate::error::{HarnessError, IoContext as _};
use crate::packages::find_program;
use crate::program::Program;

use super::layer::{Compression, LayerWriter, header};
use super::layout::{Layout, LayoutWriter, RunConfig};

/// An image that anybody can make, and how to use what is in it.
#[derive(Debug)]
pub struct Tiny {
    /// The image.
    pub layout: Layout,
    /// A command line that computes something and prints it.
    pub compute: Vec<String>,
    /// A command line that ends with status 3.
    pub exit: Vec<String>,
    /// A command line that prints its pid, its parent's pid and `ready`, and stays.
    pub wait: Vec<String>,
    /// A command line that does nothing.
    pub nothing: Vec<String>,
}

impl Tiny {
    /// Makes the image in a directory: of a static busybox if there is one, else of a program that rustc compiles.
    pub fn build(root: &Path) -> Result<Self, HarnessError> {
        let mut layout = LayoutWriter::create(root)?;
        let words = |line: &[&str]| line.iter().map(ToString::to_string).collect();
        let config = RunConfig {
            env: vec!["PATH=/bin".into()],
            ..RunConfig::default()
        };
        if static_busybox().is_some() {
            layout.layer(Compression::Gzip, busybox)?;
            return Ok(Self {
                layout: layout.finish("demo", &config)?,
                compute: words(&["sh", "-c", "echo 6 times 7 is $((6 * 7))"]),
                exit: words(&["sh", "-c", "exit 3"]),
                wait: words(&["sh", "-c", "echo $$ $PPID ready; exec sleep 60"]),
                nothing: words(&["true"]),
            });
        }
        let program = compile_guest(root)?;
        let content = std::fs::read(&program).context("read", &program)?;
        std::fs::remove_file(&program).context("remove", &program)?;
        layout.layer(Compression::Gzip, |layer| {
            layer.directory("bin/")?;
            let header = header(tar::EntryType::Regular, 0o755, content.len() as u64);
            layer.entry(b"bin/guest", header, &content)
        })?;
        Ok(Self {
            layout: layout.finish("demo", &config)?,
            compute: words(&["guest", "compute"]),
            exit: words(&["guest", "exit", "3"]),
            wait: words(&["guest", "wait"]),
            nothing: words(&["guest"]),
        })
    }
}

fn compile_guest(directory: &Path) -> Result<PathBuf, HarnessError> {
    let program = directory.join("guest");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    Program::new(rustc)
        .args([
            "--edition=2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-o",
        ])
        .arg(&program)
        .arg(artifacts::workspace().join("tests/guest/main.rs"))
        .check()?;
    Ok(program)
}

/// Fills a layer with a static busybox: `/bin/busybox`, an applet a symbolic link, and the fewest files around it.
pub(super) fn busybox(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    let program = static_busybox().ok_or_else(|| HarnessError::Missing {
        what: "a static `busybox`".into(),
        hint: "apt-get install busybox-static".into(),
    })?;
    let content = std::fs::read(&program).context("read", &program)?;
    let applets = Program::new(&program).arg("--list").text()?;
    for directory in ["bin/", "etc/", "home/", "usr/", "usr/bin/", "var/"] {
        layer.directory(directory)?;
    }
    let directory = |mode| header(tar::EntryType::Directory, mode, 0);
    layer.entry(b"tmp/", directory(0o1777), &[])?;
    layer.entry(b"root/", directory(0o700), &[])?;
    let executable = header(tar::EntryType::Regular, 0o755, content.len() as u64);
    layer.entry(b"bin/busybox", executable, &content)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    layer.file(
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n",
    )?;
    layer.file("etc/group", b"root:x:0:\ndaemon:x:1:\n")?;
    layer.file("etc/issue", b"a test image of cista\n")
}

/// The path of a busybox that needs no library.
fn static_busybox() -> Option<PathBuf> {
    find_program("busybox").filter(|program| is_static(program))
}

/// Whether an ELF program asks for no interpreter, so that it runs in an empty root file system.
fn is_static(program: &Path) -> bool {
    // The interpreter's path stands near the beginning of every program that has one, and of no other.
    std::fs::read(program).is_ok_and(|bytes| {
        bytes.starts_with(b"\x7fELF")
            && !bytes[..bytes.len().min(4096)]
                .windows(5)
                .any(|window| window == b"/ld-l" || window == b"/ld.s")
    })
}
