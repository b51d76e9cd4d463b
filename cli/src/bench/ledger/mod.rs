//! `rhizome bench ledger`: a ledger process of its own under the reports of a fleet.
//!
//! ```text
//!   start PostgreSQL? ─▶ start ledger ─▶ register N nodes ─▶ each one's first report
//!       ─▶ reports at full speed ─▶ reports at half of that: latency ─▶ lists: latency
//! ```
//!
//! A node's first report is another piece of work than those that follow, so it is counted for itself:
//! of a large fleet it would be most of what is sent, of a small one next to nothing.
//!
//! Each report has a signature of its own, and is answered when it is on disk.

mod fleet;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use rhizome_database::PostgresServer;
use rhizome_ledger::DatabaseUrl;
use rhizome_model::{Code, Failure};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use self::fleet::Fleet;
use self::wire::Wire;
use super::submit::percentile;
use crate::cli::Globals;
use crate::error::{Error, internal, misuse};
use crate::output;
use crate::services::program;

const READY: Duration = Duration::from_secs(60);
const LISTS: usize = 400;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome bench ledger --database postgres --nodes 10000 --json")]
pub struct Args {
    /// Where the ledger keeps what it knows: an empty database (sqlite:FILE or postgres://…), or
    /// `sqlite` or `postgres` for a new one that is removed again [default: both of these].
    #[arg(long, value_name = "URL")]
    database: Vec<Place>,
    /// Nodes that are registered and report.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    nodes: usize,
    /// How long reports are sent at full speed, and again at half of it.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    seconds: u64,
}

#[derive(Debug, Clone)]
enum Place {
    NewSqlite,
    NewPostgres,
    Given(DatabaseUrl),
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sqlite" => Ok(Self::NewSqlite),
            "postgres" => Ok(Self::NewPostgres),
            url => url.parse().map(Self::Given),
        }
    }
}

/// What was measured of one store.
struct Figures {
    store: String,
    nodes: usize,
    register_per_s: f64,
    first_reports_per_s: f64,
    reports_per_s: f64,
    report_p99_ms: f64,
    list_p99_ms: f64,
    rss_mib: f64,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    if args.nodes == 0 || args.seconds == 0 {
        return Err(misuse("there is nothing to measure: give numbers above 0").into());
    }
    let both = || match PostgresServer::programs() {
        Some(_) => vec![Place::NewSqlite, Place::NewPostgres],
        None => {
            output::note("PostgreSQL is not installed: only SQLite is measured");
            vec![Place::NewSqlite]
        }
    };
    let places = if args.database.is_empty() { both() } else { args.database.clone() };
    let mut all = Vec::new();
    for place in &places {
        let figures = measure(place, &args).await?;
        if !globals.json {
            show(&figures);
        }
        all.push(figures.json());
    }
    if globals.json {
        output::json(&if all.len() == 1 { all.remove(0) } else { Value::Array(all) });
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(place: &Place, args: &Args) -> Result<Figures, Error> {
    let folder = Folder::new()?;
    let (url, _server) = match place {
        Place::NewSqlite => (DatabaseUrl::sqlite(folder.0.join("ledger.db")), None),
        Place::NewPostgres => {
            let server = PostgresServer::start(&[], None)
                .await
                .map_err(|e| Failure::new(Code::Unavailable, e))?;
            (server.database(), Some(server))
        }
        Place::Given(url) => (url.clone(), None),
    };
    let store = url.store().to_string();
    let mut ledger = Ledger::start(&url, &folder.0).await?;
    output::note(format!("{store}: registering {} nodes", args.nodes));
    let begun = Instant::now();
    let fleet = Fleet::register(&ledger.host, args.nodes).await?;
    let register_per_s = args.nodes as f64 / begun.elapsed().as_secs_f64();
    output::note(format!("{store}: reporting"));
    let time = Duration::from_secs(args.seconds);
    let first_reports_per_s = fleet.first_reports_per_s().await?;
    let reports_per_s = fleet.reports_per_s(time).await?;
    let latencies = fleet.latencies(reports_per_s / 2.0, time).await?;
    let rss_mib = ledger.rss_mib()?;
    let lists = fleet.lists(LISTS).await?;
    ledger.stop().await;
    Ok(Figures {
        store,
        nodes: args.nodes,
        register_per_s,
        first_reports_per_s,
        reports_per_s,
        report_p99_ms: percentile(&latencies, 0.99),
        list_p99_ms: percentile(&lists, 0.99),
        rss_mib,
    })
}

impl Figures {
    fn json(&self) -> Value {
        json!({
            "store": self.store, "nodes": self.nodes,
            "register_per_s": self.register_per_s.round(),
            "first_reports_per_s": self.first_reports_per_s.round(),
            "reports_per_s": self.reports_per_s.round(),
            "report_p99_ms": self.report_p99_ms, "list_p99_ms": self.list_p99_ms,
            "rss_mib": (self.rss_mib * 10.0).round() / 10.0,
        })
    }
}

fn show(figures: &Figures) {
    let Figures { store, nodes, .. } = figures;
    output::line(format_args!("{store}, {nodes} nodes"));
    for (value, decimals, words) in [
        (figures.register_per_s, 0, "nodes registered per second"),
        (figures.first_reports_per_s, 0, "first reports verified and on disk per second"),
        (figures.reports_per_s, 0, "reports verified and on disk per second"),
        (figures.report_p99_ms, 2, "ms of a report, p99, at half that rate"),
        (figures.list_p99_ms, 2, "ms of a list with filters, p99"),
        (figures.rss_mib, 1, "MiB of memory of the ledger"),
    ] {
        output::line(format_args!("{value:>12.decimals$}  {words}"));
    }
}

/// A ledger process of our own.
struct Ledger {
    process: Child,
    host: String,
}

impl Ledger {
    async fn start(url: &DatabaseUrl, state: &Path) -> Result<Self, Failure> {
        let url = match url {
            DatabaseUrl::Sqlite(file) => format!("sqlite:{}", file.display()),
            DatabaseUrl::Postgres(url) => url.clone(),
        };
        let host = free_address()?;
        let process = Command::new(program()?)
            .args(["ledger", "--lifeline", "--network", "dev", "--listen", &host, "--state"])
            .arg(state)
            // Not an argument: those of a process can be read by everybody, and it may hold a password.
            .env("RHIZOME_DATABASE", url)
            .env("RHIZOME_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| internal("cannot start `rhizome ledger`", &e))?;
        let mut own = Self { process, host };
        let begun = Instant::now();
        loop {
            if let Ok(mut wire) = Wire::connect(&own.host).await
                && wire.must("GET", "/healthz", None, "").await.is_ok()
            {
                return Ok(own);
            }
            let ended = own.process.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > READY {
                let message = "`rhizome ledger` did not become ready; its words are above";
                return Err(Failure::new(Code::Unavailable, message));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn rss_mib(&self) -> Result<f64, Failure> {
        let pid = self.process.id().unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(|e| internal("cannot read the memory of the ledger", &e))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.unwrap_or_default() / 1024.0)
    }

    async fn stop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait().await;
    }
}

fn free_address() -> Result<String, Failure> {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.to_string())
        .map_err(|e| internal("there is no free port", &e))
}

/// A folder of our own, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        let path =
            std::env::temp_dir().join(format!("rhizome-bench-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&path).map_err(|e| internal("cannot make a folder", &e))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
