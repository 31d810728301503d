//! Who runs the programs under test: root, or an ordinary user without any privilege.
//!
//! Root makes the ordinary user once (`useradd`), and runs programs as it without supplementary groups. An ordinary
//! user who runs the tests is that user.

use crate::error::{HarnessError, IoContext as _};
use crate::program::Program;

/// The name of the ordinary user that root makes.
pub const UNPRIVILEGED: &str = "cista-test";

/// A user that programs can run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
}

impl User {
    /// The user who runs this process.
    pub fn current() -> Result<Self, HarnessError> {
        let uid = rustix::process::getuid().as_raw();
        match Self::find(|user| user.uid == uid)? {
            Some(user) => Ok(user),
            None => Ok(Self {
                name: format!("uid-{uid}"),
                uid,
                gid: rustix::process::getgid().as_raw(),
            }),
        }
    }

    /// A user without privileges: ourselves, or the one that root makes for it.
    pub fn unprivileged() -> Result<Self, HarnessError> {
        let current = Self::current()?;
        if !current.is_root() {
            return Ok(current);
        }
        let named = |user: &Self| user.name == UNPRIVILEGED;
        if let Some(user) = Self::find(named)? {
            return Ok(user);
        }
        Program::new("useradd")
            .args([
                "--user-group",
                "--no-create-home",
                "--home-dir",
                "/nonexistent",
            ])
            .args([
                "--shell",
                "/bin/sh",
                "--comment",
                "tests of cista",
                UNPRIVILEGED,
            ])
            .check()?;
        Self::find(named)?.ok_or_else(|| HarnessError::Missing {
            what: format!("the user `{UNPRIVILEGED}`"),
            hint: "`useradd` succeeded, but /etc/passwd does not name it".into(),
        })
    }

    /// Whether this is root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether this process runs as this user.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.uid == rustix::process::getuid().as_raw()
    }

    fn find(wanted: impl Fn(&Self) -> bool) -> Result<Option<Self>, HarnessError> {
        let table = std::fs::read_to_string("/etc/passwd").context("read", "/etc/passwd")?;
        Ok(table.lines().filter_map(Self::from_line).find(wanted))
    }

    fn from_line(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        Some(Self {
            name: fields.next()?.to_owned(),
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        })
    }
}

/// Whether this process may do what root may.
#[must_use]
pub fn we_are_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_passwd_gives_name_and_ids() {
        let user = User::from_line("nobody:x:65534:65533:nobody:/nonexistent:/usr/sbin/nologin");
        assert_eq!(
            user,
            Some(User {
                name: "nobody".into(),
                uid: 65534,
                gid: 65533
            })
        );
        assert_eq!(User::from_line("broken"), None);
    }
}
