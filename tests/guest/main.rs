//! The program of the demo's last resort: an image that holds this and nothing else, where no busybox can be had.
//!
//! It is compiled by rustc alone, statically, so that it runs in an empty root file system.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["compute"] => {
            // The sum of 1/n², which Euler found to be π²/6.
            let sum: f64 = (1..=2_000_000_u32).rev().map(|n| f64::from(n).powi(-2)).sum();
            println!("pi is about {:.5}", (6.0 * sum).sqrt());
            ExitCode::SUCCESS
        }
        ["exit", status] => ExitCode::from(status.parse().unwrap_or(1)),
        ["wait"] => {
            let parent = std::os::unix::process::parent_id();
            println!("{} {parent} ready", std::process::id());
            loop {
                std::thread::park();
            }
        }
        _ => ExitCode::SUCCESS,
    }
}
