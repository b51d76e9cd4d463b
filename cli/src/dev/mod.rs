//! `rhizome dev`: the whole system on this machine, as real processes.
//!
//! ```text
//!   dev ─┬─ ledger
//!        ├─ coord
//!        └─ per node: redis-server, node ─▶ supervisor ─▶ runners
//! ```
//!
//! What dies is started again. On Ctrl-C all of it ends, machines too, and what was mounted or made
//! in the kernel is undone; volumes and databases stay in the state folder and come back with the
//! next start.

mod layout;
mod redis;
mod requirements;
mod tour;

use std::process::ExitCode;
use std::time::Duration;

use rhizome_model::{Bytes, Code, Failure};
use rhizome_sal::Sal;
use rhizome_service::{Client, Shutdown};

use crate::cli::Globals;
use crate::error::Error;
use crate::output;
use crate::profile::{self, ClientFile};
use crate::services::coord::load_or_make_key;
use crate::services::node_file::NodeFile;
use crate::services::process::{Kept, Process, Stop};
use crate::services::{program, state_folder};

use layout::Layout;

/// The whole system is ready within this, also on a slow machine.
const READY: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(90);
const NETWORK: &str = "dev";
const FARM: &str = "devfarm";

/// Run the whole system on this machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome dev --state /tmp/rhizome\n\n\
    Prints one line that begins with `ready` when all is up; then, in another terminal:\n  \
    rhizome --state /tmp/rhizome deploy scripts/hello.rhai --name hello")]
pub struct Args {
    /// How many nodes.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    nodes: u16,
    /// The ledger's port [default: a free one].
    #[arg(long, default_value_t = 0, value_name = "PORT", hide_default_value = true)]
    ledger_port: u16,
    /// coord's port [default: a free one].
    #[arg(long, default_value_t = 0, value_name = "PORT", hide_default_value = true)]
    coord_port: u16,
    /// What each node's pool may grow to.
    #[arg(long, default_value = "16GiB", value_name = "SIZE")]
    pool_size: Bytes,
    /// Take file:// images from below these folders only.
    #[arg(long = "images", default_value = "/", value_name = "DIR")]
    images: Vec<std::path::PathBuf>,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let state = profile::state_folder(globals)?;
    let (log, json) = (globals.log.as_deref().unwrap_or("info"), globals.json);
    requirements::check()?;
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|e| Failure::new(Code::Internal, format!("signals: {e}")))?;
    let layout = Layout::prepare(state_folder(&state)?, args.nodes)?;
    let _lock = layout.lock()?;

    let mut dev = Dev { layout, program: program()?, log: log.to_owned(), kept: Vec::new() };
    let started = tokio::select! {
        started = tokio::time::timeout(READY, dev.start(&args)) => started.unwrap_or_else(|_| {
            let logs = dev.layout.logs();
            let message = format!("not ready within {} s; the logs are in {}", READY.as_secs(), logs.display());
            Err(Failure::new(Code::Unavailable, message))
        }),
        () = shutdown.requested() => Err(Failure::new(Code::Cancelled, "stopped while it started")),
    };
    if let Ok(client) = &started {
        announce(client, &dev.layout, args.nodes, json);
        shutdown.requested().await;
    }
    let stopped = dev.stop().await;
    match started {
        Err(failure) if failure.code != Code::Cancelled => return Err(failure.into()),
        _ => stopped?,
    }
    Ok(ExitCode::SUCCESS)
}

fn announce(client: &ClientFile, layout: &Layout, nodes: u16, json: bool) {
    let state = layout.state.display();
    if json {
        output::line(serde_json::json!({
            "ready": true, "coord": client.coord, "ledger": client.ledger,
            "state": layout.state, "key": client.key, "network": client.network, "nodes": nodes,
        }));
    } else {
        let (coord, ledger) = (&client.coord, &client.ledger);
        output::line(format_args!(
            "ready coord={coord} ledger={ledger} state={state} nodes={nodes}"
        ));
    }
}

/// The processes of this run, in the order in which they were started.
struct Dev {
    layout: Layout,
    program: std::path::PathBuf,
    log: String,
    kept: Vec<Kept>,
}

