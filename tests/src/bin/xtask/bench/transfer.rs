//! Transfer: an import from a registry that is far away, against curl fetching the same bytes.
//!
//! The way is made long, and where it says so narrow, by a proxy of ours (`proxy.rs` of the harness), the same for all. curl fetches every
//! blob in parts, over as many connections as cista may have.

use std::time::Duration;

use cista_tests::environment::{Session, TestEnvironment};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Image, Recipe};
use cista_tests::proxy::{Proxy, Way};

use super::measure::{Contestant, take_turns};
use super::table::{Table, megabytes, seconds};

const ROUNDS: usize = 3;
/// One direction; 40 ms there and back.
const DELAY: Duration = Duration::from_millis(20);
/// Bytes in a second of a link of 1 Gbit/s.
const GIGABIT: u64 = 125_000_000;
const CONNECTIONS: u64 = 10;
/// How long one transfer may take.
const LIMIT: Duration = Duration::from_secs(300);

pub(super) fn run(session: &Session, rounds: Option<usize>) -> Result<Vec<Table>, HarnessError> {
    let rounds = rounds.unwrap_or(ROUNDS);
    let environment = session.environment("bench-transfer", false)?;
    Ok(vec![
        far_away(session, &environment, rounds, Some(GIGABIT))?,
        far_away(session, &environment, rounds, None)?,
    ])
}

fn far_away(
    session: &Session,
    environment: &TestEnvironment<'_>,
    rounds: usize,
    rate: Option<u64>,
) -> Result<Table, HarnessError> {
    let recipe = Recipe::Huge;
    let image = session.images().get(recipe)?;
    let near = session.uri(recipe)?;
    let registry = session.registry()?;
    let way = Way {
        delay: DELAY,
        rate,
        cuts: None,
    };
    let proxy = Proxy::start(registry.address(), way)?;
    let far = near.replace(&registry.host(), &proxy.host());
    let transfers = curl_transfers(&image, &proxy.host());
    let config = environment.write("curl.txt", &transfers, 0o644)?;
    let import = |uri: &str| {
        let store = environment.store();
        if store.exists() {
            std::fs::remove_dir_all(&store).context("remove", &store)?;
        }
        let import = environment
            .cista(["import", "-q", "-f", "-o", "x.sqsh", uri])
            .env("CISTA_MAX_CONNECTIONS", CONNECTIONS.to_string());
        Ok(import.timeout(LIMIT).check()?.wall)
    };
    let times = take_turns(
        rounds,
        vec![
            Contestant::writing("curl", || {
                let curl = environment
                    .program("curl")
                    .args(["--silent", "--show-error", "--fail", "--parallel"])
                    .args(["--parallel-max", &CONNECTIONS.to_string(), "--config"])
                    .arg(&config);
                Ok(curl.timeout(LIMIT).check()?.wall)
            }),
            Contestant::writing("cista import, without the delay", || import(&near)),
            Contestant::writing("cista import", || import(&far)),
        ],
    )?;
    let title = match rate {
        Some(_) => "Import from a registry 40 ms away, over 1 Gbit/s",
        None => "Import from a registry 40 ms away",
    };
    let mut table = Table::of_times(title, &times, 0);
    let bound = times[0].median().max(times[1].median());
    table.note(&format!(
        "{} rounds. {} in {} layers, {} connections. Ratio of the import to the longer of the other two ({}): {:.2}.",
        times[0].rounds(),
        megabytes(image.layout.layer_bytes()),
        image.layout.manifest.layers.len(),
        CONNECTIONS,
        seconds(bound),
        times[2].median().as_secs_f64() / bound.as_secs_f64(),
    ));
    Ok(table)
}

/// The configuration of curl for all blobs of an image, each in as many parts as there are connections.
fn curl_transfers(image: &Image, host: &str) -> String {
    let mut text = String::new();
    for layer in &image.layout.manifest.layers {
        let part = layer.size.div_ceil(CONNECTIONS).max(1);
        for first in (0..layer.size).step_by(usize::try_from(part).unwrap_or(usize::MAX)) {
            let last = (first + part).min(layer.size) - 1;
            if !text.is_empty() {
                text.push_str("next\n");
            }
            text.push_str(&format!(
                "url = \"http://{host}/v2/{}/blobs/{}\"\nrange = \"{first}-{last}\"\noutput = \"/dev/null\"\n",
                image.recipe.repository(),
                layer.digest,
            ));
        }
    }
    text
}
