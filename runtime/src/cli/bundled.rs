//! What a bundle does: the options of `start`, for the image that this program carries.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::Parser;

use cista_images::cancel::Cancel;
use cista_images::squashfs::reader::Reader;
use cista_images::unpack;

use super::{Context, Failure, Outcome, check, import, script, start, status};
use crate::bundle::{self, BundleError, Description, Layout};
use crate::config::{Config, Dialect, host_variable};
use crate::container::Root;
use crate::container::named::{Container, Content};
use crate::container::temporary;
use crate::observe::{self, Activity};
use crate::{sys, ui};

/// Start the container that this file carries
#[derive(Debug, Parser)]
#[command(disable_version_flag = true)]
struct Args {
    /// Show what this bundle is
    #[arg(short, long)]
    info: bool,
    /// Unpack the image into the target directory, start it there, and keep it
    #[arg(short, long)]
    keep: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Check the image and this machine, and end
    #[arg(short, long)]
    verify: bool,
    /// Unpack the image into the target directory, and end
    #[arg(short = 'x', long)]
    extract: bool,
    /// Say more about what is done
    #[arg(long, conflicts_with = "quiet")]
    verbose: bool,
    #[command(flatten)]
    options: start::Options,
    /// Program and arguments; the image's own when left out
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The target directory cannot be used.
#[derive(Debug, thiserror::Error)]
enum TargetError {
    #[error("`{path}` exists already")]
    Exists { path: PathBuf },
    #[error("cannot unpack the image into `{path}`")]
    Unpack {
        path: PathBuf,
        source: unpack::UnpackError,
    },
    #[error("cannot use `{path}`")]
    System { path: PathBuf, source: io::Error },
    #[error("the target `{target}` is not understood: `${{` without a name and `}}`")]
    Malformed { target: String },
}

/// The bundle that this program is, with what it says.
struct Bundle {
    file: fs::File,
    layout: Layout,
    description: Description,
    /// Where the file is, as far as that is known.
    path: PathBuf,
}

/// Runs this program as the bundle that it is.
pub(super) fn main(file: fs::File, layout: Layout, began: Duration) -> ExitCode {
    let args = Args::parse();
    run(args, file, layout, began).unwrap_or_else(|failure| {
        observe::failed();
        ui::failure(&failure);
        ExitCode::from(failure.status().unwrap_or(status::SETUP))
    })
}

fn run(mut args: Args, file: fs::File, layout: Layout, began: Duration) -> Outcome {
    let description = bundle::description(&file, layout)?;
    let bundle = Bundle {
        path: own_path(&file),
        file,
        layout,
        description,
    };
    args.options.carry(bundle.description.carried.clone());
    if args.info {
        bundle.show();
        return Ok(ExitCode::SUCCESS);
    }
    let context = Context {
        config: Config::load(Dialect::Cista)?,
        verbose: args.verbose,
    };
    ui::log::set(context.config.log_format, || {
        crate::config::log_identity("bundle")
    });
    if !(args.verify || args.extract) {
        observe::start(Activity::Start, began, &context.config);
    }
    if args.verify {
        let cancel = sys::signal::cancel_on_signals()?;
        bundle.verify(&cancel)?;
        if !args.quiet {
            ui::message(match bundle.description.checksum {
                Some(_) => "the image is as it was put in",
                None => "the bundle has no checksum",
            });
        }
        return check::report(&context, false);
    }
    if args.extract {
        bundle.extract(&context, args.quiet)?;
        return Ok(ExitCode::SUCCESS);
    }
    let root = if args.keep {
        bundle.kept(&context, args.quiet)?
    } else {
        Root::Image(bundle.path)
    };
    match args.options.conf() {
        Some(conf) => {
            let context = script::with_directives(conf, &context)?;
            start::start(root, &args.options, args.command, &context)
        }
        None => start::start(root, &args.options, args.command, &context),
    }
}

/// The path of the file that is executed. Where it has been moved or removed since, the link of `/proc` still leads to it.
fn own_path(file: &fs::File) -> PathBuf {
    let link = PathBuf::from("/proc/self/exe");
    let identity =
        |status: io::Result<fs::Metadata>| status.ok().map(|status| (status.dev(), status.ino()));
    match fs::read_link(&link) {
        Ok(path) if identity(fs::metadata(&path)) == identity(file.metadata()) => path,
        _ => link,
    }
}

impl Bundle {
    fn show(&self) {
        let Description {
            image,
            description,
            checksum,
            created,
            program,
            ..
        } = &self.description;
        ui::data(format_args!("image:       {image}"));
        if let Some(description) = description {
            ui::data(format_args!("description: {description}"));
        }
        ui::data(format_args!("size:        {} bytes", self.layout.length));
        ui::data(format_args!("offset:      {} bytes", self.layout.offset));
        if let Some(checksum) = checksum {
            ui::data(format_args!("checksum:    {checksum}"));
        }
        if let Ok(target) = self.target() {
            ui::data(format_args!("target:      {}", target.display()));
        }
        for path in self.description.carried.paths() {
            ui::data(format_args!("adds:        {}", path.display()));
        }
        ui::data(format_args!("created:     {created} seconds after 1970"));
        ui::data(format_args!("program:     cista {program}"));
    }

