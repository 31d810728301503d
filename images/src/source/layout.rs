//! `oci:` and `oci-archive:`: the OCI image layout, as a directory or in a tar.
//!
//! OCI image specification, "Image Layout": `index.json` names the images, `blobs/sha256/<hex>` holds everything else. The tag of an image is
//! the annotation `org.opencontainers.image.ref.name` of its entry; tools write there a bare tag (skopeo, umoci) or a full name (podman).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::archive::{Archive, FileRange};
use super::document::{self, Descriptor, Document, MAX_MANIFEST};
use super::resolve::{self, Documents, Fetched};
use super::verified::Verified;
use super::{ResolvedImage, Source, SourceError, Task};
use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::{LocalReference, Reference};

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Archive(Archive),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Archive(archive) => archive.path(),
        }
    }

    /// A file of the layout and its size; None when there is no such file.
    fn file(&self, name: &str) -> Result<Option<FileRange>, SourceError> {
        match self {
            Self::Archive(archive) => Ok(archive.member(name)),
            Self::Directory(directory) => {
                let path = directory.join(name);
                let opened = File::open(&path).and_then(|file| {
                    let size = file.metadata()?.len();
                    Ok(FileRange::whole(file, size))
                });
                match opened {
                    Ok(range) => Ok(Some(range)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(SourceError::Read { path, source }),
                }
            }
        }
    }

    /// A whole small file of the layout.
    fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
        self.file(name)?
            .map(|range| range.read_small(self.path(), name, limit))
            .transpose()
    }

    fn layer(&self, digest: Digest) -> Result<FileRange, SourceError> {
        let name = blob_name(digest);
        self.file(&name)?.ok_or_else(|| self.lacks(&name))
    }

    fn lacks(&self, name: &str) -> SourceError {
        SourceError::NotA {
            path: self.path().to_owned(),
            expected: "complete OCI image layout",
            problem: format!("it lacks `{name}`"),
        }
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Documents for Place {
    fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError> {
        self.blob(descriptor, limit)
    }

    fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError> {
        let name = blob_name(descriptor.digest);
        let what = format!("`{name}` of `{}`", self.path().display());
        let content = self.read(&name, limit)?.ok_or_else(|| self.lacks(&name))?;
        resolve::check_content(&what, descriptor, &content)?;
        Ok(content)
    }
}

/// An image layout and the image wanted from it.
#[derive(Debug)]
pub(super) struct OciLayout {
    place: Place,
    name: Option<String>,
    digest: Option<Digest>,
    reference: String,
}

impl OciLayout {
    pub(super) fn directory(
        local: &LocalReference,
        reference: &Reference,
    ) -> Result<Self, SourceError> {
        std::fs::metadata(&local.path).map_err(|source| SourceError::Read {
            path: local.path.clone(),
            source,
        })?;
        Ok(Self::at(
            Place::Directory(local.path.clone()),
            local,
            reference,
        ))
    }

    pub(super) fn archive(
        local: &LocalReference,
        reference: &Reference,
    ) -> Result<Self, SourceError> {
        let archive = Archive::open(&local.path)?;
        Ok(Self::at(Place::Archive(archive), local, reference))
    }

    /// The only image of an archive, which `reference` names.
    pub(super) fn of(archive: Archive, reference: String) -> Self {
        Self {
            place: Place::Archive(archive),
            name: None,
            digest: None,
            reference,
        }
    }

    fn at(place: Place, local: &LocalReference, reference: &Reference) -> Self {
        Self {
            place,
            name: local.name.clone(),
            digest: local.digest,
            reference: reference.canonical(),
        }
    }

    /// The entry point: what `index.json` says about the image that is wanted.
    fn top(&self, platform: &Platform) -> Result<Fetched, SourceError> {
        let path = self.place.path();
        let not_a_layout = |problem: &str| SourceError::NotA {
            path: path.to_owned(),
            expected: "OCI image layout",
            problem: problem.to_owned(),
        };
        let text = self
            .place
            .read("index.json", MAX_MANIFEST)?
            .ok_or_else(|| not_a_layout("it has no `index.json`"))?;
        let parsed =
            document::parse_document(&text, "").map_err(|source| SourceError::Document {
                what: format!("`index.json` of `{}`", path.display()),
                source,
            })?;
        let Document::Index(entries) = parsed else {
            return Err(not_a_layout("its `index.json` is no index"));
        };
        let (entry, chosen) = match self.digest {
            Some(digest) => return self.by_digest(digest, &entries),
            None => self.by_name(&entries, platform)?,
        };
        resolve::check_limit("the manifest", entry, MAX_MANIFEST)?;
        Ok(Fetched {
            digest: entry.digest,
            media_type: entry.media_type.clone(),
            text: self.place.document(entry, MAX_MANIFEST)?,
            chosen,
        })
    }

    /// A digest may be that of an entry, or of a manifest inside an index.
    fn by_digest(&self, digest: Digest, entries: &[Descriptor]) -> Result<Fetched, SourceError> {
        let name = blob_name(digest);
        let text = self
            .place
            .read(&name, MAX_MANIFEST)?
            .ok_or_else(|| self.no_such_image(&digest.to_string(), entries))?;
        let what = format!("`{name}` of `{}`", self.place.path().display());
        resolve::check_digest(&what, digest, &text)?;
        Ok(Fetched {
            digest,
            media_type: String::new(),
            text,
            chosen: false,
        })
    }

    fn by_name<'a>(
        &self,
        entries: &'a [Descriptor],
        platform: &Platform,
    ) -> Result<(&'a Descriptor, bool), SourceError> {
        let mut candidates: Vec<_> = match &self.name {
            None => entries.iter().collect(),
            Some(name) => {
                let exact = |entry: &&Descriptor| names_of(entry).any(|own| own == name);
                let by_end =
                    |entry: &&Descriptor| names_of(entry).any(|own| ends_with_name(own, name));
                let found: Vec<_> = entries.iter().filter(exact).collect();
                if found.is_empty() {
                    entries.iter().filter(by_end).collect()
                } else {
                    found
                }
            }
        };
        candidates.dedup_by_key(|entry| entry.digest);
        match candidates.as_slice() {
            [] => Err(self.no_such_image(self.name.as_deref().unwrap_or("*"), entries)),
            [entry] => Ok((entry, false)),
            // One image for several platforms, listed without an index of its own.
            several
                if several.iter().all(|entry| {
                    entry.platform.is_some() && entry.ref_name == several[0].ref_name
                }) =>
            {
                let offers: Vec<_> = several
                    .iter()
                    .filter_map(|entry| entry.platform.clone())
                    .collect();
                match platform.choose(&offers) {
                    Some(position) => Ok((several[position], true)),
                    None => Err(SourceError::Platform {
                        what: format!("`{}`", self.reference),
                        wanted: platform.clone(),
                        available: resolve::list(
                            &offers.iter().map(Platform::to_string).collect::<Vec<_>>(),
                        ),
                    }),
                }
            }
            several => Err(SourceError::SeveralImages {
                path: self.place.path().to_owned(),
                available: available(several.iter().copied()),
            }),
        }
    }

    fn no_such_image(&self, wanted: &str, entries: &[Descriptor]) -> SourceError {
        SourceError::NoSuchImage {
            path: self.place.path().to_owned(),
            wanted: wanted.to_owned(),
            available: available(entries.iter()),
        }
    }
}

