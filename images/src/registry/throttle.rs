//! A limit for the bytes that are received in a second, over all connections to a registry.
//!
//! Each piece that was read pushes the moment before which nothing more may be read by the time that it may take. So the rate holds over any
//! number of readers, and nobody reads ahead of it by more than one piece.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::retry::Stop;

/// Most bytes of one piece, so that slow rates flow evenly.
const MAX_PIECE: u64 = 64 << 10;

/// A rate that several readers share.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Bytes in a second; at least 1.
    rate: u64,
    free: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(rate: u64) -> Self {
        Self {
            rate: rate.max(1),
            free: Mutex::new(Instant::now()),
        }
    }

    /// How long to wait after `count` bytes.
    fn take(&self, count: u64) -> Duration {
        let now = Instant::now();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let time = Duration::from_secs_f64(count as f64 / self.rate as f64);
        *free = (*free).max(now) + time;
        free.saturating_duration_since(now)
    }
}

/// A reader that keeps to a rate.
pub(super) struct Throttled {
    pub(super) inner: Box<dyn Read + Send>,
    pub(super) throttle: Arc<Throttle>,
    pub(super) stop: Arc<Stop>,
}

impl Read for Throttled {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // About a tenth of a second's worth.
        let limit = (self.throttle.rate / 10).clamp(512, MAX_PIECE);
        let length = buffer
            .len()
            .min(usize::try_from(limit).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..length])?;
        if self.stop.pause(self.throttle.take(read as u64)) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_a_rate() {
        let throttle = Arc::new(Throttle::new(1_000_000));
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let mut reader = Throttled {
                    inner: Box::new(io::repeat(7).take(100_000)),
                    throttle: Arc::clone(&throttle),
                    stop: Arc::default(),
                };
                scope.spawn(move || {
                    let mut content = Vec::new();
                    reader.read_to_end(&mut content).unwrap();
                    assert_eq!(content.len(), 100_000);
                });
            }
        });
        let taken = started.elapsed().as_secs_f64();
        assert!(taken > 0.29, "{taken}");
    }

    #[test]
    fn a_stop_is_not_waited_for() {
        let stop = Arc::new(Stop::default());
        stop.stop();
        let mut reader = Throttled {
            inner: Box::new(io::repeat(7)),
            throttle: Arc::new(Throttle::new(1)),
            stop,
        };
        let started = Instant::now();
        assert!(reader.read(&mut [0; 100]).is_err());
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
