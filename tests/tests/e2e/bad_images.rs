//! Images that are damaged, that lie, or that were made to do harm: each gives one clear error, and leaves nothing.

use std::path::{Path, PathBuf};

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{
    Compression, LayerWriter, Layout, LayoutWriter, Recipe, RunConfig, header, push,
};
use cista_tests::listing::files_below;
use cista_tests::registry::Registry;

use super::bad_input::{assert_clear_error, refuse};

/// A small layout of the user that a test may break: its directory, and the path of its layer.
pub(crate) fn breakable(
    environment: &TestEnvironment<'_>,
    name: &str,
) -> Result<(PathBuf, PathBuf), HarnessError> {
    let image = environment.session().images().get(Recipe::Busybox)?;
    let root = environment.copy_of(&image, name)?;
    let layout = Layout::open(&root)?;
    let layer = layout.blob(&layout.manifest.layers[0].digest);
    Ok((root, layer))
}

/// How a blob is broken.
type Damage = fn(&mut Vec<u8>);

const DAMAGES: &[(&str, Damage)] = &[
    ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
    ("short by one", |bytes| bytes.truncate(bytes.len() - 1)),
    ("long by one", |bytes| bytes.push(0)),
    ("empty", Vec::clear),
    ("one bit flipped", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    }),
    ("the last byte changed", |bytes| {
        if let Some(last) = bytes.last_mut() {
            *last = !*last;
        }
    }),
];

fn damage(path: &Path, how: Damage) -> TestResult {
    let mut bytes = std::fs::read(path).context("read", path)?;
    how(&mut bytes);
    std::fs::write(path, bytes).context("write", path)
}

fn damaged_blobs_of_a_layout(environment: &TestEnvironment<'_>) -> TestResult {
    for (name, how) in DAMAGES {
        let (root, layer) = breakable(environment, name)?;
        damage(&layer, *how)?;
        let digest = layer.file_name().unwrap_or_default().to_string_lossy();
        refuse(
            environment,
            &format!("oci:{}:1", root.display()),
            &[&digest[..12]],
        )?;
    }
    Ok(())
}

fn damaged_blobs_of_a_registry(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().images().get(Recipe::Busybox)?;
    let digest = image.layout.manifest.layers[0].digest.clone();
    let hash = digest.trim_start_matches("sha256:").to_owned();
    for (index, (name, how)) in DAMAGES.iter().enumerate() {
        let storage = environment.home().join(format!("registry-{index}"));
        let registry = Registry::start(&storage, &environment.home())?;
        push(&image, &registry)?;
        let blob = storage.join(format!(
            "docker/registry/v2/blobs/sha256/{}/{hash}/data",
            &hash[..2]
        ));
        damage(&blob, *how)?;
        refuse(environment, &image.uri(&registry), &[&hash[..12]]).map_err(|error| {
            HarnessError::Malformed {
                what: (*name).into(),
                why: error.to_string(),
            }
        })?;
        let stored = files_below(&environment.store()).unwrap_or_default();
        assert!(
            !stored.iter().any(|path| path.ends_with(&hash)),
            "{name}: the store kept a blob that is not what its name says"
        );
    }
    Ok(())
}

/// Rewrites the manifest of a layout after `change`, with digests that fit, so that only what `change` did is wrong.
fn with_manifest(
    root: &Path,
    change: impl FnOnce(&mut serde_json::Value, &mut serde_json::Value),
) -> TestResult {
    let layout = Layout::open(root)?;
    let json = |digest: &str| -> Result<serde_json::Value, HarnessError> {
        let path = layout.blob(digest);
        let text = std::fs::read(&path).context("read", &path)?;
        serde_json::from_slice(&text).map_err(|source| HarnessError::Json {
            what: path.display().to_string(),
            source,
        })
    };
    let mut manifest = json(&layout.manifest_digest)?;
    let mut config = json(&layout.manifest.config.digest)?;
    change(&mut manifest, &mut config);
    let writer = LayoutWriter::create(root)?;
    let config = writer.blob(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    )?;
    if manifest["config"]["size"].is_u64() {
        manifest["config"]["digest"] = config.digest.into();
        manifest["config"]["size"] = config.size.into();
    }
    let manifest = writer.blob(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    )?;
    writer.index(&manifest, "1")
}

fn manifests_that_lie(environment: &TestEnvironment<'_>) -> TestResult {
    type Lie = fn(&mut serde_json::Value, &mut serde_json::Value);
    let lies: [(&str, Lie); 9] = [
        ("a larger size", |manifest, _| {
            manifest["layers"][0]["size"] = 999_999_999.into();
        }),
        ("a smaller size", |manifest, _| {
            manifest["layers"][0]["size"] = 1000.into();
        }),
        ("a negative size", |manifest, _| {
            manifest["layers"][0]["size"] = (-1).into();
        }),
        ("a missing blob", |manifest, _| {
            manifest["layers"][0]["digest"] = format!("sha256:{}", "a".repeat(64)).into();
        }),
        ("a path for a digest", |manifest, _| {
            manifest["layers"][0]["digest"] = "sha256:../../../../../../etc/passwd".into();
        }),
        ("another diff_id", |_, config| {
            config["rootfs"]["diff_ids"][0] = format!("sha256:{}", "b".repeat(64)).into();
        }),
        ("too few diff_ids", |_, config| {
            config["rootfs"]["diff_ids"] = serde_json::json!([]);
        }),
        ("no layers", |manifest, _| {
            manifest["layers"] = "none".into();
        }),
        ("schema 1", |manifest, _| {
            manifest["schemaVersion"] = 1.into();
        }),
    ];
    for (name, lie) in lies {
        let (root, _) = breakable(environment, name)?;
        with_manifest(&root, lie)?;
        refuse(environment, &format!("oci:{}:1", root.display()), &[])?;
    }
    Ok(())
}

