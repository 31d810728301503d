//! The table `[policy]`: which images may be used, by every way that leads to one.
//!
//! Signatures are made by openssl and laid out as cosign does it, in a real registry.

use std::path::{Path, PathBuf};

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Descriptor, Image, LayoutWriter, Recipe, push};
use cista_tests::listing::hash_of_file;
use cista_tests::program::Program;
use cista_tests::registry::Registry;

use super::bad_input::assert_clear_error;

/// A registry of this test's own with an image.
struct Own<'a> {
    environment: &'a TestEnvironment<'a>,
    registry: Registry,
    image: Image,
    uri: String,
}

impl<'a> Own<'a> {
    fn start(environment: &'a TestEnvironment<'a>) -> Result<Self, HarnessError> {
        let home = environment.home();
        let registry = Registry::start(&home.join("storage"), &home.join("registry"))?;
        let image = environment.session().images().get(Recipe::Busybox)?;
        push(&image, &registry)?;
        Ok(Self {
            environment,
            uri: image.uri(&registry),
            registry,
            image,
        })
    }

    /// Makes a pair of keys; returns the private and the public one.
    fn keys(&self, name: &str) -> Result<(PathBuf, PathBuf), HarnessError> {
        let private = self.environment.home().join(format!("{name}.key"));
        let public = self.environment.home().join(format!("{name}.pub"));
        Program::new("openssl")
            .args([
                "ecparam",
                "-name",
                "prime256v1",
                "-genkey",
                "-noout",
                "-out",
            ])
            .arg(&private)
            .check()?;
        Program::new("openssl")
            .args(["ec", "-pubout", "-in"])
            .arg(&private)
            .arg("-out")
            .arg(&public)
            .check()?;
        Ok((private, public))
    }

    /// Signs the image under a name, as `cosign sign --key` does.
    fn sign(&self, key: &Path, name: &str) -> TestResult {
        let digest = &self.image.layout.manifest_digest;
        let payload = serde_json::json!({
            "critical": {
                "identity": { "docker-reference": name },
                "image": { "docker-manifest-digest": digest },
                "type": "cosign container image signature",
            },
            "optional": null,
        })
        .to_string();
        let work = self.environment.home().join("signing");
        if work.exists() {
            std::fs::remove_dir_all(&work).context("remove", &work)?;
        }
        let writer = LayoutWriter::create(&work)?;
        let text = writer.blob(
            "application/vnd.dev.cosign.simplesigning.v1+json",
            payload.as_bytes(),
        )?;
        let payload_file = work.join("payload");
        std::fs::write(&payload_file, &payload).context("write", &payload_file)?;
        let signature = Program::new("sh")
            .args([
                "-c",
                "openssl dgst -sha256 -sign \"$1\" \"$2\" | base64 -w0",
                "sh",
            ])
            .arg(key)
            .arg(&payload_file)
            .text()?;
        let config = serde_json::json!({
            "architecture": "", "os": "", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [text.digest] },
        });
        let config = writer.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        )?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [{
                "mediaType": text.media_type, "digest": text.digest, "size": text.size,
                "annotations": { "dev.cosignproject.cosign/signature": signature },
            }],
        });
        let manifest: Descriptor = writer.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )?;
        writer.index(&manifest, "signatures")?;
        std::fs::write(work.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .context("write", &work)?;
        let repository = self.uri.trim_end_matches(":1");
        Program::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"])
            .arg("--dest-tls-verify=false")
            .arg(format!("oci:{}:signatures", work.display()))
            .arg(format!("{repository}:{}.sig", digest.replace(':', "-")))
            .check()
            .map(drop)
    }

    /// The name without the tag.
    fn name(&self) -> String {
        let uri = self.uri.trim_end_matches(":1");
        uri.trim_start_matches("docker://").to_owned()
    }

    fn demand(&self, keys: &[&Path], more: &str) -> TestResult {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| format!("\"{}\"", key.display()))
            .collect();
        self.environment.configure(
            "cista/cista.toml",
            &format!(
                "[[policy.signed]]\nimages = [\"{}\"]\nkeys = [{}]\n{more}",
                self.registry.host(),
                keys.join(", ")
            ),
        )
    }

    #[track_caller]
    fn refused(&self, words: &[&str]) -> TestResult {
        let outcome = self
            .environment
            .cista(["import", "-o", "refused.sqsh", &self.uri])
            .run()?;
        assert_clear_error(&outcome, 1, words);
        assert!(!self.environment.path("refused.sqsh").exists());
        Ok(())
    }

    /// How often signatures were asked for.
    fn signature_requests(&self) -> Result<usize, HarnessError> {
        let log = self.registry.log()?;
        Ok(log
            .lines()
            .filter(|line| line.contains("manifests/sha256-"))
            .count())
    }
}

