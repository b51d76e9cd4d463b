//! Stands between clients and redis-server, counts what they ask, and cuts their connections.
//!
//! ```text
//!   client ──request──▶ count, decide ──▶ redis-server
//!          ◀──reply──── whole, in part or not at all ◀──
//! ```
//!
//! Replies come in the order of the requests, so each request decides what becomes of its reply.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::wire::{name_of, take_frame};

const CHUNK: usize = 64 * 1024;

/// What can happen to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection is cut before redis-server hears of it.
    Before,
    /// It is done, and the connection is cut in the middle of the reply.
    InReply,
    /// It is done, and the reply is lost: whoever asks again repeats it.
    Repeat,
    Delay(Duration),
    /// All connections are cut before it, as when redis-server ends.
    Outage,
    /// As [`Fault::Before`], and the client never gets through again: it died before it asked.
    DeadBefore,
    /// As [`Fault::Repeat`], and the client never gets through again: it died before it heard.
    DeadAfter,
}

/// What is to happen, and to which of the requests that count.
#[derive(Debug, Clone)]
pub enum Plan {
    Calm,
    /// To the n-th that counts from now on, from 1; to no other.
    Nth(u64, Fault),
    /// To each with this chance: cut before, in the reply, or after.
    Storm {
        chance: f64,
        seed: u64,
    },
}

/// Which requests count, by name: see [`name_of`](crate::wire::name_of).
pub type Selector = fn(&str) -> bool;

/// All but what merely sets a connection up.
pub fn what_matters(name: &str) -> bool {
    !matches!(
        name,
        "PING" | "HELLO" | "AUTH" | "SELECT" | "CLIENT" | "INFO" | "CONFIG" | "FUNCTION"
    )
}

pub struct Proxy {
    socket: PathBuf,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    upstream: PathBuf,
    state: Mutex<State>,
    /// Changes when all connections are to be cut.
    generation: watch::Sender<u64>,
    stop: CancellationToken,
}

struct State {
    counts: Selector,
    names: Vec<String>,
    plan: Plan,
    dice: fastrand::Rng,
    fired: u64,
    dead: bool,
}

