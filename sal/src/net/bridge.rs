//! The node's bridge, and that the node forwards.

use std::fs;
use std::path::Path;

use rhizome_model::gateway_address;

use crate::error::{During, Result};
use crate::files;
use crate::node::{Mark, NodeConfig};

use super::MTU;
use super::link::{Mac, has_link, ip, line};

const CONF: &str = "/proc/sys/net/ipv6/conf";

/// Makes the bridge, gives it the gateway's address and lets the node forward.
pub(super) fn up(config: &NodeConfig, mark: &Mark) -> Result<()> {
    let (bridge, gateway) = (&mark.name, gateway_address(config.address));
    // Its own, or it would be that of any of its links and change with them.
    let mac = Mac::of(gateway);
    let mut batch = String::new();
    if !has_link(bridge) {
        line(&mut batch, format_args!("link add {bridge} type bridge mcast_snooping 0"));
    }
    line(
        &mut batch,
        format_args!("link set {bridge} mtu {MTU} address {mac} alias rhizome:{bridge} up"),
    );
    line(&mut batch, format_args!("address replace {gateway}/64 dev {bridge} nodad"));
    ip(&[], batch)?;
    // The node is the router here.
    fs::write(Path::new(CONF).join(bridge).join("accept_ra"), "0")
        .during("keep the bridge from listening to routers")?;
    forward()
}

pub(super) fn down(mark: &Mark) -> Result<()> {
    if has_link(&mark.name) { ip(&[], format!("link delete {}\n", mark.name)) } else { Ok(()) }
}

/// Lets the node forward IPv6. A forwarding host no longer listens to router advertisements unless
/// told so, and the node's own uplink may live by them: those that listened go on.
fn forward() -> Result<()> {
    let all = Path::new(CONF).join("all/forwarding");
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    if read(&all).trim() == "1" {
        return Ok(());
    }
    for name in files::names(Path::new(CONF))? {
        let accept = Path::new(CONF).join(name).join("accept_ra");
        if read(&accept).trim() == "1" {
            fs::write(&accept, "2").during("keep an interface listening to its router")?;
        }
    }
    fs::write(&all, "1").during("turn on IPv6 forwarding")
}
