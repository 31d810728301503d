//! Bundles: this program with an image behind it, as one executable file.
//!
//! | where | what |
//! |---|---|
//! | 0 | the program, filled up with zeros to a whole page |
//! | then | the image, a squashfs |
//! | then | the [`Description`], JSON |
//! | last 48 bytes | [`MAGIC`]; offset and length of the image, length of the description, and zero, each 8 bytes little-endian |
//!
//! The program of a bundle knows how long the bundle is: the number behind [`MARK`] is set in it. So a bundle that was cut short while it was copied says so, rather
//! than to take itself for the program alone; and the program alone does not have to look behind itself.
//!
//! The kernel and the C library read what stands at the beginning of an executable and do not mind what comes behind it. So the image is mounted
//! in place, from the file that is executed.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use cista_images::cancel::Cancel;
use cista_images::digest::{Digest, Hasher};
use cista_images::output::{Output, OutputError};
use cista_images::squashfs::reader::{ReadError, Reader};

use crate::container::carried::Carried;

/// Begins the last bytes of a bundle.
const MAGIC: &[u8; 16] = b"cista bundle v1\n";

/// What is found in a program, to set the number behind it.
const MARK_TEXT: [u8; 24] = *b"\x9ccista bundle length: \0\0";

/// A mark in the program, and behind it the length of the bundle that it is, in bytes, little-endian; 0 in a program alone.
#[repr(C)]
struct Mark {
    text: [u8; MARK_TEXT.len()],
    length: AtomicU64,
}

/// Changed in the file, never at run time: an atomic number, since it must be read rather than known.
#[used]
static MARK: Mark = Mark {
    text: MARK_TEXT,
    length: AtomicU64::new(0),
};

/// Length of the last part, in bytes.
const FOOTER: u64 = 48;

/// Where an image may begin: the largest page of the architectures that we run on.
const ALIGNMENT: u64 = 65536;

/// Longest description, in bytes.
const MAX_DESCRIPTION: u64 = 16 << 20;

/// This program.
const SELF: &str = "/proc/self/exe";

/// What a bundle says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Name of the image file.
    pub image: String,
    /// What the maker says about it.
    pub description: Option<String>,
    /// Where `--keep` and `--extract` unpack the image; may hold `${NAME}` of the environment.
    pub target: Option<String>,
    /// Digest of the image.
    pub checksum: Option<String>,
    /// When the bundle was made, in seconds since 1970.
    pub created: u64,
    /// Version of the program in it.
    pub program: String,
    /// What its maker's settings add to containers.
    #[serde(default)]
    pub carried: Carried,
}

/// Where the parts of a bundle are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where the image begins, in bytes from the beginning of the file.
    pub offset: u64,
    /// Length of the image, in bytes.
    pub length: u64,
    description: u64,
}

/// What is wrong with a bundle, or keeps one from being made.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is no image.
    #[error("`{path}` is not a usable image")]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// The bundle's description is not understood.
    #[error("the description of the bundle is malformed")]
    Description(#[source] serde_json::Error),
    /// The file ends before the bundle does.
    #[error("this bundle was cut short: it has {actual} of {expected} bytes")]
    CutShort {
        /// Its length when it was made, in bytes.
        expected: u64,
        /// Its length now, in bytes.
        actual: u64,
    },
    /// What is to be put in besides the image is too large.
    #[error(
        "the files of the settings have {length} bytes in the bundle, more than {MAX_DESCRIPTION}"
    )]
    TooMuch {
        /// Their length as they are written, in bytes.
        length: u64,
    },
    /// The program has no place for the length of a bundle.
    #[error("this program was built in a way that bundles cannot be made of it")]
    Unmarked,
    /// The image is not the one that was put in.
    #[error("the image in the bundle is damaged: its digest is {found}, not {expected}")]
    Damaged {
        /// What it should be.
        expected: String,
        /// What it is.
        found: Digest,
    },
    /// The bundle cannot be made.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The bundle cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It was stopped.
    #[error("interrupted")]
    Cancelled,
}

