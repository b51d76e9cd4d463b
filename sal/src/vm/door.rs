//! The unix sockets of a folder, however long its path is.
//!
//! A socket's path has at most 107 bytes, a machine's folder may be longer. So it is reached through
//! the folder's descriptor: `/proc/self/fd/N/NAME`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use socket2::{Domain, SockAddr, Socket, Type};

use super::fault::{Answer, Fault};
use crate::error::{Result, SalError, shown};

/// How soon a queue that was full is tried again.
const STEP: Duration = Duration::from_millis(5);

/// Connects to a socket of a virtual machine's folder.
pub fn connect(dir: &Path, name: &str, deadline: Instant) -> Result<UnixStream> {
    open(dir, name, deadline).map_err(|fault| {
        SalError::new(fault.code(), format!("{}: {fault}", shown(&dir.join(name))))
    })
}

/// A hypervisor that hangs takes no connections once its queue is full; that must not hold us.
pub(super) fn open(dir: &Path, name: &str, until: Instant) -> Answer<UnixStream> {
    let begin = Instant::now();
    let away = |e: io::Error| Fault::Away(e.to_string());
    let folder = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(dir)
        .map_err(away)?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    let address = SockAddr::unix(path).map_err(away)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(away)?;
    socket.set_nonblocking(true).map_err(away)?;
    loop {
        match socket.connect(&address) {
            Ok(()) => break,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(STEP);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(Fault::Hangs(begin.elapsed()));
            }
            Err(e) => return Err(away(e)),
        }
    }
    socket.set_nonblocking(false).map_err(away)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rhizome_model::Code;

    use super::*;

    #[test]
    fn a_folder_may_be_deep_and_a_full_queue_ends_the_wait() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a".repeat(100)).join("b".repeat(100));
        std::fs::create_dir_all(&dir).unwrap();
        let soon = || Instant::now() + Duration::from_millis(100);
        assert_eq!(connect(&dir, "s", soon()).unwrap_err().code(), Code::Unavailable);

        std::os::unix::fs::symlink(&dir, root.path().join("short")).unwrap();
        let listener = UnixListener::bind(root.path().join("short/s")).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&dir, "s", soon()) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10_000);
        };
        assert!(!waiting.is_empty());
        assert_eq!(error.code(), Code::TimedOut, "{error}");
        drop(listener);
        assert_eq!(connect(&dir, "s", soon()).unwrap_err().code(), Code::Unavailable);
    }
}
