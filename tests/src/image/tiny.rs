//! Images that need nothing from Debian's archive: a static busybox, or a static program made on the spot.

use std::path::{Path, PathBuf};

use crate::error::{HarnessError, IoContext as _};
use crate::packages::find_program;
use crate::program::Program;

use super::layer::{LayerWriter, header};

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
    let mode = |kind, mode| header(kind, mode, 0);
    layer.entry(b"tmp/", mode(tar::EntryType::Directory, 0o1777), &[])?;
    layer.entry(b"root/", mode(tar::EntryType::Directory, 0o700), &[])?;
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
    // The string stands in the PT_INTERP segment and nowhere else in a static program's first page.
    std::fs::read(program).is_ok_and(|bytes| {
        bytes.starts_with(b"\x7fELF")
            && !bytes[..bytes.len().min(4096)]
                .windows(3)
                .any(|window| window == b"ld-")
    })
}
