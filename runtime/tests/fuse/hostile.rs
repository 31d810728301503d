//! Images that are damaged or made to harm: whatever is asked of the server, it answers or refuses, in bounded time and memory, and ends as it should.
//!
//! `CISTA_FUZZ_CASES` makes the campaign longer, `CISTA_FUZZ_SEED` begins it elsewhere. A case depends on its number alone.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use cista_images::cancel::Cancel;
use cista_images::squashfs::compression::Compression;
use cista_images::squashfs::reader::Reader;
use cista_images::squashfs::writer::{Options, Writer};
use cista_images::tree::{Kind, Tree};

use crate::image::{Builder, content, metadata};
use crate::kernel::{
    GETATTR, GETXATTR, Kernel, LISTXATTR, LOOKUP, READ, READDIR, READDIRPLUS, READLINK, STATFS,
    read_in, u32_at, u64_at,
};

/// The pretended kernel's socket takes no larger messages.
const LARGEST: u64 = 64 << 10;

/// Longest that the questions of one case may take: a thousand times what they do.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pseudo-random numbers (xorshift), the same for a seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }
}

/// A small image with everything in it, its tables stored so that a changed byte is a changed field.
fn sample(compression: Compression) -> Vec<u8> {
    let options = Options {
        block_size: 4096,
        threads: 2,
        compression,
        ..Options::default()
    };
    let file = tempfile::tempfile().unwrap();
    let mut builder = Builder {
        writer: Writer::new(file, options, Cancel::new()).unwrap(),
        tree: Tree::new(metadata(0o755, &[("user.root", b"value")])),
    };
    for number in 0..30_u64 {
        let name = format!("directory {number}");
        let inside = builder.directory(Tree::ROOT, name.as_bytes());
        for file in 0..8_u64 {
            let bytes = content(number * 100 + file, (number * file * 199) as usize);
            builder.file(inside, format!("file {file}").as_bytes(), &bytes);
        }
    }
    let mut holes = content(3, 5000);
    holes.resize(40_000, 0);
    holes.extend(content(4, 9000));
    let holes = builder.file(Tree::ROOT, b"holes", &holes);
    builder.tree.link(Tree::ROOT, b"hard link", holes);
    let tags: Vec<(String, Vec<u8>)> = (0..20)
        .map(|tag| (format!("user.tag{tag}"), content(tag, 100 * tag as usize)))
        .collect();
    let tags: Vec<(&str, &[u8])> = tags
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_slice()))
        .collect();
    let target = b"directory 1/file 2".as_slice();
    let kind = Kind::Symlink(target.into());
    builder.add(Tree::ROOT, b"link", metadata(0o777, &tags), kind);
    builder.add(Tree::ROOT, b"pipe", metadata(0o600, &tags[..3]), Kind::Fifo);
    let file = builder.finish();
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Values that sizes, counts and offsets are not checked for.
const EXTREMES: [u64; 8] = [
    0,
    1,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    u64::MAX,
];

/// Damages a few places: of the superblock, of the tables behind the data, or anywhere.
fn damage(image: &mut Vec<u8>, random: &mut Random) {
    let all_tables = u64::from_le_bytes(*image[64..].first_chunk().unwrap());
    for _ in 0..=random.below(4) {
        let length = image.len() as u64;
        let tables = all_tables.min(length - 1);
        let at = match random.below(4) {
            0 => random.below(96),
            3 => random.below(length),
            _ => tables + random.below(length - tables),
        } as usize;
        match random.below(5) {
            0 => image[at] ^= 1 << random.below(8),
            1 => image[at] = random.below(256) as u8,
            2 => {
                // What stands elsewhere: references that are valid, and lead round in circles.
                let from = tables as usize + random.below(length - tables) as usize;
                let piece: Vec<u8> = image[from..].iter().take(8).copied().collect();
                for (to, byte) in image[at..].iter_mut().zip(piece) {
                    *to = byte;
                }
            }
            3 => {
                let value = EXTREMES[random.below(8) as usize].to_le_bytes();
                let width = [2, 4, 8][random.below(3) as usize];
                for (to, byte) in image[at..].iter_mut().zip(value).take(width) {
                    *to = byte;
                }
            }
            _ if random.below(8) == 0 => image.truncate(at.max(96)),
            _ => image[at] = image[at].wrapping_add(1),
        }
    }
}

