//! What a program says, on its standard streams and on its serial line, on its way to the log.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::unistd::pipe2;

use super::super::log::{self, Stream};
use super::super::orders::Orders;
use crate::error::{During, Result, shown};

/// An unfinished line is written to the log when its rest does not come within this.
const LINE_PATIENCE_MS: u64 = 250;
/// What a program that has ended left in its pipes comes at once.
const DRAIN_STEP_MS: u8 = 50;
/// In what steps a serial line is looked for: a guest waits for its reader. Later, when it did not come.
const SOON: Duration = Duration::from_millis(2);
const LATE: Duration = Duration::from_secs(1);
const SOON_FOR: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
    Serial,
}

pub(super) struct Output {
    log: log::Writer,
    buffer: Vec<u8>,
    stdout: Option<File>,
    stderr: Option<File>,
    serial: Option<Serial>,
}

/// A serial line: a socket that is there some time after its program was started.
struct Serial {
    /// Held open, as the path of a socket may not be long.
    folder: File,
    name: String,
    stream: Option<UnixStream>,
    /// When it is looked for again; never while there is no program.
    next: Option<Instant>,
    /// Since when there is a program.
    since: Instant,
}

impl Output {
    pub fn open(dir: &Path, orders: &Orders) -> Result<Self> {
        let serial = match &orders.program.serial {
            None => None,
            Some(name) => Some(Serial {
                folder: File::options()
                    .read(true)
                    .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
                    .open(dir)
                    .during(format_args!("open {}", shown(dir)))?,
                name: name.clone(),
                stream: None,
                next: None,
                since: Instant::now(),
            }),
        };
        Ok(Self {
            log: log::Writer::open(&orders.log, log::MAX_SIZE)?,
            buffer: vec![0; 32 << 10],
            stdout: None,
            stderr: None,
            serial,
        })
    }

    /// The ends that a program that is started now writes to.
    pub fn pipes(&mut self) -> Result<(OwnedFd, OwnedFd)> {
        let (out, out_end) = pipe()?;
        let (err, err_end) = pipe()?;
        (self.stdout, self.stderr) = (Some(out), Some(err));
        if let Some(serial) = &mut self.serial {
            serial.stream = None;
            serial.since = Instant::now();
            serial.next = Some(serial.since);
        }
        Ok((out_end, err_end))
    }

    pub fn sources(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let serial = self.serial.as_ref().and_then(|s| s.stream.as_ref());
        let all = [
            self.stdout.as_ref().map(|p| (Source::Stdout, p.as_fd())),
            self.stderr.as_ref().map(|p| (Source::Stderr, p.as_fd())),
            serial.map(|s| (Source::Serial, s.as_fd())),
        ];
        all.into_iter().flatten().collect()
    }

    /// How long there is nothing to do without anything being said.
    pub fn pause(&self) -> Option<u64> {
        let line = self.log.is_waiting().then_some(LINE_PATIENCE_MS);
        let serial = self.serial.as_ref().and_then(|s| s.next);
        // Rounded up: a look that comes too early would be one for nothing.
        let serial =
            serial.map(|at| at.saturating_duration_since(Instant::now()).as_millis() as u64 + 1);
        line.into_iter().chain(serial).min()
    }

    /// Connects to the serial line when it is time to.
    pub fn connect(&mut self) {
        let now = Instant::now();
        if let Some(serial) = &mut self.serial
            && serial.next.is_some_and(|at| now >= at)
        {
            serial.connect(now);
        }
    }

    pub fn copy(&mut self, source: Source) {
        let (read, stream) = match source {
            Source::Stdout => (read(&mut self.stdout, &mut self.buffer), Stream::Stdout),
            Source::Stderr => (read(&mut self.stderr, &mut self.buffer), Stream::Stderr),
            Source::Serial => {
                let Some(serial) = &mut self.serial else { return };
                let n = read(&mut serial.stream, &mut self.buffer);
                if serial.stream.is_none() {
                    serial.look_again();
                }
                (n, Stream::Stdout)
            }
        };
        if read > 0 {
            // A disk that is full must not end the program.
            let _ = self.log.write(stream, &self.buffer[..read]);
        }
    }

    /// Writes out what has waited for the rest of its line.
    pub fn flush(&mut self) {
        if self.log.is_waiting() {
            // A disk that is full must not end the program.
            let _ = self.log.flush();
        }
    }

    /// Reads what a program that has ended still has said.
    pub fn drain(&mut self) {
        for source in [Source::Stdout, Source::Stderr, Source::Serial] {
            loop {
                let fd = self.sources().into_iter().find(|(s, _)| *s == source);
                let Some((_, fd)) = fd else { break };
                let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
                match nix::poll::poll(&mut fds, DRAIN_STEP_MS) {
                    Ok(n) if n > 0 => self.copy(source),
                    _ => break,
                }
            }
        }
        (self.stdout, self.stderr) = (None, None);
        if let Some(serial) = &mut self.serial {
            (serial.stream, serial.next) = (None, None);
        }
        let _ = self.log.flush();
    }
}

impl Serial {
    fn connect(&mut self, now: Instant) {
        let path = format!("/proc/self/fd/{}/{}", self.folder.as_raw_fd(), self.name);
        match UnixStream::connect(path) {
            Ok(stream) => (self.stream, self.next) = (Some(stream), None),
            // It is not there yet, or one that a dead program has left.
            Err(_) => {
                let is_soon = now.saturating_duration_since(self.since) < SOON_FOR;
                self.next = Some(now + if is_soon { SOON } else { LATE });
            }
        }
    }

    fn look_again(&mut self) {
        // Not at once: who closes on us again and again must not keep us busy.
        self.next = Some(Instant::now() + LATE / 10);
    }
}

/// What was read; at its end, or when it fails, the source is gone.
fn read(source: &mut Option<impl Read>, buffer: &mut [u8]) -> usize {
    let Some(reader) = source else { return 0 };
    match reader.read(buffer) {
        Ok(n) if n > 0 => n,
        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => 0,
        Ok(_) | Err(_) => {
            *source = None;
            0
        }
    }
}

fn pipe() -> Result<(File, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).during("make a pipe")?;
    Ok((File::from(read), write))
}
