//! The network of machines: one bridge per node, one namespace and one pair of links per machine.
//!
//! ```text
//!     node ── rz<8 digits>  (bridge, prefix::1/64)
//!               ├── rz<13 digits> ═══ eth0 of machine a, prefix:…/64, in rz<8 digits>.1.demo.a
//!               └── rz<13 digits> ═══ eth0 of machine b
//! ```
//!
//! The namespace's name and the alias of the host's link say whose they are. A machine cannot take
//! another address: it has neither CAP_NET_ADMIN nor CAP_NET_RAW.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rhizome_model::{ResourceId, gateway_address, resource_address};

use crate::error::{During, Result};
use crate::files;
use crate::node::{Mark, NodeConfig};
use crate::tool::Tool;

/// Leaves room for the overlay's headers.
const MTU: u32 = 1400;
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(20);
const NETNS: &str = "/run/netns";
const LINKS: &str = "/sys/class/net";
const CONF: &str = "/proc/sys/net/ipv6/conf";

/// Makes the bridge, gives it the gateway's address and lets the node forward.
pub(crate) fn up(config: &NodeConfig, mark: &Mark) -> Result<()> {
    let (bridge, gateway) = (&mark.name, gateway_address(config.address));
    let mut batch = String::new();
    if !has_link(bridge) {
        line(&mut batch, format_args!("link add {bridge} type bridge mcast_snooping 0"));
    }
    line(&mut batch, format_args!("link set {bridge} mtu {MTU} alias rhizome:{bridge} up"));
    line(&mut batch, format_args!("address replace {gateway}/64 dev {bridge} nodad"));
    ip(&[], batch)?;
    forward()
}

pub(crate) fn is_up(mark: &Mark) -> bool {
    has_link(&mark.name)
}

pub(crate) fn down(mark: &Mark) -> Result<()> {
    if has_link(&mark.name) { ip(&[], format!("link delete {}\n", mark.name)) } else { Ok(()) }
}

/// Makes a machine's namespace and links anew. An `ip` that died with its caller can still be on its
/// way out of the kernel and get in between, so a failure is tried again.
pub(crate) fn attach(config: &NodeConfig, mark: &Mark, id: &ResourceId) -> Result<()> {
    let mut attempt = 1;
    loop {
        match detach(mark, id).and_then(|()| make(config, mark, id)) {
            Err(error) if attempt < ATTEMPTS => {
                tracing::debug!(machine = %id, attempt, %error, "its network is made again");
                std::thread::sleep(PAUSE * attempt);
                attempt += 1;
            }
            done => return done,
        }
    }
}

fn make(config: &NodeConfig, mark: &Mark, id: &ResourceId) -> Result<()> {
    let (netns, link, bridge) = (mark.netns(id), mark.link(id), &mark.name);
    let address = resource_address(config.address, id);
    let mac = mac(&address.octets());
    let mut batch = String::new();
    line(&mut batch, format_args!("netns add {netns}"));
    line(
        &mut batch,
        format_args!(
            "link add {link} mtu {MTU} type veth peer name eth0 mtu {MTU} address {mac} netns {netns}"
        ),
    );
    line(&mut batch, format_args!("link set {link} alias {} master {bridge} up", mark.alias(id)));
    ip(&[], batch)?;

    let mut batch = String::new();
    line(&mut batch, format_args!("link set lo up"));
    line(&mut batch, format_args!("address add {address}/64 dev eth0 nodad"));
    line(&mut batch, format_args!("link set eth0 up"));
    let gateway = gateway_address(config.address);
    line(&mut batch, format_args!("route add default via {gateway} dev eth0"));
    ip(&["-n", &netns], batch)
}

/// Removes a machine's namespace and links; what is not there is fine.
pub(crate) fn detach(mark: &Mark, id: &ResourceId) -> Result<()> {
    let (netns, link) = (mark.netns(id), mark.link(id));
    let mut batch = String::new();
    // The link first: with its namespace alone it would go only some time later.
    if has_link(&link) {
        line(&mut batch, format_args!("link delete {link}"));
    }
    if Path::new(NETNS).join(&netns).exists() {
        line(&mut batch, format_args!("netns delete {netns}"));
    }
    if batch.is_empty() { Ok(()) } else { ip(&[], batch) }
}

/// The machines that have a namespace or a link.
pub(crate) fn list(mark: &Mark) -> Result<Vec<ResourceId>> {
    let spaces = files::names(Path::new(NETNS))?;
    let mut found: Vec<_> = spaces.iter().filter_map(|n| mark.netns_resource(n)).collect();
    for link in files::names(Path::new(LINKS))?.iter().filter(|n| n.starts_with("rz")) {
        // It may go while we look.
        let alias = fs::read_to_string(Path::new(LINKS).join(link).join("ifalias"));
        found.extend(mark.alias_resource(&alias.unwrap_or_default()));
    }
    Ok(found)
}

/// A locally administered address that follows from the IPv6 address.
fn mac(address: &[u8; 16]) -> String {
    let hash = blake3::derive_key("rhizome 2026 link address v1", address);
    let [a, b, c, d, e, ..] = hash;
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
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

fn has_link(name: &str) -> bool {
    Path::new(LINKS).join(name).exists()
}

fn line(batch: &mut String, args: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(batch, "{args}");
}

fn ip(options: &[&str], batch: String) -> Result<()> {
    Tool::new("ip").args(options).args(["-batch", "-"]).stdin(batch).run().map(drop)
}
