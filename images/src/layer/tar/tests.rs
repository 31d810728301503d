//! Hand-made streams, and what the parser makes of them.

use super::header::number;
use super::*;

/// A header with a correct checksum.
fn header(name: &[u8], flag: u8, size: u64, edit: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000012\0");
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    edit(&mut block);
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().copied().map(u32::from).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut content = content.to_vec();
    content.resize(content.len().next_multiple_of(BLOCK), 0);
    content
}

fn extension(flag: u8, content: &[u8]) -> Vec<u8> {
    [
        header(b"ext", flag, content.len() as u64, |_| {}),
        padded(content),
    ]
    .concat()
}

fn record(key: &str, value: &str) -> String {
    let body = key.len() + value.len() + 3;
    let length = (body..)
        .find(|length| length.to_string().len() + body == *length)
        .unwrap();
    format!("{length} {key}={value}\n")
}

type Listed = (Entry, Option<Vec<u8>>);

/// All entries, files with their content; read through a buffer of odd size.
fn list(stream: &[u8]) -> Result<Vec<Listed>, TarError> {
    let mut archive = Archive::new(io::BufReader::with_capacity(7, stream));
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let content = match entry.kind {
            Kind::File(size) => {
                let mut content = Vec::new();
                while let Some(piece) = archive.next_piece()? {
                    match piece {
                        Piece::Data(data) => content.extend_from_slice(data),
                        Piece::Hole(length) => {
                            content.resize(content.len() + length as usize, 0);
                        }
                    }
                }
                assert_eq!(content.len() as u64, size);
                Some(content)
            }
            _ => {
                assert!(archive.next_piece()?.is_none());
                None
            }
        };
        entries.push((entry, content));
    }
    assert!(archive.next_entry()?.is_none());
    Ok(entries)
}

fn names(stream: &[u8]) -> Vec<String> {
    let entries = list(stream).unwrap();
    entries
        .iter()
        .map(|(entry, _)| entry.path.to_string())
        .collect()
}

#[test]
fn kinds_and_metadata() {
    let link = |block: &mut [u8; BLOCK]| block[157..163].copy_from_slice(b"./a/b\0");
    let stream = [
        header(b"./", b'5', 0, |block| {
            block[100..108].copy_from_slice(b"0041777\0");
        }),
        header(b"a/b", b'0', 3, |_| {}),
        padded(b"xyz"),
        header(b"s", b'2', 0, link),
        // Links and devices have no content, whatever they say.
        header(b"h", b'1', 999, link),
        header(b"d", b'3', 999, |_| {}),
        header(b"f", b'6', 0, |_| {}),
        header(b"v7dir/", 0, 0, |block| block[257..265].fill(0)),
        header(b"contiguous", b'7', 1, |_| {}),
        padded(b"c"),
        header(b"label", b'V', 0, |_| {}),
        vec![0; 1024],
        b"trailing garbage".to_vec(),
    ]
    .concat();
    let entries = list(&stream).unwrap();
    let kinds: Vec<_> = entries.iter().map(|(entry, _)| &entry.kind).collect();
    let target = EntryPath::parse(b"a/b").unwrap();
    assert_eq!(
        kinds,
        [
            &Kind::Directory,
            &Kind::File(3),
            &Kind::Symlink((*b"./a/b").into()),
            &Kind::HardLink(target),
            &Kind::Device,
            &Kind::Fifo,
            &Kind::Directory,
            &Kind::File(1),
        ]
    );
    assert_eq!(entries[0].0.path.as_bytes(), b"");
    assert_eq!(entries[0].0.metadata.mode, 0o1777);
    assert_eq!(entries[1].0.metadata.mtime, 10);
    assert_eq!(entries[1].1.as_deref(), Some(&b"xyz"[..]));
    assert_eq!(entries[7].0.ordinal, 7);
}

