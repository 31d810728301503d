//! The table `[registries]` and podman's `registries.conf`: mirrors, other places, certificates, what is blocked.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::registry::Registry;

use super::bad_input::assert_clear_error;

/// A registry that does not exist (RFC 6761).
const FAR: &str = "docker://far.invalid/tools/busybox:1";

/// A port where nobody listens.
fn closed() -> Result<String, HarnessError> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.to_string())
        .context("bind a port of", "127.0.0.1")
}

/// The real registry's host, and the digest of the image there.
fn real(environment: &TestEnvironment<'_>) -> Result<(String, String), HarnessError> {
    let session = environment.session();
    session.uri(Recipe::Busybox)?;
    let image = session.images().get(Recipe::Busybox)?;
    Ok((
        session.registry()?.host(),
        image.layout.manifest_digest.clone(),
    ))
}

fn mirrors_are_asked_in_order(environment: &TestEnvironment<'_>) -> TestResult {
    let (host, digest) = real(environment)?;
    let closed = closed()?;
    environment.configure("cista/cista.toml",
        &format!(
            "[registries.\"far.invalid\"]\nmirrors = [\"{closed}/x\", {{ location = \"{host}\" }}]\n"
        ),
    )?;
    let outcome = environment.cista(["import", "-o", "x.sqsh", FAR]).check()?;
    let told = outcome.error_text();
    let warnings: Vec<_> = told
        .lines()
        .filter(|line| line.starts_with("warning: "))
        .collect();
    assert_eq!(warnings.len(), 1, "{told}");
    assert!(warnings[0].contains(&closed), "{told}");
    // It stays the image that was asked for.
    let shown = environment.cista(["inspect", "x.sqsh"]).text()?;
    assert!(
        shown.contains("far.invalid") && !shown.contains(&host),
        "{shown}"
    );
    assert!(shown.contains(&digest), "{shown}");

    // For references with a digest alone.
    environment.configure("cista/cista.toml",
        &format!(
            "[registries.\"far.invalid\"]\nmirrors = [{{ location = \"{host}\", serves = \"digests\" }}]\n"
        ),
    )?;
    let pinned = format!("docker://far.invalid/tools/busybox@{digest}");
    environment
        .cista(["import", "-o", "y.sqsh", &pinned])
        .check()?;
    let outcome = environment.cista(["digest", FAR]).run()?;
    assert_clear_error(&outcome, 1, &["far.invalid"]);
    // What a mirror does not have, and the registry neither.
    environment.configure(
        "cista/cista.toml",
        &format!("[registries.\"far.invalid\"]\nmirrors = [\"{host}\"]\n"),
    )?;
    let outcome = environment
        .cista(["digest", "docker://far.invalid/no/such:1"])
        .run()?;
    assert_clear_error(&outcome, 1, &["far.invalid"]);
    Ok(())
}

fn podmans_configuration_is_followed(environment: &TestEnvironment<'_>) -> TestResult {
    let (host, digest) = real(environment)?;
    let podman = format!(
        "unqualified-search-registries = [\"quay.io\"]\n\
         [[registry]]\nprefix = \"far.invalid/moved\"\nlocation = \"{host}/tools\"\n\
         [[registry]]\nlocation = \"far.invalid\"\n[[registry.mirror]]\nlocation = \"{host}\"\n\
         [[registry]]\nprefix = \"*.blocked.invalid\"\nblocked = true\n"
    );
    environment.configure("containers/registries.conf", &podman)?;
    for uri in [FAR, "docker://far.invalid/moved/busybox:1"] {
        assert_eq!(environment.cista(["digest", uri]).text()?, digest, "{uri}");
    }
    let outcome = environment
        .cista(["import", "docker://a.blocked.invalid/x:1"])
        .run()?;
    assert_clear_error(&outcome, 1, &["docker://a.blocked.invalid/x:1", "blocked"]);
    // Ours goes before podman's.
    environment.configure(
        "cista/cista.toml",
        "[registries.\"far.invalid\"]\nblocked = true\n",
    )?;
    let outcome = environment.cista(["digest", FAR]).run()?;
    assert_clear_error(&outcome, 1, &["blocked"]);
    environment.configure(
        "containers/registries.conf",
        "[[registry]]\nlocation = \"x y\"\n",
    )?;
    let outcome = environment.cista(["digest", FAR]).run()?;
    assert_clear_error(&outcome, 1, &["registries.conf:2:", "x y"]);
    Ok(())
}

