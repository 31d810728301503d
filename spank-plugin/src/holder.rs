//! Starting the holder of a container: the `cista` program, as the job's user.
//!
//! It is started from the process of the node's first task, before that becomes the user, so that it builds while slurmstepd prepares the tasks. It
//! is nobody's child there: a task must begin without children that its program does not know. In between stands the [`helper`], the
//! last process that is root: it waits for the word to go, starts the holder, and does for it what only root can, as long as the container is being built.
//!
//! The holder has a session of its own, no open file but its own six, none of the job's variables that would change what programs do, and
//! what is executed is never a path that the user chose.
//!
//! Where the node has GPUs the word comes later, from the task's last hook: only then does the environment say which of them the task has (see [`gpus`]).

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{Gid, Uid};

use crate::arguments::{Arguments, Mount};
use crate::ffi::process::{self, Fork, Program};
use crate::ffi::slurm::Spank;
use crate::gpus;
use crate::helper::{self, User};
use crate::options::Options;
use crate::values::split_name;
use crate::wire::{self, Text};

/// Where programs are looked for by the holder and by the hooks of the site.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of the job that are not for the holder: they choose libraries, code or languages for programs in general. Those that end in `_`
/// stand for all that begin so.
const NOT_PASSED_ON: &[&str] = &[
    "PATH",
    "LD_",
    "LC_",
    "LANG",
    "LANGUAGE",
    "LOCPATH",
    "NLSPATH",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "MALLOC_",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "RES_OPTIONS",
    "RESOLV_",
    "IFS",
    "ENV",
    "BASH_",
    "BASHOPTS",
    "SHELLOPTS",
    "CDPATH",
    "POSIXLY_CORRECT",
    "PYTHONHOME",
    "PYTHONPATH",
    "PERL5LIB",
    "PERL5OPT",
    "RUST_",
    "TMPDIR",
    // The holder is no task: a batch script's own numbers would be taken for it.
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_TASK_PID",
    "PMI_FD",
];

/// How long slurmstepd waits until what was left is removed.
const REMOVES: Duration = Duration::from_secs(3);

/// The first file of a process besides standard input, output and error that is searched for a terminal, and the last.
const FILES: std::ops::Range<i32> = 3..256;

/// The open files of the holder, besides nothing as its input.
pub(crate) struct Files<'a> {
    /// Where it is asked.
    pub(crate) requests: BorrowedFd<'a>,
    /// Where its messages go.
    pub(crate) messages: BorrowedFd<'a>,
    /// Where the tasks say which GPUs they have.
    pub(crate) reports: BorrowedFd<'a>,
}

/// A holder that waits for the word.
pub(crate) struct Waiting(OwnedFd);

impl Waiting {
    /// Gives the word, with the environment of the step. With `waits`, what the tasks say of their GPUs is waited for.
    ///
    /// # Errors
    ///
    /// A text for the user.
    pub(crate) fn go(
        &self,
        environment: Vec<OsString>,
        uid: Option<u32>,
        waits: bool,
    ) -> Result<(), String> {
        let environment = with_home(environment, uid);
        let mut text = Text::new();
        for assignment in passed_on(environment) {
            text.add("env", OsStr::from_bytes(assignment.as_bytes()));
        }
        text.into_file()
            .and_then(|file| {
                let letter = if waits { wire::GPUS } else { wire::YES };
                wire::send(&self.0, letter, Some(file.as_fd()))
            })
            .map_err(|error| format!("cannot start `cista`: {error}"))
    }
}

/// `srun --export=NONE` leaves nothing by which the user's settings, logins and containers could be found.
fn with_home(mut environment: Vec<OsString>, uid: Option<u32>) -> Vec<OsString> {
    if !environment.iter().any(|it| name_of(it) == "HOME")
        && let Some(home) = uid.and_then(process::home)
    {
        let mut assignment = OsString::from("HOME=");
        assignment.push(home);
        environment.push(assignment);
    }
    environment
}

