//! A pretended kernel at the other end of a socket. It keeps message borders as `/dev/fuse` does, and knows the protocol on its own:
//! offsets and numbers are written down here again, from `include/uapi/linux/fuse.h`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::Duration;

use cista::fuse::{Foresight, Options, ServeError, serve};
use cista_images::squashfs::reader::Reader;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

pub(crate) const LOOKUP: u32 = 1;
pub(crate) const FORGET: u32 = 2;
pub(crate) const GETATTR: u32 = 3;
pub(crate) const READLINK: u32 = 5;
pub(crate) const OPEN: u32 = 14;
pub(crate) const READ: u32 = 15;
pub(crate) const STATFS: u32 = 17;
pub(crate) const GETXATTR: u32 = 22;
pub(crate) const LISTXATTR: u32 = 23;
pub(crate) const INIT: u32 = 26;
pub(crate) const READDIR: u32 = 28;
pub(crate) const READDIRPLUS: u32 = 44;

pub(crate) const UID: u32 = 1234;
pub(crate) const GID: u32 = 5678;

pub(crate) struct Kernel {
    socket: Option<OwnedFd>,
    server: Option<JoinHandle<Result<(), ServeError>>>,
    unique: u64,
}

/// What READ, READDIR and READDIRPLUS say.
pub(crate) fn read_in(offset: u64, size: u32) -> Vec<u8> {
    let mut body = vec![0; 40];
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..20].copy_from_slice(&size.to_ne_bytes());
    body
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The answer to LOOKUP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) node: u64,
    pub(crate) number: u64,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) time: u64,
    pub(crate) valid: u64,
}

pub(crate) fn entry(bytes: &[u8]) -> Entry {
    let attributes = &bytes[40..128];
    Entry {
        node: u64_at(bytes, 0),
        valid: u64_at(bytes, 16),
        number: u64_at(attributes, 0),
        size: u64_at(attributes, 8),
        time: u64_at(attributes, 32),
        mode: u32_at(attributes, 60),
        links: u32_at(attributes, 64),
        owner: (u32_at(attributes, 68), u32_at(attributes, 72)),
    }
}

impl Kernel {
    /// Starts a server without INIT.
    pub(crate) fn bare(image: File, cache_bytes: usize, threads: usize) -> Self {
        Self::foreseeing(image, cache_bytes, threads, None)
    }

    /// Starts a server that knows what will be read, without INIT.
    pub(crate) fn foreseeing(
        image: File,
        cache_bytes: usize,
        threads: usize,
        foresight: Option<Foresight>,
    ) -> Self {
        let (kernel, device) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        // A server that does not answer fails the test instead of hanging it.
        let patience = Some(Duration::from_secs(60));
        sockopt::set_socket_timeout(&kernel, sockopt::Timeout::Recv, patience).unwrap();
        let options = Options {
            uid: UID,
            gid: GID,
            cache_bytes,
            threads: Some(threads),
            unmounted: || {},
        };
        let server = std::thread::spawn(move || {
            serve(
                move || Some(device),
                Reader::open(image, 0).unwrap(),
                &options,
                foresight,
            )
        });
        Self {
            socket: Some(kernel),
            server: Some(server),
            unique: 0,
        }
    }

    /// Starts a server and agrees with it.
    pub(crate) fn start(image: File) -> Self {
        Self::with(image, 16 << 20, 4)
    }

    pub(crate) fn with(image: File, cache_bytes: usize, threads: usize) -> Self {
        let mut kernel = Self::bare(image, cache_bytes, threads);
        let answer = kernel.ask(INIT, 0, &init_in(7, 38)).unwrap();
        assert_eq!(answer.len(), 64);
        assert_eq!(u32_at(&answer, 0), 7);
        kernel
    }

    /// Sends a request; what its answer will repeat.
    pub(crate) fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        self.unique += 2;
        let mut message = Vec::with_capacity(40 + body.len());
        message.extend_from_slice(&(40 + body.len() as u32).to_ne_bytes());
        message.extend_from_slice(&opcode.to_ne_bytes());
        message.extend_from_slice(&self.unique.to_ne_bytes());
        message.extend_from_slice(&node.to_ne_bytes());
        message.resize(40, 0);
        message.extend_from_slice(body);
        let socket = self.socket.as_ref().unwrap();
        assert_eq!(rustix::io::write(socket, &message).unwrap(), message.len());
        self.unique
    }

    /// The next answer: what it repeats, and its bytes or the error number.
    pub(crate) fn receive(&mut self) -> (u64, Result<Vec<u8>, i32>) {
        let mut message = vec![0; 1 << 21];
        let length = rustix::io::read(self.socket.as_ref().unwrap(), &mut message[..]).unwrap();
        message.truncate(length);
        assert_eq!(
            u32_at(&message, 0) as usize,
            length,
            "the length of an answer"
        );
        let error = u32_at(&message, 4).cast_signed();
        let unique = u64_at(&message, 8);
        if error == 0 {
            (unique, Ok(message.split_off(16)))
        } else {
            assert_eq!(length, 16, "an error carries nothing");
            (unique, Err(-error))
        }
    }

    /// The next message, which nobody asked for, is content of a file: its node, offset and bytes.
    pub(crate) fn receive_store(&mut self) -> (u64, u64, Vec<u8>) {
        let mut message = vec![0; 1 << 21];
        let length = rustix::io::read(self.socket.as_ref().unwrap(), &mut message[..]).unwrap();
        message.truncate(length);
        assert_eq!(u32_at(&message, 0) as usize, length);
        assert_eq!((u32_at(&message, 4), u64_at(&message, 8)), (4, 0));
        let content = message.split_off(40);
        assert_eq!(u32_at(&message, 32) as usize, content.len());
        (u64_at(&message, 16), u64_at(&message, 24), content)
    }

    pub(crate) fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let unique = self.send(opcode, node, body);
        let (answered, result) = self.receive();
        assert_eq!(answered, unique);
        result
    }

    pub(crate) fn lookup(&mut self, node: u64, name: &[u8]) -> Result<Entry, i32> {
        let name: Vec<u8> = name.iter().copied().chain([0]).collect();
        self.ask(LOOKUP, node, &name).map(|bytes| entry(&bytes))
    }

    pub(crate) fn read(&mut self, node: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        self.ask(READ, node, &read_in(offset, size))
    }

    /// Hangs up; how the server ended.
    pub(crate) fn stop(mut self) -> Result<(), ServeError> {
        self.socket = None;
        self.server.take().unwrap().join().unwrap()
    }
}

pub(crate) fn init_in(major: u32, minor: u32) -> Vec<u8> {
    let mut body = vec![0; 64];
    body[..4].copy_from_slice(&major.to_ne_bytes());
    body[4..8].copy_from_slice(&minor.to_ne_bytes());
    body[8..12].copy_from_slice(&131_072_u32.to_ne_bytes());
    body[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
    body
}