fn certificates_of_a_site(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    session.uri(Recipe::Busybox)?;
    let image = session.images().get(Recipe::Busybox)?;
    let work = environment.home().join("registry");
    let (registry, certificate) =
        Registry::start_encrypted(&session.images().registry_storage(), &work)?;
    environment.give(&work)?;
    let uri = image.uri(&registry);
    let refused = environment.cista(["digest", &uri]).run()?;
    assert_clear_error(&refused, 1, &["secure connection", "SSL_CERT_FILE"]);
    let digest = &image.layout.manifest_digest;
    let given = environment
        .cista(["digest", &uri])
        .env("SSL_CERT_FILE", &certificate)
        .text()?;
    assert_eq!(given, *digest);
    for setting in [
        format!("ca = \"{}\"", certificate.display()),
        "insecure = true".to_owned(),
    ] {
        environment.configure(
            "cista/cista.toml",
            &format!("[registries.\"{}\"]\n{setting}\n", registry.host()),
        )?;
        assert_eq!(
            environment.cista(["digest", &uri]).text()?,
            *digest,
            "{setting}"
        );
    }
    // A certificate that is for another registry is none for this one.
    environment.configure(
        "cista/cista.toml",
        &format!(
            "[registries.\"far.invalid\"]\nca = \"{}\"\n",
            certificate.display()
        ),
    )?;
    let refused = environment.cista(["digest", &uri]).run()?;
    assert_clear_error(&refused, 1, &["secure connection"]);
    environment.configure(
        "cista/cista.toml",
        &format!(
            "[registries.\"{}\"]\nca = \"/nonexistent.pem\"\n",
            registry.host()
        ),
    )?;
    let refused = environment.cista(["digest", &uri]).run()?;
    assert_clear_error(&refused, 1, &["/nonexistent.pem"]);
    Ok(())
}

fn a_rate_is_kept(environment: &TestEnvironment<'_>) -> TestResult {
    let (host, _) = real(environment)?;
    let uri = environment.session().uri(Recipe::Busybox)?;
    let image = environment.session().images().get(Recipe::Busybox)?;
    let blobs = image.layout.root().join("blobs/sha256");
    let mut size = 0;
    for blob in std::fs::read_dir(&blobs).context("read", &blobs)? {
        let blob = blob.context("read", &blobs)?;
        size += blob.metadata().context("look at", &blobs)?.len();
    }
    // Two seconds' worth.
    environment.configure(
        "cista/cista.toml",
        &format!(
            "[registries.\"{host}\"]\nmax_rate = {}\nmax_connections = 2\n",
            size / 2
        ),
    )?;
    let started = Instant::now();
    environment
        .cista(["import", "-o", "x.sqsh", &uri])
        .check()?;
    let taken = started.elapsed();
    assert!(taken > Duration::from_millis(1600), "{taken:?}");
    Ok(())
}

fn mistakes_are_pointed_at(environment: &TestEnvironment<'_>) -> TestResult {
    for (text, words) in [
        (
            "[registries.\"a b\"]\nblocked = true\n",
            &["cista.toml:1:", "a b"][..],
        ),
        (
            "[registries.x]\nmirors = []\n",
            &["cista.toml:2:", "mirors", "mirrors"],
        ),
        (
            "[registries.x]\nmirrors = [\"http://x\"]\n",
            &["cista.toml:2:", "http"],
        ),
        (
            "[registries.x]\nmax_rate = \"fast\"\n",
            &["cista.toml:2:", "50M"],
        ),
    ] {
        environment.configure("cista/cista.toml", text)?;
        let outcome = environment.cista(["digest", FAR]).run()?;
        assert_clear_error(&outcome, 1, words);
    }
    Ok(())
}

const fn case(name: &'static str, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Registry,
        who: Who::User,
        needs: &[Need::Image(Recipe::Busybox), Need::Program("openssl")],
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "registries::mirrors_are_asked_in_order",
        mirrors_are_asked_in_order,
    ),
    case(
        "registries::podmans_configuration_is_followed",
        podmans_configuration_is_followed,
    ),
    case("registries::certificates_of_a_site", certificates_of_a_site),
    case("registries::a_rate_is_kept", a_rate_is_kept),
    Case {
        tier: Tier::Cli,
        needs: &[],
        ..case(
            "registries::mistakes_are_pointed_at",
            mistakes_are_pointed_at,
        )
    },
];
