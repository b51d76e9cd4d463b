//! Has children forked, and waits until they are ready for a script.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::process::Child;
use super::zygote::{Forked, Zygote};
use crate::wire::{FromChild, receive};

/// A child that is not ready by then is not going to be.
const READY_WITHIN: Duration = Duration::from_secs(10);

type Order = oneshot::Sender<io::Result<Forked>>;

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
            let mut zygote = None;
            for order in queue {
                let forked = fork(&mut zygote, || Zygote::start(&program, &args, uid_gid));
                // Who ordered may be gone: then the child dies with its pipes.
                drop(order.send(forked));
            }
        };
        if let Err(error) = thread.spawn(body) {
            // `raise` says so to whoever asks, as the queue has no reader.
            tracing::error!(%error, "the thread that starts sandboxes could not be started");
        }
        Self { orders }
    }

    /// A new child, warm.
    pub async fn raise(&self) -> io::Result<Child> {
        let (answer, child) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts sandboxes is gone");
        self.orders.send(answer).map_err(|_| gone())?;
        let Forked { pid, pipes } = child.await.map_err(|_| gone())??;
        let mut child = Child::new(Pid::from_raw(pid), pipes)?;
        match timeout(READY_WITHIN, ready(&mut child)).await {
            Ok(Ok(())) => Ok(child),
            Ok(Err(error)) => {
                let death = child.death().await;
                child.bury().await;
                Err(io::Error::other(format!("{error}; {death}")))
            }
            Err(_) => {
                child.bury().await;
                let seconds = READY_WITHIN.as_secs();
                Err(io::Error::other(format!("it was not ready within {seconds} s")))
            }
        }
    }
}

/// A zygote that somebody killed is replaced.
fn fork(zygote: &mut Option<Zygote>, start: impl Fn() -> io::Result<Zygote>) -> io::Result<Forked> {
    if let Some(zygote) = zygote
        && let Ok(forked) = zygote.fork()
    {
        return Ok(forked);
    }
    *zygote = None;
    zygote.insert(start()?).fork()
}

async fn ready(child: &mut Child) -> io::Result<()> {
    match receive(&mut child.stdout).await? {
        (FromChild::Ready, _) => Ok(()),
        _ => Err(io::Error::other("it speaks before it is asked")),
    }
}