/// Has `cista`, as the job's user, remove what a holder that was killed has left on disk of a container that ends with the step. To be called in slurmstepd, which
/// nobody kills with the step's processes.
pub(crate) fn remove_leftovers(spank: &Spank, program: &Path) {
    let (Some(uid), Some(gid), Some(job), Some(step)) =
        (spank.uid(), spank.gid(), spank.job(), spank.step())
    else {
        return;
    };
    let environment = with_home(spank.environment().unwrap_or_default(), Some(uid));
    let owner = CString::new(format!("{job}.{step}")).unwrap_or_default();
    let program = Program::new(
        CString::new(program.as_os_str().as_bytes()).unwrap_or_default(),
        vec![c"cista".into(), c"slurm".into(), c"epilog".into(), owner],
        passed_on(environment),
    );
    let groups = spank.groups().unwrap_or_else(|| vec![gid]);
    let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
    process::run_as(
        &program,
        Uid::from_raw(uid),
        Gid::from_raw(gid),
        &groups,
        REMOVES,
    );
}

/// Prepares the start of the holder.
///
/// # Errors
///
/// A text for the user. Failures of the new processes come as messages.
pub(crate) fn prepare(
    spank: &Spank,
    options: &Options,
    arguments: &Arguments,
    files: &Files<'_>,
) -> Result<Waiting, String> {
    let failed = |what: &str, error: io::Error| format!("cannot {what}: {error}");
    let user = match (spank.uid(), spank.gid(), spank.groups()) {
        (Some(uid), Some(gid), groups) => User {
            uid,
            gid,
            groups: groups.unwrap_or_else(|| vec![gid]),
        },
        _ => return Err("Slurm does not tell who the job's user is".into()),
    };
    let runtime_path = runtime_directory(&arguments.runtime_path, &user);
    let environment = spank.environment().unwrap_or_default();
    let request = request(spank, options, arguments, &environment, runtime_path)
        .into_file()
        .map_err(|error| failed("pass on what is asked for", error))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed("open `/dev/null`", error.into()))?;
    let (go, word) = wire::pair().map_err(|error| failed("make a socket", error))?;
    let starting = Starting {
        files: [
            null.as_raw_fd(),
            files.messages.as_raw_fd(),
            files.messages.as_raw_fd(),
            request.as_raw_fd(),
            files.requests.as_raw_fd(),
            files.reports.as_raw_fd(),
        ],
        tasks: spank.local_tasks().unwrap_or(1),
        user,
        arguments: arguments.clone(),
    };
    // The process in between ends at once, so that the helper is nobody's child.
    match process::fork_silently().map_err(|error| failed("make a process", error))? {
        Fork::Child => match process::fork_silently() {
            Ok(Fork::Child) => starting.wait_and_start(&word),
            Ok(Fork::Parent(_)) => process::exit_now(0),
            Err(_) => process::exit_now(1),
        },
        Fork::Parent(pid) if process::wait(pid) => Ok(Waiting(go)),
        Fork::Parent(_) => Err("cannot make a process for the container".into()),
    }
}

/// The helper, and the holder before it is the program.
struct Starting {
    files: [i32; 6],
    /// Tasks on this node.
    tasks: u32,
    user: User,
    arguments: Arguments,
}