/// Finds the image in a file that may be a bundle; None where it is none.
///
/// # Errors
///
/// Those of reading.
pub fn find(file: &fs::File) -> io::Result<Option<Layout>> {
    let length = file.metadata()?.len();
    let Some(at) = length.checked_sub(FOOTER) else {
        return Ok(None);
    };
    let mut footer = [0; FOOTER as usize];
    file.read_exact_at(&mut footer, at)?;
    let Some(numbers) = footer.strip_prefix(MAGIC) else {
        return Ok(None);
    };
    let mut numbers = numbers
        .chunks_exact(8)
        .map(|bytes| bytes.try_into().map_or(0, u64::from_le_bytes));
    let mut next = || numbers.next().unwrap_or(0);
    let layout = Layout {
        offset: next(),
        length: next(),
        description: next(),
    };
    let end = layout
        .offset
        .checked_add(layout.length)
        .and_then(|end| end.checked_add(layout.description));
    Ok((end == Some(at) && layout.description <= MAX_DESCRIPTION).then_some(layout))
}

/// The bundle that this program is; None where it is none.
///
/// # Errors
///
/// It is one, but not all of it is there.
pub fn own() -> Result<Option<(fs::File, Layout)>, BundleError> {
    let expected = u64::from_le(MARK.length.load(Ordering::Relaxed));
    if expected == 0 {
        return Ok(None);
    }
    let path = Path::new(SELF);
    let file = fs::File::open(path).map_err(read(path))?;
    let actual = file.metadata().map_err(read(path))?.len();
    match find(&file).map_err(read(path))? {
        Some(layout) if actual == expected => Ok(Some((file, layout))),
        _ => Err(BundleError::CutShort { expected, actual }),
    }
}

/// Reads what a bundle says about itself.
///
/// # Errors
///
/// It cannot be read or is not understood.
pub fn description(file: &fs::File, layout: Layout) -> Result<Description, BundleError> {
    let length = usize::try_from(layout.description.min(MAX_DESCRIPTION)).unwrap_or(0);
    let mut text = vec![0; length];
    file.read_exact_at(&mut text, layout.offset + layout.length)
        .map_err(read(Path::new(SELF)))?;
    serde_json::from_slice(&text).map_err(BundleError::Description)
}

/// Makes sure that the image in a bundle is the one that was put in, where the bundle has a checksum.
///
/// # Errors
///
/// It is not, or cannot be read.
pub fn verify(
    file: &fs::File,
    layout: Layout,
    description: &Description,
    cancel: &Cancel,
) -> Result<(), BundleError> {
    let Some(expected) = &description.checksum else {
        return Ok(());
    };
    let path = Path::new(SELF);
    let mut from = file.try_clone().map_err(read(path))?;
    from.seek(SeekFrom::Start(layout.offset))
        .map_err(read(path))?;
    let mut hasher = Hasher::new();
    copy(from.take(layout.length), path, cancel, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    let found = hasher.finish();
    if found.to_string() == *expected {
        Ok(())
    } else {
        Err(BundleError::Damaged {
            expected: expected.clone(),
            found,
        })
    }
}

/// What a bundle is made of.
#[derive(Debug)]
pub struct Creation<'a> {
    /// The image file; a bundle stands for the image in it.
    pub image: &'a Path,
    /// The bundle.
    pub output: &'a Path,
    /// Whether an existing file is replaced.
    pub overwrite: bool,
    /// What it says about itself; the checksum is filled in.
    pub description: Description,
    /// Whether it has a checksum.
    pub checksum: bool,
    /// Stops the work.
    pub cancel: &'a Cancel,
}

