//! What we say to a database: a few commands, each within its time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use rhizome_model::Bytes;
use rhizome_model::kind::Herodb;

/// An engine that works answers within this.
const PATIENCE: Duration = Duration::from_secs(2);
/// No reply to us is longer.
const MAX_REPLY: usize = 1 << 20;

/// The user by which we ask; tenants are the default one.
pub(super) const USER: &str = "rhizome";

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Silence {
    #[error("it is loading its data")]
    Loading,
    #[error("it does not answer: {0}")]
    Mute(String),
    /// Something is there, and says nothing.
    #[error("it does not answer: nothing came within {PATIENCE:?}")]
    Late,
    /// It does, and says no.
    #[error("it refuses: {0}")]
    Refused(String),
}

impl From<std::io::Error> for Silence {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        match error.kind() {
            TimedOut | WouldBlock => Self::Late,
            _ => Self::Mute(error.to_string()),
        }
    }
}

/// What a database says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub keys: u64,
    pub memory_used: Bytes,
    pub memory_most: Bytes,
    /// It was started without room for its log.
    pub is_closed: bool,
    pub is_log_written: bool,
}

pub(super) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects as the user that we are for it.
    pub fn connect(address: Ipv6Addr, password: &str) -> Result<Self, Silence> {
        let address = SocketAddr::from((address, Herodb::PORT));
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self { stream: BufReader::new(stream) };
        client.ask(&["AUTH", USER, password])?;
        Ok(client)
    }

    pub fn ping(&mut self) -> Result<(), Silence> {
        match self.ask(&["PING"])?.as_str() {
            "PONG" => Ok(()),
            other => Err(Silence::Refused(format!("PING is answered with {other:?}"))),
        }
    }

    pub fn look(&mut self) -> Result<Seen, Silence> {
        self.ping()?;
        Ok(Seen::parse(&self.ask(&["INFO"])?))
    }

    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Silence> {
        self.ask(&["CONFIG", "SET", name, value]).map(drop)
    }

    /// Has it take writes again.
    pub fn open(&mut self) -> Result<(), Silence> {
        self.set("min-replicas-to-write", "0")
    }

    /// Has it read its users anew. That may cut us off too.
    pub fn load_users(&mut self) -> Result<(), Silence> {
        self.ask(&["ACL", "LOAD"]).map(drop)
    }

    /// Cuts off all tenants: who knows the password comes again.
    pub fn cut_off(&mut self) -> Result<(), Silence> {
        self.ask(&["CLIENT", "KILL", "USER", "default"]).map(drop)
    }

    fn ask(&mut self, words: &[&str]) -> Result<String, Silence> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.reply()
    }

    /// One reply; none that we ask for is a list.
    fn reply(&mut self) -> Result<String, Silence> {
        let mut line = String::new();
        (&mut self.stream).take(MAX_REPLY as u64).read_line(&mut line)?;
        let strange = || Silence::Mute("it does not speak the protocol of Redis".into());
        let Some(text) = line.strip_suffix("\r\n") else {
            return Err(Silence::Mute("it closed the connection".into()));
        };
        match text.split_at_checked(1) {
            Some(("+" | ":", text)) => Ok(text.to_owned()),
            Some(("-", text)) if text.starts_with("LOADING") => Err(Silence::Loading),
            Some(("-", text)) => Err(Silence::Refused(text.to_owned())),
            Some(("$", length)) => {
                let length: usize = length.parse().map_err(|_| strange())?;
                if length > MAX_REPLY {
                    return Err(strange());
                }
                let mut bytes = vec![0; length + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(length);
                String::from_utf8(bytes).map_err(|_| strange())
            }
            _ => Err(strange()),
        }
    }
}

impl Seen {
    /// Of what INFO says: lines of `name:value`, and `db0:keys=1,…` per database.
    fn parse(info: &str) -> Self {
        let fields = || info.lines().filter_map(|line| line.trim_end().split_once(':'));
        let field = |name: &str| fields().find(|(n, _)| *n == name).map(|(_, value)| value);
        let number = |name: &str| field(name).and_then(|v| v.parse().ok()).unwrap_or(0);
        let databases = fields().filter(|(name, _)| {
            name.strip_prefix("db").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        });
        let keys = databases
            .filter_map(|(_, v)| v.strip_prefix("keys=")?.split(',').next()?.parse::<u64>().ok());
        Self {
            keys: keys.sum(),
            memory_used: Bytes(number("used_memory")),
            memory_most: Bytes(number("maxmemory")),
            // The engine says this only while it wants replicas, which it never has.
            is_closed: field("min_slaves_good_slaves").is_some(),
            is_log_written: field("aof_last_write_status").is_none_or(|s| s == "ok")
                && field("aof_last_bgrewrite_status").is_none_or(|s| s == "ok"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_database_says_of_itself_is_read() {
        let info = "# Memory\r\nused_memory:1048576\r\nused_memory_human:1.00M\r\nmaxmemory:8388608\r\n\
            aof_last_write_status:ok\r\naof_last_bgrewrite_status:ok\r\n\
            # Keyspace\r\ndb0:keys=3,expires=0,avg_ttl=0\r\ndb12:keys=4,expires=1,avg_ttl=9\r\n";
        let seen = Seen::parse(info);
        assert_eq!(
            seen,
            Seen {
                keys: 7,
                memory_used: Bytes::mib(1),
                memory_most: Bytes::mib(8),
                is_closed: false,
                is_log_written: true,
            }
        );
        let closed = Seen::parse("min_slaves_good_slaves:0\r\naof_last_bgrewrite_status:err\r\n");
        assert!(closed.is_closed && !closed.is_log_written);
    }
}
