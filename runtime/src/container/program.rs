//! Finding and executing the container's program, as execvp(3) and shells do it.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use super::environment::{DEFAULT_PATH, Environment};
use crate::sys::process;

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

    // The error of a candidate that exists is kept: a later directory may have the program, and if none has, it says more than "not found".
    let mut failure = None;
    for candidate in candidates(program, environment) {
        if absent.contains(&candidate) {
            continue;
        }
        let Ok(path) = CString::new(candidate.as_bytes()) else {
            continue;
        };
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
