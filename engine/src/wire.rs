//! What parent and child say to each other: frames of four bytes of length, big-endian, and that
//! many bytes of JSON.
//!
//! ```text
//!   parent                         child
//!   Limits ──────────────────────▶ gives up what is left, and cannot go beyond them
//!   Script ──────────────────────▶ compiles, evaluates
//!         ◀─────────────────────── Call  ┐ any number, one at a time
//!   Reply ───────────────────────▶       ┘
//!         ◀─────────────────────── Done, and exits
//! ```

use std::io;

use rhizome_model::{Action, DesiredResource, Failure, Limits, Name};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::Context;

/// The longest frame that a child may send. A spec or an output is far smaller.
pub const MAX_FROM_CHILD: usize = 256 << 10;
/// The longest frame that a child is sent: a script with its parameters and peers.
pub const MAX_TO_CHILD: usize = 4 << 20;

/// What the parent asks of the zygote, a datagram each.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Setup {
        uid_gid: u32,
    },
    /// With the child's standard input, output and error. It is told nothing of any request: what a
    /// child needs to know comes through its own pipe.
    Fork(When),
}

/// When a child is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// Its script waits for it.
    Now,
    /// Nobody asks yet: it gets ready, and waits.
    Ahead,
}

impl Order {
    pub const MAX_BYTES: usize = 1024;
}

/// What the zygote answers to each order.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Ready,
    Forked(i32),
    Failed(String),
}

impl Answer {
    pub const MAX_BYTES: usize = 4096;
}

#[derive(Debug, Serialize, Deserialize)]
pub enum ToChild {
    /// First, and once.
    Limits(Limits),
    Script(Box<Work>),
    Reply(Reply),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Work {
    pub mode: Mode,
    pub file: String,
    pub source: String,
    pub context: Context,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Analyse, then evaluate unless something was found.
    Evaluate,
    /// Report everything that is found, and evaluate as far as it goes.
    Check,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    Value(Value),
    /// The parent keeps the failure itself under this number.
    Failed {
        id: usize,
        failure: Failure,
    },
    Unknown,
    Aborted,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum FromChild {
    Call(Call),
    Done(Done),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Call {
    Declare(DesiredResource),
    Read(Name),
    Ready(Name),
    Act { name: Name, action: Action },
    Secret(String),
    Log(String),
    Output { key: String, value: Value },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    /// Of the analysis, and in [`Mode::Check`] of the evaluation too.
    pub findings: Vec<Failure>,
    pub stop: Option<ChildStop>,
}

/// Why the script did not come to its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ChildStop {
    Failed(Failure),
    /// A failure of the host that the script did not catch, and where.
    Raised {
        id: usize,
        place: String,
    },
    Unknown,
    Aborted,
}

pub fn encode<T: Serialize>(message: &T, max: usize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > max {
        return Err(too_long(length, max));
    }
    frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(frame)
}

pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// The length in a frame's head, if it is one that we take.
pub fn body_length(head: [u8; 4], max: usize) -> io::Result<usize> {
    let length = u32::from_be_bytes(head) as usize;
    if length > max { Err(too_long(length, max)) } else { Ok(length) }
}

fn too_long(length: usize, max: usize) -> io::Error {
    let what = format!("a message of {length} bytes; at most {max} are taken");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One message of the child, and how many bytes it took.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(FromChild, usize)> {
    let mut head = [0; 4];
    from.read_exact(&mut head).await?;
    let mut body = vec![0; body_length(head, MAX_FROM_CHILD)?];
    from.read_exact(&mut body).await?;
    Ok((decode(&body)?, body.len()))
}
