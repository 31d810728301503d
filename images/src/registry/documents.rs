//! The documents of a repository: indexes, manifests and configs, fetched and kept.
//!
//! Distribution specification, "Pulling manifests". They are small and read whole, up to a limit; those that are asked for by digest are
//! verified, and come from the store where it has them. A tag's HEAD request says which digest it stands for.

use ureq::http::Method;

use super::client::{Ask, Client};
use super::http::Range;
use super::{Pull, RegistryError};
use crate::digest::Digest;
use crate::reference::RegistryReference;
use crate::source::SourceError;
use crate::source::document::{Descriptor, MAX_MANIFEST};
use crate::source::resolve::{self, Documents, Fetched, MediaKind};
use crate::store::{self, PendingBlob, Store, StoreError};

/// The manifests that we understand, and the old ones, to be told clearly that an image is of that kind. Registries that are not
/// asked for a type may convert, or deny that the image exists.
const ACCEPT_MANIFEST: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1, \
     application/vnd.docker.distribution.manifest.v1+json;q=0.1";

/// How often a damaged document is replaced before it is fetched without the store.
const MAX_DAMAGED: u32 = 3;

impl Client {
    /// A small blob of the right digest.
    pub(super) fn small_blob(&self, digest: Digest, limit: u64) -> Result<Vec<u8>, SourceError> {
        let ask = Ask {
            method: Method::GET,
            path: format!("blobs/{digest}"),
            accept: None,
            range: Range::All,
            what: format!("blob {digest}"),
        };
        self.small_verified(&ask, Some(digest), limit)
            .map(|(text, _)| text)
    }

    /// A whole small answer and its media type. A transfer that is cut is begun again.
    fn small(&self, ask: &Ask, limit: u64) -> Result<(Vec<u8>, String), SourceError> {
        let mut backoff = self.backoff();
        loop {
            let answer = self.request(ask)?;
            let media_type = answer.header("content-type").unwrap_or_default().to_owned();
            match answer.read_body(limit) {
                Ok(Some(text)) => return Ok((text, media_type)),
                Ok(None) => {
                    return Err(SourceError::TooLarge {
                        what: ask.what.clone(),
                        expected: limit,
                    });
                }
                Err(error) => self.pause_after(error, &mut backoff)?,
            }
        }
    }

    fn manifest_ask(&self, method: Method, wanted: &str) -> Ask {
        Ask {
            method,
            path: format!("manifests/{wanted}"),
            accept: Some(ACCEPT_MANIFEST),
            range: Range::All,
            what: format!(
                "the manifest `{wanted}` of `{}/{}`",
                self.registry, self.repository
            ),
        }
    }

    /// An index or manifest by tag or digest; verified where it is by digest.
    pub(super) fn manifest(
        &self,
        wanted: &str,
        digest: Option<Digest>,
    ) -> Result<Fetched, SourceError> {
        let ask = self.manifest_ask(Method::GET, wanted);
        let (text, media_type) = self.small_verified(&ask, digest, MAX_MANIFEST)?;
        if media_type.starts_with("text/html") {
            return Err(RegistryError::NotARegistry {
                registry: self.registry.clone(),
                status: 200,
            }
            .into());
        }
        Ok(Fetched {
            digest: digest.unwrap_or_else(|| Digest::of(&text)),
            media_type,
            text,
            chosen: false,
        })
    }

    /// A whole small answer of a certain digest and its media type. What a mirror sends instead is not taken for the registry's.
    fn small_verified(
        &self,
        ask: &Ask,
        digest: Option<Digest>,
        limit: u64,
    ) -> Result<(Vec<u8>, String), SourceError> {
        loop {
            let (text, media_type) = self.small(ask, limit)?;
            let checked = match digest {
                None => Ok(()),
                Some(expected) => resolve::check_digest(&ask.what, expected, &text),
            };
            match checked {
                Ok(()) => return Ok((text, media_type)),
                Err(_) if self.distrust_mirror(&ask.what) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Digest and kind of what a tag stands for, without fetching it; None when the registry does not tell, or denies it: then a GET
    /// will say why.
    fn head(&self, tag: &str) -> Result<Option<Head>, RegistryError> {
        let answer = match self.request(&self.manifest_ask(Method::HEAD, tag)) {
            Ok(answer) => answer,
            Err(
                error @ (RegistryError::Stopped
                | RegistryError::Connect { .. }
                | RegistryError::Resolve { .. }
                | RegistryError::Tls { .. }
                | RegistryError::Timeout { .. }
                | RegistryError::Credentials { .. }
                | RegistryError::NoLogin { .. }
                | RegistryError::Authorities { .. }
                | RegistryError::RateLimited { .. }),
            ) => return Err(error),
            Err(_) => return Ok(None),
        };
        let digest = answer
            .header("docker-content-digest")
            .and_then(|text| text.trim().parse().ok());
        let kind = MediaKind::of(answer.header("content-type").unwrap_or_default());
        Ok(digest.map(|digest| Head { digest, kind }))
    }
}

/// What a HEAD request tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    digest: Digest,
    kind: Option<MediaKind>,
}

/// Documents of the repository, taken from and put into the store where there is one.
pub(super) struct CachedDocuments<'a> {
    pub(super) client: &'a Client,
    pub(super) store: Option<&'a Store>,
}

impl CachedDocuments<'_> {
    /// Asks what the reference's tag stands for. None when it has a digest already, or the registry does not tell.
    pub(super) fn head(&self, reference: &RegistryReference) -> Result<Option<Head>, SourceError> {
        if reference.digest.is_some() {
            return Ok(None);
        }
        let tag = reference.wanted();
        let name = format!("{}/{}:{tag}", self.client.registry, self.client.repository);
        if self.client.pull() != Pull::Always
            && let Some((digest, is_manifest)) = self.store.and_then(|store| store.reference(&name))
        {
            let kind = is_manifest.map(|is_manifest| match is_manifest {
                true => MediaKind::Manifest,
                false => MediaKind::Index,
            });
            return Ok(Some(Head { digest, kind }));
        }
        let head = self.client.head(&tag)?;
        if let (Some(head), Some(store)) = (head, self.store) {
            let is_manifest = match head.kind {
                Some(MediaKind::Manifest) => Some(true),
                Some(MediaKind::Index) => Some(false),
                Some(MediaKind::Schema1) | None => None,
            };
            // What is not noted is asked again.
            let _ = store.note_reference(&name, &head.digest, is_manifest);
        }
        Ok(head)
    }

