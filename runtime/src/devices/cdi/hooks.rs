//! Hooks of CDI documents: programs that a runtime runs while it makes a container.
//!
//! Nearly all of them call NVIDIA's or AMD's toolkit to change the container's files. They run as root on the host, with paths into
//! the container: a root file system that a hostile image prepared. What those programs do is done natively here, below the container's
//! root and with the user's rights: [`Native`]. Their interface is the command line that `nvidia-cdi-hook --help` shows; `nvidia-ctk hook`
//! and `amd-ctk hook` take the same.
//!
//! Other hooks are run as they are: see [`Stage`](crate::devices::grant::Stage) for when.

use std::path::{Path, PathBuf};

use super::document::HookEdit;

/// What the hooks of a toolkit do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Native {
    /// Makes symbolic links.
    Links(Vec<Link>),
    /// Makes the dynamic linker's cache anew, with directories of libraries besides those of the image.
    LinkerCache(Vec<PathBuf>),
    /// Lets the image's CUDA compatibility libraries be found before the driver's, where they are newer than this version of the driver.
    CudaCompat {
        /// Version of the host's driver; None where the document does not say.
        driver: Option<String>,
        /// Where the image has them.
        directory: PathBuf,
    },
    /// Changes permissions.
    Modes {
        /// The permissions.
        mode: u32,
        /// Of what.
        paths: Vec<PathBuf>,
    },
    /// Tells NVIDIA's programs not to make device nodes, by `/proc/driver/nvidia/params`.
    NoDeviceNodes,
    /// Nothing that a container of ours needs.
    Nothing(String),
}

/// A symbolic link to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it says.
    pub target: PathBuf,
    /// Where it is, in the container.
    pub path: PathBuf,
}

/// Why a hook of a toolkit cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot do what the hook `{command}` asks for: {problem}")]
pub struct NativeError {
    /// Its command line.
    pub command: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Where images have NVIDIA's compatibility libraries.
pub(super) const CUDA_COMPAT: &str = "/usr/local/cuda/compat";

/// Programs whose hooks are native: those that take the command at once, and those that take it after `hook`.
const DIRECT: [&str; 1] = ["nvidia-cdi-hook"];
const TOOLKITS: [&str; 2] = ["nvidia-ctk", "amd-ctk"];

impl Native {
    /// What a hook does, where it is one of a toolkit; None for any other.
    ///
    /// # Errors
    ///
    /// Its command line is not understood.
    pub fn of(hook: &HookEdit) -> Result<Option<Self>, NativeError> {
        let program = Path::new(&hook.path)
            .file_name()
            .and_then(|name| name.to_str());
        let mut arguments = hook.args.iter().map(String::as_str).skip(1);
        match program {
            Some(name) if DIRECT.contains(&name) => {}
            Some(name) if TOOLKITS.contains(&name) => match arguments.next() {
                Some("hook") => {}
                _ => return Ok(None),
            },
            _ => return Ok(None),
        }
        parse(arguments).map(Some).map_err(|problem| NativeError {
            command: hook.args.join(" "),
            problem,
        })
    }
}

fn parse<'a>(mut arguments: impl Iterator<Item = &'a str>) -> Result<Native, String> {
    // Options of the program itself come before the command.
    let command = arguments
        .find(|argument| !argument.starts_with('-'))
        .ok_or("it has no command")?;
    let options = Options::parse(arguments)?;
    Ok(match command {
        "create-symlinks" => Native::Links(
            options
                .values("link")
                .map(link)
                .collect::<Result<_, String>>()?,
        ),
        "update-ldcache" => Native::LinkerCache(
            options
                .values("folder")
                .map(absolute)
                .collect::<Result<_, String>>()?,
        ),
        "enable-cuda-compat" => Native::CudaCompat {
            driver: options
                .values("host-driver-version")
                .last()
                .map(str::to_owned),
            directory: absolute(
                options
                    .values("cuda-compat-container-root")
                    .last()
                    .unwrap_or(CUDA_COMPAT),
            )?,
        },
        "chmod" => Native::Modes {
            mode: options
                .values("mode")
                .last()
                .and_then(|mode| u32::from_str_radix(mode, 8).ok())
                .filter(|mode| *mode <= 0o7777)
                .ok_or("it has no `--mode` in octal digits")?,
            paths: options
                .values("path")
                .map(absolute)
                .collect::<Result<_, String>>()?,
        },
        "disable-device-node-modification" => Native::NoDeviceNodes,
        // As the toolkits do with commands of later versions: they say so, and succeed.
        other => Native::Nothing(other.to_owned()),
    })
}

