//! Import: against the floor of the work itself, against tar2sqfs, against enroot.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use cista_tests::environment::{Session, TestEnvironment};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Image, Packing, Recipe};
use cista_tests::packages::find_program;
use sha2::{Digest as _, Sha256};

use super::measure::{Contestant, take_turns, time};
use super::table::{Table, megabytes, seconds};

const ROUNDS: usize = 5;

pub(super) fn run(session: &Session, rounds: Option<usize>) -> Result<Vec<Table>, HarnessError> {
    let rounds = rounds.unwrap_or(ROUNDS);
    let environment = session.environment("bench-import", false)?;
    Ok(vec![
        from_registry(session, &environment, rounds)?,
        from_tar(session, &environment, rounds)?,
        memory(session, &environment)?,
    ])
}

/// The work that no import can do without, each kind timed alone on one thread.
#[derive(Clone, Copy, Debug)]
struct Floor {
    inflate: Duration,
    hash: Duration,
    compress: Duration,
}

impl Floor {
    /// Inflates the layers, hashes blobs and tars, compresses what survives of them in blocks, from memory to memory.
    fn measure(image: &Image, flat: &Path) -> Result<Self, HarnessError> {
        let mut floor = Self {
            inflate: Duration::ZERO,
            hash: Duration::ZERO,
            compress: Duration::ZERO,
        };
        let mut plain = Vec::new();
        for layer in &image.layout.manifest.layers {
            let path = image.layout.blob(&layer.digest);
            let blob = std::fs::read(&path).context("read", &path)?;
            plain.clear();
            let (inflate, result) = time(|| {
                flate2::bufread::MultiGzDecoder::new(blob.as_slice()).read_to_end(&mut plain)
            });
            result.context("inflate", &path)?;
            let (hash, digests) = time(|| (Sha256::digest(&blob), Sha256::digest(&plain)));
            std::hint::black_box(digests);
            floor.inflate += inflate;
            floor.hash += hash;
        }
        let content = std::fs::read(flat).context("read", flat)?;
        let mut block = vec![0; 1 << 18];
        let mut compressor = zstd::bulk::Compressor::new(1).context("compress", flat)?;
        let (compress, result) = time(|| {
            content.chunks(1 << 17).try_for_each(|piece| {
                compressor
                    .compress_to_buffer(piece, &mut block[..])
                    .map(drop)
            })
        });
        result.context("compress", flat)?;
        floor.compress = compress;
        Ok(floor)
    }

    /// What it takes when all processors share the work.
    fn shared(self) -> Duration {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        (self.inflate + self.hash + self.compress) / u32::try_from(processors).unwrap_or(1)
    }
}

