//! What can be done about errors that several commands meet. A command that knows better says so itself ([`Failure::with_hint`](super::Failure)).

use std::error::Error;
use std::io;

use cista_images::reference::ReferenceError;
use cista_images::squashfs::reader::ReadError;

use super::inspect::Unreadable;
use crate::bundle::BundleError;
use crate::container::StartError;
use crate::container::fstab::FstabError;
use crate::container::image::ImageError;
use crate::container::mounts::MountError;
use crate::container::named::ContainerError;
use crate::oci::state::StateError;

/// A hint for an error or one of its causes.
pub(super) fn of(error: &(dyn Error + 'static)) -> Option<String> {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    // Chains are short; the bound only guards against one that circles.
    causes.take(32).find_map(of_one)
}

fn of_one(error: &(dyn Error + 'static)) -> Option<String> {
    // It shows its cause as its own: there the chain goes on behind the cause.
    if let Some(StartError::Image(error)) = error.downcast_ref() {
        return of_one(error);
    }
    if let Some(error) = error.downcast_ref::<ReadError>() {
        return of_image(error).map(str::to_owned);
    }
    if let Some(error) = error.downcast_ref::<ReferenceError>() {
        return of_reference(error);
    }
    if let Some(error) = error.downcast_ref::<FstabError>() {
        return of_entry(error).map(str::to_owned);
    }
    if let Some(source) = unreadable(error) {
        return of_file(source).map(str::to_owned);
    }
    if let Some(StateError::NotFound { .. }) = error.downcast_ref() {
        let hint = "`--root` has to name the directory that it was made with";
        return Some(hint.to_owned());
    }
    let hint = match (
        error.downcast_ref::<ContainerError>(),
        error.downcast_ref::<MountError>(),
    ) {
        (Some(ContainerError::NotFound { .. }), _) => "`cista list` shows the containers",
        (Some(ContainerError::System { source, .. }), _) if may_not_write(source) => {
            "get the right to write there, or name another directory in `CISTA_DATA_PATH`"
        }
        (_, Some(error)) => of_mount(error)?,
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The system's answer where an image file cannot be read.
fn unreadable<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    if let Some(ImageError::Open { source, .. }) = error.downcast_ref() {
        return Some(source);
    }
    if let Some(ContainerError::System {
        operation: "open",
        source,
        ..
    }) = error.downcast_ref()
    {
        return Some(source);
    }
    if let Some(BundleError::Read { source, .. }) = error.downcast_ref() {
        return Some(source);
    }
    error
        .downcast_ref::<Unreadable>()
        .map(|unreadable| &unreadable.source)
}

/// What can be done about an image file that cannot be read.
fn of_file(error: &io::Error) -> Option<&'static str> {
    Some(match error.kind() {
        io::ErrorKind::NotFound => {
            "`cista import` makes image files; containers, which `cista list` shows, have names without `/`"
        }
        io::ErrorKind::PermissionDenied => {
            "its owner can let you read it (`chmod a+r`, and `a+x` on the directories above)"
        }
        io::ErrorKind::IsADirectory => "`cista import dir:PATH` makes an image of a directory",
        _ => return None,
    })
}

fn may_not_write(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

fn of_image(error: &ReadError) -> Option<&'static str> {
    Some(match error {
        ReadError::NotSquashfs => {
            "`cista import` makes image files, of registries, archives and directories"
        }
        ReadError::Directory => "`cista import dir:PATH` makes an image of a directory",
        ReadError::Truncated { .. } | ReadError::Corrupt { .. } | ReadError::Decompress { .. } => {
            "it was cut short or damaged since it was made: copy it again, or import it again"
        }
        _ => return None,
    })
}

fn of_reference(error: &ReferenceError) -> Option<String> {
    match error {
        ReferenceError::Scheme { text } if text.contains("://") => None,
        ReferenceError::Scheme { text } => Some(format!(
            "an image of a registry is written `docker://{text}`"
        )),
        ReferenceError::Password => {
            Some("`cista login` asks for the password and stores it".to_owned())
        }
        ReferenceError::Digest(_) => {
            Some("`cista digest` prints the digest that a tag stands for".to_owned())
        }
        ReferenceError::Registry { .. } => None,
        _ => Some("`cista help images` says how images are written".to_owned()),
    }
}

/// What can be done about a mount that is not understood.
fn of_entry(error: &FstabError) -> Option<&'static str> {
    Some(match error {
        FstabError::NoTarget { .. } => "`SOURCE:TARGET` with `-m`, `SOURCE TARGET` in files",
        FstabError::UnknownOption { .. } => "`cista help mounts` lists the options",
        FstabError::TooManyFields { .. } | FstabError::NotANumber { .. } => {
            "the fields are source, target, type, options, fs_freq and fs_passno, as in fstab(5)"
        }
        FstabError::Line { source, .. } => return of_entry(source),
        FstabError::Conflict { .. } => return None,
    })
}

/// What can be done about a mount.
pub(super) fn of_mount(error: &MountError) -> Option<&'static str> {
    match error {
        MountError::Target { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Some("`x-create=dir` or `x-create=file` among its options makes the mount point")
        }
        MountError::Target { source, .. } if source.raw_os_error() == Some(libc::ELOOP) => Some(
            "symbolic links of the image lead to it in a circle, or by `/proc`, which is not followed",
        ),
        MountError::Attach { source, .. }
            if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENOTDIR)) =>
        {
            Some("a directory can be mounted onto a directory, and a file onto a file")
        }
        MountError::Source { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Some("`nofail` among its options makes that a warning")
        }
        MountError::Filesystem { source, .. } if source.raw_os_error() == Some(libc::ENODEV) => {
            Some(
                "`/proc/filesystems` lists what the kernel knows; a bind mount has the option `bind`",
            )
        }
        _ => None,
    }
}