/// An image of one layer, which `fill` writes.
fn crafted(
    environment: &TestEnvironment<'_>,
    name: &str,
    fill: impl FnOnce(&mut LayerWriter) -> Result<(), HarnessError>,
) -> Result<Layout, HarnessError> {
    let root = environment.directory(name)?;
    let mut layout = LayoutWriter::create(&root)?;
    layout.layer(Compression::Gzip, fill)?;
    let layout = layout.finish("1", &RunConfig::default())?;
    for directory in [&root, &root.join("blobs"), &root.join("blobs/sha256")] {
        set_mode(directory, 0o755)?;
    }
    Ok(layout)
}

fn paths_that_leave_the_root(environment: &TestEnvironment<'_>) -> TestResult {
    for (name, path) in [
        ("up", &b"../escaped"[..]),
        ("up in the middle", b"a/../../escaped"),
        ("only up", b".."),
        ("whiteout of up", b"a/.wh..."),
    ] {
        let layout = crafted(environment, name, |layer| {
            // The tar crate writes no such name itself: the header's field is filled by hand.
            let mut header = header(tar::EntryType::Regular, 0o644, 4);
            header.as_old_mut().name[..path.len()].copy_from_slice(path);
            header.set_cksum();
            layer
                .tar()
                .append(&header, &b"evil"[..])
                .context("archive", name)
        })?;
        refuse(
            environment,
            &format!("oci:{}:1", layout.root().display()),
            &[".."],
        )?;
    }
    Ok(())
}

/// A link that leads out of the root, and a file that would be written through it: it stays inside.
fn links_that_leave_the_root(environment: &TestEnvironment<'_>) -> TestResult {
    let outside = environment.directory("outside")?;
    let target = outside.display().to_string();
    let layout = crafted(environment, "layout", |layer| {
        layer.symlink("absolute", &target)?;
        layer.file("absolute/file", b"evil")?;
        layer.symlink("relative", &format!("../../../../../../../../..{target}"))?;
        layer.file("relative/file", b"evil")?;
        layer.hard_link("hard", &format!("{target}/secret"))
    })?;
    environment.write("outside/secret", "a secret of the host", 0o600)?;
    let outcome = environment
        .cista(["import", "-q", "-o", "x.sqsh"])
        .arg(format!("oci:{}:1", layout.root().display()))
        .run()?;
    // A hard link to what the image does not contain is an error; whatever is made of the rest, the host is untouched.
    assert_clear_error(&outcome, 1, &["hard"]);
    assert_eq!(environment.files()?, ["layout", "outside"]);
    let outside = files_below(&outside)?;
    assert_eq!(outside.len(), 1, "{outside:?}");
    Ok(())
}

fn layers_that_are_no_archives(environment: &TestEnvironment<'_>) -> TestResult {
    let noise: Vec<u8> = (0..100_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let cases: [(&str, Vec<u8>); 4] = [
        ("noise", noise.clone()),
        ("text", b"this is no archive\n".repeat(1000)),
        (
            "gzip of noise",
            [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], &noise[..]].concat(),
        ),
        (
            "zstd of noise",
            [&[0x28, 0xb5, 0x2f, 0xfd], &noise[..]].concat(),
        ),
    ];
    for (name, bytes) in cases {
        let root = environment.directory(name)?;
        let mut layout = LayoutWriter::create(&root)?;
        let mut layer = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", &bytes)?;
        layer.diff_id = Some(layer.digest.clone());
        layout.push(layer);
        let layout = layout.finish("1", &RunConfig::default())?;
        refuse(
            environment,
            &format!("oci:{}:1", layout.root().display()),
            &[],
        )?;
    }
    Ok(())
}

const BUSYBOX: &[Need] = &[Need::Image(Recipe::Busybox)];

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
        "bad_images::paths_that_leave_the_root",
        Tier::Cli,
        &[],
        paths_that_leave_the_root,
    ),
    case(
        "bad_images::links_that_leave_the_root",
        Tier::Cli,
        &[],
        links_that_leave_the_root,
    ),
    case(
        "bad_images::layers_that_are_no_archives",
        Tier::Cli,
        &[],
        layers_that_are_no_archives,
    ),
    case(
        "bad_images::damaged_blobs_of_a_layout",
        Tier::Registry,
        BUSYBOX,
        damaged_blobs_of_a_layout,
    ),
    case(
        "bad_images::damaged_blobs_of_a_registry",
        Tier::Registry,
        BUSYBOX,
        damaged_blobs_of_a_registry,
    ),
    case(
        "bad_images::manifests_that_lie",
        Tier::Registry,
        BUSYBOX,
        manifests_that_lie,
    ),
];
