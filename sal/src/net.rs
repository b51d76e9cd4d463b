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
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::statfs::{FsType, statfs};
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
/// As statfs(2) names the file system of namespaces.
const NSFS_MAGIC: i64 = 0x6e73_6673;
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
    let netns = mark.netns(id);
    let mut batch = String::new();
    line(&mut batch, format_args!("netns add {netns}"));
    add_link(&mut batch, config, mark, id);
    connect_link(&mut batch, mark, id);
    ip(&[], batch)?;
    ip(&["-n", &netns], addresses(config, id, "add"))
}

fn add_link(batch: &mut String, config: &NodeConfig, mark: &Mark, id: &ResourceId) {
    let (netns, link) = (mark.netns(id), mark.link(id));
    let mac = mac(&resource_address(config.address, id).octets());
    line(
        batch,
        format_args!(
            "link add {link} mtu {MTU} type veth peer name eth0 mtu {MTU} address {mac} netns {netns}"
        ),
    );
}

fn connect_link(batch: &mut String, mark: &Mark, id: &ResourceId) {
    let (link, bridge) = (mark.link(id), &mark.name);
    line(batch, format_args!("link set {link} alias {} master {bridge} up", mark.alias(id)));
}

/// What belongs inside a machine's namespace; `verb` is add or replace.
fn addresses(config: &NodeConfig, id: &ResourceId, verb: &str) -> String {
    let (address, gateway) =
        (resource_address(config.address, id), gateway_address(config.address));
    let mut batch = String::new();
    line(&mut batch, format_args!("link set lo up"));
    line(&mut batch, format_args!("address {verb} {address}/64 dev eth0 nodad"));
    line(&mut batch, format_args!("link set eth0 up"));
    line(&mut batch, format_args!("route {verb} default via {gateway} dev eth0"));
    batch
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

/// What is not there of a machine's network; nothing when all is well. Inside the namespace one
/// can look only while a process is in it.
pub(crate) fn gaps(
    config: &NodeConfig,
    mark: &Mark,
    id: &ResourceId,
    pid: Option<i32>,
) -> Vec<String> {
    let (netns, link, bridge) = (mark.netns(id), mark.link(id), &mark.name);
    let mut gaps = Vec::new();
    if !has_link(bridge) {
        gaps.push(format!("bridge {bridge} is gone"));
    }
    if !is_namespace(&netns, pid) {
        gaps.push(format!("namespace {netns} is gone"));
    }
    if !has_link(&link) {
        gaps.push(format!("link {link} is gone"));
    } else if !is_connected(&link, bridge) {
        gaps.push(format!("link {link} is not connected"));
    }
    if let Some(inside) = pid.map(Inside::look)
        && has_link(&link)
    {
        let address = resource_address(config.address, id);
        if !inside.link {
            gaps.push("its eth0 is gone".to_owned());
        } else if !inside.addresses.contains(&address) {
            gaps.push(format!("its address {address} is gone"));
        } else if !inside.route {
            gaps.push("its default route is gone".to_owned());
        }
    }
    gaps
}

/// Makes what is not there of a machine's network, without disturbing what is.
pub(crate) fn mend(
    config: &NodeConfig,
    mark: &Mark,
    id: &ResourceId,
    pid: Option<i32>,
) -> Result<()> {
    if !has_link(&mark.name) {
        up(config, mark)?;
    }
    match pid.map(|pid| mend_around(config, mark, id, pid)) {
        // It ended meanwhile: there is nothing left that could be disturbed.
        Some(Err(_)) if !pid.is_some_and(is_inside) => attach(config, mark, id),
        Some(done) => done,
        None => attach(config, mark, id),
    }
}

/// Whether a process that has not ended is in a network namespace.
pub(crate) fn is_inside(pid: i32) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net")).is_ok()
}

fn mend_around(config: &NodeConfig, mark: &Mark, id: &ResourceId, pid: i32) -> Result<()> {
    let (netns, link) = (mark.netns(id), mark.link(id));
    if !is_namespace(&netns, Some(pid)) {
        let mut batch = String::new();
        if Path::new(NETNS).join(&netns).exists() {
            line(&mut batch, format_args!("netns delete {netns}"));
        }
        line(&mut batch, format_args!("netns attach {netns} {pid}"));
        ip(&[], batch)?;
    }
    let inside = Inside::look(pid);
    let mut batch = String::new();
    if !(inside.link && has_link(&link)) {
        if has_link(&link) {
            line(&mut batch, format_args!("link delete {link}"));
        }
        add_link(&mut batch, config, mark, id);
    }
    connect_link(&mut batch, mark, id);
    ip(&[], batch)?;
    ip(&["-n", &netns], addresses(config, id, "replace"))
}

/// What a process sees of its own network.
struct Inside {
    link: bool,
    addresses: Vec<Ipv6Addr>,
    route: bool,
}

impl Inside {
    fn look(pid: i32) -> Self {
        let read = |name| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
        Self {
            link: read("dev").lines().any(|l| l.trim_start().starts_with("eth0:")),
            addresses: eth0_addresses(&read("if_inet6")),
            route: has_default_route(&read("ipv6_route")),
        }
    }
}

/// Of an if_inet6: `<32 digits> <index> <prefix> <scope> <flags> <name>`.
fn eth0_addresses(text: &str) -> Vec<Ipv6Addr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let digits = u128::from_str_radix(words.next()?, 16).ok()?;
        (words.last()? == "eth0").then(|| digits.into())
    };
    text.lines().filter_map(address).collect()
}

/// Of an ipv6_route: `<32 digits> <prefix> … <name>`.
fn has_default_route(text: &str) -> bool {
    text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|digits| digits.bytes().all(|b| b == b'0'))
            && words.next() == Some("00")
            && words.last() == Some("eth0")
    })
}

/// Whether the name leads to a network namespace, and to that of the process if there is one.
fn is_namespace(netns: &str, pid: Option<i32>) -> bool {
    let path = Path::new(NETNS).join(netns);
    let same = |a: fs::Metadata, b: fs::Metadata| a.dev() == b.dev() && a.ino() == b.ino();
    match pid {
        Some(pid) => match (fs::metadata(&path), fs::metadata(format!("/proc/{pid}/ns/net"))) {
            (Ok(named), Ok(its)) => same(named, its),
            _ => false,
        },
        None => statfs(&path).is_ok_and(|s| s.filesystem_type() == FsType(NSFS_MAGIC)),
    }
}

/// Whether a link is up and on the bridge.
fn is_connected(link: &str, bridge: &str) -> bool {
    let folder = Path::new(LINKS).join(link);
    let flags = fs::read_to_string(folder.join("flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    let master = fs::read_link(folder.join("master")).unwrap_or_default();
    flags & 1 == 1 && master.file_name().is_some_and(|name| name == bridge)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_sees_of_its_network_is_read() {
        let addresses = "\
00000000000000000000000000000001 01 80 10 80       lo
05d3000000000000000000000000abcd 02 40 00 82     eth0
fe800000000000000000000000000001 02 40 20 80     eth0
";
        let found = eth0_addresses(addresses);
        assert_eq!(found, ["5d3::abcd".parse::<Ipv6Addr>().unwrap(), "fe80::1".parse().unwrap()]);
        let unreachable = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";
        assert!(!has_default_route(unreachable));
        assert!(has_default_route(&unreachable.replace("      lo", "    eth0")));
    }
}
