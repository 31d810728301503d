//! Signatures that a policy demands: of an index or of one of its manifests, behind mirrors, and such as mean harm.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use cista_images::digest::Digest;
use cista_images::policy::{Identity, Key, Policy, Rules, Scope, Signed};
use cista_images::registry::{self, Access, Mirror, Routes, Rule, Serves};
use cista_images::source::SourceError;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

use crate::image::{Image, index, resolve};
use crate::server::{Reply, Server, open, quick};

/// What stands before the point in a P-256 public key (RFC 5480).
const P256_PREFIX: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE";

struct Signer {
    pair: EcdsaKeyPair,
    policy: Policy,
}

impl Signer {
    fn new(identity: Identity) -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        let mut der = BASE64_STANDARD.decode(P256_PREFIX).unwrap();
        der.extend_from_slice(&pair.public_key().as_ref()[1..]);
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64_STANDARD.encode(der)
        );
        let signed = Signed {
            images: Scope::Everything,
            keys: vec![Key::from_pem(pem.as_bytes()).unwrap()],
            identity,
        };
        let policy = Policy {
            rules: vec![Rules {
                origin: "the-policy".to_owned(),
                registries: None,
                pinned: Scope::Nothing,
                signed: vec![signed],
            }],
        };
        Self { pair, policy }
    }

    /// The text that is signed, and the manifest of the signature.
    fn sign(&self, name: &str, digest: Digest) -> (Vec<u8>, Vec<u8>) {
        let payload = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{name}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":{{}}}}"#
        );
        let signature = self.pair.sign(&SystemRandom::new(), payload.as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "layers": [{
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                "digest": Digest::of(payload.as_bytes()).to_string(),
                "size": payload.len(),
                "annotations": {
                    "dev.cosignproject.cosign/signature": BASE64_STANDARD.encode(signature.unwrap()),
                },
            }],
        });
        (payload.into_bytes(), manifest.to_string().into_bytes())
    }

    fn settings(&self) -> registry::Settings {
        registry::Settings {
            policy: Arc::new(self.policy.clone()),
            ..quick()
        }
    }
}

fn tag_path(digest: Digest) -> String {
    format!("/manifests/sha256-{}.sig", digest.hex())
}

/// An index of two platforms, among the blobs of both.
fn platforms() -> (Image, Digest, Digest) {
    let (mut amd, arm) = (Image::new("amd64", &[1000]), Image::new("arm64", &[2000]));
    let text = index(&[
        amd.entry(Some("amd64"), None),
        arm.entry(Some("arm64"), None),
    ]);
    let top = Digest::of(&text);
    amd.blobs.extend(arm.blobs);
    amd.blobs.insert(top, text);
    let manifest = amd.manifest;
    (amd, top, manifest)
}

/// A server that has the signature of a digest, under a name that holds its own address.
fn signed_server(signer: &Signer, image: &Image, top: Digest, signed: Digest) -> Server {
    let (payload, manifest) = signer.sign("any.org/name", signed);
    let (image, path) = (image.clone(), tag_path(signed));
    Server::start(
        "127.0.0.1",
        move |request| {
            if request.path.ends_with(&path) {
                return Reply::body(manifest.clone())
                    .with("content-type", "application/vnd.oci.image.manifest.v1+json");
            }
            if request.path.ends_with(&Digest::of(&payload).to_string()) {
                return Reply::body(payload.clone());
            }
            crate::server::serve_image(&image, top, request)
        },
        |_, reply| reply,
    )
}

fn refusal(error: &SourceError) -> String {
    let text = error.to_string();
    assert!(
        text.contains("the-policy") && text.contains("demands a signature"),
        "{text}"
    );
    text
}

#[test]
fn an_index_or_the_manifest_in_it_is_signed() {
    let (image, top, manifest) = platforms();
    let signer = Signer::new(Identity::Any);
    for (signed, is_good) in [(top, true), (manifest, true), (Digest::of(b"other"), false)] {
        let server = signed_server(&signer, &image, top, signed);
        let outcome = resolve(server.source(signer.settings(), None).as_ref());
        match outcome {
            Ok(resolved) => {
                assert!(is_good);
                assert_eq!(resolved.digest, Some(manifest));
            }
            Err(error) => {
                assert!(!is_good, "{error}");
                // The digest is that of what was asked for.
                assert!(refusal(&error).contains(&top.to_string()));
            }
        }
    }
    // A signature of this key, but of another name.
    let strict = Signer::new(Identity::Repository);
    let server = signed_server(&strict, &image, top, top);
    let error = resolve(server.source(strict.settings(), None).as_ref()).unwrap_err();
    assert!(refusal(&error).contains("`any.org/name`"));
}

#[test]
fn mirrors_without_signatures_do_not_hide_them() {
    let (image, top, manifest) = platforms();
    let signer = Signer::new(Identity::Any);
    let server = signed_server(&signer, &image, top, top);
    let mirror = Server::of_index(&image, top);
    let rule = Rule {
        prefix: server.address.parse().unwrap(),
        location: None,
        mirrors: vec![Mirror {
            location: mirror.address.parse().unwrap(),
            access: Access::default(),
            serves: Serves::All,
        }],
        blocked: false,
        access: Access::default(),
    };
    let settings = registry::Settings {
        routes: Arc::new(Routes {
            groups: vec![vec![rule]],
        }),
        ..signer.settings()
    };
    let resolved = resolve(server.source(settings, None).as_ref()).unwrap();
    assert_eq!(resolved.digest, Some(manifest));
    assert!(mirror.count("GET", "/manifests/") > 0);
    assert_eq!(server.count("GET", ".sig"), 1);
}

#[test]
fn signature_manifests_that_mean_harm_are_refused() {
    let image = Image::small();
    let signer = Signer::new(Identity::Any);
    let layer = |size: usize| {
        serde_json::json!({
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": Digest::of(&vec![b'x'; size]).to_string(),
            "size": size,
            "annotations": { "dev.cosignproject.cosign/signature": "AAAA" },
        })
    };
    let many: Vec<_> = (0..5000).map(|_| layer(1)).collect();
    for (manifest, expected) in [
        ("nonsense".to_owned(), "malformed"),
        ("[".repeat(100_000), "malformed"),
        ("{}".to_owned(), "there is none"),
        (
            serde_json::json!({ "layers": many }).to_string(),
            "not by a key",
        ),
        (
            serde_json::json!({ "layers": [layer(1 << 20)] }).to_string(),
            "larger than",
        ),
        (
            serde_json::json!({ "layers": [{ "mediaType": "x", "digest": "../x" }] }).to_string(),
            "there is none",
        ),
    ] {
        let server = Server::of(&image, move |request, reply| {
            if request.path.ends_with(".sig") {
                return Reply::body(manifest.clone());
            }
            for size in [1, 1 << 20] {
                let content = vec![b'x'; size];
                if request.path.ends_with(&Digest::of(&content).to_string()) {
                    return Reply::body(content);
                }
            }
            reply
        });
        let reference = format!("docker://{}/image:1", server.address);
        let error = resolve(open(&reference, signer.settings(), None).as_ref()).unwrap_err();
        let mut text = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            text.push_str(&source.to_string());
        }
        assert!(text.contains(expected), "{expected}: {text}");
        assert!(server.requests().len() < 100, "{}", server.requests().len());
    }
}
