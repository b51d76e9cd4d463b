//! The process that children are forked from: it has given up what a child may not have and built
//! the engine, once for all of them, and never reads a script.
//!
//! ```text
//!   parent ══ control: Setup, then three descriptors per child ══▶ zygote
//!      ◀═════════════════ ready, then a process id per child ════════╝ │ forks
//!      ◀──── pipes: limits, script, calls, replies ────────────────▶ child: one script
//! ```
//!
//! A child forked ahead gets ready and waits on its pipe; it holds one end of another, of which the
//! zygote has the other end, so it is gone when the zygote is.
//!
//! A child is the child of the zygote's parent (`CLONE_PARENT`): that one hears of its end, and the
//! kernel kills it when that one is gone.

use std::io::{self, IoSliceMut};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, RecvMsg, SockaddrStorage, recvmsg, send};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getppid};

use super::pipe::complain;
use crate::wire::{Answer, Order, When};

/// Standard input of the zygote.
const CONTROL: RawFd = 0;
/// Of a child that was forked ahead: readable when the zygote is gone.
const ZYGOTE: RawFd = 3;

/// How a child begins.
pub enum Begin {
    AtOnce,
    /// When its pipe says so, unless this one tells that the zygote is gone.
    WhenAsked(RawFd),
}

impl Begin {
    /// The first descriptor that the child has no use for.
    pub fn beyond(&self) -> RawFd {
        match self {
            Self::AtOnce => 3,
            Self::WhenAsked(zygote) => zygote + 1,
        }
    }
}

/// Forks children until the parent is gone. `prepare` is done once, `child` in every child, with
/// what was prepared.
pub fn run<T>(
    prepare: impl FnOnce(u32) -> io::Result<T>,
    child: impl FnOnce(T, Begin) -> io::Result<()>,
) -> ExitCode {
    match serve(prepare, child) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("sandbox: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn serve<T>(
    prepare: impl FnOnce(u32) -> io::Result<T>,
    child: impl FnOnce(T, Begin) -> io::Result<()>,
) -> io::Result<()> {
    let parent = getppid();
    let Some((Order::Setup { uid_gid }, _)) = receive()? else { return Err(unexpected("Setup")) };
    // Nothing is ever written; our end is closed when we are gone, whatever we died of. Both are kept as
    // numbers: a child closes them.
    let (alive, ours) = io::pipe()?;
    let (alive, _ours) = (alive.into_raw_fd(), ours.into_raw_fd());
    let prepared = match prepare(uid_gid) {
        Ok(prepared) => prepared,
        Err(error) => return answer(&Answer::Failed(error.to_string())),
    };
    answer(&Answer::Ready)?;
    loop {
        let Some((order, descriptors)) = receive()? else { return Ok(()) };
        let (Order::Fork(when), Ok(pipes)) = (order, <[OwnedFd; 3]>::try_from(descriptors)) else {
            return Err(unexpected("Fork with three descriptors"));
        };
        match fork() {
            Ok(None) => {
                become_child(parent, pipes)?;
                child(prepared, begin(when, alive)?)?;
                // SAFETY: ends this process, in which nothing is left to be done.
                unsafe { libc::_exit(0) }
            }
            Ok(Some(pid)) => answer(&Answer::Forked(pid))?,
            Err(error) => answer(&Answer::Failed(format!("fork: {error}")))?,
        }
    }
}

/// As fork(2), but the new process is a sibling.
fn fork() -> nix::Result<Option<i32>> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: this process has one thread, so the copy finds nothing locked or half done; without a
    // stack of its own it goes on on the copy of this one.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => Ok(i32::try_from(pid).ok()),
    }
}

fn become_child(parent: Pid, pipes: [OwnedFd; 3]) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        return Err(io::Error::other("the parent is gone"));
    }
    let [input, output, errors] = pipes;
    dup2_stdin(input)?;
    dup2_stdout(output)?;
    dup2_stderr(errors)?;
    Ok(())
}

/// In the child. What it does not keep, it closes before it begins.
fn begin(when: When, alive: RawFd) -> io::Result<Begin> {
    if when == When::Now {
        return Ok(Begin::AtOnce);
    }
    // SAFETY: whatever had this number is a copy of the zygote's, which this process does not use.
    Errno::result(unsafe { libc::dup2(alive, ZYGOTE) })?;
    Ok(Begin::WhenAsked(ZYGOTE))
}

fn receive() -> io::Result<Option<(Order, Vec<OwnedFd>)>> {
    let mut body = [0; Order::MAX_BYTES];
    let mut parts = [IoSliceMut::new(&mut body)];
    let mut space = nix::cmsg_space!([RawFd; 3]);
    let received: RecvMsg<'_, '_, SockaddrStorage> = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg(CONTROL, &mut parts, Some(&mut space), flags) {
            Ok(received) => break received,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just made them for us.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = received.bytes;
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((crate::wire::decode(&body[..length])?, descriptors)))
}

fn answer(answer: &Answer) -> io::Result<()> {
    send(CONTROL, &serde_json::to_vec(answer)?, MsgFlags::empty())?;
    Ok(())
}

fn unexpected(wanted: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the parent did not send {wanted}"))
}
