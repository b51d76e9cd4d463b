//! The wire to redis-server.
//!
//! ```text
//!   Link ── one shared, multiplexed connection: everything that answers at once, patient
//!     └─── connections from a pool, for one reader that blocks each
//! ```
//!
//! A call is patient: while redis-server is away it is repeated, with pauses, until a deadline.
//! That is safe because every function answers a repetition as it answered the first time.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use deadpool_redis::Pool;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, Pipeline, RedisError,
    RedisResult,
};
use tokio::time::Instant;

use crate::backoff::{RECONNECT, jittered};
use crate::exclusive::{self, Exclusive};
use crate::{QueueError, keys, library};

/// A call is repeated for this long: a redis-server that was killed is back long before.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than any fsync: an answer that takes longer never comes.
const ANSWER: Duration = Duration::from_secs(10);
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// Commands that wait to be written; the default of 50 makes callers wait for each other.
const BACKLOG: usize = 1024;
/// Blocking reads end after this long, so that a connection that died silently is noticed.
pub(crate) const BLOCK: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) struct Link {
    /// For how long a call is repeated; without an end where there is none.
    patience: Option<Duration>,
    /// For readers that block.
    readers: Pool,
    shared: ConnectionManager,
    /// The digests of the scripts, where there are no functions.
    scripts: OnceLock<Digests>,
}

type Digests = HashMap<&'static str, String>;

