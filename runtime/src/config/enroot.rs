//! The settings of enroot, for when this program is called by that name.
//!
//! `/etc/enroot/enroot.conf` and `enroot.conf.d/*.conf` hold lines `NAME VALUE` or `NAME=VALUE`. The value is a shell's
//! word: `${XDG_RUNTIME_DIR}/x` and `$(nproc)` occur in the field. What is simple is expanded here; the rest is given to
//! `/bin/sh`, as enroot gives everything to bash: the files are the administrator's. Of several lines the first counts, and
//! the environment before them all. A value that says no (`no`, `n`, `false`, `f`) is the same as none.
//!
//! A value is expanded when it is asked for: what no command needs costs nothing.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::file::{FileError, Place};
use super::settings::{self, Kind, Setting};
use super::sources;

/// Where the administrator's files are, unless `ENROOT_SYSCONF_PATH` says otherwise.
const SYSTEM_DIRECTORY: &str = "/etc/enroot";
const FILE: &str = "enroot.conf";
const FURTHER_FILES: &str = "enroot.conf.d";

/// The longest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Names that enroot knows besides those of our settings: for programs that we do not need, or about what we do not do. They are
/// accepted, and passed to hooks.
const WITHOUT_EFFECT: &[&str] = &[
    "ENROOT_ALLOW_SUPERUSER",
    "ENROOT_GZIP_PROGRAM",
    "ENROOT_LIBRARY_PATH",
    "ENROOT_NATIVE_OVERLAYFS",
    "ENROOT_SYSCONF_PATH",
    "ENROOT_ZSTD_OPTIONS",
];

/// A line of a file.
#[derive(Clone, Debug)]
struct Line {
    name: String,
    /// As it stands there.
    word: Vec<u8>,
    place: Place,
}

/// The files of enroot.
#[derive(Clone, Debug)]
pub struct Enroot {
    /// Where they are: also `environ.d`, `mounts.d` and `hooks.d`.
    pub directory: PathBuf,
    lines: Vec<Line>,
}

/// A value in a file of enroot.
#[derive(Clone, Debug)]
pub struct Value {
    /// The value, expanded.
    pub value: OsString,
    /// Where it stands.
    pub place: Place,
}

/// The variables of a process, by name.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Enroot {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// A file that is there and cannot be read.
    pub fn load(variable: Variables<'_>) -> Result<Self, FileError> {
        let directory = variable("ENROOT_SYSCONF_PATH")
            .map_or_else(|| PathBuf::from(SYSTEM_DIRECTORY), PathBuf::from);
        let mut lines = Vec::new();
        read(&directory.join(FILE), &mut lines)?;
        for path in sources::names(&directory.join(FURTHER_FILES), "conf")? {
            read(&path, &mut lines)?;
        }
        Ok(Self { directory, lines })
    }

    /// The value of a name. None where no file has one.
    #[must_use]
    pub fn value(&self, name: &str, variable: Variables<'_>) -> Option<Value> {
        let at = self.lines.iter().position(|line| line.name == name)?;
        let line = &self.lines[at];
        // A line sees what the lines above it set, as in a shell that exports each.
        let above = |wanted: &str| {
            variable(wanted).or_else(|| {
                let before = Self {
                    directory: PathBuf::new(),
                    lines: self.lines[..at].to_vec(),
                };
                before.value(wanted, variable).map(|found| found.value)
            })
        };
        Some(Value {
            value: expand(&line.word, &above),
            place: line.place.clone(),
        })
    }

    /// Every name that the files set, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|line| line.name.as_str())
    }

    /// Every line that sets something: its name, its word as it stands there, and its place.
    pub fn lines(&self) -> impl Iterator<Item = (&str, &[u8], &Place)> {
        self.lines
            .iter()
            .map(|line| (line.name.as_str(), line.word.as_slice(), &line.place))
    }

    /// Lines that set what enroot does not know, for a warning.
    pub fn unknown(&self) -> impl Iterator<Item = &Place> {
        let is_unknown = |line: &&Line| {
            !WITHOUT_EFFECT.contains(&line.name.as_str())
                && !settings::ALL
                    .iter()
                    .any(|setting| setting.enroot == Some(line.name.as_str()))
        };
        self.lines.iter().filter(is_unknown).map(|line| &line.place)
    }
}