impl Starting {
    /// In the helper, which is root and has all files of slurmstepd's until it closes them.
    fn wait_and_start(&self, word: &OwnedFd) -> ! {
        // A session of its own: it gets no signals of terminals or of the tasks' process group.
        let _ = rustix::process::setsid();
        process::reset_signals();
        let _ = rustix::thread::set_name(c"cista-helper");
        // Other ends of the step's sockets would keep the holder from seeing that the step is over.
        let mut files = self.files.to_vec();
        files.push(word.as_raw_fd());
        if process::keep_only(&files).is_err() {
            process::exit_now(1);
        }
        let [null, out, err, request, requests, reports, word] =
            [0, 1, 2, 3, 4, 5, 6].map(process::adopt);
        let Some(environment) = wire::receive(&word).and_then(|(letter, files)| {
            let records = wire::read(files.into_iter().next()?).ok()??;
            let environment = records.into_iter().map(|(_, value)| value).collect();
            Some(match letter {
                wire::GPUS => gpus::of_all(environment, &gpus::listen(&reports, self.tasks)),
                _ => environment,
            })
        }) else {
            // The task is gone.
            process::exit_now(0);
        };
        drop((word, reports));
        let program = Program::new(
            CString::new(self.arguments.program.as_os_str().as_bytes()).unwrap_or_default(),
            vec![c"cista".into(), c"slurm".into(), c"step".into()],
            environment
                .into_iter()
                .filter_map(|assignment| CString::new(assignment.into_vec()).ok())
                .collect(),
        );
        let Ok((ours, theirs)) = wire::pair() else {
            process::exit_now(1);
        };
        match process::fork_silently() {
            Ok(Fork::Child) => self.become_program(&program, &theirs),
            Ok(Fork::Parent(_)) => {
                drop((null, out, err, request, requests, theirs));
                helper::serve(&ours, &self.user, &self.arguments);
                process::exit_now(0)
            }
            Err(_) => process::exit_now(1),
        }
    }

    /// In the holder.
    fn become_program(&self, program: &Program, helper: &OwnedFd) -> ! {
        let error = match self.give_up_everything(helper) {
            Ok(()) => program.execute(),
            Err(error) => error,
        };
        let text = format!(
            "error: cannot execute `{}`: {error}\nhint: the administrator names the program by `program=PATH` in plugstack.conf, and installs it on every node\n",
            self.arguments.program.display()
        );
        let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
        process::exit_now(1)
    }

    /// Keeps of slurmstepd nothing but the working directory, the control group and the resource limits.
    fn give_up_everything(&self, helper: &OwnedFd) -> io::Result<()> {
        let _ = rustix::process::setsid();
        process::keep_only(&[0, 1, 2, 3, 4, helper.as_raw_fd()])?;
        let groups: Vec<Gid> = self
            .user
            .groups
            .iter()
            .copied()
            .map(Gid::from_raw)
            .collect();
        rustix::thread::set_thread_groups(&groups)?;
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    }
}

/// Makes the user's directory for the state of running containers, as root: there may be no login that has made one.
fn runtime_directory(parent: &Path, user: &User) -> Option<PathBuf> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let _ = rustix::fs::mkdir(parent, Mode::from_raw_mode(0o755));
    let parent_fd = rustix::fs::open(parent, flags, Mode::empty()).ok()?;
    let status = rustix::fs::fstat(&parent_fd).ok()?;
    // Where others can put something, what is there may be a trap.
    if status.st_uid != 0 || status.st_mode & 0o022 != 0 {
        return None;
    }
    let name = user.uid.to_string();
    match rustix::fs::mkdirat(&parent_fd, &name, Mode::from_raw_mode(0o700)) {
        Ok(()) => {
            let own = rustix::fs::openat(&parent_fd, &name, flags, Mode::empty()).ok()?;
            let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
            rustix::fs::fchown(&own, Some(uid), Some(gid)).ok()?;
        }
        Err(rustix::io::Errno::EXIST) => {}
        Err(_) => return None,
    }
    Some(parent.join(name))
}

/// The environment of the holder.
fn passed_on(environment: Vec<OsString>) -> Vec<CString> {
    environment
        .into_iter()
        .filter(|assignment| !is_withheld(assignment))
        .filter_map(|assignment| CString::new(assignment.into_vec()).ok())
        .chain([CString::new(PATH).unwrap_or_default()])
        .collect()
}

fn is_withheld(assignment: &OsStr) -> bool {
    let bytes = assignment.as_bytes();
    let name = bytes.split(|&byte| byte == b'=').next().unwrap_or(bytes);
    NOT_PASSED_ON.iter().any(|withheld| {
        let withheld = withheld.as_bytes();
        name == withheld || (withheld.ends_with(b"_") && name.starts_with(withheld))
    })
}

