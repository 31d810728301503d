//! The end-to-end tests: `cista` as a user meets it, with real registries, images, kernels and terminals.
//!
//! One file a subject. Each has a table of cases at its end: name, tier, who runs it, what it needs of the machine. Run them all with
//! `cargo xtask test`, some with `cargo xtask test FILTER`.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stderr,
    reason = "what the session does is told to who waits"
)]

mod additions;
mod bad_images;
mod bad_input;
mod bundle;
mod cache;
mod check;
mod concurrency;
mod config;
mod containers;
mod device_hooks;
mod devices_described;
mod documentation;
mod enroot;
mod exit_codes;
mod fabrics;
mod formats;
mod gpu;
mod gpus;
mod hardening;
mod help;
mod hooks;
mod import;
mod interruptions;
mod isolation;
mod join;
mod json;
mod load;
mod logins;
mod messages;
mod migrate;
mod namespaces;
mod observe;
mod oci;
mod oracle;
mod policy;
mod poor_file_systems;
mod progress;
mod registries;
mod run;
mod signals;
mod slurm;
mod slurm_arguments;
mod slurm_containers;
mod slurm_devices;
mod slurm_errors;
mod slurm_leftovers;
mod slurm_messages;
mod slurm_mounts;
mod slurm_mpi;
mod slurm_options;
mod slurm_releases;
mod slurm_steps;
mod sources;
mod standard;
mod start;
mod store;
mod transfer;

use std::process::ExitCode;

use cista_tests::artifacts::Profile;
use cista_tests::case::{chain, run_all};
use cista_tests::environment::Session;

fn main() -> ExitCode {
    let cases = [
        import::CASES,
        formats::CASES,
        transfer::CASES,
        progress::CASES,
        sources::CASES,
        bad_input::CASES,
        bad_images::CASES,
        interruptions::CASES,
        oracle::CASES,
        start::CASES,
        store::CASES,
        cache::CASES,
        signals::CASES,
        isolation::CASES,
        logins::CASES,
        hardening::CASES,
        bundle::CASES,
        check::CASES,
        concurrency::CASES,
        join::CASES,
        migrate::CASES,
        namespaces::CASES,
        observe::CASES,
        json::CASES,
        messages::CASES,
        exit_codes::CASES,
        policy::CASES,
        poor_file_systems::CASES,
        registries::CASES,
        oci::CASES,
        run::CASES,
        containers::CASES,
        device_hooks::CASES,
        devices_described::CASES,
        fabrics::CASES,
        documentation::CASES,
        config::CASES,
        enroot::CASES,
        additions::CASES,
        gpus::CASES,
        gpu::CASES,
        help::CASES,
        hooks::CASES,
        load::CASES,
        standard::CASES,
        slurm::CASES,
        slurm_devices::CASES,
        slurm_arguments::CASES,
        slurm_containers::CASES,
        slurm_leftovers::CASES,
        slurm_errors::CASES,
        slurm_options::CASES,
        slurm_steps::CASES,
        slurm_messages::CASES,
        slurm_mounts::CASES,
        slurm_mpi::CASES,
        slurm_releases::CASES,
    ];
    let outcome = Session::start(Profile::Debug, |text| eprintln!("    {text}"))
        .and_then(|session| run_all(session, &cases));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
