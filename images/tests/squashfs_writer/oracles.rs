//! The programs that know squashfs better than we do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Reports by name what a test cannot do here; an error where everything must be there.
fn skip(what: &str, why: &str) {
    assert!(
        std::env::var_os("CISTA_TEST_REQUIRE").is_none_or(|value| value != "1"),
        "{what} is required: {why}"
    );
    println!("skipped: {what}: {why}");
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    });
    if !found {
        skip(program, "not installed");
    }
    found
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Extracts an image with `unsquashfs` to a directory that does not exist.
pub(crate) fn unsquashfs(image: &Path, destination: &Path) -> bool {
    if !have("unsquashfs") {
        return false;
    }
    // -strict-errors: any complaint is an error.
    let xattrs = if is_root() { "-xattrs" } else { "-user-xattrs" };
    run(Command::new("unsquashfs")
        .args(["-no-progress", "-strict-errors", xattrs, "-dest"])
        .args([destination, image]));
    true
}

/// A mount that ends with the value.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status();
        if !status.is_ok_and(|status| status.success()) && !std::thread::panicking() {
            panic!("cannot unmount {}", self.0.display());
        }
    }
}

/// Mounts an image by the kernel's squashfs on a directory that is made.
pub(crate) fn kernel(image: &Path, target: &Path) -> Option<Mount> {
    if !is_root() {
        skip("kernel squashfs", "not root");
        return None;
    }
    let supported = fs::read_to_string("/proc/filesystems").unwrap();
    if !supported.contains("squashfs") {
        skip("kernel squashfs", "not in /proc/filesystems");
        return None;
    }
    fs::create_dir(target).unwrap();
    run(Command::new("mount")
        .args(["-t", "squashfs", "-o", "loop,ro"])
        .args([image, target]));
    Some(Mount(target.to_owned()))
}

/// Mounts an image by `squashfuse` on a directory that is made.
pub(crate) fn squashfuse(image: &Path, target: &Path) -> Option<Mount> {
    if !is_root() {
        skip("squashfuse", "not root");
        return None;
    }
    if !Path::new("/dev/fuse").exists() {
        skip("squashfuse", "no /dev/fuse");
        return None;
    }
    if !have("squashfuse") {
        return None;
    }
    fs::create_dir(target).unwrap();
    run(Command::new("squashfuse").args([image, target]));
    Some(Mount(target.to_owned()))
}
