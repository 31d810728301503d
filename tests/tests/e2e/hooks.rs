//! Programs and scripts that say how a container is started: `hooks.d`, `--conf`, `--rc`, `batch`.

use std::path::PathBuf;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::program::Program;

use super::bad_input::assert_clear_error;
use super::config::put;
use super::enroot::enroot;

/// Writes a script that can be executed.
fn script(
    environment: &TestEnvironment<'_>,
    name: &str,
    content: &str,
) -> Result<PathBuf, HarnessError> {
    let path = put(environment, name, content)?;
    set_mode(&path, 0o755)?;
    Ok(path)
}

/// `cista start OPTIONS image COMMAND`, with `work/etc` as the administrator's directory.
fn start(
    environment: &TestEnvironment<'_>,
    options: &[&str],
    command: &[&str],
) -> Result<Program, HarnessError> {
    let image = environment.session().imported(Recipe::Busybox)?;
    Ok(environment
        .cista(["start"])
        .args(options)
        .arg(image)
        .args(command)
        .env("CISTA_SYSCONF_PATH", environment.path("etc")))
}

/// Hooks are run in the order of directories and names, find what they are promised, and what they do stays.
fn hooks_do_what_they_are_for(environment: &TestEnvironment<'_>) -> TestResult {
    put(environment, "source/file", "mounted by line\n")?;
    script(
        environment,
        "etc/hooks.d/20-second.sh",
        "#!/bin/sh -e\n\
         echo printed\n\
         grep -q '^ORDER=first$' \"$ENROOT_ENVIRON\"\n\
         sed -i 's/^ORDER=.*/ORDER=second/' \"$CISTA_ENVIRON\"\n\
         echo HOOK_PID=$CISTA_PID >>$CISTA_ENVIRON\n\
         echo \"HOST=$OF_THE_HOST\" >>$ENROOT_ENVIRON\n\
         echo \"HERE=$PWD\" >>$ENROOT_ENVIRON\n\
         test -d /sys/kernel && test ! -e /sys/lower\n\
         echo written >$ENROOT_ROOTFS/written\n\
         echo \"$PWD/source /mnt/line x-create=dir,bind\" >>$ENROOT_MOUNTS\n\
         mkdir $ENROOT_ROOTFS/direct && mount --bind \"$PWD/source\" $ENROOT_ROOTFS/direct\n",
    )?;
    script(
        environment,
        "etc/hooks.d/10-first.sh",
        "#!/bin/sh -e\ntest \"$ENROOT_PID $ENROOT_ROOTFS $ENROOT_MOUNTS\" = \"$CISTA_PID $CISTA_ROOTFS $CISTA_MOUNTS\"\necho ORDER=first >>$CISTA_ENVIRON\n",
    )?;
    script(
        environment,
        "../config/cista/hooks.d/10-user.sh",
        "echo ORDER=$(sed -n 's/^ORDER=//p' $CISTA_ENVIRON)+user >>$CISTA_ENVIRON\n",
    )?;
    put(
        environment,
        "etc/hooks.d/30-not-executable.sh",
        "#!/bin/sh\nexit 1\n",
    )?;
    script(environment, "etc/hooks.d/40-other", "#!/bin/sh\nexit 1\n")?;
    let seen = "echo $ORDER $HOST $HERE; test $HOOK_PID = $$ && echo same; cat /written /mnt/line/file /direct/file";
    let text = start(
        environment,
        &["-e", "KEPT=a b"],
        &[
            "sh",
            "-c",
            &format!("{seen}; echo $KEPT; grep -c 'Cap[AI][mn][bh]:.0*$' /proc/self/status"),
        ],
    )?
    .env("OF_THE_HOST", "host")
    .text()?;
    let here = environment.path("");
    let here = here.display().to_string();
    let here = here.trim_end_matches('/');
    assert_eq!(
        text,
        format!("second+user host {here}\nsame\nwritten\nmounted by line\nmounted by line\na b\n2")
    );
    // A named container keeps what a hook writes, if it is written to.
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", "box"])
        .arg(image)
        .check()?;
    environment
        .cista(["start", "-w", "box", "cat", "/written"])
        .env("CISTA_SYSCONF_PATH", environment.path("etc"))
        .check()?;
    Ok(())
}

