//! The fstab dialect in which mounts are described: fstab(5) and the options of mount(8), with enroot's additions.
//!
//! - The target is a path below the container's root; the source a path of the host (relative to the working directory) or a type's name.
//! - Fields may be left out where it is clear: `/src /dst` is a bind mount with `rbind,x-create=auto`, `tmpfs /dst` a tmpfs, and a third
//!   field that is a list of options stands for them: `/src /dst ro` is the same bind mount, read-only.
//! - `x-create=dir|file|auto` makes the mount point, `x-move` moves a mount, `x-detach` unmounts it, `nofail` makes a failure a warning
//!   and `silent` says nothing of it.
//! - In files `${NAME}` is the host's variable of that name, and nothing where it is not set. It is put in when the fields are known: a value
//!   with a blank stays one field. `${ENROOT_ROOTFS}` (or `${CISTA_ROOTFS}`) before a source makes it a path of the container.
//! - Octal escapes such as `\\040` stand for what cannot stand in a field.
//! - `fs_freq` is ignored; `fs_passno` orders the mounts: those with -1 come before the hooks, the others after them.
//! - `sync`, `dirsync`, `lazytime` and their like are the file system's, not the mount's: they count for new file systems.
//! - On the command line the fields are separated by colons: `-m SRC:DST:TYPE:OPTIONS`. An absolute path alone is mounted where it is.
//!
//! This module only parses: [`parse_file`] for a file, [`parse_line`] for a line of it, [`parse_option`] for the command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::mount::MountAttrFlags;

use super::environment;

/// A mount that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is mounted: a path of the host, or for a new file system what `mount` shows as its source.
    pub source: PathBuf,
    /// Whether the source is a path of the container instead.
    pub is_inside: bool,
    /// Where: a path below the container's root.
    pub target: PathBuf,
    /// How.
    pub kind: Kind,
    /// What to make where the mount point is missing.
    pub create: CreateOption,
    /// Flags of the mount to set.
    pub set: MountAttrFlags,
    /// Flags of the mount to clear.
    pub clear: MountAttrFlags,
    /// A failure is no error (`nofail`).
    pub optional: bool,
    /// A failure that is no error is not told either (`silent`).
    pub silent: bool,
    /// `fs_passno`.
    pub pass: i32,
    /// How mounts at the source and the target reach each other; None to leave that as it is.
    pub propagation: Option<Propagation>,
    /// The file and line that it stands in; None for the command line and for our own.
    pub place: Option<String>,
}

/// Propagation of mounts (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// Which.
    pub kind: PropagationKind,
    /// Whether it is set for what is mounted below too.
    pub recursive: bool,
}

/// How mounts reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropagationKind {
    /// Not at all.
    Private,
    /// From the source to the target.
    Slave,
    /// Both ways, among what this container mounts.
    Shared,
    /// Not at all, and it cannot be bound elsewhere.
    Unbindable,
}

/// How something is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A part of the host's tree; with `recursive` also what is mounted below it.
    Bind {
        /// `rbind` in place of `bind`.
        recursive: bool,
    },
    /// A new file system of a type, with options of its own.
    Filesystem {
        /// The type's name.
        name: OsString,
        /// Options that are not mount(8)'s own: a name and perhaps a value.
        options: Vec<(OsString, Option<OsString>)>,
    },
    /// The mount at the source, moved.
    Move,
    /// New flags for what is mounted at the target.
    Remount,
    /// Nothing more is mounted at the target.
    Detach,
}

/// `x-create`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateOption {
    /// The mount point must exist.
    No,
    /// An empty directory.
    Directory,
    /// An empty file.
    File,
    /// What the source is.
    Auto,
}

/// Why a mount is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FstabError {
    /// A source and a target are the least.
    #[error("mount `{entry}` has no target")]
    NoTarget {
        /// The entry.
        entry: String,
    },
    /// More fields than fstab has.
    #[error("mount `{entry}` has more than six fields")]
    TooManyFields {
        /// The entry.
        entry: String,
    },
    /// A field that should be a number is none.
    #[error("mount `{entry}`: `{field}` is not a number")]
    NotANumber {
        /// The entry.
        entry: String,
        /// The field.
        field: String,
    },
    /// Two options that exclude each other.
    #[error("mount `{entry}`: options `{one}` and `{other}` exclude each other")]
    Conflict {
        /// The entry.
        entry: String,
        /// One option.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A line of a file.
    #[error("{place}: {source}")]
    Line {
        /// The file and the line.
        place: String,
        /// What is wrong with it.
        source: Box<FstabError>,
    },
    /// A bind mount takes no options of a file system, and nothing else is made than directories and files.
    #[error("mount `{entry}`: unknown option `{option}`")]
    UnknownOption {
        /// The entry.
        entry: String,
        /// The option.
        option: String,
    },
}