fn origins_are_those_of_every_file(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let host = environment.session().registry()?.host();
    let system = environment.home().join("etc");
    std::fs::create_dir_all(&system).context("create", &system)?;
    let file = system.join("cista.toml");
    let administrator = |text: &str| std::fs::write(&file, text).context("write", &file);
    let import = |output: &str| {
        environment
            .cista(["import", "-o", output, &uri])
            .env("CISTA_SYSCONF_PATH", &system)
    };
    administrator(&format!(
        "[policy]\nregistries = [\"quay.io\", \"{host}/tools\"]\n"
    ))?;
    import("a.sqsh").check()?;
    // The user may ask for more, and not for less.
    environment.configure("cista/cista.toml", "[policy]\nregistries = [\"quay.io\"]\n")?;
    assert_clear_error(
        &import("b.sqsh").run()?,
        1,
        &["does not allow", &uri, "config/cista/cista.toml"],
    );
    administrator("[policy]\nregistries = [\"quay.io\"]\n")?;
    environment.configure(
        "cista/cista.toml",
        &format!("[policy]\nregistries = [\"{host}\"]\n"),
    )?;
    assert_clear_error(
        &import("b.sqsh").run()?,
        1,
        &["does not allow", "etc/cista.toml"],
    );
    for command in ["run", "load", "digest"] {
        let outcome = environment
            .cista([command, &uri])
            .env("CISTA_SYSCONF_PATH", &system)
            .run()?;
        let status = if command == "run" { 125 } else { 1 };
        assert_clear_error(&outcome, status, &["does not allow"]);
    }
    Ok(())
}

fn digests_can_be_demanded(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    environment.configure("cista/cista.toml", "[policy]\nrequire_digest = true\n")?;
    let outcome = environment.cista(["import", &uri]).run()?;
    assert_clear_error(&outcome, 1, &["demands a digest", "cista digest"]);
    let outcome = environment.cista(["run", &uri, "true"]).run()?;
    assert_clear_error(&outcome, 125, &["demands a digest"]);
    let digest = environment.cista(["digest", &uri]).text()?;
    let pinned = format!("{}@{digest}", uri.trim_end_matches(":1"));
    environment
        .cista(["import", "-o", "x.sqsh", &pinned])
        .check()?;
    Ok(())
}

fn signatures_can_be_demanded(environment: &TestEnvironment<'_>) -> TestResult {
    let own = Own::start(environment)?;
    let (key, public) = own.keys("ours")?;
    let (other_key, other_public) = own.keys("other")?;
    own.demand(&[&public], "")?;
    own.refused(&["demands a signature", "there is none"])?;

    own.sign(&other_key, &own.name())?;
    own.refused(&["not by a key of the policy"])?;
    own.sign(&key, "quay.io/another/name")?;
    own.refused(&["`quay.io/another/name`"])?;
    own.demand(&[&public], "identity = \"any\"\n")?;
    environment
        .cista(["import", "-o", "copied.sqsh", &own.uri])
        .check()?;
    own.demand(&[&public], "")?;
    own.refused(&["`quay.io/another/name`"])?;

    own.sign(&key, &own.name())?;
    own.demand(&[&other_public, &public], "")?;
    environment
        .cista(["import", "-o", "x.sqsh", &own.uri])
        .check()?;
    environment
        .cista(["import", "--no-cache", "-o", "y.sqsh", &own.uri])
        .check()?;
    assert_eq!(
        hash_of_file(&environment.path("x.sqsh"))?,
        hash_of_file(&environment.path("y.sqsh"))?
    );
    // Those of two people.
    let both = format!(
        "\n[[policy.signed]]\nimages = [\"{}\"]\nkeys = [\"{}\"]\n",
        own.name(),
        other_public.display()
    );
    own.demand(&[&public], &both)?;
    own.refused(&["not by a key of the policy"])?;
    // Other images need none.
    let elsewhere = environment.session().uri(Recipe::Busybox)?;
    environment
        .cista(["import", "-o", "z.sqsh", &elsewhere])
        .check()?;
    Ok(())
}

