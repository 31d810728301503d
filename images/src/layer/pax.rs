//! Extended headers of the pax interchange format: records `LENGTH KEYWORD=VALUE\n`.
//!
//! POSIX.1-2017, `pax`, "pax Extended Header"; GNU tar's `GNU.sparse.*` and star's `SCHILY.xattr.*` keywords. Values
//! are bytes and may hold anything. A record with an empty value deletes an earlier one. What a keyword says that we do
//! not know (`atime`, `comment`, vendor keywords) cannot change content and is skipped, except unknown `GNU.sparse.`
//! keywords, which could.

use super::sparse::{Extent, MAX_EXTENTS};

/// Longest extended header that is accepted, in bytes; Go's reader, which all engines use, takes as much.
pub const MAX_SIZE: u64 = 1 << 20;

/// Why an extended header is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaxError {
    /// The records are not of the form `LENGTH KEYWORD=VALUE\n`.
    #[error("the extended header's records are malformed")]
    Record,
    /// A value is not what its keyword asks for.
    #[error("the extended header's `{0}` is malformed")]
    Value(&'static str),
    /// Names are in a character set that is neither UTF-8 nor bytes.
    #[error("the extended header's names are in an unknown character set")]
    Charset,
    /// A sparse format that is not known.
    #[error("the sparse format is not known")]
    UnknownSparse,
    /// More extents than a sparse map may have.
    #[error("the sparse map has more than {MAX_EXTENTS} extents")]
    TooManyExtents,
}

/// What extended headers say of an entry; what they do not say stands in the entry's own header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The name.
    pub path: Option<Vec<u8>>,
    /// The target of a link.
    pub link_path: Option<Vec<u8>>,
    /// Bytes that the entry stores.
    pub size: Option<u64>,
    /// Modification time, seconds since 1970 rounded down.
    pub mtime: Option<i64>,
    /// Extended attributes by full name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// What is said of sparse files.
    pub sparse: Sparse,
}

/// The `GNU.sparse.*` keywords.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    /// Version 1.0 and later: major version.
    pub major: Option<u64>,
    /// Version 1.0 and later: minor version.
    pub minor: Option<u64>,
    /// Versions 0.1 and 1.0: the real name.
    pub name: Option<Vec<u8>>,
    /// The real size with holes; `size` in versions 0.0 and 0.1, `realsize` in 1.0.
    pub real_size: Option<u64>,
    /// Versions 0.0 and 0.1: number of extents.
    pub count: Option<u64>,
    /// Versions 0.0 and 0.1: the extents.
    pub extents: Option<Vec<Extent>>,
    /// Version 0.0: an `offset` that waits for its `numbytes`.
    offset: Option<u64>,
}

impl Sparse {
    /// Whether the entry is a sparse file of any version.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        self.major.is_some() || self.real_size.is_some() || self.extents.is_some()
    }
}

