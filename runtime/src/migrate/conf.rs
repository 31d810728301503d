//! `enroot.conf` and `enroot.conf.d/*.conf` become a file of `cista.toml`'s form.
//!
//! A value of enroot is a shell's word, and may say something else for each user: `/raid/$(id -u)`. It must not be expanded now, by whoever
//! moves the files. So words are rewritten as texts in which `${NAME}` stands for variables ([`template`]), and where a word asks for more of a
//! shell than that, the line is left to a person.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Fate, MigrateError, NewFile, Plan};
use crate::config::enroot::{self, Enroot};
use crate::config::settings::{self, Kind, Setting};

/// Settings of enroot that say nothing to us, and why.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("ENROOT_ALLOW_SUPERUSER", "root may always start containers"),
    (
        "ENROOT_BUNDLE_ALL",
        "bundles leave the settings of their maker out",
    ),
    ("ENROOT_GZIP_PROGRAM", "no program is needed to decompress"),
    ("ENROOT_LIBRARY_PATH", "there is no library"),
    ("ENROOT_NATIVE_OVERLAYFS", "it is always used"),
    (
        "ENROOT_SYSCONF_PATH",
        "`CISTA_SYSCONF_PATH` names another directory than /etc/cista",
    ),
    ("ENROOT_ZSTD_OPTIONS", "layers are kept as they come"),
];

/// A line of ours.
struct Assignment {
    key: &'static str,
    value: String,
    place: String,
}

/// Plans for the settings of a directory of enroot; `target` is the file that they become.
///
/// # Errors
///
/// A file cannot be read.
pub fn plan(directory: &Path, target: &Path, plan: &mut Plan) -> Result<(), MigrateError> {
    let files = Enroot::load(&|name| {
        (name == "ENROOT_SYSCONF_PATH").then(|| directory.as_os_str().to_owned())
    })?;
    let lines: Vec<Line> = files
        .lines()
        .map(|(name, word, place)| Line {
            name,
            word,
            place: format!("{}:{}", place.path.display(), place.line),
            text: &place.text,
        })
        .collect();
    let mut sections: BTreeMap<&str, Vec<Assignment>> = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        if let Some(first) = lines[..at].iter().find(|other| other.name == line.name) {
            let note = format!("{} counts, which sets it before", first.place);
            plan.step(Fate::NotNeeded, &line.place, line.text, note);
            continue;
        }
        match translate(line, &lines[..at]) {
            Outcome::Becomes(setting, value) => {
                let note = format!("[{}] {} = {value}", setting.section, setting.key);
                plan.step(Fate::Translated, &line.place, line.text, note);
                sections
                    .entry(setting.section)
                    .or_default()
                    .push(Assignment {
                        key: setting.key,
                        value,
                        place: line.place.clone(),
                    });
            }
            Outcome::NotNeeded(note) => plan.step(Fate::NotNeeded, &line.place, line.text, note),
            Outcome::Attention(note) => plan.step(Fate::Attention, &line.place, line.text, note),
        }
    }
    if !lines.is_empty() && !lines.iter().any(|line| line.name == "ENROOT_RESTRICT_DEV") {
        plan.step(
            Fate::NotNeeded,
            directory.display(),
            "",
            "containers have a /dev of their own with the devices that are granted, as with ENROOT_RESTRICT_DEV; `[start] dev = \"host\"` gives them the host's",
        );
    }
    if !sections.is_empty() {
        let mut text = format!("# From {}, by `cista migrate`.\n", directory.display());
        for (section, assignments) in sections {
            let _ = write!(text, "\n[{section}]\n");
            for line in assignments {
                let _ = writeln!(text, "{} = {}    # {}", line.key, line.value, line.place);
            }
        }
        plan.files.push(NewFile {
            path: target.to_owned(),
            content: text.into_bytes(),
            mode: 0o644,
        });
    }
    Ok(())
}

/// Where the user's files of enroot are, as a setting of the administrator says it. None where it is enroot's default, or for a person to see.
#[must_use]
pub fn user_directory(
    directory: &Path,
    variable: &dyn Fn(&str) -> Option<std::ffi::OsString>,
) -> Option<PathBuf> {
    let files = Enroot::load(&|name| {
        (name == "ENROOT_SYSCONF_PATH").then(|| directory.as_os_str().to_owned())
    })
    .ok()?;
    let found = files.value("ENROOT_CONFIG_PATH", variable)?;
    Some(PathBuf::from(found.value)).filter(|path| path.is_absolute())
}

struct Line<'a> {
    name: &'a str,
    word: &'a [u8],
    place: String,
    text: &'a str,
}

