//! Images that come from an engine of this machine, or as a stream.

use std::path::PathBuf;
use std::time::Duration;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, names_in, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::program::{Program, Running};
use rustix::process::Signal;

use super::bad_input::assert_clear_error;

/// The busybox image as `docker save` writes it.
fn docker_archive(environment: &TestEnvironment<'_>) -> Result<PathBuf, HarnessError> {
    archive(environment, "docker-archive:", ":tools/busybox:1")
}

fn archive(
    environment: &TestEnvironment<'_>,
    scheme: &str,
    name: &str,
) -> Result<PathBuf, HarnessError> {
    let image = environment.session().images().get(Recipe::Busybox)?;
    let path = environment
        .home()
        .join(format!("{}.tar", scheme.trim_end_matches(':')));
    Program::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", &image.oci_uri()])
        .arg(format!("{scheme}{}{name}", path.display()))
        .check()?;
    environment.give(&path)?;
    Ok(path)
}

/// Fails unless an image file holds the busybox image.
#[track_caller]
fn assert_busybox(environment: &TestEnvironment<'_>, file: &str) -> TestResult {
    let text = environment
        .program("unsquashfs")
        .args(["-cat", file, "etc/issue"])
        .text()?;
    assert_eq!(text, "a test image of cista", "{file}");
    let shown = environment.cista(["inspect", file]).text()?;
    assert!(shown.contains("PATH="), "the config is missing: {shown}");
    Ok(())
}

/// Nothing of an archive that was kept while it was read is left.
fn assert_nothing_kept(environment: &TestEnvironment<'_>) -> TestResult {
    let store = environment.store();
    let names = names_in(&store).unwrap_or_default();
    assert!(
        names.iter().all(|name| !name.contains("archive")),
        "{names:?}"
    );
    Ok(())
}

fn archives_on_standard_input(environment: &TestEnvironment<'_>) -> TestResult {
    let docker = docker_archive(environment)?;
    let oci = archive(environment, "oci-archive:", ":1")?;
    let read = |path: &PathBuf| std::fs::read(path).context("read", path);
    let (docker, oci) = (read(&docker)?, read(&oci)?);
    let zstd = zstd::encode_all(&docker[..], 1).context("compress", "an archive")?;
    for (name, stream) in [("docker", docker.clone()), ("oci", oci), ("zstd", zstd)] {
        let file = format!("{name}.sqsh");
        environment
            .cista(["import", "-q", "-o", &file, "-"])
            .stdin_bytes(stream)
            .check()?;
        assert_busybox(environment, &file)?;
    }
    for (name, stream, words) in [
        (
            "cut",
            docker[..docker.len() / 2].to_vec(),
            &["truncated"][..],
        ),
        ("none", Vec::new(), &["`-`", "nothing to read"]),
        ("text", b"no archive".to_vec(), &["`-`", "plain tar"]),
    ] {
        let outcome = environment
            .cista(["import", "-q", "-o", name, "-"])
            .stdin_bytes(stream)
            .run()?;
        assert_clear_error(&outcome, 1, words);
    }
    let unnamed = environment.cista(["import", "-"]).run()?;
    assert_clear_error(&unnamed, 1, &["no name", "hint:"]);
    assert_nothing_kept(environment)
}

/// A root file system is told from an archive, and is not kept.
/// What an archive may expand to is the user's setting, as for layers.
fn archives_that_expand_too_far(environment: &TestEnvironment<'_>) -> TestResult {
    environment
        .program("sh")
        .args([
            "-c",
            "echo '[]' >manifest.json; head -c 64M /dev/zero >big; tar czf bomb.tgz manifest.json big; rm big manifest.json",
        ])
        .check()?;
    let path = environment.path("bomb.tgz");
    let bomb = std::fs::read(&path).context("read", &path)?;
    let import = |limit: &str| {
        environment
            .cista(["import", "-q", "-o", "x.sqsh", "-"])
            .env("CISTA_MAX_LAYER_SIZE", limit)
            .stdin_bytes(bomb.clone())
            .run()
    };
    assert_clear_error(&import("1M")?, 1, &["expands", "CISTA_MAX_LAYER_SIZE"]);
    // With more it is read, and found to hold no image.
    let read = import("1G")?;
    assert!(!read.error_text().contains("CISTA_MAX_LAYER_SIZE"));
    assert_clear_error(&read, 1, &["there is no image"]);
    assert_nothing_kept(environment)
}

