//! A node's Mycelium daemon in a test.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use rhizome_model::api::NetworkView;
use rhizome_sal::{Mycelium, MyceliumConfig, Peers};

use crate::netns::Node;
use crate::world::World;

/// Secrets and the addresses that follow from them; others have computed them too.
const SECRETS: [([u8; 32], &str); 2] = [
    ([7; 32], "44d:b237:e17f:d05e:81ad:b16f:4531:84b3"),
    (
        [
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
            24, 25, 26, 27, 28, 29, 30, 31,
        ],
        "430:9364:d8d8:84a9:dd60:de78:c767:d361",
    ),
];

pub fn address(n: usize) -> Ipv6Addr {
    SECRETS[n].1.parse().unwrap()
}

pub fn config(world: &World, n: usize, program: PathBuf, peers: Peers) -> MyceliumConfig {
    MyceliumConfig {
        program,
        node: world.config.key,
        secret: SECRETS[n].0.into(),
        address: address(n),
        peers,
        port: 9651,
        home: world.config.state.clone(),
    }
}

/// Waits until the state is as wanted.
pub fn until(
    node: &Node,
    daemon: &Mycelium,
    wanted: impl Fn(&NetworkView) -> bool + Send + 'static,
) -> NetworkView {
    let mut state = daemon.state();
    node.run(async move |_| {
        let found = tokio::time::timeout(Duration::from_secs(40), state.wait_for(wanted)).await;
        let view = found.map(|found| found.unwrap().clone());
        view.unwrap_or_else(|_| panic!("still {:?}", state.borrow()))
    })
}
