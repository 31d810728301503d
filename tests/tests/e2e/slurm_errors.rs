//! What goes wrong on a node: said in srun's output with the node's name, the step failed, and the node ready for the next job.

use std::path::Path;
use std::time::Duration;

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::listing::hex;
use cista_tests::program::Program;
use cista_tests::slurm::login::Login;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::slurm::{busybox, contained};

const PATIENCE: Duration = Duration::from_secs(30);

/// The step fails, says why, and its command has not run on the bare host; the node takes jobs.
fn assert_failure(
    login: &Login<'_>,
    node: &str,
    srun: Program,
    expected: &[&str],
) -> Result<String, HarnessError> {
    let outcome = srun.args(["sh", "-c", "echo on the host"]).run()?;
    let said = outcome.error_text();
    assert_eq!(outcome.code(), Some(1), "{said}");
    assert_eq!(outcome.text(), "", "{said}");
    assert!(said.contains("cista: "), "{said}");
    for text in expected.iter().chain(&[node]) {
        assert!(said.contains(*text), "{text:?} is not in: {said}");
    }
    let partition = partition(node);
    let next = login.srun(["-p", partition, "-w", node, "echo", "next"]);
    assert_eq!(next.text()?, "next");
    let states = login.cluster().states()?;
    let bad = |state: &&String| {
        ["drain", "down", "fail"]
            .iter()
            .any(|word| state.contains(word))
    };
    assert_eq!(states.iter().find(bad), None);
    Ok(said)
}

fn partition(node: &str) -> &'static str {
    match node {
        "n5" | "n6" => "lacking",
        _ => "main",
    }
}

fn an_image_that_cannot_be_had(environment: &TestEnvironment<'_>) -> TestResult {
    let host = environment.session().registry()?.host();
    environment.session().uri(Recipe::Busybox)?;
    let garbage = environment.write("garbage.sqsh", "no image at all", 0o644)?;
    let truncated = {
        let whole = environment.session().imported(Recipe::Busybox)?;
        let bytes = std::fs::read(&whole).context("read", &whole)?;
        environment.write("truncated.sqsh", &bytes[..bytes.len() / 2], 0o644)?
    };
    let login = Login::new(environment)?;
    for (image, expected) in [
        ("/no/such/image.sqsh".to_owned(), "/no/such/image.sqsh"),
        ("./missing.sqsh".into(), "missing.sqsh"),
        (format!("{host}#tools/no-such:1"), "tools/no-such"),
        (format!("{host}#tools/busybox:no-such-tag"), "no-such-tag"),
        // Nothing listens there.
        ("docker://127.0.0.1:1/a/b:1".into(), "127.0.0.1:1"),
        (garbage.display().to_string(), "garbage.sqsh"),
        (truncated.display().to_string(), "truncated.sqsh"),
        ("oci:/no/such/layout:1".into(), "/no/such/layout"),
    ] {
        let srun = login.srun(["-w", "n1", &format!("--container-image={image}")]);
        assert_failure(&login, "n1", srun, &[expected])?;
    }
    Ok(())
}

/// All tasks of a step fail, and it is said once a node.
fn a_failure_is_said_once(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let outcome = login
        .srun(["-w", "n1,n2", "--ntasks-per-node=4"])
        .args(["--container-image=/no/such/image.sqsh", "echo", "host"])
        .run()?;
    let said = outcome.error_text();
    assert_ne!(outcome.code(), Some(0));
    assert_eq!(outcome.text(), "");
    let count = said
        .lines()
        .filter(|line| line.contains("/no/such/image.sqsh"))
        .count();
    assert_eq!(count, 2, "{said}");
    Ok(())
}

fn mounts_and_directories_that_are_not_there(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    for (option, expected) in [
        ("--container-mounts=/no/such/source:/x", "/no/such/source"),
        (
            "--container-workdir=/no/such/directory",
            "/no/such/directory",
        ),
        ("--container-name=absent-container:exec", "absent-container"),
    ] {
        let srun = login.srun(["-w", "n2", &image, option]);
        assert_failure(&login, "n2", srun, &[expected])?;
    }
    let srun = login.srun(["-w", "n2", "--container-name=absent-container"]);
    assert_failure(&login, "n2", srun, &["absent-container"])?;
    Ok(())
}

