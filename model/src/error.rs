//! Error codes: stable words for machines, beside the sentence for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a caller does about it; the command line's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The deployment or job failed: exit code 1.
    Failed,
    /// The request makes no sense: exit code 2.
    Misuse,
    /// Signature, authorisation or admission say no: exit code 3.
    Refused,
    /// A service cannot be reached; the same call may go through later: exit code 4.
    Unreachable,
}

impl Class {
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Misuse => 2,
            Self::Refused => 3,
            Self::Unreachable => 4,
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal $class:ident,)*) => {
        /// A stable error code, in JSON as `snake_case`.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
            utoipa::ToSchema,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The HTTP status that carries it.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            pub const fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)* }
            }
        }
    };
}

codes! {
    // The envelope
    /// Larger than is taken.
    TooLarge = 413 Refused,
    /// Not a DSSE envelope.
    BadEnvelope = 400 Refused,
    /// A payload type that is not ours.
    UnknownPayloadType = 400 Refused,
    /// A signature does not verify.
    BadSignature = 401 Refused,
    /// The payload is not a valid document.
    InvalidDocument = 400 Refused,
    /// Signed for another network.
    WrongNetwork = 403 Refused,
    /// Past its expiry.
    Expired = 403 Refused,
    /// Before its not-before.
    NotYetValid = 403 Refused,
    /// No account has this key.
    UnknownAccount = 403 Refused,
    /// The account is revoked.
    RevokedAccount = 403 Refused,
    /// The key was revoked, or another has taken its place.
    RevokedKey = 403 Refused,
    /// The farm is closed to the account, or what it was granted is used up.
    NotGranted = 403 Refused,
    /// What the ledger said does not bear its signature, is of another network, or is too old.
    BadStatement = 503 Unreachable,
    /// The signers may not do this.
    Unauthorised = 403 Refused,
    /// The nonce was used before.
    Replayed = 409 Refused,
    /// Not a version after the current one.
    StaleVersion = 409 Refused,
    /// Something else is under way with this deployment.
    Conflict = 409 Refused,
    /// The node is not in the placement, or not known.
    WrongNode = 403 Refused,

    // Authentication of API calls
    /// The call carries no valid HTTP message signature.
    Unauthenticated = 401 Refused,

    // Keys of users and nodes
    /// The ssh-agent is not there.
    AgentUnavailable = 503 Unreachable,
    /// The ssh-agent has no such key.
    NoSuchKey = 404 Misuse,
    /// The ssh-agent does not sign.
    AgentRefused = 403 Refused,
    /// A node's identity was there and cannot be read, opened or trusted.
    IdentityLost = 500 Refused,
    /// Copies of a node's identity are of different nodes.
    IdentityConflict = 500 Refused,
    /// The ledger knows this machine under another key.
    KnownMachine = 409 Refused,
    /// The passphrase or key does not open it.
    WrongPassphrase = 403 Refused,
    /// The purpose is not one that the caller may use.
    WrongPurpose = 403 Refused,

    // The script
    /// It does not parse.
    ScriptSyntaxError = 422 Refused,
    /// It calls what does not exist, or declares what cannot be.
    ScriptInvalid = 422 Refused,
    /// A field of a spec is unknown, missing or wrong.
    InvalidSpec = 422 Refused,
    /// It exceeded a limit: size, operations, depth, memory, time, number of resources.
    ScriptLimit = 422 Refused,
    /// It stopped itself with `fail(…)`.
    ScriptFailed = 422 Failed,
    /// It raised an error while it ran.
    ScriptError = 422 Failed,
    /// A replay asked for something else than before.
    NondeterministicScript = 422 Failed,

    // Admission
    /// The node has not enough free cpu, memory or disk.
    InsufficientCapacity = 409 Refused,
    /// It would delete or replace what holds data, and its policy does not allow that.
    DataLoss = 409 Refused,
    /// It would shrink a resource below what it holds.
    BelowUse = 409 Refused,

    // Making it so
    /// The image is not there.
    ImageNotFound = 422 Failed,
    /// The image cannot be read.
    ImageCorrupt = 422 Failed,
    /// The image has entries that would leave its root.
    ImageUnsafe = 422 Failed,
    /// The pool is full.
    PoolFull = 507 Failed,
    /// A limit of the resource was reached.
    QuotaExceeded = 507 Failed,
    /// A program that is needed is not installed.
    MissingTool = 500 Failed,
    /// A program that we started failed.
    ToolFailed = 500 Failed,
    /// It took longer than it may.
    TimedOut = 504 Failed,
    /// It was cancelled.
    Cancelled = 409 Failed,
    /// Another resource that it needs failed.
    DependencyFailed = 424 Failed,
    /// Its runner died too often.
    Quarantined = 500 Failed,
    /// The machine cannot run what it is told to.
    StartFailed = 422 Failed,
    /// Undoing failed; it is tried again.
    RollbackStuck = 500 Failed,

    // The services
    /// There is nothing of that name.
    NotFound = 404 Failed,
    /// The request makes no sense.
    BadRequest = 400 Misuse,
    /// No such route or method.
    NoSuchRoute = 404 Misuse,
    /// Mycelium was given no peer.
    NoPeers = 400 Misuse,
    /// A Mycelium peer is not one.
    InvalidPeer = 400 Misuse,
    /// A port is taken.
    PortTaken = 500 Failed,
    /// A folder of ours cannot be written.
    StateNotWritable = 500 Failed,
    /// The service is not there, or not ready.
    Unavailable = 503 Unreachable,
    /// A fault of ours.
    Internal = 500 Failed,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // serde's name is the one source of the word.
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(word)) => f.write_str(&word),
            _ => Err(fmt::Error),
        }
    }
}

/// A failure as people and programs see it, wherever it happened: what happened and what to do,
/// with its code. On the API it is `{"error": message, "code": code, …}`.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema,
)]
#[error("{message}")]
pub struct Failure {
    #[serde(rename = "error")]
    pub message: String,
    pub code: Code,
    /// The resource that it is about, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<crate::Name>,
    /// Where in the script, and what else helps: the offending line, the last lines of a log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { message: message.into(), code, resource: None, detail: None }
    }

    #[must_use]
    pub fn about(mut self, resource: crate::Name) -> Self {
        self.resource = Some(resource);
        self
    }

    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_statuses_of_all_codes() {
        let table: Vec<_> = Code::ALL
            .iter()
            .map(|c| format!("{c} {} {}", c.status(), c.class().exit_code()))
            .collect();
        insta::assert_snapshot!(table.join("\n"));
    }
}