impl Attributes {
    /// Takes the records of one extended header; later records win.
    pub fn extend(&mut self, mut records: &[u8]) -> Result<(), PaxError> {
        while !records.is_empty() {
            let (key, value, rest) = split_record(records)?;
            self.set(key, value)?;
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        let number = |name| {
            if value.is_empty() {
                return Ok(None);
            }
            decimal(value).map(Some).ok_or(PaxError::Value(name))
        };
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link_path = bytes(),
            b"size" => self.size = number("size")?,
            b"mtime" => {
                self.mtime = if value.is_empty() {
                    None
                } else {
                    Some(time(value).ok_or(PaxError::Value("mtime"))?)
                }
            }
            b"hdrcharset" => {
                if ![&b""[..], b"BINARY", b"ISO-IR 10646 2000 UTF-8"].contains(&value) {
                    return Err(PaxError::Charset);
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(known, _)| known != name);
                    // An empty value is a value here: extended attributes may be empty, and GNU tar and Go write them so.
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(keyword) = key.strip_prefix(b"GNU.sparse.") {
                    self.set_sparse(keyword, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_sparse(&mut self, keyword: &[u8], value: &[u8]) -> Result<(), PaxError> {
        let number = |name| decimal(value).ok_or(PaxError::Value(name));
        let sparse = &mut self.sparse;
        match keyword {
            b"major" => sparse.major = Some(number("GNU.sparse.major")?),
            b"minor" => sparse.minor = Some(number("GNU.sparse.minor")?),
            b"name" => sparse.name = Some(value.to_vec()),
            b"size" => sparse.real_size = Some(number("GNU.sparse.size")?),
            b"realsize" => sparse.real_size = Some(number("GNU.sparse.realsize")?),
            b"numblocks" => {
                sparse.count = Some(number("GNU.sparse.numblocks")?);
                sparse.extents.get_or_insert_default();
            }
            b"offset" => {
                if sparse
                    .offset
                    .replace(number("GNU.sparse.offset")?)
                    .is_some()
                {
                    return Err(PaxError::Value("GNU.sparse.offset"));
                }
            }
            b"numbytes" => {
                let length = number("GNU.sparse.numbytes")?;
                let offset = sparse
                    .offset
                    .take()
                    .ok_or(PaxError::Value("GNU.sparse.numbytes"))?;
                let extents = sparse.extents.get_or_insert_default();
                if extents.len() == MAX_EXTENTS {
                    return Err(PaxError::TooManyExtents);
                }
                extents.push(Extent { offset, length });
            }
            b"map" => {
                let malformed = || PaxError::Value("GNU.sparse.map");
                let mut numbers = value.split(|byte| *byte == b',');
                let mut extents = Vec::new();
                while let Some(offset) = numbers.next() {
                    if value.is_empty() {
                        break;
                    }
                    let length = numbers.next().ok_or_else(malformed)?;
                    if extents.len() == MAX_EXTENTS {
                        return Err(PaxError::TooManyExtents);
                    }
                    extents.push(Extent {
                        offset: decimal(offset).ok_or_else(malformed)?,
                        length: decimal(length).ok_or_else(malformed)?,
                    });
                }
                sparse.extents = Some(extents);
            }
            _ => return Err(PaxError::UnknownSparse),
        }
        Ok(())
    }

    /// Lays the attributes of an entry's own extended header over global ones.
    #[must_use]
    pub fn over(self, globals: &Self) -> Self {
        let mut xattrs = globals.xattrs.clone();
        xattrs.retain(|(name, _)| self.xattrs.iter().all(|(own, _)| own != name));
        xattrs.extend(self.xattrs);
        Self {
            path: self.path.or_else(|| globals.path.clone()),
            link_path: self.link_path.or_else(|| globals.link_path.clone()),
            size: self.size.or(globals.size),
            mtime: self.mtime.or(globals.mtime),
            xattrs,
            sparse: self.sparse,
        }
    }
}

/// A record's keyword and value, and the records after it.
type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The first record.
fn split_record(records: &[u8]) -> Result<Split<'_>, PaxError> {
    // A length of a record of at most MAX_SIZE bytes has at most 7 digits; leading zeros are not worth more.
    let space = records
        .iter()
        .take(20)
        .position(|byte| *byte == b' ')
        .ok_or(PaxError::Record)?;
    let length = decimal(&records[..space])
        .and_then(|length| usize::try_from(length).ok())
        .ok_or(PaxError::Record)?;
    let (record, rest) = records.split_at_checked(length).ok_or(PaxError::Record)?;
    let record = record
        .get(space + 1..)
        .and_then(|record| record.strip_suffix(b"\n"))
        .ok_or(PaxError::Record)?;
    let equals = record
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or(PaxError::Record)?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    if key.is_empty() {
        return Err(PaxError::Record);
    }
    Ok((key, value, rest))
}

/// A decimal number of ASCII digits alone.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Whole seconds of a time such as `-12.5`, rounded down.
fn time(value: &[u8]) -> Option<i64> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let whole = parts.next()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if negative {
        let below = i64::from(fraction.iter().any(|digit| *digit != b'0'));
        seconds.checked_neg()?.checked_sub(below)
    } else {
        Some(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length.to_string().len() + body != length {
            length += 1;
        }
        let mut record = format!("{length} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        record
    }

    fn parse(records: &[(&str, &[u8])]) -> Result<Attributes, PaxError> {
        let mut attributes = Attributes::default();
        let text: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        attributes.extend(&text)?;
        Ok(attributes)
    }

    #[test]
    fn known_keywords() {
        let attributes = parse(&[
            ("path", b"a\nb=\xff"),
            ("linkpath", b"c"),
            ("size", b"8589934592"),
            ("mtime", b"1.9"),
            ("uid", b"1000"),
            ("SCHILY.xattr.user.x", b"\0=\n"),
            ("SCHILY.xattr.user.y", b""),
            ("comment", b"whatever"),
        ])
        .unwrap();
        assert_eq!(attributes.path.unwrap(), b"a\nb=\xff");
        assert_eq!(attributes.link_path.unwrap(), b"c");
        assert_eq!(attributes.size, Some(1 << 33));
        assert_eq!(attributes.mtime, Some(1));
        assert_eq!(
            attributes.xattrs,
            [
                (b"user.x".to_vec(), b"\0=\n".to_vec()),
                (b"user.y".to_vec(), Vec::new())
            ]
        );
    }

    #[test]
    fn later_and_empty_records_win() {
        let attributes = parse(&[
            ("path", b"a"),
            ("path", b"b"),
            ("size", b"1"),
            ("size", b""),
        ]);
        let attributes = attributes.unwrap();
        assert_eq!(attributes.path.unwrap(), b"b");
        assert_eq!(attributes.size, None);
    }

    #[test]
    fn an_entrys_own_records_lie_over_global_ones() {
        let globals = parse(&[
            ("mtime", b"5"),
            ("SCHILY.xattr.user.a", b"1"),
            ("SCHILY.xattr.user.b", b"1"),
        ]);
        let own = parse(&[("SCHILY.xattr.user.a", b"2")]);
        let both = own.unwrap().over(&globals.unwrap());
        assert_eq!(both.mtime, Some(5));
        assert_eq!(
            both.xattrs,
            [
                (b"user.b".to_vec(), b"1".to_vec()),
                (b"user.a".to_vec(), b"2".to_vec())
            ]
        );
    }

    #[test]
    fn times_are_rounded_down() {
        for (text, seconds) in [
            ("0", Some(0)),
            ("1700000000.999999999", Some(1_700_000_000)),
            ("-1", Some(-1)),
            ("-1.5", Some(-2)),
            ("-1.0", Some(-1)),
            ("1.", Some(1)),
            ("", None),
            (".5", None),
            ("1e9", None),
            ("--1", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), seconds, "{text}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for text in [
            &b"x"[..],
            b"10 path=a",
            b"99 path=a\n",
            b"0 path=a\n",
            b"2 \n",
            b"9 path=a\n\0",
            b"7 path\n",
            b"5 =a\n",
            b"-9 path=a\n",
            b"99999999999999999999 path=a\n",
            b"9 size=a\n",
        ] {
            assert!(
                Attributes::default().extend(text).is_err(),
                "{}",
                text.escape_ascii()
            );
        }
        assert!(parse(&[("hdrcharset", b"KOI8")]).is_err());
        assert!(parse(&[("GNU.sparse.new", b"1")]).is_err());
        assert!(parse(&[("GNU.sparse.map", b"1,2,3")]).is_err());
        assert!(parse(&[("GNU.sparse.numbytes", b"1")]).is_err());
        assert!(parse(&[("GNU.sparse.offset", b"1"), ("GNU.sparse.offset", b"2")]).is_err());
    }

    #[test]
    fn sparse_maps() {
        let expected = [
            Extent {
                offset: 0,
                length: 1,
            },
            Extent {
                offset: 8,
                length: 2,
            },
        ];
        let zero = parse(&[
            ("GNU.sparse.size", b"10"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"1"),
            ("GNU.sparse.offset", b"8"),
            ("GNU.sparse.numbytes", b"2"),
        ])
        .unwrap();
        assert_eq!(zero.sparse.extents.as_deref(), Some(&expected[..]));
        assert_eq!(zero.sparse.real_size, Some(10));
        let one = parse(&[("GNU.sparse.map", b"0,1,8,2")]).unwrap();
        assert_eq!(one.sparse.extents.as_deref(), Some(&expected[..]));
        assert!(!Attributes::default().sparse.is_sparse());
        assert!(zero.sparse.is_sparse() && one.sparse.is_sparse());
    }
}
