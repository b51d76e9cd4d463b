//! Connections for one reader at a time.
//!
//! ```text
//!   pool ── take ─▶ Exclusive ── every question answered ──▶ back to the pool
//!                       └─────── dropped in the middle of one ─▶ closed
//! ```
//!
//! A reader that blocks holds up everything behind it on its connection, so it has one to itself.
//! One that is dropped while redis-server still owes it an answer must not go back: the next reader
//! would wait behind that answer.

use deadpool_redis::{Connection, Manager, Pool, PoolError, Runtime};
use redis::aio::ConnectionLike;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ErrorKind, Pipeline, RedisError, RedisFuture,
    RedisResult, Value,
};

use crate::QueueError;
use crate::link::CONNECT;

/// Readers of one process at a time: followed logs and commands that run, mostly. More wait.
const MOST: usize = 1024;

/// Makes the pool; nothing is connected yet.
pub(crate) fn pool(
    address: ConnectionAddr,
    config: AsyncConnectionConfig,
) -> Result<Pool, QueueError> {
    let manager = Manager::new_with_config(address, config).map_err(QueueError::Unavailable)?;
    let pool = Pool::builder(manager)
        .max_size(MOST)
        .runtime(Runtime::Tokio1)
        .create_timeout(Some(CONNECT))
        .recycle_timeout(Some(CONNECT))
        .wait_timeout(Some(CONNECT));
    pool.build().map_err(|e| QueueError::Refused(e.to_string()))
}

pub(crate) async fn take(pool: &Pool) -> RedisResult<Exclusive> {
    match pool.get().await {
        Ok(connection) => Ok(Exclusive { connection: Some(connection), owed: false }),
        Err(PoolError::Backend(error)) => Err(error),
        Err(error) => Err(RedisError::from((
            ErrorKind::Io,
            "no connection to redis-server is free",
            error.to_string(),
        ))),
    }
}

pub(crate) struct Exclusive {
    /// Always there until it is dropped.
    connection: Option<Connection>,
    /// Whether redis-server owes an answer.
    owed: bool,
}

impl Exclusive {
    fn ask(&mut self) -> &mut Connection {
        self.owed = true;
        self.connection.as_mut().expect("it is taken out only when this is dropped")
    }
}

impl ConnectionLike for Exclusive {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let answer = self.ask().req_packed_command(cmd).await?;
            self.owed = false;
            Ok(answer)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let answers = self.ask().req_packed_commands(cmd, offset, count).await?;
            self.owed = false;
            Ok(answers)
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|_| self.owed) {
            // Out of the pool, and so closed.
            drop(Connection::take(connection));
        }
    }
}
