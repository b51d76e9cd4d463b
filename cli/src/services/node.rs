//! `rhizome node`: everything that a node runs, but for Redis.
//!
//! This process is the identity manager: it holds the private key, registers the node, reports its
//! uptime and opens secrets. It brings up bridge and pool, and keeps the supervisor running. A node
//! that was registered before starts without waiting for the ledger.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rhizome_identity::LedgerClient;
use rhizome_identity::manager::{Config, FarmChoice, Grant, Manager, UPTIME_INTERVAL};
use rhizome_model::api::{NodeIdentity, Registered};
use rhizome_model::{Bytes, Capacity, Code, Failure, FarmId, KeyId, Limits, NodeFacts, NodeId};
use rhizome_queue::Durability;
use rhizome_sal::Sal;
use tokio::sync::watch;

use super::identity::{IdentityPlaces, MachineFacts};
use super::mycelium::MyceliumOptions;
use super::node_file::{NodeFile, PoolChoice};
use super::process::{Kept, Process, Stop};
use super::{Common, LedgerKey, ledger_of, network_of, program, state_folder, state_of};
use crate::cli::Globals;
use crate::error::Error;

/// Runners finish what they have within half of this.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, clap::Args)]
pub struct NodeOptions {
    /// The farm that the node joins; the first node of a farm makes it.
    #[arg(long, env = "RHIZOME_FARM", value_name = "NAME")]
    pub farm: Option<String>,
    /// Where the supervisor listens; port 0 takes a free one and keeps it.
    #[arg(long, env = "RHIZOME_LISTEN", default_value = "[::]:8600", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// The unix socket of the node's Redis.
    #[arg(
        long,
        env = "RHIZOME_REDIS",
        default_value = "/run/rhizome/redis.sock",
        value_name = "PATH"
    )]
    pub redis: PathBuf,
    /// When what the node promised is on disk.
    #[arg(long, env = "RHIZOME_DURABILITY", value_enum, default_value_t = DurabilityChoice::Always, value_name = "WHEN")]
    pub durability: DurabilityChoice,
    /// Keep the pool in a file of the state folder that may grow to this size.
    #[arg(long, env = "RHIZOME_POOL_SIZE", value_name = "SIZE", conflicts_with_all = ["pool_device", "pool_path"])]
    pub pool_size: Option<Bytes>,
    /// Keep the pool on this block device.
    #[arg(long, env = "RHIZOME_POOL_DEVICE", value_name = "DEVICE", conflicts_with = "pool_path")]
    pub pool_device: Option<PathBuf>,
    /// Keep the pool in this btrfs, which is mounted already.
    #[arg(long, env = "RHIZOME_POOL_PATH", value_name = "DIR")]
    pub pool_path: Option<PathBuf>,
    /// Take file:// images from below these folders only.
    #[arg(
        long = "images",
        env = "RHIZOME_IMAGES",
        default_value = "/srv/images",
        value_name = "DIR"
    )]
    pub images: Vec<PathBuf>,
    /// The key of a coordinator that may follow all tasks.
    #[arg(
        long = "coordinator",
        env = "RHIZOME_COORDINATORS",
        value_delimiter = ',',
        value_name = "KEY"
    )]
    pub coordinators: Vec<KeyId>,
    #[command(flatten)]
    pub mycelium: MyceliumOptions,
    #[command(flatten)]
    pub ledger_key: LedgerKey,
    #[command(flatten)]
    pub places: IdentityPlaces,
    #[command(flatten)]
    pub machine: MachineFacts,
    /// Where no identity can be used, make this machine a new node, also over one that the ledger
    /// knows. What is there is moved aside; an identity that is good stays.
    #[arg(long)]
    pub new_identity: bool,
    /// One more socket of the identity manager, which every user can connect to.
    #[arg(long, env = "RHIZOME_IDENTITY_SOCKET", value_name = "PATH")]
    pub identity_socket: Option<PathBuf>,
    /// What a user may have done with the node's key there: UID:PURPOSE:sign+encrypt+decrypt. Can be
    /// repeated.
    #[arg(
        long = "identity-grant",
        env = "RHIZOME_IDENTITY_GRANTS",
        value_delimiter = ',',
        value_name = "GRANT"
    )]
    pub grants: Vec<Grant>,
    #[command(flatten)]
    pub common: Common,
}

/// What a power cut may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DurabilityChoice {
    /// Before it is answered: a power cut loses nothing that was answered
    Always,
    /// A second later: a power cut loses up to two seconds of what was answered, accepted
    /// deployments among it; coord then holds for done what the node has forgotten
    Everysec,
    /// When the operating system likes: a power cut loses half a minute or more, and, where Redis
    /// keeps no append-only file, everything
    None,
}

impl From<DurabilityChoice> for Durability {
    fn from(choice: DurabilityChoice) -> Self {
        match choice {
            DurabilityChoice::Always => Self::Always,
            DurabilityChoice::Everysec => Self::Everysec,
            DurabilityChoice::None => Self::None,
        }
    }
}

impl DurabilityChoice {
    /// Said at every start: nobody shall be surprised by it after a power cut.
    fn warn(self) {
        match self {
            Self::Always => {}
            Self::Everysec => tracing::warn!(
                "durability everysec: a power cut loses up to two seconds of what was answered"
            ),
            Self::None => tracing::warn!(
                "durability none: a power cut loses what the operating system had not written"
            ),
        }
    }
}