impl Dev {
    async fn start(&mut self, args: &Args) -> Result<ClientFile, Failure> {
        let ledger_port = free_port(args.ledger_port).await?;
        let coord_port = free_port(args.coord_port).await?;
        let client = ClientFile {
            coord: format!("http://127.0.0.1:{coord_port}"),
            ledger: format!("http://127.0.0.1:{ledger_port}"),
            key: self.layout.state.join("deployer.key"),
            network: NETWORK.into(),
        };
        let listen = format!("127.0.0.1:{ledger_port}");
        self.service("ledger", &["ledger", "--listen", &listen], self.layout.ledger(), None);
        ready("ledger", &client.ledger).await?;
        // Before the nodes have theirs: the deployer's account is always the first one.
        let key = load_or_make_key(&client.key)?;
        let ledger = rhizome_identity::LedgerClient::new(&client.ledger, Some(key.clone()))?;
        ledger.ensure_account().await?;
        // Its farm too, so that who deploys here also operates the nodes.
        if ledger.farm_by_name(FARM).await?.is_none() {
            ledger.create_farm(FARM).await?;
        }
        let listen = format!("127.0.0.1:{coord_port}");
        let coord_key = load_or_make_key(&self.layout.coord().join("coord.key"))?.key_id();
        // All of it is ours: nobody has to believe the first key that is shown.
        let ledger_key = ledger.about().await?.key.to_string();
        self.service(
            "coord",
            &["coord", "--listen", &listen, "--ledger-key", &ledger_key],
            self.layout.coord(),
            Some(&client.ledger),
        );
        for n in 1..=args.nodes {
            redis::wait_gone(&self.layout.node(n)).await?;
            self.node(n, args, &client.ledger, [&ledger_key, &coord_key.to_string()]);
        }
        ready("coord", &client.coord).await?;
        tour::all_nodes_reachable(&client, key.clone(), args.nodes).await?;
        tour::approve_nodes(&client, key).await?;
        self.layout.publish(&client)?;
        Ok(client)
    }

    fn node(&mut self, n: u16, args: &Args, ledger: &str, [ledger_key, coord_key]: [&str; 2]) {
        let state = self.layout.node(n);
        let socket = redis::socket(&state);
        self.kept.push(Kept::start(redis::process(&state, self.layout.log(&format!("redis-{n}")))));
        let pool = args.pool_size.0.to_string();
        // All of them are on one machine, whose serial number and TPM are one node's.
        let serial = format!("dev-{n}");
        let mut arguments = vec![
            "node",
            "--tpm",
            "off",
            // They reach each other without: all bridges are on this machine.
            "--mycelium",
            "off",
            "--serial-number",
            &serial,
            "--listen",
            "127.0.0.1:0",
            "--farm",
            FARM,
            "--coordinator",
            coord_key,
            "--ledger-key",
            ledger_key,
            "--pool-size",
            &pool,
        ];
        let socket = socket.to_string_lossy().into_owned();
        arguments.extend(["--redis", &socket]);
        let images: Vec<_> = args.images.iter().map(|i| i.to_string_lossy().into_owned()).collect();
        for image in &images {
            arguments.extend(["--images", image]);
        }
        self.service(&format!("node-{n}"), &arguments, state, Some(ledger));
    }

    fn service(
        &mut self,
        name: &str,
        args: &[&str],
        state: std::path::PathBuf,
        ledger: Option<&str>,
    ) {
        let mut all: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        all.extend(["--lifeline".into(), "--state".into(), state.to_string_lossy().into_owned()]);
        all.extend(["--network".into(), NETWORK.into(), "--log".into(), self.log.clone()]);
        if let Some(ledger) = ledger {
            all.extend(["--ledger".into(), ledger.to_owned()]);
        }
        self.kept.push(Kept::start(Process {
            name: name.to_owned(),
            program: self.program.clone(),
            args: all,
            stop: Stop::Lifeline,
            patience: PATIENCE,
            log: Some(self.layout.log(name)),
        }));
    }

    /// Ends every process, last started first, then everything that they left running.
    async fn stop(&mut self) -> Result<(), Failure> {
        self.layout.unpublish();
        while let Some(kept) = self.kept.pop() {
            kept.stop().await;
        }
        for state in self.layout.nodes() {
            let Ok(node) = NodeFile::read(&state) else { continue };
            let sal = Sal::up(node.sal(&state, self.program.clone())).await?;
            sal.down().await?;
        }
        Ok(())
    }
}

/// A port that is free now, or the one asked for when nothing listens there.
async fn free_port(port: u16) -> Result<u16, Failure> {
    let listener = rhizome_service::http::bind(([127, 0, 0, 1], port).into()).await?;
    let address = listener.local_addr();
    Ok(address.map_err(|e| Failure::new(Code::Internal, format!("no free port: {e}")))?.port())
}

/// Waits until a service says that it is well.
async fn ready(name: &'static str, url: &str) -> Result<(), Failure> {
    let client = Client::new(name, url)?;
    loop {
        match client.get::<serde_json::Value>("/healthz").await {
            Ok(_) => return Ok(()),
            Err(failure) if failure.code == Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}