fn root_file_systems_on_standard_input(environment: &TestEnvironment<'_>) -> TestResult {
    let root = environment.directory("root")?;
    environment.write("root/a", "content of a", 0o644)?;
    for option in ["-cf", "-czf"] {
        environment
            .program("tar")
            .arg("-C")
            .arg(&root)
            .args([option, "flat.tar", "."])
            .check()?;
        let stream = std::fs::read(environment.path("flat.tar")).context("read", "flat.tar")?;
        environment
            .cista(["import", "-q", "-f", "-o", "flat.sqsh", "-"])
            // Here nothing could be kept.
            .env("CISTA_TEMP_PATH", "/proc")
            .stdin_bytes(stream)
            .check()?;
        let text = environment
            .program("unsquashfs")
            .args(["-cat", "flat.sqsh", "a"])
            .text()?;
        assert_eq!(text, "content of a");
    }
    let docker = docker_archive(environment)?;
    let stream = std::fs::read(&docker).context("read", &docker)?;
    let outcome = environment
        .cista(["import", "-q", "-o", "x.sqsh", "-"])
        .env("CISTA_TEMP_PATH", "/proc")
        .stdin_bytes(stream)
        .run()?;
    assert_clear_error(&outcome, 1, &["/proc", "CISTA_TEMP_PATH"]);
    Ok(())
}

/// A Docker daemon of its own, which ends with this.
struct Docker {
    running: Option<Running>,
    socket: PathBuf,
}

