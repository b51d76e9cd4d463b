//! The services, one by one: `rhizome ledger | coord | node | supervisor | runner`.
//!
//! ```text
//!   node ──starts──▶ supervisor ──starts──▶ runner, runner, …      (a node's processes)
//!     └─ keeps the private key, registers, opens secrets, brings bridge and pool up
//! ```
//!
//! What a node's processes have to agree on is in one file, written by `node`: [`node_file`].

pub mod coord;
pub mod health;
pub mod identity;
pub mod ledger;
pub mod mycelium;
pub mod node;
pub mod node_file;
pub mod process;
pub mod runner;
pub mod supervisor;

use std::path::{Path, PathBuf};

use rhizome_model::{Code, Failure};
use rhizome_service::Shutdown;

use crate::cli::Globals;
use crate::error::misuse;

/// What every service can be told.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Common {
    /// Stop when standard input ends: then whoever started this has died.
    #[arg(long, hide = true)]
    pub lifeline: bool,
}

/// Whose word counts.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct LedgerKey {
    /// The key that the ledger signs with (`rhizome ledger --help`); without it, the one that it
    /// shows at the first contact counts from then on.
    #[arg(long, env = "RHIZOME_LEDGER_KEY", value_name = "KEY")]
    pub ledger_key: Option<rhizome_model::KeyId>,
}

impl Common {
    pub fn shutdown(&self) -> Result<Shutdown, Failure> {
        let shutdown = Shutdown::new();
        shutdown.on_signals().map_err(|e| Failure::new(Code::Internal, format!("signals: {e}")))?;
        if self.lifeline {
            shutdown.on_parents_death();
        }
        Ok(shutdown)
    }
}

/// The state folder of a service: `--state`, else its own below /var/lib/rhizome.
pub fn state_of(service: &str, globals: &Globals) -> PathBuf {
    let usual = || Path::new("/var/lib/rhizome").join(service);
    globals.state.clone().unwrap_or_else(usual)
}

/// Services belong to the real thing unless they are told otherwise.
pub fn network_of(globals: &Globals) -> String {
    globals.network.clone().unwrap_or_else(|| "main".into())
}

pub fn ledger_of(globals: &Globals) -> Result<String, Failure> {
    globals.ledger.clone().ok_or_else(|| misuse("say where the ledger is: --ledger URL"))
}

/// Makes a folder of ours, for our eyes only, and makes sure that it can be written.
pub fn state_folder(path: &Path) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let refuse = |e: std::io::Error| {
        let message = format!(
            "the state folder {} cannot be written: {e}; choose another with --state",
            path.display()
        );
        Failure::new(Code::StateNotWritable, message)
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(refuse)?;
    let probe = path.join(".writable");
    std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe)).map_err(refuse)?;
    path.canonicalize().map_err(refuse)
}

/// The program that we are; every process of ours is started from it.
pub fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|e| Failure::new(Code::Internal, format!("cannot find our own program: {e}")))
}
