//! `cista start`: the program that was asked for, with its arguments, environment, files and users.

use std::time::Duration;

use cista_tests::case::{CONTAINER, Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{LayoutWriter, Packing, Recipe, RunConfig};
use cista_tests::listing::{hash_of_file, hex};
use cista_tests::program::{Outcome, Program};
use sha2::{Digest as _, Sha256};

/// `cista start` of the busybox image with a command line.
pub(crate) fn busybox(
    environment: &TestEnvironment<'_>,
    options: &[&str],
    command: &[&str],
) -> Result<Program, HarnessError> {
    let image = environment.session().imported(Recipe::Busybox)?;
    Ok(environment
        .cista(["start"])
        .args(options)
        .arg(image)
        .args(command))
}

/// What a shell script prints in the busybox image. It has to succeed.
pub(crate) fn shell(
    environment: &TestEnvironment<'_>,
    options: &[&str],
    script: &str,
) -> Result<String, HarnessError> {
    busybox(environment, options, &["sh", "-c", script])?.text()
}

fn output_and_arguments_pass(environment: &TestEnvironment<'_>) -> TestResult {
    let outcome = busybox(
        environment,
        &[],
        &[
            "printf", "<%s>", "a b", "", "*", "-n", "--help", "$HOME", "\u{fc}",
        ],
    )?
    .check()?;
    assert_eq!(outcome.text(), "<a b><><*><-n><--help><$HOME><\u{fc}>");
    assert_eq!(outcome.error_text(), "", "a start that works says nothing");
    let errors = busybox(environment, &[], &["sh", "-c", "echo out; echo err >&2"])?.check()?;
    assert_eq!(
        (errors.text().as_str(), errors.error_text().as_str()),
        ("out", "err\n")
    );
    Ok(())
}

fn exit_status_passes(environment: &TestEnvironment<'_>) -> TestResult {
    for status in [0, 1, 3, 125, 255] {
        let outcome = busybox(environment, &[], &["sh", "-c", &format!("exit {status}")])?.run()?;
        assert_eq!(outcome.code(), Some(status), "{}", outcome.error_text());
    }
    Ok(())
}

fn programs_that_cannot_run(environment: &TestEnvironment<'_>) -> TestResult {
    let run = |program: &str| -> Result<Outcome, HarnessError> {
        busybox(environment, &[], &[program])?.run()
    };
    for (program, status) in [
        ("no-such-program", 127),
        ("/no/such/program", 127),
        ("/etc/passwd", 126),
        ("/etc", 126),
    ] {
        let outcome = run(program)?;
        super::bad_input::assert_clear_error(&outcome, status, &[program]);
    }
    Ok(())
}

fn without_a_command_the_image_decides(environment: &TestEnvironment<'_>) -> TestResult {
    // The command of the busybox image is a shell, which reads its script from stdin.
    let outcome = busybox(environment, &[], &[])?
        .stdin_bytes("echo from the shell; exit 4\n")
        .run()?;
    assert_eq!(
        (outcome.text().as_str(), outcome.code()),
        ("from the shell", Some(4))
    );
    Ok(())
}

/// An image with an entrypoint: arguments of the command line take the place of its default arguments.
fn the_entrypoint_is_executed(environment: &TestEnvironment<'_>) -> TestResult {
    let busybox = environment.session().images().get(Recipe::Busybox)?;
    let root = environment.directory("layout")?;
    let mut layout = LayoutWriter::create(&root)?;
    layout.borrow(&busybox.layout, &busybox.layout.manifest.layers[0])?;
    let config = RunConfig {
        env: vec!["PATH=/bin".into(), "FROM_IMAGE=yes".into()],
        entrypoint: vec!["printf".into(), "[%s]".into(), "entry".into()],
        cmd: vec!["default one".into(), "two".into()],
        working_dir: "/made/by/nobody".into(),
        ..RunConfig::default()
    };
    layout.finish("1", &config)?;
    environment
        .cista(["import", "-q", "-o", "x.sqsh"])
        .arg(format!("oci:{}:1", root.display()))
        .check()?;
    let plain = environment.cista(["start", "./x.sqsh"]).text()?;
    assert_eq!(plain, "[entry][default one][two]");
    let given = environment
        .cista(["start", "./x.sqsh", "a b", "c"])
        .text()?;
    assert_eq!(given, "[entry][a b][c]");
    Ok(())
}

fn the_environment_is_the_images_and_what_was_asked(
    environment: &TestEnvironment<'_>,
) -> TestResult {
    let image = environment.session().imported(Recipe::Odd(Packing::Gzip))?;
    let text = environment
        .cista(["start", "-e", "GIVEN=a=b c", "-e", "TAKEN", "-e", "ODD2="])
        .arg(&image)
        .args(["env", "-0"])
        .env("TAKEN", "from the host")
        .env("LD_LIBRARY_PATH", "/host/lib")
        .env("LD_PRELOAD", "")
        .text()?;
    let variables: Vec<&str> = text.split('\0').collect();
    for expected in [
        "ODD=a value with spaces, 'quotes' and $signs",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "GIVEN=a=b c",
        "TAKEN=from the host",
        "ODD2=",
        "TERM=xterm",
    ] {
        assert!(
            variables.contains(&expected),
            "`{expected}` is not in {variables:?}"
        );
    }
    assert!(
        !variables
            .iter()
            .any(|variable| variable.starts_with("LD_LIBRARY_PATH=")),
        "{variables:?}"
    );
    let names: Vec<_> = variables
        .iter()
        .filter_map(|variable| variable.split('=').next())
        .collect();
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(
        unique.len(),
        names.len(),
        "a variable stands twice in {variables:?}"
    );
    Ok(())
}

fn the_working_directory_is_the_images(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Odd(Packing::Gzip))?;
    let directory = environment.cista(["start"]).arg(image).arg("pwd").text()?;
    assert_eq!(directory, "/odd");
    assert_eq!(busybox(environment, &[], &["pwd"])?.text()?, "/");
    Ok(())
}