#[test]
fn names_from_every_place() {
    let prefix = |block: &mut [u8; BLOCK]| block[345..349].copy_from_slice(b"some");
    let long = "l/".repeat(150) + "end";
    for (stream, name) in [
        (header(b"x", b'0', 0, prefix), "some/x".to_owned()),
        (
            header(b"x", b'0', 0, |block| {
                prefix(block);
                block[257..265].copy_from_slice(b"ustar  \0");
            }),
            "x".to_owned(),
        ),
        (header(&[b'n'; 100], b'0', 0, |_| {}), "n".repeat(100)),
        (
            [
                extension(b'L', format!("{long}\0").as_bytes()),
                header(b"short", b'0', 0, |_| {}),
            ]
            .concat(),
            long.clone(),
        ),
        (
            [
                extension(b'x', record("path", &long).as_bytes()),
                header(b"short", b'0', 0, prefix),
            ]
            .concat(),
            long.clone(),
        ),
        (
            // The records win, in whatever order they come.
            [
                extension(b'x', record("path", "pax").as_bytes()),
                extension(b'L', b"gnu\0"),
                header(b"short", b'0', 0, |_| {}),
            ]
            .concat(),
            "pax".to_owned(),
        ),
    ] {
        assert_eq!(names(&stream), [name]);
    }
    // What one entry's records say is not said of the next.
    let stream = [
        extension(b'x', record("path", "long").as_bytes()),
        header(b"a", b'0', 0, |_| {}),
        header(b"b", b'0', 0, |_| {}),
    ]
    .concat();
    assert_eq!(names(&stream), ["long", "b"]);
}

#[test]
fn records_override_the_header_and_global_ones_stay() {
    let stream = [
        extension(b'g', record("mtime", "77.9").as_bytes()),
        extension(
            b'x',
            [
                record("size", "5"),
                record("SCHILY.xattr.user.k", "v"),
                record("SCHILY.xattr.trusted.k", "v"),
                record("SCHILY.xattr.user.overlay.opaque", "y"),
                record("SCHILY.xattr.security.capability", "cap"),
                record("SCHILY.xattr.security.selinux", "label"),
            ]
            .concat()
            .as_bytes(),
        ),
        header(b"a", b'0', 0, |_| {}),
        padded(b"12345"),
        extension(b'x', record("mtime", "-3").as_bytes()),
        header(b"b", b'0', 0, |_| {}),
        header(b"c", b'0', 0, |_| {}),
    ]
    .concat();
    let entries = list(&stream).unwrap();
    assert_eq!(entries[0].1.as_deref(), Some(&b"12345"[..]));
    let times: Vec<_> = entries
        .iter()
        .map(|(entry, _)| entry.metadata.mtime)
        .collect();
    assert_eq!(times, [77, 0, 77]);
    let xattrs = entries[0].0.metadata.xattrs.as_ref().unwrap();
    let kept: Vec<_> = xattrs.keys().map(|name| &name[..]).collect();
    assert_eq!(kept, [&b"security.capability"[..], b"user.k"]);
    assert_eq!(entries[1].0.metadata.xattrs, None);
}

#[test]
fn numbers() {
    for (field, value) in [
        (&b"0000644\0"[..], Some(0o644)),
        (b"   644 \0", Some(0o644)),
        (b"\0\0\0\0", Some(0)),
        (b"        ", Some(0)),
        (b"77777777", Some(0o7777_7777)),
        (b"12a\0", None),
        (b"8\0", None),
        (b"-1\0", None),
        (b"1\x002", None),
        (&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0], Some(1 << 33)),
        (&[0xff; 12], Some(-1)),
        (&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None),
        (&[0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None),
    ] {
        assert_eq!(number(field), value, "{}", field.escape_ascii());
    }
}