/// Makes a bundle; returns its size in bytes.
///
/// # Errors
///
/// The step that failed; no file is left behind then.
pub fn create(creation: Creation<'_>) -> Result<u64, BundleError> {
    let Creation { image, cancel, .. } = creation;
    let mut source = fs::File::open(image).map_err(read(image))?;
    let (offset, length) = match find(&source).map_err(read(image))? {
        Some(layout) => (layout.offset, layout.length),
        None => (0, source.metadata().map_err(read(image))?.len()),
    };
    let checked = source.try_clone().map_err(read(image))?;
    Reader::open(checked, offset).map_err(|source| BundleError::Image {
        path: image.to_owned(),
        source,
    })?;
    let program_path = Path::new(SELF);
    let program = fs::File::open(program_path).map_err(read(program_path))?;
    let program_length = match find(&program).map_err(read(program_path))? {
        // What stood behind it there is left out; the zeros before that do no harm.
        Some(layout) => layout.offset,
        None => program.metadata().map_err(read(program_path))?.len(),
    };

    let mark = find_mark(&program, program_length).map_err(read(program_path))?;
    let mark = mark.ok_or(BundleError::Unmarked)?;

    let output = Output::create(creation.output, creation.overwrite)?;
    let mut to = output.handle()?;
    let write_error = |source| BundleError::Write {
        path: creation.output.to_owned(),
        source,
    };
    copy(
        program.take(program_length),
        program_path,
        cancel,
        |piece| to.write_all(piece).map_err(write_error),
    )?;
    let begin = program_length.next_multiple_of(ALIGNMENT);
    to.seek(SeekFrom::Start(begin)).map_err(write_error)?;
    source.seek(SeekFrom::Start(offset)).map_err(read(image))?;
    let mut hasher = creation.checksum.then(Hasher::new);
    copy((&source).take(length), image, cancel, |piece| {
        if let Some(hasher) = &mut hasher {
            hasher.update(piece);
        }
        to.write_all(piece).map_err(write_error)
    })?;
    let description = Description {
        checksum: hasher.map(|hasher| hasher.finish().to_string()),
        ..creation.description
    };
    let text = serde_json::to_vec(&description).map_err(BundleError::Description)?;
    let mut end = text;
    let description_length = end.len() as u64;
    if description_length > MAX_DESCRIPTION {
        return Err(BundleError::TooMuch {
            length: description_length,
        });
    }
    end.extend_from_slice(MAGIC);
    for number in [begin, length, description_length, 0] {
        end.extend(number.to_le_bytes());
    }
    to.write_all(&end).map_err(write_error)?;
    let total = begin + length + end.len() as u64;
    to.write_all_at(&total.to_le_bytes(), mark)
        .map_err(write_error)?;
    // Who may read it may execute it.
    let mode = to.metadata().map_err(write_error)?.permissions();
    let bits = std::os::unix::fs::PermissionsExt::mode(&mode);
    let executable = std::os::unix::fs::PermissionsExt::from_mode(bits | (bits & 0o444) >> 2);
    to.set_permissions(executable).map_err(write_error)?;
    drop(to);
    output.commit()?;
    Ok(total)
}

/// Where the length of the bundle stands in a program of a length, in bytes.
fn find_mark(program: &fs::File, length: u64) -> io::Result<Option<u64>> {
    let mut bytes = Vec::new();
    let mut from = program.try_clone()?;
    from.seek(SeekFrom::Start(0))?;
    (&mut from).take(length).read_to_end(&mut bytes)?;
    from.seek(SeekFrom::Start(0))?;
    // Read from the mark itself, so that no second copy of the text is in the program.
    let text = std::hint::black_box(&MARK).text;
    let mut found = bytes
        .windows(text.len())
        .enumerate()
        .filter(|(_, window)| window[0] == text[0] && *window == text)
        .map(|(at, _)| at);
    let (first, second) = (found.next(), found.next());
    let place = first.filter(|_| second.is_none()).map(|at| at + text.len());
    Ok(place
        .filter(|place| place + size_of::<u64>() <= bytes.len())
        .map(|place| place as u64))
}

fn read(path: &Path) -> impl Fn(io::Error) -> BundleError {
    let path = path.to_owned();
    move |source| BundleError::Read {
        path: path.clone(),
        source,
    }
}

/// Hands the content of a file on, piece by piece.
fn copy(
    mut from: impl io::Read,
    path: &Path,
    cancel: &Cancel,
    mut to: impl FnMut(&[u8]) -> Result<(), BundleError>,
) -> Result<(), BundleError> {
    let mut piece = vec![0; 1 << 20];
    loop {
        if cancel.is_cancelled() {
            return Err(BundleError::Cancelled);
        }
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => to(&piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read(path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer(numbers: [u64; 4]) -> Vec<u8> {
        let numbers = numbers.into_iter().flat_map(u64::to_le_bytes);
        MAGIC.iter().copied().chain(numbers).collect()
    }

    fn found(content: &[u8]) -> Option<Layout> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        find(&file).unwrap()
    }

    #[test]
    fn a_bundle_is_told_by_its_end() {
        let with = |numbers| [&[7; 100][..], &footer(numbers)].concat();
        let layout = found(&with([10, 80, 10, 0])).unwrap();
        assert_eq!((layout.offset, layout.length), (10, 80));
        for numbers in [
            [10, 80, 11, 0],
            [10, 79, 10, 0],
            [0, 0, 0, 0],
            [u64::MAX, 2, 99, 0],
            [u64::MAX, u64::MAX, u64::MAX, 0],
        ] {
            assert_eq!(found(&with(numbers)), None, "{numbers:?}");
        }
        assert_eq!(found(b""), None);
        assert_eq!(found(&[0; 200]), None);
        let cut = &with([10, 80, 10, 0])[..147];
        assert_eq!(found(cut), None);
    }
}
