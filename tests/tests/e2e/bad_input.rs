//! Bad input: each gives one clear error with a non-zero status, and leaves neither a partial image nor a temporary file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{
    Compression, LayerWriter, Layout, LayoutWriter, Recipe, RunConfig, header, push,
};
use cista_tests::listing::files_below;
use cista_tests::program::{Outcome, Program};
use cista_tests::registry::Registry;
use rustix::process::Signal;

/// Fails unless a command failed as it should: with a status, with one `error:` that says these words, without a trace
/// of a crash.
#[track_caller]
pub(crate) fn assert_clear_error(outcome: &Outcome, status: i32, words: &[&str]) {
    let told = outcome.error_text();
    assert_eq!(outcome.code(), Some(status), "{told}");
    let errors = told
        .lines()
        .filter(|line| line.starts_with("error: "))
        .count();
    assert_eq!(errors, 1, "one error, please: {told}");
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
fn refuse(environment: &TestEnvironment<'_>, uri: &str, words: &[&str]) -> TestResult {
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

/// A small layout of the user that a test may break: its directory, and the path of its layer.
fn breakable(
    environment: &TestEnvironment<'_>,
    name: &str,
) -> Result<(PathBuf, PathBuf), HarnessError> {
    let image = environment.session().images().get(Recipe::Busybox)?;
    let root = environment.copy_of(&image, name)?;
    let layout = Layout::open(&root)?;
    let layer = layout.blob(&layout.manifest.layers[0].digest);
    Ok((root, layer))
}

/// How a blob is broken.
type Damage = fn(&mut Vec<u8>);

const DAMAGES: &[(&str, Damage)] = &[
    ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
    ("short by one", |bytes| bytes.truncate(bytes.len() - 1)),
    ("long by one", |bytes| bytes.push(0)),
    ("empty", Vec::clear),
    ("one bit flipped", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    }),
    ("the last byte changed", |bytes| {
        if let Some(last) = bytes.last_mut() {
            *last = !*last;
        }
    }),
];

fn damage(path: &Path, how: Damage) -> TestResult {
    let mut bytes = std::fs::read(path).context("read", path)?;
    how(&mut bytes);
    std::fs::write(path, bytes).context("write", path)
}

fn damaged_blobs_of_a_layout(environment: &TestEnvironment<'_>) -> TestResult {
    for (name, how) in DAMAGES {
        let (root, layer) = breakable(environment, name)?;
        damage(&layer, *how)?;
        let digest = layer.file_name().unwrap_or_default().to_string_lossy();
        refuse(
            environment,
            &format!("oci:{}:1", root.display()),
            &[&digest[..12]],
        )?;
    }
    Ok(())
}

fn damaged_blobs_of_a_registry(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().images().get(Recipe::Busybox)?;
    let digest = image.layout.manifest.layers[0].digest.clone();
    let hash = digest.trim_start_matches("sha256:").to_owned();
    for (index, (name, how)) in DAMAGES.iter().enumerate() {
        let storage = environment.home().join(format!("registry-{index}"));
        let registry = Registry::start(&storage, &environment.home())?;
        push(&image, &registry)?;
        let blob = storage.join(format!(
            "docker/registry/v2/blobs/sha256/{}/{hash}/data",
            &hash[..2]
        ));
        damage(&blob, *how)?;
        refuse(environment, &image.uri(&registry), &[&hash[..12]]).map_err(|error| {
            HarnessError::Malformed {
                what: (*name).into(),
                why: error.to_string(),
            }
        })?;
        let stored = files_below(&environment.store()).unwrap_or_default();
        assert!(
            !stored.iter().any(|path| path.ends_with(&hash)),
            "{name}: the store kept a blob that is not what its name says"
        );
    }
    Ok(())
}

/// Rewrites the manifest of a layout after `change`, with digests that fit, so that only what `change` did is wrong.
fn with_manifest(
    root: &Path,
    change: impl FnOnce(&mut serde_json::Value, &mut serde_json::Value),
) -> TestResult {
    let layout = Layout::open(root)?;
    let json = |digest: &str| -> Result<serde_json::Value, HarnessError> {
        let path = layout.blob(digest);
        let text = std::fs::read(&path).context("read", &path)?;
        serde_json::from_slice(&text).map_err(|source| HarnessError::Json {
            what: path.display().to_string(),
            source,
        })
    };
    let mut manifest = json(&layout.manifest_digest)?;
    let mut config = json(&layout.manifest.config.digest)?;
    change(&mut manifest, &mut config);
    let writer = LayoutWriter::create(root)?;
    let config = writer.blob(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    )?;
    if manifest["config"]["size"].is_u64() {
        manifest["config"]["digest"] = config.digest.into();
        manifest["config"]["size"] = config.size.into();
    }
    let manifest = writer.blob(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    )?;
    writer.index(&manifest, "1")
}

fn manifests_that_lie(environment: &TestEnvironment<'_>) -> TestResult {
    type Lie = fn(&mut serde_json::Value, &mut serde_json::Value);
    let lies: [(&str, Lie); 9] = [
        ("a larger size", |manifest, _| {
            manifest["layers"][0]["size"] = 999_999_999.into();
        }),
        ("a smaller size", |manifest, _| {
            manifest["layers"][0]["size"] = 1000.into();
        }),
        ("a negative size", |manifest, _| {
            manifest["layers"][0]["size"] = (-1).into();
        }),
        ("a missing blob", |manifest, _| {
            manifest["layers"][0]["digest"] = format!("sha256:{}", "a".repeat(64)).into();
        }),
        ("a path for a digest", |manifest, _| {
            manifest["layers"][0]["digest"] = "sha256:../../../../../../etc/passwd".into();
        }),
        ("another diff_id", |_, config| {
            config["rootfs"]["diff_ids"][0] = format!("sha256:{}", "b".repeat(64)).into();
        }),
        ("too few diff_ids", |_, config| {
            config["rootfs"]["diff_ids"] = serde_json::json!([]);
        }),
        ("no layers", |manifest, _| {
            manifest["layers"] = "none".into();
        }),
        ("schema 1", |manifest, _| {
            manifest["schemaVersion"] = 1.into();
        }),
    ];
    for (name, lie) in lies {
        let (root, _) = breakable(environment, name)?;
        with_manifest(&root, lie)?;
        refuse(environment, &format!("oci:{}:1", root.display()), &[])?;
    }
    Ok(())
}

/// An image of one layer, which `fill` writes.
fn crafted(
    environment: &TestEnvironment<'_>,
    name: &str,
    fill: impl FnOnce(&mut LayerWriter) -> Result<(), HarnessError>,
) -> Result<Layout, HarnessError> {
    let root = environment.directory(name)?;
    let mut layout = LayoutWriter::create(&root)?;
    layout.layer(Compression::Gzip, fill)?;
    let layout = layout.finish("1", &RunConfig::default())?;
    for directory in [&root, &root.join("blobs"), &root.join("blobs/sha256")] {
        set_mode(directory, 0o755)?;
    }
    Ok(layout)
}

fn paths_that_leave_the_root(environment: &TestEnvironment<'_>) -> TestResult {
    for (name, path) in [
        ("up", &b"../escaped"[..]),
        ("up in the middle", b"a/../../escaped"),
        ("only up", b".."),
        ("whiteout of up", b"a/.wh..."),
    ] {
        let layout = crafted(environment, name, |layer| {
            // The tar crate writes no such name itself: the header's field is filled by hand.
            let mut header = header(tar::EntryType::Regular, 0o644, 4);
            header.as_old_mut().name[..path.len()].copy_from_slice(path);
            header.set_cksum();
            layer
                .tar()
                .append(&header, &b"evil"[..])
                .context("archive", name)
        })?;
        refuse(
            environment,
            &format!("oci:{}:1", layout.root().display()),
            &[".."],
        )?;
    }
    Ok(())
}

/// A link that leads out of the root, and a file that would be written through it: it stays inside.
fn links_that_leave_the_root(environment: &TestEnvironment<'_>) -> TestResult {
    let outside = environment.directory("outside")?;
    let target = outside.display().to_string();
    let layout = crafted(environment, "layout", |layer| {
        layer.symlink("absolute", &target)?;
        layer.file("absolute/file", b"evil")?;
        layer.symlink("relative", &format!("../../../../../../../../..{target}"))?;
        layer.file("relative/file", b"evil")?;
        layer.hard_link("hard", &format!("{target}/secret"))
    })?;
    environment.write("outside/secret", "a secret of the host", 0o600)?;
    let outcome = environment
        .cista(["import", "-q", "-o", "x.sqsh"])
        .arg(format!("oci:{}:1", layout.root().display()))
        .run()?;
    // A hard link to what the image does not contain is an error; whatever is made of the rest, the host is untouched.
    assert_clear_error(&outcome, 1, &["hard"]);
    assert_eq!(environment.files()?, ["layout", "outside"]);
    let outside = files_below(&outside)?;
    assert_eq!(outside.len(), 1, "{outside:?}");
    Ok(())
}

fn layers_that_are_no_archives(environment: &TestEnvironment<'_>) -> TestResult {
    let noise: Vec<u8> = (0..100_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let cases: [(&str, Vec<u8>); 4] = [
        ("noise", noise.clone()),
        ("text", b"this is no archive\n".repeat(1000)),
        (
            "gzip of noise",
            [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], &noise[..]].concat(),
        ),
        (
            "zstd of noise",
            [&[0x28, 0xb5, 0x2f, 0xfd], &noise[..]].concat(),
        ),
    ];
    for (name, bytes) in cases {
        let root = environment.directory(name)?;
        let mut layout = LayoutWriter::create(&root)?;
        let mut layer = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", &bytes)?;
        layer.diff_id = Some(layer.digest.clone());
        layout.push(layer);
        let layout = layout.finish("1", &RunConfig::default())?;
        refuse(
            environment,
            &format!("oci:{}:1", layout.root().display()),
            &[],
        )?;
    }
    Ok(())
}

/// A file system of 2 MiB in a directory of the environment, unmounted at the end.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(environment: &TestEnvironment<'_>, place: &'a Path) -> Result<Self, HarnessError> {
        Program::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!(
                "size=2m,mode=755,uid={},gid={}",
                environment.user().uid,
                environment.user().gid
            ))
            .arg("small")
            .arg(place)
            .check()?;
        Ok(Self(place))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Program::new("umount").arg("--lazy").arg(self.0).check();
    }
}

