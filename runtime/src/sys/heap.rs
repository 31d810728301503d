//! `malloc_trim(3)`: memory that was freed goes back to the system.
//!
//! The C library keeps freed memory for the next allocation. A process that has done most of its work and stays, as an image's
//! server does, has no use for it, but its job pays for it.

/// Gives what is free back to the system, as far as the C library can.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks; memory in use is not touched.
    unsafe {
        libc::malloc_trim(0);
    }
}