fn read(path: &Path, lines: &mut Vec<Line>) -> Result<(), FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_SIZE + 1), &mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(failed(std::io::Error::from_raw_os_error(libc::EFBIG)));
    }
    parse(&Arc::new(path.to_owned()), &text, lines);
    Ok(())
}

/// Reads the lines that set something. Others are comments.
fn parse(path: &Arc<PathBuf>, text: &[u8], lines: &mut Vec<Line>) {
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let trimmed = line.trim_ascii();
        let Some((name, word)) = assignment(trimmed) else {
            continue;
        };
        lines.push(Line {
            name: name.to_owned(),
            word: word.to_vec(),
            place: Place {
                path: Arc::clone(path),
                line: number + 1,
                column: 1,
                text: String::from_utf8_lossy(trimmed).into_owned(),
            },
        });
    }
}

/// The name and the word of a line, parted by blanks, by `=`, or by `=` among blanks.
#[must_use]
pub fn assignment(line: &[u8]) -> Option<(&str, &[u8])> {
    let end = line
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t' | b'='))
        .unwrap_or(line.len());
    let name = std::str::from_utf8(&line[..end]).ok()?;
    let rest = line[end..].trim_ascii_start();
    let rest = rest.strip_prefix(b"=").unwrap_or(rest).trim_ascii();
    is_name(name).then_some((name, rest))
}

/// The settings in the comments of a script: lines `#ENROOT_NAME=WORD` or `#CISTA_NAME=WORD`, in their order.
#[must_use]
pub fn directives(script: &[u8]) -> Vec<(String, Vec<u8>)> {
    script
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let line = line.strip_prefix(b"#")?.trim_ascii();
            let own = line.starts_with(b"CISTA_");
            // Ours look the same but for the beginning.
            let shown = if own {
                [b"ENROOT_", &line[6..]].concat()
            } else {
                line.to_vec()
            };
            let (name, word) =
                assignment(&shown).filter(|(name, _)| name.starts_with("ENROOT_"))?;
            let name = match name.strip_prefix("ENROOT_") {
                Some(rest) if own => format!("CISTA_{rest}"),
                _ => name.to_owned(),
            };
            Some((name, word.to_vec()))
        })
        .collect()
}

/// Names that may stand in a file.
fn is_name(name: &str) -> bool {
    let own = name.strip_prefix("ENROOT_").is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    });
    own || matches!(
        name,
        "SSL_CERT_DIR" | "SSL_CERT_FILE" | "all_proxy" | "no_proxy" | "http_proxy" | "https_proxy"
    )
}

/// Whether a value says no, which is the same as none.
#[must_use]
pub fn says_no(value: &OsStr) -> bool {
    ["no", "n", "false", "f"]
        .iter()
        .any(|no| value.eq_ignore_ascii_case(no))
}

/// What a value of enroot is for a setting of ours. None where it asks for the default.
#[must_use]
pub fn translate(setting: &'static Setting, value: &OsStr) -> Option<OsString> {
    if setting == &settings::DEV {
        let word = if says_no(value) { "host" } else { "private" };
        return Some(word.into());
    }
    match setting.kind {
        // Whatever does not say no says yes: the login shell may be named, for instance.
        Kind::Switch => Some(if says_no(value) { "no" } else { "yes" }.into()),
        _ if says_no(value) => None,
        // Zero means no limit.
        Kind::Number { from: 1.., .. } | Kind::Seconds if value == "0" => None,
        Kind::Compression => compression(value.to_str()?).map(OsString::from),
        _ => Some(value.to_owned()),
    }
}