/// What an option of mount(8) does.
enum Meaning {
    Set(MountAttrFlags),
    Clear(MountAttrFlags),
    Bind {
        recursive: bool,
    },
    Move,
    Remount,
    Detach,
    Create(CreateOption),
    NoFail,
    Silent(bool),
    Propagation(Propagation),
    /// For new file systems only.
    Filesystem,
    /// Accepted, and without effect here: a note for other programs, or what is so anyway.
    Nothing,
}

const fn propagation(kind: PropagationKind, recursive: bool) -> Meaning {
    Meaning::Propagation(Propagation { kind, recursive })
}

/// The options that do not belong to one type of file system.
fn meaning(option: &[u8]) -> Option<Meaning> {
    Some(match option {
        b"ro" => Meaning::Set(MountAttrFlags::MOUNT_ATTR_RDONLY),
        b"rw" => Meaning::Clear(MountAttrFlags::MOUNT_ATTR_RDONLY),
        b"nosuid" => Meaning::Set(MountAttrFlags::MOUNT_ATTR_NOSUID),
        b"suid" => Meaning::Clear(MountAttrFlags::MOUNT_ATTR_NOSUID),
        b"nodev" => Meaning::Set(MountAttrFlags::MOUNT_ATTR_NODEV),
        b"dev" => Meaning::Clear(MountAttrFlags::MOUNT_ATTR_NODEV),
        b"noexec" => Meaning::Set(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        b"exec" => Meaning::Clear(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        b"noatime" => Meaning::Set(MountAttrFlags::MOUNT_ATTR_NOATIME),
        b"strictatime" => Meaning::Set(MountAttrFlags::MOUNT_ATTR_STRICTATIME),
        b"nodiratime" => Meaning::Set(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        b"diratime" => Meaning::Clear(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        b"bind" => Meaning::Bind { recursive: false },
        b"rbind" => Meaning::Bind { recursive: true },
        b"remount" => Meaning::Remount,
        b"nosymfollow" => Meaning::Set(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        b"symfollow" => Meaning::Clear(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        b"private" => propagation(PropagationKind::Private, false),
        b"rprivate" => propagation(PropagationKind::Private, true),
        b"slave" => propagation(PropagationKind::Slave, false),
        b"rslave" => propagation(PropagationKind::Slave, true),
        b"shared" => propagation(PropagationKind::Shared, false),
        b"rshared" => propagation(PropagationKind::Shared, true),
        b"unbindable" => propagation(PropagationKind::Unbindable, false),
        b"runbindable" => propagation(PropagationKind::Unbindable, true),
        b"sync" | b"dirsync" | b"mand" | b"iversion" | b"lazytime" => Meaning::Filesystem,
        b"x-move" => Meaning::Move,
        b"x-detach" => Meaning::Detach,
        b"x-create=dir" => Meaning::Create(CreateOption::Directory),
        b"x-create=file" => Meaning::Create(CreateOption::File),
        b"x-create=auto" => Meaning::Create(CreateOption::Auto),
        b"nofail" => Meaning::NoFail,
        b"silent" => Meaning::Silent(true),
        b"loud" => Meaning::Silent(false),
        // Times are kept as on the source unless said otherwise.
        b"" | b"defaults" | b"auto" | b"noauto" | b"user" | b"nouser" | b"users" | b"nousers"
        | b"owner" | b"noowner" | b"group" | b"nogroup" | b"_netdev" | b"atime" | b"relatime"
        | b"norelatime" | b"nostrictatime" | b"async" | b"nomand" | b"noiversion"
        | b"nolazytime" => Meaning::Nothing,
        _ => return None,
    })
}

/// The values of `${NAME}` in files.
pub type Variables<'a> = &'a dyn Fn(&OsStr) -> Option<OsString>;

/// Names that stand for the container's root, before a source.
const ROOTS: [&[u8]; 2] = [b"${ENROOT_ROOTFS}", b"${CISTA_ROOTFS}"];

/// Parses a file; every entry and every error has its place. `path` is only shown.
///
/// # Errors
///
/// The first line that is not understood.
pub fn parse_file(
    path: &Path,
    text: &[u8],
    variables: Variables<'_>,
) -> Result<Vec<Entry>, FstabError> {
    let mut entries = Vec::new();
    let mut left = environment::MAX_SUBSTITUTED;
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let place = || format!("{}:{}", path.display(), number + 1);
        match parse_within(line, variables, &mut left) {
            Ok(None) => {}
            Ok(Some(entry)) => entries.push(Entry {
                place: Some(place()),
                ..entry
            }),
            Err(error) => {
                return Err(FstabError::Line {
                    place: place(),
                    source: Box::new(error),
                });
            }
        }
    }
    Ok(entries)
}

/// Parses a line of an fstab file; None for an empty line or a comment.
///
/// # Errors
///
/// An entry that is not understood.
pub fn parse_line(line: &[u8], variables: Variables<'_>) -> Result<Option<Entry>, FstabError> {
    parse_within(line, variables, &mut environment::MAX_SUBSTITUTED.clone())
}

/// The same, where variables may bring no more than `left` bytes.
fn parse_within(
    line: &[u8],
    variables: Variables<'_>,
    left: &mut usize,
) -> Result<Option<Entry>, FstabError> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") {
        return Ok(None);
    }
    let mut is_inside = false;
    let fields: Vec<Vec<u8>> = line
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty())
        .enumerate()
        .map(|(number, field)| {
            let inside = ROOTS
                .iter()
                .find_map(|root| field.strip_prefix(*root))
                .filter(|_| number == 0);
            is_inside |= inside.is_some();
            substitute(unescape(inside.unwrap_or(field)), variables, left)
        })
        .collect();
    let entry = entry(line, fields)?;
    Ok(Some(Entry { is_inside, ..entry }))
}

/// Replaces `${NAME}`.
fn substitute(field: Vec<u8>, variables: Variables<'_>, left: &mut usize) -> Vec<u8> {
    if field.contains(&b'$') {
        return environment::substitute(&field, &variables, left).into_vec();
    }
    field
}

/// Parses a mount of the command line, its fields separated by colons.
///
/// # Errors
///
/// An entry that is not understood.
pub fn parse_option(option: &OsStr) -> Result<Entry, FstabError> {
    let option = option.as_bytes();
    let mut fields: Vec<Vec<u8>> = option.split(|&byte| byte == b':').map(unescape).collect();
    if let [source] = fields.as_slice()
        && source.starts_with(b"/")
    {
        fields.push(source.clone());
    }
    entry(option, fields)
}

/// An entry from fields that are apart already: source, target, type and options.
///
/// # Errors
///
/// An entry that is not understood.
pub fn parse_fields(fields: [&OsStr; 4]) -> Result<Entry, FstabError> {
    let fields = fields.map(|field| field.as_bytes().to_vec());
    entry(&fields.join(&b' '), fields.into())
}

/// Longest part of an entry that an error shows, in bytes.
const MAX_SHOWN: usize = 200;

/// An entry or a field, for an error.
fn shown(text: &[u8]) -> String {
    let mut shown = String::from_utf8_lossy(&text[..text.len().min(MAX_SHOWN)]).into_owned();
    if text.len() > MAX_SHOWN {
        shown.push('…');
    }
    shown
}

fn entry(text: &[u8], fields: Vec<Vec<u8>>) -> Result<Entry, FstabError> {
    let shown = || shown(text);
    if fields.len() > 6 {
        return Err(FstabError::TooManyFields { entry: shown() });
    }
    let mut fields = fields.into_iter();
    let mut next = || fields.next().unwrap_or_default();
    let (source, target, kind, options, _frequency, pass) =
        (next(), next(), next(), next(), next(), next());
    if source.is_empty() || target.is_empty() {
        return Err(FstabError::NoTarget { entry: shown() });
    }
    let pass = match std::str::from_utf8(&pass).map(str::trim) {
        Ok("") => 0,
        Ok(number) if number.parse::<i32>().is_ok() => number.parse().unwrap_or(0),
        _ => {
            return Err(FstabError::NotANumber {
                entry: shown(),
                field: self::shown(&pass),
            });
        }
    };
    // No type of a file system has such letters in its name.
    let is_options =
        |field: &[u8]| field.contains(&b',') || field.contains(&b'=') || meaning(field).is_some();
    let is_memory = source == b"tmpfs";
    let usual = || {
        if is_memory {
            b"tmpfs"
        } else {
            b"none".as_slice()
        }
        .to_vec()
    };
    // Whether options stand in place of a type, and what is done follows from the source.
    let mut is_short = false;
    let (kind, options) = match (&kind[..], &options[..]) {
        (b"", b"") if is_memory => {
            is_short = true;
            (usual(), Vec::new())
        }
        (b"", b"") => (usual(), b"rbind,x-create=auto".to_vec()),
        (field, b"") if is_options(field) => {
            is_short = is_memory || matches!(source.first(), Some(b'/' | b'.'));
            (usual(), kind)
        }
        _ => (kind, options),
    };

    let mut entry = Entry {
        source: OsString::from_vec(source).into(),
        is_inside: false,
        target: OsString::from_vec(target).into(),
        kind: Kind::Bind { recursive: false },
        create: CreateOption::No,
        set: MountAttrFlags::empty(),
        clear: MountAttrFlags::empty(),
        optional: false,
        silent: false,
        pass,
        propagation: None,
        place: None,
    };
    let (mut bind, mut remount, mut detach, mut moves) = (None, false, false, false);
    let mut for_filesystem = Vec::new();
    let mut own = Vec::new();
    for option in options.split(|&byte| byte == b',') {
        match meaning(option) {
            Some(Meaning::Set(flag)) => {
                entry.set |= flag;
                entry.clear &= !flag;
            }
            Some(Meaning::Clear(flag)) => {
                entry.clear |= flag;
                entry.set &= !flag;
            }
            Some(Meaning::Bind { recursive }) => bind = Some(bind.unwrap_or(false) || recursive),
            Some(Meaning::Move) => moves = true,
            Some(Meaning::Filesystem) => for_filesystem.push(option),
            Some(Meaning::Propagation(propagation)) => entry.propagation = Some(propagation),
            Some(Meaning::Remount) => remount = true,
            Some(Meaning::Detach) => detach = true,
            Some(Meaning::Create(create)) => entry.create = create,
            Some(Meaning::NoFail) => entry.optional = true,
            Some(Meaning::Silent(silent)) => entry.silent = silent,
            Some(Meaning::Nothing) => {}
            None if option.starts_with(b"x-create=") => {
                return Err(FstabError::UnknownOption {
                    entry: shown(),
                    option: self::shown(option),
                });
            }
            // Notes for other programs, by fstab(5)'s convention.
            None if option.starts_with(b"x-") || option.starts_with(b"X-") => {}
            None => own.push(option),
        }
    }
    let is_said = bind.is_some() || moves || detach || remount || entry.propagation.is_some();
    if is_short && !is_said {
        bind = (!is_memory).then_some(true);
        if entry.create == CreateOption::No {
            entry.create = match is_memory {
                true => CreateOption::Directory,
                false => CreateOption::Auto,
            };
        }
    }
    let exclusive = [
        (moves, "x-move"),
        (detach, "x-detach"),
        (bind.is_some() && !remount, "bind"),
    ];
    let mut chosen = exclusive.iter().filter(|(is_chosen, _)| *is_chosen);
    if let (Some((_, one)), Some((_, other))) = (chosen.next(), chosen.next()) {
        return Err(FstabError::Conflict {
            entry: shown(),
            one,
            other,
        });
    }
    // Only a new propagation, for what is mounted at the target already.
    let is_change = entry.propagation.is_some()
        && bind.is_none()
        && matches!(&kind[..], b"" | b"none")
        && !moves
        && !detach;
    let takes_own = !detach && !remount && !moves && !is_change && bind.is_none();
    // `none` is no type of a file system, so there is nothing that could know the option.
    let is_none = bind.is_none() && matches!(&kind[..], b"" | b"none");
    if let Some(option) = own.first().filter(|_| !takes_own || is_none) {
        return Err(FstabError::UnknownOption {
            entry: shown(),
            option: self::shown(option),
        });
    }
    entry.kind = if detach {
        Kind::Detach
    } else if moves {
        Kind::Move
    } else if remount || is_change {
        Kind::Remount
    } else if let Some(recursive) = bind {
        Kind::Bind { recursive }
    } else {
        Kind::Filesystem {
            name: OsString::from_vec(kind),
            options: own
                .into_iter()
                .chain(for_filesystem)
                .map(
                    |option| match option.iter().position(|&byte| byte == b'=') {
                        Some(at) => (
                            OsStr::from_bytes(&option[..at]).to_owned(),
                            Some(OsStr::from_bytes(&option[at + 1..]).to_owned()),
                        ),
                        None => (OsStr::from_bytes(option).to_owned(), None),
                    },
                )
                .collect(),
        }
    };
    Ok(entry)
}

/// Replaces fstab(5)'s octal escapes, such as `\040` for a space.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let escape = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escape {
            Some(escaped) => {
                result.push(escaped);
                rest = &after[3..];
            }
            None => {
                result.push(byte);
                rest = after;
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(name: &OsStr) -> Option<OsString> {
        (name == "HERE").then(|| "/a b".into())
    }

    fn parse_line(line: &[u8]) -> Result<Option<Entry>, FstabError> {
        super::parse_line(line, &variables)
    }

    fn bind(source: &str, target: &str, recursive: bool, create: CreateOption) -> Entry {
        Entry {
            source: source.into(),
            is_inside: false,
            target: target.into(),
            kind: Kind::Bind { recursive },
            create,
            set: MountAttrFlags::empty(),
            clear: MountAttrFlags::empty(),
            optional: false,
            silent: false,
            pass: 0,
            propagation: None,
            place: None,
        }
    }

    #[test]
    fn lines_of_enroots_own_files() {
        let system = parse_line(
            b"/proc       /proc       none    x-create=dir,rbind,rw,nosuid,nodev,noexec",
        )
        .unwrap()
        .unwrap();
        assert_eq!(
            system,
            Entry {
                set: MountAttrFlags::MOUNT_ATTR_NOSUID
                    | MountAttrFlags::MOUNT_ATTR_NODEV
                    | MountAttrFlags::MOUNT_ATTR_NOEXEC,
                clear: MountAttrFlags::MOUNT_ATTR_RDONLY,
                ..bind("/proc", "/proc", true, CreateOption::Directory)
            }
        );
        let scratch = parse_line(b"tmpfs /tmp tmpfs x-create=dir,rw,nosuid,nodev,mode=755 0 -1")
            .unwrap()
            .unwrap();
        assert_eq!(
            scratch.kind,
            Kind::Filesystem {
                name: "tmpfs".into(),
                options: vec![("mode".into(), Some("755".into()))]
            }
        );
        assert_eq!(scratch.pass, -1);
        let time = parse_line(
            b"/etc/localtime /etc/localtime none x-create=file,bind,ro,nosuid,nodev,noexec,nofail,silent",
        )
        .unwrap()
        .unwrap();
        assert!(time.optional && time.silent);
        assert_eq!(parse_line(b"  # comment").unwrap(), None);
        assert_eq!(parse_line(b" \t ").unwrap(), None);
    }

    #[test]
    fn fields_left_out() {
        for (line, expected) in [
            ("/a /b", bind("/a", "/b", true, CreateOption::Auto)),
            ("/a /b rbind", bind("/a", "/b", true, CreateOption::No)),
            (
                "/a /b bind,x-create=file",
                bind("/a", "/b", false, CreateOption::File),
            ),
            (
                "/a\\040b /c\\011d bind",
                bind("/a b", "/c\td", false, CreateOption::No),
            ),
            (
                "/a\\b /c\\9 bind",
                bind("/a\\b", "/c\\9", false, CreateOption::No),
            ),
        ] {
            assert_eq!(
                parse_line(line.as_bytes()).unwrap().unwrap(),
                expected,
                "{line}"
            );
        }
        let expected = bind(".", "mnt", true, CreateOption::Auto);
        assert_eq!(parse_option(OsStr::new(".:mnt")).unwrap(), expected);
        let expected = Entry {
            set: MountAttrFlags::MOUNT_ATTR_RDONLY,
            ..bind("/a", "/b", false, CreateOption::Directory)
        };
        for option in [
            "/a:/b:none:bind,ro,x-create=dir",
            "/a:/b:bind,ro,x-create=dir",
        ] {
            assert_eq!(
                parse_option(OsStr::new(option)).unwrap(),
                expected,
                "{option}"
            );
        }
        for (option, create) in [
            ("/a:/b:ro", CreateOption::Auto),
            ("/a:/b:ro,x-create=dir", CreateOption::Directory),
        ] {
            let expected = Entry {
                set: MountAttrFlags::MOUNT_ATTR_RDONLY,
                ..bind("/a", "/b", true, create)
            };
            assert_eq!(parse_option(OsStr::new(option)).unwrap(), expected);
        }
        let sized = parse_option(OsStr::new("tmpfs:/b:size=4G")).unwrap();
        assert_eq!(sized.create, CreateOption::Directory);
        assert!(
            matches!(sized.kind, Kind::Filesystem { name, options } if name == "tmpfs" && options == [("size".into(), Some("4G".into()))])
        );
        let expected = bind("/a", "/a", true, CreateOption::Auto);
        assert_eq!(parse_option(OsStr::new("/a")).unwrap(), expected);
        assert!(parse_option(OsStr::new("a")).is_err());
        let scratch = parse_option(OsStr::new("tmpfs:/scratch")).unwrap();
        assert!(matches!(scratch.kind, Kind::Filesystem { name, .. } if name == "tmpfs"));
    }

    #[test]
    fn the_last_of_two_opposite_options_counts() {
        let entry = parse_line(b"/a /b none bind,ro,rw").unwrap().unwrap();
        assert_eq!(entry.set, MountAttrFlags::empty());
        assert_eq!(entry.clear, MountAttrFlags::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, expected) in [
            ("/a", "mount `/a` has no target"),
            (
                "/a /b none bind 0 x",
                "mount `/a /b none bind 0 x`: `x` is not a number",
            ),
            (
                "/a /b none bind 0 0 0",
                "mount `/a /b none bind 0 0 0` has more than six fields",
            ),
            (
                "/a /b none bind,wrong",
                "mount `/a /b none bind,wrong`: unknown option `wrong`",
            ),
            (
                "/a /b none x-move,bind",
                "mount `/a /b none x-move,bind`: options `x-move` and `bind` exclude each other",
            ),
        ] {
            assert_eq!(
                parse_line(line.as_bytes()).unwrap_err().to_string(),
                expected
            );
        }
    }

    #[test]
    fn variables_stay_in_their_field() {
        for (line, expected) in [
            (
                "${HERE}/x /m bind",
                bind("/a b/x", "/m", false, CreateOption::No),
            ),
            (
                "/x /m${HERE} bind",
                bind("/x", "/m/a b", false, CreateOption::No),
            ),
            (
                "/${NONE}x /m bind",
                bind("/x", "/m", false, CreateOption::No),
            ),
            (
                "/$HERE /m bind",
                bind("/$HERE", "/m", false, CreateOption::No),
            ),
            (
                "${ENROOT_ROOTFS}/v /v none x-create=dir,bind",
                Entry {
                    is_inside: true,
                    ..bind("/v", "/v", false, CreateOption::Directory)
                },
            ),
        ] {
            assert_eq!(
                parse_line(line.as_bytes()).unwrap().unwrap(),
                expected,
                "{line}"
            );
        }
        assert!(parse_line(b"${NONE} /m bind").is_err());
    }

    #[test]
    fn options_of_file_systems_and_of_mounts() {
        let entry = parse_line(b"tmpfs /t tmpfs sync,lazytime,size=1M")
            .unwrap()
            .unwrap();
        assert!(matches!(entry.kind, Kind::Filesystem { options, .. } if options.len() == 3));
        let entry = parse_line(b"/a /b none rbind,sync,rslave,silent,loud")
            .unwrap()
            .unwrap();
        assert_eq!(entry.kind, Kind::Bind { recursive: true });
        assert!(!entry.silent);
        let slave = Propagation {
            kind: PropagationKind::Slave,
            recursive: true,
        };
        assert_eq!(entry.propagation, Some(slave));
        let entry = parse_line(b"none /b none private").unwrap().unwrap();
        assert_eq!(entry.kind, Kind::Remount);
        let entry = parse_line(b"/a /b none x-move").unwrap().unwrap();
        assert_eq!(entry.kind, Kind::Move);
    }

    #[test]
    fn places_in_files() {
        let text = b"# one\n/a /b bind\n\n/c\n";
        let error = parse_file(Path::new("/f.fstab"), text, &variables).unwrap_err();
        assert_eq!(error.to_string(), "/f.fstab:4: mount `/c` has no target");
        let entries = parse_file(Path::new("/f.fstab"), &text[..17], &variables).unwrap();
        assert_eq!(entries[0].place.as_deref(), Some("/f.fstab:2"));
    }
}