impl Docker {
    fn start(environment: &TestEnvironment<'_>) -> Result<Self, HarnessError> {
        // Socket paths are short (unix(7)).
        let place = environment.session().scratch().join("dockerd");
        std::fs::create_dir(&place).context("create", &place)?;
        let below = |name: &str| place.join(name).display().to_string();
        let socket = place.join("d.sock");
        let running = Program::new("dockerd")
            .args(["--data-root", &below("root"), "--exec-root", &below("exec")])
            .args(["--pidfile", &below("pid")])
            .args(["--host", &format!("unix://{}", socket.display())])
            .args(["--storage-driver=vfs", "--bridge=none"])
            .args(["--iptables=false", "--ip6tables=false"])
            .spawn()?;
        let docker = Self {
            running: Some(running),
            socket,
        };
        for _ in 0..300 {
            if docker.command(&["version"]).run()?.code() == Some(0) {
                set_mode(&docker.socket, 0o666)?;
                return Ok(docker);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(HarnessError::Malformed {
            what: "dockerd".into(),
            why: "it does not answer within 30 s".into(),
        })
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    fn command(&self, words: &[&str]) -> Program {
        Program::new("docker")
            .env("DOCKER_HOST", self.host())
            .args(words)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            // It ends its own children when it is asked, not when it is killed.
            let _ = running.signal(Signal::TERM);
            let _ = running.wait();
        }
        if let Some(place) = self.socket.parent() {
            let _ = std::fs::remove_dir_all(place);
        }
    }
}

fn images_of_the_docker_daemon(environment: &TestEnvironment<'_>) -> TestResult {
    let archive = docker_archive(environment)?;
    let docker = Docker::start(environment)?;
    docker
        .command(&["load", "--quiet", "--input"])
        .arg(&archive)
        .check()?;
    let number = docker
        .command(&["images", "--quiet", "tools/busybox:1"])
        .text()?;
    let import = |uri: &str, options: &[&str]| {
        environment
            .cista(["import", "-q"])
            .args(options)
            .arg(uri)
            .env("DOCKER_HOST", docker.host())
    };
    import("dockerd://tools/busybox:1", &[]).check()?;
    import(&format!("dockerd://{number}"), &[]).check()?;
    for file in ["tools+busybox+1.sqsh", &format!("{number}.sqsh")] {
        assert_busybox(environment, file)?;
    }
    let missing = import("dockerd://tools/missing", &["-o", "x"]).run()?;
    assert_clear_error(&missing, 1, &["tools/missing:latest", "hint:"]);
    assert_nothing_kept(environment)?;
    drop(docker);
    let gone = environment
        .cista(["import", "-q", "-o", "x", "dockerd://tools/busybox:1"])
        .env("DOCKER_HOST", "unix:///no/such.sock")
        .run()?;
    assert_clear_error(&gone, 1, &["/no/such.sock", "DOCKER_HOST"]);
    let remote = environment
        .cista(["import", "-q", "-o", "x", "dockerd://tools/busybox:1"])
        .env("DOCKER_HOST", "tcp://elsewhere:2375")
        .run()?;
    assert_clear_error(&remote, 1, &["DOCKER_HOST", "elsewhere"]);
    Ok(())
}

fn images_of_podman(environment: &TestEnvironment<'_>) -> TestResult {
    let archive = docker_archive(environment)?;
    // Everything in its own place, and one user is enough.
    let configuration = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/graph\"\nrootless_storage_path = \"{0}/graph\"\nrunroot = \"{0}/run\"\n\
         [storage.options]\nignore_chown_errors = \"true\"\n",
        environment.home().display()
    );
    let configuration = environment.write("storage.conf", configuration, 0o644)?;
    let podman = |words: &[&str]| {
        environment
            .program("podman")
            .env("CONTAINERS_STORAGE_CONF", &configuration)
            .args(words)
    };
    podman(&["load", "--quiet", "--input"])
        .arg(&archive)
        .check()?;
    let import = |uri: &str| {
        environment
            .cista(["import", "-q", "-f", "-o", "x.sqsh", uri])
            .env("CONTAINERS_STORAGE_CONF", &configuration)
    };
    import("podman://tools/busybox:1").check()?;
    assert_busybox(environment, "x.sqsh")?;
    let missing = import("podman://tools/missing:2").run()?;
    assert_clear_error(&missing, 1, &["tools/missing:2", "not known", "hint:"]);
    let without = import("podman://tools/busybox:1")
        .env("PATH", "/nonexistent")
        .run()?;
    assert_clear_error(&without, 1, &["cannot run `podman`", "hint:"]);
    assert_nothing_kept(environment)?;
    // Its pause process would outlive the test.
    podman(&["system", "migrate"]).run().map(drop)
}

const BUSYBOX: &[Need] = &[Need::Image(Recipe::Busybox)];

const fn case(
    name: &'static str,
    who: Who,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier: Tier::Registry,
        who,
        needs,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "sources::archives_on_standard_input",
        Who::User,
        BUSYBOX,
        archives_on_standard_input,
    ),
    case(
        "sources::archives_that_expand_too_far",
        Who::User,
        BUSYBOX,
        archives_that_expand_too_far,
    ),
    case(
        "sources::root_file_systems_on_standard_input",
        Who::User,
        BUSYBOX,
        root_file_systems_on_standard_input,
    ),
    case(
        "sources::images_of_the_docker_daemon",
        Who::User,
        &[
            Need::Image(Recipe::Busybox),
            Need::Program("dockerd"),
            Need::Program("docker"),
            Need::Root,
        ],
        images_of_the_docker_daemon,
    ),
    case(
        "sources::images_of_podman",
        Who::Both,
        &[Need::Image(Recipe::Busybox), Need::Program("podman")],
        images_of_podman,
    ),
];
