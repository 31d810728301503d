//! The thread that shows that we live, for all leases of a store at once.
//!
//! A builder may be busy compressing, or wait for a silent network: its leases must stay fresh all the same. The thread runs while there is a
//! lease, and is stopped with the whole process by SIGSTOP or `kill -9`, which is what others shall see.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::lease::Held;

/// The leases of a store that this process holds.
#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: Vec<Arc<Held>>,
    is_running: bool,
}

impl Heartbeat {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a lease fresh from now on.
    pub(super) fn add(self: &Arc<Self>, held: &Arc<Held>) {
        let mut state = self.lock();
        state.held.push(Arc::clone(held));
        if state.is_running {
            return;
        }
        let this = Arc::clone(self);
        // Without a thread, progress alone is the heartbeat.
        state.is_running = thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || this.run())
            .is_ok();
    }

    pub(super) fn remove(&self, held: &Arc<Held>) {
        self.lock().held.retain(|other| !Arc::ptr_eq(other, held));
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut state = self.lock();
        let mut last = Instant::now();
        while let Some(interval) = state.held.iter().map(|held| held.interval()).min() {
            let left = interval.saturating_sub(last.elapsed());
            if !left.is_zero() {
                let (guard, _) = self
                    .changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner);
                state = guard;
                continue;
            }
            // The file system may be slow: nobody who adds or gives back a lease should wait for it.
            let held = state.held.clone();
            drop(state);
            for held in &held {
                held.beat();
            }
            last = Instant::now();
            state = self.lock();
        }
        state.is_running = false;
    }
}
