//! The way from a registry: broken connections, few of them, a long way.

use std::time::Duration;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Packing, Recipe};
use cista_tests::listing::{files_below, hash_of_file};
use cista_tests::proxy::{Cuts, Proxy, Way};

const PYTHON: Recipe = Recipe::Python(Packing::Gzip);

/// Imports the Python image over a proxy, checks every blob in the store, and returns the bytes that came and those of the layers.
fn import_over(
    environment: &TestEnvironment<'_>,
    proxy: &Proxy,
    connections: u32,
) -> Result<(u64, u64), HarnessError> {
    let session = environment.session();
    let image = session.images().get(PYTHON)?;
    let registry = session.registry()?.host();
    let uri = session.uri(PYTHON)?.replace(&registry, &proxy.host());
    environment
        .cista(["import", "-q", "-f", "-o", "x.sqsh"])
        .arg(uri)
        .env("CISTA_MAX_CONNECTIONS", connections.to_string())
        .check()?;
    let mut layers = 0;
    for blob in files_below(&environment.store().join("blobs"))? {
        let name = blob.file_name().unwrap_or_default().to_string_lossy();
        assert_eq!(name, hash_of_file(&blob)?);
        layers += 1;
    }
    assert!(layers > image.layout.manifest.layers.len());
    Ok((proxy.passed(), image.layout.layer_bytes()))
}

/// Connections that are cut after any number of bytes cost at most a twentieth more bytes.
fn cut_connections_are_resumed(environment: &TestEnvironment<'_>) -> TestResult {
    environment.session().uri(PYTHON)?;
    for seed in [1, 2] {
        let way = Way {
            cuts: Some(Cuts {
                seed,
                most: 12 << 20,
            }),
            ..Way::default()
        };
        let proxy = Proxy::start(environment.session().registry()?.address(), way)?;
        let (passed, size) = import_over(environment, &proxy, 6)?;
        assert!(
            passed <= size + size / 20,
            "seed {seed}: {passed} bytes for {size}"
        );
        assert!(proxy.connections() > size / (12 << 20), "seed {seed}");
        let store = environment.store();
        std::fs::remove_dir_all(&store).context("remove", &store)?;
    }
    Ok(())
}

/// No more connections are made than are allowed, and those are used again.
fn connections_are_few(environment: &TestEnvironment<'_>) -> TestResult {
    environment.session().uri(PYTHON)?;
    let way = Way {
        delay: Duration::from_millis(5),
        ..Way::default()
    };
    let proxy = Proxy::start(environment.session().registry()?.address(), way)?;
    let (passed, size) = import_over(environment, &proxy, 3)?;
    assert!(passed <= size + size / 20, "{passed} bytes for {size}");
    // One more may be for the documents.
    assert!(proxy.connections() <= 4, "{}", proxy.connections());
    Ok(())
}

const NEEDS: &[Need] = &[Need::Image(PYTHON)];

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "transfer::cut_connections_are_resumed",
        tier: Tier::Registry,
        who: Who::User,
        needs: NEEDS,
        run: cut_connections_are_resumed,
    },
    Case {
        name: "transfer::connections_are_few",
        tier: Tier::Registry,
        who: Who::User,
        needs: NEEDS,
        run: connections_are_few,
    },
];