    /// The index or manifest that the reference names. A HEAD request comes first where the store may save the GET, which is what public
    /// registries count.
    pub(super) fn top(
        &self,
        reference: &RegistryReference,
        head: Option<Head>,
    ) -> Result<Fetched, SourceError> {
        let digest = match (reference.digest, head) {
            (Some(digest), _) => Some(digest),
            (None, Some(head)) => Some(head.digest),
            (None, None) if self.store.is_some() => self.head(reference)?.map(|head| head.digest),
            (None, None) => None,
        };
        match digest {
            Some(digest) => self.manifest(digest),
            None => {
                let fetched = self.client.manifest(&reference.wanted(), None)?;
                self.keep(fetched.digest, &fetched.text)?;
                Ok(fetched)
            }
        }
    }

    fn manifest(&self, digest: Digest) -> Result<Fetched, SourceError> {
        if let Some(text) = self.kept(digest, MAX_MANIFEST)? {
            return Ok(Fetched {
                digest,
                media_type: String::new(),
                text,
                chosen: false,
            });
        }
        let fetched = self.client.manifest(&digest.to_string(), Some(digest))?;
        self.keep(digest, &fetched.text)?;
        Ok(fetched)
    }

    /// A document in the store; None when it is missing there, damaged or too large.
    fn kept(&self, digest: Digest, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
        use std::io::Read as _;
        let Some(file) = self
            .store
            .map(|store| store.blob(&digest))
            .transpose()?
            .flatten()
        else {
            return Ok(None);
        };
        let mut text = Vec::new();
        let read = file.take(limit).read_to_end(&mut text);
        Ok((read.is_ok() && Digest::of(&text) == digest).then_some(text))
    }

    fn keep(&self, digest: Digest, text: &[u8]) -> Result<(), SourceError> {
        match self.store {
            None => Ok(()),
            Some(store) => write(store.begin_blob(&digest, text.len() as u64)?, text),
        }
    }

    /// Becomes the one of all processes that fetches a blob, or waits for the one that does: None once it is there.
    fn claim(&self, descriptor: &Descriptor) -> Result<Option<PendingBlob>, SourceError> {
        let Some(store) = self.store else {
            return Ok(None);
        };
        let claimed = store::wait_for(
            |watch| store.claim_blob(&descriptor.digest, descriptor.size, watch),
            |_, pause| self.client.pause(pause).map_err(SourceError::from),
        )?;
        Ok(claimed.err())
    }
}

fn write(pending: PendingBlob, text: &[u8]) -> Result<(), SourceError> {
    use std::os::unix::fs::FileExt as _;
    pending
        .file()
        .write_all_at(text, 0)
        .map_err(|source| StoreError::Write {
            path: pending.path().to_owned(),
            source,
        })?;
    Ok(pending.commit()?)
}

impl Head {
    /// The digest, if it is that of a manifest.
    pub(super) fn manifest(&self) -> Option<Digest> {
        (self.kind == Some(MediaKind::Manifest)).then_some(self.digest)
    }
}

impl Documents for CachedDocuments<'_> {
    fn document(&self, descriptor: &Descriptor, _: u64) -> Result<Vec<u8>, SourceError> {
        let fetched = self.manifest(descriptor.digest)?;
        resolve::check_content("the manifest", descriptor, &fetched.text)?;
        Ok(fetched.text)
    }

    fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError> {
        let mut pending = None;
        let mut kept = self.kept(descriptor.digest, limit)?;
        for _ in 0..MAX_DAMAGED {
            if kept.is_some() || pending.is_some() {
                break;
            }
            pending = self.claim(descriptor)?;
            if pending.is_none() {
                kept = self.kept(descriptor.digest, limit)?;
                if let (None, Some(store)) = (&kept, self.store) {
                    // It is there, and not what it should be.
                    store.discard_blob(&descriptor.digest)?;
                }
            }
        }
        let text = match kept {
            Some(text) => text,
            None => self.client.small_blob(descriptor.digest, limit)?,
        };
        resolve::check_content("the config", descriptor, &text)?;
        if let Some(pending) = pending {
            write(pending, &text)?;
        }
        Ok(text)
    }
}