enum Outcome {
    Becomes(&'static Setting, String),
    NotNeeded(String),
    Attention(String),
}

fn translate(line: &Line<'_>, above: &[Line<'_>]) -> Outcome {
    if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(name, _)| *name == line.name) {
        return Outcome::NotNeeded((*why).to_owned());
    }
    let Some(setting) = settings::ALL
        .iter()
        .copied()
        .find(|setting| setting.enroot == Some(line.name))
    else {
        return Outcome::Attention("neither enroot nor cista knows it".into());
    };
    let Some(text) = template(line.word, &|name| {
        above
            .iter()
            .find(|line| line.name == name)
            .map(|line| line.word.to_vec())
    }) else {
        return Outcome::Attention(format!(
            "a shell makes the value; say it in other words as [{}] {}",
            setting.section, setting.key
        ));
    };
    if line.name == "ENROOT_MAX_PROCESSORS" && text == "$(nproc)" || is_usual(setting, &text) {
        return Outcome::NotNeeded("so it is anyway".into());
    }
    if text.contains("$(") {
        return Outcome::Attention(format!(
            "a command makes the value; say it in other words as [{}] {}",
            setting.section, setting.key
        ));
    }
    let Some(value) = enroot::translate(setting, OsStr::new(&text)) else {
        return match setting.kind {
            Kind::Compression => Outcome::NotNeeded(
                "images are compressed with zstd:1, which is faster and smaller than lzo; those of lzo are read".into(),
            ),
            _ => Outcome::NotNeeded("it asks for the default".into()),
        };
    };
    let value = value.to_string_lossy().into_owned();
    if value == setting.default {
        return Outcome::NotNeeded("so it is anyway".into());
    }
    let is_right = match setting.kind {
        Kind::Directory { .. } | Kind::RuntimeDirectory | Kind::Path => {
            value.starts_with('/') || value.starts_with("${")
        }
        Kind::Paths => value.split(':').all(|path| path.starts_with('/')),
        kind => kind.accepts(&value),
    };
    if !is_right {
        return Outcome::Attention(format!("expected {}", setting.kind.expected()));
    }
    let written = match setting.kind {
        Kind::Switch => (value == "yes").to_string(),
        Kind::Number { .. } | Kind::Seconds => value,
        Kind::Paths => {
            let paths: Vec<String> = value.split(':').map(quoted).collect();
            format!("[{}]", paths.join(", "))
        }
        _ => quoted(&value),
    };
    Outcome::Becomes(setting, written)
}

/// Whether it is where enroot has such a thing unless told otherwise; ours is beside it.
fn is_usual(setting: &Setting, text: &str) -> bool {
    match setting.kind {
        Kind::Directory { below_home, .. } => text == format!("${{HOME}}/{below_home}/enroot"),
        Kind::RuntimeDirectory => text == "${XDG_RUNTIME_DIR}/enroot",
        _ => false,
    }
}

/// A text of TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A shell's word as a text in which `${NAME}` stands for variables. Values of enroot that were set above are put in, and its defaults of the XDG
/// directories; `$(id -u)` and its like become `${UID}` and `${USER}`, and `$(nproc)` stays. None where there is more to the word.
fn template(word: &[u8], above: &dyn Fn(&str) -> Option<Vec<u8>>) -> Option<String> {
    let text = std::str::from_utf8(word).ok()?;
    // A comment begins at a blank.
    let text = text.split(" #").next().unwrap_or_default().trim();
    let inner = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .filter(|inner| !inner.contains('"'));
    if let Some(literal) = text
        .strip_prefix('\'')
        .and_then(|text| text.strip_suffix('\''))
    {
        return (!literal.contains(['\'', '$'])).then(|| literal.to_owned());
    }
    let mut rest = inner.unwrap_or(text);
    let mut result = String::new();
    while let Some(letter) = rest.chars().next() {
        if let Some((made, after)) = known_command(rest) {
            result.push_str(made);
            rest = after;
        } else if letter == '$' {
            let (name, after) = variable(&rest[1..])?;
            result.push_str(&value_of(name, above)?);
            rest = after;
        } else if letter.is_alphanumeric() || " -_./:,+=@%~".contains(letter) {
            result.push(letter);
            rest = &rest[letter.len_utf8()..];
        } else {
            return None;
        }
    }
    Some(result)
}

/// A substitution of a command whose output is known.
fn known_command(text: &str) -> Option<(&'static str, &str)> {
    [
        ("$(id -u)", "${UID}"),
        ("$(id -un)", "${USER}"),
        ("$(whoami)", "${USER}"),
        ("$(nproc)", "$(nproc)"),
    ]
    .iter()
    .find_map(|(command, made)| Some((*made, text.strip_prefix(command)?)))
}

/// A variable's name, behind its `$`, and what stands behind it.
fn variable(text: &str) -> Option<(&str, &str)> {
    let (inside, braces) = match text.strip_prefix('{') {
        Some(inside) => (inside, true),
        None => (text, false),
    };
    let end = inside
        .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .unwrap_or(inside.len());
    let (name, after) = inside.split_at(end);
    let after = if braces {
        after.strip_prefix('}')?
    } else {
        after
    };
    let is_name = name.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_');
    is_name.then_some((name, after))
}

