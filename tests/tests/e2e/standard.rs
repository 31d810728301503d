//! What enroot's standard hooks do, which every container has natively.

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::program::Program;

use super::bad_input::assert_clear_error;
use super::config::put;
use super::enroot::enroot;

fn start(
    environment: &TestEnvironment<'_>,
    options: &[&str],
    script: &str,
) -> Result<Program, HarnessError> {
    let image = environment.session().imported(Recipe::Busybox)?;
    Ok(environment
        .cista(["start"])
        .args(options)
        .arg(image)
        .args(["sh", "-c", script]))
}

/// The home directory is there when it is asked for, writable, at its own place or at root's.
fn the_home_is_mounted_when_asked_for(environment: &TestEnvironment<'_>) -> TestResult {
    put(environment, "../home/file", "of the host\n")?;
    let home = environment.home();
    let script = "echo $HOME; cat ~/file && touch ~/written && rm ~/written";
    let text = start(environment, &[], script)?
        .env("CISTA_MOUNT_HOME", "yes")
        .text()?;
    assert_eq!(text, format!("{}\nof the host", home.display()));
    let text = start(environment, &["-r"], script)?
        .env("CISTA_MOUNT_HOME", "yes")
        .text()?;
    assert_eq!(text, "/root\nof the host");
    let image = environment
        .session()
        .imported(Recipe::Busybox)?
        .display()
        .to_string();
    let text = enroot(environment, &["start", &image, "sh", "-c", script])?
        .env("ENROOT_MOUNT_HOME", "y")
        .text()?;
    assert_eq!(text, format!("{}\nof the host", home.display()));
    let missing = start(environment, &[], "echo started")?
        .env("CISTA_MOUNT_HOME", "yes")
        .env("HOME", "/no/such/home")
        .env("XDG_CONFIG_HOME", environment.path(""))
        .run()?;
    assert_clear_error(&missing, 125, &["/no/such/home", "CISTA_MOUNT_HOME"]);
    let without = start(environment, &[], "test -e ~/file || echo none")?.text()?;
    assert_eq!(without, "none");
    Ok(())
}

