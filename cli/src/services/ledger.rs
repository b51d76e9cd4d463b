//! `rhizome ledger`: accounts, farms, nodes, uptime.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rhizome_ledger::{AuditVerdict, DatabaseUrl, LedgerConfig, STATEMENT_LIFETIME, verify_audit};

use rhizome_model::AccountId;
use serde_json::json;

use super::{Common, network_of, state_folder, state_of};
use crate::cli::Globals;
use crate::error::Error;
use crate::output;

/// Serve the registry of accounts, farms and nodes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rhizome ledger --listen 127.0.0.1:8700 --state /var/lib/rhizome/ledger\n  \
        rhizome ledger --state /var/lib/rhizome/ledger audit verify\n  \
        rhizome ledger --database postgres://ledger@host/ledger backup /srv/ledger.backup"
)]
pub struct Args {
    /// The address and port to listen on; port 0 takes a free one.
    #[arg(long, env = "RHIZOME_LISTEN", default_value = "127.0.0.1:8700", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where it keeps what it knows: sqlite:FILE, or postgres://USER:PASSWORD@HOST/NAME, which
    /// several ledgers may share [default: ledger.db in the state folder].
    #[arg(
        long,
        global = true,
        env = "RHIZOME_DATABASE",
        value_name = "URL",
        hide_env_values = true
    )]
    database: Option<DatabaseUrl>,
    /// The file with the key that signs statements; ledgers of one database share it
    /// [default: ledger.key in the state folder, made where there is none].
    #[arg(long, env = "RHIZOME_SIGNING_KEY", value_name = "PATH")]
    signing_key: Option<PathBuf>,
    /// For how many seconds nodes believe a statement while they cannot reach a ledger.
    #[arg(long, env = "RHIZOME_STATEMENT_LIFETIME", value_name = "SECONDS", default_value_t = STATEMENT_LIFETIME.as_secs(),
          value_parser = clap::value_parser!(u64).range(10..=30 * 86_400))]
    statement_lifetime: u64,
    /// The account that may set the version of Zero-OS.
    #[arg(long, env = "RHIZOME_ADMIN", value_name = "ACCOUNT", default_value_t = rhizome_ledger::ADMIN)]
    admin: AccountId,
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    what: Option<What>,
}

/// What can be done with a ledger's database beside serving it.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// The log of all changes.
    #[command(subcommand)]
    Audit(AuditWhat),
    /// Write all that the ledger knows into a file, while it runs.
    Backup {
        /// The file; what was in it is replaced.
        file: PathBuf,
    },
    /// Put a backup into a new database, of the same store or the other.
    Restore {
        /// The file that `backup` wrote.
        file: PathBuf,
        /// Drop what is in the database.
        #[arg(long)]
        replace: bool,
    },
}

#[derive(Debug, clap::Subcommand)]
enum AuditWhat {
    /// Find out whether a row of the log was changed, removed or moved. Exit code 1 when one was.
    Verify {
        /// The number and the hash of a row, as somebody kept them: NUMBER:HASH.
        #[arg(long, value_name = "NUMBER:HASH", value_parser = kept)]
        kept: Option<(u64, String)>,
    },
}

fn kept(text: &str) -> Result<(u64, String), String> {
    let parts = text.split_once(':').and_then(|(n, hash)| Some((n.parse().ok()?, hash)));
    let (number, hash) = parts.ok_or("write NUMBER:HASH, as `audit verify` prints them")?;
    Ok((number, hash.to_ascii_lowercase()))
}

impl Args {
    /// Whether it serves until it is told to stop.
    pub fn is_service(&self) -> bool {
        self.what.is_none()
    }
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let usual = || DatabaseUrl::sqlite(state_of("ledger", globals).join("ledger.db"));
    let database = args.database.unwrap_or_else(usual);
    match args.what {
        Some(What::Audit(AuditWhat::Verify { kept })) => {
            return verify(&database, kept, globals).await;
        }
        Some(What::Backup { file }) => {
            let rows = rhizome_ledger::backup(&database, &file).await?;
            return Ok(copied("backed up", rows, &file, globals));
        }
        Some(What::Restore { file, replace }) => {
            let rows = rhizome_ledger::restore(&database, &file, replace).await?;
            return Ok(copied("restored", rows, &file, globals));
        }
        None => {}
    }
    let shutdown = args.common.shutdown()?;
    if matches!(database, DatabaseUrl::Sqlite(_)) {
        state_folder(&state_of("ledger", globals))?;
    }
    let listener = rhizome_service::http::bind(args.listen).await?;
    let signing_key = match args.signing_key {
        Some(path) => path,
        None => state_folder(&state_of("ledger", globals))?.join("ledger.key"),
    };
    let config = LedgerConfig {
        database,
        network: network_of(globals),
        admin: args.admin,
        signing_key,
        statement_lifetime: Duration::from_secs(args.statement_lifetime),
    };
    rhizome_ledger::run(config, listener, shutdown.token.clone()).await?;
    Ok(ExitCode::SUCCESS)
}

fn copied(done: &str, rows: u64, file: &Path, globals: &Globals) -> ExitCode {
    if globals.json {
        output::json(&json!({ "file": file, "rows": rows }));
    } else {
        output::line(format_args!("{done}: {rows} rows, {}", file.display()));
    }
    ExitCode::SUCCESS
}

async fn verify(
    database: &DatabaseUrl,
    kept: Option<(u64, String)>,
    globals: &Globals,
) -> Result<ExitCode, Error> {
    let verdict = verify_audit(database, kept).await?;
    if globals.json {
        output::json(&verdict);
    } else {
        output::line(match &verdict {
            AuditVerdict::Whole { rows, last_hash } => {
                format!("whole: {rows} rows; keep {rows}:{last_hash}")
            }
            AuditVerdict::Broken { number, why } => format!("broken at row {number}: {why}"),
        });
    }
    Ok(match verdict {
        AuditVerdict::Whole { .. } => ExitCode::SUCCESS,
        AuditVerdict::Broken { .. } => ExitCode::from(1),
    })
}