fn from_registry(
    session: &Session,
    environment: &TestEnvironment<'_>,
    rounds: usize,
) -> Result<Table, HarnessError> {
    let recipe = Recipe::Python(Packing::Gzip);
    let image = session.images().get(recipe)?;
    let flat = session.images().python_tar()?;
    let uri = session.uri(recipe)?;
    let mut last = None;
    let mut floors = Vec::new();
    let import = |file: &str| {
        environment
            .cista(["import", "-q", "-f", "-o", file])
            .arg(&uri)
    };
    let mut contestants = vec![
        Contestant::writing("work floor", || {
            let floor = Floor::measure(&image, &flat)?;
            floors.push(floor);
            Ok(floor.shared())
        }),
        Contestant::writing("cista import, cold", || {
            let store = environment.store();
            if store.exists() {
                std::fs::remove_dir_all(&store).context("remove", &store)?;
            }
            Ok(import("cold.sqsh").check()?.wall)
        }),
        Contestant::writing("cista import, from the store", || {
            Ok(import("warm.sqsh").check()?.wall)
        }),
        Contestant::writing("cista import, no store", || {
            let outcome = import("none.sqsh").arg("--no-cache").measured().check()?;
            last = outcome.peak_memory;
            Ok(outcome.wall)
        }),
    ];
    if find_program("enroot").is_some() {
        contestants.push(Contestant::writing("enroot import", || {
            let file = environment.path("enroot.sqsh");
            let _ = std::fs::remove_file(&file);
            let cache = environment.path("enroot-cache");
            let _ = std::fs::remove_dir_all(&cache);
            let host = uri.trim_start_matches("docker://").replacen('/', "#", 1);
            let import = environment
                .program("enroot")
                .args(["import", "-o"])
                .arg(&file)
                .arg(format!("docker://{host}"))
                .env("ENROOT_ALLOW_HTTP", "yes")
                .env("ENROOT_CACHE_PATH", &cache);
            Ok(import.check()?.wall)
        }));
    }
    let times = take_turns(rounds, contestants)?;
    let mut table = Table::of_times("Import of the Python image from a registry", &times, 0);
    let floor = floors[floors.len() / 2];
    let size = environment.path("cold.sqsh");
    let size = size.metadata().context("look at", &size)?.len();
    table.note(&format!(
        "{} rounds. {} layers, {} compressed (gzip), {} as a flat tar, {} as an image. Work on one thread: inflate {}, sha256 \
         of blobs and tars {}, zstd:1 of the flat tar {}; the floor is their sum divided by the processors.",
        times[0].rounds(),
        image.layout.manifest.layers.len(),
        megabytes(image.layout.layer_bytes()),
        megabytes(flat.metadata().context("look at", &flat)?.len()),
        megabytes(size),
        seconds(floor.inflate),
        seconds(floor.hash),
        seconds(floor.compress),
    ));
    Ok(table)
}

fn from_tar(
    session: &Session,
    environment: &TestEnvironment<'_>,
    rounds: usize,
) -> Result<Table, HarnessError> {
    let flat = session.images().python_tar()?;
    let open = || std::fs::File::open(&flat).context("open", &flat);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // tar2sqfs reads the archive from stdin, so both do.
    let times = take_turns(
        rounds,
        vec![
            Contestant::writing("tar2sqfs", || {
                let convert = environment
                    .program("tar2sqfs")
                    .args(["--quiet", "--force", "-c", "zstd", "-X", "level=1", "-j"])
                    .arg(processors.to_string())
                    .arg("tar2sqfs.sqsh")
                    .stdin_file(open()?);
                Ok(convert.check()?.wall)
            }),
            Contestant::writing("cista import tar:-", || {
                let import = environment
                    .cista(["import", "-q", "-f", "-o", "tar.sqsh", "tar:-"])
                    .stdin_file(open()?);
                Ok(import.check()?.wall)
            }),
        ],
    )?;
    let mut table = Table::of_times("Import of a flat root file system", &times, 0);
    let size = |name: &str| {
        let path = environment.path(name);
        path.metadata()
            .map(|metadata| metadata.len())
            .context("look at", path)
    };
    let (theirs, ours) = (size("tar2sqfs.sqsh")?, size("tar.sqsh")?);
    table.note(&format!(
        "{} rounds. Image size: tar2sqfs {}, cista {}, ratio {:.3}.",
        times[0].rounds(),
        megabytes(theirs),
        megabytes(ours),
        ours as f64 / theirs as f64
    ));
    Ok(table)
}

/// Peak memory of one import each, cold and without the store.
fn memory(session: &Session, environment: &TestEnvironment<'_>) -> Result<Table, HarnessError> {
    let mut table = Table::new("Memory of an import", &["image", "peak resident", "time"]);
    for recipe in [Recipe::Python(Packing::Gzip), Recipe::Huge] {
        let outcome = environment
            .cista(["import", "-q", "-f", "--no-cache", "-o", "memory.sqsh"])
            .arg(session.uri(recipe)?)
            .measured()
            .timeout(Duration::from_secs(300))
            .check()?;
        table.row(vec![
            format!("{}:{}", recipe.repository(), recipe.tag()),
            format!("{} MiB", outcome.peak_memory.unwrap_or(0) >> 20),
            seconds(outcome.wall),
        ]);
    }
    Ok(table)
}
