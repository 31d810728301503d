//! Starting the holder of a container: the `cista` program, as the job's user.
//!
//! It is started from the process of the node's first task, before that becomes the user, so that it builds while slurmstepd prepares the tasks. It
//! is nobody's child there: a task must begin without children that its program does not know. It has a session of its own, no open
//! file but its own five, none of the job's variables that would change what programs do, and never a path that the user chose to be executed.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{Gid, Uid};

use crate::arguments::Arguments;
use crate::ffi::process::{self, Fork, Program};
use crate::ffi::slurm::Spank;
use crate::options::{Options, split_name};
use crate::wire::Text;

/// Where programs are looked for by the holder and by the hooks of the site.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of the job that are not for the holder: they choose libraries, code or languages for programs in general. Those that end in `_` or `%`
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

/// The user of a job.
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// The open files of the holder, besides nothing as its input.
pub(crate) struct Files<'a> {
    /// Where it is asked.
    pub(crate) requests: BorrowedFd<'a>,
    /// Where its messages go.
    pub(crate) messages: BorrowedFd<'a>,
}

/// Starts the holder.
///
/// # Errors
///
/// A text for the user. Failures of the new process itself come as messages.
pub(crate) fn start(
    spank: &Spank,
    options: &Options,
    arguments: &Arguments,
    files: &Files<'_>,
) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("cannot {what}: {error}");
    let user = match (spank.uid(), spank.gid(), spank.groups()) {
        (Some(uid), Some(gid), groups) => User {
            uid,
            gid,
            groups: groups.unwrap_or_else(|| vec![gid]),
        },
        _ => return Err("Slurm does not tell who the job's user is".into()),
    };
    let environment = spank.environment().unwrap_or_default();
    let request = request(spank, options, arguments, &environment)
        .into_file()
        .map_err(|error| failed("pass on what is asked for", error))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed("open `/dev/null`", error.into()))?;
    let path = CString::new(arguments.program.as_os_str().as_bytes())
        .map_err(|_| "the path of the program has a NUL byte in it".to_owned())?;
    let program = Program::new(
        path,
        vec![c"cista".into(), c"slurm".into(), c"step".into()],
        passed_on(environment),
    );
    let starting = Starting {
        files: [
            null.as_raw_fd(),
            files.messages.as_raw_fd(),
            files.messages.as_raw_fd(),
            request.as_raw_fd(),
            files.requests.as_raw_fd(),
        ],
        user,
        program,
        shown: arguments.program.display().to_string(),
    };
    // The process in between ends at once, so that the holder is nobody's child.
    match process::fork_silently().map_err(|error| failed("make a process", error))? {
        Fork::Child => match process::fork_silently() {
            Ok(Fork::Child) => starting.become_program(),
            Ok(Fork::Parent(_)) => process::exit_now(0),
            Err(_) => process::exit_now(1),
        },
        Fork::Parent(pid) if process::wait(pid) => Ok(()),
        Fork::Parent(_) => Err("cannot make a process for the container".into()),
    }
}

/// The new process, before it is the program.
struct Starting {
    files: [i32; 5],
    user: User,
    program: Program,
    shown: String,
}

impl Starting {
    fn become_program(&self) -> ! {
        let error = match self.give_up_everything() {
            Ok(()) => self.program.execute(),
            Err(error) => error,
        };
        let text = format!(
            "error: cannot execute `{}`: {error}\nhint: the administrator names the program by `program=PATH` in plugstack.conf, and installs it on every node\n",
            self.shown
        );
        let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
        process::exit_now(1)
    }

    /// Keeps of slurmstepd nothing but the working directory, the control group and the resource limits.
    fn give_up_everything(&self) -> io::Result<()> {
        // A session of its own: it gets no signals of terminals or of the tasks' process group.
        let _ = rustix::process::setsid();
        process::reset_signals();
        process::keep_only(&self.files)?;
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
) -> Text {
    let mut text = Text::new();
    let mut number = |key, value: Option<u32>| {
        if let Some(value) = value {
            text.add(key, value.to_string());
        }
    };
    number("job", spank.job());
    number("step", spank.step());
    number("local-tasks", spank.local_tasks());
    number("tasks", spank.total_tasks());
    if let Some(image) = &options.image {
        text.add("image", image);
    }
    if let Some(value) = &options.name {
        let (name, mode) = split_name(value);
        text.add("name", name);
        text.add("mode", mode.unwrap_or(OsStr::new("auto")));
    }
    for mount in &options.mounts {
        text.add("mount", mount);
    }
    if let Some(directory) = &options.workdir {
        text.add("workdir", directory);
    }
    if let Some(path) = &options.save {
        text.add("save", path);
    }
    for name in &options.unshare {
        text.add("unshare", name);
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
    for name in &options.environment {
        let of_name = environment
            .iter()
            .find(|assignment| name_of(assignment) == name.as_os_str());
        if let Some(assignment) = of_name {
            text.add("env", assignment);
        }
    }
    let command = spank.arguments().unwrap_or_default();
    if spank.step() == Some(crate::step::BATCH)
        && let Some(script) = command.first()
    {
        text.add("script", script);
    }
    for word in &command {
        text.add("command", word);
    }
    if let Some(importer) = &arguments.importer {
        text.add("importer", importer);
    }
    text.add("runtime-path", &arguments.runtime_path);
    text
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