/// A hook that fails stops the start, and is named.
fn a_failing_hook_stops_the_start(environment: &TestEnvironment<'_>) -> TestResult {
    for (content, words) in [
        (
            "#!/bin/sh\nexit 3\n",
            &["hooks.d/10.sh", "exit status: 3"][..],
        ),
        ("#!/bin/sh\nkill -9 $$\n", &["hooks.d/10.sh", "signal: 9"]),
        ("#!/no/such/shell\n", &["hooks.d/10.sh", "no such file"]),
        (
            "#!/bin/sh\necho '/only' >>$CISTA_MOUNTS\n",
            &["fstab:1", "/only"],
        ),
    ] {
        script(environment, "etc/hooks.d/10.sh", content)?;
        let outcome = start(environment, &[], &["echo", "started"])?.run()?;
        assert_clear_error(&outcome, 125, words);
    }
    Ok(())
}

/// As enroot the program runs the hooks of enroot, with its variables; those that every container has natively are passed over.
fn hooks_of_enroot_are_run(environment: &TestEnvironment<'_>) -> TestResult {
    put(
        environment,
        "etc/enroot.conf",
        "ENROOT_SITE_THING here\nENROOT_REMAP_ROOT yes\n",
    )?;
    script(
        environment,
        "etc/hooks.d/50-site.sh",
        "#!/bin/sh\necho \"SITE=$ENROOT_SITE_THING ${ENROOT_REMAP_ROOT-} ${ENROOT_MOUNT_HOME-unset}\" >>$ENROOT_ENVIRON\n",
    )?;
    script(
        environment,
        "etc/hooks.d/10-shadow.sh",
        "#!/bin/sh\nexit 1\n",
    )?;
    put(
        environment,
        "etc/mounts.d/10-system.fstab",
        "/proc /proc none x-create=dir,rbind,rw,nosuid,nodev,noexec\n/dev /dev none x-create=dir,rbind,rw,nosuid,noexec\n",
    )?;
    let image = environment
        .session()
        .imported(Recipe::Busybox)?
        .display()
        .to_string();
    let text = enroot(
        environment,
        &[
            "start",
            &image,
            "sh",
            "-c",
            "echo $SITE; grep -c ' /proc proc' /proc/mounts",
        ],
    )?
    .env("ENROOT_MOUNT_HOME", "no")
    .text()?;
    assert_eq!(text, "here yes unset\n1");
    Ok(())
}

const CONF: &str = r#"#!/bin/bash
#ENROOT_REMAP_ROOT=y
# CISTA_ROOTFS_WRITABLE=yes
shared=set
all=$*
environ() {
    echo "A=conf"
    echo "B=conf"
    echo "ARGS=$all"
    shared=changed
}
mounts() {
    echo "$PWD/source /mnt/conf none x-create=dir,bind"
}
hooks() {
    echo "SHARED=$shared" >>"$ENROOT_ENVIRON"
    echo hook >"$ENROOT_ROOTFS/hooked"
}
"#;

/// The functions of a configuration script, its state, its directives; the command line wins.
fn configuration_scripts(environment: &TestEnvironment<'_>) -> TestResult {
    put(environment, "source/file", "mounted\n")?;
    let conf = environment.write("conf", CONF, 0o644)?;
    let seen = "echo $A $B $SHARED; cat /mnt/conf/file /hooked; id -u; touch /x && echo rw";
    let text = start(
        environment,
        &["-e", "B=line", "-c", "conf"],
        &["sh", "-c", seen],
    )?
    .text()?;
    assert_eq!(text, "conf line changed\nmounted\nhook\n0\nrw");
    // Called as Slurm's plugin does: by a descriptor, of a file whose name may be gone.
    let image = environment.session().imported(Recipe::Busybox)?;
    let command = format!(
        "exec 9<conf; rm conf; exec {} start --conf /proc/self/fd/9 {} sh -c 'echo $ARGS'",
        environment.program_path().display(),
        image.display()
    );
    let text = environment.program("sh").args(["-c", &command]).text()?;
    assert_eq!(text, "sh -c echo $ARGS");
    assert!(!conf.exists());
    Ok(())
}

