//! What a container must not get at, and what an image must not do to the host.

use std::path::Path;

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Compression, LayerWriter, LayoutWriter, Recipe, RunConfig};
use cista_tests::listing::Listing;

use super::start::{busybox, shell};

fn privileges_are_dropped(environment: &TestEnvironment<'_>) -> TestResult {
    let status = shell(
        environment,
        &[],
        "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status",
    )?;
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    // A setuid program is only a program: busybox's su would be root by it.
    let text = shell(
        environment,
        &["-w"],
        "cp /bin/busybox /busybox-suid && chmod 4755 /busybox-suid && /busybox-suid id -u",
    )?;
    assert_eq!(text, environment.user().uid.to_string());
    Ok(())
}

fn no_descriptor_leaks(environment: &TestEnvironment<'_>) -> TestResult {
    // ls itself opens one more, the directory that it lists.
    let text = shell(environment, &[], "ls /proc/self/fd")?;
    assert_eq!(
        text.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
    Ok(())
}

fn the_host_is_not_visible(environment: &TestEnvironment<'_>) -> TestResult {
    environment.write("secret", "a secret of the host", 0o644)?;
    let work = environment.path("").display().to_string();
    let outcome = busybox(environment, &[], &["ls", "-d", &work])?.run()?;
    assert_ne!(
        outcome.code(),
        Some(0),
        "{work} is visible in the container"
    );
    // The old root must be gone, not only hidden.
    let mounts = shell(environment, &[], "cat /proc/self/mountinfo")?;
    let session = environment.session().scratch().display().to_string();
    let targets: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    assert!(
        !targets.iter().any(|target| target.starts_with(&session)),
        "{targets:?}"
    );
    let up = shell(
        environment,
        &[],
        "cd /; cd ../../..; pwd; ls /proc/1/root/ >/dev/null 2>&1 && ls -d /proc/1/root/var/tmp 2>/dev/null; ls -A /home",
    )?;
    assert_eq!(up, "/", "a way out");
    Ok(())
}

fn devices_are_few(environment: &TestEnvironment<'_>) -> TestResult {
    let text = shell(
        environment,
        &[],
        "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo no $d; done; [ -d /dev/pts ] && [ -d /dev/shm ] && echo there; ls /dev | grep -E '^(sd|vd|nvme|loop|mem|kmsg|fuse)' | head -3; echo x >/dev/null && head -c 4 /dev/zero | wc -c",
    )?;
    assert_eq!(text, "there\n4");
    Ok(())
}

fn kernel_file_systems_are_there(environment: &TestEnvironment<'_>) -> TestResult {
    let text = shell(
        environment,
        &[],
        "stat -f -c %T /proc; stat -f -c %T /sys; touch /sys/x 2>&1; [ -s /etc/resolv.conf ] || [ ! -s /etc/hosts ] || echo; cat /proc/sys/kernel/ostype",
    )?;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.first(), Some(&"proc"), "{text}");
    assert_eq!(lines.last(), Some(&"Linux"), "{text}");
    assert!(
        text.contains("Read-only file system") || text.contains("Permission denied"),
        "/sys can be written: {text}"
    );
    Ok(())
}

/// Images whose mount points are links that lead out: what starting them does to a directory of the host.
fn mount_points_that_lead_out(environment: &TestEnvironment<'_>) -> TestResult {
    let outside = environment.directory("outside")?;
    for below in ["etc", "dev", "proc", "sys", "tmp"] {
        environment.directory(&format!("outside/{below}"))?;
    }
    environment.write("outside/etc/passwd", "of the host\n", 0o644)?;
    let before = Listing::of_directory(&outside)?;
    let target = outside.display().to_string();
    let deep = "../".repeat(30);
    type Trap<'a> = (
        &'static str,
        Box<dyn Fn(&mut LayerWriter) -> TestResult + 'a>,
    );
    let replaced = |name: &'static str, link: String| -> Trap<'_> {
        (
            name,
            Box::new(move |layer| {
                layer.whiteout(name)?;
                layer.symlink(name, &link)
            }),
        )
    };
    let traps: Vec<Trap<'_>> = vec![
        replaced("etc", format!("{target}/etc")),
        replaced("etc", format!("{deep}{target}/etc")),
        replaced("tmp", format!("{target}/tmp")),
        replaced("dev", format!("{target}/dev")),
        replaced("proc", format!("{target}/proc")),
        replaced("sys", format!("{deep}{target}/sys")),
        replaced("tmp", "tmp".into()),
        replaced("proc", "/etc".into()),
        replaced("proc", "/proc/self/root/../../..".into()),
        (
            "passwd",
            Box::new(|layer| layer.symlink("etc/passwd", &format!("{target}/etc/passwd"))),
        ),
        (
            "resolv",
            Box::new(|layer| layer.symlink("etc/resolv.conf", &format!("{target}/created"))),
        ),
        ("hosts", Box::new(|layer| layer.directory("etc/hosts/"))),
        (
            "file",
            Box::new(|layer| {
                layer.whiteout("dev")?;
                layer.file("dev", b"a file where a directory should be")
            }),
        ),
    ];
    for (index, (name, fill)) in traps.iter().enumerate() {
        let image = trap(environment, index, fill)?;
        let outcome = environment
            .cista(["start", "-w", "-r"])
            .arg(&image)
            .args(["/bin/busybox", "echo", "alive"])
            .run()?;
        // Either it works inside its own root, or it fails with a clear error before anything ran.
        match outcome.code() {
            Some(0) => assert_eq!(outcome.text(), "alive", "{name} {index}"),
            _ => super::bad_input::assert_clear_error(&outcome, 125, &[]),
        }
        let changes = before.differences(&Listing::of_directory(&outside)?);
        assert!(changes.is_empty(), "{name} {index}: {changes:?}");
    }
    Ok(())
}

