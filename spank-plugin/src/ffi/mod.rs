//! The only room with `unsafe`: [`slurm`]'s functions, the [`hooks`] that it calls, the [`version`] that it checks, [`process`]es, and [`mount`]s.

#![expect(
    unsafe_code,
    reason = "this room exists to keep every unsafe block in one place"
)]

mod hooks;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod slurm;
mod version;
