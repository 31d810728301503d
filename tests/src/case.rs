//! A test case: which tier it belongs to, what it needs of the machine, as whom it runs.
//!
//! What is missing is found out before the test runs, and said by name: `skipped: NAME: why`. Where
//! `CISTA_TEST_REQUIRE=1` is set, as `.ci/run` does, a skipped test is a failed one, unless it needs a GPU.

use std::fs::File;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Completion, Failed, Trial};
use serde::{Deserialize, Serialize};

use crate::driver;
use crate::environment::{Session, TestEnvironment};
use crate::error::{HarnessError, IoContext as _};
use crate::image::Recipe;
use crate::packages::find_program;
use crate::program::Program;
use crate::slurm;
use crate::user::we_are_root;

/// What a test returns. A failed assertion panics.
pub type TestResult = Result<(), HarnessError>;

/// The tiers, in the order of what they ask of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Functions alone; cargo runs them.
    Unit,
    /// The program, with nothing but files.
    Cli,
    /// The program with a registry, whose images are built from Debian packages.
    Registry,
    /// Containers: user namespaces, `/dev/fuse`.
    Userns,
    /// Jobs on a real Slurm cluster.
    Slurm,
    /// A real NVIDIA GPU. No machine of CI has one, so these tests may be skipped there.
    Gpu,
}

impl Tier {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Cli => "cli",
            Self::Registry => "registry",
            Self::Userns => "userns",
            Self::Slurm => "slurm",
            Self::Gpu => "gpu",
        }
    }
}

/// Something that a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be root.
    Root,
    /// A program on the search path.
    Program(&'static str),
    /// `docker-registry` and `skopeo`, to serve an image, and what it is built with unless it is built.
    Image(Recipe),
    /// That an ordinary user may create user namespaces.
    UserNamespaces,
    /// `/dev/fuse`, open to all.
    Fuse,
    /// A kernel that mounts squashfs files.
    KernelSquashfs,
    /// Loop devices, for root.
    LoopDevices,
    /// A Slurm cluster: root, Debian's packages, cgroups of version 1.
    Slurm,
    /// An NVIDIA GPU and its driver.
    Gpu,
    /// A processor of an architecture, as `uname -m` calls it.
    Machine(&'static str),
}

impl Need {
    /// Why it is not met; None when it is.
    fn unmet(self, session: &Session) -> Option<String> {
        match self {
            Self::Root => (!we_are_root()).then(|| "not root".into()),
            Self::Program(name) => find_program(name)
                .is_none()
                .then(|| format!("`{name}` is not installed")),
            Self::Image(recipe) => ["docker-registry", "skopeo"]
                .into_iter()
                .find_map(|name| Self::Program(name).unmet(session))
                .or_else(|| {
                    session
                        .images()
                        .get(recipe)
                        .err()
                        .map(|error| chain(&error))
                }),
            Self::UserNamespaces => Program::new("unshare")
                .args(["--user", "--map-current-user", "true"])
                .user(session.user())
                .check()
                .err()
                .map(|error| format!("no user namespaces: {}", chain(&error))),
            Self::Fuse => {
                let open = Program::new("sh")
                    .args(["-c", "exec 3<>/dev/fuse"])
                    .user(session.user())
                    .check();
                open.err().map(|error| chain(&error))
            }
            Self::Slurm => slurm::unmet(),
            Self::Gpu => driver::unmet(),
            Self::Machine(name) => {
                let machine = rustix::system::uname();
                let machine = machine.machine().to_string_lossy();
                (machine != name).then(|| format!("the machine is {machine}, not {name}"))
            }
            Self::LoopDevices => {
                let control = std::path::Path::new("/dev/loop-control");
                (!control.exists()).then(|| "there is no /dev/loop-control".into())
            }
            Self::KernelSquashfs => {
                let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
                (!known.contains("squashfs")).then(|| "the kernel has no squashfs".into())
            }
        }
    }
}

/// As whom a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The user without privileges.
    User,
    /// Root.
    Root,
    /// Both, one after the other.
    Both,
}