fn the_root_is_read_only_unless_asked(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let before = hash_of_file(&image)?;
    let refused = busybox(environment, &[], &["sh", "-c", "echo x >/etc/new"])?.run()?;
    assert_ne!(refused.code(), Some(0));
    assert!(
        refused.error_text().contains("Read-only file system"),
        "{}",
        refused.error_text()
    );
    let script = "echo x >/etc/new && echo y >>/etc/issue && rm /bin/vi && mkdir /d && cat /etc/new /etc/issue && ls /bin/vi 2>&1";
    let outcome = busybox(environment, &["-w"], &["sh", "-c", script])?.run()?;
    assert_eq!(
        outcome.text(),
        "x\na test image of cista\ny\nls: /bin/vi: No such file or directory"
    );
    // An image is not changed by what runs from it, and the next start knows nothing of the last one.
    assert_eq!(
        shell(
            environment,
            &["-w"],
            "ls -d /etc/new /d 2>/dev/null; cat /etc/issue"
        )
        .unwrap_or_else(|error| error.to_string()),
        "a test image of cista"
    );
    assert_eq!(hash_of_file(&image)?, before);
    Ok(())
}

fn temporary_directories_are_writable(environment: &TestEnvironment<'_>) -> TestResult {
    let text = shell(
        environment,
        &[],
        "for d in /tmp /dev/shm; do echo x >$d/y && cat $d/y && stat -f -c %T $d; done",
    )?;
    assert_eq!(text, "x\ntmpfs\nx\ntmpfs");
    Ok(())
}

fn mounts_are_made(environment: &TestEnvironment<'_>) -> TestResult {
    let data = environment.directory("data")?;
    environment.write("data/file", "from the host", 0o644)?;
    let file = environment.write("single", "a single file", 0o644)?;
    let data = data.display().to_string();
    let onto_new = format!("{data}:/mnt/some/new/place");
    let onto_file = format!("{}:/etc/issue", file.display());
    let text = shell(
        environment,
        &["-m", &onto_new, "-m", &onto_file],
        "cat /mnt/some/new/place/file /etc/issue; echo back >/mnt/some/new/place/written",
    )?;
    assert_eq!(text, "from the hosta single file");
    let written = environment.path("data/written");
    assert_eq!(
        std::fs::read_to_string(&written).context("read", &written)?,
        "back\n"
    );
    let fields = format!("{data}:/home:none:bind,ro");
    let outcome = busybox(
        environment,
        &["-m", &fields],
        &["sh", "-c", "cat /home/file; echo x >/home/no"],
    )?
    .run()?;
    assert!(
        outcome.error_text().contains("Read-only"),
        "{}",
        outcome.error_text()
    );
    assert_eq!(outcome.text(), "from the host");
    assert!(!environment.path("data/no").exists());
    let missing = busybox(environment, &["-m", "/no/such/source:/mnt"], &["true"])?.run()?;
    super::bad_input::assert_clear_error(&missing, 125, &["/no/such/source"]);
    Ok(())
}

