//! Links of the kernel, as `ip` makes them and /sys shows them.

use std::fmt::{self, Write as _};
use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;

use crate::error::Result;
use crate::node::Mark;
use crate::tool::Tool;

pub(super) const LINKS: &str = "/sys/class/net";

/// The link address that follows from an IPv6 address; locally administered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac([u8; 6]);

impl Mac {
    pub fn of(address: Ipv6Addr) -> Self {
        let hash = blake3::derive_key("rhizome 2026 link address v1", &address.octets());
        let [a, b, c, d, e, ..] = hash;
        Self([2, a, b, c, d, e])
    }

    /// The address in fe80::/64 that a kernel makes of it (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0xfe, 0x80]);
        octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        octets.into()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

pub(crate) fn has_link(name: &str) -> bool {
    Path::new(LINKS).join(name).exists()
}

/// Whether a link is up and on the bridge.
pub(super) fn is_connected(link: &str, bridge: &str) -> bool {
    let folder = Path::new(LINKS).join(link);
    let flags = fs::read_to_string(folder.join("flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    let master = fs::read_link(folder.join("master")).unwrap_or_default();
    flags & 1 == 1 && master.file_name().is_some_and(|name| name == bridge)
}

pub(super) fn mtu(link: &str) -> Option<u32> {
    let text = fs::read_to_string(Path::new(LINKS).join(link).join("mtu")).ok()?;
    text.trim().parse().ok()
}

/// The device group of a node's links, from the digits in its mark. Group 0 is everybody's, and `ip`
/// knows none above 2³¹.
pub(super) fn group(mark: &Mark) -> u32 {
    let digits = u32::from_str_radix(mark.name.trim_start_matches("rz"), 16).unwrap_or_default();
    digits & 0x3fff_ffff | 0x4000_0000
}

pub(super) fn is_in_group(link: &str, mark: &Mark) -> bool {
    let text = fs::read_to_string(Path::new(LINKS).join(link).join("netdev_group"));
    text.ok().and_then(|t| t.trim().parse().ok()) == Some(group(mark))
}

/// Connects the host's end of a resource's link to the bridge and writes on it whose it is.
pub(super) fn connect(batch: &mut String, mark: &Mark, id: &rhizome_model::ResourceId) {
    let (link, bridge) = (mark.link(id), &mark.name);
    let (alias, mtu, group) = (mark.alias(id), super::MTU, group(mark));
    // The group first: what is connected is watched.
    line(batch, format_args!("link set {link} group {group}"));
    line(batch, format_args!("link set {link} alias {alias} mtu {mtu} master {bridge} up"));
}

pub(super) fn line(batch: &mut String, args: fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(batch, "{args}");
}

pub(super) fn ip(options: &[&str], batch: String) -> Result<()> {
    Tool::new("ip").args(options).args(["-batch", "-"]).stdin(batch).run().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_shown_and_has_its_link_local_address() {
        let mac = Mac([0x02, 0x12, 0x34, 0x56, 0x78, 0x9a]);
        assert_eq!(mac.to_string(), "02:12:34:56:78:9a");
        assert_eq!(mac.link_local().to_string(), "fe80::12:34ff:fe56:789a");
        let address: Ipv6Addr = "5d3:7a10:1:2:4deb:f1d8:8cec:af90".parse().unwrap();
        assert!(Mac::of(address).to_string().starts_with("02:"));
        assert_ne!(Mac::of(address), Mac::of("5d3::1".parse().unwrap()));
    }
}
