//! Stores, images and containers on a file system that has neither hard links, nor files without a name, nor renames that replace nothing, nor file
//! locks: that of sshfs, with a server of this machine.

use std::path::Path;
use std::time::{Duration, Instant};

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::listing::files_below;
use cista_tests::program::{Program, Running};

use super::bad_input::assert_clear_error;

/// How many processes want the same image at once.
const MANY: usize = 16;

/// How long to wait for what should happen at once.
const LIMIT: Duration = Duration::from_secs(20);

/// Where the file system is mounted, below the test's directory, and where its files are.
const MOUNT: &str = "mount";
const BEHIND: &str = "behind";

/// Runs a check while the file system is mounted.
fn mounted(
    environment: &TestEnvironment<'_>,
    check: impl FnOnce(&Path) -> TestResult,
) -> TestResult {
    let server = "#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n";
    environment.write("server", server, 0o755)?;
    let mount = environment.directory(MOUNT)?;
    let behind = environment.directory(BEHIND)?;
    let mut sshfs = environment
        .program("sshfs")
        .args(["-f", "-o", "disable_hardlink", "-o", "cache=no", "-o"])
        .arg(format!(
            "ssh_command={}",
            environment.path("server").display()
        ))
        .arg(format!("nobody:{}", behind.display()))
        .arg(&mount)
        .spawn()?;
    let is_mounted = || {
        std::fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| {
            let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
            points.into_iter().any(|point| Path::new(point) == mount)
        })
    };
    let begun = Instant::now();
    while !is_mounted() && sshfs.is_running() && begun.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(10));
    }
    let result = check(&mount);
    environment
        .program("fusermount3")
        .args(["-u", "-z"])
        .arg(&mount)
        .check()?;
    sshfs.wait()?;
    result
}

/// A program that has its store and its containers on the file system.
fn on(mount: &Path, program: Program) -> Program {
    program
        .env("CISTA_CACHE_PATH", mount.join("store"))
        .env("CISTA_DATA_PATH", mount.join("data"))
}

/// One import for all, and all get it.
fn a_store_works(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    mounted(environment, |mount| {
        let running: Vec<Running> = (0..MANY)
            .map(|_| {
                // As a Lustre mount without `flock` answers.
                let program = environment
                    .program("strace")
                    .args(["-f", "-qqq", "--seccomp-bpf", "-e", "trace=flock"])
                    .args(["-e", "inject=flock:error=ENOLCK", "-o", "/dev/null"])
                    .arg(environment.program_path())
                    .args(["run", "-q", &uri, "cat", "/etc/issue"]);
                on(mount, program).spawn()
            })
            .collect::<Result<_, HarnessError>>()?;
        for running in running {
            let outcome = running.wait()?;
            assert_eq!(
                outcome.text(),
                "a test image of cista",
                "{}",
                outcome.error_text()
            );
        }
        on(mount, environment.cista(["cache", "verify"])).check()?;
        let stored = files_below(&environment.path(BEHIND).join("store/images"))?;
        let ends = |end: &str| {
            let names = stored.iter().filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.as_encoded_bytes().ends_with(end.as_bytes()))
            });
            names.count()
        };
        assert_eq!(
            (ends(".sqsh"), ends(".json"), stored.len()),
            (1, 1, 2),
            "{stored:?}"
        );
        Ok(())
    })
}

/// Images and containers are made, used and removed; what the file system cannot do is said.
fn containers_work(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().images().get(Recipe::Busybox)?;
    let uri = format!("oci:{}", image.layout.root().display());
    mounted(environment, |mount| {
        let cista = |words: &[&str]| on(mount, environment.cista(words));
        let image = mount.join("x.sqsh").display().to_string();
        cista(&["import", "-q", "-o", &image, &uri]).check()?;
        let refused = cista(&["import", "-q", "-o", &image, &uri]).run()?;
        assert_clear_error(&refused, 1, &["x.sqsh", "exists"]);
        cista(&["create", "-n", "layered", &image]).check()?;
        let read = cista(&["start", "layered", "cat", "/etc/issue"]).text()?;
        assert_eq!(read, "a test image of cista");
        let refused = cista(&["start", "-w", "layered", "true"]).run()?;
        assert_clear_error(&refused, 125, &["overlay", "--unpack"]);
        cista(&["create", "--unpack", "-n", "tree", &image]).check()?;
        let script = "echo hi >/home/x; cat /home/x /etc/issue";
        let written = cista(&["start", "-w", "tree", "sh", "-c", script]).text()?;
        assert_eq!(written, "hi\na test image of cista");
        let exported = mount.join("y.sqsh").display().to_string();
        cista(&["export", "-o", &exported, "tree"]).check()?;
        assert_eq!(cista(&["start", &exported, "cat", "/home/x"]).text()?, "hi");
        cista(&["create", "-f", "-n", "layered", &image]).check()?;
        cista(&["remove", "-f", "layered", "tree"]).check()?;
        let left = files_below(&environment.path(BEHIND).join("data"))?;
        assert!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

const NEEDS: &[Need] = &[
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Fuse,
    Need::Program("sshfs"),
    Need::Program("fusermount3"),
    Need::Program("strace"),
];

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "poor_file_systems::a_store_works",
        tier: Tier::Userns,
        who: Who::User,
        needs: NEEDS,
        run: a_store_works,
    },
    Case {
        name: "poor_file_systems::containers_work",
        tier: Tier::Userns,
        who: Who::User,
        needs: NEEDS,
        run: containers_work,
    },
];