impl Proxy {
    /// Listens on `socket`, for a redis-server that listens on `upstream`.
    pub fn start(socket: &Path, upstream: &Path) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(socket)
            .with_context(|| format!("cannot listen on {}", socket.display()))?;
        let state = State {
            counts: what_matters,
            names: Vec::new(),
            plan: Plan::Calm,
            dice: fastrand::Rng::with_seed(0),
            fired: 0,
            dead: false,
        };
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            state: Mutex::new(state),
            generation: watch::Sender::new(0),
            stop: CancellationToken::new(),
        });
        let stop = shared.stop.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned(listen(listener, shared.clone())));
        Ok(Self { socket: socket.to_owned(), shared, _stop: stop.drop_guard() })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Begins to count anew.
    pub fn count(&self, counts: Selector, plan: Plan) {
        let mut state = self.shared.locked();
        if let Plan::Storm { seed, .. } = plan {
            state.dice = fastrand::Rng::with_seed(seed);
        }
        state.counts = counts;
        state.names.clear();
        state.fired = 0;
        state.plan = plan;
    }

    /// No more faults; what was counted stays. The names of what counted, in order.
    pub fn calm(&self) -> Vec<String> {
        let mut state = self.shared.locked();
        state.plan = Plan::Calm;
        state.names.clone()
    }

    /// Faults since the count began.
    pub fn fired(&self) -> u64 {
        self.shared.locked().fired
    }

    pub fn is_dead(&self) -> bool {
        self.shared.locked().dead
    }

    /// Resolves when the client of this proxy is dead.
    pub async fn died(&self) {
        let mut generation = self.shared.generation.subscribe();
        while !self.is_dead() {
            // Its sender lives in us.
            let _ = generation.changed().await;
        }
    }

    /// Whether a fault is planned that has not happened yet.
    pub fn waits_for_fault(&self) -> bool {
        let state = self.shared.locked();
        matches!(state.plan, Plan::Nth(..)) && state.fired == 0
    }

    /// Nobody comes through any more.
    pub fn die(&self) {
        self.shared.die();
    }

    /// Cuts all connections, wherever they are; new ones come through.
    pub fn cut_all(&self) {
        self.shared.cut_all();
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(&self, name: &str) -> Option<Fault> {
        let mut state = self.locked();
        if !(state.counts)(name) {
            return None;
        }
        let fault = match state.plan {
            Plan::Calm => None,
            Plan::Nth(nth, fault) => (state.names.len() as u64 + 1 == nth).then_some(fault),
            Plan::Storm { chance, .. } => {
                let faults = [Fault::Before, Fault::InReply, Fault::Repeat];
                (state.dice.f64() < chance).then(|| faults[state.dice.usize(..3)])
            }
        };
        // A storm can last: only what is examined afterwards is remembered.
        if !matches!(state.plan, Plan::Storm { .. }) {
            state.names.push(name.to_owned());
        }
        state.fired += u64::from(fault.is_some());
        fault
    }

    fn cut_all(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// The client is dead from now on.
    fn die(&self) {
        self.locked().dead = true;
        self.cut_all();
    }
}

async fn listen(listener: UnixListener, shared: Arc<Shared>) {
    // Fails when there are no more file descriptors: then no test can go on either.
    while let Ok((client, _)) = listener.accept().await {
        let shared = shared.clone();
        let mut generation = shared.generation.subscribe();
        tokio::spawn(async move {
            if shared.locked().dead {
                return;
            }
            tokio::select! {
                // An error is the end of this connection: what else there is to it, the test sees.
                _ = relay(client, &shared) => {}
                _ = generation.changed() => {}
                () = shared.stop.cancelled() => {}
            }
        });
    }
}

/// What becomes of a reply.
#[derive(Clone, Copy)]
enum Fate {
    Pass,
    Half,
    Lost,
    LostForEver,
}

/// Until either side ends or a fault does.
async fn relay(client: UnixStream, shared: &Shared) -> anyhow::Result<()> {
    let server = UnixStream::connect(&shared.upstream).await?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (fates, fated) = mpsc::unbounded_channel();
    tokio::select! {
        ended = ask(from_client, to_server, fates, shared) => ended,
        ended = answer(from_server, to_client, fated, shared) => ended,
    }
}

async fn ask(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    fates: mpsc::UnboundedSender<Fate>,
    shared: &Shared,
) -> anyhow::Result<()> {
    let mut buffer = Vec::new();
    loop {
        while let Some(request) = take_frame(&mut buffer)? {
            let fate = match shared.decide(&name_of(&request)?) {
                None => Fate::Pass,
                Some(Fault::Before) => return Ok(()),
                Some(Fault::Outage) => {
                    shared.cut_all();
                    return Ok(());
                }
                Some(Fault::DeadBefore) => {
                    shared.die();
                    return Ok(());
                }
                Some(Fault::InReply) => Fate::Half,
                Some(Fault::Repeat) => Fate::Lost,
                Some(Fault::DeadAfter) => Fate::LostForEver,
                Some(Fault::Delay(pause)) => {
                    tokio::time::sleep(pause).await;
                    Fate::Pass
                }
            };
            // Its receiver ends together with us.
            let _ = fates.send(fate);
            to.write_all(&request).await?;
        }
        if read_some(&mut from, &mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut fated: mpsc::UnboundedReceiver<Fate>,
    shared: &Shared,
) -> anyhow::Result<()> {
    let mut buffer = Vec::new();
    loop {
        while let Some(reply) = take_frame(&mut buffer)? {
            match fated.recv().await {
                None => return Ok(()),
                Some(Fate::Pass) => to.write_all(&reply).await?,
                Some(Fate::Half) => {
                    to.write_all(&reply[..reply.len() / 2]).await?;
                    return Ok(());
                }
                Some(Fate::Lost) => return Ok(()),
                Some(Fate::LostForEver) => {
                    shared.die();
                    return Ok(());
                }
            }
        }
        if read_some(&mut from, &mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

async fn read_some(from: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    buffer.reserve(CHUNK);
    from.read_buf(buffer).await
}