/// Imports the busybox image with one more layer.
fn trap(
    environment: &TestEnvironment<'_>,
    index: usize,
    fill: &dyn Fn(&mut LayerWriter) -> TestResult,
) -> Result<String, HarnessError> {
    let busybox = environment.session().images().get(Recipe::Busybox)?;
    let root = environment.directory(&format!("layout-{index}"))?;
    let mut layout = LayoutWriter::create(&root)?;
    layout.borrow(&busybox.layout, &busybox.layout.manifest.layers[0])?;
    layout.layer(Compression::None, fill)?;
    layout.finish(
        "1",
        &RunConfig {
            env: vec!["PATH=/bin".into()],
            ..RunConfig::default()
        },
    )?;
    let image = format!("./{index}.sqsh");
    environment
        .cista(["import", "-q", "-o", &image])
        .arg(format!("oci:{}:1", root.display()))
        .check()?;
    Ok(image)
}

/// A bind mount of `-m` onto a path that the image made a link to the outside.
fn mount_targets_stay_inside(environment: &TestEnvironment<'_>) -> TestResult {
    let outside = environment.directory("outside")?;
    environment.directory("source")?;
    environment.write("source/file", "mounted", 0o644)?;
    let target = outside.display().to_string();
    let image = trap(environment, 0, &|layer| layer.symlink("exit", &target))?;
    let mount = format!("{}:/exit/below", environment.path("source").display());
    let outcome = environment
        .cista(["start", "-m", &mount])
        .arg(&image)
        .args(["cat", "/exit/below/file"])
        .run()?;
    if outcome.code() == Some(0) {
        assert_eq!(outcome.text(), "mounted");
    } else {
        super::bad_input::assert_clear_error(&outcome, 125, &["/exit"]);
    }
    assert!(
        !Path::new(&target).join("below").exists(),
        "made on the host"
    );
    Ok(())
}

/// What the runtime runs or reads never comes from the image: an image with its own `mount`, libraries and
/// configuration is only files.
fn the_image_brings_no_helpers(environment: &TestEnvironment<'_>) -> TestResult {
    let mark = environment.path("mark");
    let image = trap(environment, 0, &|layer| {
        let script = format!("#!/bin/busybox sh\necho ran >{}\n", mark.display());
        for name in [
            "mount",
            "fusermount3",
            "fusermount",
            "newuidmap",
            "newgidmap",
            "squashfuse",
            "enroot",
        ] {
            layer.whiteout(&format!("bin/{name}"))?;
            let header =
                cista_tests::image::header(tar::EntryType::Regular, 0o755, script.len() as u64);
            layer.entry(format!("bin/{name}").as_bytes(), header, script.as_bytes())?;
        }
        layer.file("etc/ld.so.preload", b"/evil.so\n")
    })?;
    let text = environment
        .cista(["start"])
        .arg(&image)
        .args(["echo", "fine"])
        .text()?;
    assert_eq!(text, "fine");
    assert!(!mark.exists());
    std::fs::metadata(environment.path("0.sqsh")).context("look at", "0.sqsh")?;
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case::container(
        "isolation::privileges_are_dropped",
        Who::Both,
        privileges_are_dropped,
    ),
    Case::container(
        "isolation::no_descriptor_leaks",
        Who::Both,
        no_descriptor_leaks,
    ),
    Case::container(
        "isolation::the_host_is_not_visible",
        Who::User,
        the_host_is_not_visible,
    ),
    Case::container("isolation::devices_are_few", Who::Both, devices_are_few),
    Case::container(
        "isolation::kernel_file_systems_are_there",
        Who::Both,
        kernel_file_systems_are_there,
    ),
    Case::container(
        "isolation::mount_points_that_lead_out",
        Who::Both,
        mount_points_that_lead_out,
    ),
    Case::container(
        "isolation::mount_targets_stay_inside",
        Who::Both,
        mount_targets_stay_inside,
    ),
    Case::container(
        "isolation::the_image_brings_no_helpers",
        Who::User,
        the_image_brings_no_helpers,
    ),
];
