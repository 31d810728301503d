//! Names and attributes.

use std::collections::{BTreeMap, BTreeSet};

use cista::fuse::ServeError;
use cista_images::tree::{Kind, Tree};

use crate::image::{Builder, TIME, metadata};
use crate::kernel::{
    FORGET, GETATTR, GETXATTR, GID, INIT, Kernel, LISTXATTR, LOOKUP, OPEN, READ, READDIR,
    READDIRPLUS, READLINK, STATFS, UID, entry, init_in, read_in, u32_at, u64_at,
};

const EIO: i32 = 5;
const ENOTDIR: i32 = 20;
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;
const ENOSYS: i32 = 38;
const ENODATA: i32 = 61;
const EPROTO: i32 = 71;

fn small() -> Builder {
    let mut builder = Builder::new(4096);
    let directory = builder.directory(Tree::ROOT, b"directory");
    let file = builder.file(directory, b"file", b"content");
    builder.tree.link(Tree::ROOT, b"hard link", file);
    builder.add(
        Tree::ROOT,
        b"link",
        metadata(0o777, &[]),
        Kind::Symlink(b"directory/file".as_slice().into()),
    );
    builder.add(Tree::ROOT, b"pipe", metadata(0o600, &[]), Kind::Fifo);
    builder.directory(Tree::ROOT, b"empty");
    builder
}

#[test]
fn refuses_kernels_that_it_cannot_serve() {
    let mut kernel = Kernel::bare(small().finish(), 1 << 20, 1);
    assert_eq!(kernel.ask(INIT, 0, &init_in(7, 30)), Err(EPROTO));
    assert!(matches!(
        kernel.stop(),
        Err(ServeError::Version {
            major: 7,
            minor: 30
        })
    ));
    let mut kernel = Kernel::bare(small().finish(), 1 << 20, 1);
    kernel.send(GETATTR, 1, &[0; 16]);
    assert!(matches!(kernel.stop(), Err(ServeError::NoInit(GETATTR))));
}

#[test]
fn ends_when_the_device_is_gone() {
    Kernel::start(small().finish()).stop().unwrap();
}

#[test]
fn names_lead_to_nodes() {
    let mut kernel = Kernel::start(small().finish());
    let directory = kernel.lookup(1, b"directory").unwrap();
    assert_eq!(directory.mode, 0o040_755);
    assert_eq!(directory.owner, (UID, GID));
    assert_eq!(directory.time, u64::from(TIME));
    assert!(directory.valid > 1 << 30, "an image does not change");
    assert!(directory.node > 1);
    let file = kernel.lookup(directory.node, b"file").unwrap();
    assert_eq!((file.mode, file.size, file.links), (0o100_644, 7, 2));
    assert_eq!(kernel.lookup(1, b"hard link").unwrap(), file);
    let pipe = kernel.lookup(1, b"pipe").unwrap();
    assert_eq!(pipe.mode, 0o010_600);
    let link = kernel.lookup(1, b"link").unwrap();
    assert_eq!(
        kernel.ask(READLINK, link.node, &[]).unwrap(),
        b"directory/file"
    );
    // A name that does not exist is an answer, so that it is remembered.
    let nothing = kernel.lookup(1, b"nothing").unwrap();
    assert_eq!(nothing.node, 0);
    assert!(nothing.valid > 1 << 30);
    // The root's attributes come by its fixed id.
    let attributes = kernel.ask(GETATTR, 1, &[0; 16]).unwrap();
    assert_eq!(attributes.len(), 104);
    assert_eq!(u32_at(&attributes, 16 + 60), 0o040_755);
    kernel.stop().unwrap();
}

#[test]
fn what_does_not_fit_is_an_error_and_no_end() {
    let mut kernel = Kernel::start(small().finish());
    let file = kernel.lookup(1, b"hard link").unwrap().node;
    assert_eq!(kernel.lookup(file, b"x"), Err(ENOTDIR));
    assert_eq!(kernel.ask(READDIR, file, &read_in(0, 4096)), Err(ENOTDIR));
    assert_eq!(kernel.read(1, 0, 4096), Err(EINVAL));
    assert_eq!(kernel.ask(READLINK, file, &[]), Err(EINVAL));
    assert_eq!(kernel.ask(OPEN, file, &[0; 8]), Err(ENOSYS));
    assert_eq!(kernel.ask(9999, file, &[]), Err(ENOSYS));
    assert_eq!(kernel.ask(READ, file, &[0; 8]), Err(EPROTO));
    assert_eq!(
        kernel.ask(GETXATTR, file, b"\0\0\0\0\0\0\0\0user.x\0"),
        Err(ENOSYS)
    );
    for made_up in [u64::MAX, u64::MAX - 1, 1 << 48, 0xffff_0000, 3] {
        let error = kernel.ask(GETATTR, made_up, &[0; 16]).unwrap_err();
        assert_eq!(error, EIO, "{made_up}");
    }
    // No answer to FORGET: the next one is that of GETATTR.
    kernel.send(FORGET, file, &1_u64.to_ne_bytes());
    kernel.ask(GETATTR, file, &[0; 16]).unwrap();
    let statfs = kernel.ask(STATFS, 1, &[]).unwrap();
    assert_eq!(statfs.len(), 80);
    assert_eq!(u64_at(&statfs, 8), 0, "nothing is free");
    assert_eq!(kernel.lookup(1, &[b'x'; 300]).unwrap().node, 0);
    assert_eq!(
        kernel
            .ask(LOOKUP, 1, b"no zero behind")
            .map(|bytes| entry(&bytes).node),
        Ok(0)
    );
    kernel.stop().unwrap();
}

