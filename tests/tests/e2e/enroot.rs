//! What users of enroot find when the program is called `enroot`.

use std::path::PathBuf;
use std::time::Duration;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::program::Program;

use super::config::put;

/// How long to wait for what should happen at once.
const LIMIT: Duration = Duration::from_secs(30);

/// The program by the name of enroot, with files of settings in `work/etc`.
pub(crate) fn enroot(
    environment: &TestEnvironment<'_>,
    args: &[&str],
) -> Result<Program, HarnessError> {
    let link = environment.program_path().with_file_name("enroot");
    if !link.is_symlink() {
        std::os::unix::fs::symlink("cista", &link).context("link", &link)?;
    }
    Ok(environment
        .program(&link)
        .args(args)
        .env("ENROOT_SYSCONF_PATH", environment.path("etc")))
}

/// Unpacks an image as enroot does, so that it is a container in its data path.
fn unpack(environment: &TestEnvironment<'_>, name: &str) -> Result<PathBuf, HarnessError> {
    let data = environment.home().with_file_name("data").join("enroot");
    if !data.is_dir() {
        std::fs::create_dir(&data).context("create", &data)?;
        environment.give(&data)?;
    }
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .program("unsquashfs")
        .args(["-quiet", "-no-progress", "-dest"])
        .arg(data.join(name))
        .arg(image)
        .check()?;
    Ok(data.join(name))
}

/// A container that enroot unpacked is listed, started, written to and removed.
fn containers_of_enroot_are_found(environment: &TestEnvironment<'_>) -> TestResult {
    let tree = unpack(environment, "box")?;
    assert_eq!(enroot(environment, &["list"])?.text()?, "box");
    let text = enroot(environment, &["start", "box", "cat", "/etc/issue"])?.text()?;
    assert_eq!(text, "a test image of cista");
    enroot(environment, &["start", "-w", "box", "touch", "/kept"])?.check()?;
    assert!(tree.join("kept").exists());
    // Under its own name the program has its own containers.
    assert_eq!(environment.cista(["list"]).text()?, "");
    enroot(environment, &["remove", "-f", "box"])?.check()?;
    assert!(!tree.exists());
    Ok(())
}

fn the_version_is_one_of_enroot(environment: &TestEnvironment<'_>) -> TestResult {
    let version = enroot(environment, &["version"])?.text()?;
    let numbers: Vec<&str> = version.split('.').collect();
    assert_eq!(numbers.len(), 3, "{version}");
    assert_eq!(numbers[0], "4", "{version}");
    let help = enroot(environment, &["start", "--help"])?.text()?;
    assert!(help.contains("Usage: enroot start"), "{help}");
    Ok(())
}

/// `enroot.conf` counts, the environment wins, and words are expanded as a shell does.
fn settings_of_enroot_count(environment: &TestEnvironment<'_>) -> TestResult {
    put(
        environment,
        "etc/enroot.conf",
        "# comment\nENROOT_DATA_PATH   ${HOME}/$(printf con)tainers\nENROOT_REMAP_ROOT=yes\nENROOT_GZIP_PROGRAM pigz\n",
    )?;
    put(
        environment,
        "etc/enroot.conf.d/10-site.conf",
        "ENROOT_ROOTFS_WRITABLE = yes\nENROOT_SQUASH_OPTIONS -comp zstd -Xcompression-level 7\nENROOT_MISSPELT 1\n",
    )?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let image = image.display().to_string();
    enroot(environment, &["create", "-n", "box", &image])?.check()?;
    assert!(environment.home().join("containers/box").is_dir());
    let script = "id -u; touch /x && echo written";
    let text = enroot(environment, &["start", "box", "sh", "-c", script])?.text()?;
    assert_eq!(text, "0\nwritten");
    let text = enroot(
        environment,
        &[
            "start",
            "box",
            "sh",
            "-c",
            "id -u; touch /y 2>/dev/null || echo refused",
        ],
    )?
    .env("ENROOT_REMAP_ROOT", "No")
    .env("ENROOT_ROOTFS_WRITABLE", "f")
    .text()?;
    assert_eq!(text, format!("{}\nrefused", environment.user().uid));
    let compression = enroot(environment, &["config", "import.compression"])?.run()?;
    assert_eq!(compression.text().trim(), "zstd:7");
    let told = compression.error_text();
    assert!(
        told.contains("10-site.conf:3") && !told.contains("GZIP"),
        "{told}"
    );
    // Without force what exists stays.
    let again = enroot(environment, &["create", "-n", "box", &image])?.run()?;
    assert_eq!(again.code(), Some(1));
    enroot(environment, &["create", "-n", "box", &image])?
        .env("ENROOT_FORCE_OVERRIDE", "y")
        .check()?;
    Ok(())
}

