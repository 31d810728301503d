//! The signatures of an image, from the store or from the repository that has the image (cosign, "Tag-based Discovery").

use super::RegistryError;
use super::documents::CachedDocuments;
use crate::digest::Digest;
use crate::policy::{Policy, PolicyError, Signature, SignatureManifest};
use crate::reference::RegistryReference;
use crate::source::{DocumentError, SourceError};

/// Largest text that is signed, in bytes; cosign's have some 250.
const MAX_PAYLOAD: u64 = 64 << 10;

/// Checks that an image is signed as a policy demands: the index or manifest that the reference leads to, or the manifest that was chosen.
pub(super) fn check(
    documents: &CachedDocuments<'_>,
    policy: &Policy,
    reference: &RegistryReference,
    top: Digest,
    manifest: Digest,
) -> Result<(), SourceError> {
    if !policy.wants_signature(reference) {
        return Ok(());
    }
    match check_one(documents, policy, reference, top) {
        Err(SourceError::Registry(RegistryError::Policy(refusal))) if manifest != top => {
            // Whoever signs the image of each platform need not sign the index. The first refusal is about what the user named.
            check_one(documents, policy, reference, manifest)
                .map_err(|_| RegistryError::Policy(refusal).into())
        }
        outcome => outcome,
    }
}

fn check_one(
    documents: &CachedDocuments<'_>,
    policy: &Policy,
    reference: &RegistryReference,
    digest: Digest,
) -> Result<(), SourceError> {
    let verify = |signatures: &[Signature]| -> Result<(), PolicyError> {
        policy.check_signatures(reference, digest, signatures)
    };
    let kept = documents.store.and_then(|store| store.signatures(&digest));
    let kept: Option<Vec<Signature>> = kept.and_then(|text| serde_json::from_slice(&text).ok());
    if kept.is_some_and(|kept| verify(&kept).is_ok()) {
        return Ok(());
    }
    let signatures = fetch(documents, digest)?;
    verify(&signatures).map_err(RegistryError::Policy)?;
    if let (Some(store), Ok(text)) = (documents.store, serde_json::to_vec(&signatures)) {
        // It only saves the next one the requests; a store that cannot be written to is none the worse for it.
        let _ = store.keep_signatures(&digest, &text);
    }
    Ok(())
}

/// All signatures that the repository has of a digest.
fn fetch(documents: &CachedDocuments<'_>, digest: Digest) -> Result<Vec<Signature>, SourceError> {
    let tag = SignatureManifest::tag(&digest);
    let client = documents.client;
    let fetched = match client.manifest(&tag, None) {
        Ok(fetched) => fetched,
        Err(SourceError::Registry(
            RegistryError::UnknownImage { .. } | RegistryError::NotARegistry { status: 404, .. },
        )) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let manifest: SignatureManifest =
        serde_json::from_slice(&fetched.text).map_err(|source| SourceError::Document {
            what: format!("the signatures `{tag}`"),
            source: DocumentError::Json(source.to_string()),
        })?;
    manifest
        .payloads()
        .map(|(payload, signature)| {
            let text = client.small_blob(payload, MAX_PAYLOAD)?;
            Ok(Signature {
                payload: String::from_utf8_lossy(&text).into_owned(),
                signature: signature.to_owned(),
            })
        })
        .collect()
}
