//! What is worth another attempt, and when.
//!
//! A cut connection, a silent one, a busy server (408, 429, 5xx) are tried again, after a pause that doubles each time and is jittered so that
//! a thousand nodes do not come back in the same instant. `Retry-After` (RFC 9110, section 10.2.3) is obeyed when it is longer.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest pause that we choose ourselves.
const LONGEST: Duration = Duration::from_secs(15);

/// Longest pause that a server may ask for; beyond it, the user should know rather than wait.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// Counts failures in a row.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    allowed: u32,
    first: Duration,
}

impl Backoff {
    /// Allows so many failures in a row; the pause after the first is about `first`.
    pub(super) fn new(allowed: u32, first: Duration) -> Self {
        Self {
            failures: 0,
            allowed,
            first,
        }
    }

    /// Forgets the failures so far, since there was progress.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and returns the pause before the next attempt; None when there should be none.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        if self.failures >= self.allowed || asked.is_some_and(|asked| asked > LONGEST_ASKED) {
            return None;
        }
        let doubled = self
            .first
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST);
        self.failures += 1;
        // From half to the whole of it.
        let jittered = doubled.mul_f64(0.5 + 0.5 * random_fraction());
        Some(asked.map_or(jittered, |asked| {
            asked.saturating_add(jittered / 4).max(jittered)
        }))
    }
}

/// A number from 0 to 1, different for each call and process.
fn random_fraction() -> f64 {
    let bits = RandomState::new().hash_one(SystemTime::now()) >> 32;
    u32::try_from(bits).map_or(0.5, f64::from) / f64::from(u32::MAX)
}

/// The pause that an answer asks for.
pub(super) fn asked_pause(answer: &super::http::Answer) -> Option<Duration> {
    retry_after(answer.header("retry-after")?, SystemTime::now())
}

/// The pause that a `Retry-After` header asks for: seconds, or a date.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let now = now.duration_since(UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(http_date(value)?).saturating_sub(now))
}

/// Seconds since 1970 of an IMF-fixdate (RFC 9110, section 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, rest) = text.split_once(", ")?;
    let mut fields = rest.split(' ');
    let day: u64 = fields.next()?.parse().ok()?;
    let month = fields.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = fields.next()?.parse().ok()?;
    let mut clock = fields.next()?.split(':').map(str::parse::<u64>);
    let (hour, minute, second) = (
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    );
    if !(1970..=9999).contains(&year)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    // Days from 1970 by counting years from March, so that the leap day is the last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// A wish to stop that wakes whoever pauses.
#[derive(Debug, Default)]
pub(super) struct Stop {
    stopped: Mutex<bool>,
    wake: Condvar,
}

impl Stop {
    pub(super) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses; returns whether it was woken by a wish to stop.
    pub(super) fn pause(&self, duration: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) = self
            .wake
            .wait_timeout_while(stopped, duration, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let first = Duration::from_millis(250);
        let mut backoff = Backoff::new(8, first);
        let mut previous = Duration::ZERO;
        for attempt in 0..8 {
            let pause = backoff.next(None).unwrap();
            let whole = first.saturating_mul(1 << attempt).min(LONGEST);
            assert!(pause >= whole / 2 && pause <= whole, "{attempt}: {pause:?}");
            assert!(pause >= previous / 2);
            previous = pause;
        }
        assert_eq!(backoff.next(None), None);
        backoff.reset();
        assert!(backoff.next(None).is_some());
    }

    #[test]
    fn servers_are_obeyed_within_reason() {
        let first = Duration::from_millis(250);
        let mut backoff = Backoff::new(3, first);
        let pause = backoff.next(Some(Duration::from_secs(7))).unwrap();
        assert!(pause >= Duration::from_secs(7) && pause < Duration::from_secs(8));
        assert!(backoff.next(Some(Duration::ZERO)).unwrap() >= first / 2);
        assert_eq!(backoff.next(Some(Duration::from_secs(100_000))), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (value, expected) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("Sun, 06 Nov 99999 08:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(
                retry_after(value, now),
                expected.map(Duration::from_secs),
                "{value}"
            );
        }
        assert_eq!(
            http_date("Thu, 29 Feb 2024 00:00:00 GMT"),
            Some(1_709_164_800)
        );
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
    }

    #[test]
    fn a_pause_ends_when_stopped() {
        let stop = Stop::default();
        assert!(!stop.pause(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            scope.spawn(|| stop.stop());
            assert!(stop.pause(Duration::from_secs(60)));
        });
        assert!(stop.is_stopped());
    }
}
