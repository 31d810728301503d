//! Documents that were made to confuse or to exhaust: a table, served as the manifest of a tag. Each gives its error, soon.

use std::time::{Duration, Instant};

use cista_images::digest::Digest;
use serde_json::{Value, json};

use crate::image::{Image, OCI_INDEX, OCI_MANIFEST, resolve};
use crate::server::{Reply, Request, Server, quick};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn descriptor(media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{HEX}"), "size": 7})
}

fn manifest(config: &Value, layers: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers})
}

fn with_digest(digest: &str) -> Value {
    manifest(
        &descriptor(CONFIG),
        &[json!({"mediaType": LAYER, "digest": digest, "size": 7})],
    )
}

/// Serves a text as the manifest of `image:1`; what else is asked for does not exist.
fn serve(text: Vec<u8>, content_type: &'static str) -> Server {
    let digest = Digest::of(&text);
    Server::start(
        "127.0.0.1",
        move |request: &Request| {
            if request.path.ends_with("/manifests/1")
                || request.path.ends_with(&format!("/manifests/{digest}"))
            {
                Reply::body(text.clone()).with("content-type", content_type)
            } else {
                Reply::status(404).with("docker-distribution-api-version", "registry/2.0")
            }
        },
        |_, reply| reply,
    )
}

fn told(text: Vec<u8>, content_type: &'static str) -> String {
    let server = serve(text, content_type);
    let began = Instant::now();
    let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "{error}");
    // The document is not all of the error, and the cause is not hidden.
    let mut text = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(error) = next {
        text.push_str(&format!(": {error}"));
        next = error.source();
    }
    assert!(text.len() < 2000, "{} bytes of error", text.len());
    text
}

#[test]
fn manifests_that_are_no_image_of_ours() {
    let layer = descriptor(LAYER);
    let config = descriptor(CONFIG);
    let mut artifact = manifest(&config, std::slice::from_ref(&layer));
    artifact["artifactType"] = "application/vnd.example.model".into();
    let mut confused = manifest(&config, std::slice::from_ref(&layer));
    confused["manifests"] = json!([]);
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
    let good = manifest(&config, std::slice::from_ref(&layer));
    let with_layer = |media_type: &str| manifest(&config, &[descriptor(media_type)]);
    let with_config =
        |media_type: &str| manifest(&descriptor(media_type), std::slice::from_ref(&layer));
    for (document, content_type, fragment) in [
        (json!({"schemaVersion": 1, "fsLayers": []}), "", "schema 1"),
        (
            json!({"schemaVersion": 2}),
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "",
        ),
        (json!([]), "", "malformed"),
        (json!("text"), "", "malformed"),
        (json!(null), "", "malformed"),
        (json!({}), OCI_MANIFEST, "neither"),
        (artifact, OCI_MANIFEST, "application/vnd.example.model"),
        (confused, OCI_MANIFEST, "both"),
        (index.clone(), OCI_MANIFEST, "does not fit"),
        (index, OCI_INDEX, "not available"),
        (good.clone(), OCI_INDEX, "does not fit"),
        (good.clone(), DOCKER_LIST, "does not fit"),
        (
            with_config("application/vnd.cncf.helm.config.v1+json"),
            OCI_MANIFEST,
            "helm",
        ),
        (
            with_config("application/vnd.wasm.config.v1+json"),
            OCI_MANIFEST,
            "wasm",
        ),
        (with_config(OCI_MANIFEST), OCI_MANIFEST, "artifact"),
        (
            with_layer("application/vnd.dev.cosign.simplesigning.v1+json"),
            OCI_MANIFEST,
            "cosign",
        ),
        (
            with_layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
            OCI_MANIFEST,
            "encrypted",
        ),
        (
            with_layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            OCI_MANIFEST,
            "foreign",
        ),
        (
            with_layer("application/vnd.oci.image.layer.nondistributable.v1.tar"),
            OCI_MANIFEST,
            "foreign",
        ),
        (with_layer(OCI_INDEX), OCI_MANIFEST, "artifact"),
        (manifest(&config, &[]), OCI_MANIFEST, "no layers"),
        (
            manifest(&config, &vec![layer.clone(); 10_000]),
            OCI_MANIFEST,
            "10000 layers",
        ),
    ] {
        let told = told(document.to_string().into_bytes(), content_type);
        assert!(
            told.contains(fragment),
            "{content_type}, {fragment}: {told}"
        );
    }
}

