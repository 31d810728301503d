//! What the plugin tells: on which node, and what.

use std::sync::OnceLock;

use crate::ffi::{process, slurm};

/// The node's name in messages: Slurm's own, or that of the machine.
static NODE: OnceLock<String> = OnceLock::new();

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

/// A line of the holder's: its errors and warnings, what can be done about them, and what it tells besides.
pub(crate) fn pass_on(line: &str) {
    let line = line.trim_end();
    if let Some(error_text) = line.strip_prefix("error: ") {
        error(error_text);
    } else if line.starts_with("hint: ") {
        slurm::error(&format!("cista: {line}"));
    } else if let Some(text) = line.strip_prefix("verbose: ") {
        slurm::verbose(&format!("cista: {}: {text}", node()));
    } else if !line.is_empty() {
        slurm::tell(&format!("cista: {line}"));
    }
}
