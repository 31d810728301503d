//! `cista slurm`: what the plugin of Slurm executes; see [`crate::slurm`]. Hidden, since nobody types it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode, Stdio};
use std::time::Instant;

use cista_images::cancel::Cancel;
use cista_images::unpack;
use rustix::fs::Access;
use rustix::thread::UnshareFlags;

use super::import::{ImageOptions, SourceOptions};
use super::{Context, Failure, Outcome, slurm_epilog, start, stored};
use crate::config::{self, Config, settings};
use crate::container::additions::Additions;
use crate::container::environment::Environment;
use crate::container::identity_map::{self, IdMap};
use crate::container::join::{self, Handles};
use crate::container::named::{Container, ContainerError, Content, Creation};
use crate::container::plan::Plan;
use crate::container::rootfs::Rootfs;
use crate::container::view::View;
use crate::container::{
    Root, Spec, StartError, accounts, export, named, running, standard, temporary,
};
use crate::observe::{self, Activity};
use crate::slurm::answer::Answer;
use crate::slurm::build::{self, BuildError, Construction};
use crate::slurm::helper::Helper;
use crate::slurm::request::{ImageSource, Mode, Request};
use crate::slurm::{channel, entrypoint};
use crate::{sys, ui};

/// The file that says what is asked for.
const REQUEST: RawFd = 3;
/// The socket on which tasks ask.
const TASKS: RawFd = 4;
/// The socket of the process that is root.
const HELPER: RawFd = 5;

/// Parts of steps of Slurm
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Hold the container of a step
    Step(StepArgs),
    /// Remove what a job or a step of it has left: containers that belong to it
    Epilog(slurm_epilog::Args),
}

#[derive(Debug, Default, clap::Args)]
pub(super) struct StepArgs {
    /// The image that the URI was resolved to
    #[arg(long, value_name = "FILE")]
    resolved: Option<PathBuf>,
}

impl Args {
    /// What it is counted as.
    pub(super) fn activity(&self) -> Activity {
        match self.command {
            Command::Step(_) => Activity::Start,
            Command::Epilog(_) => Activity::Other,
        }
    }

    /// The words of `cista slurm step` without a description of all commands, which takes longer to build than a start has time for.
    pub(super) fn of_step(words: &[OsString]) -> Option<Self> {
        let step = |resolved| Self {
            command: Command::Step(StepArgs { resolved }),
        };
        match words {
            [slurm, word] if slurm == "slurm" && word == "step" => Some(step(None)),
            [slurm, word, option, path]
                if slurm == "slurm" && word == "step" && option == "--resolved" =>
            {
                Some(step(Some(path.into())))
            }
            _ => None,
        }
    }
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    match args.command {
        Command::Step(args) => step(args, context),
        Command::Epilog(args) => slurm_epilog::run(&args, context),
    }
}

/// A file that the plugin should have opened.
#[derive(Debug, thiserror::Error)]
#[error("file {file} is not what the plugin of Slurm opens")]
struct NoFile {
    file: RawFd,
    source: io::Error,
}

