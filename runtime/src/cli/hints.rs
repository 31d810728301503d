//! What can be done about errors that several commands meet. A command that knows better says so itself ([`Failure::with_hint`](super::Failure)).

use std::error::Error;
use std::io;

use cista_images::reference::ReferenceError;
use cista_images::squashfs::reader::ReadError;

use crate::container::mounts::MountError;
use crate::container::named::ContainerError;

/// A hint for an error or one of its causes.
pub(super) fn of(error: &(dyn Error + 'static)) -> Option<String> {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    // Chains are short; the bound only guards against one that circles.
    causes.take(32).find_map(of_one)
}

fn of_one(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<ReadError>() {
        return of_image(error).map(str::to_owned);
    }
    if let Some(error) = error.downcast_ref::<ReferenceError>() {
        return of_reference(error);
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

fn may_not_write(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

fn of_image(error: &ReadError) -> Option<&'static str> {
    Some(match error {
        ReadError::NotSquashfs | ReadError::Directory => {
            "`cista import` makes image files, of registries, archives and directories"
        }
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
        _ => None,
    }
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
        MountError::Filesystem { source, .. } if source.raw_os_error() == Some(libc::ENODEV) => {
            Some(
                "`/proc/filesystems` lists what the kernel knows; a bind mount has the option `bind`",
            )
        }
        _ => None,
    }
}
