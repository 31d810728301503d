//! `cista start`: start a container or an image

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use super::{Context, Failure, Outcome, hints, script, status};
use crate::config::{self, Config, Dev};
use crate::container::additions::Additions;
use crate::container::carried::Carried;
use crate::container::hooks::HookError;
use crate::container::identity_map::UserNamespaceError;
use crate::container::image::ImageError;
use crate::container::mounts::MountError;
use crate::container::named::{Container, ContainerError};
use crate::container::namespaces::Namespaces;
use crate::container::program::{self, ProgramError};
use crate::container::{self, Root, Spec, StartError, environment, fstab, standard, userns_help};
use crate::devices::Request;
use crate::devices::question::{Choice, QualifiedName};
use crate::{observe, sys, ui};

/// Start a container or an image
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: Options,
    /// Container (see `list`) or image file
    #[arg(value_name = "NAME|IMAGE")]
    target: PathBuf,
    /// Program and arguments; the image's own when left out
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

/// How a container is started; shared with `run`.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Options {
    /// Set a variable, or take the host's value
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<OsString>,
    /// Script in bash whose functions `environ`, `mounts`, `hooks` and `rc` say how to start, and whose comments `#CISTA_NAME=VALUE` set things
    #[arg(short, long, value_name = "SCRIPT")]
    conf: Option<PathBuf>,
    /// Command script to run in place of the image's
    #[arg(long, value_name = "SCRIPT")]
    rc: Option<PathBuf>,
    /// Be root inside
    #[arg(short, long)]
    root: bool,
    /// Make the root file system writable
    #[arg(short = 'w', long)]
    rw: bool,
    /// Give it process numbers of its own; its program is number 2
    #[arg(long)]
    pid: bool,
    /// Give it a network of its own: a loopback interface
    #[arg(long)]
    net: bool,
    /// Give it shared memory and message queues of its own
    #[arg(long)]
    ipc: bool,
    /// Give it a host name of its own
    #[arg(long)]
    uts: bool,
    /// Leave a file open for the program besides 0, 1 and 2, by its number: that of PMI for instance
    #[arg(long, value_name = "FD", value_parser = open_file)]
    keep_fd: Vec<RawFd>,
    /// GPUs that it gets: `all`, `none`, or indexes, UUIDs and parts of GPUs (`0:1`), separated by commas; otherwise those of the job, or what the image asks for
    #[arg(long, value_name = "GPUS", value_parser = Choice::parse_option)]
    gpus: Option<Choice>,
    /// Another device that it gets, as specifications of CDI name them
    #[arg(long = "device", value_name = "VENDOR/CLASS=NAME", value_parser = QualifiedName::parse)]
    devices: Vec<QualifiedName>,
    /// Say of every device and library why it gets it or does not
    #[arg(long)]
    explain_devices: bool,
    /// What a bundle adds.
    #[arg(skip)]
    carried: Carried,
    /// Mount something of the host: fields of fstab(5), separated by colons
    #[arg(short, long = "mount", value_name = "FSTAB")]
    mount: Vec<OsString>,
}

impl Options {
    /// The configuration script.
    pub(super) fn conf(&self) -> Option<&Path> {
        self.conf.as_deref()
    }

    /// What is added besides, before the additions of this machine and this user.
    pub(super) fn carry(&mut self, carried: Carried) {
        self.carried = carried;
    }

    /// What a script says, and nothing else.
    pub(super) fn of_script(conf: PathBuf) -> Self {
        Self {
            conf: Some(conf),
            ..Self::default()
        }
    }
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    if let Some(conf) = &args.options.conf {
        // The script may say where containers are.
        let context = script::with_directives(conf, context)
            .map_err(|failure| failure.with_status(status::SETUP))?;
        let root =
            find(&args.target, &context).map_err(|failure| failure.with_status(status::SETUP))?;
        return start(root, &args.options, args.command, &context);
    }
    let root = find(&args.target, context).map_err(|failure| failure.with_status(status::SETUP))?;
    start(root, &args.options, args.command, context)
}

