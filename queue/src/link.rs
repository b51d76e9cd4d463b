//! The wire to redis-server.
//!
//! ```text
//!   Link ── one shared, multiplexed connection: everything that answers at once, patient
//!     └─── connections from a pool, for one reader that blocks each
//! ```
//!
//! A call is patient: while redis-server is away it is repeated, with pauses, until a deadline.
//! That is safe because every function answers a repetition as it answered the first time.

use std::path::Path;
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
use crate::{QueueError, library};

/// A call is repeated for this long: a redis-server that was killed is back long before.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than any fsync: an answer that takes longer never comes.
const ANSWER: Duration = Duration::from_secs(10);
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// Commands that wait to be written; the default of 50 makes callers wait for each other.
const BACKLOG: usize = 1024;
/// Blocking reads end after this long, so that a connection that died silently is noticed.
pub(crate) const BLOCK: Duration = Duration::from_secs(5);

pub(crate) struct Link {
    /// For readers that block.
    readers: Pool,
    shared: ConnectionManager,
}

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
        Ok(Self { readers: exclusive::pool(address, config)?, shared })
    }

    /// A connection of its own for a reader that blocks for up to [`BLOCK`].
    pub(crate) async fn dedicated(&self) -> RedisResult<Exclusive> {
        exclusive::take(&self.readers).await
    }

    /// Asks once.
    pub(crate) async fn once<T: FromRedisValue>(&self, cmd: &Cmd) -> RedisResult<T> {
        cmd.query_async(&mut self.shared.clone()).await
    }

    /// Calls a function once; loads the library where it is missing.
    pub(crate) async fn call_once<T: FromRedisValue>(&self, call: &Call) -> RedisResult<T> {
        let cmd = call.cmd();
        match self.once(&cmd).await {
            Err(error) if is_missing_function(&error) => {
                self.load().await?;
                self.once(&cmd).await
            }
            answer => answer,
        }
    }

    pub(crate) async fn load(&self) -> RedisResult<()> {
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg("REPLACE").arg(library::code());
        self.once(&load).await
    }

    pub(crate) async fn call<T: FromRedisValue>(&self, call: &Call) -> Result<T, QueueError> {
        let mut patience = Patience::new();
        loop {
            match self.call_once(call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    pub(crate) async fn query<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, QueueError> {
        let mut patience = Patience::new();
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
        let mut patience = Patience::new();
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
    deadline: Instant,
    attempt: u32,
}

impl Patience {
    fn new() -> Self {
        Self { deadline: Instant::now() + PATIENCE, attempt: 0 }
    }

    /// Pauses before the question is asked again; the error, when it is not to be.
    async fn after(&mut self, error: RedisError) -> Result<(), QueueError> {
        self.attempt += 1;
        let pause = jittered(RECONNECT, self.attempt);
        if !is_transient(&error) || Instant::now() + pause > self.deadline {
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
        || error.code().is_some_and(|code| CODES.contains(&code))
}

fn is_missing_function(error: &RedisError) -> bool {
    error.to_string().contains("Function not found")
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
    keys: Vec<String>,
    args: Vec<Vec<u8>>,
}

impl Call {
    pub(crate) fn new(function: &'static str) -> Self {
        Self { function, keys: Vec::new(), args: Vec::new() }
    }

    pub(crate) fn key(mut self, key: impl Into<String>) -> Self {
        self.keys.push(key.into());
        self
    }

    pub(crate) fn keys(mut self, keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.keys.extend(keys.into_iter().map(Into::into));
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<[u8]>) -> Self {
        self.args.push(arg.as_ref().to_vec());
        self
    }

    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_vec()));
        self
    }

    pub(crate) fn num(self, number: impl std::fmt::Display) -> Self {
        self.arg(number.to_string())
    }

    fn cmd(&self) -> Cmd {
        let mut cmd = redis::cmd("FCALL");
        cmd.arg(library::function(self.function)).arg(self.keys.len()).arg(&self.keys);
        for arg in &self.args {
            cmd.arg(arg.as_slice());
        }
        cmd
    }
}