fn value_of(name: &str, above: &dyn Fn(&str) -> Option<Vec<u8>>) -> Option<String> {
    Some(match name {
        // As enroot sets them where they are not set, which is the usual case on a node.
        "XDG_DATA_HOME" => "${HOME}/.local/share".into(),
        "XDG_CONFIG_HOME" => "${HOME}/.config".into(),
        "XDG_CACHE_HOME" => "${HOME}/.cache".into(),
        "UID" | "EUID" => "${UID}".into(),
        name if name.starts_with("ENROOT_") => {
            // Those above it cannot lead back here: each line sees only what stands before it.
            let word = above(name)?;
            (!word.windows(7).any(|part| part == b"ENROOT_")).then_some(())?;
            template(&word, &|_| None)?
        }
        name => format!("${{{name}}}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_templates() {
        let above = |name: &str| (name == "ENROOT_CACHE_PATH").then(|| b"/raid/$(id -u)".to_vec());
        for (word, expected) in [
            ("/raid/cache", Some("/raid/cache")),
            ("\"/raid/${USER}\" # note", Some("/raid/${USER}")),
            ("/raid/$USER/x", Some("/raid/${USER}/x")),
            ("/run/user-$(id -u)", Some("/run/user-${UID}")),
            ("/tmp/$UID", Some("/tmp/${UID}")),
            ("${XDG_CACHE_HOME}/enroot", Some("${HOME}/.cache/enroot")),
            ("${ENROOT_CACHE_PATH}/tmp", Some("/raid/${UID}/tmp")),
            ("${ENROOT_NONE}/tmp", None),
            ("$(nproc)", Some("$(nproc)")),
            ("-comp lzo -noD", Some("-comp lzo -noD")),
            ("'/a b'", Some("/a b")),
            ("'$HOME'", None),
            ("$(hostname)", None),
            ("${X:-/tmp}", None),
            ("`id`", None),
            ("a; rm b", None),
            ("$", None),
            ("${", None),
            ("", Some("")),
        ] {
            assert_eq!(
                template(word.as_bytes(), &above).as_deref(),
                expected,
                "{word}"
            );
        }
    }

    #[test]
    fn every_line_has_a_fate() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        std::fs::create_dir(root.join("enroot.conf.d")).unwrap();
        std::fs::write(
            root.join("enroot.conf"),
            "# a comment\n#ENROOT_DATA_PATH /no\nENROOT_DATA_PATH /raid/data/$(id -u)\nENROOT_CACHE_PATH ${XDG_CACHE_HOME}/enroot\n\
             ENROOT_SQUASH_OPTIONS -comp lzo -noD\nENROOT_MOUNT_HOME yes\nENROOT_REMAP_ROOT no\nENROOT_MAX_PROCESSORS $(nproc)\n\
             ENROOT_TRANSFER_TIMEOUT 0\nENROOT_ALLOW_SUPERUSER yes\nENROOT_RESTRICT_DEV no\nENROOT_ODD 1\nENROOT_TEMP_PATH $(mktemp -d)\n\
             ENROOT_CONNECT_TIMEOUT soon\nENROOT_MAX_CONNECTIONS 20\nSSL_CERT_DIR /a:/b\n",
        )
        .unwrap();
        std::fs::write(
            root.join("enroot.conf.d/x.conf"),
            "ENROOT_MOUNT_HOME=no\nhttps_proxy=http://p:3128\n",
        )
        .unwrap();
        let mut made = Plan::default();
        plan(root, &root.join("out.toml"), &mut made).unwrap();
        let shown: Vec<String> = made
            .steps
            .iter()
            .map(|step| {
                format!(
                    "{}: {}",
                    step.fate.name(),
                    step.text.split([' ', '=']).next().unwrap_or_default()
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "translated: ENROOT_DATA_PATH",
                "not needed: ENROOT_CACHE_PATH",
                "not needed: ENROOT_SQUASH_OPTIONS",
                "translated: ENROOT_MOUNT_HOME",
                "not needed: ENROOT_REMAP_ROOT",
                "not needed: ENROOT_MAX_PROCESSORS",
                "not needed: ENROOT_TRANSFER_TIMEOUT",
                "not needed: ENROOT_ALLOW_SUPERUSER",
                "translated: ENROOT_RESTRICT_DEV",
                "look at: ENROOT_ODD",
                "look at: ENROOT_TEMP_PATH",
                "look at: ENROOT_CONNECT_TIMEOUT",
                "translated: ENROOT_MAX_CONNECTIONS",
                "translated: SSL_CERT_DIR",
                "not needed: ENROOT_MOUNT_HOME",
                "translated: https_proxy",
            ]
        );
        let text = String::from_utf8(made.files[0].content.clone()).unwrap();
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["paths"]["data"].as_str(), Some("/raid/data/${UID}"));
        assert_eq!(table["start"]["mount_home"].as_bool(), Some(true));
        assert_eq!(table["start"]["dev"].as_str(), Some("host"));
        assert_eq!(table["transfer"]["max_connections"].as_integer(), Some(20));
        assert_eq!(
            table["transfer"]["ca_directories"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        assert_eq!(
            table["transfer"]["https_proxy"].as_str(),
            Some("http://p:3128")
        );
        assert_eq!(table.len(), 3);
    }
}
