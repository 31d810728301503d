//! A TCP proxy that makes loopback a long, narrow or broken way.
//!
//! Kernels of test machines often lack netem (tc-netem(8)), so what it would do to packets is done to bytes here: they are delayed, the
//! rate of all connections together is limited, and connections are cut. A connection may have a few MiB under way in each direction, as
//! with the window of TCP, and making one costs a round trip.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{HarnessError, IoContext as _};

/// Bytes that are passed on at once.
const PIECE: usize = 64 << 10;
/// Pieces that may be under way in one direction of a connection: 4 MiB.
const UNDER_WAY: usize = 64;

/// What the way is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    /// How long a byte is under way, in one direction.
    pub delay: Duration,
    /// Bytes that may come from the server in a second, over all connections; None for as many as can.
    pub rate: Option<u64>,
    /// Cuts each connection after some bytes from the server, fewer than `most`; which number it is follows from `seed`.
    pub cuts: Option<Cuts>,
}

/// How connections are cut.
#[derive(Clone, Copy, Debug)]
pub struct Cuts {
    /// What the numbers follow from.
    pub seed: u64,
    /// Bytes that no connection brings.
    pub most: u64,
}

impl Cuts {
    /// After how many bytes a connection is cut, by its number.
    fn of_connection(self, number: u64) -> u64 {
        // splitmix64: each number gives another, evenly spread.
        let mut z = self
            .seed
            .wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % self.most.max(1)
    }
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    way: Way,
    /// When the next byte from the server may come, where the rate is limited.
    free: Mutex<Instant>,
    passed: AtomicU64,
    connections: AtomicU64,
    stopped: AtomicBool,
}

/// A running proxy; it stops when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts a proxy on loopback before a server there.
    pub fn start(upstream: SocketAddr, way: Way) -> Result<Self, HarnessError> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind a port of", "127.0.0.1")?;
        let address = listener.local_addr().context("ask for", "a port")?;
        let shared = Arc::new(Shared {
            upstream,
            way,
            free: Mutex::new(Instant::now()),
            passed: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A connection that fails is what its two ends see; it is nothing to report here.
                std::thread::spawn(move || client.and_then(|client| shared.connection(&client)));
            }
        });
        Ok(Self { address, shared })
    }

    /// Host and port, as they stand in a reference.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Bytes that it got from the server and passed on.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }

    /// Connections that were made to it.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn connection(&self, client: &TcpStream) -> std::io::Result<()> {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        // SYN and its answer.
        std::thread::sleep(2 * self.way.delay);
        let server = TcpStream::connect(self.upstream)?;
        for stream in [client, &server] {
            stream.set_nodelay(true)?;
        }
        let cut = self.way.cuts.map(|cuts| cuts.of_connection(number));
        std::thread::scope(|scope| {
            let (client, server) = (client, &server);
            for (from, to, is_answer) in [(client, server, false), (server, client, true)] {
                let (sender, receiver) = mpsc::sync_channel(UNDER_WAY);
                scope.spawn(move || self.receive(from, &sender, is_answer));
                scope.spawn(move || {
                    self.pass_on(to, &receiver, is_answer, cut.filter(|_| is_answer));
                    // Whichever way a connection ends, it ends for both.
                    for stream in [from, to] {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        Ok(())
    }

    fn receive(
        &self,
        mut from: &TcpStream,
        sender: &SyncSender<(Instant, Vec<u8>)>,
        is_answer: bool,
    ) {
        let mut piece = vec![0; PIECE];
        loop {
            let read = match from.read(&mut piece) {
                Ok(0) => return,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let due = self.begin(read, is_answer) + self.way.delay;
            if sender.send((due, piece[..read].to_vec())).is_err() {
                return;
            }
        }
    }

    /// When bytes have got through where the way is narrow.
    fn begin(&self, bytes: usize, is_answer: bool) -> Instant {
        let now = Instant::now();
        let Some(rate) = self.way.rate.filter(|_| is_answer) else {
            return now;
        };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = (*free).max(now) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        *free
    }

    fn pass_on(
        &self,
        mut to: &TcpStream,
        receiver: &Receiver<(Instant, Vec<u8>)>,
        is_answer: bool,
        mut cut: Option<u64>,
    ) {
        for (due, mut piece) in receiver {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let is_cut = cut.is_some_and(|left| left < piece.len() as u64);
            if let Some(left) = &mut cut {
                piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= piece.len() as u64;
            }
            if to.write_all(&piece).is_err() {
                return;
            }
            if is_answer {
                self.passed.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            if is_cut || self.stopped.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends so many bytes to whoever connects.
    fn server(bytes: usize) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut client = client;
                let _ = client.write_all(&vec![7; bytes]);
            }
        });
        address
    }

    fn fetch(proxy: &Proxy) -> usize {
        let mut all = Vec::new();
        let mut stream = TcpStream::connect(proxy.address).unwrap();
        let _ = stream.read_to_end(&mut all);
        all.len()
    }

    #[test]
    fn bytes_are_late_slow_and_cut() {
        let upstream = server(1_000_000);
        let late = Way {
            delay: Duration::from_millis(30),
            ..Way::default()
        };
        let start = Instant::now();
        let proxy = Proxy::start(upstream, late).unwrap();
        assert_eq!(fetch(&proxy), 1_000_000);
        assert!(start.elapsed() >= Duration::from_millis(90));
        let narrow = Way {
            rate: Some(4_000_000),
            ..Way::default()
        };
        let start = Instant::now();
        let proxy = Proxy::start(upstream, narrow).unwrap();
        assert_eq!(fetch(&proxy), 1_000_000);
        assert!(start.elapsed() >= Duration::from_millis(240));
        let broken = Way {
            cuts: Some(Cuts {
                seed: 1,
                most: 1000,
            }),
            ..Way::default()
        };
        let proxy = Proxy::start(upstream, broken).unwrap();
        let (first, second) = (fetch(&proxy), fetch(&proxy));
        assert!(first < 1000 && second < 1000 && first != second);
        assert_eq!(proxy.passed(), (first + second) as u64);
        assert_eq!(proxy.connections(), 2);
    }
}
