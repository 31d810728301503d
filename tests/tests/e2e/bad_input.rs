//! Bad input: each gives one clear error with a non-zero status, and leaves neither a partial image nor a temporary file.

use std::path::Path;

use cista_tests::case::{CONTAINER, Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::IoContext as _;
use cista_tests::image::Recipe;
use cista_tests::program::{Outcome, Program};

/// Fails unless a command failed as it should: with a status, with one `error:` that says these words, without a trace
/// of a crash.
#[track_caller]
pub(crate) fn assert_clear_error(outcome: &Outcome, status: i32, words: &[&str]) {
    let told = outcome.error_text();
    assert_eq!(outcome.code(), Some(status), "{told}");
    super::messages::assert_form_of_error(&told);
    assert!(!told.contains("panicked"), "{told}");
    assert!(outcome.stdout.is_empty(), "{}", outcome.text());
    for word in words {
        assert!(
            told.to_lowercase().contains(&word.to_lowercase()),
            "`{word}` is not in: {told}"
        );
    }
}

/// Runs an import that has to fail, and looks for what it left.
#[track_caller]
pub(crate) fn refuse(environment: &TestEnvironment<'_>, uri: &str, words: &[&str]) -> TestResult {
    let before = environment.files()?;
    let outcome = environment
        .cista(["import", "-q", "-o", "refused.sqsh", uri])
        .run()?;
    assert_clear_error(&outcome, 1, words);
    assert_eq!(environment.files()?, before, "{uri} left something behind");
    Ok(())
}

fn references_that_make_no_sense(environment: &TestEnvironment<'_>) -> TestResult {
    for (uri, word) in [
        ("nonsense", "nonsense"),
        ("foo:bar", "foo"),
        ("docker://", "docker://"),
        ("docker://127.0.0.1:1/UPPER/case:1", "UPPER"),
        ("docker://127.0.0.1:1/a:b:c", "a:b"),
        ("docker://127.0.0.1:1/a@sha256:123", "123"),
        ("docker://127.0.0.1:1/../../etc:1", ".."),
        ("docker://127.0.0.1:1/a@sha512:00", "sha512"),
        ("docker://127.0.0.1:1/a:..", ".."),
        ("docker://127.0.0.1:99999/a", "127.0.0.1:99999"),
        ("docker://me:hunter2@127.0.0.1:1/a", "password"),
        ("docker://127.0.0.1:1/a b", "a b"),
        ("dockerd://a?x=y", "a?x=y"),
        ("dockerd://me@a", "me@a"),
        ("podman://--all", "--all"),
        ("podman://", "lacks"),
        ("oci:no-such-directory:1", "no-such-directory"),
        ("oci-archive:no-such-file", "no-such-file"),
        ("docker-archive:no-such-file", "no-such-file"),
        ("tar:no-such-file", "no-such-file"),
        ("dir:no-such-directory", "no-such-directory"),
        ("tar:/etc/passwd", "plain tar"),
    ] {
        refuse(environment, uri, &[word])?;
    }
    Ok(())
}

fn images_that_a_registry_does_not_have(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    session.uri(Recipe::Busybox)?;
    let host = session.registry()?.host();
    for (name, word) in [
        ("no/such-image:1", "no/such-image"),
        ("tools/busybox:no-such-tag", "no-such-tag"),
    ] {
        refuse(
            environment,
            &format!("docker://{host}/{name}"),
            &[word, &host, "hint:"],
        )?;
    }
    let digest = format!("sha256:{}", "0".repeat(64));
    refuse(
        environment,
        &format!("docker://{host}/tools/busybox@{digest}"),
        &[&digest],
    )?;
    let missing = environment
        .cista(["digest", &format!("docker://{host}/no/such-image:1")])
        .run()?;
    assert_clear_error(&missing, 1, &["no/such-image"]);
    Ok(())
}

fn a_registry_that_is_not_there(environment: &TestEnvironment<'_>) -> TestResult {
    // Port 1 (tcpmux) is served nowhere.
    refuse(
        environment,
        "docker://127.0.0.1:1/a/b:1",
        &["127.0.0.1:1", "refused", "hint:"],
    )
}

fn files_that_are_no_images(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let whole = std::fs::read(&image).context("read", &image)?;
    environment.write("empty.sqsh", [], 0o644)?;
    environment.write("text.sqsh", "no image at all\n".repeat(100), 0o644)?;
    environment.write("short.sqsh", &whole[..whole.len() / 2], 0o644)?;
    let mut torn = whole.clone();
    // The offset of the inode table, in the superblock (squashfs 4.0, at byte 64).
    torn[64..72].copy_from_slice(&u64::MAX.to_le_bytes());
    environment.write("torn.sqsh", torn, 0o644)?;
    environment.directory("directory.sqsh")?;
    for name in [
        "empty.sqsh",
        "text.sqsh",
        "short.sqsh",
        "torn.sqsh",
        "directory.sqsh",
        "missing.sqsh",
    ] {
        let path = format!("./{name}");
        let started = environment.cista(["start", &path, "true"]).run()?;
        assert_clear_error(&started, 125, &[name]);
        let inspected = environment.cista(["inspect", &path]).run()?;
        assert_clear_error(&inspected, 1, &[name]);
        let created = environment.cista(["create", "-n", "x", &path]).run()?;
        assert_clear_error(&created, 1, &[name]);
    }
    assert_eq!(environment.cista(["list"]).text()?, "");
    Ok(())
}

/// Without `/dev/fuse` an image is unpacked, which is said once; when FUSE was asked for it is an error.
fn no_fuse_device(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let new_dev = environment.directory("dev")?;
    let run = |mode: &str| {
        hidden_fuse(environment, &new_dev)
            .env("CISTA_MOUNT", mode)
            .arg(environment.program_path())
            .args(["start", &image.display().to_string(), "cat", "/etc/issue"])
            .run()
    };
    let unpacked = run("auto")?;
    assert_eq!(unpacked.code(), Some(0), "{}", unpacked.error_text());
    assert_eq!(unpacked.text(), "a test image of cista");
    let told = unpacked.error_text();
    assert_eq!(told.matches("/dev/fuse").count(), 1, "{told}");
    let refused = run("fuse")?;
    assert_clear_error(&refused, 125, &["/dev/fuse", "hint:"]);
    Ok(())
}

/// Mounts a new `/dev` without `fuse`, made in the directory that is the first word, and executes the other words.
const WITHOUT_FUSE: &str = r#"
set -e
new=$1
shift
mount -t tmpfs -o mode=755 dev "$new"
for name in null zero full random urandom tty; do cp -a "/dev/$name" "$new/"; done
mkdir "$new/pts" "$new/shm"
mount --move "$new" /dev
exec "$@"
"#;

/// A program that runs the words that follow as a user, where `/dev` has no `fuse`.
fn hidden_fuse(environment: &TestEnvironment<'_>, new_dev: &Path) -> Program {
    let user = environment.user();
    Program::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            WITHOUT_FUSE,
            "sh",
        ])
        .arg(new_dev)
        .args(["setpriv", "--clear-groups"])
        .args([
            "--reuid",
            &user.uid.to_string(),
            "--regid",
            &user.gid.to_string(),
        ])
        .env_only(environment.variables())
        .current_dir(environment.path(""))
}

