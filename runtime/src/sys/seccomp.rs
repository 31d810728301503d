//! Installing a seccomp filter; see seccomp(2). The filter itself is built in `container::seccomp`.

use std::io;

/// One instruction of classic BPF: `struct sock_filter` of `linux/filter.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the condition holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Installs a filter for the calling thread and what it executes. Needs no_new_privs or CAP_SYS_ADMIN.
///
/// The speculative store bypass mitigation that older kernels force on filtered processes is declined: the filter is
/// no sandbox, and the mitigation costs a program up to a third of its speed.
///
/// # Errors
///
/// EINVAL where the kernel refuses the program, or has no seccomp filters; EACCES without no_new_privs.
pub fn install(program: &[Instruction]) -> io::Result<()> {
    let length =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `Instruction` has the layout of `struct sock_filter` (asserted below), `len` is the number of instructions
    // behind `filter`, and the kernel copies them within the call without writing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

const _: () = {
    assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());
    assert!(align_of::<Instruction>() == align_of::<libc::sock_filter>());
};