/// `rc` of a script, and `--rc`, replace the command script; the image's own file stays as it is.
fn command_scripts_are_replaced(environment: &TestEnvironment<'_>) -> TestResult {
    environment.write(
        "conf",
        "rc() {\n    echo \"conf $*\"\n    cat /etc/issue\n}\n",
        0o644,
    )?;
    environment.write("rc", "echo \"rc $*\"\n", 0o644)?;
    let text = start(environment, &["-c", "conf"], &["a", "b c"])?.text()?;
    assert_eq!(text, "conf a b c\na test image of cista");
    for options in [&["--rc", "rc"][..], &["--rc", "rc", "-c", "conf"]] {
        assert_eq!(start(environment, options, &["a"])?.text()?, "rc a");
    }
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", "box"])
        .arg(image)
        .check()?;
    environment
        .cista(["start", "-w", "--rc", "rc", "box", "x"])
        .check()?;
    let text = environment
        .cista([
            "start",
            "box",
            "sh",
            "-c",
            "grep -c '^echo \"rc' /etc/rc; true",
        ])
        .text()?;
    assert_eq!(text, "0");
    Ok(())
}

/// A script that is a program; what to start stands in it.
fn batch_scripts_are_programs(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", "box"])
        .arg(&image)
        .check()?;
    let program = environment.program_path();
    let text = format!(
        "#! {} batch\n#CISTA_ROOTFS=box\n#CISTA_REMAP_ROOT=y\n",
        program.display()
    );
    let path = script(environment, "job", &text)?;
    let text = environment
        .program(&path)
        .args(["sh", "-c", "id -u; echo $0", "x"])
        .text()?;
    assert_eq!(text, "0\nx");
    // By the name of enroot, with its names and its data path; words are expanded.
    enroot(
        environment,
        &["create", "-n", "other", &image.display().to_string()],
    )?
    .check()?;
    let text = format!(
        "#! {} batch\n#ENROOT_ROOTFS=$(echo other)\nenviron() {{\n    echo X=conf\n}}\n",
        program.with_file_name("enroot").display()
    );
    let path = script(environment, "job2", &text)?;
    assert_eq!(
        environment
            .program(&path)
            .args(["sh", "-c", "echo $X"])
            .text()?,
        "conf"
    );
    environment.write("nothing", "# no\n", 0o644)?;
    let outcome = environment.cista(["batch", "nothing", "true"]).run()?;
    assert_clear_error(
        &outcome,
        125,
        &["nothing", "does not say what to start", "hint:"],
    );
    let outcome = environment.cista(["batch", "no-such-file"]).run()?;
    assert_clear_error(&outcome, 125, &["no-such-file"]);
    Ok(())
}

/// What is wrong with a script is told, with the function.
fn scripts_that_fail_are_named(environment: &TestEnvironment<'_>) -> TestResult {
    for (content, words) in [
        ("exit 4\n", &["`", "conf", "exit status: 4"][..]),
        (
            "environ() {\n    false\n}\n",
            &["`environ`", "conf", "exit status: 1"],
        ),
        (
            "mounts() {\n    echo /only\n}\n",
            &["mounts():1", "`/only`"],
        ),
        (
            "mounts() {\n    exit 7\n}\n",
            &["`mounts`", "exit status: 7"],
        ),
        (
            "hooks() {\n    false; true\n}\n",
            &["`hooks`", "exit status: 1"],
        ),
        ("if\n", &["conf", "exit status"]),
    ] {
        environment.write("conf", content, 0o644)?;
        let outcome = start(environment, &["--conf", "conf"], &["echo", "started"])?.run()?;
        assert_clear_error(&outcome, 125, words);
    }
    for option in ["--conf", "--rc"] {
        let outcome = start(environment, &[option, "none"], &["echo", "started"])?.run()?;
        assert_clear_error(&outcome, 125, &["none", "no such file"]);
    }
    environment.write("conf", "environ() {\n    echo A=1\n}\n", 0o644)?;
    let outcome = start(environment, &["--conf", "conf"], &["true"])?
        .env("PATH", "/none")
        .run()?;
    assert_clear_error(&outcome, 125, &["`bash`"]);
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
            Need::Program("bash"),
        ],
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "hooks::hooks_do_what_they_are_for",
        hooks_do_what_they_are_for,
    ),
    case(
        "hooks::a_failing_hook_stops_the_start",
        a_failing_hook_stops_the_start,
    ),
    case("hooks::hooks_of_enroot_are_run", hooks_of_enroot_are_run),
    case("hooks::configuration_scripts", configuration_scripts),
    case(
        "hooks::command_scripts_are_replaced",
        command_scripts_are_replaced,
    ),
    case(
        "hooks::batch_scripts_are_programs",
        batch_scripts_are_programs,
    ),
    case(
        "hooks::scripts_that_fail_are_named",
        scripts_that_fail_are_named,
    ),
];
