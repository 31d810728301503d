//! How images are mounted: by the kernel where the site wants that and trusts the file, otherwise by the user's own server.

use std::path::PathBuf;
use std::time::Duration;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, names_in};
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::process;
use cista_tests::program::{Outcome, Program};
use cista_tests::slurm::login::Login;
use rustix::process::Signal;

use super::slurm::busybox;

const PATIENCE: Duration = Duration::from_secs(40);

/// A directory of the node n1 in which root puts images. `/run` is the node's own.
const DIRECTORY: &str = "/run/cista-images";

/// Where another user puts images.
const OTHERS: &str = "/run/cista-others";

/// Someone who is neither root nor the user.
const STRANGER: u32 = 61_003;

/// Images on the node n1, as long as this is there.
struct Images<'a> {
    login: &'a Login<'a>,
}

impl<'a> Images<'a> {
    fn new(login: &'a Login<'a>, environment: &TestEnvironment<'_>) -> Result<Self, HarnessError> {
        let image = environment.session().imported(Recipe::Busybox)?;
        let images = Self { login };
        images.run(&["mkdir", "-p", DIRECTORY, OTHERS])?;
        for directory in [DIRECTORY, OTHERS] {
            let place = format!("{directory}/image.sqsh");
            images.run(&["cp", &image.display().to_string(), &place])?;
            images.run(&["chmod", "644", &place])?;
        }
        images.run(&["chown", "-R", &STRANGER.to_string(), OTHERS])?;
        Ok(images)
    }

    fn run(&self, words: &[&str]) -> TestResult {
        let node = self.login.cluster().node("n1")?;
        node.program(words[0]).args(&words[1..]).check().map(drop)
    }
}

impl Drop for Images<'_> {
    fn drop(&mut self) {
        // What is left would be seen by the tests that look for it.
        let _ = self.run(&["rm", "-rf", DIRECTORY, OTHERS]);
    }
}

fn srun(login: &Login<'_>, image: &str, options: &[&str]) -> Program {
    login
        .srun(["-v", "-w", "n1", &format!("--container-image={image}")])
        .args(options)
}

/// The step runs in a container whose image is mounted in a certain way.
fn assert_mounted(login: &Login<'_>, image: &str, method: &str) -> Result<Outcome, HarnessError> {
    let outcome = srun(login, image, &["cat", "/etc/issue"]).check()?;
    let said = outcome.error_text();
    assert_eq!(outcome.text(), "a test image of cista", "{said}");
    let expected = format!("image {image}, mount {method})");
    assert!(said.contains(&expected), "{expected}: {said}");
    Ok(outcome)
}

/// The loop devices that have a file.
fn loops() -> Result<Vec<String>, HarnessError> {
    let all = names_in("/sys/block".as_ref())?;
    let is_used = |name: &String| PathBuf::from(format!("/sys/block/{name}/loop")).exists();
    Ok(all.into_iter().filter(is_used).collect())
}

