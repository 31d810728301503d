//! `cista import`, `digest` and `inspect`: images from every kind of source become files, or nothing does.

use std::path::Path;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, names_in};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{LayoutWriter, Packing, Recipe, RunConfig};
use cista_tests::listing::{files_below, hash_of_file};
use cista_tests::program::Program;
use cista_tests::registry::Registry;

/// The most memory that an import may take, whatever the size of the image (issue "The main job", "It must reach").
const MEMORY_LIMIT: u64 = 400 << 20;

fn the_file_is_named_after_the_image(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let outcome = environment.cista(["import"]).arg(&uri).check()?;
    assert_eq!(environment.files()?, ["tools+busybox+1.sqsh"]);
    assert!(
        outcome.stdout.is_empty(),
        "messages belong on stderr: {}",
        outcome.text()
    );
    let told = outcome.error_text();
    assert!(
        told.contains("tools+busybox+1.sqsh"),
        "where did it go? {told}"
    );
    Ok(())
}

fn an_existing_file_is_kept_unless_forced(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let kept = environment.write("x.sqsh", "precious", 0o644)?;
    let refused = environment
        .cista(["import", "-o", "x.sqsh"])
        .arg(&uri)
        .run()?;
    assert_eq!(refused.code(), Some(1), "{}", refused.error_text());
    let told = refused.error_text();
    assert!(told.contains("error:") && told.contains("x.sqsh"), "{told}");
    assert!(told.contains("hint:"), "{told}");
    assert_eq!(std::fs::read(&kept).context("read", &kept)?, b"precious");
    environment
        .cista(["import", "-f", "-o", "x.sqsh"])
        .arg(&uri)
        .check()?;
    assert_ne!(std::fs::read(&kept).context("read", &kept)?, b"precious");
    assert_eq!(environment.files()?, ["x.sqsh"]);
    Ok(())
}

fn quiet_says_nothing(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let outcome = environment
        .cista(["import", "-q", "-o", "x.sqsh"])
        .arg(&uri)
        .check()?;
    assert_eq!((outcome.text(), outcome.error_text()), Default::default());
    Ok(())
}

fn digest_is_that_of_the_manifest(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    let image = session.images().get(Recipe::Busybox)?;
    let uri = session.uri(Recipe::Busybox)?;
    let digest = environment.cista(["digest"]).arg(&uri).text()?;
    assert_eq!(digest, image.layout.manifest_digest);
    // A digest in the reference asks for just that image.
    let pinned = format!("{uri}@{digest}");
    assert_eq!(environment.cista(["digest"]).arg(pinned).text()?, digest);
    let blobs = environment.store().join("blobs");
    assert!(
        !blobs.exists() || files_below(&blobs)?.is_empty(),
        "a digest needs no download"
    );
    Ok(())
}

fn inspect_shows_the_config(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    let file = session.imported(Recipe::Odd(Packing::Gzip))?;
    let text = environment.cista(["inspect", "--json"]).arg(&file).text()?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|source| HarnessError::Json {
            what: "`cista inspect --json`".into(),
            source,
        })?;
    let image = session.images().get(Recipe::Odd(Packing::Gzip))?;
    let all = json.to_string();
    for expected in [
        image.layout.manifest_digest.as_str(),
        "ODD=a value with spaces, 'quotes' and $signs",
        "/odd",
        "zstd",
    ] {
        assert!(all.contains(expected), "`{expected}` is not in {all}");
    }
    let plain = environment.cista(["inspect"]).arg(&file).text()?;
    assert!(plain.contains(&image.layout.manifest_digest), "{plain}");
    Ok(())
}

/// Every kind of source that holds the same image gives the same files.
fn every_source_gives_the_same_image(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    let image = session.images().get(Recipe::Busybox)?;
    let layout = environment.copy_of(&image, "layout")?;
    let oci = format!("oci:{}:1", layout.display());
    let skopeo = |to: &str| {
        Program::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", &oci, to])
            .check()
    };
    let archive = environment.path("archive.tar");
    let docker = environment.path("docker.tar");
    skopeo(&format!("oci-archive:{}:1", archive.display()))?;
    skopeo(&format!("docker-archive:{}:busybox:1", docker.display()))?;
    let registry = session.uri(Recipe::Busybox)?;
    let sources = [
        ("registry", registry),
        ("oci", oci.clone()),
        (
            "oci-archive",
            format!("oci-archive:{}:1", archive.display()),
        ),
        (
            "docker-archive",
            format!("docker-archive:{}", docker.display()),
        ),
    ];
    for (name, uri) in &sources {
        environment
            .cista(["import", "-q", "-o", &format!("{name}.sqsh"), uri])
            .check()?;
    }
    // Where an image came from is written in two files of it, and of course differs.
    let listing = |name: &str| -> Result<Vec<String>, HarnessError> {
        let text = environment
            .program("unsquashfs")
            .args(["-lln", "-d", "", &format!("{name}.sqsh")])
            .text()?;
        let says_where_from =
            |line: &str| line.ends_with("/.cista/image.json") || line.ends_with("/etc/rc");
        Ok(text
            .lines()
            .filter(|line| !says_where_from(line))
            .map(ToOwned::to_owned)
            .collect())
    };
    let expected = listing("registry")?;
    assert!(expected.len() > 100, "{expected:?}");
    for (name, _) in &sources {
        let found = listing(name)?;
        let different: Vec<_> = found
            .iter()
            .zip(&expected)
            .filter(|(a, b)| a != b)
            .collect();
        assert!(different.is_empty(), "{name}: {different:?}");
        assert_eq!(found.len(), expected.len(), "{name}");
    }
    Ok(())
}

