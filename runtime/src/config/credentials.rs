//! Where logins at registries are kept, and what the programs that give passwords may know of the caller's environment.
//!
//! The places are those of the programs whose users we want: enroot's file (enroot, "import"), docker's (docker-login) and podman's
//! (containers-auth.json(5)). What is in them is read in [`crate::credentials`], and only when a registry asks.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Sources, settings};

/// The name of enroot's file, and of ours in the same format.
const NETRC_NAME: &str = ".credentials";

/// Where logins are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialPaths {
    /// Files in enroot's format, the first that has a login being used: `$CISTA_CONFIG_PATH/.credentials`, `$XDG_CONFIG_HOME/cista/.credentials`;
    /// `$ENROOT_CONFIG_PATH/.credentials`, `$XDG_CONFIG_HOME/enroot/.credentials`.
    pub netrc: Vec<PathBuf>,
    /// Files in docker's format, in the order in which they are asked: `$REGISTRY_AUTH_FILE`; docker's; podman's
    /// (`$XDG_RUNTIME_DIR/containers/auth.json`, `$XDG_CONFIG_HOME/containers/auth.json`).
    pub docker: Vec<PathBuf>,
    /// Docker's own, where logins are stored: `$DOCKER_CONFIG/config.json`, `~/.docker/config.json`. None without a home.
    pub docker_config: Option<PathBuf>,
}

impl CredentialPaths {
    /// Finds the places in the environment; variables that are empty, or relative where they may not be, count as unset.
    #[must_use]
    pub fn find(sources: &Sources) -> Self {
        let path = |name: &str| sources.variable(name).map(PathBuf::from);
        let absolute = |name: &str| path(name).filter(|path| path.is_absolute());
        let home = sources.home();
        let below_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let config_home = absolute("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
        let below_config = |name: &str| config_home.as_ref().map(|config| config.join(name));
        let docker_config = path("DOCKER_CONFIG")
            .or_else(|| below_home(".docker"))
            .map(|directory| directory.join("config.json"));
        let netrc = [
            // Without a home there is none.
            sources.directory(&settings::CONFIG_PATH).ok(),
            path("ENROOT_CONFIG_PATH"),
            below_config("enroot"),
        ];
        let docker = [
            path("REGISTRY_AUTH_FILE"),
            docker_config.clone(),
            absolute("XDG_RUNTIME_DIR").map(|runtime| runtime.join("containers/auth.json")),
            below_config("containers/auth.json"),
        ];
        Self {
            netrc: distinct(
                netrc
                    .into_iter()
                    .flatten()
                    .map(|path| path.join(NETRC_NAME)),
            ),
            docker: distinct(docker.into_iter().flatten()),
            docker_config,
        }
    }
}

fn distinct(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in paths {
        if !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

/// The environment of a command in a file of enroot's format: `PATH`, `HOME`, `USER`, `LOGNAME`, every `XDG_…`, and the variables that the
/// command names. Nothing else of the caller's environment can change what the command does.
#[must_use]
pub fn command_environment(command: &str) -> Vec<(OsString, OsString)> {
    choose_variables(command, std::env::vars_os())
}

fn choose_variables(
    command: &str,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let named = named_variables(command);
    variables
        .filter(|(name, _)| {
            name.to_str().is_some_and(|name| {
                ["PATH", "HOME", "USER", "LOGNAME"].contains(&name)
                    || name.starts_with("XDG_")
                    || named.contains(&name)
            })
        })
        .collect()
}

/// The names behind the dollar signs of a shell command: `$NAME`, `${NAME…}`.
fn named_variables(command: &str) -> Vec<&str> {
    command
        .split('$')
        .skip(1)
        .map(|rest| {
            let rest = rest.strip_prefix('{').unwrap_or(rest);
            let end = rest
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            &rest[..end]
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(variables: &[(&str, &str)]) -> CredentialPaths {
        CredentialPaths::find(&Sources::of(variables))
    }

    fn texts(paths: &[PathBuf]) -> Vec<&str> {
        paths.iter().filter_map(|path| path.to_str()).collect()
    }

    #[test]
    fn places() {
        let usual = paths(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/1")]);
        assert_eq!(
            texts(&usual.netrc),
            [
                "/h/.config/cista/.credentials",
                "/h/.config/enroot/.credentials"
            ]
        );
        assert_eq!(
            texts(&usual.docker),
            [
                "/h/.docker/config.json",
                "/run/1/containers/auth.json",
                "/h/.config/containers/auth.json"
            ]
        );
        let moved = paths(&[
            ("HOME", "/h"),
            ("XDG_CONFIG_HOME", "/c"),
            ("CISTA_CONFIG_PATH", "/mine"),
            ("ENROOT_CONFIG_PATH", "/theirs"),
            ("DOCKER_CONFIG", "/d"),
            ("REGISTRY_AUTH_FILE", "/auth"),
            ("XDG_RUNTIME_DIR", "relative"),
        ]);
        assert_eq!(
            texts(&moved.netrc),
            [
                "/mine/.credentials",
                "/theirs/.credentials",
                "/c/enroot/.credentials"
            ]
        );
        assert_eq!(
            texts(&moved.docker),
            ["/auth", "/d/config.json", "/c/containers/auth.json"]
        );
        assert_eq!(paths(&[("HOME", "")]), CredentialPaths::default());
    }

    #[test]
    fn commands_see_what_they_name() {
        let all = [
            "PATH",
            "HOME",
            "XDG_RUNTIME_DIR",
            "TOKEN",
            "CISTA_PASSWORD",
            "LD_PRELOAD",
            "A",
            "B1",
        ];
        let chosen = choose_variables(
            "$(get ${A:-x} --for \"$B1\") $TOKEN $ ${",
            all.iter().map(|name| ((*name).into(), "v".into())),
        );
        let names: Vec<_> = chosen
            .iter()
            .filter_map(|(name, _)| name.to_str())
            .collect();
        assert_eq!(
            names,
            ["PATH", "HOME", "XDG_RUNTIME_DIR", "TOKEN", "A", "B1"]
        );
    }
}
