//! The parent's end of the zygote: blocking, for the nursery's thread.

use std::io::{self, IoSlice, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Command, Stdio};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt,
    socketpair,
};
use nix::sys::time::TimeVal;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::wire::{Answer, Order, When, decode};

/// Nothing that it is asked takes longer.
const ANSWERS_WITHIN_S: i64 = 10;

/// A child, and our ends of its standard input, output and error.
pub struct Forked {
    pub newborn: Newborn,
    pub pipes: [OwnedFd; 3],
}

/// A child that nobody looks after yet. Left alone, it is ended.
pub struct Newborn(Option<Pid>);

impl Newborn {
    pub fn pid(&self) -> Option<Pid> {
        self.0
    }

    /// From now on somebody else ends and reaps it.
    pub fn adopted(mut self) {
        self.0 = None;
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It was not reaped, so its id is its own.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

pub struct Zygote {
    process: process::Child,
    control: OwnedFd,
}

impl Zygote {
    pub fn start(program: &Path, args: &[String], uid_gid: u32) -> io::Result<Self> {
        let (control, its) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&control, ReceiveTimeout, &TimeVal::new(ANSWERS_WITHIN_S, 0))?;
        let process = Command::new(program)
            .args(args)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(its))
            .stdout(Stdio::null())
            // A terminal's Ctrl-C is for us to handle.
            .process_group(0)
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", program.display())))?;
        let zygote = Self { process, control };
        match zygote.ask(&Order::Setup { uid_gid }, &[])? {
            Answer::Ready => Ok(zygote),
            Answer::Forked(_) => Err(io::Error::other("it forked before it was asked")),
            Answer::Failed(why) => Err(io::Error::other(why)),
        }
    }

    pub fn fork(&self, when: When) -> io::Result<Forked> {
        let ((input, stdin), (stdout, output), (stderr, errors)) =
            (io::pipe()?, io::pipe()?, io::pipe()?);
        let theirs = [input.as_raw_fd(), output.as_raw_fd(), errors.as_raw_fd()];
        match self.ask(&Order::Fork(when), &theirs)? {
            Answer::Forked(pid) => {
                let newborn = Newborn(Some(Pid::from_raw(pid)));
                Ok(Forked { newborn, pipes: ours(stdin, stdout, stderr) })
            }
            Answer::Ready => Err(io::Error::other("it is ready twice")),
            Answer::Failed(why) => Err(io::Error::other(why)),
        }
    }

    fn ask(&self, order: &Order, descriptors: &[RawFd]) -> io::Result<Answer> {
        let body = serde_json::to_vec(order)?;
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        let (to, flags) = (self.control.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        sendmsg::<()>(to, &[IoSlice::new(&body)], rights, flags, None)?;
        let mut answer = [0; Answer::MAX_BYTES];
        let length = loop {
            match recv(to, &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        match length {
            0 => Err(io::Error::other("the process that sandboxes are forked from is gone")),
            length => decode(&answer[..length]),
        }
    }
}

fn ours(stdin: PipeWriter, stdout: PipeReader, stderr: PipeReader) -> [OwnedFd; 3] {
    [stdin.into(), stdout.into(), stderr.into()]
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