fn users_are_known_inside(environment: &TestEnvironment<'_>) -> TestResult {
    let user = environment.user();
    let text = shell(
        environment,
        &[],
        "id -u; id -g; whoami; sed -n 1p /etc/passwd | cut -d: -f1-4; stat -c %u /etc/issue",
    )?;
    let lines: Vec<&str> = text.lines().collect();
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    assert_eq!(lines, [uid.as_str(), &gid, &user.name, "root:x:0:0", &uid]);
    Ok(())
}

/// Remapped to root, package managers work: changes of owner that a single-user namespace cannot make seem to succeed.
fn remapped_root_may_change_owners(environment: &TestEnvironment<'_>) -> TestResult {
    let text = shell(
        environment,
        &["-r", "-w"],
        "id -u; id -g; whoami; touch /x && chown 33:33 /x && stat -c %u /x; stat -c %u /etc/issue",
    )?;
    assert_eq!(text, "0\n0\nroot\n0\n0");
    let image = environment.session().imported(Recipe::Odd(Packing::Gzip))?;
    environment
        .cista(["start", "-r", "-w"])
        .arg(image)
        .args(["sh", "-c", "groupadd made && useradd -g made -m made && su made -c true; getent passwd made && ls -d /home/made"])
        .check()?;
    Ok(())
}

fn a_big_stream_passes_through(environment: &TestEnvironment<'_>) -> TestResult {
    let bytes: Vec<u8> = (0..20_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 21) as u8)
        .collect();
    let expected = hex(&Sha256::digest(&bytes));
    let outcome = busybox(environment, &[], &["cat"])?
        .stdin_bytes(bytes)
        .check()?;
    assert_eq!(hex(&Sha256::digest(&outcome.stdout)), expected);
    Ok(())
}

fn starts_run_side_by_side(environment: &TestEnvironment<'_>) -> TestResult {
    let running = (0..8)
        .map(|number| {
            busybox(
                environment,
                &["-w"],
                &["sh", "-c", &format!("echo {number} >/x; sleep 0.3; cat /x")],
            )?
            .spawn()
        })
        .collect::<Result<Vec<_>, HarnessError>>()?;
    for (number, program) in running.into_iter().enumerate() {
        assert_eq!(program.wait()?.text(), number.to_string());
    }
    Ok(())
}

/// The fallback where FUSE cannot be had, asked for by name.
fn an_image_can_be_unpacked_instead(environment: &TestEnvironment<'_>) -> TestResult {
    let start = || -> Result<Outcome, HarnessError> {
        busybox(
            environment,
            &[],
            &["sh", "-c", "cat /etc/issue; grep ' / ' /proc/mounts"],
        )?
        .env("CISTA_MOUNT", "unpack")
        .check()
    };
    let first = start()?;
    assert!(
        first.text().starts_with("a test image of cista\n"),
        "{}",
        first.text()
    );
    assert!(
        cista_tests::process::executing(&environment.program_path()).is_empty(),
        "no server is needed"
    );
    let second = start()?;
    assert_eq!(second.text(), first.text());
    Ok(())
}

/// An image that knows nothing of us: made by mksquashfs, started through its `/etc/rc` as enroot does.
fn an_image_of_enroot_starts(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .program("unsquashfs")
        .args(["-q", "-n", "-d", "tree"])
        .arg(image)
        .check()?;
    let _ = std::fs::remove_dir_all(environment.path("tree/.cista"));
    let script =
        "cd /home || exit\nif [ $# -gt 0 ]; then\n    exec \"$@\"\nelse\n    exec echo by rc\nfi\n";
    environment.write("tree/etc/rc", script, 0o755)?;
    environment.write(
        "tree/etc/environment",
        "FROM_FILE=a value\nPATH=/bin\n",
        0o644,
    )?;
    for compression in ["lzo", "gzip", "xz", "lz4", "zstd"] {
        environment
            .program("mksquashfs")
            .args([
                "tree",
                "old.sqsh",
                "-noappend",
                "-quiet",
                "-no-progress",
                "-comp",
                compression,
            ])
            .check()?;
        let plain = environment.cista(["start", "./old.sqsh"]).text()?;
        assert_eq!(plain, "by rc", "{compression}");
        let given = environment
            .cista(["start", "./old.sqsh", "sh", "-c", "pwd; echo $FROM_FILE"])
            .text()?;
        assert_eq!(given, "/home\na value", "{compression}");
    }
    Ok(())
}