/// Asks at random, most of it about what answers have told. Returns how many answers were no errors.
fn interrogate(kernel: &mut Kernel, random: &mut Random) -> usize {
    let mut nodes = vec![1];
    let mut answers = 0;
    for _ in 0..60 {
        let node = match random.below(10) {
            0 => random.below(u64::MAX),
            1 => random.below(1 << 20),
            _ => nodes[random.below(nodes.len() as u64) as usize],
        };
        let offset = match random.below(4) {
            0 => EXTREMES[random.below(8) as usize],
            1 => random.below(1 << 18),
            _ => 0,
        };
        let size = 1 + random.below(LARGEST) as u32;
        let answer = match random.below(9) {
            0 => kernel.ask(GETATTR, node, &[0; 16]),
            1 => kernel.ask(READLINK, node, &[]),
            2 | 3 => kernel.ask(READ, node, &read_in(offset, size)),
            4 => kernel.ask(READDIR, node, &read_in(offset, size)),
            5 => kernel.ask(LISTXATTR, node, &[0, 0, 1, 0, 0, 0, 0, 0]),
            6 => kernel.ask(GETXATTR, node, b"\0\0\x01\0\0\0\0\0user.tag7\0"),
            7 => {
                let names: [&[u8]; 4] = [b"directory 7\0", b"file 3\0", b"\0", b"../holes\0"];
                let found = kernel.ask(LOOKUP, node, names[random.below(4) as usize]);
                nodes.extend(found.iter().map(|entry| u64_at(entry, 0)));
                found
            }
            _ => {
                let found = kernel.ask(READDIRPLUS, node, &read_in(offset, size));
                if let Ok(entries) = &found {
                    told(entries, &mut nodes);
                }
                found
            }
        };
        answers += usize::from(answer.is_ok());
        nodes.truncate(500);
    }
    kernel.ask(STATFS, 1, &[]).unwrap();
    answers
}

/// The nodes of a listing's entries, each of which is what LOOKUP says, and a `struct fuse_dirent`.
fn told(listing: &[u8], nodes: &mut Vec<u64>) {
    let mut at = 0;
    while at + 152 <= listing.len() {
        nodes.push(u64_at(listing, at));
        let name = u32_at(listing, at + 144) as usize;
        assert!(name > 0 && name <= 256, "a name of {name} bytes");
        at += (152 + name).next_multiple_of(8);
    }
    assert_eq!(at, listing.len(), "an entry was cut short");
}

#[test]
fn damaged_images_are_answered_for() {
    let number =
        |name, usual| std::env::var(name).map_or(usual, |text| text.parse::<u64>().unwrap());
    let samples = [Compression::None, Compression::default()].map(sample);
    let cases = number("CISTA_FUZZ_CASES", 400);
    let first = number("CISTA_FUZZ_SEED", 0);
    let (mut served, mut answered) = (0, 0);
    for case in first..first + cases {
        let mut random = Random::new(case);
        // Tables that are not compressed are reached more often.
        let mut image = samples[usize::from(case % 4 == 3)].clone();
        if case != first {
            damage(&mut image, &mut random);
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&image, 0).unwrap();
        let open = |file: &File| Reader::open(file.try_clone().unwrap(), 0);
        if open(&file).is_err() {
            continue;
        }
        served += 1;
        let begin = Instant::now();
        let mut kernel = Kernel::with(file, 1 << 20, 2);
        let answers = interrogate(&mut kernel, &mut random);
        let stopped = kernel.stop();
        assert!(stopped.is_ok(), "case {case}: {stopped:?}");
        assert!(
            begin.elapsed() < PATIENCE,
            "case {case}: {:?}",
            begin.elapsed()
        );
        answered += answers;
    }
    // The damage leaves something to ask about, and the questions something to answer.
    assert!(served > cases / 3, "{served} of {cases}");
    assert!(answered as u64 > served * 10, "{answered} of {served}");
}