fn images_in_the_store_need_signatures_too(environment: &TestEnvironment<'_>) -> TestResult {
    let own = Own::start(environment)?;
    let (key, public) = own.keys("ours")?;
    let run = || {
        environment
            .cista(["run", &own.uri, "echo", "it runs"])
            .run()
    };
    let offline = || {
        environment
            .cista(["run", "--offline", &own.uri, "echo", "it runs"])
            .run()
    };
    assert_eq!(run()?.text(), "it runs");
    assert_eq!(offline()?.text(), "it runs");
    own.demand(&[&public], "")?;
    // Whether it is signed cannot be told without asking, so it is not used.
    assert_clear_error(&offline()?, 125, &[".sig", "not in the store"]);
    assert_clear_error(&run()?, 125, &["demands a signature", "there is none"]);
    own.sign(&key, &own.name())?;
    let outcome = run()?;
    assert_eq!(outcome.text(), "it runs", "{}", outcome.error_text());
    // What was found good is kept, and checked without asking again.
    let before = own.signature_requests()?;
    assert!(before > 0);
    assert_eq!(run()?.text(), "it runs");
    assert_eq!(offline()?.text(), "it runs");
    assert_eq!(own.signature_requests()?, before);
    // By what is in the policy now.
    let (_, new_public) = own.keys("new")?;
    own.demand(&[&new_public], "")?;
    assert_clear_error(&offline()?, 125, &[".sig", "not in the store"]);
    assert_clear_error(&run()?, 125, &["not by a key of the policy"]);
    Ok(())
}

fn mistakes_are_pointed_at(environment: &TestEnvironment<'_>) -> TestResult {
    for (text, words) in [
        (
            "[policy]\nregistry = []\n",
            &["cista.toml:2:", "registry"][..],
        ),
        (
            "[policy]\nregistries = [\"a b\"]\n",
            &["cista.toml:2:", "a b"],
        ),
        (
            "[[policy.signed]]\nkeys = [\"/etc/passwd\"]\n",
            &["cista.toml:2:", "PEM"],
        ),
        (
            "[[policy.signed]]\nkeys = []\n",
            &["cista.toml:2:", "at least one"],
        ),
    ] {
        environment.configure("cista/cista.toml", text)?;
        let outcome = environment
            .cista(["import", "docker://127.0.0.1:1/x"])
            .run()?;
        assert_clear_error(&outcome, 1, words);
    }
    Ok(())
}

const fn case(
    name: &'static str,
    run: fn(&TestEnvironment<'_>) -> TestResult,
    needs: &'static [Need],
) -> Case {
    Case {
        name,
        tier: Tier::Registry,
        who: Who::User,
        needs,
        run,
    }
}

const IMAGE: &[Need] = &[Need::Image(Recipe::Busybox), Need::Program("openssl")];

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "policy::origins_are_those_of_every_file",
        origins_are_those_of_every_file,
        IMAGE,
    ),
    case(
        "policy::digests_can_be_demanded",
        digests_can_be_demanded,
        IMAGE,
    ),
    case(
        "policy::signatures_can_be_demanded",
        signatures_can_be_demanded,
        IMAGE,
    ),
    Case {
        tier: Tier::Userns,
        who: Who::Both,
        ..case(
            "policy::images_in_the_store_need_signatures_too",
            images_in_the_store_need_signatures_too,
            &[
                Need::Image(Recipe::Busybox),
                Need::Program("openssl"),
                Need::UserNamespaces,
                Need::Fuse,
            ],
        )
    },
    Case {
        tier: Tier::Cli,
        ..case(
            "policy::mistakes_are_pointed_at",
            mistakes_are_pointed_at,
            &[],
        )
    },
];
