//! What a guest is told: who it is, where it is, and what it has.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use rhizome_model::kind::MachineSpec;
use rhizome_model::{ResourceId, gateway_address, resource_address};

use super::super::{Driver, identity};
use super::disks::file_name;
use crate::error::Result;
use crate::net::{self, Mac};
use crate::program::Place;
use crate::vm::{Seed, SeedMount, SeedNet, uuid_of, write_seed};

/// The serial number of the disk that tells it, and the label by which guests know it.
pub(super) const CIDATA: &str = "cidata";
const PREFIX: u8 = 64;
/// What empty disks of volumes are given.
const FILESYSTEM: &str = "ext4";

impl Driver {
    pub(super) fn write_seed(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
    ) -> Result<()> {
        let node = self.node.config.address;
        let address = resource_address(node, id);
        let seed = Seed {
            instance_id: uuid_of(&format!("{id} {}", identity(spec))),
            hostname: id.name.to_string(),
            ssh_keys: spec.ssh_keys.clone(),
            env: spec.env.clone(),
            network: Some(SeedNet {
                mac: Mac::of(address).to_string(),
                address,
                prefix: PREFIX,
                gateway: gateway_address(node),
                routes: vec!["::/0".to_owned()],
                nameservers: nameservers(
                    &fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
                ),
                mtu: net::MTU as u16,
            }),
            mounts: spec
                .mounts
                .iter()
                .map(|mount| SeedMount {
                    serial: mount.volume.to_string(),
                    path: mount.path.clone(),
                    readonly: mount.readonly,
                    filesystem: FILESYSTEM.to_owned(),
                })
                .collect(),
        };
        write_seed(&place.root.join(file_name(CIDATA)), &seed)
    }
}

/// Those of the node that a machine can reach, which has nothing but IPv6.
fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    let servers = resolv_conf.lines().filter_map(|line| line.strip_prefix("nameserver"));
    let reaches = |ip: &Ipv6Addr| !ip.is_loopback() && !ip.is_unicast_link_local();
    servers
        .filter_map(|server| server.trim().parse::<Ipv6Addr>().ok().filter(reaches))
        .map(IpAddr::V6)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_told_of_name_servers_that_it_can_reach() {
        let text = "search x\nnameserver 10.0.0.1\nnameserver ::1\nnameserver 400::53\n";
        assert_eq!(nameservers(text), ["400::53".parse::<IpAddr>().unwrap()]);
    }
}
