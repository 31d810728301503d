//! Extended attributes as a file system shows them.

use std::path::Path;

use cista_images::tree::Xattrs;

/// All attributes of what `path` is, a link not followed.
pub(crate) fn of(path: &Path) -> Xattrs {
    let mut names = vec![0; 64 << 10];
    let size = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let mut xattrs = Xattrs::new();
    for name in names[..size]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 64 << 10];
        let size = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
        value.truncate(size);
        xattrs.insert(name.into(), value.into());
    }
    xattrs
}