/// A plain root file system: as a tar file, as a tar stream on stdin, as a directory.
fn plain_root_file_systems_are_imported(environment: &TestEnvironment<'_>) -> TestResult {
    let root = environment.directory("root")?;
    for (name, content) in [("a", "content of a"), ("b", "content of b")] {
        environment.write(&format!("root/{name}"), content, 0o640)?;
    }
    environment
        .program("tar")
        .args(["-C", "root", "-cf", "flat.tar", "."])
        .check()?;
    environment
        .cista(["import", "-q", "-o", "file.sqsh", "tar:flat.tar"])
        .check()?;
    let stream = std::fs::read(environment.path("flat.tar")).context("read", "flat.tar")?;
    environment
        .cista(["import", "-q", "-o", "stdin.sqsh", "tar:-"])
        .stdin_bytes(stream)
        .check()?;
    environment
        .cista(["import", "-q", "-o", "dir.sqsh"])
        .arg(format!("dir:{}", root.display()))
        .check()?;
    for name in ["file", "stdin", "dir"] {
        let image = format!("{name}.sqsh");
        let text = environment
            .program("unsquashfs")
            .args(["-cat", &image, "a", "b"])
            .text()?;
        assert_eq!(text, "content of acontent of b", "{name}");
    }
    Ok(())
}

/// The same image gives the same bytes: with 1, 2 and 5 threads, with a cold and a warm store, and without one.
fn output_is_deterministic(environment: &TestEnvironment<'_>, recipe: Recipe) -> TestResult {
    let uri = environment.session().uri(recipe)?;
    let mut hashes = Vec::new();
    for (threads, options, cold) in [
        ("1", &[][..], true),
        ("2", &[], false),
        ("2", &[], true),
        ("5", &["--no-cache"], true),
    ] {
        let store = environment.store();
        if cold && store.exists() {
            std::fs::remove_dir_all(&store).context("remove", &store)?;
        }
        environment
            .cista(["import", "-q", "-f", "-o", "x.sqsh"])
            .args(options)
            .arg(&uri)
            .env("CISTA_MAX_PROCESSORS", threads)
            .check()?;
        hashes.push(hash_of_file(&environment.path("x.sqsh"))?);
    }
    assert!(
        hashes.iter().all(|hash| *hash == hashes[0]),
        "{recipe:?}: {hashes:?}"
    );
    Ok(())
}

fn the_odd_image_is_deterministic(environment: &TestEnvironment<'_>) -> TestResult {
    output_is_deterministic(environment, Recipe::Odd(Packing::Mixed))
}

fn the_python_image_is_deterministic(environment: &TestEnvironment<'_>) -> TestResult {
    output_is_deterministic(environment, Recipe::Python(Packing::Gzip))
}

/// A warm store means that no layer is asked for again.
fn a_warm_store_downloads_nothing(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    session.uri(Recipe::Busybox)?;
    let image = session.images().get(Recipe::Busybox)?;
    let layer = &image.layout.manifest.layers[0].digest;
    // A registry of our own, so that its log tells of no other test.
    let registry = Registry::start(&session.images().registry_storage(), &environment.home())?;
    let uri = image.uri(&registry);
    let import = |name: &str| environment.cista(["import", "-q", "-o", name, &uri]);
    let downloads = || -> Result<usize, HarnessError> {
        let log = registry.log()?;
        let is_download = |line: &&str| line.contains("GET") && line.contains(layer);
        Ok(log.lines().filter(is_download).count())
    };
    import("cold.sqsh").check()?;
    assert_eq!(downloads()?, 1, "{}", registry.log()?);
    let blobs = files_below(&environment.store().join("blobs"))?;
    assert!(!blobs.is_empty(), "the store is empty after an import");
    for blob in &blobs {
        let name = blob.file_name().unwrap_or_default().to_string_lossy();
        assert_eq!(
            name,
            hash_of_file(blob)?,
            "blobs are kept as they were sent"
        );
    }
    import("warm.sqsh").check()?;
    assert_eq!(downloads()?, 1, "{}", registry.log()?);
    assert_eq!(
        hash_of_file(&environment.path("cold.sqsh"))?,
        hash_of_file(&environment.path("warm.sqsh"))?
    );
    Ok(())
}

