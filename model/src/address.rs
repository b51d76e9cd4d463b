//! IPv6 addresses of resources, known before anything exists.
//!
//! A node owns the /64 of its Mycelium address. A resource of the node has the address
//! `prefix ‖ h`, where `h` is the first 8 bytes of BLAKE3 in key-derivation mode with the context
//! `rhizome 2026 resource address v1` over the text `ACCOUNT/DEPLOYMENT/NAME`. The derivation is
//! repeated with one more `\n` behind the text while `h` is zero, the gateway's or the node's own.

use std::net::Ipv6Addr;

use crate::ResourceId;

/// The /64 that the node routes, as its first address.
pub fn node_prefix(node: Ipv6Addr) -> Ipv6Addr {
    join(node, [0; 8])
}

/// The node's own address on the bridge of its machines: `prefix::1`, their gateway.
pub fn gateway_address(node: Ipv6Addr) -> Ipv6Addr {
    join(node, 1u64.to_be_bytes())
}

/// The address of a resource on the node whose own (Mycelium) address is `node`.
pub fn resource_address(node: Ipv6Addr, id: &ResourceId) -> Ipv6Addr {
    let mut text = id.to_string();
    loop {
        let mut hash = blake3::Hasher::new_derive_key("rhizome 2026 resource address v1");
        hash.update(text.as_bytes());
        let mut host = [0; 8];
        host.copy_from_slice(&hash.finalize().as_bytes()[..8]);
        let address = join(node, host);
        if address != node && address != gateway_address(node) && address != node_prefix(node) {
            return address;
        }
        text.push('\n');
    }
}

fn join(node: Ipv6Addr, host: [u8; 8]) -> Ipv6Addr {
    let mut octets = node.octets();
    octets[8..].copy_from_slice(&host);
    octets.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_nodes_prefix_and_never_moves() {
        let node: Ipv6Addr = "5d3:7a10:1:2:3:4:5:6".parse().unwrap();
        let web = resource_address(node, &"1/demo/web".parse().unwrap());
        assert_eq!(web.to_string(), "5d3:7a10:1:2:4deb:f1d8:8cec:af90");
        assert_ne!(web, resource_address(node, &"1/demo/client".parse().unwrap()));
        assert_eq!(gateway_address(node).to_string(), "5d3:7a10:1:2::1");
    }
}
