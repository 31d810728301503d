//! `environ.d/*.env`, `mounts.d/*.fstab` and `hooks.d/*.sh` of enroot, and the logins beside them.
//!
//! The formats are the same, so files are copied. What every container of ours has anyway is left out: the mounts that enroot's own files
//! describe, and the hooks that enroot installs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{Fate, MigrateError, NewFile, Plan, read};
use crate::config::file::FileError;
use crate::config::sources::names;
use crate::container::additions::NATIVE_HOOKS;
use crate::container::{fstab, usual};

/// Where logins are, in a directory of a user.
const CREDENTIALS: &str = ".credentials";

/// What hooks of enroot call that comes with enroot.
const HELPERS: [&str; 3] = ["ENROOT_LIBRARY_PATH", "enroot-nsenter", "enroot-mount"];

/// Plans for the additions of one directory of enroot, which go to one of ours.
///
/// # Errors
///
/// A file cannot be read.
pub fn plan(from: &Path, to: &Path, plan: &mut Plan) -> Result<(), MigrateError> {
    let is_the_same = from == to;
    for file in files(from, "environ.d", "env")? {
        let content = read(&file)?.unwrap_or_default();
        for (number, line) in lines(&content) {
            let place = format!("{}:{number}", file.display());
            let text = String::from_utf8_lossy(line);
            let is_assignment = line
                .iter()
                .position(|&byte| byte == b'=')
                .is_some_and(|at| {
                    let name = &line[..at];
                    !name.is_empty()
                        && !name[0].is_ascii_digit()
                        && name
                            .iter()
                            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
                });
            if is_assignment {
                plan.step(Fate::Kept, place, &text, "a variable of every container");
            } else {
                plan.step(
                    Fate::Attention,
                    place,
                    &text,
                    "not `NAME=VALUE`, so nothing is set",
                );
            }
        }
        copy(&file, to, "environ.d", content, 0o644, is_the_same, plan);
    }
    for file in files(from, "mounts.d", "fstab")? {
        let content = read(&file)?.unwrap_or_default();
        let mut kept = Vec::new();
        let mut count = 0;
        for line in content.split_inclusive(|&byte| byte == b'\n') {
            kept.push(line);
            let trimmed = line.trim_ascii();
            if trimmed.is_empty() || trimmed.starts_with(b"#") {
                continue;
            }
            let place = format!("{}:{}", file.display(), kept.len());
            let text = String::from_utf8_lossy(trimmed).into_owned();
            // Variables are the business of whoever starts a container.
            match fstab::parse_line(trimmed, &|_| Some("x".into())) {
                Ok(Some(entry)) if usual::has(&entry) => {
                    plan.step(Fate::NotNeeded, place, &text, "every container has it");
                    if let Some(line) = kept.last_mut() {
                        *line = b"\n";
                    }
                }
                Ok(_) => {
                    count += 1;
                    plan.step(Fate::Kept, place, &text, "a mount of every container");
                }
                Err(error) => {
                    count += 1;
                    plan.step(Fate::Attention, place, &text, error.to_string());
                }
            }
        }
        if count > 0 {
            copy(
                &file,
                to,
                "mounts.d",
                kept.concat(),
                0o644,
                is_the_same,
                plan,
            );
        }
    }
    for file in files(from, "hooks.d", "sh")? {
        let place = file.display().to_string();
        if file
            .file_name()
            .is_some_and(|name| NATIVE_HOOKS.iter().any(|native| name == *native))
        {
            plan.step(Fate::NotNeeded, place, "", native(&file));
            continue;
        }
        let is_executable = file
            .metadata()
            .is_ok_and(|status| status.permissions().mode() & 0o111 != 0);
        if !is_executable {
            plan.step(
                Fate::NotNeeded,
                place,
                "",
                "it is not executable, so it is not run",
            );
            continue;
        }
        let content = read(&file)?.unwrap_or_default();
        let helper = HELPERS.iter().find(|helper| {
            content
                .windows(helper.len())
                .any(|part| part == helper.as_bytes())
        });
        match helper {
            None => plan.step(Fate::Kept, place, "", "a hook of every container"),
            Some(helper) => plan.step(
                Fate::Attention,
                place,
                "",
                format!("copied, but `{helper}` is enroot's: it works while enroot is installed; variables, mounts and the root are named by `cista help hooks`"),
            ),
        }
        copy(&file, to, "hooks.d", content, 0o755, is_the_same, plan);
    }
    let credentials = from.join(CREDENTIALS);
    if credentials.is_file() {
        plan.step(
            Fate::Kept,
            credentials.display(),
            "",
            "logins are found where they are",
        );
    }
    Ok(())
}

