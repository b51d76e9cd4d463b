//! What may pass: the node's two tables in nftables, both named by its mark.
//!
//! ```text
//!   a resource's link ─▶ bridge table: its MAC? its address? no router, no DHCP server ─▶ the bridge
//!   the bridge ◀─▶ elsewhere: inet table: from and to the node's /64 only, overlay with overlay
//! ```
//!
//! Links of the node are of a device group of their own, and what comes in over a link of that group
//! is dropped unless the sets know link, MAC and address together. So a link that is not yet in the
//! sets, or no longer, gets nothing through, and attaching one is to add elements.
//!
//! Every change is one transaction, and may be repeated. Tables of others are never looked at.

use std::net::Ipv6Addr;
use std::time::Duration;

use rhizome_model::{ResourceId, node_prefix, resource_address};

use crate::error::{Result, SalError};
use crate::node::{Mark, NodeConfig};
use crate::tool::Tool;

use super::link::{self, Mac, line};

const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(2);
/// Mycelium's own range.
const OVERLAY: &str = "400::/7";

/// Makes both tables as they should be, with the links that are there and whose they are.
pub(super) fn up(config: &NodeConfig, mark: &Mark, links: &[(String, ResourceId)]) -> Result<()> {
    let mut script = rules(&mark.name, link::group(mark), config.address);
    for (link, id) in links {
        for element in Elements::new(config, mark, link.clone(), id).list() {
            line(&mut script, format_args!("add element {element}"));
        }
    }
    nft(script).map(drop)
}

pub(super) fn down(mark: &Mark) -> Result<()> {
    let mut script = String::new();
    for family in ["bridge", "inet"] {
        // What is not there cannot be deleted.
        line(&mut script, format_args!("add table {family} {}", mark.name));
        line(&mut script, format_args!("delete table {family} {}", mark.name));
    }
    nft(script).map(drop)
}

/// Lets a resource send as itself over its link, be that there or not.
pub(crate) fn admit(config: &NodeConfig, mark: &Mark, id: &ResourceId) -> Result<()> {
    let mut script = String::new();
    for element in Elements::of(config, mark, id).list() {
        line(&mut script, format_args!("add element {element}"));
    }
    nft(script).map(drop).or_else(|_| {
        // Somebody has flushed everything meanwhile. Its link may not be there yet.
        let mut links = super::linked(mark)?;
        links.push((mark.link(id), id.clone()));
        up(config, mark, &links)
    })
}

/// Lets a resource send nothing any more.
pub(super) fn dismiss(config: &NodeConfig, mark: &Mark, id: &ResourceId) -> Result<()> {
    let mut script = String::new();
    line(&mut script, format_args!("add table bridge {}", mark.name));
    for set in SETS {
        line(&mut script, format_args!("add set bridge {} {set}", mark.name));
    }
    for element in Elements::of(config, mark, id).list() {
        line(&mut script, format_args!("add element {element}"));
        line(&mut script, format_args!("delete element {element}"));
    }
    nft(script).map(drop)
}

/// What is not there of it.
pub(super) fn gap(config: &NodeConfig, mark: &Mark, id: &ResourceId) -> Option<String> {
    let table = &mark.name;
    let mut script = String::new();
    for chain in ["prerouting", "machine"] {
        line(&mut script, format_args!("list chain bridge {table} {chain}"));
    }
    line(&mut script, format_args!("list table inet {table}"));
    let elements = Elements::of(config, mark, id);
    for element in elements.list() {
        line(&mut script, format_args!("get element {element}"));
    }
    let wanted = rules(table, link::group(mark), config.address);
    let wanted = wanted.lines().filter(|l| l.starts_with("add rule")).count();
    match nft(script) {
        Ok(shown) if rules_shown(&shown) == wanted => None,
        Ok(_) => Some(format!("rules of the filter {table} are gone")),
        Err(error) if is_about(&error, "No such file or directory") => {
            Some(format!("the filter {table} does not know link {}", elements.link))
        }
        Err(error) => Some(format!("the filter {table} cannot be looked at: {error}")),
    }
}

/// How many rules there are in what `nft list` prints.
fn rules_shown(text: &str) -> usize {
    const OTHERS: [&str; 7] = ["table", "chain", "set", "type", "typeof", "elements", "}"];
    let is_rule = |line: &&str| {
        let word = line.split_whitespace().next();
        // Elements go on over several lines, each of which begins with a name in quotes.
        word.is_some_and(|word| !OTHERS.contains(&word) && !word.starts_with('"'))
    };
    text.lines().filter(is_rule).count()
}

const SETS: [&str; 3] = [
    "macs { type ifname . ether_addr ; }",
    "sources { type ifname . ipv6_addr ; }",
    // The target of a neighbour advertisement or solicitation, behind 8 bytes of ICMPv6.
    "targets { typeof iifname . @th,64,128 ; }",
];

