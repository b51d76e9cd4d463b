//! Has children forked.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc;

use nix::unistd::Pid;
use rhizome_model::Limits;
use tokio::sync::oneshot;

use super::process::Child;
use super::zygote::{Forked, Zygote};

struct Order {
    limits: Limits,
    answer: oneshot::Sender<io::Result<Forked>>,
}

/// Keeps the zygote on a thread that lives as long as the pool: the kernel kills it and its
/// children when the *thread* that started it ends, and Tokio's threads come and go.
pub struct Nursery {
    orders: mpsc::Sender<Order>,
}

impl Nursery {
    pub fn new(program: PathBuf, args: Vec<String>, uid_gid: u32) -> Self {
        let (orders, queue) = mpsc::channel::<Order>();
        let thread = std::thread::Builder::new().name("sandbox-nursery".into());
        let body = move || {
            let start = || Zygote::start(&program, &args, uid_gid);
            // Ahead of time; what went wrong is told to whoever asks for a child.
            let mut zygote = start().ok();
            for Order { limits, answer } in queue {
                // Who ordered may be gone: then the child dies with its pipes.
                drop(answer.send(fork(&mut zygote, limits, start)));
            }
        };
        if let Err(error) = thread.spawn(body) {
            // `raise` says so to whoever asks, as the queue has no reader.
            tracing::error!(%error, "the thread that starts sandboxes could not be started");
        }
        Self { orders }
    }

    /// A new child, for one script with these limits.
    pub async fn raise(&self, limits: Limits) -> io::Result<Child> {
        let (answer, child) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts sandboxes is gone");
        self.orders.send(Order { limits, answer }).map_err(|_| gone())?;
        let Forked { pid, pipes } = child.await.map_err(|_| gone())??;
        Child::new(Pid::from_raw(pid), pipes)
    }
}

/// A zygote that somebody killed is replaced.
fn fork(
    zygote: &mut Option<Zygote>,
    limits: Limits,
    start: impl Fn() -> io::Result<Zygote>,
) -> io::Result<Forked> {
    if let Some(zygote) = zygote
        && let Ok(forked) = zygote.fork(limits)
    {
        return Ok(forked);
    }
    // The dead one is reaped before another is started.
    *zygote = None;
    zygote.insert(start()?).fork(limits)
}
