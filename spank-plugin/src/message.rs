//! What the plugin tells: on which node, and what.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ffi::{process, slurm};

/// The node's name in messages: Slurm's own, or that of the machine.
static NODE: OnceLock<String> = OnceLock::new();

/// By this variable srun tells its steps that it was called with `-v`.
pub(crate) const VERBOSE: &str = "CISTA_SLURM_VERBOSE";

/// Whether that is so.
static IS_VERBOSE: AtomicBool = AtomicBool::new(false);

/// Shows to everybody what else only slurmstepd's own verbosity would show.
pub(crate) fn be_verbose() {
    IS_VERBOSE.store(true, Ordering::Relaxed);
}

/// Takes the name of this node from the environment of the step.
pub(crate) fn set_node(name: &str) {
    let _ = NODE.set(name.to_owned());
}

fn node() -> &'static str {
    NODE.get_or_init(process::host_name)
}

/// An error of this node.
pub(crate) fn error(text: impl std::fmt::Display) {
    slurm::error(&format!("cista: {}: {text}", node()));
}

/// A line of the holder's: its errors and warnings, what can be done about them, and what it tells besides. True for an error.
pub(crate) fn pass_on(line: &str) -> bool {
    let line = line.trim_end();
    if let Some(error_text) = line.strip_prefix("error: ") {
        error(error_text);
        return true;
    } else if line.starts_with("hint: ") {
        slurm::error(&format!("cista: {line}"));
    } else if let Some(text) = line.strip_prefix("verbose: ") {
        let text = format!("cista: {}: {text}", node());
        if IS_VERBOSE.load(Ordering::Relaxed) {
            slurm::tell(&text);
        } else {
            slurm::verbose(&text);
        }
    } else if !line.is_empty() {
        slurm::tell(&format!("cista: {line}"));
    }
    false
}