/// What a command line names: a file is an image, everything else the name of a container.
pub(super) fn find(target: &Path, context: &Context) -> Result<Root, Failure> {
    if target.is_file() {
        return Ok(Root::Image(target.to_owned()));
    }
    let found = if target.as_os_str().as_encoded_bytes().contains(&b'/') {
        // Never a name: say what is wrong with the file.
        let source = std::fs::metadata(target)
            .err()
            .unwrap_or_else(|| not_a_file(target));
        return Err(StartError::from(ImageError::Open {
            path: target.to_owned(),
            source,
        })
        .into());
    } else {
        Container::open(&context.config.data_path, target.as_os_str())
    };
    found.map(Root::Container).map_err(|error| {
        let hint = match &error {
            ContainerError::NotFound { .. } => Some(
                "there is no image file of that name either; `cista list` shows the containers",
            ),
            _ => None,
        };
        let failure = Failure::new(error);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    })
}

/// Why a path that is there is no image file.
fn not_a_file(path: &Path) -> io::Error {
    if path.is_dir() {
        io::Error::new(io::ErrorKind::IsADirectory, "it is a directory")
    } else {
        io::Error::other("it is not a file")
    }
}

/// Starts something: this process becomes its program. Returns only a failure.
pub(super) fn start(
    root: Root,
    options: &Options,
    command: Vec<OsString>,
    context: &Context,
) -> Outcome {
    let setup = |failure: Failure| failure.with_status(status::SETUP);
    let mut additions =
        Additions::load(&context.config.sources).map_err(|error| setup(Failure::new(error)))?;
    options
        .carried
        .precede(&mut additions)
        .map_err(|error| setup(Failure::new(error)))?;
    let is_program_shared = (command.first()).is_some_and(|path| program::is_shared(path));
    if is_program_shared || is_shared(&root, options, &additions, &context.config) {
        // Before anything is read that can be read only once.
        program::protect();
    }
    let spec = spec(root, options, command, additions, context).map_err(setup)?;
    if observe::is_on() {
        observe::subject(match &spec.root {
            Root::Image(path) => path.display().to_string(),
            Root::Container(container) => container.name.to_string_lossy().into_owned(),
        });
    }
    let tell = |text: &str| {
        if context.verbose {
            ui::message(text);
        }
    };
    match container::start(&spec, &context.config, &tell, &|text| ui::warning(text)) {
        Ok(never) => match never {},
        Err(error) => Err(failure(error)),
    }
}

/// Whether a program that runs already could change files which the container has: not where it has but an image and what is made anew for it.
fn is_shared(root: &Root, options: &Options, additions: &Additions, config: &Config) -> bool {
    matches!(root, Root::Container(_))
        || !options.mount.is_empty()
        || options.conf.is_some()
        || !additions.mounts.is_empty()
        || !additions.hooks.is_empty()
        || config.mount_home
        || config.dev == Dev::Host
}

fn spec(
    root: Root,
    options: &Options,
    command: Vec<OsString>,
    additions: Additions,
    context: &Context,
) -> Result<Spec, Failure> {
    let environment = options
        .env
        .iter()
        .filter_map(|option| environment::parse_option(option, config::host_variable).transpose())
        .collect::<Result<_, _>>()?;
    let mounts = options
        .mount
        .iter()
        .map(|option| fstab::parse_option(option))
        .collect::<Result<_, _>>()?;
    let mut files = options.keep_fd.clone();
    files.extend(standard::pmi_file(&context.config, &additions));
    Ok(Spec {
        root,
        writable: options.rw || context.config.writable,
        remap_root: options.root || context.config.remap_root,
        namespaces: Namespaces {
            pid: options.pid,
            net: options.net,
            ipc: options.ipc,
            uts: options.uts,
            cgroup: false,
        }
        .or(context.config.namespaces),
        mounts,
        additions,
        devices: Request {
            gpus: options.gpus.clone(),
            devices: options.devices.clone(),
            explain: options.explain_devices.then_some(|line| ui::message(line)),
        },
        script: options.conf.as_deref().map(script::find).transpose()?,
        rc: options.rc.as_deref().map(script::read_rc).transpose()?,
        environment,
        command,
        files,
        without_entrypoint: false,
        helper: None,
    })
}