impl Link {
    /// Nothing is sent yet.
    pub(crate) fn new(socket: &Path) -> Result<Self, QueueError> {
        let address = ConnectionAddr::Unix(socket.to_owned());
        let client = Client::open(address.clone())
            .map_err(|e| QueueError::Refused(format!("{}: {e}", socket.display())))?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(10))
            .set_max_delay(Duration::from_millis(100))
            .set_response_timeout(Some(ANSWER))
            .set_connection_timeout(Some(CONNECT))
            .set_pipeline_buffer_size(BACKLOG);
        let shared = ConnectionManager::new_lazy_with_config(client, config)
            .map_err(QueueError::Unavailable)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(BLOCK + ANSWER));
        let readers = exclusive::pool(address, config)?;
        Ok(Self { patience: Some(PATIENCE), readers, shared, scripts: OnceLock::new() })
    }

    /// The same, for those who wait as long as it takes.
    pub(crate) fn patient(&self) -> Self {
        Self { patience: None, ..self.clone() }
    }

    /// The same, for those who have something else to do soon.
    pub(crate) fn patient_for(&self, time: Duration) -> Self {
        Self { patience: Some(time), ..self.clone() }
    }

    /// A connection of its own for a reader that blocks for up to [`BLOCK`].
    pub(crate) async fn dedicated(&self) -> RedisResult<Exclusive> {
        exclusive::take(&self.readers).await
    }

    /// Asks once.
    pub(crate) async fn once<T: FromRedisValue>(&self, cmd: &Cmd) -> RedisResult<T> {
        cmd.query_async(&mut self.shared.clone()).await
    }

    /// Calls a function once; loads the functions where they are missing.
    pub(crate) async fn call_once<T: FromRedisValue>(&self, call: &Call) -> RedisResult<T> {
        let cmd = call.cmd(self.scripts.get());
        match self.once(&cmd).await {
            Err(error) if is_missing_function(&error) => {
                self.load().await?;
                self.once(&call.cmd(self.scripts.get())).await
            }
            answer => answer,
        }
    }

    /// The same on a connection of one's own.
    pub(crate) async fn call_once_on<T: FromRedisValue>(
        &self,
        connection: &mut Exclusive,
        call: &Call,
    ) -> RedisResult<T> {
        match call.cmd(self.scripts.get()).query_async(connection).await {
            Err(error) if is_missing_function(&error) => {
                self.load().await?;
                call.cmd(self.scripts.get()).query_async(connection).await
            }
            answer => answer,
        }
    }

    /// Loads the functions: as a library, or, where there are none, as scripts.
    pub(crate) async fn load(&self) -> RedisResult<()> {
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg("REPLACE").arg(library::code());
        match self.once(&load).await {
            Err(error) if is_unknown_command(&error) => {
                let mut digests = HashMap::new();
                for name in library::FUNCTIONS {
                    let mut load = redis::cmd("SCRIPT");
                    load.arg("LOAD").arg(library::script(name));
                    digests.insert(*name, self.once(&load).await?);
                }
                if self.scripts.set(digests).is_ok() {
                    tracing::info!("this redis-server has no functions; uses scripts");
                }
                Ok(())
            }
            loaded => loaded,
        }
    }

    /// Loads the functions, patiently.
    pub(crate) async fn prepare(&self) -> Result<(), QueueError> {
        let mut patience = Patience::new(self.patience);
        loop {
            match self.load().await {
                Ok(()) => return Ok(()),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    pub(crate) async fn call<T: FromRedisValue>(&self, call: &Call) -> Result<T, QueueError> {
        let mut patience = Patience::new(self.patience);
        loop {
            match self.call_once(call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    /// Asks what [`Call::words`] kept, maybe of a redis-server that has forgotten its scripts since.
    pub(crate) async fn repeat<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, QueueError> {
        let mut patience = Patience::new(self.patience);
        loop {
            let answer = match self.once(cmd).await {
                Err(error) if is_missing_function(&error) => match self.load().await {
                    Ok(()) => self.once(cmd).await,
                    Err(error) => Err(error),
                },
                answer => answer,
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    pub(crate) async fn query<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, QueueError> {
        let mut patience = Patience::new(self.patience);
        loop {
            match self.once(cmd).await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    pub(crate) async fn query_all<T: FromRedisValue>(
        &self,
        pipe: &Pipeline,
    ) -> Result<T, QueueError> {
        let mut patience = Patience::new(self.patience);
        loop {
            match pipe.query_async(&mut self.shared.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.after(error).await?,
            }
        }
    }
}

/// Asks again until a deadline.
struct Patience {
    deadline: Option<Instant>,
    attempt: u32,
}

impl Patience {
    fn new(time: Option<Duration>) -> Self {
        Self { deadline: time.map(|time| Instant::now() + time), attempt: 0 }
    }

    /// Pauses before the question is asked again; the error, when it is not to be.
    async fn after(&mut self, error: RedisError) -> Result<(), QueueError> {
        self.attempt += 1;
        let pause = jittered(RECONNECT, self.attempt);
        let over = self.deadline.is_some_and(|deadline| Instant::now() + pause > deadline);
        if over || !is_transient(&error) {
            return Err(QueueError::Unavailable(error));
        }
        tracing::debug!(attempt = self.attempt, %error, "asks redis-server again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Whether the same question may be answered later.
pub(crate) fn is_transient(error: &RedisError) -> bool {
    const CODES: [&str; 7] =
        ["LOADING", "BUSY", "MISCONF", "OOM", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN"];
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || is_cut_off(error)
        || error.code().is_some_and(|code| CODES.contains(&code))
}

/// Whether the connection ended in the middle of an answer.
fn is_cut_off(error: &RedisError) -> bool {
    // By its text: an answer of another type than expected is an error of the same kind.
    error.kind() == redis::ErrorKind::Parse && error.to_string().contains("end of input")
}

fn is_missing_function(error: &RedisError) -> bool {
    let text = error.to_string();
    text.contains("Function not found") || text.contains("NOSCRIPT") || text.contains("NoScript")
}

fn is_unknown_command(error: &RedisError) -> bool {
    error.to_string().contains("unknown command")
}

/// Whether a lane's group is gone, as after a `FLUSHALL`.
pub(crate) fn is_missing_group(error: &RedisError) -> bool {
    // By its text: the error of a pipeline has no code.
    let text = error.to_string();
    text.contains("NOGROUP") || text.contains("No such key") || text.contains("no such key")
}

/// A call of one of our functions.
pub(crate) struct Call {
    function: &'static str,
    keys: Words,
    args: Words,
}

/// Many words in one piece of memory.
#[derive(Default)]
struct Words {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Words {
    fn push(&mut self, word: &[u8]) {
        self.bytes.extend_from_slice(word);
        self.ends.push(self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| &self.bytes[begin..*end])
    }
}

impl Call {
    pub(crate) fn new(function: &'static str) -> Self {
        Self { function, keys: Words::default(), args: Words::default() }
    }

    /// A call whose function may touch what most may touch.
    pub(crate) fn shared(function: &'static str) -> Self {
        Self::new(function).keys(keys::SHARED)
    }

    pub(crate) fn key(mut self, key: impl AsRef<str>) -> Self {
        self.keys.push(key.as_ref().as_bytes());
        self
    }

    pub(crate) fn keys(self, keys: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        keys.into_iter().fold(self, Self::key)
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<[u8]>) -> Self {
        self.args.push(arg.as_ref());
        self
    }

    pub(crate) fn args(self, args: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub(crate) fn num(mut self, number: impl std::fmt::Display) -> Self {
        // Writing to a Vec does not fail.
        let _ = write!(self.args.bytes, "{number}");
        self.args.ends.push(self.args.bytes.len());
        self
    }

    /// The words of the command, to be asked another time.
    pub(crate) fn words(&self, link: &Link) -> Vec<Vec<u8>> {
        let cmd = self.cmd(link.scripts.get());
        let word = |arg: redis::Arg<&[u8]>| match arg {
            redis::Arg::Simple(word) => Some(word.to_vec()),
            _ => None,
        };
        cmd.args_iter().filter_map(word).collect()
    }

    fn cmd(&self, scripts: Option<&Digests>) -> Cmd {
        let (keys, args) = (&self.keys, &self.args);
        let words = 3 + keys.ends.len() + args.ends.len();
        let mut cmd = Cmd::with_capacity(words, 64 + keys.bytes.len() + args.bytes.len());
        match scripts.and_then(|digests| digests.get(self.function)) {
            Some(digest) => cmd.arg("EVALSHA").arg(digest),
            None => cmd.arg("FCALL").arg(library::function(self.function)),
        };
        cmd.arg(keys.ends.len());
        for word in keys.iter().chain(args.iter()) {
            cmd.arg(word);
        }
        cmd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_cut_off_is_asked_for_again() {
        let cut_off = redis::parse_redis_value(b"$5\r\nab").unwrap_err();
        assert!(is_transient(&cut_off), "{cut_off}");
        let number = redis::from_redis_value::<i64>(redis::Value::SimpleString("word".into()));
        let of_another_type = RedisError::from(number.unwrap_err());
        assert!(!is_transient(&of_another_type), "{of_another_type}");
    }
}
