//! Damaged and hostile texts for the parsers of settings: they are understood or refused with the place, in bounded time and memory.
//!
//! `CISTA_FUZZ_CASES` makes the campaign longer, `CISTA_FUZZ_SEED` begins it elsewhere. A case depends on its number alone.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use cista::config::enroot;
use cista::config::file::TomlFile;
use cista::container::environment::Environment;
use cista::container::fstab;

/// Longest that a case may take: ten thousand times what it does.
const PATIENCE: Duration = Duration::from_secs(10);

const FSTAB: &[u8] = b"# comment
proc /proc proc rw,nosuid,nodev,noexec 0 0
/etc/resolv.conf /etc/resolv.conf none x-create=file,bind,ro,nosuid,nodev,noexec,nofail,silent 0 -1
tmpfs /tmp tmpfs x-create=dir,mode=755,size=10% 0 0
${HOME}/a\\040b ${TARGET}/x none x-create=auto,rbind,rslave 0 1
${ENROOT_ROOTFS}/dev ${ENROOT_ROOTFS}/d none x-move
none /gone none x-detach
/data /data
";

const ENVIRON: &[u8] = b"PATH=/usr/bin:${PATH}
QUOTED=\"a b\"
_X='1'
# comment
EMPTY=
HOME=${HOME}${NOT_SET}${}${1}${A
";

const CONF: &[u8] = b"#ENROOT_ROOTFS=/x.sqsh
ENROOT_RUNTIME_PATH  ${XDG_RUNTIME_DIR}/enroot
ENROOT_MAX_PROCESSORS=4
#CISTA_ROOTFS_WRITABLE=yes
environ() { :; }
";

const TOML: &[u8] = b"[paths]
cache = \"${HOME}/cache\"
[limits]
max_processors = 4
image_cache_size = \"256M\"
[start]
dev = \"private\"
root = true
[registries.\"r.example\"]
mirrors = [\"m.example\", { host = \"n.example\", insecure = true }]
[policy]
allowed = [\"r.example/*\"]
";

/// Pieces that parsers trip over.
const PIECES: &[&[u8]] = &[
    b"${",
    b"}",
    b"${${${${",
    b"\\",
    b"\\8",
    b"\\777",
    b"\0",
    b"\xff\xfe",
    b"\x1b[2J",
    b"\n",
    b",,,,",
    b":",
    b"::::::",
    b"=",
    b"x-create=",
    b"99999999999999999999",
    b"-",
    b"\"",
    b"'",
    b"[[[[[[",
    b"{",
    b"\"\"\"",
    b"a = 1\na = 2\n",
    b"#",
    b" \t ",
];

/// Pseudo-random numbers (xorshift), the same for a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit.max(1) as u64) as usize
    }
}

/// A sample with a few changes, now and then very long.
fn damaged(sample: &[u8], random: &mut Random) -> Vec<u8> {
    let mut text = sample.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(text.len() + 1);
        let piece = PIECES[random.below(PIECES.len())];
        match random.below(5) {
            0 => {
                let end = (at + random.below(40)).min(text.len());
                text.drain(at..end);
            }
            1 if random.below(40) == 0 => {
                let long = piece.repeat((1 << 20) / piece.len());
                text.splice(at..at, long);
            }
            2 if at < text.len() => text[at] ^= 1 << random.below(8),
            3 => {
                let end = (at + random.below(80)).min(text.len());
                let copied = text[at..end].to_vec();
                let to = random.below(text.len() + 1);
                text.splice(to..to, copied);
            }
            _ => {
                text.splice(at..at, piece.iter().copied());
            }
        }
    }
    text
}

/// The error and all its causes.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn host(name: &OsStr) -> Option<OsString> {
    match name.as_bytes() {
        b"HOME" => Some("/home/user".into()),
        b"PATH" => Some("/bin".repeat(10_000).into()),
        _ => None,
    }
}

#[test]
fn damaged_settings_are_refused_with_their_place() {
    let number =
        |name, usual: u64| std::env::var(name).map_or(usual, |text| text.parse::<u64>().unwrap());
    let first = number("CISTA_FUZZ_SEED", 0);
    let (mut understood, mut refused) = (0, 0);
    for case in first..first + number("CISTA_FUZZ_CASES", 4000) {
        let mut random = Random(case.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let begun = Instant::now();
        let mut error = None;
        match case % 5 {
            0 => {
                let text = damaged(FSTAB, &mut random);
                let path = Path::new("x.fstab");
                match fstab::parse_file(path, &text, &|name| host(name)) {
                    Ok(entries) => assert!(entries.len() <= text.len()),
                    Err(found) => {
                        let found = chain(&found);
                        assert!(found.starts_with("x.fstab:"), "case {case}: {found}");
                        error = Some(found);
                    }
                }
            }
            1 => {
                let text = damaged(b"/a b:/c:none:bind,ro,x-create=dir:0:1", &mut random);
                if let Err(found) = fstab::parse_option(OsStr::from_bytes(&text)) {
                    error = Some(chain(&found));
                }
            }
            2 => {
                let mut environment = Environment::default();
                let text = damaged(ENVIRON, &mut random);
                environment.set_lines(&text, host);
                let bytes: usize = environment.iter().map(|(_, value)| value.len()).sum();
                assert!(bytes <= text.len() + (4 << 20), "case {case}: {bytes}");
                assert!(environment.strings().len() <= environment.iter().count());
            }
            3 => {
                let text = damaged(CONF, &mut random);
                for (name, _) in enroot::directives(&text) {
                    let known = ["ENROOT_", "CISTA_"].iter().any(|it| name.starts_with(it));
                    assert!(known, "case {case}: {name}");
                }
            }
            _ => {
                let mut text = damaged(TOML, &mut random);
                // The file is the user's own: that the parser takes long for some of a megabyte harms nobody else.
                text.truncate(64 << 10);
                let text = String::from_utf8_lossy(&text).into_owned();
                let path = Path::new("x.toml");
                let variable = |name: &str| host(OsStr::new(name));
                if let Err(found) = TomlFile::parse(path, text, false, &variable) {
                    error = Some(chain(&found));
                }
            }
        }
        match error {
            Some(text) => {
                refused += 1;
                assert!(text.len() > 10, "case {case}: {text}");
            }
            None => understood += 1,
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "case {case}: {:?}",
            begun.elapsed()
        );
    }
    assert!(understood > 100 && refused > 100, "{understood} {refused}");
}