/// The tables of a node, as input of `nft`.
fn rules(table: &str, group: u32, node: Ipv6Addr) -> String {
    let mut script = String::new();
    let mut add = |what: &str, rest: String| {
        line(&mut script, format_args!("{what} {rest}"));
    };
    add("add table bridge", table.to_owned());
    for set in SETS {
        add("add set bridge", format!("{table} {set}"));
    }
    for (chain, hook) in [
        ("prerouting", "{ type filter hook prerouting priority -300 ; policy accept ; }"),
        ("machine", ""),
    ] {
        add("add chain bridge", format!("{table} {chain} {hook}"));
        add("flush chain bridge", format!("{table} {chain}"));
    }
    add("add rule bridge", format!("{table} prerouting iifgroup {group} goto machine"));
    for rule in FROM_A_LINK {
        add("add rule bridge", format!("{table} machine {rule}"));
    }

    add("add table inet", table.to_owned());
    for (chain, hook) in [
        ("forward", "{ type filter hook forward priority 0 ; policy accept ; }"),
        ("outwards", ""),
        ("inwards", ""),
    ] {
        add("add chain inet", format!("{table} {chain} {hook}"));
        add("flush chain inet", format!("{table} {chain}"));
    }
    // Bridged, seen here where the kernel calls these hooks for bridges too; the links' rules saw it.
    add("add rule inet", format!("{table} forward iifname {table} oifname {table} accept"));
    add("add rule inet", format!("{table} forward iifname {table} goto outwards"));
    add("add rule inet", format!("{table} forward oifname {table} goto inwards"));
    for (chain, rule) in forwarding(node) {
        add("add rule inet", format!("{table} {chain} {rule}"));
    }
    script
}

const FROM_A_LINK: [&str; 8] = [
    // No IPv4, no ARP, no VLAN.
    "ether type != ip6 drop",
    "iifname . ether saddr != @macs drop",
    "icmpv6 type { nd-router-advert, nd-redirect } drop",
    // What DHCPv6 servers say.
    "udp dport 546 drop",
    "icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets drop",
    // Detection of duplicate addresses, before there is an address to send from.
    "ip6 saddr :: icmpv6 type nd-neighbor-solicit iifname . @th,64,128 @targets accept",
    "iifname . ip6 saddr @sources accept",
    "drop",
];

/// What the node forwards from and to its bridge. Both ways are told by addresses alone: an answer
/// comes from where the question could go.
fn forwarding(node: Ipv6Addr) -> Vec<(&'static str, String)> {
    let own = format!("{}/64", node_prefix(node));
    let mut rules = vec![
        ("outwards", "meta nfproto != ipv6 drop".to_owned()),
        ("outwards", format!("ip6 saddr != {own} drop")),
        ("inwards", "meta nfproto != ipv6 drop".to_owned()),
        ("inwards", format!("ip6 daddr != {own} drop")),
        // From elsewhere nobody has an address of ours.
        ("inwards", format!("ip6 saddr {own} drop")),
    ];
    if is_overlay(node) {
        // Routers on the way may have any address when they say why a packet did not arrive.
        const ERRORS: &str =
            "destination-unreachable, packet-too-big, time-exceeded, parameter-problem";
        rules.extend([
            ("outwards", format!("ip6 daddr != {OVERLAY} drop")),
            ("inwards", format!("icmpv6 type {{ {ERRORS} }} accept")),
            ("inwards", format!("ip6 saddr != {OVERLAY} drop")),
        ]);
    }
    rules
}

fn is_overlay(address: Ipv6Addr) -> bool {
    address.octets()[0] & 0xfe == 0x04
}

/// What belongs to one resource in the sets.
struct Elements {
    table: String,
    link: String,
    mac: Mac,
    addresses: [Ipv6Addr; 2],
}

impl Elements {
    fn of(config: &NodeConfig, mark: &Mark, id: &ResourceId) -> Self {
        Self::new(config, mark, mark.link(id), id)
    }

    fn new(config: &NodeConfig, mark: &Mark, link: String, id: &ResourceId) -> Self {
        let address = resource_address(config.address, id);
        let mac = Mac::of(address);
        let addresses = [address, mac.link_local()];
        Self { table: mark.name.clone(), link, mac, addresses }
    }

    /// Each with its table and set.
    fn list(&self) -> [String; 3] {
        let Self { table, link, mac, addresses: [own, local] } = self;
        let number = |address: &Ipv6Addr| format!("0x{:032x}", u128::from(*address));
        let (own_number, local_number) = (number(own), number(local));
        [
            format!("bridge {table} macs {{ \"{link}\" . {mac} }}"),
            format!("bridge {table} sources {{ \"{link}\" . {own}, \"{link}\" . {local} }}"),
            format!(
                "bridge {table} targets {{ \"{link}\" . {own_number}, \"{link}\" . {local_number} }}"
            ),
        ]
    }
}

/// Another's transaction interrupts what reads; then it is read again.
fn nft(script: String) -> Result<String> {
    const AGAIN: &str = "Interrupted system call";
    let mut attempt = 1;
    loop {
        match Tool::new("nft").args(["-f", "-"]).stdin(script.as_str()).run() {
            Err(error) if attempt < ATTEMPTS && is_about(&error, AGAIN) => {
                std::thread::sleep(PAUSE * attempt);
                attempt += 1;
            }
            done => return done,
        }
    }
}

fn is_about(error: &SalError, words: &str) -> bool {
    error.to_string().contains(words) || error.detail().is_some_and(|d| d.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_counted_as_they_are_listed() {
        let shown = "table bridge rz {\n\tchain machine {\n\t\ttype filter hook prerouting priority \
                     dstnat; policy accept;\n\t\tether type != ip6 drop\n\t\tdrop\n\t}\n}\n\
                     table bridge rz {\n\tset macs {\n\t\ttype ifname . ether_addr\n\t\t\
                     elements = { \"a\" . 02:00:00:00:00:01,\n\t\t\"b\" . 02:00:00:00:00:02 }\n\t}\n}\n";
        assert_eq!(rules_shown(shown), 2);
    }

    #[test]
    fn only_the_overlay_is_kept_apart() {
        let count = |node: &str| forwarding(node.parse().unwrap()).len();
        assert_eq!(count("400::1"), count("5ff:ffff::1"));
        assert!(count("600::1") < count("5ff::1"));
        assert!(count("3ff::1") < count("400::1"));
    }
}
