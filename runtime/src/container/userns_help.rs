//! Why there are no user namespaces, and what an administrator can do about it (user_namespaces(7), sysctl(8), apparmor(7)).

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

/// A switch of the kernel that keeps users from user namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What it does.
    pub cause: &'static str,
    /// The command that removes it.
    pub command: Cow<'static, str>,
}

const LIMIT_ZERO: Obstacle = Obstacle {
    cause: "user namespaces are off",
    command: Cow::Borrowed("sysctl -w user.max_user_namespaces=65536"),
};

const USERS_FORBIDDEN: Obstacle = Obstacle {
    cause: "user namespaces are off for users",
    command: Cow::Borrowed("sysctl -w kernel.unprivileged_userns_clone=1"),
};

/// The profile is for the file that is executed, wherever that is: the one of the packages is for the usual places.
fn apparmor(program: Option<PathBuf>) -> Obstacle {
    let program = program
        .and_then(|path| path.into_os_string().into_string().ok())
        .filter(|path| !path.contains(['\'', '"', '\\', '*', '?', '[', '{', '@', '^']))
        .unwrap_or_else(|| "/usr/bin/cista".to_owned());
    Obstacle {
        cause: "AppArmor restricts user namespaces, and has no profile for this program",
        command: Cow::Owned(format!(
            "echo 'abi <abi/4.0>, profile cista \"{program}\" flags=(unconfined) {{ userns, }}' >/etc/apparmor.d/cista && apparmor_parser -r /etc/apparmor.d/cista"
        )),
    }
}

const LIMIT_REACHED: Obstacle = Obstacle {
    cause: "the limit of user namespaces is reached (`sysctl user.max_user_namespaces` shows it)",
    command: Cow::Borrowed("sysctl -w user.max_user_namespaces=65536"),
};

/// What stands in the way, given the system's answer. None for an answer that has other reasons.
#[must_use]
pub fn obstacle(answer: &io::Error) -> Option<Obstacle> {
    if !matches!(
        answer.raw_os_error(),
        Some(libc::EPERM | libc::ENOSPC | libc::EACCES | libc::EINVAL)
    ) {
        return None;
    }
    let is = |name: &str, value: &str| {
        std::fs::read_to_string(Path::new("/proc/sys").join(name))
            .is_ok_and(|text| text.trim() == value)
    };
    if is("user/max_user_namespaces", "0") {
        Some(LIMIT_ZERO)
    } else if is("kernel/unprivileged_userns_clone", "0") {
        Some(USERS_FORBIDDEN)
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        Some(apparmor(std::env::current_exe().ok()))
    } else {
        (answer.raw_os_error() == Some(libc::ENOSPC)).then_some(LIMIT_REACHED)
    }
}

/// The same in one sentence.
#[must_use]
pub fn hint(answer: &io::Error) -> Option<String> {
    obstacle(answer).map(|Obstacle { cause, command }| {
        format!("{cause}; an administrator can change that with `{command}`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_for_the_program_that_runs() {
        let of = |path: &str| apparmor(Some(PathBuf::from(path))).command.into_owned();
        assert!(
            of("/home/me/.cargo/bin/cista")
                .contains("profile cista \"/home/me/.cargo/bin/cista\" flags")
        );
        // What would end the quotes, or stand for other paths, is not put in.
        for odd in ["/x'; true '", "/a\"b", "/a*", "/{a,b}"] {
            assert!(of(odd).contains("\"/usr/bin/cista\""), "{odd}");
        }
    }
}
