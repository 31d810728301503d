//! Signatures of cosign (its "Signature Specification"), by a key that is known.
//!
//! The signatures of an image of the digest `sha256:HEX` are the layers of the image `sha256-HEX.sig` in the same repository. A layer is a
//! small JSON text (simple signing; containers-signature(5)) that names the digest; its annotation `dev.cosignproject.cosign/signature` is the
//! signature of that text: ECDSA over P-256 with SHA-256, in DER and base64. Certificates and transparency logs are not looked at.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use super::Identity;
use crate::digest::Digest;
use crate::reference::RegistryReference;

/// The annotation that holds a signature.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// The media type of what is signed.
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// What a payload says that it is.
const KIND: &str = "cosign container image signature";

/// Most signatures of an image that are looked at.
const MAX_SIGNATURES: usize = 64;

/// What stands before the point in a P-256 public key (RFC 5480; the form is fixed, so no parser is needed).
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Length of an uncompressed point of P-256, in bytes.
const POINT: usize = 65;

/// A public key, as `cosign generate-key-pair` makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    point: Vec<u8>,
}

/// Why a text is no such key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It holds no public key in PEM.
    #[error("it holds no `PUBLIC KEY` in PEM")]
    NoKey,
    /// The key is of another kind.
    #[error("its key is of another kind than ECDSA P-256, which cosign makes")]
    Kind,
}

impl Key {
    /// Reads a public key in PEM.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| KeyError::NoKey)?;
        let point = der.strip_prefix(&P256_PREFIX).ok_or(KeyError::Kind)?;
        if point.len() != POINT || point[0] != 4 {
            return Err(KeyError::Kind);
        }
        Ok(Self {
            point: point.to_vec(),
        })
    }

    fn has_signed(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point)
            .verify(text, signature)
            .is_ok()
    }
}

/// The manifest of an image's signatures, as far as it is about them.
#[derive(Deserialize)]
pub(crate) struct SignatureManifest {
    #[serde(default)]
    layers: Vec<SignatureLayer>,
}

#[derive(Deserialize)]
struct SignatureLayer {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl SignatureManifest {
    /// The tag of the signatures of an image.
    pub(crate) fn tag(digest: &Digest) -> String {
        format!("sha256-{}.sig", digest.hex())
    }

