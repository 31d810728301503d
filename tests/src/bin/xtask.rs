//! `cargo xtask`: the one entry point for the demo, the tests and the benches.

fn main() {}
