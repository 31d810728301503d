//! What one test has: a user, a home, directories, a `cista` of its own, and the promise that nothing stays behind.
//!
//! Every environment has its own hard link to the `cista` program. So a process that a test left behind, a FUSE server
//! for instance, is found by the path that it executes, while other tests run beside it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::artifacts::{self, Profile};
use crate::error::{HarnessError, IoContext as _};
use crate::image::{Image, Images, Recipe};
use crate::process;
use crate::program::Program;
use crate::pty::ON_TERMINAL;
use crate::registry::Registry;
use crate::slurm::Cluster;
use crate::slurm::login::marked_processes;
use crate::user::{User, we_are_root};

/// How long a process of `cista` may outlive the command that it served, when nothing measures it more strictly.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(2);

/// What the tests of one process share: the images, the registry, a directory for all.
#[derive(Debug)]
pub struct Session {
    profile: Profile,
    scratch: PathBuf,
    images: Images,
    registry: OnceLock<Registry>,
    /// Files that images were imported to; a slot is locked while its file is made.
    imported: Mutex<HashMap<Recipe, Arc<Mutex<Option<PathBuf>>>>>,
    starting: Mutex<()>,
    cluster: OnceLock<Cluster>,
    user: User,
}

impl Session {
    /// Begins a session with the `cista` of a profile. `say` is told what is built.
    pub fn start(profile: Profile, say: fn(&str)) -> Result<Self, HarnessError> {
        let images = Images::open(&artifacts::target(), say)?;
        let user = User::unprivileged()?;
        let base = std::env::var_os("CISTA_TEST_SCRATCH")
            .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        remove_abandoned(&base);
        let scratch = base.join(format!("cista-test-{}", std::process::id()));
        std::fs::create_dir_all(scratch.join("bin")).context("create", &scratch)?;
        let program = artifacts::cista(profile)?;
        // The ordinary user may not get at where cargo put it.
        let copy = scratch.join("bin/cista");
        std::fs::copy(&program, &copy).context("copy", &program)?;
        set_mode(&copy, 0o755)?;
        Ok(Self {
            profile,
            scratch,
            images,
            registry: OnceLock::new(),
            imported: Mutex::default(),
            starting: Mutex::default(),
            cluster: OnceLock::new(),
            user,
        })
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The user without privileges.
    #[must_use]
    pub fn user(&self) -> &User {
        &self.user
    }

    /// The directory of this session.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The registry, started when it is first asked for.
    pub fn registry(&self) -> Result<&Registry, HarnessError> {
        let _one_at_a_time = lock(&self.starting);
        if let Some(registry) = self.registry.get() {
            return Ok(registry);
        }
        let registry = Registry::start(
            &self.images.registry_storage(),
            &self.scratch.join("registry"),
        )?;
        Ok(self.registry.get_or_init(|| registry))
    }

    /// The Slurm cluster, started when it is first asked for.
    pub fn cluster(&self) -> Result<&Cluster, HarnessError> {
        let _one_at_a_time = lock(&self.starting);
        if let Some(cluster) = self.cluster.get() {
            return Ok(cluster);
        }
        let cluster = Cluster::start(
            &self.scratch.join("cluster"),
            &self.scratch.join("bin/cista"),
            &artifacts::plugin(self.profile)?,
        )?;
        Ok(self.cluster.get_or_init(|| cluster))
    }

    /// The reference of an image in the registry; it is built and pushed unless it is there.
    pub fn uri(&self, recipe: Recipe) -> Result<String, HarnessError> {
        let image = self.images.get(recipe)?;
        self.images.push(&image, self.registry()?)?;
        Ok(image.uri(self.registry()?))
    }

    /// An image file that `cista import` made of an image, once for all tests.
    pub fn imported(&self, recipe: Recipe) -> Result<PathBuf, HarnessError> {
        let slot = Arc::clone(lock(&self.imported).entry(recipe).or_default());
        let mut slot = lock(&slot);
        if let Some(path) = &*slot {
            return Ok(path.clone());
        }
        let uri = self.uri(recipe)?;
        let environment = self.environment(&format!("imported-{}", recipe.slug()), false)?;
        let made = environment.path("image.sqsh");
        environment
            .cista(["import", "-q", "-o"])
            .arg(&made)
            .arg(uri)
            .check()?;
        let kept = self.scratch.join(format!("{}.sqsh", recipe.slug()));
        std::fs::rename(&made, &kept).context("rename", &made)?;
        set_mode(&kept, 0o644)?;
        *slot = Some(kept.clone());
        Ok(kept)
    }

    /// A new environment for the test of a name, as root or as the user without privileges.
    pub fn environment(
        &self,
        name: &str,
        as_root: bool,
    ) -> Result<TestEnvironment<'_>, HarnessError> {
        let user = if as_root {
            User::current()?
        } else {
            self.user.clone()
        };
        TestEnvironment::create(self, name, user)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // These first: they write their logs here.
        drop(self.cluster.take());
        drop(self.registry.take());
        if std::env::var_os("CISTA_TEST_KEEP").is_none() {
            remove_tree(&self.scratch);
        }
    }
}

