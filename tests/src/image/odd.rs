//! The odd image: what tar files, layers and file systems may contain and importers get wrong.
//!
//! Its layers stand on Debian's minbase, which brings the GNU tar that lists the image from inside a container. They are
//! numbered in the order in which they are stacked; what an upper one does to a lower one is said where it does it.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use tar::EntryType;

use crate::error::{HarnessError, IoContext as _};
use crate::program::Program;

use super::layer::{LayerWriter, header};

type Filler = fn(&mut LayerWriter) -> Result<(), HarnessError>;

/// What fills the layers above the base, lowest first.
pub(super) const LAYERS: &[Filler] = &[
    names,
    kinds,
    victims,
    changes,
    links_across,
    farewell,
    old_sparse,
];

/// The names that a file may have, and programs trip over.
fn names(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    layer.directory("odd/")?;
    layer.directory("odd/names/")?;
    let longest = "l".repeat(255);
    let deep = format!("odd/names/{}", "a-rather-long-component/".repeat(20));
    let names: [&[u8]; 10] = [
        b"not utf-8 \xff\xfe",
        b"a space",
        b" ends with a space ",
        b"a\nnewline",
        b"-rf",
        b"back\\slash",
        b"quote'\"`$(x)",
        b"\x01\x7f control",
        "ünïcödé ☃".as_bytes(),
        longest.as_bytes(),
    ];
    for name in names {
        let path = [b"odd/names/", name].concat();
        let content = [b"content of ", name].concat();
        layer.entry(
            &path,
            header(EntryType::Regular, 0o644, content.len() as u64),
            &content,
        )?;
    }
    // 490 characters: more than the 100 of the old header, than its 255 with the prefix field, and than NAME_MAX.
    layer.file(&format!("{deep}file"), b"deep")?;
    layer.symlink(&format!("{deep}link"), &format!("/{deep}file"))?;
    layer.hard_link(&format!("{deep}other name"), &format!("{deep}file"))?;
    layer.file("odd/implied/parents/without/entries", b"implied")
}

/// Every kind of entry, and metadata at its limits.
fn kinds(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    let entry = |kind, mode| header(kind, mode, 0);
    layer.directory("odd/kinds/")?;
    layer.entry(b"odd/kinds/fifo", entry(EntryType::Fifo, 0o620), &[])?;
    let mut device = entry(EntryType::Char, 0o666);
    // The device numbers of /dev/null, which must not come into being.
    device
        .set_device_major(1)
        .context("set a number of", "odd/kinds/device")?;
    device
        .set_device_minor(3)
        .context("set a number of", "odd/kinds/device")?;
    layer.entry(b"odd/kinds/device", device, &[])?;
    for (name, mode) in [
        ("setuid", 0o4755),
        ("setgid", 0o2755),
        ("sticky", 0o1644),
        ("unreadable", 0o000),
        ("write-only", 0o200),
    ] {
        let path = format!("odd/kinds/{name}");
        let regular = header(EntryType::Regular, mode, name.len() as u64);
        layer.entry(path.as_bytes(), regular, name.as_bytes())?;
    }
    layer.entry(b"odd/kinds/closed/", entry(EntryType::Directory, 0), &[])?;
    layer.file("odd/kinds/closed/inside", b"inside a directory of mode 0")?;
    layer.entry(
        b"odd/kinds/empty/",
        entry(EntryType::Directory, 0o1777),
        &[],
    )?;
    layer.file("odd/kinds/empty file", b"")?;
    layer.symlink("odd/kinds/dangling", "nowhere")?;
    layer.symlink("odd/kinds/loop", "loop")?;
    layer.symlink("odd/kinds/out", "../../../../../../../etc/hostname")?;
    layer.symlink("odd/kinds/absolute", "/etc/hostname")?;
    let mut old = header(EntryType::Regular, 0o644, 3);
    old.set_mtime(0);
    layer.entry(b"odd/kinds/epoch", old, b"old")?;
    let mut young = header(EntryType::Regular, 0o644, 5);
    young.set_mtime(u64::from(u32::MAX));
    layer.entry(b"odd/kinds/the end of 32 bits", young, b"young")?;
    let mut owned = header(EntryType::Regular, 0o640, 5);
    owned.set_uid(2_000_000_000);
    owned.set_gid(2_000_000_001);
    layer.entry(b"odd/kinds/big ids", owned, b"owned")?;
    // An entry that comes twice: the last one counts.
    layer.file("odd/kinds/twice", b"the first is longer than the second")?;
    layer.file("odd/kinds/twice", b"the second")?;
    with_xattrs(
        layer,
        "odd/kinds/xattrs",
        &[
            ("user.text", b"value"),
            ("user.binary", b"\x00\xff\n="),
            ("user.long", &[b'x'; 2000]),
            // VFS_CAP_REVISION_2 with cap_net_raw, effective (linux/capability.h).
            (
                "security.capability",
                b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
            ),
            ("trusted.secret", b"for root alone"),
        ],
    )?;
    hard_links(layer)?;
    blocks(layer)?;
    gnu_tar_pax(layer)
}

