//! The table of settings: what there is to set, by which names, and what it is when nobody sets it.
//!
//! Everything that knows of settings reads this table: the files ([`super::file`]), the variables ([`super::sources`]),
//! `cista config`, and the documentation. A new setting is one entry here and one field where it is used.
//! The sections `[registries]` and `[policy]` are no settings but structures of their own; see [`super::file::STRUCTURED`].

use cista_images::registry::Pull;
use cista_images::squashfs::compression::Compression;

/// Something that can be set.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// The table of `cista.toml` that it stands in.
    pub section: &'static str,
    /// Its key there.
    pub key: &'static str,
    /// Variables that set it; the first one that is set counts.
    pub variables: &'static [&'static str],
    /// Its name in `enroot.conf` and in the environment of enroot.
    pub enroot: Option<&'static str>,
    /// What its values look like.
    pub kind: Kind,
    /// What it is when nobody sets it, as the documentation says it.
    pub default: &'static str,
    /// What it does, in one sentence.
    pub help: &'static str,
}

/// What the values of a setting look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory of the user, which follows the XDG base directory specification.
    Directory {
        /// The variable of the specification.
        xdg: &'static str,
        /// Where that is below the home directory when the variable is not set.
        below_home: &'static str,
    },
    /// The directory for what ends with the session.
    RuntimeDirectory,
    /// A path.
    Path,
    /// Paths, separated by colons in a variable.
    Paths,
    /// Yes or no.
    Switch,
    /// A whole number.
    Number {
        /// The smallest one.
        from: u32,
        /// The largest one.
        to: u32,
    },
    /// A time in whole seconds.
    Seconds,
    /// A number of bytes.
    Size,
    /// One of some words.
    Choice(&'static [&'static str]),
    /// A compression of images.
    Compression,
    /// A socket of this machine.
    Socket,
    /// Any text.
    Text,
    /// A text that is never shown, and that no file holds.
    Secret,
}

/// The longest time that can be set, in seconds: a day.
const MAX_SECONDS: u32 = 86_400;

impl Kind {
    /// Whether a text is such a value.
    #[must_use]
    pub fn accepts(self, text: &str) -> bool {
        match self {
            Self::Directory { .. } | Self::RuntimeDirectory | Self::Path => !text.is_empty(),
            Self::Paths | Self::Text | Self::Secret => true,
            Self::Switch => parse_switch(text).is_some(),
            Self::Number { from, to } => parse_number(text, from, to).is_some(),
            Self::Seconds => parse_seconds(text).is_some(),
            Self::Size => parse_size(text).is_some(),
            Self::Choice(words) => words.contains(&text),
            Self::Compression => text.parse::<Compression>().is_ok(),
            Self::Socket => parse_socket(text).is_some(),
        }
    }

    /// What a value should be, for errors and documentation.
    #[must_use]
    pub fn expected(self) -> String {
        match self {
            Self::Directory { .. } | Self::RuntimeDirectory | Self::Path => "a path".into(),
            Self::Paths => "paths".into(),
            Self::Switch => "`yes` or `no`".into(),
            Self::Number { from, to: u32::MAX } => format!("a number from {from} on"),
            Self::Number { from, to } => format!("a number from {from} to {to}"),
            Self::Seconds => format!("a number of seconds from 1 to {MAX_SECONDS}"),
            Self::Size => "a number of bytes, perhaps followed by `K`, `M`, `G` or `T`".into(),
            Self::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                words.join(" or ")
            }
            Self::Compression => "`zstd`, `zstd:N`, `lz4`, `gzip`, `gzip:N`, `xz` or `none`".into(),
            Self::Socket => "`unix://` and a path that begins with `/`".into(),
            Self::Text | Self::Secret => "text in UTF-8".into(),
        }
    }
}

/// Yes or no, in the ways that people write it.
#[must_use]
pub fn parse_switch(text: &str) -> Option<bool> {
    let is_one_of = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_one_of(&["yes", "y", "true", "t", "on", "1"]) {
        Some(true)
    } else if is_one_of(&["no", "n", "false", "f", "off", "0"]) {
        Some(false)
    } else {
        None
    }
}

/// When a registry is asked.
#[must_use]
pub fn parse_pull(text: &str) -> Option<Pull> {
    match text {
        "always" => Some(Pull::Always),
        "missing" => Some(Pull::Missing),
        "never" => Some(Pull::Never),
        _ => None,
    }
}

/// The path of a socket, as docker writes it.
#[must_use]
pub fn parse_socket(text: &str) -> Option<&str> {
    text.strip_prefix("unix://")
        .filter(|path| path.starts_with('/'))
}

