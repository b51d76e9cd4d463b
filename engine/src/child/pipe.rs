//! The child's end of the conversation: unbuffered, blocking.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};

use crate::api::Link;
use crate::wire::{
    Call, FromChild, MAX_FROM_CHILD, MAX_TO_CHILD, Reply, ToChild, body_length, decode, encode,
};

pub struct Pipe;

impl Pipe {
    /// Has the zygote make what each child would make at its first word.
    pub fn warm_up(&self) {
        let _ = (io::stdin(), io::stdout());
    }

    pub fn receive(&self) -> io::Result<ToChild> {
        let mut head = [0; 4];
        read_all(&mut head)?;
        let mut body = vec![0; body_length(head, MAX_TO_CHILD)?];
        read_all(&mut body)?;
        decode(&body)
    }

    pub fn send(&self, message: &FromChild) -> io::Result<()> {
        write_all(io::stdout(), &encode(message, MAX_FROM_CHILD)?)
    }
}

impl Link for Pipe {
    fn call(&self, call: Call) -> io::Result<Reply> {
        self.send(&FromChild::Call(call))?;
        match self.receive()? {
            ToChild::Reply(reply) => Ok(reply),
            _ => Err(io::Error::other("the parent did not send a reply")),
        }
    }
}

/// Until the parent says something, or ends: true; or until the zygote is gone.
pub fn wait(zygote: RawFd) -> io::Result<bool> {
    let stdin = io::stdin();
    // SAFETY: it stays open until this returns.
    let zygote = unsafe { BorrowedFd::borrow_raw(zygote) };
    let both = [stdin.as_fd(), zygote];
    let mut both = both.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    loop {
        match ppoll(&mut both, None, None) {
            Ok(_) => return Ok(both[0].any() == Some(true)),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn read_all(mut buffer: &mut [u8]) -> io::Result<()> {
    let stdin = io::stdin();
    while !buffer.is_empty() {
        match nix::unistd::read(stdin.as_fd(), buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buffer = &mut buffer[n..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn write_all(to: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to.as_fd(), bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The parent keeps the first lines of standard error for its log.
pub fn complain(text: &str) {
    // When even this fails there is nobody left to tell.
    drop(write_all(io::stderr(), text.as_bytes()));
}
