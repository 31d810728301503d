//! Cooperative cancellation: a flag that a signal handler sets and every long loop looks at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a pause looks at the flag.
const INTERVAL: Duration = Duration::from_millis(100);

/// A shared flag; clones refer to the same flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    /// The flag of whoever asked for the operation that this flag stops.
    parent: Option<Arc<Cancel>>,
}

/// The error of an operation that was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

impl Cancel {
    /// A flag that is not set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag of its own that also counts as set once this one is.
    ///
    /// An operation that starts threads hands them such a flag, and sets it when one of them fails, so that the others
    /// stop without the caller being taken for interrupted.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            flag: Arc::default(),
            parent: Some(Arc::new(self.clone())),
        }
    }

    /// Asks every holder of the flag to stop.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::cancel`] was called, here or on the flag that this one is a child of.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
            || self
                .parent
                .as_ref()
                .is_some_and(|parent| parent.is_cancelled())
    }

    /// Sleeps for a while, and no longer than a tenth of a second after the operation was cancelled.
    pub fn pause(&self, duration: Duration) -> Result<(), Cancelled> {
        let mut left = duration;
        while !left.is_zero() {
            self.check()?;
            let step = left.min(INTERVAL);
            std::thread::sleep(step);
            left -= step;
        }
        self.check()
    }

    /// An error once the operation was cancelled, for use with `?` in loops.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_stops_with_its_parent_but_not_the_other_way_round() {
        let parent = Cancel::new();
        let child = parent.child();
        let sibling = parent.child();
        child.cancel();
        assert!(child.is_cancelled());
        assert!(!parent.is_cancelled());
        assert!(!sibling.is_cancelled());
        parent.cancel();
        assert_eq!(sibling.check(), Err(Cancelled));
    }
}