#[test]
fn digests_that_are_none() {
    for digest in [
        "sha256:../../../../../../etc/passwd",
        "sha256:",
        "../../../../etc/passwd",
        &format!("sha256:{}", HEX.to_uppercase()),
        &format!("SHA256:{HEX}"),
        &format!("sha256:{HEX}0"),
        &format!("sha256:{} ", &HEX[..63]),
        &format!("sha512:{HEX}{HEX}"),
        &format!("md5:{}", &HEX[..32]),
        HEX,
        "",
        "sha256:\u{0}",
    ] {
        let told = told(with_digest(digest).to_string().into_bytes(), OCI_MANIFEST);
        assert!(told.contains("malformed digest"), "{digest}: {told}");
    }
}

#[test]
fn sizes_that_are_none_or_too_many() {
    let good = manifest(&descriptor(CONFIG), &[descriptor(LAYER)]).to_string();
    for (size, fragment) in [
        ("-1", "malformed"),
        ("1e999", "malformed"),
        ("1.5", "malformed"),
        ("18446744073709551616", "malformed"),
        ("\"7\"", "malformed"),
        ("null", "malformed"),
        // Of the config, which is read whole.
        ("18446744073709551615", "larger than"),
        ("9000000", "larger than"),
    ] {
        let text = good.replace("\"size\":7", &format!("\"size\":{size}"));
        let told = told(text.into_bytes(), OCI_MANIFEST);
        assert!(told.contains(fragment), "{size}: {told}");
    }
}

#[test]
fn bombs_of_json() {
    let deep = |open: &str| open.repeat(1 << 19).into_bytes();
    let twice = format!(r#"{{"mediaType":"{OCI_MANIFEST}","mediaType":"{OCI_INDEX}"}}"#);
    // As many entries as fit, none of which anyone wants.
    let entry = json!({"digest": format!("sha256:{HEX}"), "size": 1, "platform": {"os": "x", "architecture": "y"}});
    let many = json!({"schemaVersion": 2, "manifests": vec![entry; 25_000]});
    let long = format!(r#"{{"mediaType":"{}"}}"#, "x".repeat(3 << 20));
    for (text, fragment) in [
        (deep("["), "malformed"),
        (deep(r#"{"a":"#), "malformed"),
        (twice.into_bytes(), "duplicate"),
        (many.to_string().into_bytes(), "only for"),
        (long.into_bytes(), "neither"),
        (vec![b' '; 5 << 20], "larger than"),
        (b"\xff\xfe".to_vec(), "malformed"),
        (br#"{"schemaVersion":2,"manifests":["#.to_vec(), "malformed"),
    ] {
        let told = told(text, "application/json");
        assert!(told.contains(fragment), "{fragment}: {told}");
    }
}

#[test]
fn indexes_in_indexes_end() {
    let image = Image::small();
    let mut nested = image.clone();
    let mut top = image.manifest;
    for _ in 0..10 {
        let entry = json!({"mediaType": OCI_INDEX, "digest": top.to_string(), "size": nested.blob(top).len()});
        let text = crate::image::index(&[entry]);
        top = Digest::of(&text);
        nested.blobs.insert(top, text);
    }
    let server = Server::of_index(&nested, top);
    let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("nested"), "{error}: {cause}");
}

#[test]
fn every_request_for_a_manifest_says_what_is_understood() {
    let image = Image::small();
    let server = Server::of(&image, |_, reply| reply);
    let directory = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(cista_images::store::Store::open(directory.path()).unwrap());
    resolve(server.source(quick(), Some(&store)).as_ref()).unwrap();
    let requests = server.requests();
    let manifests: Vec<_> = requests
        .iter()
        .filter(|request| request.path.contains("/manifests/"))
        .collect();
    assert!(manifests.iter().any(|request| request.method == "HEAD"));
    for request in manifests {
        let accept = request.header("accept").unwrap_or_default();
        assert!(
            accept.contains(OCI_MANIFEST) && accept.contains(OCI_INDEX),
            "{request:?}"
        );
    }
}
