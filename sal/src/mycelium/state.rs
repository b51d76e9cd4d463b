//! What is told of the network, and what is wrong with it.

use std::net::Ipv6Addr;

use rhizome_model::api::{NetworkView, PeerState, TrafficView};

use super::api::Look;

pub(super) fn plain(address: Ipv6Addr) -> NetworkView {
    NetworkView {
        driver: "plain IPv6".to_owned(),
        address,
        problem: None,
        restarts: 0,
        peers: Vec::new(),
        routes: 0,
        fallback_routes: 0,
        traffic: TrafficView::default(),
    }
}

pub(super) fn starting(driver: String, address: Ipv6Addr) -> NetworkView {
    NetworkView { driver, problem: Some("mycelium starts".to_owned()), ..plain(address) }
}

/// After a daemon was looked at. It may be alone, or should have peers.
pub(super) fn looked_at(view: &mut NetworkView, look: Look, alone: bool) {
    view.problem = if look.address != view.address {
        Some(format!("mycelium has the address {}, not the node's {}", look.address, view.address))
    } else if alone || look.peers.iter().any(|p| p.state == PeerState::Alive) {
        None
    } else {
        let peers: Vec<_> = look.peers.iter().map(|p| p.endpoint.as_str()).collect();
        Some(format!("mycelium is connected to none of its peers: {}", peers.join(", ")))
    };
    view.peers = look.peers;
    view.routes = look.routes;
    view.fallback_routes = look.fallback_routes;
    view.traffic = look.traffic;
}

/// While there is nothing to look at.
pub(super) fn away(view: &mut NetworkView, problem: String) {
    let (driver, restarts) = (view.driver.clone(), view.restarts);
    *view = NetworkView { driver, restarts, problem: Some(problem), ..plain(view.address) };
}

#[cfg(test)]
mod tests {
    use rhizome_model::api::{PeerOrigin, PeerView};

    use super::*;

    fn look(states: &[PeerState]) -> Look {
        let peer = |(n, state): (usize, &PeerState)| PeerView {
            endpoint: format!("tcp://192.0.2.{n}:9651"),
            origin: PeerOrigin::Configured,
            state: *state,
            tx_bytes: 1,
            rx_bytes: 2,
        };
        Look {
            address: "400::1".parse().unwrap(),
            peers: states.iter().enumerate().map(peer).collect(),
            routes: 3,
            fallback_routes: 1,
            traffic: TrafficView { packets: 4, bytes: 5 },
        }
    }

    #[test]
    fn one_living_peer_is_enough_and_none_is_a_reason() {
        let mut view = starting("mycelium 0.7.10".into(), "400::1".parse().unwrap());
        assert!(view.problem.is_some());
        looked_at(&mut view, look(&[PeerState::Dead, PeerState::Alive]), false);
        assert_eq!(view.problem, None);
        assert_eq!((view.routes, view.peers.len(), view.traffic.bytes), (3, 2, 5));
        looked_at(&mut view, look(&[PeerState::Dead, PeerState::Connecting]), false);
        let problem = view.problem.clone().unwrap();
        assert!(problem.contains("tcp://192.0.2.0:9651, tcp://192.0.2.1:9651"), "{problem}");
        looked_at(&mut view, look(&[]), true);
        assert_eq!(view.problem, None);

        view.address = "400::2".parse().unwrap();
        looked_at(&mut view, look(&[PeerState::Alive]), false);
        assert!(view.problem.as_ref().unwrap().contains("has the address 400::1"));
        view.restarts = 2;
        away(&mut view, "gone".into());
        assert_eq!((view.peers.len(), view.routes, view.restarts), (0, 0, 2));
        assert_eq!(view.driver, "mycelium 0.7.10");
    }
}
