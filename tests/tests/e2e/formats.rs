//! Layers in every form that tools write: compressed for lazy pulling, or to expand without end.

use std::io::Write as _;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Compression, LayoutWriter, Recipe, RunConfig};
use cista_tests::listing::hash_of_file;
use cista_tests::program::Program;
use cista_tests::registry::Registry;

use super::bad_input::assert_clear_error;

/// What an image file contains, but for the two files that say where it came from.
fn listing(environment: &TestEnvironment<'_>, file: &str) -> Result<Vec<String>, HarnessError> {
    let text = environment
        .program("unsquashfs")
        .args(["-lln", "-d", "", file])
        .text()?;
    let says_where_from =
        |line: &&str| line.ends_with("/.cista/image.json") || line.ends_with("/etc/rc");
    Ok(text
        .lines()
        .filter(|line| !says_where_from(line))
        .map(ToOwned::to_owned)
        .collect())
}

/// zstd:chunked is zstd with a table of contents in frames that decoders skip.
fn zstd_chunked_layers(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().images().get(Recipe::Busybox)?;
    let storage = environment.home().join("registry");
    let registry = Registry::start(&storage, &environment.home())?;
    let target = format!("docker://{}/busybox:chunked", registry.host());
    Program::new("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ])
        .args([
            "--dest-compress-format",
            "zstd:chunked",
            &image.oci_uri(),
            &target,
        ])
        .check()?;
    let manifest = Program::new("skopeo")
        .args(["inspect", "--raw", "--tls-verify=false", &target])
        .text()?;
    assert!(manifest.contains("zstd-chunked.manifest"), "{manifest}");
    for (file, uri) in [("chunked.sqsh", target), ("gzip.sqsh", image.oci_uri())] {
        environment
            .cista(["import", "-q", "-o", file, &uri])
            .check()?;
    }
    assert_eq!(
        listing(environment, "chunked.sqsh")?,
        listing(environment, "gzip.sqsh")?
    );
    Ok(())
}

/// eStargz is gzip with a member for each file, a table of contents as the last file, and an empty member that says where that is.
fn estargz_layers(environment: &TestEnvironment<'_>) -> TestResult {
    let mut blob = Vec::new();
    let mut tar = Vec::new();
    let mut offsets = Vec::new();
    let names = ["a", "b", "stargz.index.json"];
    for name in names {
        let mut builder = tar::Builder::new(Vec::new());
        let content = format!("content of {name}").repeat(5000);
        let mut header =
            cista_tests::image::header(tar::EntryType::Regular, 0o644, content.len() as u64);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .context("archive", name)?;
        let mut piece = builder.into_inner().context("archive", name)?;
        // The end of the archive is that of the last member.
        if name != names[2] {
            piece.truncate(piece.len() - 1024);
        }
        offsets.push(blob.len());
        let mut member = flate2::write::GzEncoder::new(&mut blob, flate2::Compression::fast());
        member.write_all(&piece).context("compress", name)?;
        member.finish().context("compress", name)?;
        tar.extend_from_slice(&piece);
    }
    let footer = flate2::GzBuilder::new()
        .extra(format!("SG\x16\0{:016x}STARGZ", offsets[2]))
        .write(&mut blob, flate2::Compression::none());
    footer.finish().context("compress", "the footer")?;
    let root = environment.directory("layout")?;
    let mut layout = LayoutWriter::create(&root)?;
    let diff = environment.write("plain.tar", &tar, 0o644)?;
    let mut layer = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", &blob)?;
    layer.diff_id = Some(format!("sha256:{}", hash_of_file(&diff)?));
    layout.push(layer);
    let layout = layout.finish("1", &RunConfig::default())?;
    environment
        .cista(["import", "-q", "-o", "x.sqsh"])
        .arg(format!("oci:{}:1", layout.root().display()))
        .check()?;
    for name in names {
        let text = environment
            .program("unsquashfs")
            .args(["-cat", "x.sqsh", name])
            .text()?;
        assert_eq!(text, format!("content of {name}").repeat(5000));
    }
    Ok(())
}

/// A layer of 64 KiB that expands to 64 MiB: refused beyond what is allowed, and imported where that is.
fn layers_that_expand_without_end(environment: &TestEnvironment<'_>) -> TestResult {
    for (name, compression) in [("gzip", Compression::Gzip), ("zstd", Compression::ZstdFast)] {
        let root = environment.directory(name)?;
        let mut layout = LayoutWriter::create(&root)?;
        layout.layer(compression, |layer| layer.file("zeros", &vec![0; 64 << 20]))?;
        let layout = layout.finish("1", &RunConfig::default())?;
        let import = |limit: &str| {
            environment
                .cista(["import", "-q", "-f", "-o", "x.sqsh"])
                .arg(format!("oci:{}:1", layout.root().display()))
                .env("CISTA_MAX_LAYER_SIZE", limit)
        };
        let refused = import("1M").run()?;
        assert_clear_error(
            &refused,
            1,
            &["decompression bomb", name, "hint:", "CISTA_MAX_LAYER_SIZE"],
        );
        import("100M").check()?;
        std::fs::remove_file(environment.path("x.sqsh")).context("remove", "x.sqsh")?;
    }
    Ok(())
}

/// An index of several platforms: the machine's own by default, others by name, the best variant of several.
fn images_of_several_platforms(environment: &TestEnvironment<'_>) -> TestResult {
    let root = environment.directory("layout")?;
    let writer = LayoutWriter::create(&root)?;
    let mut entries = Vec::new();
    for (architecture, variant) in [
        ("amd64", ""),
        ("amd64", "v3"),
        ("arm64", "v8"),
        ("arm", "v6"),
        ("arm", "v7"),
    ] {
        let name = format!("{architecture}{variant}");
        let tar = {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header =
                cista_tests::image::header(tar::EntryType::Regular, 0o644, name.len() as u64);
            builder
                .append_data(&mut header, "platform", name.as_bytes())
                .context("archive", &name)?;
            builder.into_inner().context("archive", &name)?
        };
        let layer = writer.blob("application/vnd.oci.image.layer.v1.tar", &tar)?;
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        });
        let config = writer.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        )?;
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let manifest = writer.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )?;
        let mut entry = serde_json::json!({
            "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size,
            "platform": {"os": "linux", "architecture": architecture},
        });
        if !variant.is_empty() {
            entry["platform"]["variant"] = variant.into();
        }
        entries.push(entry);
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": entries});
    let index = writer.blob(
        "application/vnd.oci.image.index.v1+json",
        index.to_string().as_bytes(),
    )?;
    writer.index(&index, "1")?;
    let archive = environment.path("archive.tar");
    Program::new("tar")
        .args(["-cf"])
        .arg(&archive)
        .arg("-C")
        .arg(&root)
        .args(["oci-layout", "index.json", "blobs"])
        .check()?;
    environment.give(&archive)?;
    for uri in [
        format!("oci:{}:1", root.display()),
        format!("oci-archive:{}", archive.display()),
    ] {
        for (option, platform, expected) in [
            ("-a", "amd64", "amd64"),
            ("-a", "x86_64", "amd64"),
            ("--platform", "linux/amd64/v3", "amd64v3"),
            ("-a", "amd64/v2", "amd64"),
            ("--arch", "aarch64", "arm64v8"),
            ("-a", "arm", "armv7"),
            ("-a", "arm/v6", "armv6"),
        ] {
            environment
                .cista(["import", "-q", "-f", "-o", "x.sqsh", option, platform, &uri])
                .check()?;
            let text = environment
                .program("unsquashfs")
                .args(["-cat", "x.sqsh", "platform"])
                .text()?;
            assert_eq!(text, expected, "{platform}");
        }
        let refused = environment
            .cista(["import", "-q", "-o", "y.sqsh", "-a", "s390x", &uri])
            .run()?;
        assert_clear_error(
            &refused,
            1,
            &["linux/s390x", "linux/arm64/v8", "linux/arm/v7", "hint:"],
        );
    }
    Ok(())
}

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
        "formats::zstd_chunked_layers",
        Tier::Registry,
        &[Need::Image(Recipe::Busybox)],
        zstd_chunked_layers,
    ),
    case("formats::estargz_layers", Tier::Cli, &[], estargz_layers),
    case(
        "formats::layers_that_expand_without_end",
        Tier::Cli,
        &[],
        layers_that_expand_without_end,
    ),
    case(
        "formats::images_of_several_platforms",
        Tier::Cli,
        &[],
        images_of_several_platforms,
    ),
];
