//! Making sure that redis-server is what a durable queue needs, before anything is entrusted to it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::QueueError;
use crate::backoff::{RECONNECT, jittered};
use crate::link::Link;

/// A redis-server that is started at the same time as we are there by then.
const APPEAR: Duration = Duration::from_secs(10);
/// Streams that say who holds what came with it.
const OLDEST: (u32, u32) = (6, 2);
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// redis-server's unix socket.
    pub socket: PathBuf,
    pub durability: Durability,
}

/// What an answer promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// It is on disk: nothing that was answered is lost by a power cut.
    #[default]
    Always,
    /// It is on disk a second later.
    Everysec,
    /// The operating system writes it when it likes; or it is not written at all.
    None,
}

impl Durability {
    /// redis-server's settings that make it true.
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Always => &[("appendonly", "yes"), ("appendfsync", "always")],
            Self::Everysec => &[("appendonly", "yes"), ("appendfsync", "everysec")],
            Self::None => &[("appendfsync", "no")],
        }
    }
}

pub(crate) async fn prepare(link: &Link, config: &QueueConfig) -> Result<(), QueueError> {
    wait_until_ready(link, config).await?;
    check_version(link).await?;
    let policy = setting(link, "maxmemory-policy").await?;
    if policy != "noeviction" {
        return Err(QueueError::Refused(format!(
            "its maxmemory-policy is {policy}, which throws jobs away when memory is short; set it to noeviction"
        )));
    }
    for (name, value) in config.durability.settings() {
        if setting(link, name).await? != *value {
            set(link, name, value).await?;
        }
    }
    link.prepare().await
}

pub(crate) async fn set(link: &Link, name: &str, value: &str) -> Result<(), QueueError> {
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg(name).arg(value);
    link.query(&set).await.map_err(|e| refused(name, e))
}

/// While redis-server reads its files it says so: then we wait as long as it takes.
async fn wait_until_ready(link: &Link, config: &QueueConfig) -> Result<(), QueueError> {
    let mut deadline = Instant::now() + APPEAR;
    let mut attempt = 1;
    loop {
        let error = match link.once::<()>(&redis::cmd("PING")).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if error.code() == Some("LOADING") {
            deadline = Instant::now() + APPEAR;
        } else if Instant::now() > deadline {
            tracing::debug!(socket = %config.socket.display(), "no redis-server");
            return Err(QueueError::Unavailable(error));
        }
        tokio::time::sleep(jittered(RECONNECT, attempt)).await;
        attempt += 1;
    }
}

async fn check_version(link: &Link) -> Result<(), QueueError> {
    let mut info = redis::cmd("INFO");
    info.arg("server");
    let info: String = link.query(&info).await?;
    let version = info.lines().find_map(|l| l.strip_prefix("redis_version:")).unwrap_or_default();
    match parse_version(version) {
        Some(version) if version >= OLDEST => Ok(()),
        Some(_) | None => Err(QueueError::Refused(format!(
            "it is version '{version}'; {}.{} or newer is needed",
            OLDEST.0, OLDEST.1
        ))),
    }
}

fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim().split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(crate) async fn setting(link: &Link, name: &str) -> Result<String, QueueError> {
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg(name);
    let pair: Vec<String> = link.query(&get).await.map_err(|e| refused(name, e))?;
    Ok(pair.into_iter().nth(1).unwrap_or_default())
}

fn refused(name: &str, error: QueueError) -> QueueError {
    match error {
        QueueError::Unavailable(e) if !crate::link::is_transient(&e) => {
            QueueError::Refused(format!("its setting {name}: {e}"))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parse_version("7.0.15").is_some_and(|v| v >= OLDEST));
        assert!(parse_version("10.1.0\r").is_some_and(|v| v >= OLDEST));
        assert!(parse_version("6.0.9").is_some_and(|v| v < OLDEST));
        assert_eq!(parse_version("unknown"), None);
    }
}