/// Disk: the compressed layers and the result, nothing else.
fn nothing_but_blobs_and_the_image_is_written(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    let image = session.images().get(Recipe::Debian)?;
    let uri = session.uri(Recipe::Debian)?;
    environment
        .cista(["import", "-q", "-o", "x.sqsh"])
        .arg(&uri)
        .check()?;
    let size = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    let stored: u64 = files_below(&environment.store())?
        .iter()
        .map(|path| size(path))
        .sum();
    // The manifest and the config may be kept too.
    assert!(
        stored <= image.layout.layer_bytes() + (1 << 20),
        "{stored} bytes in the store for {} bytes of layers",
        image.layout.layer_bytes()
    );
    assert_eq!(environment.files()?, ["x.sqsh"]);
    assert_eq!(names_in(&environment.home())?, Vec::<String>::new());
    environment
        .cista(["import", "-q", "--no-cache", "-f", "-o", "x.sqsh"])
        .arg(&uri)
        .env("XDG_CACHE_HOME", environment.path("no-store"))
        .check()?;
    let no_store = environment.path("no-store");
    assert!(
        !no_store.exists() || files_below(&no_store)?.is_empty(),
        "--no-cache wrote to the store"
    );
    Ok(())
}

fn memory_is_bounded(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Huge)?;
    let outcome = environment
        .cista(["import", "-q", "-o", "huge.sqsh"])
        .arg(&uri)
        .measured()
        .timeout(std::time::Duration::from_secs(400))
        .check()?;
    let peak = outcome.peak_memory.unwrap_or(u64::MAX);
    assert!(
        peak <= MEMORY_LIMIT,
        "{} MiB for an image of 4 GiB",
        peak >> 20
    );
    // The big file is more than 2 GiB, which needs the extended inode.
    let listing = environment
        .program("unsquashfs")
        .args(["-lln", "huge.sqsh", "one"])
        .text()?;
    assert!(listing.contains("2684354560"), "{listing}");
    Ok(())
}

fn every_compression_can_be_chosen(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    for (compression, told) in [
        ("zstd", "zstd"),
        ("zstd:5", "zstd"),
        ("gzip", "gzip"),
        ("xz", "xz"),
        ("lz4", "lz4"),
        ("none", ""),
    ] {
        environment
            .cista([
                "import",
                "-q",
                "-f",
                "-o",
                "x.sqsh",
                "--compression",
                compression,
            ])
            .arg(&uri)
            .check()?;
        let facts = environment
            .program("unsquashfs")
            .args(["-s", "x.sqsh"])
            .text()?;
        assert!(facts.contains(told), "{compression}: {facts}");
        let content = environment
            .program("unsquashfs")
            .args(["-cat", "x.sqsh", "etc/issue"])
            .text()?;
        assert_eq!(content, "a test image of cista", "{compression}");
    }
    Ok(())
}

fn an_image_index_gives_this_machines_platform(environment: &TestEnvironment<'_>) -> TestResult {
    // The layout's index names the platform; asking for another one has to fail and to say what there is.
    let image = environment.session().images().get(Recipe::Busybox)?;
    let layout = environment.copy_of(&image, "layout")?;
    let uri = format!("oci:{}:1", layout.display());
    environment
        .cista(["import", "-q", "-o", "own.sqsh", &uri])
        .check()?;
    let other = if cfg!(target_arch = "aarch64") {
        "amd64"
    } else {
        "arm64"
    };
    let refused = environment
        .cista(["import", "-q", "-a", other, "-o", "other.sqsh", &uri])
        .run()?;
    assert_eq!(refused.code(), Some(1), "{}", refused.error_text());
    assert!(
        refused.error_text().contains(other),
        "{}",
        refused.error_text()
    );
    assert_eq!(environment.files()?, ["layout", "own.sqsh"]);
    Ok(())
}

