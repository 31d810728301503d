//! What a start will do inside a root file system, worked out from what the image says.
//!
//! For an image without a container's changes this happens before anything is mounted, through the image's reader, and includes the [`Seed`] of
//! its upper layer. Otherwise it happens in the mounted root.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::accounts::{self, Identity};
use super::environment::{DEFAULT_PATH, Environment};
use super::facts::{self, Facts, FactsError, Start};
use super::home;
use super::program;
use super::seed::Seed;
use super::start::Spec;
use super::unmounted::Unmounted;
use super::usual;
use super::view::View;
use crate::config::host_variable;

/// Longest `/etc/passwd`, `/etc/group` and `/etc/default/useradd` of an image that are read, in bytes.
const MAX_ACCOUNTS: u64 = 16 << 20;

/// Where Debian's apt has its configuration, a file of it that is ours, and what that says.
const APT: &str = "/etc/apt/apt.conf.d";
const APT_SANDBOX: &str = "/etc/apt/apt.conf.d/cista";
const APT_AS_ROOT: &[u8] = b"APT::Sandbox::User \"root\";\n";

/// What is done inside a root file system.
#[derive(Debug)]
pub struct Plan {
    /// The command line.
    pub line: Vec<OsString>,
    /// The program's environment, but for what a login sets.
    pub environment: Environment,
    /// What a login sets, where it is missing in the end.
    pub login: Vec<(&'static str, OsString)>,
    /// Where it starts; None for the home directory.
    pub working_directory: Option<PathBuf>,
    /// Directories that stay writable when the root is not.
    pub volumes: Vec<PathBuf>,
    /// The user's home directory.
    pub home: PathBuf,
    /// Files that are written.
    pub files: Vec<File>,
    /// The upper layer's first content; None where the root is mounted already.
    pub seed: Option<Seed>,
    /// Paths of the program that are known to lead nowhere.
    pub absent: Vec<OsString>,
    /// Where the program is, if that is known.
    pub program: Option<PathBuf>,
}

/// A file that is written.
#[derive(Debug)]
pub struct File {
    /// Path in the container.
    pub path: &'static str,
    /// Its content.
    pub content: Vec<u8>,
    /// Whether it is in the seed.
    pub is_seeded: bool,
}

impl File {
    /// A file with a content; None where it has that already.
    fn changed(path: &'static str, old: &[u8], content: Vec<u8>) -> Option<Self> {
        (old != content).then_some(Self {
            path,
            content,
            is_seeded: false,
        })
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The image does not say how to run it.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// A file of the image cannot be read.
    #[error("cannot read `{path}` of the image")]
    Read {
        /// Path in the image.
        path: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl Plan {
    /// Plans for a root whose changes end with the container, before it is mounted. `adapted` as for [`Self::for_view`].
    ///
    /// # Errors
    ///
    /// A file of the image that cannot be read or understood.
    pub fn for_image(
        spec: &Spec,
        image: &Unmounted<'_>,
        identity: &Identity,
        adapted: bool,
    ) -> Result<Self, PlanError> {
        let mut plan = Self::for_view(spec, View::Unmounted(image), identity, adapted)?;
        let mut seed = Seed::default();
        // What finds no place is left to the mounted root, where the error is told if there is one.
        for path in usual::directories() {
            let _ = seed.mount_directory(image, path);
        }
        for path in usual::files() {
            let _ = seed.file(image, path, Vec::new());
        }
        for file in &mut plan.files {
            let added = seed.file(image, Path::new(file.path), file.content.clone());
            file.is_seeded = matches!(added, Ok(true));
        }
        if home::is_possible(&plan.home) {
            let _ = seed.home(image, &plan.home, Path::new(home::SKELETON));
        }
        plan.seed = Some(seed);
        Ok(plan)
    }

    /// Finds the program in an image, where nothing but what is in the seed will be mounted or run: something mounted may be anywhere.
    pub fn find_program(&mut self, image: &Unmounted<'_>) {
        if let Some(seed) = &self.seed {
            (self.absent, self.program) = look_for_program(self, image, seed);
        }
    }

    /// Plans for a root file system; `adapted` where its command script or environment is not the image's own any more.
    ///
    /// # Errors
    ///
    /// A file of the image that cannot be read or understood.
    pub fn for_view(
        spec: &Spec,
        view: View<'_>,
        identity: &Identity,
        adapted: bool,
    ) -> Result<Self, PlanError> {
        let mut facts = facts::read(view, adapted, host_variable)?;
        if spec.rc.is_some() {
            facts.start = Start::Script;
        }
        if spec.without_entrypoint {
            facts.start = Start::Command;
        }
        let read = |path| {
            view.read(Path::new(path), MAX_ACCOUNTS)
                .map(Option::unwrap_or_default)
                .map_err(|source| PlanError::Read { path, source })
        };
        let is_executable = |shell: &[u8]| view.is_executable(Path::new(OsStr::from_bytes(shell)));
        let mut shell = identity.user.shell.clone();
        if !shell.starts_with(b"/") || !is_executable(&shell) {
            let useradd = read("/etc/default/useradd")?;
            shell = accounts::default_shell(&useradd);
        }
        let debian = view.file_type(Path::new("/etc/debian_version")).is_some();
        let old_passwd = read("/etc/passwd")?;
        let new_passwd = accounts::passwd(identity, &shell, &old_passwd, debian);
        let old_group = read("/etc/group")?;
        let new_group = accounts::group(identity, &old_group, debian);
        let files = [
            File::changed("/etc/passwd", &old_passwd, new_passwd),
            File::changed("/etc/group", &old_group, new_group),
            // apt would drop its privileges to a user that has no id here.
            match debian
                && spec.remap_root
                && view.file_type(Path::new(APT)) == Some(FileType::Directory)
            {
                true => File::changed(APT_SANDBOX, b"", APT_AS_ROOT.to_vec()),
                false => None,
            },
        ];
        let environment = environment(spec, &facts);
        Ok(Self {
            login: login(identity, &shell),
            line: facts
                .start
                .command_line(&spec.command, OsStr::from_bytes(&shell)),
            environment,
            working_directory: facts.working_directory,
            volumes: facts.volumes,
            home: PathBuf::from(OsString::from_vec(identity.user.home.clone())),
            files: files.into_iter().flatten().collect(),
            seed: None,
            absent: Vec::new(),
            program: None,
        })
    }
}

/// The image's variables, then the terminal, what is added to every container, what is asked for.
fn environment(spec: &Spec, facts: &Facts) -> Environment {
    let mut environment = facts.environment.clone();
    if let Some(terminal) = host_variable(OsStr::new("TERM")) {
        environment.set("TERM", terminal);
    }
    for file in &spec.additions.environment {
        environment.set_lines(file, host_variable);
    }
    for (name, value) in &spec.environment {
        environment.set(name, value);
    }
    environment
}

fn login(identity: &Identity, shell: &[u8]) -> Vec<(&'static str, OsString)> {
    let text = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    vec![
        ("HOME", text(&identity.user.home)),
        ("USER", text(&identity.user.name)),
        ("LOGNAME", text(&identity.user.name)),
        ("SHELL", text(shell)),
        ("PATH", DEFAULT_PATH.into()),
    ]
}

/// The places of the search path at which an image certainly has no such program, since asking a mounted image for them takes its time, and the first
/// place at which it has one.
fn look_for_program(
    plan: &Plan,
    image: &Unmounted<'_>,
    seed: &Seed,
) -> (Vec<OsString>, Option<PathBuf>) {
    let mut absent = Vec::new();
    let Some(program) = plan.line.first() else {
        return (absent, None);
    };
    for candidate in program::candidates(program, &plan.environment) {
        let path = Path::new(&candidate);
        match image.resolve(path) {
            Ok(found) if path.is_absolute() && !seed.covers(&found.path) => match found.node {
                Some(_) => return (absent, Some(Path::new("/").join(found.path))),
                None => absent.push(candidate),
            },
            _ => return (absent, None),
        }
    }
    (absent, None)
}
