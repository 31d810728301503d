//! The loopback interface of a new network namespace: netdevice(7).

use std::io;
use std::os::fd::AsRawFd as _;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Brings the loopback interface up, which gives it its addresses.
///
/// # Errors
///
/// EPERM in a network namespace that is not one's own; the kernel's others.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero bytes are a valid ifreq: a name without characters, and numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = byte.cast_signed() as libc::c_char;
    }
    // SAFETY: both requests take a pointer to an ifreq, which is valid during the calls; the first fills in the flags that the second
    // reads, so that only this member of the union is used.
    let result = unsafe {
        match libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &raw mut request,
        ) {
            0 => {
                let flags = request.ifr_ifru.ifru_flags;
                // IFF_UP and IFF_RUNNING are small numbers.
                request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_RUNNING) as i16;
                libc::ioctl(
                    socket.as_raw_fd(),
                    libc::SIOCSIFFLAGS as _,
                    &raw const request,
                )
            }
            failed => failed,
        }
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