pub async fn run(args: NodeOptions, globals: &Globals) -> Result<ExitCode, Error> {
    let shutdown = args.common.shutdown()?;
    args.durability.warn();
    let network = args.mycelium.decide()?;
    let state = state_folder(&state_of("node", globals))?;
    let ledger = ledger_of(globals)?;
    let log = globals.log.as_deref().unwrap_or("info");
    let known = NodeFile::read(&state).ok();
    let listen = settle_port(args.listen, known.as_ref()).await?;

    let manager = Manager::open(
        Config {
            state: state.clone(),
            socket: NodeFile::identity_socket(&state),
            state_pools: args.places.state_pools.clone(),
            shared_socket: args.identity_socket,
            grants: args.grants,
            traces: vec![NodeFile::path(&state)],
            new_identity: args.new_identity,
            ledger: ledger.clone(),
            farm: FarmChoice::Name(args.farm.clone().unwrap_or_else(|| "homefarm".into())),
            supervisor_url: Some(format!("http://{listen}")),
            location: Default::default(),
            uptime_interval: UPTIME_INTERVAL,
        },
        args.machine.source(),
        args.places.sealer(),
    )
    .map_err(Failure::from)?;
    let key = manager.key_id();
    let signs = manager.key().clone();
    let mut file = NodeFile {
        facts: NodeFacts {
            id: NodeId(0),
            farm: FarmId(0),
            address: manager.key().mycelium_address(),
            capacity: Capacity::default(),
        },
        key,
        network: network_of(globals),
        ledger,
        ledger_key: args.ledger_key.ledger_key,
        coordinators: args.coordinators,
        listen,
        redis: args.redis,
        durability: args.durability.into(),
        pool: pool(args.pool_size, args.pool_device, args.pool_path),
        images: args.images,
        limits: Limits::default(),
    };
    let program = program()?;
    let identity = manager.identity();
    let mut managing = tokio::spawn(manager.run(shutdown.token.clone()));
    // Nothing on this machine is made for a key that may never be this node's.
    let registered = tokio::select! {
        registered = wait_registered(identity) => match registered {
            Ok(registered) => registered,
            Err(failure) => return Err(ended(managing.await).err().unwrap_or(failure).into()),
        },
        early = &mut managing => {
            ended(early)?;
            return Ok(ExitCode::SUCCESS);
        }
        () = shutdown.requested() => return Ok(ExitCode::SUCCESS),
    };
    let sal = Sal::up(file.sal(&state, program.clone())).await.map_err(Failure::from)?;
    let network = network.start(&signs, &state).await?;
    file.facts.capacity = sal.capacity().map_err(Failure::from)?;
    (file.facts.id, file.facts.farm) = (registered.node, registered.farm);
    file.write(&state)?;
    tracing::info!(node = %registered.node, farm = %registered.farm, address = %file.facts.address, "registered");

    let supervisor = Kept::start(supervisor(program, &state, log));
    let telling = LedgerClient::new(&file.ledger, Some(signs.clone()))?;
    let url = format!("http://{listen}");
    let telling =
        super::health::report(telling, signs, registered.node, url, shutdown.token.clone());
    let telling = tokio::spawn(telling);
    let managed = tokio::select! {
        () = shutdown.requested() => Ok(()),
        early = managing => ended(early),
    };
    supervisor.stop().await;
    telling.abort();
    network.stop().await;
    managed?;
    Ok(ExitCode::SUCCESS)
}

/// How the identity manager ended.
fn ended(joined: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    joined.unwrap_or_else(|e| Err(Failure::new(Code::Internal, e.to_string())))
}

/// Known from before, or as soon as the ledger answers.
async fn wait_registered(
    mut identity: watch::Receiver<NodeIdentity>,
) -> Result<Registered, Failure> {
    let known = identity.wait_for(|i| i.registered.is_some()).await;
    known.ok().and_then(|i| i.registered).ok_or_else(|| {
        Failure::new(Code::Internal, "the identity manager ended before the node was registered")
    })
}

fn pool(size: Option<Bytes>, device: Option<PathBuf>, path: Option<PathBuf>) -> PoolChoice {
    match (device, path) {
        (Some(device), _) => PoolChoice::Device(device),
        (None, Some(path)) => PoolChoice::Mounted(path),
        (None, None) => PoolChoice::File { size: size.unwrap_or(Bytes::gib(16)) },
    }
}

/// Port 0 becomes the port of the last time, or a free one: the ledger tells others where we are.
async fn settle_port(listen: SocketAddr, known: Option<&NodeFile>) -> Result<SocketAddr, Failure> {
    if listen.port() != 0 {
        return Ok(listen);
    }
    if let Some(known) = known.filter(|k| k.listen.ip() == listen.ip())
        && rhizome_service::http::bind(known.listen).await.is_ok()
    {
        return Ok(known.listen);
    }
    let free = rhizome_service::http::bind(listen).await?;
    free.local_addr().map_err(|e| Failure::new(Code::Internal, format!("no free port: {e}")))
}

fn supervisor(program: PathBuf, state: &Path, log: &str) -> Process {
    let args = ["supervisor", "--lifeline", "--state", &state.to_string_lossy(), "--log", log];
    Process {
        name: "supervisor".into(),
        program,
        args: args.map(str::to_owned).to_vec(),
        stop: Stop::Lifeline,
        patience: PATIENCE,
        log: None,
    }
}