fn a_full_disk(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Debian)?;
    let place = environment.directory("small")?;
    let disk = SmallDisk::mount(environment, &place)?;
    // First the image does not fit, then the blob in the store.
    let image = environment
        .cista(["import", "-q", "-o", "small/x.sqsh", &uri])
        .run()?;
    assert_clear_error(&image, 1, &["no space left", "hint:"]);
    assert_eq!(files_below(&place)?, Vec::<PathBuf>::new());
    let store = environment
        .cista(["import", "-q", "-o", "x.sqsh", &uri])
        .env("XDG_CACHE_HOME", &place)
        .run()?;
    assert_clear_error(&store, 1, &["free", "hint:"]);
    assert_eq!(environment.files()?, ["small"]);
    let left = files_below(&place)?;
    let bytes: u64 = left
        .iter()
        .map(|path| path.metadata().map_or(0, |file| file.len()))
        .sum();
    assert!(bytes < 1 << 20, "{left:?}");
    drop(disk);
    Ok(())
}

fn a_directory_that_is_not_ours(environment: &TestEnvironment<'_>) -> TestResult {
    let (root, _) = breakable(environment, "layout")?;
    let uri = format!("oci:{}:1", root.display());
    let closed = environment.directory("closed")?;
    set_mode(&closed, 0o555)?;
    let outcome = environment
        .cista(["import", "-q", "-o", "closed/x.sqsh", &uri])
        .run()?;
    assert_clear_error(&outcome, 1, &["closed", "permission denied"]);
    let outcome = environment
        .cista(["import", "-q", "-o", "no-such-directory/x.sqsh", &uri])
        .run()?;
    assert_clear_error(&outcome, 1, &["no-such-directory"]);
    set_mode(&closed, 0o755)
}