/// The compression that options of mksquashfs(1) ask for. None where they ask for none that we write, such as lzo: then ours is better in
/// every respect, and what reads the image reads it too.
fn compression(options: &str) -> Option<String> {
    let words: Vec<&str> = options.split_ascii_whitespace().collect();
    let value = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    if words.contains(&"-noI") && words.contains(&"-noD") && words.contains(&"-noF") {
        return Some("none".into());
    }
    let level = value("-Xcompression-level").filter(|level| level.parse::<u8>().is_ok());
    match (value("-comp")?, level) {
        (name @ ("zstd" | "gzip"), Some(level)) => Some(format!("{name}:{level}")),
        (name @ ("zstd" | "gzip" | "lz4" | "xz"), _) => Some(name.to_owned()),
        _ => None,
    }
}

/// Expands a word as a shell does.
pub(super) fn expand(word: &[u8], variable: Variables<'_>) -> OsString {
    if word == b"$(nproc)" {
        // By far the most frequent substitution, and the same count.
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        return count.to_string().into();
    }
    simple(word, variable).unwrap_or_else(|| by_shell(word, variable))
}

/// Expands a word that is plain text with `$NAME`, `${NAME}` and `${NAME:-plain text}`. None where there is more to it.
fn simple(word: &[u8], variable: Variables<'_>) -> Option<OsString> {
    let mut result = Vec::new();
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b'$' => {
                let (value, next) = reference(after, variable)?;
                result.extend_from_slice(value.as_bytes());
                rest = next;
            }
            byte if byte.is_ascii_alphanumeric()
                || b" \t-_./:,+=@%".contains(&byte)
                || byte >= 0x80 =>
            {
                result.push(byte);
                rest = after;
            }
            _ => return None,
        }
    }
    Some(OsString::from_vec(result))
}

/// The value of a reference whose `$` was read, and what stands behind it.
fn reference<'a>(text: &'a [u8], variable: Variables<'_>) -> Option<(OsString, &'a [u8])> {
    let name_end = |text: &[u8]| {
        text.iter()
            .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
            .unwrap_or(text.len())
    };
    let value = |name: &[u8]| {
        let name = std::str::from_utf8(name).ok()?;
        let is_name = !name.is_empty() && !name.as_bytes()[0].is_ascii_digit();
        is_name.then(|| variable(name).unwrap_or_default())
    };
    let Some(inside) = text.strip_prefix(b"{") else {
        let end = name_end(text);
        return Some((value(&text[..end])?, &text[end..]));
    };
    let end = name_end(inside);
    let found = value(&inside[..end])?;
    let rest = &inside[end..];
    if let Some(rest) = rest.strip_prefix(b"}") {
        return Some((found, rest));
    }
    let default = rest.strip_prefix(b":-")?;
    let close = default.iter().position(|&byte| byte == b'}')?;
    let is_plain = default[..close]
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_./:,+@%".contains(byte));
    let value = if !found.is_empty() {
        found
    } else if is_plain {
        OsStr::from_bytes(&default[..close]).to_owned()
    } else {
        return None;
    };
    Some((value, &default[close + 1..]))
}

