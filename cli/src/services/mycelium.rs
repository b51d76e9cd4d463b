//! How `rhizome node` is joined to other nodes: with a Mycelium daemon of its own, or by whatever
//! routes IPv6 around it. What is known of it is in a file, for the supervisor to show.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rhizome_identity::SigningKey;
use rhizome_model::Failure;
use rhizome_model::api::NetworkView;
use rhizome_sal::{Mycelium, MyceliumConfig, Peers};

use super::state_folder;

/// The node's way to other nodes.
#[derive(Debug, Clone, clap::Args)]
pub struct MyceliumOptions {
    /// The Mycelium daemon: auto takes `mycelium` where it is on PATH, off none, so that the node's
    /// network is plain IPv6; else the daemon's program.
    #[arg(long, env = "RHIZOME_MYCELIUM", value_name = "PROGRAM", default_value = "auto")]
    pub mycelium: MyceliumChoice,
    /// Another daemon that ours connects to, such as tcp://188.40.132.242:9651 or
    /// quic://[2001:db8::1]:9651; can be repeated.
    #[arg(
        long = "mycelium-peer",
        env = "RHIZOME_MYCELIUM_PEERS",
        value_delimiter = ',',
        value_name = "ENDPOINT"
    )]
    pub peers: Vec<String>,
    /// Begin without any peer and wait for others to connect: for the first node of a private network.
    #[arg(long = "mycelium-alone", env = "RHIZOME_MYCELIUM_ALONE")]
    pub alone: bool,
    /// The port where other daemons connect to ours, over TCP and QUIC.
    #[arg(
        long = "mycelium-port",
        env = "RHIZOME_MYCELIUM_PORT",
        value_name = "PORT",
        default_value_t = 9651,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MyceliumChoice {
    Auto,
    Off,
    At(PathBuf),
}

impl FromStr for MyceliumChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "off" => Self::Off,
            program => Self::At(program.into()),
        })
    }
}

/// What was decided before anything is started.
#[derive(Debug)]
pub enum Network {
    Plain,
    Mycelium { program: PathBuf, peers: Peers, port: u16 },
}

/// A network that is kept up, and told of.
pub struct Kept {
    daemon: Option<Mycelium>,
    telling: tokio::task::JoinHandle<()>,
}

impl MyceliumOptions {
    /// Checks all of it.
    pub fn decide(&self) -> Result<Network, Failure> {
        let configured = !self.peers.is_empty() || self.alone;
        let program = match &self.mycelium {
            MyceliumChoice::Off => None,
            MyceliumChoice::At(program) => Some(Mycelium::at(program).map_err(Failure::from)?),
            MyceliumChoice::Auto if configured => {
                Some(Mycelium::at("mycelium".as_ref()).map_err(Failure::from)?)
            }
            MyceliumChoice::Auto => Mycelium::find(),
        };
        match program {
            Some(program) => {
                let peers = Peers::parse(&self.peers, self.alone).map_err(Failure::from)?;
                Ok(Network::Mycelium { program, peers, port: self.port })
            }
            None => Ok(Network::Plain),
        }
    }
}

impl Network {
    /// Starts the daemon, if there is to be one, and tells of it in a file.
    pub async fn start(self, key: &SigningKey, state: &Path) -> Result<Kept, Failure> {
        let address = key.mycelium_address();
        let file = network_file(state);
        let Self::Mycelium { program, peers, port } = self else {
            tracing::info!(%address, "no Mycelium: the network is plain IPv6, as it is routed here");
            write(&file, &Mycelium::plain(address));
            return Ok(Kept { daemon: None, telling: tokio::spawn(async {}) });
        };
        let config = MyceliumConfig {
            program,
            node: key.key_id(),
            secret: key.mycelium_secret(),
            address,
            peers,
            port,
            home: state_folder(&state.join("run").join("mycelium"))?,
        };
        let daemon = Mycelium::start(config).await.map_err(Failure::from)?;
        let telling = tokio::spawn(tell(daemon.state(), file));
        Ok(Kept { daemon: Some(daemon), telling })
    }
}

impl Kept {
    pub async fn stop(self) {
        if let Some(daemon) = self.daemon {
            daemon.stop().await;
        }
        self.telling.abort();
    }
}

/// Where a node's processes find how its network is.
pub fn network_file(state: &Path) -> PathBuf {
    state.join("run").join("network.json")
}

async fn tell(mut state: tokio::sync::watch::Receiver<NetworkView>, file: PathBuf) {
    let mut problem = None;
    loop {
        let view = state.borrow_and_update().clone();
        if view.problem != problem {
            match &view.problem {
                Some(problem) => tracing::warn!(%problem, "the network"),
                None => tracing::info!(driver = %view.driver, "the network is well"),
            }
            problem.clone_from(&view.problem);
        }
        write(&file, &view);
        if state.changed().await.is_err() {
            return;
        }
    }
}

/// What cannot be written is missing where it is shown, and nowhere else.
fn write(file: &Path, view: &NetworkView) {
    let new = file.with_extension("new");
    let written = serde_json::to_vec(view)
        .map_err(std::io::Error::from)
        .and_then(|text| std::fs::write(&new, text))
        .and_then(|()| std::fs::rename(&new, file));
    if let Err(error) = written {
        tracing::warn!(%error, file = %file.display(), "how the network is cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use rhizome_model::Code;

    use super::*;

    fn options(mycelium: &str, peers: &[&str], alone: bool) -> MyceliumOptions {
        let peers = peers.iter().map(|p| (*p).to_owned()).collect();
        MyceliumOptions { mycelium: mycelium.parse().unwrap(), peers, alone, port: 9651 }
    }

    #[test]
    fn a_daemon_is_started_with_peers_only() {
        let peer = "tcp://192.0.2.1:9651";
        let code = |o: MyceliumOptions| o.decide().unwrap_err().code;
        assert!(matches!(options("off", &[], false).decide(), Ok(Network::Plain)));
        assert_eq!(code(options("/bin/true", &[], false)), Code::NoPeers);
        assert_eq!(code(options("/bin/true", &["rubbish"], false)), Code::InvalidPeer);
        assert_eq!(code(options("/bin/true", &[peer, ""], false)), Code::InvalidPeer);
        assert_eq!(code(options("/bin/true", &[peer], true)), Code::InvalidPeer);
        assert!(
            matches!(options("off", &[peer], false).decide(), Ok(Network::Plain)),
            "off is off"
        );
        assert!(options("/bin/true", &[peer], false).decide().is_ok());
        assert!(options("/bin/true", &[], true).decide().is_ok());
        assert_eq!(code(options("/nowhere/mycelium", &[peer], false)), Code::MissingTool);
    }
}