/// What one test has.
#[derive(Debug)]
pub struct TestEnvironment<'a> {
    session: &'a Session,
    root: PathBuf,
    user: User,
}

impl<'a> TestEnvironment<'a> {
    fn create(session: &'a Session, name: &str, user: User) -> Result<Self, HarnessError> {
        let root = session
            .scratch
            .join(format!("{}-{}", name.replace("::", "-"), user.uid));
        let environment = Self {
            session,
            root,
            user,
        };
        for below in [
            "", "home", "work", "runtime", "cache", "data", "config", "bin",
        ] {
            let path = environment.root.join(below);
            std::fs::create_dir(&path).context("create", &path)?;
            environment.give(&path)?;
        }
        set_mode(&environment.root.join("runtime"), 0o700)?;
        let program = session.scratch.join("bin/cista");
        std::fs::hard_link(&program, environment.program_path()).context("link", &program)?;
        Ok(environment)
    }

    /// What all tests share.
    #[must_use]
    pub fn session(&self) -> &'a Session {
        self.session
    }

    /// The user whose test this is.
    #[must_use]
    pub fn user(&self) -> &User {
        &self.user
    }

    /// A path in the working directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join("work").join(name)
    }

    /// The home directory.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// The store: `XDG_CACHE_HOME/cista`.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join("cache/cista")
    }

    /// Makes a file or directory belong to the user of this environment.
    pub fn give(&self, path: &Path) -> Result<(), HarnessError> {
        if self.user.is_current() {
            return Ok(());
        }
        chown(path, Some(self.user.uid), Some(self.user.gid)).context("give away", path)
    }

    /// Writes a file below `XDG_CONFIG_HOME`.
    pub fn configure(&self, name: &str, content: &str) -> Result<(), HarnessError> {
        let path = self.root.join("config").join(name);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).context("create", directory)?;
            self.give(directory)?;
        }
        std::fs::write(&path, content).context("write", &path)?;
        self.give(&path)
    }

    /// Writes a file of the user into the working directory.
    pub fn write(
        &self,
        name: &str,
        content: impl AsRef<[u8]>,
        mode: u32,
    ) -> Result<PathBuf, HarnessError> {
        let path = self.path(name);
        std::fs::write(&path, content).context("write", &path)?;
        set_mode(&path, mode)?;
        self.give(&path)?;
        Ok(path)
    }

    /// Makes a directory of the user in the working directory.
    pub fn directory(&self, name: &str) -> Result<PathBuf, HarnessError> {
        let path = self.path(name);
        std::fs::create_dir(&path).context("create", &path)?;
        self.give(&path)?;
        Ok(path)
    }

    /// Copies an image's layout into the working directory, to break it, and returns its directory.
    pub fn copy_of(&self, image: &Image, name: &str) -> Result<PathBuf, HarnessError> {
        let path = self.path(name);
        Program::new("cp")
            .args(["--recursive", "--no-target-directory"])
            .arg(image.layout.root())
            .arg(&path)
            .check()?;
        if !self.user.is_current() {
            Program::new("chown")
                .args([
                    "--recursive",
                    &format!("{}:{}", self.user.uid, self.user.gid),
                ])
                .arg(&path)
                .check()?;
        }
        Ok(path)
    }

    /// `cista` with arguments, as this environment's user, in its working directory.
    pub fn cista(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Program {
        self.program(self.program_path()).args(args)
    }

    /// `cista` with arguments, on a terminal that [`crate::pty::Terminal`] gives.
    pub fn cista_on_terminal(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Program {
        self.program(ON_TERMINAL[0])
            .args(&ON_TERMINAL[1..])
            .arg(self.program_path())
            .args(args)
    }

    /// Another program, with the same user, environment and working directory.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Program {
        Program::new(program)
            .env_only(self.variables())
            .user(&self.user)
            .current_dir(self.path(""))
    }

    /// The environment variables of the programs: nothing of ours but the search path.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, OsString)> {
        let below = |name: &str| self.root.join(name).into_os_string();
        vec![
            (
                "PATH".into(),
                "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into(),
            ),
            ("HOME".into(), below("home")),
            ("USER".into(), self.user.name.clone().into()),
            ("LOGNAME".into(), self.user.name.clone().into()),
            ("LC_ALL".into(), "C.UTF-8".into()),
            ("TERM".into(), "xterm".into()),
            ("XDG_RUNTIME_DIR".into(), below("runtime")),
            ("XDG_CACHE_HOME".into(), below("cache")),
            ("XDG_DATA_HOME".into(), below("data")),
            ("XDG_CONFIG_HOME".into(), below("config")),
        ]
    }

    /// The `cista` of this environment.
    #[must_use]
    pub fn program_path(&self) -> PathBuf {
        self.root.join("bin/cista")
    }

    /// The names in the working directory, sorted.
    pub fn files(&self) -> Result<Vec<String>, HarnessError> {
        names_in(&self.path(""))
    }

    /// What is left of commands that have ended: processes, mounts, temporary files. Nothing should be.
    pub fn leftovers(&self) -> Result<Vec<String>, HarnessError> {
        let mut found = Vec::new();
        if process::wait_until_none_executes(&self.program_path(), LEFTOVER_LIMIT).is_none() {
            for pid in process::executing(&self.program_path()) {
                found.push(format!("process {pid}"));
            }
        }
        if self.session.cluster.get().is_some() {
            found.extend(marked_processes(&self.path(""), LEFTOVER_LIMIT));
        }
        for mount in process::mounts_below(&self.root) {
            found.push(format!("mount {}", mount.display()));
        }
        for directory in ["work", "runtime", "cache"] {
            for file in crate::listing::files_below(&self.root.join(directory))? {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                if name.contains(".part") || name.contains(".tmp") {
                    found.push(format!("file {}", file.display()));
                }
            }
        }
        Ok(found)
    }
}