/// Has `/bin/sh` expand a word, as the words of one command line. What it says on stderr is shown; where it fails the value is empty.
fn by_shell(word: &[u8], variable: Variables<'_>) -> OsString {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "eval \"set -- $1\" && printf %s \"$*\"", "sh"])
        .arg(OsStr::from_bytes(word))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    for (name, value) in [
        "XDG_DATA_HOME",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "XDG_RUNTIME_DIR",
    ]
    .iter()
    .filter_map(|name| Some((name, variable(name)?)))
    {
        command.env(name, value);
    }
    match command.output() {
        Ok(output) if output.status.success() => OsString::from_vec(output.stdout),
        _ => OsString::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> Option<OsString> {
        match name {
            "HOME" => Some("/home/me".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/7".into()),
            _ => None,
        }
    }

    fn enroot(text: &str) -> Enroot {
        let mut lines = Vec::new();
        parse(
            &Arc::new(PathBuf::from("/e.conf")),
            text.as_bytes(),
            &mut lines,
        );
        Enroot {
            directory: PathBuf::new(),
            lines,
        }
    }

    #[test]
    fn words_are_expanded_as_a_shell_does() {
        for (word, expected) in [
            ("plain", "plain"),
            ("${XDG_RUNTIME_DIR}/enroot", "/run/user/7/enroot"),
            ("$HOME/x", "/home/me/x"),
            ("${TMPDIR:-/tmp}", "/tmp"),
            ("${HOME:-/tmp}/y", "/home/me/y"),
            (
                "-comp zstd -Xcompression-level 3",
                "-comp zstd -Xcompression-level 3",
            ),
            ("\"quoted ${XDG_RUNTIME_DIR}\"", "quoted /run/user/7"),
            ("'single $HOME'", "single $HOME"),
            ("$(echo a; echo b)", "a b"),
            ("/x/$(printf %s y)", "/x/y"),
            ("yes # a note", "yes"),
            ("$((1 + 2))", "3"),
            ("${XDG_RUNTIME_DIR#/run}", "/user/7"),
            ("`echo x`", "x"),
            ("", ""),
        ] {
            assert_eq!(expand(word.as_bytes(), &variable), expected, "{word}");
        }
        let count: usize = expand(b"$(nproc)", &variable)
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!(count > 0);
    }

    #[test]
    fn lines_of_a_file() {
        let files = enroot(
            "#ENROOT_DATA_PATH /no\nENROOT_DATA_PATH        ${XDG_RUNTIME_DIR}/d\nENROOT_CACHE_PATH=/c\n\
             ENROOT_RUNTIME_PATH = ${ENROOT_CACHE_PATH}/r\nENROOT_CACHE_PATH /later\nenroot_x y\nPATH /evil\nhttps_proxy http://p:1\nENROOT_ODD 1\n",
        );
        let value = |name: &str| files.value(name, &variable).map(|found| found.value);
        assert_eq!(value("ENROOT_DATA_PATH").unwrap(), "/run/user/7/d");
        assert_eq!(value("ENROOT_CACHE_PATH").unwrap(), "/c");
        assert_eq!(value("ENROOT_RUNTIME_PATH").unwrap(), "/c/r");
        assert_eq!(value("https_proxy").unwrap(), "http://p:1");
        assert_eq!(value("PATH"), None);
        let unknown: Vec<_> = files.unknown().map(ToString::to_string).collect();
        assert_eq!(unknown, ["/e.conf:9:1"]);
        assert_eq!(
            files
                .value("ENROOT_DATA_PATH", &variable)
                .unwrap()
                .place
                .line,
            2
        );
    }

    #[test]
    fn options_of_mksquashfs() {
        for (options, expected) in [
            ("-comp lzo -noD", None),
            ("-comp zstd -Xcompression-level 3 -b 1M", Some("zstd:3")),
            ("-comp zstd", Some("zstd")),
            ("-noI -noD -noF -noX -no-duplicates", Some("none")),
            ("-comp lz4 -Xhc", Some("lz4")),
            ("-b 1M", None),
            ("-comp", None),
        ] {
            assert_eq!(compression(options).as_deref(), expected, "{options}");
        }
    }

    #[test]
    fn values_become_ours() {
        for (setting, value, expected) in [
            (&settings::REMAP_ROOT, "y", Some("yes")),
            (&settings::REMAP_ROOT, "No", Some("no")),
            (&settings::MAX_PROCESSORS, "0", None),
            (&settings::MAX_PROCESSORS, "4", Some("4")),
            (&settings::TRANSFER_RETRIES, "0", Some("0")),
            (&settings::DEV, "yes", Some("private")),
            (&settings::DEV, "no", Some("host")),
            (&settings::HTTPS_PROXY, "n", None),
        ] {
            let found = translate(setting, OsStr::new(value));
            assert_eq!(found.as_deref(), expected.map(OsStr::new), "{value}");
        }
    }
}
