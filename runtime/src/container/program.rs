//! Finding and executing the container's program, as execvp(3) and shells do it.
//!
//! Until the program is executed, `/proc/self/exe` leads to the file of `cista` on the host, past every mount and namespace. An image whose program is
//! that link, or a script that names it as interpreter, would execute `cista` once more, and could then write to the file through the link as
//! soon as nobody executes it (CVE-2019-5736). Where the caller could write to that file, which an installed one does not allow an ordinary user,
//! such a program is refused. A file of the same content that was mounted into the container is another way to it and no concern here.
//!
//! Between that look and the execution, programs that run already could put another script in place. Where there may be such programs, `cista` executes a
//! copy of itself in memory first ([`protect`]), so that nothing leads to its file.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::environment::{DEFAULT_PATH, Environment};
use crate::sys::{self, process};

/// Why the program is not running.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is no program of that name; exit status 127.
    #[error("program `{program}` not found in the container")]
    NotFound {
        /// The name asked for.
        program: String,
    },
    /// There is one and it cannot be executed; exit status 126.
    #[error("cannot execute `{program}` in the container")]
    CannotExecute {
        /// The path that was tried.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// An argument holds a NUL byte, or there is none at all.
    #[error("the command line cannot be passed to a program")]
    BadArguments,
}

/// Becomes the program of a command line. Returns only when that failed. `absent` are paths that are known to lead nowhere.
#[must_use]
pub fn execute(line: &[OsString], environment: &Environment, absent: &[OsString]) -> ProgramError {
    let arguments: Result<Vec<CString>, _> = line
        .iter()
        .map(|argument| CString::new(argument.as_bytes()))
        .collect();
    let (Ok(arguments), Some(program)) = (arguments, line.first()) else {
        return ProgramError::BadArguments;
    };
    let strings = environment.strings();
    let forbidden = Forbidden::now();

    // The error of a candidate that exists is kept: a later directory may have the program, and if none has, it says more than "not found".
    let mut failure = None;
    for candidate in candidates(program, environment) {
        if absent.contains(&candidate) {
            continue;
        }
        let Ok(path) = CString::new(candidate.as_bytes()) else {
            continue;
        };
        if let Some(reason) = forbidden
            .as_ref()
            .and_then(|forbidden| forbidden.reached_by(&path, MAX_SCRIPTS))
        {
            return ProgramError::CannotExecute {
                program: candidate.to_string_lossy().into_owned(),
                source: io::Error::other(reason),
            };
        }
        let error = process::execute(&path, &arguments, &strings);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::ELOOP) => {
                // A file that is there, whose interpreter is not, also says ENOENT.
                if failure.is_none() && candidate.as_bytes().contains(&b'/') {
                    let exists = rustix::fs::access(&path, rustix::fs::Access::EXISTS).is_ok();
                    if exists {
                        failure = Some((
                            candidate,
                            io::Error::other("its interpreter is not in the container"),
                        ));
                    }
                }
            }
            Some(libc::EACCES) => failure = failure.or(Some((candidate, error))),
            _ => {
                failure = Some((candidate, error));
                break;
            }
        }
    }
    match failure {
        Some((program, source)) => ProgramError::CannotExecute {
            program: program.to_string_lossy().into_owned(),
            source,
        },
        None => ProgramError::NotFound {
            program: program.to_string_lossy().into_owned(),
        },
    }
}

/// Interpreters that are scripts themselves, of which the kernel follows five.
const MAX_SCRIPTS: usize = 6;

/// Longest first line of a script that the kernel looks at, in bytes (`BINPRM_BUF_SIZE`).
const MAX_SCRIPT_LINE: u64 = 256;

/// A file by its identity and the mount through which it was reached.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    device: (u32, u32),
    inode: u64,
    mount: u64,
}