/// Reads a directory in answers of `size` bytes: name to inode number, and what READDIRPLUS adds.
fn list(
    kernel: &mut Kernel,
    node: u64,
    size: u32,
    plus: bool,
) -> BTreeMap<Vec<u8>, (u64, Option<crate::kernel::Entry>)> {
    let (opcode, prefix) = if plus {
        (READDIRPLUS, 128)
    } else {
        (READDIR, 0)
    };
    let mut found = BTreeMap::new();
    let mut offset = 0;
    loop {
        let answer = kernel.ask(opcode, node, &read_in(offset, size)).unwrap();
        if answer.is_empty() {
            return found;
        }
        assert!(answer.len() <= size as usize);
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let known = plus.then(|| entry(rest));
            let dirent = &rest[prefix..];
            offset = u64_at(dirent, 8);
            let length = u32_at(dirent, 16) as usize;
            let name = dirent[24..24 + length].to_vec();
            let before = found.insert(name, (u64_at(dirent, 0), known));
            assert!(before.is_none(), "an entry comes twice");
            rest = &rest[(prefix + 24 + length).next_multiple_of(8)..];
        }
    }
}

#[test]
fn listings_are_complete_whatever_the_size_of_the_answers() {
    let mut builder = Builder::new(4096);
    let large = builder.directory(Tree::ROOT, b"large");
    let names: BTreeSet<Vec<u8>> = (0..3000)
        .map(|n| format!("{n:04}{}", "x".repeat(n % 250)).into_bytes())
        .collect();
    for name in &names {
        builder.file(large, name, name);
    }
    builder.directory(Tree::ROOT, b"empty");
    let mut kernel = Kernel::start(builder.finish());
    let large = kernel.lookup(1, b"large").unwrap();
    for (size, plus) in [
        (512, false),
        (4096, false),
        (100_000, false),
        (512, true),
        (4096, true),
        (131_072, true),
    ] {
        let mut found = list(&mut kernel, large.node, size, plus);
        assert_eq!(found.remove(&b"."[..]).unwrap().0, large.number);
        let root = kernel.ask(GETATTR, 1, &[0; 16]).unwrap();
        assert_eq!(found.remove(&b".."[..]).unwrap().0, u64_at(&root, 16));
        assert!(found.keys().eq(names.iter()), "{size} {plus}");
        for (name, (number, known)) in found.iter().step_by(97) {
            let looked_up = kernel.lookup(large.node, name).unwrap();
            assert_eq!(*number, looked_up.number);
            if plus {
                assert_eq!(known.as_ref(), Some(&looked_up));
            }
        }
    }
    let empty = kernel.lookup(1, b"empty").unwrap().node;
    assert_eq!(list(&mut kernel, empty, 4096, true).len(), 2);
    kernel.stop().unwrap();
}

#[test]
fn attributes_beyond_the_mode() {
    let mut builder = small();
    let value = vec![7; 5000];
    builder.add(
        Tree::ROOT,
        b"tagged",
        metadata(0o644, &[("user.long", &value), ("user.short", b"v")]),
        Kind::Fifo,
    );
    let mut kernel = Kernel::start(builder.finish());
    let node = kernel.lookup(1, b"tagged").unwrap().node;
    let asking = |size: u32, name: &str| {
        let mut body = size.to_ne_bytes().to_vec();
        body.extend_from_slice(&[0; 4]);
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body
    };
    let size = |answer: Vec<u8>| {
        assert_eq!(answer.len(), 8);
        u32_at(&answer, 0)
    };
    assert_eq!(
        kernel
            .ask(GETXATTR, node, &asking(0, "user.long"))
            .map(size),
        Ok(5000)
    );
    assert_eq!(
        kernel.ask(GETXATTR, node, &asking(5000, "user.long")),
        Ok(value)
    );
    assert_eq!(
        kernel.ask(GETXATTR, node, &asking(4999, "user.long")),
        Err(ERANGE)
    );
    assert_eq!(
        kernel.ask(GETXATTR, node, &asking(9, "user.short")),
        Ok(b"v".to_vec())
    );
    assert_eq!(
        kernel.ask(GETXATTR, node, &asking(9, "user.other")),
        Err(ENODATA)
    );
    assert_eq!(
        kernel.ask(LISTXATTR, node, &asking(0, "")).map(size),
        Ok(21)
    );
    let names = b"user.long\0user.short\0".to_vec();
    assert_eq!(kernel.ask(LISTXATTR, node, &asking(21, "")), Ok(names));
    assert_eq!(kernel.ask(LISTXATTR, node, &asking(20, "")), Err(ERANGE));
    let plain = kernel.lookup(1, b"pipe").unwrap().node;
    assert_eq!(
        kernel.ask(GETXATTR, plain, &asking(9, "user.short")),
        Err(ENODATA)
    );
    assert_eq!(kernel.ask(LISTXATTR, plain, &asking(9, "")), Ok(Vec::new()));
    assert_eq!(kernel.ask(READLINK, u64::MAX, &[]), Err(EIO));
    assert_eq!(
        kernel.ask(LOOKUP, 1, &[]).map(|bytes| entry(&bytes).node),
        Ok(0)
    );
    kernel.stop().unwrap();
}
