//! Whether what is in the store is still what was put there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{Store, StoreError, StoredImage, blobs, images};
use crate::cancel::{Cancel, Cancelled};
use crate::digest::{Digest, Hasher};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// What is wrong with something in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It has another digest than it should have.
    Content,
    /// An image without a record that can be read, or of another size than recorded, or that is none.
    Form,
    /// It cannot be read; the system's answer.
    Unreadable(String),
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Content => f.write_str("its content has changed"),
            Self::Form => f.write_str("it is not what its record says"),
            Self::Unreadable(error) => write!(f, "it cannot be read: {error}"),
        }
    }
}

/// Something that was verified.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// What is wrong; None when it is good.
    pub damage: Option<Damage>,
}

/// Why nothing was found out.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The store cannot be looked at.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller has given up.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Store {
    /// Reads everything in the store and tells `each` of it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`] when the store cannot be listed; [`Cancelled`].
    pub fn verify(
        &self,
        cancel: &Cancel,
        mut each: impl FnMut(Verified),
    ) -> Result<(), VerifyError> {
        let contents = self.contents()?;
        for image in contents.images {
            let damage = image_damage(&image, cancel)?;
            each(Verified {
                path: image.path,
                size: image.size,
                damage,
            });
        }
        for blob in contents.blobs {
            let damage = match File::open(&blob.path) {
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Some(Damage::Unreadable(error.to_string())),
                Ok(file) => compare(&file, &blob.digest, cancel)?,
            };
            each(Verified {
                path: blob.path,
                size: blob.size,
                damage,
            });
        }
        Ok(())
    }

    /// Reads a finished image and compares it with its record; true for one that was recorded without a digest.
    ///
    /// # Errors
    ///
    /// [`Cancelled`].
    pub fn is_image_good(&self, path: &Path, cancel: &Cancel) -> Result<bool, Cancelled> {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(manifest) = name.and_then(super::contents::image_name) else {
            return Ok(false);
        };
        let image = StoredImage {
            path: path.to_owned(),
            manifest,
            size: 0,
            record: super::ImageRecord::read(&path.with_extension("json"))
                .ok()
                .flatten(),
            last_used: std::time::SystemTime::UNIX_EPOCH,
            is_in_use: false,
        };
        Ok(image_damage(&image, cancel)?.is_none())
    }

    /// Removes something that [`Self::verify`] found damaged. Those who have it open keep it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`].
    pub fn discard(&self, path: &Path) -> Result<(), StoreError> {
        blobs::remove(path)?;
        if path.parent() == Some(&self.images) {
            blobs::remove(&path.with_extension("json"))?;
        }
        Ok(())
    }
}

fn image_damage(image: &StoredImage, cancel: &Cancel) -> Result<Option<Damage>, Cancelled> {
    let Some(record) = &image.record else {
        return Ok(Some(Damage::Form));
    };
    let opened = File::open(&image.path).and_then(|file| Ok((file.try_clone()?, file)));
    let (file, again) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ok(Some(Damage::Unreadable(error.to_string()))),
    };
    if !images::is_whole(again, record) {
        return Ok(Some(Damage::Form));
    }
    match record.digest.as_deref().map(str::parse::<Digest>) {
        None => Ok(None),
        Some(Err(_)) => Ok(Some(Damage::Form)),
        Some(Ok(digest)) => compare(&file, &digest, cancel),
    }
}

fn compare(file: &File, expected: &Digest, cancel: &Cancel) -> Result<Option<Damage>, Cancelled> {
    Ok(match hash(file, cancel)? {
        Ok(digest) if digest == *expected => None,
        Ok(_) => Some(Damage::Content),
        Err(error) => Some(Damage::Unreadable(error.to_string())),
    })
}

/// The digest of a file's content.
pub(super) fn hash(file: &File, cancel: &Cancel) -> Result<io::Result<Digest>, Cancelled> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; PIECE];
    let mut position = 0;
    loop {
        cancel.check()?;
        match file.read_at(&mut buffer, position) {
            Ok(0) => return Ok(Ok(hasher.finish())),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                position += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error)),
        }
    }
}
