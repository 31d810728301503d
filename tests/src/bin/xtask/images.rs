//! `cargo xtask images`: build the test images.

use std::process::ExitCode;
use std::time::Instant;

use cista_tests::artifacts::target;
use cista_tests::image::{Images, Recipe};
use cista_tests::packages::{DEMO, TESTS};
use cista_tests::registry::Registry;

use crate::{Outcome, machine, say};

/// Build the test images and put them into the registry's storage, unless they are there
///
/// They are kept under `target/test-images`, or where `CISTA_TEST_IMAGES` says.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> Outcome {
    machine::prepare(&[DEMO, TESTS]);
    let images = Images::open(&target(), say)?;
    let work = std::env::temp_dir().join(format!("cista-images-{}", std::process::id()));
    let registry = Registry::start(&images.registry_storage(), &work)?;
    for recipe in Recipe::ALL {
        let start = Instant::now();
        let image = images.get(*recipe)?;
        images.push(&image, &registry)?;
        println!(
            "{:<14} {:<12} {:>2} layers {:>6.1} MB {:>6.1} s  {}",
            recipe.repository(),
            recipe.tag(),
            image.layout.manifest.layers.len(),
            image.layout.layer_bytes() as f64 / 1e6,
            start.elapsed().as_secs_f64(),
            image.layout.manifest_digest,
        );
    }
    drop(registry);
    let _ = std::fs::remove_dir_all(&work);
    Ok(ExitCode::SUCCESS)
}