fn with_xattrs(
    layer: &mut LayerWriter,
    path: &str,
    xattrs: &[(&str, &[u8])],
) -> Result<(), HarnessError> {
    let records: Vec<(String, &[u8])> = xattrs
        .iter()
        .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value))
        .collect();
    layer
        .tar()
        .append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), *value)))
        .context("archive", path)?;
    layer.file(path, b"a file with attributes")
}

/// Hard links within a layer; what happens to their first name comes in [`changes`].
fn hard_links(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    layer.directory("odd/links/")?;
    layer.file("odd/links/first", b"three names, one file")?;
    layer.hard_link("odd/links/second", "odd/links/first")?;
    layer.hard_link("odd/links/a third", "odd/links/second")?;
    layer.symlink("odd/links/symlink", "first")?;
    layer.hard_link("odd/links/symlink twice", "odd/links/symlink")?;
    layer.file("odd/links/doomed", b"its only name below goes away")?;
    layer.file(
        "odd/links/lonely a",
        b"both names stay until one is replaced",
    )?;
    layer.hard_link("odd/links/lonely b", "odd/links/lonely a")
}

/// Sizes around the block size of squashfs, duplicate content, and zeros.
fn blocks(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    layer.directory("odd/blocks/")?;
    let pattern: Vec<u8> = (0..(1_u32 << 20))
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for size in [1, 4095, 4096, 131_071, 131_072, 131_073, 262_144, 1_000_000] {
        layer.file(&format!("odd/blocks/{size}"), &pattern[..size])?;
        layer.file(&format!("odd/blocks/{size} again"), &pattern[..size])?;
    }
    layer.file("odd/blocks/zeros", &vec![0; 1 << 20])?;
    let mut mixed = vec![0; 1 << 20];
    mixed[200_000..200_100].copy_from_slice(&pattern[..100]);
    layer.file("odd/blocks/zeros with an island", &mixed)?;
    layer.directory("odd/many/")?;
    for number in 0..1000 {
        layer.file(
            &format!("odd/many/{number:04}"),
            format!("{number}\n").as_bytes(),
        )?;
    }
    Ok(())
}

/// What GNU tar itself writes in the PAX format: sparse files of every version, fractions of seconds.
fn gnu_tar_pax(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    gnu_tar(layer, "pax 1.0", &["--format=pax", "--sparse-version=1.0"])?;
    gnu_tar(layer, "pax 0.1", &["--format=pax", "--sparse-version=0.1"])?;
    gnu_tar(layer, "pax 0.0", &["--format=pax", "--sparse-version=0.0"])
}

/// GNU's own format of sparse files, older than PAX. Umoci does not know it: it is in a layer of its own, the topmost, which
/// a comparison with umoci leaves out.
fn old_sparse(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    gnu_tar(layer, "gnu", &["--format=gnu"])
}

/// Adds files with holes as GNU tar archives them, below `odd/NAME`.
fn gnu_tar(layer: &mut LayerWriter, name: &str, format: &[&str]) -> Result<(), HarnessError> {
    let scratch = std::env::temp_dir().join(format!("cista-odd-{}", std::process::id()));
    let inside = scratch.join("odd").join(name);
    std::fs::create_dir_all(&inside).context("create", &inside)?;
    for (name, size, islands) in [
        ("sparse", 64_u64 << 20, [4096_u64, 40 << 20]),
        ("ends with a hole", 9 << 20, [0, 5 << 20]),
    ] {
        let path = inside.join(name);
        let mut file = File::create(&path).context("create", &path)?;
        for island in islands {
            file.seek(SeekFrom::Start(island))
                .context("seek in", &path)?;
            file.write_all(&[b'i'; 5000]).context("write", &path)?;
        }
        file.set_len(size).context("extend", &path)?;
    }
    let only_hole = inside.join("only a hole");
    File::create(&only_hole)
        .and_then(|file| file.set_len(3 << 20))
        .context("create", &only_hole)?;
    let odd_name = inside.join(std::ffi::OsStr::from_bytes(b"not utf-8 \xff"));
    std::fs::write(&odd_name, "x").context("write", &odd_name)?;
    let archive = Program::new("tar")
        .args(["--create", "--sparse", "--sort=name", "--blocking-factor=1"])
        .args([
            "--owner=0",
            "--group=0",
            "--mtime=2023-05-06 07:08:09.123456789",
        ])
        .args(format)
        .arg("--directory")
        .arg(&scratch)
        .arg(format!("odd/{name}"))
        .check()?
        .stdout;
    // Without the two blocks of zeros at its end, it can be followed by other entries.
    let entries = &archive[..archive.len().saturating_sub(2 * 512)];
    layer
        .tar()
        .get_mut()
        .write_all(entries)
        .context("archive", &scratch)?;
    std::fs::remove_dir_all(&scratch).context("remove", &scratch)
}

