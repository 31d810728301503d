//! `cista run`: import an image into the store when it is not there, and start it.
//!
//! The tag is resolved to a digest with one request; an image of that digest, made with the same options, is used as it
//! is. An import and a client of a registry have threads, which a start must not have (`unshare(CLONE_NEWUSER)` fails in
//! a process with several), so once the image is there this program executes itself again, with the path of the image as
//! a hidden option. It is the same process all the way: the one that the user started.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::import::{ImageOptions, SourceOptions};
use super::{Context, Failure, Outcome, script, start, status, stored};
use crate::container::Root;
use crate::observe::{self, Phase};
use crate::sys;

/// Import an image into the store when it is not there, and start it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    start: start::Options,
    #[command(flatten)]
    source: SourceOptions,
    #[command(flatten)]
    image: ImageOptions,
    /// Say nothing but warnings and errors
    #[arg(short, long)]
    quiet: bool,
    /// The image that the URI was resolved to
    #[arg(long, hide = true, value_name = "FILE")]
    resolved: Option<PathBuf>,
    /// When the command began, in nanoseconds of the monotonic clock
    #[arg(long, hide = true, value_name = "NANOSECONDS")]
    began: Option<u64>,
    /// The image; see `cista import --help`
    uri: String,
    /// Program and arguments; the image's own when left out
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    if let Some(path) = args.resolved {
        if let Some(began) = args.began {
            observe::continues(Duration::from_nanos(began), Phase::Mount);
        }
        let context = match args.start.conf() {
            Some(conf) => &script::with_directives(conf, context)
                .map_err(|failure| failure.with_status(status::SETUP))?,
            None => context,
        };
        return start::start(Root::Image(path), &args.start, args.command, context);
    }
    let wanted = stored::Wanted {
        uri: &args.uri,
        source: &args.source,
        image: &args.image,
        quiet: args.quiet,
    };
    let path = stored::prepare(&wanted, context).map_err(|failure| {
        // An interruption has a status of its own.
        if failure.status().is_some() {
            failure
        } else {
            failure.with_status(status::SETUP)
        }
    })?;
    observe::done();
    let arguments = with_resolved(std::env::args_os(), &path, observe::began())
        .map_err(|error| Failure::new(error).with_status(status::SETUP))?;
    let error = sys::again::execute(&arguments);
    Err(Failure::new(Again { source: error }).with_status(status::SETUP))
}

/// The program cannot be executed again.
#[derive(Debug, thiserror::Error)]
#[error("cannot execute `/proc/self/exe`")]
struct Again {
    source: io::Error,
}

/// The command line with the hidden options behind the command's name, which is the first word that is no option: of those
/// before it, `--log-format` alone takes a value.
fn with_resolved(
    arguments: impl Iterator<Item = OsString>,
    path: &Path,
    began: Option<Duration>,
) -> io::Result<Vec<CString>> {
    let mut resolved = OsString::from("--resolved=");
    resolved.push(path);
    let mut options = vec![resolved];
    options.extend(began.map(|time| format!("--began={}", time.as_nanos()).into()));
    let mut words = Vec::new();
    let mut is_value = false;
    for (position, word) in arguments.enumerate() {
        let is_command = position > 0 && !is_value && !word.as_bytes().starts_with(b"-");
        is_value = word == "--log-format";
        words.push(word);
        if is_command {
            words.append(&mut options);
        }
    }
    words
        .into_iter()
        .map(|word| CString::new(word.as_bytes()).map_err(io::Error::other))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hidden_option_stands_behind_the_command() {
        let words = |text: &str| {
            let words = text.split(' ').map(OsString::from);
            let words = with_resolved(words, Path::new("/s/x.sqsh"), None).unwrap();
            let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
            words.join(" ")
        };
        assert_eq!(
            words("cista run -w oci:x run -V"),
            "cista run --resolved=/s/x.sqsh -w oci:x run -V"
        );
        assert_eq!(
            words("run -V run oci:x"),
            "run -V run --resolved=/s/x.sqsh oci:x"
        );
        assert_eq!(
            words("cista --log-format json -V run oci:x"),
            "cista --log-format json -V run --resolved=/s/x.sqsh oci:x"
        );
        let words = ["cista", "run", "x"].map(OsString::from).into_iter();
        let words = with_resolved(words, Path::new("x"), Some(Duration::from_nanos(7))).unwrap();
        assert_eq!(words[3].to_str(), Ok("--began=7"));
    }
}
