//! A login shell before the container's program, where a setting asks for it: it reads the image's `/etc/profile` and the user's `.profile`, which
//! some images use to set themselves up.
//!
//! Most such files set PATH, and would so lose what the image says (a known fault of enroot). So what the container's environment has is set again
//! afterwards: a profile adds variables and changes none.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use super::environment::Environment;

/// The shell.
pub const SHELL: &str = "/bin/sh";

/// The longest script that one argument of a program can be, with some room (`MAX_ARG_STRLEN`), in bytes.
const MAX_SCRIPT: usize = 120 << 10;

/// The command line that has a login shell execute `line`.
#[must_use]
pub fn line(line: &[OsString], environment: &Environment) -> Vec<OsString> {
    let mut script = b"[ ! -r /etc/profile ] || . /etc/profile\n\
        [ ! -r \"$HOME/.profile\" ] || . \"$HOME/.profile\"\n"
        .to_vec();
    for (name, value) in environment.iter() {
        // PATH comes before what is too long.
        if script.len() + value.len() < MAX_SCRIPT {
            script.extend_from_slice(b"export ");
            script.extend_from_slice(name.as_bytes());
            script.push(b'=');
            quote(value, &mut script);
            script.push(b'\n');
        }
    }
    script.extend_from_slice(b"exec \"$@\"\n");
    let mut words: Vec<OsString> = vec![SHELL.into(), "-c".into()];
    words.push(OsString::from_vec(script));
    words.push("-sh".into());
    words.extend_from_slice(line);
    words
}

/// A word in single quotes, which mean nothing to a shell but themselves.
fn quote(value: &OsStr, script: &mut Vec<u8>) {
    script.push(b'\'');
    for &byte in value.as_bytes() {
        if byte == b'\'' {
            script.extend_from_slice(b"'\\''");
        } else {
            script.push(byte);
        }
    }
    script.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gives_the_values_back() {
        let mut environment = Environment::default();
        environment.set("PATH", "/usr/bin:/bin");
        environment.set("ODD", "it's $HOME `x` \\ \"\n!");
        let words = line(&["printenv".into(), "ODD".into()], &environment);
        let output = std::process::Command::new(&words[0])
            .args(&words[1..])
            .env_clear()
            .env("HOME", "/nonexistent")
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"it's $HOME `x` \\ \"\n!\n");
    }
}