impl Identity {
    fn of(path: &CStr) -> Option<Self> {
        let flags = StatxFlags::INO | StatxFlags::MNT_ID;
        let status = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), flags).ok()?;
        Some(Self {
            device: (status.stx_dev_major, status.stx_dev_minor),
            inode: status.stx_ino,
            mount: status.stx_mnt_id,
        })
    }
}

/// The file of this program; None where the caller cannot write to it, so that it needs no protection.
fn own_program() -> Option<Identity> {
    let path = c"/proc/self/exe";
    // Not what the real ids may do, which a set-id program would ask, but what we may.
    rustix::fs::accessat(
        rustix::fs::CWD,
        path,
        rustix::fs::Access::WRITE_OK,
        AtFlags::EACCESS,
    )
    .ok()?;
    Identity::of(path)
}

/// Sees to it that this process does not execute the file of this program, where the caller could write to that: to be called before a program is executed
/// where others may be running that can change files in its container. Returns where there is nothing to do, or nothing that can be done.
pub fn protect() {
    // A bundle has its image behind it, which is as large as it likes.
    let is_bundle = !matches!(crate::bundle::own(), Ok(None));
    if own_program().is_none() || sys::again::is_copy() || is_bundle {
        return;
    }
    // Without executable files in memory the look before the execution has to do.
    let _ = sys::again::execute_copy();
}

/// Where containers share files of the host unless they are asked not to.
const SHARED: [&CStr; 2] = [c"/dev/shm", c"/dev/hugepages"];

/// Whether a path names a file in a directory that containers share, as far as the path tells.
#[must_use]
pub fn is_shared(path: &OsStr) -> bool {
    SHARED
        .iter()
        .any(|shared| path.as_bytes().starts_with(shared.to_bytes()))
}

/// What a program must not lead to.
struct Forbidden {
    /// The file of this program.
    own: Identity,
    /// Mounts of the host that all containers have, where others could put another script in place. None are for a copy of this program.
    shared: Vec<u64>,
}

impl Forbidden {
    /// None where this program's file needs no protection.
    fn now() -> Option<Self> {
        let own = own_program()?;
        let mut shared = Vec::new();
        if !sys::again::is_copy() {
            let mount = |path: &CStr| Identity::of(path).map(|found| found.mount);
            // Where nothing is mounted there, it is as private as the directory above.
            let private = [mount(c"/"), mount(c"/dev")];
            let found = SHARED.iter().map(|path| mount(path));
            shared.extend(found.filter(|mount| !private.contains(mount)).flatten());
        }
        Some(Self { own, shared })
    }

    /// Whether executing a path executes what it must not: the path leads there, or to a script whose interpreter does.
    fn reached_by(&self, path: &CStr, scripts: usize) -> Option<&'static str> {
        let found = Identity::of(path);
        if found.as_ref() == Some(&self.own) {
            return Some("it leads out of the container");
        }
        if found.is_some_and(|found| self.shared.contains(&found.mount)) {
            return Some("other containers could change it there");
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let mut line = Vec::new();
        rustix::fs::open(path, flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|script| {
                std::fs::File::from(script)
                    .take(MAX_SCRIPT_LINE)
                    .read_to_end(&mut line)
            })
            .ok()?;
        self.reached_by(&interpreter(&line)?, scripts.checked_sub(1)?)
    }
}

/// The interpreter that the first line of a script names, as the kernel reads it.
fn interpreter(script: &[u8]) -> Option<CString> {
    let line = script
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | 0);
    let name = line.split(is_blank).find(|word| !word.is_empty())?;
    CString::new(name).ok()
}