    /// The payloads to fetch, each with its signature.
    pub(crate) fn payloads(&self) -> impl Iterator<Item = (Digest, &str)> {
        self.layers
            .iter()
            .filter(|layer| layer.media_type == SIMPLE_SIGNING)
            .filter_map(|layer| {
                let digest = layer.digest.parse().ok()?;
                Some((digest, layer.annotations.get(ANNOTATION)?.as_str()))
            })
            .take(MAX_SIGNATURES)
    }
}

/// A signature and what is signed. Nothing of it is verified yet.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Signature {
    /// The text that is signed.
    pub(crate) payload: String,
    /// The signature in base64.
    pub(crate) signature: String,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: NamedIdentity,
    image: NamedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct NamedIdentity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
struct NamedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

impl Signature {
    /// Whether it is one of these keys', and for this image; else why not.
    pub(super) fn check(
        &self,
        reference: &RegistryReference,
        digest: Digest,
        keys: &[Key],
        identity: Identity,
    ) -> Result<(), String> {
        let signature = BASE64_STANDARD
            .decode(self.signature.trim())
            .map_err(|_| "its signature is no base64".to_owned())?;
        // Nothing of the text is read before it is known to be the signer's.
        let text = self.payload.as_bytes();
        if !keys.iter().any(|key| key.has_signed(text, &signature)) {
            return Err("its signature is not by a key of the policy".to_owned());
        }
        let payload: Payload = serde_json::from_slice(text)
            .map_err(|_| "what is signed is no simple signing payload".to_owned())?;
        if payload.critical.kind != KIND {
            return Err("what is signed says that it is something else".to_owned());
        }
        if payload.critical.image.digest != digest.to_string() {
            return Err("its signature is of another image".to_owned());
        }
        let named = payload.critical.identity.reference;
        let is_named = || {
            named.parse::<RegistryReference>().is_ok_and(|named| {
                named.user.is_none()
                    && named.registry == reference.registry
                    && named.repository == reference.repository
            })
        };
        if identity == Identity::Repository && !is_named() {
            let named: String = named
                .chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect();
            return Err(format!("its signature is for the name `{named}`"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    use super::*;

    struct Signer {
        pair: EcdsaKeyPair,
        key: Key,
    }

    impl Signer {
        fn new() -> Self {
            let random = SystemRandom::new();
            let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
            let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
            let point = pair.public_key().as_ref();
            let der = [&P256_PREFIX[..], point].concat();
            let pem = format!(
                "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
                BASE64_STANDARD.encode(der)
            );
            Self {
                key: Key::from_pem(pem.as_bytes()).unwrap(),
                pair,
            }
        }

        fn sign(&self, payload: &str) -> Signature {
            let signature = self.pair.sign(&SystemRandom::new(), payload.as_bytes());
            Signature {
                payload: payload.to_owned(),
                signature: BASE64_STANDARD.encode(signature.unwrap()),
            }
        }
    }

    fn payload(name: &str, digest: &str, kind: &str) -> String {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{name}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{kind}"}},"optional":null}}"#
        )
    }

    #[test]
    fn signatures_are_for_one_image_by_one_key() {
        let (signer, other) = (Signer::new(), Signer::new());
        let digest = Digest::of(b"image");
        let text = digest.to_string();
        let reference: RegistryReference = "quay.io/team/app:1".parse().unwrap();
        let keys = [other.key.clone(), signer.key.clone()];
        let check =
            |signature: &Signature, identity| signature.check(&reference, digest, &keys, identity);
        let good = signer.sign(&payload("quay.io/team/app", &text, KIND));
        assert_eq!(check(&good, Identity::Repository), Ok(()));
        let tagged = signer.sign(&payload("quay.io/team/app:2", &text, KIND));
        assert_eq!(check(&tagged, Identity::Repository), Ok(()));

        for (signature, expected) in [
            (
                payload("quay.io/team/other", &text, KIND),
                "`quay.io/team/other`",
            ),
            (payload("", &text, KIND), "name ``"),
            (
                payload("quay.io/team/app", &Digest::of(b"x").to_string(), KIND),
                "another image",
            ),
            (
                payload("quay.io/team/app", &text, "atomic"),
                "something else",
            ),
            ("{}".to_owned(), "no simple signing"),
        ] {
            let problem = check(&signer.sign(&signature), Identity::Repository).unwrap_err();
            assert!(problem.contains(expected), "{signature}: {problem}");
        }
        let renamed = signer.sign(&payload("quay.io/team/other", &text, KIND));
        assert_eq!(check(&renamed, Identity::Any), Ok(()));

        let alone = [other.key.clone()];
        let problem = good
            .check(&reference, digest, &alone, Identity::Any)
            .unwrap_err();
        assert!(problem.contains("not by a key"), "{problem}");
        for (changed, expected) in [
            (
                Signature {
                    payload: good.payload.replace("null", "{}"),
                    ..good.clone()
                },
                "not by a key",
            ),
            (
                Signature {
                    signature: "!".to_owned(),
                    ..good.clone()
                },
                "no base64",
            ),
            (
                Signature {
                    signature: String::new(),
                    ..good.clone()
                },
                "not by a key",
            ),
        ] {
            let problem = check(&changed, Identity::Any).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        for (text, expected) in [
            ("", KeyError::NoKey),
            (
                "-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----",
                KeyError::NoKey,
            ),
            (
                // Ed25519.
                "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----",
                KeyError::Kind,
            ),
        ] {
            assert_eq!(Key::from_pem(text.as_bytes()), Err(expected), "{text}");
        }
    }

    #[test]
    fn layers_that_are_no_signatures_are_left_out() {
        let digest = Digest::of(b"x");
        let manifest: SignatureManifest = serde_json::from_str(&format!(
            r#"{{"layers":[
                {{"mediaType":"{SIMPLE_SIGNING}","digest":"{digest}","annotations":{{"{ANNOTATION}":"s"}}}},
                {{"mediaType":"{SIMPLE_SIGNING}","digest":"{digest}"}},
                {{"mediaType":"text/plain","digest":"{digest}","annotations":{{"{ANNOTATION}":"s"}}}}]}}"#
        ))
        .unwrap();
        assert_eq!(manifest.payloads().collect::<Vec<_>>(), [(digest, "s")]);
        assert_eq!(
            SignatureManifest::tag(&digest),
            format!("sha256-{}.sig", digest.hex())
        );
    }
}
