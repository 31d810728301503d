//! What is added to containers: `environ.d`, `mounts.d`, the image's `/etc/fstab`, and the dialect of all mounts.

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::program::Program;

use super::bad_input::assert_clear_error;
use super::config::put;

/// `cista start OPTIONS image sh -c SCRIPT`, with `work/etc` as the administrator's directory.
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
        .args(["sh", "-c", script])
        .env("CISTA_SYSCONF_PATH", environment.path("etc")))
}

/// A container that is written to, and its name.
fn container(
    environment: &TestEnvironment<'_>,
    script: &str,
) -> Result<&'static str, HarnessError> {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", "box"])
        .arg(image)
        .check()?;
    environment
        .cista(["start", "-w", "box", "sh", "-c", script])
        .check()?;
    Ok("box")
}

/// The image's variables, then the administrator's, the user's, those of the command line: the last one wins.
fn the_last_variable_wins(environment: &TestEnvironment<'_>) -> TestResult {
    put(
        environment,
        "etc/environ.d/20-b.env",
        "A=system-b\nB=system-b\nHOST=x${TERM}y${NONE}\n  QUOTED=\"a b\"\nnot a line\nCISTA_SECRET=1\n",
    )?;
    put(
        environment,
        "etc/environ.d/10-a.env",
        "A=system-a\nC=system-a\nD=system-a\n",
    )?;
    put(environment, "etc/environ.d/30-c.txt", "A=no\n")?;
    put(
        environment,
        "../config/cista/environ.d/10.env",
        "C=user\nD=user\n",
    )?;
    let script = "echo $A $B $C $D $HOST \"$QUOTED\" $CISTA_SECRET.";
    let text = start(environment, &["-e", "D=line"], script)?.text()?;
    assert_eq!(text, "system-b system-b user line xxtermy a b .");
    Ok(())
}

/// Every way to write a mount, in files and on the command line.
fn mounts_of_every_kind(environment: &TestEnvironment<'_>) -> TestResult {
    environment.directory("one dir")?;
    put(environment, "one dir/file", "content\n")?;
    let here = environment.path("");
    let here = here.display();
    put(
        environment,
        "etc/mounts.d/10.fstab",
        &format!(
            "# comment\n\
             {here}/one\\040dir /mnt/dir none x-create=dir,bind,ro\n\
             ${{PLACE}} /mnt/with\\040blank x-create=auto,bind\n\
             tmpfs /mnt/memory tmpfs x-create=dir,size=1M,mode=700\n\
             /no/such /mnt/none none x-create=dir,bind,nofail,silent\n\
             /no/such /mnt/none none x-create=dir,bind,nofail\n"
        ),
    )?;
    put(
        environment,
        "../config/cista/mounts.d/10.fstab",
        &format!("{here}/one\\040dir/file /mnt/dir/file none bind 0 0\n"),
    )?;
    let script = "cat /mnt/dir/file /mnt/with\\ blank/file; grep -c ' /mnt/memory tmpfs' /proc/mounts; touch /mnt/dir/x 2>/dev/null || echo ro; stat -c %a /mnt/memory";
    let outcome = start(environment, &[], script)?
        .env("PLACE", environment.path("one dir"))
        .check()?;
    assert_eq!(outcome.text().trim(), "content\ncontent\n1\nro\n700");
    let told = outcome.error_text();
    assert_eq!(told.matches("warning:").count(), 1, "{told}");
    assert!(told.contains("10.fstab:6"), "{told}");
    Ok(())
}

/// `x-move` and `x-detach`, of what the container has.
fn mounts_are_moved_and_detached(environment: &TestEnvironment<'_>) -> TestResult {
    put(
        environment,
        "etc/mounts.d/10.fstab",
        "tmpfs /first tmpfs x-create=dir,size=1M 0 -1\n\
         ${CISTA_ROOTFS}/first /second none x-create=dir,x-move\n\
         none /var/lock none x-detach\n\
         none /tmp none remount,bind,ro\n\
         none /second none rprivate\n",
    )?;
    let script = "grep -c ' /first ' /proc/mounts; grep -c ' /second tmpfs' /proc/mounts; grep -c lock /proc/mounts; touch /tmp/x 2>/dev/null || echo ro";
    let text = start(environment, &[], script)?.run()?.text();
    assert_eq!(text.trim(), "0\n1\n0\nro");
    Ok(())
}

/// Mistakes are told with file and line, or with the option.
fn mistakes_are_told_with_their_line(environment: &TestEnvironment<'_>) -> TestResult {
    for (content, words) in [
        (
            "\n/only\n",
            &["mounts.d/10.fstab:2", "`/only` has no target"][..],
        ),
        (
            "/etc /x none bind,wrong\n",
            &["10.fstab:1", "unknown option `wrong`"],
        ),
        (
            "/etc /x none bind,x-move\n",
            &["10.fstab:1", "`x-move` and `bind`"],
        ),
        (
            "/no/such /x none x-create=dir,bind\n",
            &["10.fstab:1", "/no/such", "no such file"],
        ),
        (
            "/etc /not/there none bind\n",
            &["10.fstab:1", "/not/there", "no such file"],
        ),
        (
            "tmpfs /tmp tmpfs size=wrong\n",
            &["10.fstab:1", "tmpfs", "size"],
        ),
        (
            "nofs /tmp nofs defaults\n",
            &["10.fstab:1", "nofs", "no such device"],
        ),
    ] {
        put(environment, "etc/mounts.d/10.fstab", content)?;
        let outcome = start(environment, &[], "echo started")?.run()?;
        assert_clear_error(&outcome, 125, words);
    }
    put(environment, "etc/mounts.d/10.fstab", "")?;
    let outcome = start(environment, &["-m", "/no/such:/x"], "echo started")?.run()?;
    assert_clear_error(&outcome, 125, &["/no/such"]);
    Ok(())
}