#[test]
fn sparse_files_of_every_version() {
    // Data at 512..515 and 2000..2002 of 3000 bytes.
    let data = b"abcde";
    let mut expected = vec![0; 3000];
    expected[512..515].copy_from_slice(b"abc");
    expected[2000..2002].copy_from_slice(b"de");
    let zero = [
        record("GNU.sparse.size", "3000"),
        record("GNU.sparse.numblocks", "2"),
        record("GNU.sparse.offset", "512"),
        record("GNU.sparse.numbytes", "3"),
        record("GNU.sparse.offset", "2000"),
        record("GNU.sparse.numbytes", "2"),
    ]
    .concat();
    let one = [
        record("GNU.sparse.size", "3000"),
        record("GNU.sparse.numblocks", "2"),
        record("GNU.sparse.name", "s"),
        record("GNU.sparse.map", "512,3,2000,2"),
    ]
    .concat();
    let newest = [
        record("GNU.sparse.major", "1"),
        record("GNU.sparse.minor", "0"),
        record("GNU.sparse.name", "s"),
        record("GNU.sparse.realsize", "3000"),
    ]
    .concat();
    let pair = |block: &mut [u8], at: usize, offset: u64, length: u64| {
        block[at..at + 12].copy_from_slice(format!("{offset:011o}\0").as_bytes());
        block[at + 12..at + 24].copy_from_slice(format!("{length:011o}\0").as_bytes());
    };
    let old = header(b"s", b'S', 5, |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        pair(block, 386, 512, 1);
        pair(block, 410, 513, 1);
        pair(block, 434, 514, 1);
        pair(block, 458, 2000, 1);
        block[482] = 1;
        block[483..495].copy_from_slice(format!("{:011o}\0", 3000).as_bytes());
    });
    let mut more = vec![0; BLOCK];
    pair(&mut more, 0, 2001, 1);
    pair(&mut more, 24, 3000, 0);
    for stream in [
        [
            extension(b'x', zero.as_bytes()),
            header(b"s", b'0', 5, |_| {}),
            padded(data),
        ]
        .concat(),
        [
            extension(b'x', one.as_bytes()),
            header(b"GNUSparseFile.1/s", b'0', 5, |_| {}),
            padded(data),
        ]
        .concat(),
        [
            extension(b'x', newest.as_bytes()),
            header(b"GNUSparseFile.1/s", b'0', 517, |_| {}),
            padded(b"2\n512\n3\n2000\n2\n"),
            padded(data),
        ]
        .concat(),
        [old, more, padded(data)].concat(),
    ] {
        let entries = list(&[stream, header(b"after", b'0', 0, |_| {})].concat()).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].0.path.as_bytes(), b"s");
        assert_eq!(entries[0].1.as_deref(), Some(&expected[..]));
    }
}

#[test]
fn sparse_files_that_could_be_misread_are_refused() {
    let newest = |major: &str, minor: &str| {
        [
            record("GNU.sparse.major", major),
            record("GNU.sparse.minor", minor),
            record("GNU.sparse.realsize", "3000"),
        ]
        .concat()
    };
    let file = |records: &str, size: u64, content: &[u8]| {
        [
            extension(b'x', records.as_bytes()),
            header(b"s", b'0', size, |_| {}),
            content.to_vec(),
        ]
        .concat()
    };
    let long_map = b"1000000\n".repeat(64);
    for stream in [
        file(&newest("1", "1"), 512, &padded(b"0\n")),
        file(&newest("2", "0"), 512, &padded(b"0\n")),
        file(&record("GNU.sparse.map", "0,1"), 1, &padded(b"x")),
        // Maps that are cut, too long for the entry, or lie about the content's size.
        file(&newest("1", "0"), 512, &padded(b"3\n0\n1\n")),
        file(&newest("1", "0"), 512, &long_map),
        file(&newest("1", "0"), 100, &padded(b"0\n")),
        file(
            &newest("1", "0"),
            513,
            &[padded(b"1\n0\n2\n"), padded(b"x")].concat(),
        ),
        file(&newest("1", "0"), 512, &padded(b"99999999\n")),
        file(&newest("1", "0"), 512, &padded(b"123456789012345678901\n")),
        file(&newest("1", "0"), 512, &padded(b"-1\n")),
        // A sparse file of star, which keeps its map elsewhere.
        header(b"s", b'S', 0, |_| {}),
        // Every file would be sparse.
        extension(b'g', record("GNU.sparse.size", "3000").as_bytes()),
    ] {
        let result = list(&stream);
        assert!(
            matches!(
                result,
                Err(TarError::Sparse { .. } | TarError::SparseFormat { .. } | TarError::Pax { .. })
            ),
            "{result:?}"
        );
    }
}

#[test]
fn the_end_of_an_archive() {
    let file = header(b"a", b'0', 0, |_| {});
    let zero = vec![0; BLOCK];
    for (stream, unmarked) in [
        (Vec::new(), true),
        (file.clone(), true),
        ([file.clone(), zero.clone()].concat(), false),
        ([file.clone(), zero.clone(), zero.clone()].concat(), false),
        (
            [file.clone(), zero.clone(), zero.clone(), file.clone()].concat(),
            false,
        ),
    ] {
        let count = usize::from(!stream.is_empty());
        let mut archive = Archive::new(&stream[..]);
        for _ in 0..count {
            assert!(archive.next_entry().unwrap().is_some());
        }
        assert!(archive.next_entry().unwrap().is_none());
        assert_eq!(archive.is_unmarked(), unmarked);
        assert_eq!(archive.is_empty(), stream.is_empty());
    }
    assert!(matches!(
        list(&[file.clone(), zero, file].concat()),
        Err(TarError::Header { .. })
    ));
}

