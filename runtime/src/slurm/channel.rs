//! The socket on which tasks ask for the container (unix(7), `SOCK_SEQPACKET`): a question is a letter and a socket for the answer, an answer a byte and
//! descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Most descriptors in a message.
pub const MAX_FILES: usize = 16;

/// A task asks for the container.
pub const JOIN: u8 = b'j';
/// slurmstepd says that the tasks have ended: the container is saved where that was asked for, and what was made for it is removed.
pub const FINISH: u8 = b'f';
/// slurmstepd says that the step is over, and is waited for by nobody. Where the socket is closed without this, slurmstepd was killed.
pub const END: u8 = b'e';
/// Done.
pub const YES: u8 = b'+';
/// Not done.
pub const NO: u8 = b'-';

/// Sends a byte and descriptors. Nobody being there to receive them is an error, not a signal.
///
/// # Errors
///
/// Those of sendmsg(2).
pub fn send(socket: impl AsFd, byte: u8, files: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(Errno::TOOMANYREFS);
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket.as_fd(),
            &[IoSlice::new(&[byte])],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })
    .map(drop)
}

/// Waits for a byte and descriptors; None when every other end was closed.
pub fn receive(socket: impl AsFd) -> Option<(u8, Vec<OwnedFd>)> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .ok()?;
    let files = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect(),
            _ => Vec::new(),
        })
        .collect();
    (received.bytes == 1).then_some((byte[0], files))
}

/// Waits until every other end was closed, and takes nothing.
pub fn wait_until_closed(socket: impl AsFd) {
    loop {
        let mut events = [PollFd::new(&socket, PollFlags::empty())];
        match rustix::event::poll(&mut events, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        if !events[0].revents().is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::handover;

    #[test]
    fn questions_answers_and_the_end() {
        let (ours, theirs) = handover::pair().unwrap();
        send(&ours, JOIN, &[theirs.as_fd(), ours.as_fd()]).unwrap();
        send(&ours, FINISH, &[]).unwrap();
        let (letter, files) = receive(&theirs).unwrap();
        assert_eq!((letter, files.len()), (JOIN, 2));
        drop(files);
        assert_eq!(receive(&theirs).unwrap().0, FINISH);
        drop(ours);
        wait_until_closed(&theirs);
        assert!(receive(&theirs).is_none());
    }
}