/// A test.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// `module::function`.
    pub name: &'static str,
    /// Its tier.
    pub tier: Tier,
    /// As whom it runs.
    pub who: Who,
    /// What it needs.
    pub needs: &'static [Need],
    /// The test.
    pub run: fn(&TestEnvironment<'_>) -> TestResult,
}

impl Case {
    /// A test that starts containers of the busybox image.
    #[must_use]
    pub const fn container(
        name: &'static str,
        who: Who,
        run: fn(&TestEnvironment<'_>) -> TestResult,
    ) -> Self {
        Self {
            name,
            tier: Tier::Userns,
            who,
            needs: CONTAINER,
            run,
        }
    }

    /// The same test with needs that replace its own.
    #[must_use]
    pub const fn needing(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }
}

/// What containers of the busybox image need.
pub const CONTAINER: &[Need] = &[
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Fuse,
];

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// The machine lacks what it needs.
    Skipped,
}

/// A line of the report that [`run_all`] writes to `CISTA_TEST_REPORT`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The test's name, with the user it ran as.
    pub name: String,
    /// Its tier.
    pub tier: Tier,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was skipped or failed.
    pub why: String,
}

/// Runs cases as the command line says (libtest's options), and returns whether none failed.
pub fn run_all(session: Session, cases: &[&[Case]]) -> Result<bool, HarnessError> {
    let arguments = libtest_mimic::Arguments::from_args();
    let require = std::env::var_os("CISTA_TEST_REQUIRE").is_some_and(|value| value == "1");
    let session = Arc::new(session);
    let records = Arc::new(Mutex::new(Vec::new()));
    let mut trials = Vec::new();
    for case in cases.iter().copied().flatten() {
        let roles: &[bool] = match case.who {
            Who::User => &[false],
            Who::Root => &[true],
            Who::Both => &[false, true],
        };
        for as_root in roles {
            let (case, as_root) = (*case, *as_root);
            let role = if as_root { "root" } else { "user" };
            let name = format!("{} as {role}", case.name);
            let (session, records) = (Arc::clone(&session), Arc::clone(&records));
            let runner = move || {
                let (verdict, why) = attempt(&session, case, as_root, require);
                records
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Record {
                        name: format!("{} as {role}", case.name),
                        tier: case.tier,
                        verdict,
                        why: why.clone(),
                    });
                match verdict {
                    Verdict::Passed => Ok(Completion::Completed),
                    Verdict::Skipped => Ok(Completion::ignored_with(why)),
                    Verdict::Failed => Err(Failed::from(why)),
                }
            };
            trials.push(Trial::ignorable_test(name, runner).with_kind(case.tier.name()));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(path) = std::env::var_os("CISTA_TEST_REPORT").map(PathBuf::from) {
        let mut file = File::create(&path).context("create", &path)?;
        for record in records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            let line = serde_json::to_string(record).map_err(|source| HarnessError::Json {
                what: "a test record".into(),
                source,
            })?;
            writeln!(file, "{line}").context("write", &path)?;
        }
    }
    Ok(!conclusion.has_failed())
}

fn attempt(session: &Session, case: Case, as_root: bool, require: bool) -> (Verdict, String) {
    let needs = as_root.then_some(Need::Root);
    let unmet = needs
        .iter()
        .chain(case.needs)
        .find_map(|need| need.unmet(session));
    if let Some(why) = unmet {
        return if require && case.tier != Tier::Gpu {
            (
                Verdict::Failed,
                format!("required, but would be skipped: {why}"),
            )
        } else {
            (Verdict::Skipped, why)
        };
    }
    let work = || -> Result<Vec<String>, HarnessError> {
        let environment = session.environment(case.name, as_root)?;
        (case.run)(&environment)?;
        environment.leftovers()
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(leftovers)) if leftovers.is_empty() => (Verdict::Passed, String::new()),
        Ok(Ok(leftovers)) => (
            Verdict::Failed,
            format!("left behind: {}", leftovers.join(", ")),
        ),
        Ok(Err(error)) => (Verdict::Failed, chain(&error)),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            (Verdict::Failed, text.unwrap_or("it panicked").to_owned())
        }
    }
}

/// An error and its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
