//! The functions that Slurm calls. Only those are here that are used: a plugin with a hook for prologs makes slurmd start a process for every job.

use std::ffi::{CStr, OsStr, OsString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::process;
use super::slurm::{self, Spank};
use crate::{local, state, step};

/// What a hook returns when it failed.
const FAILED: c_int = -1;

/// Runs a hook. A panic does not get into Slurm: it is a failure of the step, like others.
unsafe fn run(
    handle: *mut c_void,
    count: c_int,
    arguments: *const *const c_char,
    hook: impl FnOnce(&Spank, &[OsString]) -> Result<(), ()>,
) -> c_int {
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the three are what Slurm gave to the hook.
        let (spank, arguments) = unsafe {
            let count = usize::try_from(count).unwrap_or(0);
            (Spank::new(handle), slurm::copy_strings(arguments, count))
        };
        hook(&spank, &arguments)
    }));
    match result {
        Ok(Ok(())) => 0,
        Ok(Err(())) => FAILED,
        Err(_) => {
            slurm::error("cista: internal error in the plugin");
            state::note_panic();
            // In slurmstepd, the tasks are what fails.
            if slurm::context() == slurm::Context::Remote {
                0
            } else {
                FAILED
            }
        }
    }
}

macro_rules! hooks {
    ($($(#[$note:meta])* $name:ident => $hook:expr;)*) => {
        $(
            $(#[$note])*
            ///
            /// # Safety
            ///
            /// Called by Slurm with a handle, and the arguments of plugstack.conf.
            #[unsafe(no_mangle)]
            pub(super) unsafe extern "C" fn $name(
                handle: *mut c_void,
                count: c_int,
                arguments: *const *const c_char,
            ) -> c_int {
                // SAFETY: the caller's promise.
                unsafe { run(handle, count, arguments, $hook) }
            }
        )*
    };
}

hooks! {
    /// The plugin was loaded.
    slurm_spank_init => local::init;
    /// The options are known.
    slurm_spank_init_post_opt => |spank, _| match slurm::context() {
        slurm::Context::Local | slurm::Context::Allocator => local::check(),
        slurm::Context::Remote => { step::begin(spank); Ok(()) }
        slurm::Context::Other => Ok(()),
    };
    /// In the process of a task, as root.
    slurm_spank_task_init_privileged => |spank, _| { step::prepare_task(spank); Ok(()) };
    /// In the parent of the tasks, when all were forked.
    slurm_spank_task_post_fork => |spank, _| { step::task_was_forked(spank); Ok(()) };
    /// A task has ended.
    slurm_spank_task_exit => |spank, _| { step::task_has_ended(spank); Ok(()) };
    /// The step has ended, or the options are known for what has no step.
    slurm_spank_exit => |spank, _| { step::end(spank); Ok(()) };
}

/// In the process of a task, as the user, just before it is executed.
///
/// # Safety
///
/// Called by Slurm with a handle, and the arguments of plugstack.conf.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn slurm_spank_task_init(
    handle: *mut c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let mut is_contained = false;
    // SAFETY: the caller's promise.
    unsafe {
        run(handle, count, arguments, |spank, _| {
            is_contained = step::enter(spank);
            Ok(())
        });
    }
    if !is_contained {
        // Not by the hook's result, which Slurm ignores where plugstack.conf calls the plugin optional.
        process::exit_now(1);
    }
    0
}

/// An option was given. `number` is its place in the table.
///
/// # Safety
///
/// Called by Slurm; the argument is null or a string that ends in NUL.
pub(super) unsafe extern "C" fn option_given(
    number: c_int,
    argument: *const c_char,
    _remote: c_int,
) -> c_int {
    let result = catch_unwind(|| {
        let argument = (!argument.is_null()).then(|| {
            // SAFETY: not null, and ends in NUL.
            OsStr::from_bytes(unsafe { CStr::from_ptr(argument) }.to_bytes())
        });
        local::option_given(number, argument)
    });
    match result {
        Ok(Ok(())) => 0,
        _ => FAILED,
    }
}