fn the_python_image_computes(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment
        .session()
        .imported(Recipe::Python(Packing::Gzip))?;
    let text = environment
        .cista(["start"])
        .arg(&image)
        .args(["python3", "main.py"])
        .timeout(Duration::from_secs(90))
        .text()?;
    assert!(
        text.starts_with("fitted ") && text.contains("7.00"),
        "{text}"
    );
    let modules = environment
        .cista(["start"])
        .arg(&image)
        .args([
            "python3",
            "-c",
            "import numpy, scipy, pandas, sklearn; print(pandas.Series([1, 2]).sum())",
        ])
        .text()?;
    assert_eq!(modules, "3");
    // What the upper layers removed is gone, and what they brought instead is there.
    let seen = environment
        .cista(["start"])
        .arg(&image)
        .args([
            "sh",
            "-c",
            "ls /usr/share/doc; ls -d /usr/include/boost 2>/dev/null; stat -c %h model.bin python",
        ])
        .text()?;
    assert_eq!(seen, "README\n2\n2");
    Ok(())
}

/// Only an image file that the user may read is started, and it is named when not.
fn an_unreadable_image_is_named(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let copy = environment.path("secret.sqsh");
    std::fs::copy(&image, &copy).context("copy", &image)?;
    set_mode(&copy, 0)?;
    let outcome = environment
        .cista(["start", "./secret.sqsh", "true"])
        .run()?;
    super::bad_input::assert_clear_error(&outcome, 125, &["secret.sqsh", "permission denied"]);
    Ok(())
}

const ODD: &[Need] = &[
    Need::Image(Recipe::Odd(Packing::Gzip)),
    Need::UserNamespaces,
    Need::Fuse,
];

const fn case(
    name: &'static str,
    who: Who,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who,
        needs,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "start::output_and_arguments_pass",
        Who::Both,
        CONTAINER,
        output_and_arguments_pass,
    ),
    case(
        "start::exit_status_passes",
        Who::Both,
        CONTAINER,
        exit_status_passes,
    ),
    case(
        "start::programs_that_cannot_run",
        Who::Both,
        CONTAINER,
        programs_that_cannot_run,
    ),
    case(
        "start::without_a_command_the_image_decides",
        Who::User,
        CONTAINER,
        without_a_command_the_image_decides,
    ),
    case(
        "start::the_entrypoint_is_executed",
        Who::User,
        CONTAINER,
        the_entrypoint_is_executed,
    ),
    case(
        "start::the_environment_is_the_images_and_what_was_asked",
        Who::User,
        ODD,
        the_environment_is_the_images_and_what_was_asked,
    ),
    case(
        "start::the_working_directory_is_the_images",
        Who::Both,
        ODD,
        the_working_directory_is_the_images,
    ),
    case(
        "start::the_root_is_read_only_unless_asked",
        Who::Both,
        CONTAINER,
        the_root_is_read_only_unless_asked,
    ),
    case(
        "start::temporary_directories_are_writable",
        Who::Both,
        CONTAINER,
        temporary_directories_are_writable,
    ),
    case(
        "start::mounts_are_made",
        Who::Both,
        CONTAINER,
        mounts_are_made,
    ),
    case(
        "start::users_are_known_inside",
        Who::Both,
        CONTAINER,
        users_are_known_inside,
    ),
    case(
        "start::remapped_root_may_change_owners",
        Who::User,
        &[
            Need::Image(Recipe::Busybox),
            Need::Image(Recipe::Odd(Packing::Gzip)),
            Need::UserNamespaces,
            Need::Fuse,
        ],
        remapped_root_may_change_owners,
    ),
    case(
        "start::a_big_stream_passes_through",
        Who::User,
        CONTAINER,
        a_big_stream_passes_through,
    ),
    case(
        "start::starts_run_side_by_side",
        Who::Both,
        CONTAINER,
        starts_run_side_by_side,
    ),
    case(
        "start::an_image_can_be_unpacked_instead",
        Who::Both,
        CONTAINER,
        an_image_can_be_unpacked_instead,
    ),
    case(
        "start::an_image_of_enroot_starts",
        Who::User,
        &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Program("mksquashfs"),
        ],
        an_image_of_enroot_starts,
    ),
    case(
        "start::the_python_image_computes",
        Who::Both,
        &[
            Need::Image(Recipe::Python(Packing::Gzip)),
            Need::UserNamespaces,
            Need::Fuse,
        ],
        the_python_image_computes,
    ),
    case(
        "start::an_unreadable_image_is_named",
        Who::User,
        CONTAINER,
        an_unreadable_image_is_named,
    ),
];
