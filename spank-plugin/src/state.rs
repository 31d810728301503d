//! What the plugin knows, for as long as it is loaded. A task's process begins with a copy of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::arguments::Arguments;
use crate::options::Options;
use crate::step::Step;

/// All of it.
#[derive(Default)]
pub(crate) struct State {
    /// The settings, or what is wrong with them.
    pub(crate) arguments: Option<Result<Arguments, String>>,
    /// What the user asks for.
    pub(crate) options: Options,
    /// What is wrong with that; in slurmstepd, where an error would be the node's.
    pub(crate) refused: Option<String>,
    /// The step, in slurmstepd, where it has a container.
    pub(crate) step: Option<Step>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Works with the state. Hooks come one after the other.
pub(crate) fn with<T>(work: impl FnOnce(&mut State) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<State>> =
        STATE.lock().unwrap_or_else(PoisonError::into_inner);
    work(guard.get_or_insert_default())
}

/// Notes that the plugin itself went wrong: no task runs after that.
pub(crate) fn note_panic() {
    PANICKED.store(true, Ordering::Relaxed);
}

/// Whether the plugin itself went wrong.
pub(crate) fn has_panicked() -> bool {
    PANICKED.load(Ordering::Relaxed)
}