fn names_of(entry: &Descriptor) -> impl Iterator<Item = &str> {
    entry
        .ref_name
        .iter()
        .chain(&entry.full_name)
        .map(String::as_str)
}

/// Whether a full name ends with a shorter one: `docker.io/library/x:1` with `x:1`, `library/x:1` or `1`.
pub(super) fn ends_with_name(full: &str, name: &str) -> bool {
    full.strip_suffix(name)
        .is_some_and(|front| front.ends_with(['/', ':']))
}

fn available<'a>(entries: impl Iterator<Item = &'a Descriptor>) -> String {
    let names: Vec<_> = entries
        .map(|entry| {
            names_of(entry)
                .next()
                .map_or_else(|| entry.digest.to_string(), |name| format!("`{name}`"))
        })
        .collect();
    resolve::list(&names)
}

impl Source for OciLayout {
    fn resolve(&self, platform: &Platform, task: Task<'_>) -> Result<ResolvedImage, SourceError> {
        task.cancel.check()?;
        let top = self.top(platform)?;
        let image = resolve::resolve(&self.place, top, platform, self.reference.clone())?;
        resolve::announce(&image, task);
        Ok(image)
    }

    fn digest(&self, platform: &Platform, _: Task<'_>) -> Result<Option<Digest>, SourceError> {
        let top = self.top(platform)?;
        let (fetched, _) = resolve::find_manifest(&self.place, top, platform, &self.reference)?;
        Ok(Some(fetched.digest))
    }

    fn open_layer<'a>(
        &'a self,
        image: &ResolvedImage,
        layer: usize,
        _: Task<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>, SourceError> {
        let blob = image.layer(layer)?;
        let digest = blob.digest.ok_or(SourceError::NoSuchLayer { layer })?;
        let range = self.place.layer(digest)?;
        let what = format!("layer {digest} of `{}`", self.place.path().display());
        Ok(Box::new(Verified::new(
            range,
            what,
            Some(digest),
            blob.size,
        )))
    }
}