/// PyTorch gets its variables from Slurm's; what is set stays, and other images get nothing.
fn pytorch_is_told_of_its_tasks(environment: &TestEnvironment<'_>) -> TestResult {
    let script = "echo $MASTER_ADDR $MASTER_PORT $WORLD_SIZE $RANK $LOCAL_RANK $OMP_NUM_THREADS";
    let under_slurm = |options: &[&str]| -> Result<Program, HarnessError> {
        let mut program = start(environment, options, script)?;
        for (name, value) in [
            ("SLURM_JOB_ID", "4537"),
            ("SLURM_STEP_NODELIST", "gpu[08-11,20]"),
            ("SLURM_NTASKS", "32"),
            ("SLURM_PROCID", "9"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NUM_TASKS", "32"),
            ("SLURM_STEP_NUM_NODES", "4"),
        ] {
            program = program.env(name, value);
        }
        Ok(program)
    };
    let version = ["-e", "PYTORCH_VERSION=2"];
    assert_eq!(under_slurm(&version)?.text()?, "gpu08 61001 32 9 1 1");
    let own = [
        "-e",
        "PYTORCH_VERSION=2",
        "-e",
        "MASTER_PORT=5",
        "-e",
        "OMP_NUM_THREADS=8",
    ];
    assert_eq!(under_slurm(&own)?.text()?, "gpu08 5 32 9 1 8");
    assert_eq!(under_slurm(&[])?.text()?, "");
    let off = under_slurm(&version)?.env("CISTA_SLURM_PYTORCH", "no");
    assert_eq!(off.text()?, "");
    assert_eq!(start(environment, &version, script)?.text()?, "");
    Ok(())
}

/// PMI's variables, file and directories reach the container when the setting, or enroot's hook, says so.
fn pmi_reaches_the_container_when_asked_for(environment: &TestEnvironment<'_>) -> TestResult {
    environment.directory("server")?;
    put(environment, "server/socket", "of the server\n")?;
    put(environment, "system/spmix_appdir_7_5.0/x", "of the step\n")?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let script = "echo $SLURM_PROCID $PMI_FD $PMIX_MCA_gds; cat $PMIX_SERVER_TMPDIR/socket $PMIX_SYSTEM_TMPDIR/spmix_appdir_7_5.0/x; cat <&7";
    let step = |program: Program| {
        program
            .env("SLURM_JOB_ID", "5")
            .env("SLURM_STEP_ID", "0")
            .env("SLURM_JOB_UID", "7")
            .env("SLURM_PROCID", "3")
            .env("PMI_FD", "7")
            .env("PMIX_GDS_MODULE", "hash")
            .env("PMIX_SERVER_TMPDIR", environment.path("server"))
            .env("PMIX_SYSTEM_TMPDIR", environment.path("system"))
    };
    let command = format!(
        "echo of pmi >pmi; exec 7<pmi; exec {} start {} sh -c '{script}'",
        environment.program_path().display(),
        image.display()
    );
    let run = |value: &str| {
        step(environment.program("sh"))
            .args(["-c", &command])
            .env("CISTA_SLURM_PMI", value)
            .run()
    };
    assert_eq!(
        run("yes")?.text().trim(),
        "3 7 hash\nof the server\nof the step\nof pmi"
    );
    assert_eq!(run("no")?.text().trim(), "");
    let hook = put(
        environment,
        "etc/hooks.d/50-slurm-pmi.sh",
        "#!/bin/sh\nexit 1\n",
    )?;
    cista_tests::environment::set_mode(&hook, 0o755)?;
    let image = image.display().to_string();
    // A variable whose file is closed is no reason to fail, and none to get another file.
    let arguments = [
        "start",
        &image,
        "sh",
        "-c",
        "echo $SLURM_PROCID; test -e /proc/self/fd/7 && echo open; true",
    ];
    assert_eq!(step(enroot(environment, &arguments)?).text()?, "3");
    Ok(())
}

/// The image's PATH survives `/etc/profile`, which a login shell reads; without the setting nobody reads it.
fn a_profile_adds_and_changes_nothing(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", "box"])
        .arg(image)
        .check()?;
    let profile = "echo 'PATH=/lost; ADDED=by-profile; export PATH ADDED' >/etc/profile";
    environment
        .cista([
            "start",
            "-w",
            "-e",
            "PATH=/bin:/sbin",
            "box",
            "sh",
            "-c",
            profile,
        ])
        .check()?;
    let seen = [
        "start",
        "-e",
        "PATH=/own:/bin",
        "box",
        "sh",
        "-c",
        "echo $PATH $ADDED; exit 3",
    ];
    let plain = environment.cista(seen).run()?;
    assert_eq!((plain.text().trim(), plain.code()), ("/own:/bin", Some(3)));
    let login = environment
        .cista(seen)
        .env("CISTA_LOGIN_SHELL", "yes")
        .run()?;
    assert_eq!(
        (login.text().trim(), login.code()),
        ("/own:/bin by-profile", Some(3)),
        "{}",
        login.error_text()
    );
    Ok(())
}

/// Debian's apt does not drop its privileges to a user that has no id, and the image stays as it is.
fn apt_stays_root_under_root(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Debian)?;
    let seen = |options: &[&str]| {
        environment
            .cista(["start"])
            .args(options)
            .arg(&image)
            .args([
                "sh",
                "-c",
                "cat /etc/apt/apt.conf.d/cista 2>/dev/null; grep -c ^_apt: /etc/passwd; true",
            ])
            .text()
    };
    assert_eq!(seen(&["-r"])?, "APT::Sandbox::User \"root\";\n0");
    assert_eq!(seen(&[])?, "0");
    Ok(())
}

/// A program finds its own control groups, read-only.
fn control_groups_are_ones_own(environment: &TestEnvironment<'_>) -> TestResult {
    let script = "while IFS=: read -r n c p; do test \"$p\" = / && continue; d=/sys/fs/cgroup/$c; test -n \"$c\" || d=/sys/fs/cgroup; test -e $d/cgroup.procs && mkdir $d/new 2>/dev/null && echo \"$d writable\"; done </proc/self/cgroup; echo done";
    for options in [&[][..], &["--net"], &["--pid"]] {
        assert_eq!(start(environment, options, script)?.text()?, "done");
    }
    Ok(())
}

const fn case(
    name: &'static str,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who: Who::Both,
        needs,
        run,
    }
}

const BUSYBOX: &[Need] = &[
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Fuse,
];

const DEBIAN: &[Need] = &[
    Need::Image(Recipe::Debian),
    Need::UserNamespaces,
    Need::Fuse,
];

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "standard::the_home_is_mounted_when_asked_for",
        BUSYBOX,
        the_home_is_mounted_when_asked_for,
    ),
    case(
        "standard::pytorch_is_told_of_its_tasks",
        BUSYBOX,
        pytorch_is_told_of_its_tasks,
    ),
    case(
        "standard::pmi_reaches_the_container_when_asked_for",
        BUSYBOX,
        pmi_reaches_the_container_when_asked_for,
    ),
    case(
        "standard::a_profile_adds_and_changes_nothing",
        BUSYBOX,
        a_profile_adds_and_changes_nothing,
    ),
    case(
        "standard::apt_stays_root_under_root",
        DEBIAN,
        apt_stays_root_under_root,
    ),
    case(
        "standard::control_groups_are_ones_own",
        BUSYBOX,
        control_groups_are_ones_own,
    ),
];
