//! The header block of an entry: fixed fields, whose meaning depends on the dialect.

use super::BLOCK;
use crate::tree::{Metadata, Xattrs};

/// The dialects that differ in the meaning of bytes 257 to 511.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// The fields of a header that every entry has.
pub(super) struct Header {
    /// The type of the entry.
    pub(super) flag: u8,
    pub(super) format: Format,
    /// Size of the stored content in bytes.
    pub(super) size: u64,
    mode: u16,
    mtime: i64,
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let expected = number(&block[148..156]).ok_or("its checksum is no number")?;
        let in_field = |at: &usize| (148..156).contains(at);
        let byte = |(at, byte): (usize, &u8)| if in_field(&at) { b' ' } else { *byte };
        let unsigned: i64 = block
            .iter()
            .enumerate()
            .map(|pair| i64::from(byte(pair)))
            .sum();
        let signed: i64 = block
            .iter()
            .enumerate()
            .map(|pair| i64::from(byte(pair).cast_signed()))
            .sum();
        if expected != unsigned && expected != signed {
            return Err("its checksum is wrong");
        }
        let flag = block[156];
        let size = number(&block[124..136])
            .and_then(|size| u64::try_from(size).ok())
            .ok_or("its size is no number")?;
        let format = match &block[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") => {
                if &block[508..512] == b"tar\0" {
                    Format::Star
                } else {
                    Format::Ustar
                }
            }
            _ => Format::V7,
        };
        Ok(Self {
            flag,
            format,
            // Content of more than an exbibyte cannot be padded within 64 bits, nor exist.
            size: (size < 1 << 60)
                .then_some(size)
                .ok_or("its size is absurd")?,
            // The low 12 bits are the permissions; what some programs put above them is the type, which `flag` tells.
            mode: (number(&block[100..108]).ok_or("its mode is no number")? & 0o7777) as u16,
            mtime: number(&block[136..148]).ok_or("its time is no number")?,
        })
    }

    /// The name in the header itself.
    pub(super) fn name(&self, block: &[u8; BLOCK]) -> Vec<u8> {
        let name = until_nul(&block[..100]);
        let prefix = match self.format {
            Format::Ustar => until_nul(&block[345..500]),
            Format::Star => until_nul(&block[345..476]),
            Format::V7 | Format::Gnu => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn metadata(&self, mtime: Option<i64>, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Metadata {
        let seconds = mtime.unwrap_or(self.mtime).clamp(0, i64::from(u32::MAX));
        let kept: Xattrs = xattrs
            .into_iter()
            .filter(|(name, value)| is_kept(name) && value.len() <= MAX_XATTR_VALUE)
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Metadata {
            mode: self.mode,
            uid: 0,
            gid: 0,
            // Lossless: clamped above.
            mtime: seconds as u32,
            xattrs: (!kept.is_empty()).then(|| Box::new(kept)),
        }
    }
}

/// Longest value of an extended attribute that Linux takes (`XATTR_SIZE_MAX`).
const MAX_XATTR_VALUE: usize = 65536;
/// Longest name of an extended attribute that Linux takes (`XATTR_NAME_MAX`).
const MAX_XATTR_NAME: usize = 255;

/// Whether an extended attribute is kept: those of users, and file capabilities. The rest belongs to the machine that
/// the image was built on (SELinux labels, ACLs, trusted data). `user.overlay.` is what overlayfs itself reads in
/// a user namespace, so an image could hide or redirect files with it; it is dropped.
fn is_kept(name: &[u8]) -> bool {
    let user = name.strip_prefix(b"user.").is_some_and(|rest| {
        !rest.is_empty() && !rest.starts_with(b"overlay.") && !rest.contains(&0)
    });
    (user && name.len() <= MAX_XATTR_NAME) || name == b"security.capability"
}

/// Bytes that fill the last block of content of `size` bytes.
pub(super) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A number of a header: octal text between spaces and NULs (nothing is 0), or binary when the first bit is set (GNU's
/// base-256, two's complement).
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Bit 6 of the first byte is the sign.
        let start = if first & 0x40 != 0 {
            i64::from(*first) - 0x100
        } else {
            i64::from(first & 0x3f)
        };
        return rest.iter().try_fold(start, |number, byte| {
            number.checked_mul(256)?.checked_add(i64::from(*byte))
        });
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(blank) {
        return None;
    }
    digits[..end].iter().try_fold(0_i64, |number, byte| {
        let digit = (b'0'..=b'7')
            .contains(byte)
            .then(|| i64::from(byte - b'0'))?;
        number.checked_mul(8)?.checked_add(digit)
    })
}
