//! A user of the cluster: commands of Slurm as the user of a test, with that test's directories.
//!
//! Each test marks what it starts with a variable of the environment, which Slurm hands down to the tasks. So what stays behind is
//! told from the tasks of tests that run at the same time.

use std::path::Path;
use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crate::environment::TestEnvironment;
use crate::error::HarnessError;
use crate::process;
use crate::program::Program;
use crate::pty::ON_TERMINAL;

use super::Cluster;

/// The variable that marks the processes of a test.
const MARK: &str = "CISTA_TEST_MARK";

/// How long a command of Slurm may take, unless its test says otherwise.
const LIMIT: Duration = Duration::from_secs(60);

/// A user's way to the cluster.
#[derive(Debug)]
pub struct Login<'a> {
    cluster: &'a Cluster,
    environment: &'a TestEnvironment<'a>,
    turn: Turn<'a>,
}

/// Held while the cluster is used.
#[derive(Debug)]
enum Turn<'a> {
    Shared { _guard: RwLockReadGuard<'a, ()> },
    Alone { _guard: RwLockWriteGuard<'a, ()> },
}

impl Drop for Login<'_> {
    fn drop(&mut self) {
        if let Turn::Alone { .. } = self.turn {
            // A test that comes to another line fails, and says so.
            let _ = self.cluster.set_plugin_arguments::<&str>(&[]);
        }
    }
}

impl<'a> Login<'a> {
    /// Beside other tests.
    pub fn new(environment: &'a TestEnvironment<'a>) -> Result<Self, HarnessError> {
        let cluster = environment.session().cluster()?;
        let guard = cluster.using.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Self {
            cluster,
            environment,
            turn: Turn::Shared { _guard: guard },
        })
    }

    /// With no other test on the cluster.
    pub fn alone(environment: &'a TestEnvironment<'a>) -> Result<Self, HarnessError> {
        let cluster = environment.session().cluster()?;
        let guard = cluster
            .using
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        cluster.wait_until_idle(LIMIT)?;
        Ok(Self {
            cluster,
            environment,
            turn: Turn::Alone { _guard: guard },
        })
    }

    /// With no other test on the cluster, and with arguments for the plugin in plugstack.conf until this is dropped.
    pub fn with_plugin<A: AsRef<str>>(
        environment: &'a TestEnvironment<'a>,
        arguments: &[A],
    ) -> Result<Self, HarnessError> {
        let login = Self::alone(environment)?;
        login.cluster.set_plugin_arguments(arguments)?;
        Ok(login)
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// A command of Slurm, in the working directory of the test.
    #[must_use]
    pub fn command<A: AsRef<str>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Program {
        self.marked(self.environment.program(program), arguments)
    }

    /// A command of Slurm on a terminal that [`crate::pty::Terminal`] gives.
    #[must_use]
    pub fn on_terminal<A: AsRef<str>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Program {
        let program = self
            .environment
            .program(ON_TERMINAL[0])
            .args(&ON_TERMINAL[1..])
            .arg(program);
        self.marked(program, arguments)
    }

    /// `srun`.
    #[must_use]
    pub fn srun<A: AsRef<str>>(&self, arguments: impl IntoIterator<Item = A>) -> Program {
        self.command("srun", arguments)
    }

    /// Runs a script with `sbatch`, waits for its end, and returns what it printed, on stdout and stderr. Its exit status is that of
    /// `sbatch --wait`.
    pub fn sbatch<A: AsRef<str>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        script: &str,
    ) -> Result<Batch, HarnessError> {
        let name = format!("batch-{}", self.environment.files()?.len());
        let script = self.environment.write(&name, script, 0o755)?;
        let outcome = self
            .command("sbatch", ["--parsable", "--wait"])
            .arg(format!("--output={name}.out"))
            .args(arguments.into_iter().map(|word| word.as_ref().to_owned()))
            .arg(&script)
            .run()?;
        let output = self.environment.path(format!("{name}.out"));
        let printed = std::fs::read(&output).unwrap_or_default();
        Ok(Batch {
            job: outcome.text(),
            status: outcome.code(),
            said: outcome.error_text(),
            printed: String::from_utf8_lossy(&printed).trim().to_owned(),
        })
    }

    fn marked<A: AsRef<str>>(
        &self,
        program: Program,
        arguments: impl IntoIterator<Item = A>,
    ) -> Program {
        arguments
            .into_iter()
            .fold(program, |program, argument| program.arg(argument.as_ref()))
            .env("SLURM_CONF", self.cluster.conf())
            .env(MARK, self.mark())
            .timeout(LIMIT)
    }

    fn mark(&self) -> String {
        self.environment.path("").display().to_string()
    }

    /// The processes that this test started and that are there now, tasks among them.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        marked(&self.mark())
    }
}

/// The processes of a test whose working directory is given, commands and tasks; waits a while for them to end.
pub(crate) fn marked_processes(directory: &Path, limit: Duration) -> Vec<String> {
    let mark = directory.display().to_string();
    let begin = Instant::now();
    loop {
        let pids = marked(&mark);
        if pids.is_empty() || begin.elapsed() > limit {
            return pids
                .into_iter()
                .map(|pid| format!("process {pid} `{}`", process::command_line(pid)))
                .collect();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn marked(mark: &str) -> Vec<u32> {
    process::all()
        .into_iter()
        .filter(|pid| process::has_variable(*pid, MARK, mark))
        .collect()
}

/// What became of a batch job.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Its id.
    pub job: String,
    /// Exit status of `sbatch --wait`: that of the job.
    pub status: Option<i32>,
    /// What sbatch said on stderr.
    pub said: String,
    /// What the job printed.
    pub printed: String,
}