/// A whole number within bounds.
#[must_use]
pub fn parse_number(text: &str, from: u32, to: u32) -> Option<u32> {
    let number = text.trim().parse().ok()?;
    (from..=to).contains(&number).then_some(number)
}

/// A time in seconds.
#[must_use]
pub fn parse_seconds(text: &str) -> Option<u32> {
    parse_number(text, 1, MAX_SECONDS)
}

/// A number of bytes with an optional binary unit, such as `256M`.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

/// Writes each setting down once: as a value of its own, and as a line of the table.
macro_rules! settings {
    ($(
        $(#[$note:meta])*
        $name:ident: $section:literal $key:literal, $variables:expr, $enroot:expr, $kind:expr, $default:literal, $help:literal;
    )*) => {
        $(
            #[doc = $help]
            pub static $name: Setting = Setting {
                section: $section,
                key: $key,
                variables: &$variables,
                enroot: $enroot,
                kind: $kind,
                default: $default,
                help: $help,
            };
        )*

        /// Every setting, in the order of the documentation.
        pub static ALL: &[&Setting] = &[$(&$name),*];
    };
}

settings! {
    CACHE_PATH: "paths" "cache", ["CISTA_CACHE_PATH"], Some("ENROOT_CACHE_PATH"),
        Kind::Directory { xdg: "XDG_CACHE_HOME", below_home: ".cache" },
        "$XDG_CACHE_HOME/cista", "The store: blobs and images by digest.";
    DATA_PATH: "paths" "data", ["CISTA_DATA_PATH"], Some("ENROOT_DATA_PATH"),
        Kind::Directory { xdg: "XDG_DATA_HOME", below_home: ".local/share" },
        "$XDG_DATA_HOME/cista", "Containers by name.";
    RUNTIME_PATH: "paths" "runtime", ["CISTA_RUNTIME_PATH"], Some("ENROOT_RUNTIME_PATH"),
        Kind::RuntimeDirectory,
        "$XDG_RUNTIME_DIR/cista", "State of running containers.";
    CONFIG_PATH: "paths" "config", ["CISTA_CONFIG_PATH"], Some("ENROOT_CONFIG_PATH"),
        Kind::Directory { xdg: "XDG_CONFIG_HOME", below_home: ".config" },
        "$XDG_CONFIG_HOME/cista", "Configuration of the user: `cista.toml`, `environ.d`, `mounts.d`, `hooks.d`.";

    TEMP_PATH: "paths" "temp", ["CISTA_TEMP_PATH"], Some("ENROOT_TEMP_PATH"),
        Kind::Path,
        "the cache", "Where an image archive that comes as a stream is kept while it is imported.";

    MAX_PROCESSORS: "limits" "max_processors", ["CISTA_MAX_PROCESSORS"], Some("ENROOT_MAX_PROCESSORS"),
        Kind::Number { from: 1, to: 1024 },
        "those that the process may use", "Threads that compress and decompress.";
    IMAGE_CACHE_SIZE: "limits" "image_cache_size", ["CISTA_IMAGE_CACHE_SIZE"], None,
        Kind::Size,
        "256M", "Memory for decoded blocks, for each server of an image.";
    SCRATCH_SIZE: "limits" "scratch_size", ["CISTA_SCRATCH_SIZE"], None,
        Kind::Size,
        "half of the memory", "What a container may keep in memory as files: `/tmp`, and changes of its root that do not persist.";
    IMPORT_MEMORY: "limits" "import_memory", ["CISTA_IMPORT_MEMORY"], None,
        Kind::Size,
        "128M", "Decoded layers that may wait to be merged.";
    MAX_LAYER_SIZE: "limits" "max_layer_size", ["CISTA_MAX_LAYER_SIZE"], None,
        Kind::Size,
        "16G", "What every layer may expand to, however small it is; a larger one may expand to a hundred times its size as well.";

    MOUNT: "start" "mount", ["CISTA_MOUNT"], None,
        Kind::Choice(&["auto", "fuse", "unpack"]),
        "auto", "How an image becomes a root file system.";
    ROOTFS_WRITABLE: "start" "writable", ["CISTA_ROOTFS_WRITABLE"], Some("ENROOT_ROOTFS_WRITABLE"),
        Kind::Switch,
        "no", "Whether the root file system can be written to, as with `-w`.";
    REMAP_ROOT: "start" "root", ["CISTA_REMAP_ROOT"], Some("ENROOT_REMAP_ROOT"),
        Kind::Switch,
        "no", "Whether the user is root inside, as with `-r`.";
    DEV: "start" "dev", ["CISTA_DEV"], Some("ENROOT_RESTRICT_DEV"),
        Kind::Choice(&["private", "host"]),
        "private", "What `/dev` is: one of its own with the standard devices, or that of the host.";
    HOST_ROOT: "start" "host_root", ["CISTA_HOST_ROOT"], None,
        Kind::Path,
        "/", "Where devices and their drivers are looked for: a tree with a driver of its own, or one that stands for another machine in tests.";
    MOUNT_HOME: "start" "mount_home", ["CISTA_MOUNT_HOME"], Some("ENROOT_MOUNT_HOME"),
        Kind::Switch,
        "no", "Whether the user's home directory is mounted; root inside has it at `/root`.";
    LOGIN_SHELL: "start" "login_shell", ["CISTA_LOGIN_SHELL"], Some("ENROOT_LOGIN_SHELL"),
        Kind::Switch,
        "no", "Whether a shell of the image reads `/etc/profile` before the program is executed.";
    SLURM_PMI: "start" "slurm_pmi", ["CISTA_SLURM_PMI"], None,
        Kind::Switch,
        "no", "Whether a step of Slurm passes its variables, its PMI file and its PMIx directories on.";
    SLURM_PYTORCH: "start" "slurm_pytorch", ["CISTA_SLURM_PYTORCH"], None,
        Kind::Switch,
        "yes", "Whether PyTorch in an image is told its place among the tasks of a step of Slurm.";
    FORCE: "start" "force", ["CISTA_FORCE_OVERRIDE"], Some("ENROOT_FORCE_OVERRIDE"),
        Kind::Switch,
        "no", "Whether files and containers are replaced without asking, as with `-f`.";

    UNSHARE_PID: "start" "unshare_pid", ["CISTA_UNSHARE_PID"], Some("ENROOT_UNSHARE_PID"),
        Kind::Switch,
        "no", "Whether containers have process numbers of their own.";
    UNSHARE_NET: "start" "unshare_net", ["CISTA_UNSHARE_NET"], Some("ENROOT_UNSHARE_NET"),
        Kind::Switch,
        "no", "Whether containers have a network of their own: a loopback interface.";
    UNSHARE_IPC: "start" "unshare_ipc", ["CISTA_UNSHARE_IPC"], Some("ENROOT_UNSHARE_IPC"),
        Kind::Switch,
        "no", "Whether containers have shared memory and message queues of their own.";
    UNSHARE_UTS: "start" "unshare_uts", ["CISTA_UNSHARE_UTS"], Some("ENROOT_UNSHARE_UTS"),
        Kind::Switch,
        "no", "Whether containers have a host name of their own.";

    BUNDLE_ALL: "bundle" "all", ["CISTA_BUNDLE_ALL"], Some("ENROOT_BUNDLE_ALL"),
        Kind::Switch,
        "no", "Whether bundles get the files of the user's `environ.d`, `mounts.d` and `hooks.d`, as with `-a`.";

    BUNDLE_CHECKSUM: "bundle" "checksum", ["CISTA_BUNDLE_CHECKSUM"], Some("ENROOT_BUNDLE_CHECKSUM"),
        Kind::Switch,
        "no", "Whether bundles get a checksum of their image, as with `-c`.";

    COMPRESSION: "import" "compression", ["CISTA_COMPRESSION"], Some("ENROOT_SQUASH_OPTIONS"),
        Kind::Compression,
        "zstd:1", "How images are compressed.";
    DOCKER_HOST: "import" "docker_host", ["DOCKER_HOST"], Some("DOCKER_HOST"),
        Kind::Socket,
        "unix:///var/run/docker.sock", "The socket of the Docker daemon, for `dockerd://`.";
    TIME: "import" "time", ["SOURCE_DATE_EPOCH"], None,
        Kind::Number { from: 0, to: u32::MAX },
        "what the layers say", "Time stamp of everything in an image, in seconds since 1970.";

    CACHE_SIZE: "store" "size", ["CISTA_CACHE_SIZE"], None,
        Kind::Size,
        "no limit", "The size of the store: what was not used for longest goes first, and what is in use stays.";
    SHARED_STORES: "store" "shared", ["CISTA_SHARED_STORES"], None,
        Kind::Paths,
        "none", "Stores of others, which are looked into first and never written to.";
    VERIFY_IMAGES: "store" "verify_images", ["CISTA_VERIFY_IMAGES"], None,
        Kind::Switch,
        "no", "Whether an image of the store is read to its end, and compared with its digest, before it is used.";
    LEASE_TIMEOUT: "store" "lease_timeout", ["CISTA_LEASE_TIMEOUT"], None,
        Kind::Seconds,
        "30", "How long a process of another machine that writes to the store may be silent before its work is taken over, in seconds.";

    PULL: "import" "pull", ["CISTA_PULL"], None,
        Kind::Choice(&["always", "missing", "never"]),
        "always", "When a registry is asked: each time what a tag stands for, only for what the store does not know, or never.";

    LOG_FORMAT: "observe" "log_format", ["CISTA_LOG_FORMAT"], None,
        Kind::Choice(&["text", "json"]),
        "text", "How messages look: as people read them, or one object of JSON a line, with the phases of starts and imports.";
    METRICS_DIRECTORY: "observe" "metrics_directory", ["CISTA_METRICS_DIRECTORY"], None,
        Kind::Path,
        "none", "Where starts and imports are counted, in a file for the textfile collector of Prometheus's node_exporter.";

    ALLOW_HTTP: "transfer" "allow_http", ["CISTA_ALLOW_HTTP"], Some("ENROOT_ALLOW_HTTP"),
        Kind::Switch,
        "no", "Whether registries may be reached without encryption.";
    MAX_CONNECTIONS: "transfer" "max_connections", ["CISTA_MAX_CONNECTIONS"], Some("ENROOT_MAX_CONNECTIONS"),
        Kind::Number { from: 1, to: 256 },
        "10", "Connections to a registry at the same time, each for a layer or a part of one.";
    CONNECT_TIMEOUT: "transfer" "connect_timeout", ["CISTA_CONNECT_TIMEOUT"], Some("ENROOT_CONNECT_TIMEOUT"),
        Kind::Seconds,
        "20", "How long a connection may take to come about, in seconds.";
    TRANSFER_TIMEOUT: "transfer" "timeout", ["CISTA_TRANSFER_TIMEOUT"], Some("ENROOT_TRANSFER_TIMEOUT"),
        Kind::Seconds,
        "60", "How long a transfer may stand still, in seconds.";
    TRANSFER_RETRIES: "transfer" "retries", ["CISTA_TRANSFER_RETRIES"], Some("ENROOT_TRANSFER_RETRIES"),
        Kind::Number { from: 0, to: 1000 },
        "6", "How often a failed request is repeated.";
    HTTPS_PROXY: "transfer" "https_proxy", ["https_proxy", "HTTPS_PROXY"], Some("https_proxy"),
        Kind::Text,
        "all_proxy", "The proxy for encrypted connections.";
    // In lower case only: a CGI client could set the other.
    HTTP_PROXY: "transfer" "http_proxy", ["http_proxy"], Some("http_proxy"),
        Kind::Text,
        "all_proxy", "The proxy for connections without encryption.";
    ALL_PROXY: "transfer" "all_proxy", ["all_proxy", "ALL_PROXY"], Some("all_proxy"),
        Kind::Text,
        "none", "The proxy for what has no other.";
    NO_PROXY: "transfer" "no_proxy", ["no_proxy", "NO_PROXY"], Some("no_proxy"),
        Kind::Text,
        "none", "Hosts that are reached without a proxy, separated by commas.";
    CA_FILE: "transfer" "ca_file", ["SSL_CERT_FILE"], Some("SSL_CERT_FILE"),
        Kind::Path,
        "the system's", "Certificates of the authorities that are trusted.";
    CA_DIRECTORIES: "transfer" "ca_directories", ["SSL_CERT_DIR"], Some("SSL_CERT_DIR"),
        Kind::Paths,
        "the system's", "Directories of such certificates.";
    PASSWORD: "transfer" "password", ["CISTA_PASSWORD"], None,
        Kind::Secret,
        "none", "Password for the user of a reference.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("256M", Some(256 << 20)),
            (" 1g ", Some(1 << 30)),
            ("", None),
            ("M", None),
            ("1.5G", None),
            ("99999999T", None),
            ("1é", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn switches() {
        for (text, expected) in [
            ("yes", Some(true)),
            ("T", Some(true)),
            ("1", Some(true)),
            ("No", Some(false)),
            ("FALSE", Some(false)),
            ("off", Some(false)),
            ("flase", None),
            ("", None),
        ] {
            assert_eq!(parse_switch(text), expected, "{text}");
        }
    }

    #[test]
    fn every_name_stands_for_one_setting() {
        let mut names = std::collections::HashSet::new();
        for setting in ALL {
            assert!(names.insert(format!("{}.{}", setting.section, setting.key)));
            for variable in setting.variables {
                assert!(names.insert((*variable).to_owned()), "{variable}");
            }
            assert!(setting.help.ends_with('.'), "{}", setting.key);
        }
    }
}
