//! Machines of two nodes, and what passes between them.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use rhizome_model::{ResourceId, resource_address};
use serde_json::json;

use crate::netns::{Node, Wire};
use crate::world::{World, id};

pub async fn make(world: &World, name: &str, script: &str) -> ResourceId {
    let id = id(name);
    world.machines.ensure(&id, &world.script(script)).await.unwrap();
    id
}

pub fn next(address: Ipv6Addr) -> Ipv6Addr {
    (u128::from(address) ^ 1).into()
}

/// A web server with a megabyte to give.
pub const SERVER: &str = "hostname > /tmp/index.html; dd if=/dev/zero of=/tmp/big bs=1M count=1 2>/dev/null; exec httpd -f -h /tmp";

/// Prints the size of what the server at an address gives.
pub fn fetching(address: Ipv6Addr) -> String {
    format!(
        "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - 'http://[{address}]/big' | wc -c \
         | grep -v '^0$' && exit 0; sleep 0.3; done; exit 1"
    )
}

fn fetch(from: &Node, name: &str, address: Ipv6Addr) -> (i64, String) {
    let (id, script) = (id(name), fetching(address));
    from.run(async move |world| world.exec(&id, &script).await)
}

/// Machines with the same name on both nodes fetch from each other, at addresses known before.
pub fn reach_each_other(a: &Node, b: &Node) {
    const WEB: &str = "1/demo/web";
    let address_on = |node: &Node| node.run(async |w| resource_address(w.config.address, &id(WEB)));
    let (at_a, at_b) = (address_on(a), address_on(b));
    for node in [a, b] {
        node.run(async |world| make(world, WEB, SERVER).await);
    }
    assert_eq!(fetch(a, WEB, at_b), (0, "1048576\n".into()));
    assert_eq!(fetch(b, WEB, at_a), (0, "1048576\n".into()));
    let status = b.run(async |world| world.status(&id(WEB)).await);
    assert_eq!(status["address"], json!(at_b.to_string()));
}

/// What arrives over UDP on port 9.
pub fn payloads_until(wire: &Wire, last: &str) -> Vec<String> {
    let mut seen = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while seen.last().is_none_or(|text| text != last) {
        assert!(Instant::now() < deadline, "{last} did not come; seen: {seen:?}");
        let Some(frame) = wire.next() else { continue };
        let is_ours = frame.len() > 62 && frame[20] == 17 && frame[56..58] == 9u16.to_be_bytes();
        if is_ours {
            seen.push(String::from_utf8_lossy(&frame[62..]).into_owned());
        }
    }
    seen
}
