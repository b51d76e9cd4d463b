//! What a process sees of its own network.

use std::fs;
use std::net::Ipv6Addr;

/// Whether a process that has not ended is in a network namespace.
pub(crate) fn is_inside(pid: i32) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net")).is_ok()
}

/// What a process does not see of what it should.
pub(super) fn gap(pid: i32, address: Ipv6Addr) -> Option<String> {
    let inside = Inside::look(pid);
    if !inside.link {
        Some("its eth0 is gone".to_owned())
    } else if !inside.addresses.contains(&address) {
        Some(format!("its address {address} is gone"))
    } else if !inside.route {
        Some("its default route is gone".to_owned())
    } else {
        None
    }
}

pub(super) struct Inside {
    pub link: bool,
    addresses: Vec<Ipv6Addr>,
    route: bool,
}

impl Inside {
    pub fn look(pid: i32) -> Self {
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