fn a_store_that_is_full_or_closed(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let image = format!("--container-image={uri}");
    let login = Login::alone(environment)?;
    let node = login.cluster().node("n1")?;
    let full = environment.directory("full")?;
    let owner = format!(
        "size=64k,mode=700,uid={},gid={}",
        environment.user().uid,
        environment.user().gid
    );
    node.program("mount")
        .args(["-t", "tmpfs", "-o", &owner, "tmpfs"])
        .arg(&full)
        .check()?;
    let srun = login
        .srun(["-w", "n1", &image])
        .env("XDG_CACHE_HOME", &full);
    let failed = assert_failure(&login, "n1", srun, &["are free there", "hint: "]);
    node.program("umount").arg(&full).check()?;
    failed?;
    let closed = environment.directory("closed")?;
    set_mode(&closed, 0o000)?;
    if !environment.user().is_root() {
        let srun = login
            .srun(["-w", "n1", &image])
            .env("XDG_CACHE_HOME", &closed);
        assert_failure(&login, "n1", srun, &["Permission denied"])?;
    }
    set_mode(&closed, 0o700)
}

/// An image for other machines only.
fn an_image_of_another_architecture(environment: &TestEnvironment<'_>) -> TestResult {
    let borrowed = environment.session().images().get(Recipe::Busybox)?;
    let layout = environment.copy_of(&borrowed, "other")?;
    let read = |path: &Path| -> Result<Value, HarnessError> {
        let text = std::fs::read_to_string(path).context("read", path)?;
        serde_json::from_str(&text).map_err(|source| HarnessError::Json {
            what: path.display().to_string(),
            source,
        })
    };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        layout.join("blobs").join(digest.replacen(':', "/", 1))
    };
    let put = |descriptor: &mut Value, json: &Value| -> Result<(), HarnessError> {
        let text = json.to_string();
        let digest = format!("sha256:{}", hex(&Sha256::digest(text.as_bytes())));
        descriptor["digest"] = digest.into();
        descriptor["size"] = text.len().into();
        let path = blob(descriptor);
        std::fs::write(&path, text).context("write", &path)
    };
    let index_path = layout.join("index.json");
    let mut index = read(&index_path)?;
    let mut manifest = read(&blob(&index["manifests"][0]))?;
    let mut config = read(&blob(&manifest["config"]))?;
    config["architecture"] = "s390x".into();
    put(&mut manifest["config"], &config)?;
    put(&mut index["manifests"][0], &manifest)?;
    std::fs::write(&index_path, index.to_string()).context("write", &index_path)?;
    let login = Login::new(environment)?;
    let image = format!("--container-image=oci:{}:1", layout.display());
    let srun = login.srun(["-w", "n2", &image]);
    assert_failure(&login, "n2", srun, &["s390x"])?;
    Ok(())
}

fn a_node_without_user_namespaces(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let srun = login.srun(["-p", "lacking", "-w", "n5", &image]);
    assert_failure(&login, "n5", srun, &["user and mount namespaces"])?;
    Ok(())
}

fn a_node_without_the_program(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let srun = login.srun(["-p", "lacking", "-w", "n6", &image]);
    let said = assert_failure(&login, "n6", srun, &["bin/cista"])?;
    assert!(said.contains("hint"), "{said}");
    Ok(())
}

/// A mistake of the administrator is said to those who ask for containers, and to nobody else.
fn a_wrong_line_in_plugstack_conf(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::with_plugin(environment, &["mount=sideways"])?;
    let outcome = login.srun([image.as_str(), "echo", "x"]).run()?;
    let said = outcome.error_text();
    assert_ne!(outcome.code(), Some(0));
    assert!(said.contains("mount=sideways"), "{said}");
    assert_eq!(login.srun(["echo", "bare"]).text()?, "bare");
    login.cluster().wait_until_idle(PATIENCE)
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    contained(
        "slurm_errors::an_image_that_cannot_be_had",
        Who::Both,
        an_image_that_cannot_be_had,
    ),
    contained(
        "slurm_errors::a_failure_is_said_once",
        Who::User,
        a_failure_is_said_once,
    ),
    contained(
        "slurm_errors::mounts_and_directories_that_are_not_there",
        Who::User,
        mounts_and_directories_that_are_not_there,
    ),
    contained(
        "slurm_errors::a_store_that_is_full_or_closed",
        Who::Both,
        a_store_that_is_full_or_closed,
    ),
    contained(
        "slurm_errors::an_image_of_another_architecture",
        Who::User,
        an_image_of_another_architecture,
    ),
    contained(
        "slurm_errors::a_node_without_user_namespaces",
        Who::User,
        a_node_without_user_namespaces,
    ),
    contained(
        "slurm_errors::a_node_without_the_program",
        Who::User,
        a_node_without_the_program,
    ),
    contained(
        "slurm_errors::a_wrong_line_in_plugstack_conf",
        Who::User,
        a_wrong_line_in_plugstack_conf,
    ),
];