/// What the next layer removes or replaces.
fn victims(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    layer.directory("odd/victims/")?;
    for directory in [
        "directory",
        "opaque",
        "becomes file",
        "becomes symlink",
        "merged",
    ] {
        layer.directory(&format!("odd/victims/{directory}/"))?;
        layer.directory(&format!("odd/victims/{directory}/sub/"))?;
        layer.file(&format!("odd/victims/{directory}/sub/file"), b"from below")?;
        layer.file(&format!("odd/victims/{directory}/lower"), b"from below")?;
    }
    layer.file("odd/victims/file", b"from below")?;
    layer.file("odd/victims/becomes directory", b"from below")?;
    layer.file("odd/victims/changes", b"from below")?;
    layer.file("odd/victims/returns", b"from below")?;
    layer.symlink("odd/victims/symlink becomes directory", "directory")?;
    layer.symlink("odd/victims/symlink becomes file", "file")?;
    layer.file("odd/victims/merged/changes mode", b"from below")
}

/// Whiteouts, opaque directories, and every change of one kind of file into another.
fn changes(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    layer.whiteout("odd/victims/file")?;
    layer.whiteout("odd/victims/directory")?;
    layer.whiteout("odd/victims/was never there")?;
    // AUFS left such files in old images; they are no files of the image.
    layer.file("odd/victims/.wh..wh.plnk", b"")?;
    // Removed and made again in one layer: the new one stays, whichever comes first in the archive.
    layer.file("odd/victims/returns", b"from above")?;
    layer.whiteout("odd/victims/returns")?;
    layer.directory("odd/victims/opaque/")?;
    layer.file("odd/victims/opaque/upper", b"from above")?;
    // Opaque whiteouts may come after what they do not hide.
    layer.file("odd/victims/opaque/.wh..wh..opq", b"")?;
    layer.file("odd/victims/becomes file", b"from above")?;
    layer.symlink("odd/victims/becomes symlink", "merged")?;
    layer.directory("odd/victims/becomes directory/")?;
    layer.file("odd/victims/becomes directory/file", b"from above")?;
    layer.file("odd/victims/changes", b"from above, and longer")?;
    layer.directory("odd/victims/symlink becomes directory/")?;
    layer.file("odd/victims/symlink becomes directory/file", b"from above")?;
    layer.file("odd/victims/symlink becomes file", b"from above")?;
    layer.entry(
        b"odd/victims/merged/",
        header(EntryType::Directory, 0o2711, 0),
        &[],
    )?;
    layer.file("odd/victims/merged/upper", b"from above")?;
    layer.entry(
        b"odd/victims/merged/changes mode",
        header(EntryType::Regular, 0o751, 10),
        b"from below",
    )?;
    // The first name of a group of hard links is replaced: the others keep the old content.
    layer.file("odd/links/first", b"a new file of the old name")?;
    layer.file("odd/links/lonely a", b"the other name is alone now")
}

/// Hard links to files of lower layers, and what happens to their targets above.
fn links_across(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    layer.hard_link("odd/links/across", "odd/victims/changes")?;
    layer.hard_link("odd/links/to a program", "usr/bin/env")?;
    layer.hard_link("odd/links/to a group", "odd/links/second")?;
    layer.hard_link("odd/links/survivor", "odd/links/doomed")?;
    layer.file("odd/links/of this layer", b"of this layer")?;
    layer.hard_link("odd/links/of this layer too", "odd/links/of this layer")
}

/// The topmost layer: targets of links across layers go away, while their content is still wanted.
fn farewell(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    layer.whiteout("odd/links/doomed")?;
    layer.whiteout("odd/victims/changes")
}
