//! The table `[registries]` and podman's `registries.conf`: mirrors, other places, certificates, what is blocked.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use cista_tests::case::{CONTAINER, Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Recipe, push};
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

/// A mirror that has a damaged layer is left, and the image is begun again from the next place.
fn a_wrong_layer_of_a_mirror_comes_from_elsewhere(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    let uri = session.uri(Recipe::Busybox)?;
    let image = session.images().get(Recipe::Busybox)?;
    let home = environment.home();
    let mirror = Registry::start(&home.join("storage"), &home.join("registry"))?;
    push(&image, &mirror)?;
    let size = |path: &std::path::PathBuf| path.metadata().map_or(0, |file| file.len());
    let blobs = cista_tests::listing::files_below(&home.join("storage"))?;
    let layer = blobs.into_iter().max_by_key(size).unwrap_or_default();
    let mut bytes = std::fs::read(&layer).context("read", &layer)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&layer, bytes).context("write", &layer)?;
    let host = session.registry()?.host();
    environment.configure(
        "cista/cista.toml",
        &format!(
            "[registries.\"{host}\"]\nmirrors = [\"{}\"]\n",
            mirror.host()
        ),
    )?;
    for options in [&[][..], &["--no-cache"]] {
        let outcome = environment
            .cista(["import", "-q", "-f", "-o", "x.sqsh", &uri])
            .args(options)
            .check()?;
        let told = outcome.error_text();
        let words = [
            mirror.host(),
            "not used any more".into(),
            "fetched again".into(),
        ];
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
        environment.cista(["start", "x.sqsh", "true"]).check()?;
        // Without the store there is none.
        let _ = std::fs::remove_dir_all(environment.store());
    }
    // Where there is no other place, the damage is the error.
    let direct = image.uri(&mirror);
    let outcome = environment
        .cista(["import", "-o", "y.sqsh", &direct])
        .run()?;
    assert_clear_error(&outcome, 1, &["corrupt", "sha256:"]);
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
        "registries::a_wrong_layer_of_a_mirror_comes_from_elsewhere",
        a_wrong_layer_of_a_mirror_comes_from_elsewhere,
    )
    .needing(CONTAINER),
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