    fn verify(&self, cancel: &Cancel) -> Result<(), Failure> {
        bundle::verify(&self.file, self.layout, &self.description, cancel)
            .map_err(|error| import::failure(error, cancel))
    }

    /// Where the image is unpacked.
    fn target(&self) -> Result<PathBuf, TargetError> {
        if let Some(target) = &self.description.target {
            return expand(target);
        }
        let name = self.path.file_stem().unwrap_or(OsStr::new("bundle"));
        let name = match self.path.starts_with("/proc") {
            true => OsStr::new(&self.description.image),
            false => name,
        };
        let here = PathBuf::from(".");
        let directory = rustix::process::getcwd(Vec::new())
            .map_or(here, |path| OsStr::from_bytes(path.to_bytes()).into());
        Ok(directory.join(name))
    }

    /// Unpacks the image into a directory that is not there yet; it appears whole or not at all.
    fn extract(&self, context: &Context, quiet: bool) -> Result<PathBuf, Failure> {
        let target = self.target()?;
        if fs::symlink_metadata(&target).is_ok() {
            return Err(Failure::new(TargetError::Exists { path: target }));
        }
        let cancel = sys::signal::cancel_on_signals()?;
        self.verify(&cancel)?;
        if !quiet {
            ui::message(format!("unpacking the image into `{}`", target.display()));
        }
        let system = |path: &Path| {
            let path = path.to_owned();
            move |source| TargetError::System { path, source }
        };
        let (Some(above), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(Failure::new(TargetError::Exists { path: target }));
        };
        fs::create_dir_all(above).map_err(system(above))?;
        let file = self.file.try_clone().map_err(system(&self.path))?;
        let reader =
            Reader::open(file, self.layout.offset).map_err(|source| BundleError::Image {
                path: self.path.clone(),
                source,
            })?;
        let building = temporary::path(above, name);
        let threads = context.config.max_processors();
        let unpacked = unpack::unpack(&reader, &building, threads, &cancel)
            .map_err(|source| TargetError::Unpack {
                path: target.clone(),
                source,
            })
            .and_then(|_| fs::rename(&building, &target).map_err(system(&target)));
        if let Err(error) = unpacked {
            let _ = unpack::remove_tree(&building);
            return Err(import::failure(error, &cancel));
        }
        Ok(target)
    }

    /// The unpacked image, as a container: what is there from an earlier time is used again.
    fn kept(&self, context: &Context, quiet: bool) -> Result<Root, Failure> {
        let target = self.target()?;
        let directory = if target.is_dir() {
            target
        } else {
            self.extract(context, quiet)?
        };
        let created = fs::metadata(&directory)
            .and_then(|status| status.created())
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_secs());
        Ok(Root::Container(Container {
            name: directory.file_name().unwrap_or_default().to_owned(),
            content: Content::Tree(directory.clone()),
            directory,
            created,
        }))
    }
}

/// Replaces `${NAME}` by the variable of that name; one that is not set is empty.
fn expand(target: &str) -> Result<PathBuf, TargetError> {
    let malformed = || TargetError::Malformed {
        target: target.to_owned(),
    };
    let mut path = OsString::new();
    let mut rest = target;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, behind) = after.split_once('}').ok_or_else(malformed)?;
        if name.is_empty() {
            return Err(malformed());
        }
        path.push(before);
        path.push(host_variable(OsStr::new(name)).unwrap_or_default());
        rest = behind;
    }
    path.push(rest);
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn targets() {
        let home = host_variable(OsStr::new("PATH")).unwrap_or_default();
        let mut expected = OsString::from("/a/");
        expected.push(&home);
        expected.push("/b");
        assert_eq!(expand("/a/${PATH}/b").unwrap(), PathBuf::from(expected));
        assert_eq!(expand("/a$b{c}").unwrap(), Path::new("/a$b{c}"));
        assert_eq!(expand("${CISTA_NOT_SET}x").unwrap(), Path::new("x"));
        for bad in ["${", "${}", "a${b"] {
            assert!(expand(bad).is_err(), "{bad}");
        }
    }
}