/// Starts the import of a big image, and gives it time to have written something.
fn import_in_the_middle(
    environment: &TestEnvironment<'_>,
    delay: Duration,
) -> Result<cista_tests::program::Running, HarnessError> {
    let uri = environment.session().uri(Recipe::Huge)?;
    let running = environment
        .cista(["import", "-q", "--no-cache", "-o", "x.sqsh", &uri])
        .spawn()?;
    std::thread::sleep(delay);
    Ok(running)
}

fn interrupts_in_the_middle(environment: &TestEnvironment<'_>) -> TestResult {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        for delay in [20, 300, 1500] {
            let mut running = import_in_the_middle(environment, Duration::from_millis(delay))?;
            assert!(
                running.is_running(),
                "an import of 4 GiB is over after {delay} ms"
            );
            running.signal(signal)?;
            let outcome = running.wait()?;
            let died = outcome.signal() == Some(signal.as_raw());
            assert!(
                died || outcome.code() == Some(status),
                "{:?} {}",
                outcome.status,
                outcome.error_text()
            );
            // Caught or not: a signal during the start may come before there is a handler.
            if !died {
                assert!(
                    outcome.error_text().contains("interrupted"),
                    "{}",
                    outcome.error_text()
                );
            }
            assert_eq!(environment.files()?, Vec::<String>::new());
        }
    }
    Ok(())
}

