//! Has children forked, one of them ahead.
//!
//! ```text
//!   raise ── the one that waits? ─ yes, and it lives ─▶ it is the caller's
//!     │              └─ no ─▶ thread ─▶ zygote: fork now
//!   keeper: the last one was used, and it is calm for a while? ─▶ thread ─▶ zygote: fork ahead
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::process::Child;
use super::zygote::{Forked, Zygote};
use crate::wire::When;

/// Nobody has asked for so long: then to fork ahead takes no processor time from what was asked for.
/// A deployment's way through the services takes about as long.
const CALM: Duration = Duration::from_millis(30);

struct Order {
    when: When,
    answer: oneshot::Sender<io::Result<Forked>>,
}

/// Orders for the thread that keeps the zygote.
type Orders = mpsc::Sender<Order>;

/// Keeps the zygote on a thread that lives as long as the pool: the kernel kills it and its
/// children when the *thread* that started it ends, and Tokio's threads come and go.
pub struct Nursery {
    orders: Orders,
    spare: Arc<Spare>,
    keeper: DropGuard,
}

/// A child for the next who asks.
#[derive(Default)]
struct Spare {
    child: Mutex<Option<Child>>,
    /// Somebody asked for a child, and it was not there.
    missed: Notify,
}

impl Spare {
    fn take(&self) -> Option<Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// In the place of one that came just too late for who asked, if it is there still.
    fn put(&self, child: Child) {
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
    }
}

impl Nursery {
    /// Call it within a Tokio runtime.
    pub fn new(program: PathBuf, args: Vec<String>, uid_gid: u32) -> Self {
        let (orders, queue) = mpsc::channel::<Order>();
        let thread = std::thread::Builder::new().name("sandbox-nursery".into());
        let body = move || {
            let start = || Zygote::start(&program, &args, uid_gid);
            // Ahead of time; what went wrong is told to whoever asks for a child.
            let mut zygote = start().ok();
            for Order { when, answer } in queue {
                // Who ordered may be gone: then the child goes, too.
                drop(answer.send(fork(&mut zygote, when, start)));
            }
        };
        if let Err(error) = thread.spawn(body) {
            // `raise` says so to whoever asks, as the queue has no reader.
            tracing::error!(%error, "the thread that starts sandboxes could not be started");
        }
        let (spare, over) = (Arc::<Spare>::default(), CancellationToken::new());
        let keeper = keep(Arc::clone(&spare), orders.clone());
        tokio::spawn(over.clone().run_until_cancelled_owned(keeper));
        Self { orders, spare, keeper: over.drop_guard() }
    }

    /// The child that waits, for one script.
    pub fn spare(&self) -> Option<Child> {
        // One that has died is reaped as it is dropped.
        self.spare.take().and_then(|mut child| (!child.is_gone()).then_some(child))
    }

    /// A new child, for one script.
    pub async fn raise(&self) -> io::Result<Child> {
        let child = order(&self.orders, When::Now);
        self.spare.missed.notify_one();
        child.await
    }

    /// Ends it, and the child that waits.
    pub async fn close(self) {
        let Self { spare, keeper, .. } = self;
        drop(keeper);
        if let Some(child) = spare.take() {
            child.bury().await;
        }
    }
}

/// It is on its way when this returns.
fn order(orders: &Orders, when: When) -> impl Future<Output = io::Result<Child>> + use<> {
    let (answer, child) = oneshot::channel();
    let sent = orders.send(Order { when, answer });
    async move {
        let gone = || io::Error::other("the thread that starts sandboxes is gone");
        sent.map_err(|_| gone())?;
        Child::new(child.await.map_err(|_| gone())??, when)
    }
}

/// Has a child wait whenever it is calm.
async fn keep(spare: Arc<Spare>, orders: Orders) {
    loop {
        while timeout(CALM, spare.missed.notified()).await.is_ok() {}
        match order(&orders, When::Ahead).await {
            Ok(child) => {
                let end = child.end();
                spare.put(child);
                tokio::select! {
                    () = spare.missed.notified() => continue,
                    () = end => match spare.take() {
                        // It was used.
                        None => continue,
                        // The next is not made before somebody asks: whatever ends them, we do not
                        // feed it.
                        Some(dead) => drop(dead),
                    },
                }
            }
            // It is told to the next who asks, if it is so still.
            Err(error) => tracing::debug!(%error, "no sandbox could be forked ahead"),
        }
        spare.missed.notified().await;
    }
}

/// A zygote that somebody killed is replaced.
fn fork(
    zygote: &mut Option<Zygote>,
    when: When,
    start: impl Fn() -> io::Result<Zygote>,
) -> io::Result<Forked> {
    if let Some(zygote) = zygote
        && let Ok(forked) = zygote.fork(when)
    {
        return Ok(forked);
    }
    // The dead one is reaped before another is started.
    *zygote = None;
    zygote.insert(start()?).fork(when)
}