/// Waits until there are no more loop devices in use than there were: they are free a moment after their last user.
fn assert_no_new_loops(before: &[String]) -> TestResult {
    let begin = std::time::Instant::now();
    loop {
        let new: Vec<String> = loops()?
            .into_iter()
            .filter(|name| !before.contains(name))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        assert!(begin.elapsed() < PATIENCE, "{new:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What root alone can change is mounted by the kernel, and belongs to the user. What the user can change is not.
fn files_of_root_are_mounted_by_the_kernel(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::with_plugin(environment, &["mount=auto"])?;
    let images = Images::new(&login, environment)?;
    let before = loops()?;
    let image = format!("{DIRECTORY}/image.sqsh");
    assert_mounted(&login, &image, "kernel")?;
    // Owners are those of files that the server shows.
    let look = [
        "sh",
        "-c",
        "stat -c %u:%g /etc/issue; touch /new && echo written; ls / | wc -l",
    ];
    for remap in ["--container-remap-root", "--no-container-remap-root"] {
        let options = [&[remap, "--container-writable"], &look[..]].concat();
        let by_kernel = srun(&login, &image, &options).check()?.text();
        let theirs = busybox(environment)?;
        let by_server = login.srun(["-w", "n1", &theirs]).args(&options).text()?;
        assert_eq!(by_kernel, by_server, "{remap}");
        assert!(by_kernel.contains("written"), "{by_kernel}");
    }
    // Tasks of two steps at once, and of several on the node.
    let twice = srun(&login, &image, &["-n3", "cat", "/etc/issue"]).spawn()?;
    assert_mounted(&login, &image, "kernel")?;
    assert_eq!(twice.wait()?.text().lines().count(), 3);
    // Others could change these, by their mode or that of a directory.
    if !environment.user().is_root() {
        let own = environment.session().imported(Recipe::Busybox)?;
        let outcome = assert_mounted(&login, &own.display().to_string(), "fuse")?;
        let said = outcome.error_text();
        assert!(said.contains("does not belong to root alone"), "{said}");
    }
    assert_mounted(&login, &format!("{OTHERS}/image.sqsh"), "fuse")?;
    images.run(&["chmod", "664", &image])?;
    assert_mounted(&login, &image, "fuse")?;
    images.run(&["chmod", "644", &image])?;
    images.run(&["chmod", "777", DIRECTORY])?;
    assert_mounted(&login, &image, "fuse")?;
    images.run(&["chmod", "755", DIRECTORY])?;
    // What the user's own setting asks for.
    let outcome = srun(&login, &image, &["true"])
        .env("CISTA_MOUNT", "fuse")
        .check()?;
    assert!(outcome.error_text().contains("mount fuse)"));
    // A named container has a copy of its own.
    let named = ["--container-name=mounted", "cat", "/etc/issue"];
    let outcome = srun(&login, &image, &named).check()?;
    assert_eq!(outcome.text(), "a test image of cista");
    environment
        .cista(["remove", "-f", "pyxis_mounted"])
        .check()?;
    assert_no_new_loops(&before)
}

/// Directories that the site names, with files of others than root.
fn trusted_directories(environment: &TestEnvironment<'_>) -> TestResult {
    let trust = format!("trust=/nowhere:{OTHERS}");
    let login = Login::with_plugin(environment, &["mount=auto", &trust])?;
    let images = Images::new(&login, environment)?;
    let image = format!("{OTHERS}/image.sqsh");
    assert_mounted(&login, &image, "kernel")?;
    images.run(&["mkdir", &format!("{OTHERS}/below")])?;
    let below = format!("{OTHERS}/below/image.sqsh");
    images.run(&["cp", &image, &below])?;
    assert_mounted(&login, &below, "kernel")?;
    // Not by a link from somewhere else, but where it leads.
    let link = format!("{DIRECTORY}/link.sqsh");
    images.run(&["ln", "-s", &image, &link])?;
    assert_mounted(&login, &link, "kernel")?;
    let outside = environment.session().imported(Recipe::Busybox)?;
    let inside = format!("{OTHERS}/link.sqsh");
    images.run(&["ln", "-s", &outside.display().to_string(), &inside])?;
    if !environment.user().is_root() {
        assert_mounted(&login, &inside, "fuse")?;
        // What the user can write to is the user's, wherever it is.
        let (uid, gid) = (environment.user().uid, environment.user().gid);
        for (owner, mode) in [
            (format!("{uid}:0"), "644"),
            (format!("{STRANGER}:{gid}"), "664"),
            (format!("{STRANGER}:0"), "646"),
        ] {
            images.run(&["chown", &owner, &image])?;
            images.run(&["chmod", mode, &image])?;
            let outcome = assert_mounted(&login, &image, "fuse")?;
            let said = outcome.error_text();
            assert!(said.contains("you can change"), "{owner} {mode}: {said}");
        }
        // Nor is one that cannot be read.
        images.run(&["chown", "0:0", &image])?;
        images.run(&["chmod", "600", &image])?;
        let outcome = srun(&login, &image, &["true"]).run()?;
        assert_eq!(outcome.code(), Some(1));
        let said = outcome.error_text();
        assert!(said.contains("Permission denied"), "{said}");
    }
    Ok(())
}

/// `mount=kernel`: an image that the site does not trust is not mounted at all.
fn nothing_but_the_kernel(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::with_plugin(environment, &["mount=kernel"])?;
    let images = Images::new(&login, environment)?;
    assert_mounted(&login, &format!("{DIRECTORY}/image.sqsh"), "kernel")?;
    let garbage = format!("{DIRECTORY}/garbage.sqsh");
    images.run(&["cp", "/etc/hostname", &garbage])?;
    for (image, expected) in [
        (format!("{OTHERS}/image.sqsh"), "belong to root alone"),
        (garbage, "garbage.sqsh"),
    ] {
        let outcome = srun(&login, &image, &["echo", "ran"]).run()?;
        let said = outcome.error_text();
        assert_eq!(outcome.code(), Some(1), "{said}");
        assert_eq!(outcome.text(), "", "{said}");
        assert!(said.contains(expected) && said.contains("n1"), "{said}");
    }
    // A file system of root's with files of others cannot be mapped to the user.
    let tree = environment.directory("tree")?;
    environment.write("tree/file", "", 0o644)?;
    let mixed = environment.path("mixed.sqsh");
    Program::new("mksquashfs")
        .args([&tree, &mixed])
        .args([
            "-quiet",
            "-no-progress",
            "-force-uid",
            "7",
            "-force-gid",
            "8",
        ])
        .check()?;
    let place = format!("{DIRECTORY}/mixed.sqsh");
    images.run(&["cp", &mixed.display().to_string(), &place])?;
    let outcome = srun(&login, &place, &["true"]).run()?;
    let said = outcome.error_text();
    assert_eq!(outcome.code(), Some(1), "{said}");
    assert!(said.contains("do not all belong to root"), "{said}");
    login.cluster().wait_until_idle(PATIENCE)
}

/// Whatever is killed, and when, no loop device and no mount stays.
fn killed_steps_leave_no_loop_devices(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::with_plugin(environment, &["mount=auto"])?;
    let _images = Images::new(&login, environment)?;
    let image = format!("{DIRECTORY}/image.sqsh");
    assert_mounted(&login, &image, "kernel")?;
    let node = login.cluster().node("n1")?;
    let before = loops()?;
    let mounts = node.mounts()?;
    let program = login.cluster().program_path();
    let mut seen = 0;
    for round in 0..24_u64 {
        let mut step = srun(&login, &image, &["sh", "-c", "sleep 0.3; sleep 0.3"]).spawn()?;
        let named = |text: &str| {
            let all = node.processes().into_iter();
            let wanted = all.filter(|(pid, line)| {
                line.starts_with(text) || process::name(*pid).as_deref() == Some(text)
            });
            wanted.map(|(pid, _)| pid).collect::<Vec<u32>>()
        };
        let mut helpers = Vec::new();
        if round % 4 < 2 {
            // It lives as long as the container is being built.
            let begin = std::time::Instant::now();
            while helpers.is_empty() && begin.elapsed() < Duration::from_secs(2) {
                helpers = named("cista-helper");
            }
            seen += helpers.len();
            std::thread::sleep(Duration::from_millis(round % 8));
        } else {
            std::thread::sleep(Duration::from_millis(40 + round * 7919 % 120));
        }
        let pids = match round % 4 {
            0 | 1 if !helpers.is_empty() => helpers,
            0 | 2 => process::executing(&program),
            1 => named("sh -c sleep"),
            _ => named("slurmstepd"),
        };
        for pid in &pids {
            process::send(*pid, Signal::KILL)?;
        }
        if round % 4 == 3 {
            let user = environment.user().name.as_str();
            login.command("scancel", ["--user", user]).run()?;
            std::thread::sleep(Duration::from_millis(100));
            if step.is_running() {
                step.signal(Signal::KILL)?;
            }
        }
        drop(step.wait()?);
    }
    let user = environment.user().name.as_str();
    login.command("scancel", ["--user", user]).run()?;
    login.cluster().wait_until_idle(PATIENCE)?;
    assert!(seen > 0, "the helper was never met");
    assert_eq!(node.leftovers(PATIENCE), Vec::<String>::new());
    assert_eq!(node.mounts()?, mounts);
    assert_no_new_loops(&before)
}

const fn case(name: &'static str, who: Who, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Slurm,
        who,
        needs: &[
            Need::Slurm,
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::KernelSquashfs,
            Need::LoopDevices,
            Need::Program("mksquashfs"),
        ],
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "slurm_mounts::files_of_root_are_mounted_by_the_kernel",
        Who::Both,
        files_of_root_are_mounted_by_the_kernel,
    ),
    case(
        "slurm_mounts::trusted_directories",
        Who::Both,
        trusted_directories,
    ),
    case(
        "slurm_mounts::nothing_but_the_kernel",
        Who::User,
        nothing_but_the_kernel,
    ),
    case(
        "slurm_mounts::killed_steps_leave_no_loop_devices",
        Who::User,
        killed_steps_leave_no_loop_devices,
    ),
];
