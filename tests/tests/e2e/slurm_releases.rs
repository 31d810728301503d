//! The plugin in every release of Slurm: loaded by a double of srun and slurmstepd (`tests/double/slurm.c`), compiled with the numbers
//! of each release and with the functions that it offers to plugins. Release 22.05 itself is what the other tests use.

use std::path::PathBuf;

use cista_tests::artifacts::workspace;
use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::program::Program;
use cista_tests::user::User;

/// Year, month and patch of a release, and the number of its libslurm.
const RELEASES: &[[u32; 4]] = &[
    [20, 11, 9, 36],
    [21, 8, 8, 37],
    [22, 5, 11, 38],
    [23, 2, 8, 39],
    [23, 11, 11, 40],
    [24, 5, 9, 41],
    [24, 11, 7, 42],
    [25, 5, 6, 43],
    [25, 11, 7, 44],
    [26, 5, 4, 45],
];

/// A double, and what it is called.
struct Double {
    name: String,
    program: PathBuf,
    /// A plugin of Slurm's own, which it loads first.
    other: PathBuf,
}

/// Compiles the doubles of all releases.
fn doubles(environment: &TestEnvironment<'_>) -> Result<Vec<Double>, HarnessError> {
    let source = workspace().join("tests/double/slurm.c");
    // Not as the user, who may not get at the sources.
    let compile = || Program::new("cc").args(["-Wall", "-Werror", "-O1", "-rdynamic"]);
    let mut doubles = Vec::new();
    for [year, month, micro, api] in RELEASES {
        let name = format!("{year}.{month:02}");
        let directory = environment.directory(&format!("slurm-{name}"))?;
        let program = directory.join("double");
        compile()
            .args(
                [
                    ("YEAR", year),
                    ("MONTH", month),
                    ("MICRO", micro),
                    ("API", api),
                ]
                .map(|(macro_name, value)| format!("-D{macro_name}={value}")),
            )
            .arg("-o")
            .arg(&program)
            .arg(&source)
            .check()?;
        let other = directory.join("select_cons_tres.so");
        let version = (year << 16) | (month << 8) | micro;
        compile()
            .args(["-shared", "-fPIC", "-x", "c", "-o"])
            .arg(&other)
            .arg("-")
            .stdin_bytes(format!("const unsigned int plugin_version = {version};"))
            .check()?;
        doubles.push(Double {
            name,
            program,
            other,
        });
    }
    Ok(doubles)
}

impl Double {
    /// The double as srun or slurmstepd, with the plugin.
    fn run(
        &self,
        environment: &TestEnvironment<'_>,
        place: &str,
        loads_other: bool,
    ) -> Result<Program, HarnessError> {
        let plugin = environment.session().cluster()?.plugin_path();
        let mut program = environment
            .program(&self.program)
            .arg(place)
            .arg(plugin)
            .arg(format!("program={}", environment.program_path().display()));
        if loads_other {
            program = program.env("DOUBLE_OTHER_PLUGIN", &self.other);
        }
        Ok(program)
    }
}

/// Options are registered and checked in srun; the version is that of the plugins that are loaded, or of the library.
fn srun_of_every_release(environment: &TestEnvironment<'_>) -> TestResult {
    for double in doubles(environment)? {
        for loads_other in [false, true] {
            let run = || double.run(environment, "local", loads_other);
            let good = run()?.arg("--container-image=/image.sqsh").run()?;
            assert_eq!(
                good.code(),
                Some(0),
                "{}: {}",
                double.name,
                good.error_text()
            );
            assert_eq!(good.text(), "18 options", "{}", double.name);
            let bad = run()?.arg("--container-image=").run()?;
            assert_eq!(bad.code(), Some(1), "{}: {}", double.name, bad.error_text());
            assert!(
                bad.error_text().contains("error: cista: --container-image"),
                "{}: {}",
                double.name,
                bad.error_text()
            );
        }
    }
    Ok(())
}

/// Two tasks run in a container, in slurmstepd's own processes, as the user.
fn slurmstepd_of_every_release(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let user = environment.session().user();
    for double in doubles(environment)? {
        let script =
            "echo $SLURM_PROCID $(id -u) $(cat /etc/issue) $(readlink /proc/self/ns/user); exit 3";
        let outcome = double
            .run(environment, "remote", true)?
            .arg(format!("--container-image={}", image.display()))
            .args(["2", &user.uid.to_string(), &user.gid.to_string()])
            .args(["--", "sh", "-c", script])
            .envs_of(environment, user)
            .run()?;
        let said = outcome.error_text();
        assert_eq!(outcome.code(), Some(3), "{}: {said}", double.name);
        let text = outcome.text();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines.len(), 2, "{}: {text} {said}", double.name);
        for (task, line) in lines.iter().enumerate() {
            let begin = format!("{task} {} a test image of cista user:", user.uid);
            assert!(line.starts_with(&begin), "{}: {line}", double.name);
        }
        // One container for both.
        let namespace = |line: &str| line.split(' ').next_back().map(ToOwned::to_owned);
        assert_eq!(namespace(lines[0]), namespace(lines[1]), "{}", double.name);
    }
    Ok(())
}

/// An error on the node is told, and the task ends instead of running on the bare host.
fn a_bad_image_in_every_release(environment: &TestEnvironment<'_>) -> TestResult {
    let user: &User = environment.session().user();
    for double in doubles(environment)? {
        let outcome = double
            .run(environment, "remote", true)?
            .arg("--container-image=/no/such/image.sqsh")
            .args(["1", &user.uid.to_string(), &user.gid.to_string()])
            .args(["--", "echo", "on the host"])
            .envs_of(environment, user)
            .run()?;
        assert_eq!(outcome.code(), Some(1), "{}", double.name);
        assert_eq!(outcome.text(), "", "{}", double.name);
        assert!(
            outcome.error_text().contains("/no/such/image.sqsh"),
            "{}: {}",
            double.name,
            outcome.error_text()
        );
    }
    Ok(())
}

/// The environment of the job's user.
trait EnvironmentOf {
    fn envs_of(self, environment: &TestEnvironment<'_>, user: &User) -> Self;
}

impl EnvironmentOf for Program {
    fn envs_of(self, environment: &TestEnvironment<'_>, user: &User) -> Self {
        // The directories of this test are root's: the user's are below the scratch directory of all.
        let below = |name: &str| environment.session().scratch().join("releases").join(name);
        for name in ["home", "runtime", "cache", "data", "config"] {
            let path = below(name);
            // An error shows in what runs there.
            let _ = std::fs::create_dir_all(&path);
            let _ = std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid));
        }
        self.env("HOME", below("home"))
            .env("XDG_RUNTIME_DIR", below("runtime"))
            .env("XDG_CACHE_HOME", below("cache"))
            .env("XDG_DATA_HOME", below("data"))
            .env("XDG_CONFIG_HOME", below("config"))
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "slurm_releases::srun_of_every_release",
        tier: Tier::Slurm,
        who: Who::User,
        needs: &[Need::Slurm, Need::Program("cc")],
        run: srun_of_every_release,
    },
    Case {
        name: "slurm_releases::slurmstepd_of_every_release",
        tier: Tier::Slurm,
        who: Who::Root,
        needs: NODE,
        run: slurmstepd_of_every_release,
    },
    Case {
        name: "slurm_releases::a_bad_image_in_every_release",
        tier: Tier::Slurm,
        who: Who::Root,
        needs: NODE,
        run: a_bad_image_in_every_release,
    },
];

const NODE: &[Need] = &[
    Need::Slurm,
    Need::Program("cc"),
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Fuse,
];