/// Enroot's files are in the image, so that enroot can start it; with values that a shell has to get right.
fn the_files_of_enroot_are_written(environment: &TestEnvironment<'_>) -> TestResult {
    let busybox = environment.session().images().get(Recipe::Busybox)?;
    let root = environment.directory("layout")?;
    let mut layout = LayoutWriter::create(&root)?;
    layout.borrow(&busybox.layout, &busybox.layout.manifest.layers[0])?;
    let config = RunConfig {
        env: vec!["PATH=/bin".into(), "ODD=it's \"a\" $value `here`".into()],
        entrypoint: vec!["/bin/echo".into(), "the entry'point".into()],
        cmd: vec!["a b".into(), "$c".into()],
        working_dir: "/home".into(),
        labels: [("title".to_owned(), "line one\nline two".to_owned())].into(),
    };
    layout.finish("1", &config)?;
    environment
        .cista(["import", "-q", "-o", "x.sqsh"])
        .arg(format!("oci:{}:1", root.display()))
        .check()?;
    environment
        .program("unsquashfs")
        .args(["-q", "-n", "-no-xattrs", "-d", "out", "x.sqsh"])
        .check()?;
    let variables = environment.path("out/etc/environment");
    let variables = std::fs::read_to_string(&variables).context("read", &variables)?;
    assert!(
        variables
            .lines()
            .any(|line| line == "ODD=it's \"a\" $value `here`"),
        "{variables}"
    );
    // The script runs outside of a container too, when it is told to stay: echo and cd are all that it does.
    let script = environment.path("out/etc/rc");
    let text = std::fs::read_to_string(&script).context("read", &script)?;
    assert!(text.contains("/home"), "{text}");
    let runs = |arguments: &[&str]| {
        environment
            .program("sh")
            .arg(&script)
            .args(arguments)
            .current_dir("/")
            .text()
    };
    assert_eq!(runs(&[])?, "the entry'point a b $c");
    assert_eq!(runs(&["x  y", "*"])?, "the entry'point x  y *");
    Ok(())
}

const BUSYBOX: &[Need] = &[Need::Image(Recipe::Busybox)];
const UNSQUASHFS: &[Need] = &[Need::Image(Recipe::Busybox), Need::Program("unsquashfs")];

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
        "import::the_file_is_named_after_the_image",
        Tier::Registry,
        BUSYBOX,
        the_file_is_named_after_the_image,
    ),
    case(
        "import::an_existing_file_is_kept_unless_forced",
        Tier::Registry,
        BUSYBOX,
        an_existing_file_is_kept_unless_forced,
    ),
    case(
        "import::quiet_says_nothing",
        Tier::Registry,
        BUSYBOX,
        quiet_says_nothing,
    ),
    case(
        "import::digest_is_that_of_the_manifest",
        Tier::Registry,
        BUSYBOX,
        digest_is_that_of_the_manifest,
    ),
    case(
        "import::inspect_shows_the_config",
        Tier::Registry,
        &[Need::Image(Recipe::Odd(Packing::Gzip))],
        inspect_shows_the_config,
    ),
    case(
        "import::every_source_gives_the_same_image",
        Tier::Registry,
        UNSQUASHFS,
        every_source_gives_the_same_image,
    ),
    case(
        "import::plain_root_file_systems_are_imported",
        Tier::Cli,
        &[Need::Program("unsquashfs")],
        plain_root_file_systems_are_imported,
    ),
    case(
        "import::the_odd_image_is_deterministic",
        Tier::Registry,
        &[Need::Image(Recipe::Odd(Packing::Mixed))],
        the_odd_image_is_deterministic,
    ),
    case(
        "import::the_python_image_is_deterministic",
        Tier::Registry,
        &[Need::Image(Recipe::Python(Packing::Gzip))],
        the_python_image_is_deterministic,
    ),
    case(
        "import::a_warm_store_downloads_nothing",
        Tier::Registry,
        BUSYBOX,
        a_warm_store_downloads_nothing,
    ),
    case(
        "import::nothing_but_blobs_and_the_image_is_written",
        Tier::Registry,
        &[Need::Image(Recipe::Debian)],
        nothing_but_blobs_and_the_image_is_written,
    ),
    case(
        "import::memory_is_bounded",
        Tier::Registry,
        &[Need::Image(Recipe::Huge), Need::Program("unsquashfs")],
        memory_is_bounded,
    ),
    case(
        "import::every_compression_can_be_chosen",
        Tier::Registry,
        UNSQUASHFS,
        every_compression_can_be_chosen,
    ),
    case(
        "import::an_image_index_gives_this_machines_platform",
        Tier::Registry,
        BUSYBOX,
        an_image_index_gives_this_machines_platform,
    ),
    case(
        "import::the_files_of_enroot_are_written",
        Tier::Registry,
        UNSQUASHFS,
        the_files_of_enroot_are_written,
    ),
];
