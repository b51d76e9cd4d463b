//! Who somebody is: keys, signatures, sealed secrets, and the identity manager of a node.
//!
//! ```text
//!   words, OpenSSH key, key file ─▶ SigningKey ─┬─▶ DSSE envelopes, HTTP message signatures
//!                                               ├─▶ X25519 ─▶ sealed secrets
//!                                               └─▶ Mycelium address
//!   ssh-agent, hardware token ─▶ UserKey ─▶ the same signatures, as SSHSIG where need be
//!   bytes from anywhere ─▶ verify ─▶ a document that its account signed
//!   manager: the node's key ─▶ ledger (account, farm, node, uptime)
//! ```
//!
//! Private keys are kept 0600, wiped from memory, never printed and never logged. Signatures are
//! always checked strictly.
//!
//! Must not know: what a document's script says, Redis, SQL, how anything is made on a node.

mod address;
pub mod agent;
mod envelope;
pub mod http_signature;
mod import;
mod key;
mod keyfile;
mod ledger_client;
mod ledgers;
pub mod manager;
mod purpose;
mod seal;
pub mod sshsig;
mod statements;
mod user_key;
mod verify;

pub use address::mycelium_address;
pub use envelope::{SignatureError, digest, verify_signatures};
pub use key::{KeyError, SigningKey, check_key, verify_bytes};
pub use ledger_client::{LedgerClient, LedgerNode};
pub use purpose::{Purpose, verify_for};
pub use seal::{MAX_SECRET_BYTES, SealError, SealingKey, seal};
pub use statements::{Statements, StatementsConfig, open_signed, sign_statement};
pub use user_key::UserKey;
pub use verify::{Accounts, Verified, active_account, verify};