fn a_killed_import_leaves_nothing(environment: &TestEnvironment<'_>) -> TestResult {
    for delay in [50, 400, 1200] {
        let running = import_in_the_middle(environment, Duration::from_millis(delay))?;
        running.signal(Signal::KILL)?;
        assert_eq!(running.wait()?.signal(), Some(9));
        assert_eq!(environment.files()?, Vec::<String>::new());
        assert_eq!(environment.leftovers()?, Vec::<String>::new());
    }
    Ok(())
}

/// After a kill with the store on, the next import works, and nothing of the first is left in the end.
fn a_killed_download_is_taken_over(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Debian)?;
    for delay in [10, 60, 200] {
        let running = environment
            .cista(["import", "-q", "-f", "-o", "x.sqsh", &uri])
            .spawn()?;
        std::thread::sleep(Duration::from_millis(delay));
        running.signal(Signal::KILL)?;
        running.wait()?;
    }
    environment
        .cista(["import", "-q", "-f", "-o", "x.sqsh", &uri])
        .check()?;
    assert_eq!(environment.files()?, ["x.sqsh"]);
    Ok(())
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
const CONTAINER: &[Need] = &[
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Fuse,
];

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
        "bad_input::paths_that_leave_the_root",
        Tier::Cli,
        &[],
        paths_that_leave_the_root,
    ),
    case(
        "bad_input::links_that_leave_the_root",
        Tier::Cli,
        &[],
        links_that_leave_the_root,
    ),
    case(
        "bad_input::layers_that_are_no_archives",
        Tier::Cli,
        &[],
        layers_that_are_no_archives,
    ),
    case(
        "bad_input::images_that_a_registry_does_not_have",
        Tier::Registry,
        BUSYBOX,
        images_that_a_registry_does_not_have,
    ),
    case(
        "bad_input::damaged_blobs_of_a_layout",
        Tier::Registry,
        BUSYBOX,
        damaged_blobs_of_a_layout,
    ),
    case(
        "bad_input::damaged_blobs_of_a_registry",
        Tier::Registry,
        BUSYBOX,
        damaged_blobs_of_a_registry,
    ),
    case(
        "bad_input::manifests_that_lie",
        Tier::Registry,
        BUSYBOX,
        manifests_that_lie,
    ),
    case(
        "bad_input::a_directory_that_is_not_ours",
        Tier::Registry,
        BUSYBOX,
        a_directory_that_is_not_ours,
    ),
    case(
        "bad_input::a_full_disk",
        Tier::Registry,
        &[Need::Image(Recipe::Debian), Need::Root],
        a_full_disk,
    ),
    case(
        "bad_input::interrupts_in_the_middle",
        Tier::Registry,
        &[Need::Image(Recipe::Huge)],
        interrupts_in_the_middle,
    ),
    case(
        "bad_input::a_killed_import_leaves_nothing",
        Tier::Registry,
        &[Need::Image(Recipe::Huge)],
        a_killed_import_leaves_nothing,
    ),
    case(
        "bad_input::a_killed_download_is_taken_over",
        Tier::Registry,
        &[Need::Image(Recipe::Debian)],
        a_killed_download_is_taken_over,
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