/// `/dev` is the host's unless it is to be restricted; by our own name it is the other way round.
fn devices_are_those_of_the_host_unless_restricted(
    environment: &TestEnvironment<'_>,
) -> TestResult {
    unpack(environment, "box")?;
    let mounts =
        "grep -c ' /dev devtmpfs\\| /dev tmpfs' /proc/mounts; test -e /dev/fuse && echo fuse; true";
    let own = enroot(environment, &["start", "box", "sh", "-c", mounts])?.text()?;
    assert!(own.ends_with("fuse"), "{own}");
    let restricted = enroot(environment, &["start", "box", "sh", "-c", mounts])?
        .env("ENROOT_RESTRICT_DEV", "y")
        .text()?;
    assert!(!restricted.contains("fuse"), "{restricted}");
    let image = environment.session().imported(Recipe::Busybox)?;
    let start = |dev: &str| {
        environment
            .cista(["start"])
            .arg(&image)
            .args(["sh", "-c", mounts])
            .env("CISTA_DEV", dev)
            .text()
    };
    assert!(!start("private")?.contains("fuse"));
    assert!(start("host")?.contains("fuse"));
    Ok(())
}

const fn case(name: &'static str, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who: Who::Both,
        needs: &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Program("unsquashfs"),
        ],
        run,
    }
}

/// The command lines that stand in people's scripts, from an import to a removal, with hooks, a configuration script and what pyxis reads.
fn a_day_with_enroot(environment: &TestEnvironment<'_>) -> TestResult {
    let run = |args: &[&str]| -> Result<String, HarnessError> { enroot(environment, args)?.text() };
    let image = environment.session().images().get(Recipe::Busybox)?;
    let uri = format!("oci:{}", image.layout.root().display());
    run(&["import", "--output", "box.sqsh", &uri])?;
    run(&["create", "--name", "box", "box.sqsh"])?;
    run(&["create", "--force", "--name=box", "--", "box.sqsh"])?;
    run(&["create", "box.sqsh", "-n", "other"])?;
    assert_eq!(run(&["list"])?, "box\nother");

    let configuration = environment.home().with_file_name("config").join("enroot");
    let put = |name: &str, text: &str| -> TestResult {
        environment.configure(&format!("enroot/{name}"), text)?;
        set_mode(&configuration.join(name), 0o755)?;
        Ok(())
    };
    put("environ.d/10-a.env", "OF_FILE=1\n")?;
    put(
        "mounts.d/10-a.fstab",
        "tmpfs /scratch tmpfs x-create=dir,rw,nosuid 0 0\n",
    )?;
    let hook = "#!/bin/bash\nset -eu\n[ -d \"${ENROOT_ROOTFS}/etc\" ] && kill -0 \"${ENROOT_PID}\"\n\
                echo \"OF_HOOK=1\" >>\"${ENROOT_ENVIRON}\"\n\
                echo '/etc /hooked none x-create=dir,bind,ro' >>\"${ENROOT_MOUNTS}\"\n";
    put("hooks.d/10-a.sh", hook)?;
    environment.write(
        "conf.sh",
        "#ENROOT_REMAP_ROOT=y\n#ENROOT_ROOTFS_WRITABLE=y\nenviron() { echo OF_CONF=1; }\n\
         mounts() { echo '/etc /conf none x-create=dir,bind,ro'; }\n\
         hooks() { echo hi >\"${ENROOT_ROOTFS}/of-hooks\"; }\n\
         rc() { echo \"rc: $*\"; exec \"$@\"; }\n",
        0o644,
    )?;
    let script = "echo $GIVEN $OF_FILE $OF_HOOK $(id -u); ls -d /mnt/passwd /scratch /hooked; echo kept >/home/kept";
    let mount = "/etc:/mnt:none:bind,ro,x-create=dir";
    let seen = run(&[
        "start",
        "--root",
        "--rw",
        "-m",
        mount,
        "-e",
        "GIVEN=yes",
        "box",
        "sh",
        "-c",
        script,
    ])?;
    assert_eq!(seen, "yes 1 1 0\n/hooked\n/mnt/passwd\n/scratch");
    let script = "echo $OF_CONF $(id -u); cat /of-hooks /home/kept; ls -d /conf";
    let seen = run(&["start", "--conf", "conf.sh", "box", "sh", "-c", script])?;
    let told = format!("rc: sh -c {script}\n1 0\nhi\nkept\n/conf");
    assert_eq!(seen, told);

    // As pyxis does it: the second column of the first line that begins with the name.
    let mut running = enroot(environment, &["start", "box", "sh", "-c", "echo up; cat"])?
        .stdin_pipe()
        .spawn()?;
    running.wait_for_stdout("up", LIMIT)?;
    let table = run(&["list", "-f"])?;
    let mut lines = table.lines();
    let titles: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let expected = "NAME PID COMM STATE STARTED TIME MNTNS USERNS COMMAND";
    assert_eq!(titles.join(" "), expected);
    let pid = lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&"box"))
        .and_then(|fields| fields.get(1).map(|pid| (*pid).to_owned()));
    assert_eq!(pid, Some(running.pid().to_string()), "{table}");
    let inside = run(&[
        "exec",
        "-e",
        "X=2",
        &running.pid().to_string(),
        "sh",
        "-c",
        "echo $OF_FILE $X",
    ])?;
    assert_eq!(inside, "1 2");
    running.close_stdin();
    running.wait()?;

    run(&["export", "--output", "exported.sqsh", "box"])?;
    let kept = run(&["start", "exported.sqsh", "cat", "/home/kept"])?;
    assert_eq!(kept, "kept");
    environment.write(
        "job.batch",
        "#ENROOT_ROOTFS=exported.sqsh\nrc() { echo \"batch: $*\"; }\n",
        0o644,
    )?;
    assert_eq!(
        run(&["batch", "job.batch", "one", "two"])?,
        "batch: one two"
    );
    run(&["bundle", "-f", "-o", "box.run", "exported.sqsh"])?;
    let bundled = environment.program(environment.path("box.run"));
    assert_eq!(bundled.args(["cat", "/home/kept"]).text()?, "kept");
    let asked = enroot(environment, &["remove", "other"])?.run()?;
    assert!(
        asked.error_text().contains("[y/N]"),
        "{}",
        asked.error_text()
    );
    assert_eq!(run(&["list"])?, "box\nother");
    run(&["remove", "--force", "box", "other"])?;
    assert_eq!(run(&["list"])?, "");
    Ok(())
}