/// What is asked for cannot be had, for a reason that only a step has.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("container `{name}` exists already, and is to be created")]
    Exists { name: String },
    #[error("container `{name}` is not running")]
    NotRunning { name: String },
    #[error("there is no container `{name}`, and no image to make it of")]
    NoImage { name: String },
    #[error("cannot save the container as `{path}`")]
    Save { path: PathBuf, source: io::Error },
    #[error("cannot execute `/proc/self/exe`")]
    Again(#[source] io::Error),
    #[error("`{importer} get` failed")]
    Importer {
        importer: PathBuf,
        source: io::Error,
    },
    #[error("cannot pass the container on to the tasks")]
    Answer(#[source] io::Error),
}

fn step(args: StepArgs, context: &Context) -> Outcome {
    let began = Instant::now();
    // Nothing that is executed gets the plugin's files.
    sys::process::close_on_exec_but(&[])?;
    let open = |file| {
        sys::process::inherited(file).map_err(|source| {
            Failure::new(NoFile { file, source })
                .with_hint("`cista slurm step` is executed by the plugin `spank_cista.so` only")
        })
    };
    let (request, tasks) = (open(REQUEST)?, open(TASKS)?);
    let request = Request::read(request)?;
    let helper = sys::process::inherited(HELPER).ok();
    let mut step = Step {
        config: config_for(&request, &context.config),
        context,
        helper: helper.map(|socket| Helper::new(socket, request.image_mount)),
        request,
    };
    if let Some(path) = &step.request.save {
        check_save(path)?;
    }
    let found = step.find()?;
    let ((handles, is_ours), image, keeper) = match found {
        Found::Running(container, pid) => (
            (step.join(&container, pid)?, false),
            "running container".to_owned(),
            Keeper::default(),
        ),
        Found::Stopped(container) => {
            let (handles, shown, keeper) = step.start_named(container)?;
            ((handles, true), shown, keeper)
        }
        Found::Nothing => {
            let (handles, shown, keeper) = step.start_new(&tasks, args.resolved)?;
            ((handles, true), shown, keeper)
        }
    };
    // What follows is the work of the tasks.
    observe::done();
    observe::forget();
    // Root is not needed any more: the last copy of its socket goes.
    step.helper = None;
    drop(sys::process::take(HELPER));
    let own = is_ours.then(|| join::mount_namespace(&handles)).flatten();
    let environment = config::host_variable;
    let is_own = |name: &OsStr| is_of_task(name, &environment);
    let answer = Answer::new(handles, &is_own).map_err(StepError::Answer)?;
    ui::message(format_args!(
        "verbose: container ready in {} ms ({image})",
        began.elapsed().as_millis()
    ));
    let finished = match step.serve(&tasks, &answer, &keeper) {
        Over::Finished(socket, byte) => Some((socket, byte)),
        Over::Ended => None,
        Over::Abandoned => {
            // Nobody else ends the tasks of a slurmstepd that was killed.
            if let Some(namespace) = own {
                running::kill_in_mount_namespace(&namespace);
            }
            None
        }
    };
    // The container ends with the descriptors, and is no longer written to then.
    drop(answer);
    keeper.clean_up();
    if let Some((socket, byte)) = finished {
        let _ = channel::send(socket, byte, &[]);
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the container can be saved, as far as can be told before hours of work are done in it.
fn check_save(path: &Path) -> Result<(), StepError> {
    let failed = |source: io::Error| StepError::Save {
        path: path.to_owned(),
        source,
    };
    if path.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let access = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::access(directory, access).map_err(|error| failed(error.into()))
}

/// The settings, with what the step asks for.
fn config_for(request: &Request, config: &Config) -> Config {
    let mut config = config.clone();
    config.writable = request.writable.unwrap_or(config.writable);
    config.remap_root = request.remap_root.unwrap_or(config.remap_root);
    config.mount_home = request.mount_home.unwrap_or(config.mount_home);
    // The tasks are slurmstepd's children, and only children are in another namespace of process ids.
    config.namespaces.pid = false;
    config.slurm_pmi = true;
    if let Some(path) = request.runtime_path.as_ref().filter(|path| path.is_dir()) {
        config.runtime_path.clone_from(path);
    }
    config
}

/// Whether a variable is for each task to have: what Slurm sets for it, or what the job has set where a guess would stand otherwise.
fn is_of_task(name: &OsStr, host: &dyn Fn(&OsStr) -> Option<OsString>) -> bool {
    let bytes = name.as_encoded_bytes();
    let is_slurms = [&b"SLURM_"[..], b"SLURMD_", b"PMI_", b"PMIX_"]
        .iter()
        .any(|prefix| bytes.starts_with(prefix));
    let guessed = [
        "MASTER_ADDR",
        "MASTER_PORT",
        "WORLD_SIZE",
        "RANK",
        "LOCAL_RANK",
        "OMP_NUM_THREADS",
    ];
    (is_slurms || guessed.iter().any(|guess| name == *guess)) && host(name).is_some()
}

/// What is there of the container that is asked for.
enum Found {
    /// It runs; one of its processes.
    Running(Container, u32),
    /// It is there.
    Stopped(Container),
    /// It is to be made.
    Nothing,
}

/// How a step is over.
enum Over {
    /// slurmstepd waits on the socket for the byte.
    Finished(OwnedFd, u8),
    /// slurmstepd has said so.
    Ended,
    /// slurmstepd is gone.
    Abandoned,
}

/// What the holder has to do when the step has ended.
#[derive(Default)]
struct Keeper {
    /// The container that is saved.
    saved: Option<Container>,
    /// The directory of a container that is removed.
    removed: Option<PathBuf>,
    /// The program that has got the image, and is told that it is not needed any more.
    importer: Option<PathBuf>,
}

impl Keeper {
    fn clean_up(self) {
        if let Some(path) = &self.removed
            && let Err(error) = unpack::remove_tree(path)
        {
            ui::warning(ui::chain(&error));
        }
        if let Some(importer) = &self.importer {
            let released = process::Command::new(importer)
                .arg("release")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .status();
            if !released.is_ok_and(|status| status.success()) {
                ui::warning(format_args!("`{} release` failed", importer.display()));
            }
        }
    }
}

/// A step.
struct Step<'a> {
    request: Request,
    config: Config,
    context: &'a Context,
    helper: Option<Helper>,
}

impl Step<'_> {
    fn tells(&self) -> bool {
        self.request.tasks <= 1
    }

    /// Looks for a container of the name.
    fn find(&self) -> Result<Found, Failure> {
        let Some(given) = &self.request.name else {
            return Ok(Found::Nothing);
        };
        let name = given.to_string_lossy().into_owned();
        let mode = self.request.mode;
        let container =
            match Container::open(&self.config.data_path, &self.request.container_name()) {
                Ok(container) => container,
                Err(ContainerError::NotFound { .. }) if mode == Mode::Exec => {
                    return Err(StepError::NotRunning { name }.into());
                }
                Err(ContainerError::NotFound { .. }) if self.request.image.is_some() => {
                    return Ok(Found::Nothing);
                }
                Err(ContainerError::NotFound { .. }) => {
                    return Err(Failure::new(StepError::NoImage { name })
                        .with_hint("`--container-image` names one"));
                }
                Err(error) => return Err(error.into()),
            };
        if mode == Mode::Create {
            return Err(Failure::new(StepError::Exists { name })
                .with_hint("`--container-name=NAME` uses it, another name makes another"));
        }
        let root = Root::Container(container.clone());
        let process = match mode {
            Mode::NoExec => None,
            _ => running::processes(std::slice::from_ref(&root))
                .into_iter()
                .next(),
        };
        match process {
            Some((_, process)) => Ok(Found::Running(container, process.pid)),
            None if mode == Mode::Exec => Err(StepError::NotRunning { name }.into()),
            None => Ok(Found::Stopped(container)),
        }
    }

    /// The container of a process of another step, with the environment that it would have been started with.
    fn join(&self, container: &Container, pid: u32) -> Result<Handles, Failure> {
        let ignored = [
            ("--container-mounts", !self.request.mounts.is_empty()),
            (
                "--container-unshare",
                self.request.unshare != Default::default(),
            ),
            ("--container-writable", self.request.writable == Some(true)),
            ("--container-gpus", self.request.devices.gpus.is_some()),
            (
                "--container-device",
                !self.request.devices.devices.is_empty(),
            ),
        ];
        for (option, _) in ignored.iter().filter(|(_, given)| *given) {
            ui::warning(format_args!(
                "{option} is ignored, since the container runs already"
            ));
        }
        let mut handles = join::handles(pid)?;
        let spec = self.spec(Root::Container(container.clone()))?;
        let rootfs = Rootfs::new(handles.root.try_clone()?);
        let (uid, gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let mut identity = accounts::host_identity(uid, gid);
        if handles.root_inside {
            identity = accounts::root_identity(identity.user.shell);
        }
        let view = View::Mounted(&rootfs);
        let plan = Plan::for_view(&spec, view, &identity, container.is_adapted())?;
        let mut environment: Environment = plan.environment;
        for (name, value) in &plan.login {
            environment.set_default(name, value);
        }
        handles.environment = environment;
        let path = self.request.workdir.clone().or(plan.working_directory);
        if let Some(path) = path {
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
            let opened = rootfs.open(&path, flags);
            handles.directory = opened.map_err(|source| BuildError::Directory { path, source })?;
        }
        Ok(handles)
    }

    fn start_named(&self, container: Container) -> Result<(Handles, String, Keeper), Failure> {
        let shown = format!("container {}", container.name.display());
        let (handles, mount) = self.build(Root::Container(container.clone()))?;
        let shown = format!("{shown}, mount {mount}");
        let keeper = Keeper {
            saved: Some(container),
            ..Keeper::default()
        };
        Ok((handles, shown, keeper))
    }

    /// Gets the image, and makes the container of it: on disk where it has a name, or is to be saved.
    fn start_new(
        &mut self,
        tasks: &OwnedFd,
        resolved: Option<PathBuf>,
    ) -> Result<(Handles, String, Keeper), Failure> {
        let (image, importer) = self.image(tasks, resolved)?;
        let mut keeper = Keeper {
            importer,
            ..Keeper::default()
        };
        let shown = format!("image {}", image.display());
        let made = self.start_image(image, &mut keeper);
        match made {
            Ok((handles, mount)) => Ok((handles, format!("{shown}, mount {mount}"), keeper)),
            Err(failure) => {
                keeper.clean_up();
                Err(failure)
            }
        }
    }

    fn start_image(
        &mut self,
        image: PathBuf,
        keeper: &mut Keeper,
    ) -> Result<(Handles, String), Failure> {
        if self.request.name.is_none() && self.request.save.is_none() {
            return self.build(Root::Image(image));
        }
        let name = self.request.container_name();
        let creation = Creation {
            data_path: &self.config.data_path,
            runtime_path: &self.config.runtime_path,
            name: &name,
            image: &image,
            replace: false,
            unpack: false,
            threads: self.config.max_processors(),
            cancel: &Cancel::new(),
        };
        match named::create(&creation) {
            // Another step was as quick.
            Err(ContainerError::Exists { .. })
                if self.request.name.is_some() && self.request.mode != Mode::Create => {}
            Err(error) => return Err(Failure::from(error).during("preparing the container")),
            Ok(()) => {}
        }
        let mut container = Container::open(&self.config.data_path, &name)?;
        if self.request.name.is_none() {
            // What is saved is what the tasks have changed. Under its new name, it is removed sooner or later also where nobody is left to do so.
            self.config.writable = self.request.writable.unwrap_or(true);
            container = hidden(container, &self.config.data_path)?;
            keeper.removed = Some(container.directory.clone());
        }
        keeper.saved = Some(container.clone());
        self.build(Root::Container(container))
    }

    /// The image file: as it was named, in the store, or from the site's importer, which is given too. This process executes itself again after an import, which has threads.
    fn image(
        &self,
        tasks: &OwnedFd,
        resolved: Option<PathBuf>,
    ) -> Result<(PathBuf, Option<PathBuf>), Failure> {
        if let Some(path) = resolved {
            return Ok((path, None));
        }
        let uri = match self.request.source() {
            Some(ImageSource::File(path)) => return Ok((path, None)),
            Some(ImageSource::Uri(uri)) => uri,
            None => return Err(Failure::new(io::Error::other("no image is asked for"))),
        };
        let tasks = tasks.try_clone()?;
        std::thread::spawn(move || {
            channel::wait_until_closed(&tasks);
            // Whoever wanted the image is gone. What has arrived of it stays in the store; an image file appears whole or not at all.
            process::exit(1);
        });
        if self.tells() {
            ui::message(format_args!("importing docker image: {uri}"));
        }
        if let Some(importer) = &self.request.importer {
            let path =
                get(importer, &uri).map_err(|failure| failure.during("importing the image"))?;
            return Ok((path, Some(importer.clone())));
        }
        let wanted = stored::Wanted {
            uri: &uri,
            source: &SourceOptions::default(),
            image: &ImageOptions::default(),
            quiet: !self.tells(),
        };
        let path = stored::prepare(&wanted, self.context)
            .map_err(|failure| failure.during("importing the image"))?;
        if self.tells() {
            ui::message(format_args!("imported docker image: {uri}"));
        }
        let mut files = vec![REQUEST, TASKS];
        files.extend(self.helper.is_some().then_some(HELPER));
        sys::process::close_on_exec_but(&files)?;
        let words = ["cista", "slurm", "step", "--resolved"].map(OsString::from);
        let words = words
            .into_iter()
            .chain([path.into_os_string()])
            .map(|word| std::ffi::CString::new(word.into_encoded_bytes()))
            .collect::<Result<Vec<_>, _>>()?;
        observe::done();
        Err(StepError::Again(sys::again::execute(&words)).into())
    }

    fn spec(&self, root: Root) -> Result<Spec, Failure> {
        let mut mounts = self.request.entries()?;
        if let Some(script) = &self.request.script {
            let options = "x-create=file,bind,ro,nosuid,nodev";
            mounts.extend(build::file_mount(script, script, options));
        }
        if let Some(terminal) = &self.request.terminal {
            // Where ttyname(3) finds it.
            let console = Path::new("/dev/console");
            mounts.extend(build::file_mount(
                terminal,
                console,
                "x-create=file,bind,nofail,silent",
            ));
        }
        let mut files = Vec::new();
        let additions = Additions::load(&self.config.sources)?;
        files.extend(standard::pmi_file(&self.config, &additions));
        Ok(Spec {
            root,
            writable: self.config.writable,
            remap_root: self.config.remap_root,
            namespaces: self.request.unshare.or(self.config.namespaces),
            mounts,
            additions,
            devices: self.request.devices.clone(),
            script: None,
            rc: None,
            environment: self.request.environment.clone(),
            command: if self.request.entrypoint {
                entrypoint::command_line()
            } else {
                self.request.command.clone()
            },
            files,
            without_entrypoint: !self.request.entrypoint,
            helper: self.helper.clone(),
        })
    }

    fn build(&self, root: Root) -> Result<(Handles, String), Failure> {
        if observe::is_on() {
            observe::subject(match &root {
                Root::Image(path) => path.display().to_string(),
                Root::Container(container) => container.name.to_string_lossy().into_owned(),
            });
        }
        let spec = self.spec(root)?;
        let during = "starting the container";
        let built = build::build(
            &Construction {
                spec: &spec,
                config: &self.config,
                directory: self.request.workdir.as_deref(),
                entrypoint_log: self.request.entrypoint_log,
                tell: &|text| ui::message(format_args!("verbose: {text}")),
                warn: &|text| ui::warning(text),
            },
            &|error| ui::failure(&failure(error).during(during)),
        );
        match built.map_err(|error| failure(error).during(during))? {
            Some(built) => Ok(built),
            // It was shown where it happened.
            None => sys::process::exit(1),
        }
    }

    /// Answers until the step is over.
    fn serve(&self, tasks: &OwnedFd, answer: &Answer, keeper: &Keeper) -> Over {
        let files: Vec<BorrowedFd<'_>> = answer.files.iter().map(|file| file.as_fd()).collect();
        while let Some((letter, sockets)) = channel::receive(tasks) {
            let socket = sockets.into_iter().next();
            match (letter, socket) {
                (channel::END, _) => return Over::Ended,
                (channel::FINISH, Some(socket)) => {
                    let is_done = self.request.save.is_none() || self.save(keeper);
                    return Over::Finished(
                        socket,
                        if is_done { channel::YES } else { channel::NO },
                    );
                }
                // A task that is gone needs no answer.
                (channel::JOIN, Some(socket)) => {
                    let _ = channel::send(socket, channel::YES, &files);
                }
                _ => {}
            }
        }
        Over::Abandoned
    }

    /// Saves the container; true where that was done.
    fn save(&self, keeper: &Keeper) -> bool {
        let (Some(container), Some(path)) = (&keeper.saved, &self.request.save) else {
            return false;
        };
        // In a process of its own, since that of a container's files is one of a namespace, with threads.
        let saved = sys::process::spawn_helper(|| {
            if !rustix::process::geteuid().is_root() {
                // As root of a namespace the owner of a file can read it whatever its permissions are.
                let map = IdMap::Single { uid: 0, gid: 0 };
                let _ = identity_map::enter(map, UnshareFlags::empty());
            }
            match save(container, path, &self.config) {
                Ok(()) => 0,
                Err(failure) => {
                    ui::failure(&failure.during("saving the container"));
                    1
                }
            }
        });
        let saved = saved
            .and_then(sys::process::Helper::wait)
            .is_ok_and(|status| status == 0);
        if saved && self.tells() {
            ui::message(format_args!("saved the container to `{}`", path.display()));
        }
        saved
    }
}

fn save(container: &Container, path: &Path, config: &Config) -> Result<(), Failure> {
    let threads = config.max_processors();
    export::export(
        container,
        path,
        true,
        config.sources.number(&settings::TIME)?,
        threads,
        &Cancel::new(),
    )?;
    Ok(())
}

fn failure(error: BuildError) -> Failure {
    match error {
        BuildError::Start(error) => {
            let is_refused = matches!(error, StartError::UserNamespace(_));
            let failure = start::failure(error);
            if is_refused && failure.hint().is_none() {
                failure.with_hint("`cista check` on the node says what it lacks")
            } else {
                failure
            }
        }
        BuildError::Entrypoint(error) => {
            Failure::new(error).with_hint("`--no-container-entrypoint` does without it")
        }
        error => error.into(),
    }
}

/// Gives a container a name under which it is removed as what a dead process has left.
fn hidden(container: Container, data_path: &Path) -> Result<Container, Failure> {
    let directory = temporary::path(data_path, &container.name);
    std::fs::rename(&container.directory, &directory)?;
    let moved = |path: PathBuf| directory.join(path.file_name().unwrap_or_default());
    Ok(Container {
        content: match container.content {
            Content::Image(image) => Content::Image(moved(image)),
            Content::Tree(tree) => Content::Tree(moved(tree)),
        },
        directory: directory.clone(),
        ..container
    })
}

/// Has the site's importer get an image: it prints the path of a file.
fn get(importer: &Path, uri: &str) -> Result<PathBuf, Failure> {
    let failed = |source| StepError::Importer {
        importer: importer.to_owned(),
        source,
    };
    let mut command = process::Command::new(importer);
    command
        .args(["get", uri])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // It ends with the step.
    let output = sys::child::spawn_bound(&mut command)
        .and_then(process::Child::wait_with_output)
        .map_err(failed)?;
    if !output.status.success() {
        return Err(failed(io::Error::other(output.status.to_string())).into());
    }
    let path = PathBuf::from(OsStr::from_bytes(output.stdout.trim_ascii_end()));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(failed(io::Error::other(
            "it has not printed the absolute path of an image",
        ))
        .into())
    }
}
