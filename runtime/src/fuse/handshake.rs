//! INIT: what the kernel and this server expect of each other.

use rustix::io::Errno;

use super::ServeError;
use super::connection::{Connection, RequestBuffer};
use super::protocol::{InitIn, InitOut, MAJOR, MINOR, OLDEST_MINOR, init, opcode};

/// What is asked of the kernel; it takes what it knows.
const WANTED: u32 = init::ASYNC_READ
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::NO_OPEN_SUPPORT
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::NO_OPENDIR_SUPPORT
    | init::EXPLICIT_INVAL_DATA;
/// Most pages of a READ: 1 MiB where pages have 4 KiB.
const MAX_PAGES: u16 = 256;
/// Read-ahead requests under way; the kernel's default of 12 is for slow servers.
const MAX_BACKGROUND: u16 = 128;

/// Answers INIT. False when the file system is gone already.
pub(super) fn shake(connection: &Connection) -> Result<bool, ServeError> {
    let mut buffer = RequestBuffer::new();
    let Some(request) = connection
        .receive(&mut buffer)
        .map_err(ServeError::Receive)?
    else {
        return Ok(false);
    };
    if request.header.opcode != opcode::INIT {
        return Err(ServeError::NoInit(request.header.opcode));
    }
    let offered: InitIn = request.parse().map_err(ServeError::Receive)?;
    let answered = if offered.major == MAJOR && offered.minor >= OLDEST_MINOR {
        connection.answer(&request.header, &accept(&offered))
    } else {
        // The answer makes the mount fail; the error says why.
        let _ = connection.refuse(&request.header, Errno::PROTO);
        return Err(ServeError::Version {
            major: offered.major,
            minor: offered.minor,
        });
    };
    match answered {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::NODEV) => Ok(false),
        Err(error) => Err(ServeError::Answer(error)),
    }
}

fn accept(offered: &InitIn) -> InitOut {
    InitOut {
        major: MAJOR,
        minor: MINOR,
        max_readahead: offered.max_readahead,
        flags: offered.flags & WANTED,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        // Nothing is written; the kernel wants at least a page.
        max_write: 4096,
        time_gran: 1,
        max_pages: MAX_PAGES,
        ..InitOut::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_what_the_kernel_offers() {
        let offered = InitIn {
            major: MAJOR,
            minor: OLDEST_MINOR,
            max_readahead: 131_072,
            flags: init::ASYNC_READ | init::MAX_PAGES | 1 << 31,
        };
        let accepted = accept(&offered);
        assert_eq!(accepted.flags, init::ASYNC_READ | init::MAX_PAGES);
        assert_eq!(accepted.max_readahead, 131_072);
    }
}