impl Drop for TestEnvironment<'_> {
    fn drop(&mut self) {
        if std::env::var_os("CISTA_TEST_KEEP").is_none() {
            remove_tree(&self.root);
        }
    }
}

/// Locks a mutex; what a panicking test left in it is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names in a directory, sorted.
pub fn names_in(directory: &Path) -> Result<Vec<String>, HarnessError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).context("read", directory)? {
        let name = entry.context("read", directory)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Sets the permission bits of a file.
pub fn set_mode(path: &Path, mode: u32) -> Result<(), HarnessError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .context("set the mode of", path)
}

/// Removes a tree, whatever the modes in it are. Errors are left to the next cleaning: nothing depends on it.
fn remove_tree(root: &Path) {
    if std::fs::remove_dir_all(root).is_ok() || we_are_root() {
        return;
    }
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let _ = set_mode(&directory, 0o700);
        for entry in std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    let _ = std::fs::remove_dir_all(root);
}

/// Removes the directories of sessions that were killed.
fn remove_abandoned(base: &Path) {
    for name in names_in(base).unwrap_or_default() {
        let owner = name
            .strip_prefix("cista-test-")
            .and_then(|pid| pid.parse().ok());
        if owner.is_some_and(|pid| !process::is_alive(pid)) {
            remove_tree(&base.join(name));
        }
    }
}