/// What a hook of enroot does, and what does it here.
fn native(file: &Path) -> &'static str {
    match file.file_name().and_then(|name| name.to_str()) {
        Some("50-slurm-pmi.sh" | "50-slurm-pmix.sh") => {
            "it is built in: `[start] slurm_pmi = true` where the plugin of Slurm is not used"
        }
        Some("98-nvidia.sh" | "99-mellanox.sh") => "devices are granted without a hook",
        _ => "it is built in",
    }
}

/// The files of a directory with an extension, in the order of their names.
fn files(
    directory: &Path,
    name: &str,
    extension: &str,
) -> Result<Vec<std::path::PathBuf>, FileError> {
    names(&directory.join(name), extension)
}

/// The lines that say something, with their numbers.
fn lines(content: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    content
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .zip(1..)
        .filter(|(line, _)| !line.is_empty() && !line.starts_with(b"#"))
        .map(|(line, number)| (number, line))
}

fn copy(
    file: &Path,
    to: &Path,
    directory: &str,
    content: Vec<u8>,
    mode: u32,
    is_the_same: bool,
    plan: &mut Plan,
) {
    if let Some(name) = file.file_name().filter(|_| !is_the_same) {
        plan.files.push(NewFile {
            path: to.join(directory).join(name),
            content,
            mode,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_copied_but_for_what_is_there_anyway() {
        let scratch = tempfile::tempdir().unwrap();
        let from = scratch.path().join("enroot");
        for directory in ["environ.d", "mounts.d", "hooks.d"] {
            fs::create_dir_all(from.join(directory)).unwrap();
        }
        let write = |name: &str, text: &str, mode: u32| {
            fs::write(from.join(name), text).unwrap();
            fs::set_permissions(from.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        write("environ.d/10.env", "# note\nA=1\nwrong\n", 0o644);
        write(
            "mounts.d/10-system.fstab",
            "/proc /proc none x-create=dir,rw,nosuid,noexec,nodev,rbind\n",
            0o644,
        );
        write(
            "mounts.d/50.fstab",
            "# note\n/proc /proc none rbind\n/scratch /scratch\n${HOME} ${HOME}\nbroken\n",
            0o644,
        );
        write("hooks.d/10-shadow.sh", "#!/bin/sh\n", 0o755);
        write("hooks.d/20-off.sh", "#!/bin/sh\n", 0o644);
        write("hooks.d/30-site.sh", "#!/bin/sh\nexit 0\n", 0o755);
        write(
            "hooks.d/40-lib.sh",
            "#!/bin/bash\nsource \"${ENROOT_LIBRARY_PATH}/common.sh\"\n",
            0o755,
        );
        write(".credentials", "machine x login y password zzz\n", 0o600);
        let to = scratch.path().join("cista");
        let mut made = Plan::default();
        plan(&from, &to, &mut made).unwrap();
        let fates: Vec<&str> = made.steps.iter().map(|step| step.fate.name()).collect();
        assert_eq!(
            fates,
            [
                "kept",
                "look at",
                "not needed",
                "not needed",
                "kept",
                "kept",
                "look at",
                "not needed",
                "not needed",
                "kept",
                "look at",
                "kept"
            ]
        );
        assert!(!format!("{made:?}").contains("zzz"), "no password is read");
        assert_eq!(made.write(false).unwrap().len(), 4);
        let mounts = fs::read_to_string(to.join("mounts.d/50.fstab")).unwrap();
        assert_eq!(
            mounts,
            "# note\n\n/scratch /scratch\n${HOME} ${HOME}\nbroken\n"
        );
        let mode = |name: &str| to.join(name).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("hooks.d/30-site.sh"), 0o755);
        assert_eq!(mode("environ.d/10.env"), 0o644);
        // Again it is the same, and what somebody changed is left alone.
        assert!(
            made.write(false)
                .unwrap()
                .iter()
                .all(|(_, written)| *written == super::super::Written::Same)
        );
        fs::write(to.join("environ.d/10.env"), "mine").unwrap();
        assert_eq!(
            made.write(false).unwrap()[0].1,
            super::super::Written::Differs
        );
        assert_eq!(made.write(true).unwrap()[0].1, super::super::Written::New);
        // A directory that is used in place is not copied.
        let mut in_place = Plan::default();
        plan(&from, &from, &mut in_place).unwrap();
        assert!(in_place.files.is_empty());
    }
}