/// `fs_passno`: the smaller number first, whatever the files and the lines are; the image's own count like the others.
fn mounts_are_made_in_the_order_of_their_numbers(environment: &TestEnvironment<'_>) -> TestResult {
    for name in ["first", "second", "third"] {
        put(environment, &format!("{name}/name"), name)?;
    }
    let line = |name: &str, pass: &str| {
        let source = environment.path(name);
        format!(
            "{} /mnt none x-create=dir,bind 0 {pass}\n",
            source.display()
        )
    };
    for (lines, seen) in [
        (
            [line("third", "10"), line("second", "2"), line("first", "1")],
            "third",
        ),
        (
            [line("first", "1"), line("third", ""), line("second", "-1")],
            "first",
        ),
        (
            [line("second", "1"), line("first", "1"), line("third", "1")],
            "third",
        ),
    ] {
        put(environment, "etc/mounts.d/10.fstab", &lines[0])?;
        put(environment, "etc/mounts.d/20.fstab", &lines[1..].concat())?;
        let text = start(environment, &[], "cat /mnt/name")?.text()?;
        assert_eq!(text, seen, "{lines:?}");
    }
    Ok(())
}

/// Mount points never resolve on the host, whatever links an image has there.
fn links_of_an_image_stay_inside(environment: &TestEnvironment<'_>) -> TestResult {
    let outside = environment.directory("outside")?;
    let source = environment.directory("source")?;
    put(environment, "source/file", "mounted\n")?;
    let up = "../".repeat(20);
    let shown = outside.display();
    let script = format!(
        "ln -s {shown} /absolute; ln -s {up}{shown} /relative; ln -s /loop /loop; ln -s /b /a; ln -s /a /b; ln -s /proc/self/root{shown} /magic; ln -s /absolute/deeper /chain"
    );
    let name = container(environment, &script)?;
    for target in ["absolute/x", "relative/x", "absolute", "chain/x", "magic/x"] {
        for writable in [true, false] {
            let mount = format!("{}:/{target}:none:x-create=dir,bind", source.display());
            let mut program = environment.cista(["start", "-m", &mount]);
            if writable {
                program = program.arg("-w");
            }
            let outcome = program
                .args([name, "sh", "-c", &format!("cat /{target}/file")])
                .run()?;
            // A magic link is refused, everything else leads to a place inside.
            if target.starts_with("magic") {
                assert_ne!(outcome.code(), Some(0), "{target}");
            } else {
                assert_eq!(
                    outcome.text().trim(),
                    "mounted",
                    "{target}: {}",
                    outcome.error_text()
                );
            }
            let found = std::fs::read_dir(&outside)
                .context("read", &outside)?
                .count();
            assert_eq!(found, 0, "{target} led outside");
        }
    }
    for target in ["loop/x", "a/x", "loop"] {
        let mount = format!("{}:/{target}:none:x-create=dir,bind", source.display());
        let outcome = environment
            .cista(["start", "-m", &mount, name, "true"])
            .run()?;
        assert_clear_error(&outcome, 125, &[target, "symbolic link"]);
    }
    Ok(())
}

/// A container's own `/etc/fstab` counts; lines of a distribution for its disks do not.
fn the_fstab_of_a_container_counts(environment: &TestEnvironment<'_>) -> TestResult {
    environment.directory("source")?;
    put(environment, "source/file", "mounted\n")?;
    let here = environment.path("source");
    let script = format!(
        "mkdir /kept; echo '{} /mnt none x-create=dir,bind' >/etc/fstab; echo '${{ENROOT_ROOTFS}}/kept /kept none bind,rw' >>/etc/fstab; echo 'UUID=1-2 / ext4 defaults 0 1' >>/etc/fstab; echo '/dev/sda1 /boot vfat defaults' >>/etc/fstab",
        here.display()
    );
    let name = container(environment, &script)?;
    let text = environment
        .cista([
            "start",
            name,
            "sh",
            "-c",
            "cat /mnt/file; touch /x 2>/dev/null || echo ro; touch /kept/x && echo rw",
        ])
        .text()?;
    assert_eq!(text, "mounted\nro\nrw");
    environment
        .cista(["start", "-w", name, "sh", "-c", "echo '/only' >/etc/fstab"])
        .check()?;
    let outcome = environment.cista(["start", name, "true"]).run()?;
    assert_clear_error(&outcome, 125, &["/etc/fstab:1", "/only"]);
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
        ],
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case("additions::the_last_variable_wins", the_last_variable_wins),
    case("additions::mounts_of_every_kind", mounts_of_every_kind),
    case(
        "additions::mounts_are_moved_and_detached",
        mounts_are_moved_and_detached,
    ),
    case(
        "additions::mistakes_are_told_with_their_line",
        mistakes_are_told_with_their_line,
    ),
    case(
        "additions::mounts_are_made_in_the_order_of_their_numbers",
        mounts_are_made_in_the_order_of_their_numbers,
    ),
    case(
        "additions::links_of_an_image_stay_inside",
        links_of_an_image_stay_inside,
    ),
    case(
        "additions::the_fstab_of_a_container_counts",
        the_fstab_of_a_container_counts,
    ),
];