/// The tests of this file.
/// pyxis enters a namespace of control groups and fails where there is none. Its own group is the root there, and what is mounted fits.
fn control_groups_begin_at_the_start(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let image = image.display().to_string();
    let namespace = |program: Program| program.args(["readlink", "/proc/self/ns/cgroup"]).text();
    let ours =
        std::fs::read_link("/proc/self/ns/cgroup").context("read", "/proc/self/ns/cgroup")?;
    let inside = namespace(enroot(environment, &["start", &image])?)?;
    assert_ne!(inside, ours.display().to_string());
    let usual = namespace(environment.cista(["start", &image]))?;
    assert_eq!(usual, ours.display().to_string());
    let groups = enroot(environment, &["start", &image, "cat", "/proc/self/cgroup"])?.text()?;
    assert!(groups.lines().all(|line| line.ends_with(":/")), "{groups}");
    Ok(())
}

/// A source alone is mounted onto itself.
fn a_mount_needs_no_target(environment: &TestEnvironment<'_>) -> TestResult {
    put(environment, "shared/file", "content")?;
    let shared = environment.path("shared").display().to_string();
    let image = environment.session().imported(Recipe::Busybox)?;
    let image = image.display().to_string();
    let file = format!("{shared}/file");
    let start = enroot(environment, &["start", "-m", &shared, &image, "cat", &file])?;
    assert_eq!(start.text()?, "content");
    Ok(())
}

/// Who does not say yes keeps the container, and the status says so.
fn no_answer_removes_nothing(environment: &TestEnvironment<'_>) -> TestResult {
    let tree = unpack(environment, "box")?;
    let outcome = enroot(environment, &["remove", "box"])?.run()?;
    assert_eq!(outcome.code(), Some(1), "{}", outcome.error_text());
    assert!(tree.exists());
    Ok(())
}

pub(crate) const CASES: &[Case] = &[
    case(
        "enroot::control_groups_begin_at_the_start",
        control_groups_begin_at_the_start,
    ),
    case("enroot::a_mount_needs_no_target", a_mount_needs_no_target),
    case(
        "enroot::no_answer_removes_nothing",
        no_answer_removes_nothing,
    ),
    case(
        "enroot::containers_of_enroot_are_found",
        containers_of_enroot_are_found,
    ),
    case(
        "enroot::the_version_is_one_of_enroot",
        the_version_is_one_of_enroot,
    ),
    case("enroot::a_day_with_enroot", a_day_with_enroot),
    case("enroot::settings_of_enroot_count", settings_of_enroot_count),
    case(
        "enroot::devices_are_those_of_the_host_unless_restricted",
        devices_are_those_of_the_host_unless_restricted,
    ),
];
