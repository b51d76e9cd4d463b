//! How the node is joined to other nodes, as the process that keeps its network says it.

use std::path::PathBuf;

use metrics::{counter, gauge};
use rhizome_model::api::{NetworkView, PeerState};

/// What a node says of its network.
pub(crate) struct Joined {
    file: PathBuf,
}

impl Joined {
    pub fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// Nothing where nobody says anything.
    pub fn view(&self) -> Option<NetworkView> {
        let text = std::fs::read(&self.file).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub fn health(&self) -> Result<(), String> {
        match self.view().and_then(|view| view.problem) {
            Some(problem) => Err(problem),
            None => Ok(()),
        }
    }

    pub fn measure(&self) {
        let Some(view) = self.view() else { return };
        let up = if view.problem.is_none() { 1.0 } else { 0.0 };
        gauge!("rhizome_network_up", "driver" => view.driver).set(up);
        for (state, word) in [
            (PeerState::Alive, "alive"),
            (PeerState::Connecting, "connecting"),
            (PeerState::Dead, "dead"),
        ] {
            let peers = view.peers.iter().filter(|p| p.state == state).count();
            gauge!("rhizome_network_peers", "state" => word).set(peers as f64);
        }
        gauge!("rhizome_network_routes").set(view.routes as f64);
        gauge!("rhizome_network_fallback_routes").set(view.fallback_routes as f64);
        let sum = |bytes: fn(&rhizome_model::api::PeerView) -> u64| -> u64 {
            view.peers.iter().map(bytes).sum()
        };
        // Of the peers that there are: when one goes, it goes down.
        gauge!("rhizome_network_peer_bytes", "way" => "sent").set(sum(|p| p.tx_bytes) as f64);
        gauge!("rhizome_network_peer_bytes", "way" => "received").set(sum(|p| p.rx_bytes) as f64);
        counter!("rhizome_network_routed_packets_total").absolute(view.traffic.packets);
        counter!("rhizome_network_routed_bytes_total").absolute(view.traffic.bytes);
        counter!("rhizome_network_restarts_total").absolute(u64::from(view.restarts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_of_the_network_is_one_of_the_node() {
        let folder = tempfile::tempdir().unwrap();
        let joined = Joined::new(folder.path().join("network.json"));
        assert_eq!((joined.view(), joined.health()), (None, Ok(())));
        let write = |text: &str| std::fs::write(folder.path().join("network.json"), text).unwrap();
        write(r#"{"driver":"plain IPv6","address":"400::1"}"#);
        assert_eq!(joined.health(), Ok(()));
        assert_eq!(joined.view().unwrap().driver, "plain IPv6");
        write(r#"{"driver":"mycelium 0.7.10","address":"400::1","problem":"alone","restarts":2}"#);
        assert_eq!(joined.health(), Err("alone".to_owned()));
        joined.measure();
        write("{ half");
        assert_eq!((joined.view(), joined.health()), (None, Ok(())));
    }
}
