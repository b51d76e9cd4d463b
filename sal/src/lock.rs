//! One operation on one resource at a time, whichever process wants it.
//!
//! A lock is `flock` on a file, so a process that dies frees it. The file may be removed by its
//! holder: whoever waited for it then holds a file without a name, sees that and tries again.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{During, Result, shown};
use crate::files;

pub(crate) struct Lock {
    _held: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// Waits until nobody else holds it.
    pub fn take(path: &Path) -> Result<Self> {
        Self::wait(path, FlockArg::LockExclusive)
    }

    /// Waits until nobody else has taken it; several may share it.
    pub fn share(path: &Path) -> Result<Self> {
        Self::wait(path, FlockArg::LockShared)
    }

    fn wait(path: &Path, how: FlockArg) -> Result<Self> {
        loop {
            let file = File::options().create(true).append(true).open(path);
            let mut file = file.during(format_args!("open the lock {}", shown(path)))?;
            let held = loop {
                match Flock::lock(file, how) {
                    Ok(held) => break held,
                    Err((again, Errno::EINTR)) => file = again,
                    Err((_, e)) => return Err(e).during(format_args!("lock {}", shown(path))),
                }
            };
            let mine = held.metadata().during(format_args!("look at {}", shown(path)))?;
            match std::fs::metadata(path) {
                Ok(named) if named.ino() == mine.ino() => {
                    return Ok(Self { _held: held, path: path.to_owned() });
                }
                _ => {}
            }
        }
    }

    /// Frees it and takes the file away: the resource is gone.
    pub fn remove(self) -> Result<()> {
        files::remove(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn only_one_holds_it_also_while_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let inside = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for i in 0..8 {
                let (path, inside) = (&path, inside.clone());
                scope.spawn(move || {
                    for _ in 0..100 {
                        let lock = Lock::take(path).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        if i % 2 == 0 {
                            lock.remove().unwrap();
                        }
                    }
                });
            }
        });
    }
}
