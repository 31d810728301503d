//! How plugin and holder talk.
//!
//! Two texts, each in a file in memory (memfd_create(2)): what is asked for, from the plugin to the holder, and what the container is, from the holder to
//! each task. A text is a list of records `KEY=VALUE`, each ended by a NUL byte: paths and variables hold every other byte. The first says the
//! version, the last that nothing is missing.
//!
//! The way between tasks and holder is a pair of sockets that keep messages apart. The holder has one end, slurmstepd and, until they are executed, its
//! tasks have the other: when it is closed everywhere the step is over. A message is one letter, [`JOIN`], [`FINISH`] or [`OVER`], and a socket for the
//! answer, which is one byte, with the text and the descriptors that it names. Another pair is there for what tasks say of their GPUs ([`crate::gpus`]).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;

use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// A task asks for the container.
pub(crate) const JOIN: u8 = b'j';
/// slurmstepd says that the tasks have ended: the container is saved where that was asked for, and what was made for it is removed.
pub(crate) const FINISH: u8 = b'f';
/// slurmstepd says that the step is over. Where its socket is closed without this, it was killed.
pub(crate) const OVER: u8 = b'e';
/// A task says which GPUs it has, and the word is given with those of all tasks.
pub(crate) const GPUS: u8 = b'g';
/// Done.
pub(crate) const YES: u8 = b'+';
/// Not done.
pub(crate) const NO: u8 = b'-';

/// The first record. Plugin and program are of one release, or say that they are not.
const VERSION: &str = "cista-step=1";
/// The last record.
const END: &str = "end=";

/// Longest text that is read, in bytes.
const MAX_TEXT: u64 = 64 << 20;

/// Most descriptors in an answer: the text, root, working directory, seven namespaces.
const MAX_FILES: usize = 16;

/// A text that is written.
pub(crate) struct Text(Vec<u8>);

impl Text {
    pub(crate) fn new() -> Self {
        let mut text = VERSION.as_bytes().to_vec();
        text.push(0);
        Self(text)
    }

    /// Adds a record. What cannot stand in one is no path and no variable either.
    pub(crate) fn add(&mut self, key: &str, value: impl AsRef<OsStr>) {
        let value = value.as_ref().as_bytes();
        if !value.contains(&0) {
            self.0.extend_from_slice(key.as_bytes());
            self.0.push(b'=');
            self.0.extend_from_slice(value);
            self.0.push(0);
        }
    }

    /// The text as a file.
    ///
    /// # Errors
    ///
    /// Those of memfd_create(2) and write(2).
    pub(crate) fn into_file(mut self) -> io::Result<OwnedFd> {
        self.0.extend_from_slice(END.as_bytes());
        self.0.push(0);
        in_memory(&self.0)
    }
}

/// A sentence for the user, as a file.
///
/// # Errors
///
/// Those of memfd_create(2) and write(2).
pub(crate) fn note(sentence: &str) -> io::Result<OwnedFd> {
    in_memory(sentence.as_bytes())
}

fn in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(c"cista-step", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Reads a text: its records but for the first and the last. None where it is of another version, or not whole.
pub(crate) fn read(file: OwnedFd) -> io::Result<Option<Vec<(String, OsString)>>> {
    let file = File::from(file);
    let size = file.metadata()?.len().min(MAX_TEXT);
    let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
    // Other tasks have the same file, with the same position.
    file.read_exact_at(&mut text, 0)?;
    Ok(parse(&text))
}

fn parse(text: &[u8]) -> Option<Vec<(String, OsString)>> {
    let text = text.strip_suffix(b"\0")?;
    let mut records: Vec<&[u8]> = text.split(|&byte| byte == 0).collect();
    if records.first() != Some(&VERSION.as_bytes()) || records.pop() != Some(END.as_bytes()) {
        return None;
    }
    records
        .iter()
        .skip(1)
        .map(|record| {
            let at = record.iter().position(|&byte| byte == b'=')?;
            let key = std::str::from_utf8(&record[..at]).ok()?;
            Some((
                key.to_owned(),
                OsString::from_vec(record[at + 1..].to_vec()),
            ))
        })
        .collect()
}

/// A pair of sockets that keep messages apart.
///
/// # Errors
///
/// Those of socketpair(2).
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends a letter, with a file where there is one: with a question it is the socket for the answer.
///
/// # Errors
///
/// EPIPE where the other end is closed.
pub(crate) fn send(socket: impl AsFd, letter: u8, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket.as_fd(),
            &[IoSlice::new(&[letter])],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// Receives an answer: its byte and its descriptors. None where the other end was closed without one.
pub(crate) fn receive(socket: impl AsFd) -> Option<(u8, Vec<OwnedFd>)> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .ok()?;
    let files = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect(),
            _ => Vec::new(),
        })
        .collect();
    (received.bytes == 1).then_some((byte[0], files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_back() {
        let mut text = Text::new();
        text.add("env", "A=b=c\nd");
        text.add("bad", "a\0b");
        text.add("empty", "");
        let records = read(text.into_file().unwrap()).unwrap().unwrap();
        assert_eq!(
            records,
            [
                ("env".to_owned(), OsString::from("A=b=c\nd")),
                ("empty".to_owned(), OsString::new())
            ]
        );
    }

    #[test]
    fn what_is_not_whole_is_nothing() {
        for text in [
            &b""[..],
            b"cista-step=1\0",
            b"cista-step=1\0a=b\0",
            b"cista-step=1\0a=b\0end=",
            b"cista-step=2\0end=\0",
            b"cista-step=1\0noequals\0end=\0",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(parse(b"cista-step=1\0end=\0"), Some(vec![]));
    }

    #[test]
    fn answers_and_silence() {
        let (ours, theirs) = pair().unwrap();
        let (answer, other) = pair().unwrap();
        send(&ours, JOIN, Some(other.as_fd())).unwrap();
        drop(other);
        let (letter, files) = receive(&theirs).unwrap();
        assert_eq!((letter, files.len()), (JOIN, 1));
        drop((letter, files));
        assert!(receive(&answer).is_none());
        drop(theirs);
        assert!(send(&ours, FINISH, Some(answer.as_fd())).is_err());
    }
}
