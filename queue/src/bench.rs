//! Measuring a redis-server: what it costs, and how fast it would be with nothing of ours around.
//!
//! The floor is the least that any reliable queue on streams does: pipelined `XADD`, then
//! `XREADGROUP` and `XACK`, no record, no fence, no news. It leaves nothing behind.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;
use redis::{Client, ConnectionAddr, FromRedisValue, Value};

use crate::{BATCH, QueueError, keys};

const FLOOR: &str = "{n}:floor";
/// Bytes of redis-server's table per key and per place, as it counts them (`getMemoryOverheadData`).
const PER_KEY: usize = 40;
const PER_PLACE: usize = 8;

/// A look at one redis-server, on a connection of its own.
pub struct Probe {
    connection: MultiplexedConnection,
}

/// What redis-server used until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Of all its threads, in user and system mode.
    pub cpu: Duration,
    /// Bytes of its data.
    pub memory: u64,
}

/// Messages per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    pub submit_per_s: f64,
    pub drain_per_s: f64,
}

/// Work of redis-server's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chore {
    /// After a fork it copies each page that it changes.
    RewritesItsFile,
    /// Keys are looked for in two tables, and every command moves some from one to the other.
    GrowsItsTable,
}

impl fmt::Display for Chore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RewritesItsFile => "rewrites its file",
            Self::GrowsItsTable => "moves its keys to a larger table",
        })
    }
}

impl Probe {
    pub async fn open(socket: &Path) -> Result<Self, QueueError> {
        let client = Client::open(ConnectionAddr::Unix(socket.to_owned()));
        let client = client.map_err(QueueError::Unavailable)?;
        let connection = client.get_multiplexed_async_connection().await;
        Ok(Self { connection: connection.map_err(QueueError::Unavailable)? })
    }

    pub async fn usage(&mut self) -> Result<Usage, QueueError> {
        let cpu = self.info("cpu").await?;
        let memory = self.info("memory").await?;
        let seconds = field(&cpu, "used_cpu_user")? + field(&cpu, "used_cpu_sys")?;
        Ok(Usage {
            cpu: Duration::from_secs_f64(seconds),
            memory: field(&memory, "used_memory")? as u64,
        })
    }

    /// So many messages of so many bytes through a bare stream.
    pub async fn floor(&mut self, messages: usize, bytes: usize) -> Result<Floor, QueueError> {
        let floor = self.through_a_stream(messages, bytes).await;
        let mut clear = redis::cmd("DEL");
        clear.arg(FLOOR);
        let cleared = clear.query_async::<()>(&mut self.connection).await;
        let floor = floor.map_err(QueueError::Unavailable)?;
        cleared.map_err(QueueError::Unavailable)?;
        Ok(floor)
    }

    async fn through_a_stream(
        &mut self,
        messages: usize,
        bytes: usize,
    ) -> redis::RedisResult<Floor> {
        let payload = vec![b'x'; bytes];
        let mut make = redis::cmd("XGROUP");
        make.arg("CREATE").arg(FLOOR).arg(keys::GROUP).arg(0).arg("MKSTREAM");
        make.query_async::<()>(&mut self.connection).await?;
        let begun = Instant::now();
        for first in (0..messages).step_by(BATCH) {
            let mut add = redis::pipe();
            for _ in first..messages.min(first + BATCH) {
                add.cmd("XADD").arg(FLOOR).arg("*").arg("j").arg(&payload).ignore();
            }
            add.query_async::<()>(&mut self.connection).await?;
        }
        let submit_per_s = messages as f64 / begun.elapsed().as_secs_f64();

        let begun = Instant::now();
        let mut drained = 0;
        while drained < messages {
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg(keys::GROUP).arg("floor").arg("COUNT").arg(BATCH);
            read.arg("STREAMS").arg(FLOOR).arg(">");
            let reply: StreamReadReply = read.query_async(&mut self.connection).await?;
            let ids: Vec<_> = reply.keys.into_iter().flat_map(|k| k.ids).map(|e| e.id).collect();
            if ids.is_empty() {
                break;
            }
            drained += ids.len();
            let mut ack = redis::cmd("XACK");
            ack.arg(FLOOR).arg(keys::GROUP).arg(ids);
            ack.query_async::<()>(&mut self.connection).await?;
        }
        let drain_per_s = drained as f64 / begun.elapsed().as_secs_f64();
        Ok(Floor { submit_per_s, drain_per_s })
    }

    /// What it does besides its work, that slows it down and passes.
    pub async fn chore(&mut self) -> Result<Option<Chore>, QueueError> {
        let info = self.info("persistence").await?;
        let scheduled = field(&info, "aof_rewrite_scheduled")?;
        if field(&info, "aof_rewrite_in_progress")? + scheduled > 0.0 {
            return Ok(Some(Chore::RewritesItsFile));
        }
        let keys: usize = self.ask(&["DBSIZE"]).await?;
        let stats: HashMap<String, Value> = self.ask(&["MEMORY", "STATS"]).await?;
        let overhead = stats.get("db.0").and_then(|db| {
            let db = HashMap::<String, usize>::from_redis_value(db.clone()).ok()?;
            db.get("overhead.hashtable.main").copied()
        });
        // A table has a power of two of places; while keys move to a larger one there are both.
        let places = overhead.map(|bytes| bytes.saturating_sub(keys * PER_KEY) / PER_PLACE);
        Ok(places.filter(|places| !places.is_power_of_two()).map(|_| Chore::GrowsItsTable))
    }

    async fn ask<T: FromRedisValue>(&mut self, words: &[&str]) -> Result<T, QueueError> {
        let mut cmd = redis::Cmd::new();
        cmd.arg(words);
        cmd.query_async(&mut self.connection).await.map_err(QueueError::Unavailable)
    }

    async fn info(&mut self, section: &str) -> Result<String, QueueError> {
        self.ask(&["INFO", section]).await
    }
}

/// A number of what `INFO` says.
fn field(info: &str, name: &str) -> Result<f64, QueueError> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let corrupt = || QueueError::corrupt(format!("INFO, {name}"), format!("{value:?}"));
    value.and_then(|text| text.trim().parse().ok()).ok_or_else(corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let info = "# CPU\r\nused_cpu_sys_children:9.0\r\nused_cpu_sys:1.5\r\n";
        assert_eq!(field(info, "used_cpu_sys").unwrap(), 1.5);
        assert!(field(info, "used_cpu").is_err());
    }
}