/// The paths at which a program is tried: itself where it has a slash, otherwise one in each directory of the search path.
#[must_use]
pub fn candidates(program: &OsStr, environment: &Environment) -> Vec<OsString> {
    let search = environment.get("PATH").unwrap_or(OsStr::new(DEFAULT_PATH));
    if program.is_empty() {
        return Vec::new();
    }
    if program.as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    search
        .as_bytes()
        .split(|&byte| byte == b':')
        .map(|directory| {
            // An empty entry is the working directory.
            let mut path = if directory.is_empty() {
                b".".to_vec()
            } else {
                directory.to_vec()
            };
            path.push(b'/');
            path.extend_from_slice(program.as_bytes());
            OsString::from_vec(path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_of_a_search_path() {
        for (program, search, expected) in [
            ("ls", "/bin:/usr/bin", &["/bin/ls", "/usr/bin/ls"][..]),
            ("ls", "::/bin", &["./ls", "./ls", "/bin/ls"]),
            ("./ls", "/bin", &["./ls"]),
            ("/x/ls", "", &["/x/ls"]),
            ("", "/bin", &[]),
        ] {
            let mut environment = Environment::default();
            environment.set("PATH", search);
            assert_eq!(candidates(OsStr::new(program), &environment), expected);
        }
    }

    #[test]
    fn interpreters_of_scripts() {
        for (script, expected) in [
            (&b"#!/bin/sh\necho"[..], Some(c"/bin/sh")),
            (b"#! \t/bin/env  -S x\n", Some(c"/bin/env")),
            (b"#!x", Some(c"x")),
            (b"#!\n/bin/sh", None),
            (b"\x7fELF", None),
            (b"", None),
        ] {
            assert_eq!(interpreter(script).as_deref(), expected);
        }
    }

    /// The test program is one that the tests may write to, as `cista` is for who has built it.
    #[test]
    fn this_program_is_found_behind_links_and_scripts() {
        let scratch = tempfile::tempdir().unwrap();
        let own = own_program().expect("who runs the tests has built them");
        let shared = Vec::new();
        let forbidden = Forbidden { own, shared };
        let path = |name: &str| scratch.path().join(name);
        let leads = |name: &str| {
            let path = CString::new(path(name).into_os_string().into_vec()).unwrap();
            forbidden.reached_by(&path, MAX_SCRIPTS).is_some()
        };
        std::os::unix::fs::symlink("/proc/self/exe", path("link")).unwrap();
        std::fs::write(path("script"), "#!/proc/self/exe\n").unwrap();
        std::fs::write(path("second"), format!("#!{}\n", path("script").display())).unwrap();
        std::fs::write(path("self"), format!("#!{}\n", path("self").display())).unwrap();
        std::fs::write(path("plain"), "#!/bin/sh\n").unwrap();
        std::fs::copy("/proc/self/exe", path("copy")).unwrap();
        for name in ["link", "script", "second"] {
            assert!(leads(name), "{name}");
        }
        for name in ["self", "plain", "copy", "none"] {
            assert!(!leads(name), "{name}");
        }
    }

    #[test]
    fn failures_are_told_apart() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name).into_os_string();
        std::fs::write(path("plain"), "not executable").unwrap();
        std::fs::write(path("script"), "#!/no/such/interpreter\n").unwrap();
        let mode = |bits| std::os::unix::fs::PermissionsExt::from_mode(bits);
        std::fs::set_permissions(path("script"), mode(0o755)).unwrap();
        let environment = Environment::default();
        let run = |program: OsString| execute(&[program], &environment, &[]);
        assert!(matches!(run(path("none")), ProgramError::NotFound { .. }));
        assert!(matches!(
            run("no-such-program".into()),
            ProgramError::NotFound { .. }
        ));
        assert!(matches!(run("".into()), ProgramError::NotFound { .. }));
        assert!(matches!(
            run(path("plain")),
            ProgramError::CannotExecute { source, .. } if source.raw_os_error() == Some(libc::EACCES)
        ));
        assert!(matches!(
            run(path("script")),
            ProgramError::CannotExecute { source, .. } if source.to_string().contains("interpreter")
        ));
        assert!(matches!(run("a\0b".into()), ProgramError::BadArguments));
    }
}