#[test]
fn truncated_streams_are_refused() {
    let stream = [
        extension(b'x', record("path", "name").as_bytes()),
        header(b"a", b'0', 700, |_| {}),
        padded(&[b'x'; 700]),
    ]
    .concat();
    assert_eq!(names(&stream), ["name"]);
    for length in 1..stream.len() {
        assert!(
            matches!(list(&stream[..length]), Err(TarError::Truncated { .. })),
            "{length}"
        );
    }
}

#[test]
fn malformed_headers_are_refused() {
    let mut wrong_sum = header(b"a", b'0', 0, |_| {});
    wrong_sum[0] = b'b';
    for stream in [
        wrong_sum,
        vec![b'x'; BLOCK],
        header(b"a", b'0', 0, |block| block[124..136].fill(b'z')),
        header(b"a", b'0', 0, |block| block[124..136].fill(0xff)),
        header(b"a", b'0', 0, |block| {
            block[124..136]
                .copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]);
        }),
    ] {
        assert!(matches!(list(&stream), Err(TarError::Header { .. })));
    }
    for flag in [b'M', b'N', b'D', b'Q', 0xff] {
        assert!(matches!(
            list(&header(b"a", flag, 0, |_| {})),
            Err(TarError::Type { .. })
        ));
    }
    for stream in [
        header(b"../a", b'0', 0, |_| {}),
        header(b"a/../../b", b'5', 0, |_| {}),
    ] {
        assert!(matches!(list(&stream), Err(TarError::Path { .. })));
    }
    assert!(matches!(
        list(&header(b"a", b'1', 0, |block| block[157..161]
            .copy_from_slice(b"../x"))),
        Err(TarError::LinkPath { .. })
    ));
    assert!(matches!(
        list(&header(b"a", b'2', 0, |_| {})),
        Err(TarError::Symlink { .. })
    ));
    assert!(matches!(
        list(&header(b"a", b'x', 2 << 20, |_| {})),
        Err(TarError::LongExtension { .. })
    ));
    assert!(matches!(
        list(&extension(b'x', b"nonsense")),
        Err(TarError::Pax { .. })
    ));
}

#[test]
fn signed_checksums_are_accepted() {
    let mut block = header(b"\xff\xfe", b'0', 0, |_| {});
    let mut blank = block.clone();
    blank[148..156].copy_from_slice(b"        ");
    let sum: i32 = blank.iter().map(|byte| i32::from(byte.cast_signed())).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(names(&block), ["\\xff\\xfe"]);
}

proptest::proptest! {
    #[test]
    fn damaged_streams_never_panic(
        damage in proptest::collection::vec((0_usize..4096, proptest::num::u8::ANY), 0..8),
        cut in 0_usize..4096,
    ) {
        let mut stream = [
            extension(b'x', [
                record("GNU.sparse.major", "1"),
                record("GNU.sparse.minor", "0"),
                record("GNU.sparse.realsize", "3000"),
            ].concat().as_bytes()),
            header(b"s", b'0', 517, |_| {}),
            padded(b"2\n512\n3\n2000\n2\n"),
            padded(b"abcde"),
            extension(b'L', b"gnu\0"),
            header(b"x", b'0', 3, |_| {}),
            padded(b"abc"),
        ].concat();
        for (at, byte) in damage {
            let at = at % stream.len();
            stream[at] = byte;
            // Keep checksums right, so that the damage reaches what they protect.
            let start = at - at % BLOCK;
            let block = &mut stream[start..start + BLOCK];
            if block[257..262] == *b"ustar" {
                block[148..156].copy_from_slice(b"        ");
                let sum: u32 = block.iter().copied().map(u32::from).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let cut = cut.min(stream.len());
        let mut archive = Archive::new(io::BufReader::with_capacity(300, &stream[..cut]));
        let mut pieces = 0;
        while let Ok(Some(_)) = archive.next_entry() {
            while let Ok(Some(_)) = archive.next_piece() {
                pieces += 1;
                proptest::prop_assert!(pieces < 10_000);
            }
        }
    }
}