/// A link as `TARGET::PATH`.
fn link(text: &str) -> Result<Link, String> {
    let (target, path) = text
        .split_once("::")
        .filter(|(target, _)| !target.is_empty())
        .ok_or_else(|| format!("`{text}` is no link: expected `TARGET::PATH`"))?;
    Ok(Link {
        target: target.into(),
        path: absolute(path)?,
    })
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    match text.starts_with('/') {
        true => Ok(text.into()),
        false => Err(format!("`{text}` is no absolute path")),
    }
}

/// Options as `--name value` or `--name=value`.
struct Options<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Options<'a> {
    fn parse(mut arguments: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut options = Vec::new();
        while let Some(argument) = arguments.next() {
            let name = argument
                .strip_prefix("--")
                .ok_or_else(|| format!("`{argument}` is no option"))?;
            let option = match name.split_once('=') {
                Some(option) => option,
                None => (
                    name,
                    arguments
                        .next()
                        .ok_or_else(|| format!("`{argument}` has no value"))?,
                ),
            };
            options.push(option);
        }
        Ok(Self(options))
    }

    fn values(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(option, _)| *option == name)
            .map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(path: &str, arguments: &str) -> HookEdit {
        HookEdit {
            path: path.into(),
            args: arguments.split_whitespace().map(str::to_owned).collect(),
            ..HookEdit::default()
        }
    }

    #[test]
    fn command_lines_of_toolkits() {
        let direct = "/usr/bin/nvidia-cdi-hook";
        for (path, arguments, expected) in [
            (
                direct,
                "nvidia-cdi-hook create-symlinks --link libcuda.so.1::/usr/lib/libcuda.so --link=../a::/b",
                Native::Links(vec![
                    Link {
                        target: "libcuda.so.1".into(),
                        path: "/usr/lib/libcuda.so".into(),
                    },
                    Link {
                        target: "../a".into(),
                        path: "/b".into(),
                    },
                ]),
            ),
            (
                "/opt/x/nvidia-ctk",
                "nvidia-ctk hook update-ldcache --folder /usr/lib64 --folder /usr/lib64/vdpau",
                Native::LinkerCache(vec!["/usr/lib64".into(), "/usr/lib64/vdpau".into()]),
            ),
            (
                direct,
                "nvidia-cdi-hook update-ldcache",
                Native::LinkerCache(Vec::new()),
            ),
            (
                direct,
                "nvidia-cdi-hook --debug enable-cuda-compat --host-driver-version=580.65.06",
                Native::CudaCompat {
                    driver: Some("580.65.06".into()),
                    directory: "/usr/local/cuda/compat".into(),
                },
            ),
            (
                direct,
                "nvidia-cdi-hook chmod --mode 755 --path /dev/dri",
                Native::Modes {
                    mode: 0o755,
                    paths: vec!["/dev/dri".into()],
                },
            ),
            (
                direct,
                "nvidia-cdi-hook disable-device-node-modification",
                Native::NoDeviceNodes,
            ),
            (
                direct,
                "nvidia-cdi-hook update-application-profile",
                Native::Nothing("update-application-profile".into()),
            ),
            (
                "/usr/bin/amd-ctk",
                "amd-ctk hook create-symlinks --link a::/b",
                Native::Links(vec![Link {
                    target: "a".into(),
                    path: "/b".into(),
                }]),
            ),
        ] {
            assert_eq!(Native::of(&hook(path, arguments)), Ok(Some(expected)));
        }
        for (path, arguments) in [
            ("/usr/bin/other", "other create-symlinks --link a::/b"),
            ("/usr/bin/nvidia-ctk", "nvidia-ctk runtime configure"),
            ("/", ""),
        ] {
            assert_eq!(Native::of(&hook(path, arguments)), Ok(None), "{arguments}");
        }
        for (arguments, problem) in [
            ("nvidia-cdi-hook", "no command"),
            ("nvidia-cdi-hook create-symlinks --link a", "`a` is no link"),
            ("nvidia-cdi-hook create-symlinks --link a::b", "absolute"),
            ("nvidia-cdi-hook create-symlinks --link", "no value"),
            ("nvidia-cdi-hook update-ldcache folder", "no option"),
            ("nvidia-cdi-hook chmod --mode 9 --path /x", "--mode"),
            ("nvidia-cdi-hook chmod --mode 77777 --path /x", "--mode"),
        ] {
            let error = Native::of(&hook(direct, arguments)).unwrap_err();
            assert!(error.to_string().contains(problem), "{arguments}: {error}");
        }
    }
}