/// What is asked for, as text.
fn request(
    spank: &Spank,
    options: &Options,
    arguments: &Arguments,
    environment: &[OsString],
    runtime_path: Option<PathBuf>,
) -> Text {
    let mut text = Text::new();
    for (key, value) in [
        ("job", spank.job()),
        ("step", spank.step()),
        ("local-tasks", spank.local_tasks()),
        ("tasks", spank.total_tasks()),
    ] {
        if let Some(value) = value {
            text.add(key, value.to_string());
        }
    }
    if let Some(value) = &options.name {
        let (name, mode) = split_name(value);
        text.add("name", name);
        text.add("mode", mode.unwrap_or(OsStr::new("auto")));
    }
    let command = spank.arguments().unwrap_or_default();
    let is_batch = spank.step() == Some(crate::step::BATCH);
    let importer = arguments.importer.as_ref().map(OsString::from);
    let terminal = terminal();
    let mount = match arguments.mount {
        Mount::Fuse => "fuse",
        Mount::Kernel => "kernel",
        Mount::Auto => "auto",
    };
    text.add("image-mount", mount);
    let script = command.first().filter(|_| is_batch);
    let one = [
        ("image", options.image.as_ref()),
        ("workdir", options.workdir.as_ref()),
        ("save", options.save.as_ref()),
        ("script", script),
        ("importer", importer.as_ref()),
        ("terminal", terminal.as_ref()),
        ("gpus", options.gpus.as_ref()),
    ];
    for (key, value) in one {
        if let Some(value) = value {
            text.add(key, value);
        }
    }
    let entrypoint = options.entrypoint.unwrap_or(arguments.execute_entrypoint);
    for (key, value) in [
        ("mount-home", options.mount_home),
        ("remap-root", options.remap_root),
        ("writable", options.writable),
        ("entrypoint", Some(entrypoint)),
        ("entrypoint-log", options.entrypoint_log),
        ("job-scope", Some(arguments.job_scope)),
    ] {
        if let Some(value) = value {
            text.add(key, if value { "yes" } else { "no" });
        }
    }
    for mount in &options.mounts {
        text.add("mount", mount);
    }
    for name in &options.unshare {
        text.add("unshare", name);
    }
    for name in &options.devices {
        text.add("device", name);
    }
    for assignment in environment {
        if options.environment.contains(name_of(assignment)) {
            text.add("env", assignment);
        }
    }
    for word in &command {
        text.add("command", word);
    }
    if let Some(path) = runtime_path {
        text.add("runtime-path", path);
    }
    text
}

/// The terminal of the step, which slurmstepd has opened for its first task: that of `srun --pty`.
fn terminal() -> Option<OsString> {
    FILES
        .filter_map(process::terminal)
        .find(|path| path.as_bytes().starts_with(b"/dev/pts/"))
}

/// The name of a variable in `NAME=VALUE`.
pub(crate) fn name_of(assignment: &OsStr) -> &OsStr {
    let bytes = assignment.as_bytes();
    let end = bytes.iter().position(|&byte| byte == b'=');
    OsStr::from_bytes(&bytes[..end.unwrap_or(bytes.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_programs_is_not_passed_on() {
        for (assignment, passed) in [
            ("HOME=/home/u", true),
            ("SLURM_JOB_ID=1", true),
            ("LD_PRELOAD=/x.so", false),
            ("LD_LIBRARY_PATH=/x", false),
            ("PATH=/x", false),
            ("PATHS=/x", true),
            ("BASH_FUNC_ls%%=() { true; }", false),
            ("LANG=C", false),
            ("LANGX=C", true),
            ("SLURM_PROCID=0", false),
        ] {
            assert_eq!(!is_withheld(OsStr::new(assignment)), passed, "{assignment}");
        }
        let environment = passed_on(vec!["PATH=/evil".into(), "A=1".into()]);
        assert_eq!(environment.len(), 2);
        assert_eq!(environment[1].as_bytes(), PATH.as_bytes());
    }
}