/// Where user namespaces are switched off (`user.max_user_namespaces` is 0), the error names the switch.
fn user_namespaces_off(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let outcome = environment
        .program("bwrap")
        .args([
            "--unshare-user",
            "--disable-userns",
            "--dev-bind",
            "/",
            "/",
            "--",
        ])
        .arg(environment.program_path())
        .args(["start", &image.display().to_string(), "true"])
        .run()?;
    assert_clear_error(
        &outcome,
        125,
        &["user namespace", "hint:", "max_user_namespaces"],
    );
    Ok(())
}

fn wrong_command_lines(environment: &TestEnvironment<'_>) -> TestResult {
    for arguments in [
        &["no-such-command"][..],
        &["import"],
        &["import", "--no-such-option", "oci:x"],
        &["start"],
        &["remove"],
        &["import", "--compression", "brotli", "oci:x"],
    ] {
        let outcome = environment.cista(arguments).run()?;
        assert_eq!(
            outcome.code(),
            Some(2),
            "{arguments:?}: {}",
            outcome.error_text()
        );
        assert!(
            outcome.error_text().contains("error:"),
            "{}",
            outcome.error_text()
        );
        assert!(outcome.stdout.is_empty());
    }
    let version = environment.cista(["version"]).text()?;
    assert!(
        version.starts_with(|first: char| first.is_ascii_digit()),
        "{version}"
    );
    let help = environment.cista(["--help"]).text()?;
    for command in [
        "import", "create", "start", "run", "export", "list", "remove", "inspect", "digest",
    ] {
        assert!(help.contains(command), "{help}");
    }
    Ok(())
}

fn names_that_are_no_containers(environment: &TestEnvironment<'_>) -> TestResult {
    let outcome = environment
        .cista(["start", "no-such-container", "true"])
        .run()?;
    assert_clear_error(&outcome, 125, &["no-such-container", "hint:"]);
    for arguments in [
        &["remove", "-f", "no-such-container"][..],
        &["export", "-o", "x.sqsh", "no-such-container"],
    ] {
        let outcome = environment.cista(arguments).run()?;
        assert_clear_error(&outcome, 1, &["no-such-container"]);
    }
    let image = environment.session().imported(Recipe::Busybox)?;
    for name in ["a/b", "..", ".", ""] {
        let outcome = environment
            .cista(["create", "-n", name])
            .arg(&image)
            .run()?;
        assert!(
            matches!(outcome.code(), Some(1 | 2)) && outcome.error_text().contains("error:"),
            "{name:?}: {:?} {}",
            outcome.status,
            outcome.error_text()
        );
    }
    assert_eq!(environment.cista(["list"]).text()?, "");
    Ok(())
}

const BUSYBOX: &[Need] = &[Need::Image(Recipe::Busybox)];

const fn case(
    name: &'static str,
    tier: Tier,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier,
        who: Who::User,
        needs,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "bad_input::wrong_command_lines",
        Tier::Cli,
        &[],
        wrong_command_lines,
    ),
    case(
        "bad_input::references_that_make_no_sense",
        Tier::Cli,
        &[],
        references_that_make_no_sense,
    ),
    case(
        "bad_input::a_registry_that_is_not_there",
        Tier::Cli,
        &[],
        a_registry_that_is_not_there,
    ),
    case(
        "bad_input::images_that_a_registry_does_not_have",
        Tier::Registry,
        BUSYBOX,
        images_that_a_registry_does_not_have,
    ),
    case(
        "bad_input::files_that_are_no_images",
        Tier::Userns,
        CONTAINER,
        files_that_are_no_images,
    ),
    case(
        "bad_input::names_that_are_no_containers",
        Tier::Userns,
        CONTAINER,
        names_that_are_no_containers,
    ),
    case(
        "bad_input::no_fuse_device",
        Tier::Userns,
        &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Root,
        ],
        no_fuse_device,
    ),
    case(
        "bad_input::user_namespaces_off",
        Tier::Userns,
        &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Program("bwrap"),
        ],
        user_namespaces_off,
    ),
];