/// Reads the number of an open file.
pub(super) fn open_file(text: &str) -> Result<RawFd, String> {
    let fd = text
        .parse()
        .map_err(|_| "it is not the number of a file".to_owned())?;
    if fd > 2 && sys::process::is_open(fd) {
        Ok(fd)
    } else if (0..=2).contains(&fd) {
        Err("0, 1 and 2 are always left open".into())
    } else {
        Err("no file of this number is open".into())
    }
}

/// The exit status for a program that is not running.
pub(super) fn program_status(error: &ProgramError) -> u8 {
    match error {
        ProgramError::NotFound { .. } => status::NOT_FOUND,
        ProgramError::CannotExecute { .. } => status::CANNOT_EXECUTE,
        ProgramError::BadArguments => status::SETUP,
    }
}

pub(super) fn failure(error: StartError) -> Failure {
    let status = match &error {
        StartError::Program(error) => program_status(error),
        _ => status::SETUP,
    };
    let hint = hint(&error);
    let failure = Failure::new(error).with_status(status);
    match hint {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    }
}

/// What can be done about an error, where we know it.
fn hint(error: &StartError) -> Option<String> {
    match error {
        StartError::UserNamespace(
            UserNamespaceError::Create(source) | UserNamespaceError::Map { source, .. },
        ) => userns_help::hint(source),
        StartError::Image(ImageError::Device(source)) => Some(match source.kind() {
            io::ErrorKind::NotFound => {
                "load the `fuse` kernel module (`modprobe fuse`), or set `CISTA_MOUNT=unpack`".into()
            }
            _ => "every user may open /dev/fuse on a usual system (`chmod 0666 /dev/fuse`); or set `CISTA_MOUNT=unpack`".into(),
        }),
        StartError::Container(ContainerError::Busy { .. }) => Some(
            "one start at a time may write to a container; starts without `-w` are not limited".into(),
        ),
        StartError::Root(_) => Some(
            "changes need a file system that overlayfs can write to (not NFS or Lustre): `CISTA_DATA_PATH` may name one, or `cista create --unpack` makes a plain tree".into(),
        ),
        StartError::Mount(MountError::Filesystem { name, source, .. })
            if name == "proc" && source.raw_os_error() == Some(libc::EPERM) =>
        {
            Some(
                "parts of `/proc` are covered here, as inside other containers; the kernel then allows no new one: start without `--pid`"
                    .into(),
            )
        }
        StartError::Mount(error) => hints::of_mount(error).map(str::to_owned),
        StartError::Hook(HookError::Failed { .. }) => {
            Some("`cista help hooks` says what a hook may rely on".into())
        }
        StartError::Hook(HookError::Execute { source, .. })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Some("the program that its first line names is not there".into())
        }
        StartError::Program(ProgramError::NotFound { program }) if program.starts_with('-') => {
            Some("options come before the image, the program and its arguments after it".into())
        }
        StartError::Program(ProgramError::NotFound { program }) if !program.contains('/') => {
            Some("it is looked for along the image's `PATH`, which `cista inspect` shows; `-e PATH=…` sets another".into())
        }
        StartError::Program(ProgramError::CannotExecute { source, .. })
            if source.raw_os_error() == Some(libc::ENOEXEC) =>
        {
            Some("it is a program for another processor architecture, or a script whose first line does not name an interpreter (`#!`)".into())
        }
        StartError::Program(ProgramError::CannotExecute { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            Some("it is a directory, or its mode does not let you execute it (`chmod +x`)".into())
        }
        _ => None,
    }
}
