//! Pairs of links into network namespaces: those of containers.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{FsType, statfs};
use rhizome_model::{ResourceId, gateway_address, resource_address};

use crate::error::Result;
use crate::node::{Mark, NodeConfig};

use super::inside::Inside;
use super::link::{Mac, connect, has_link, ip, line};
use super::{MTU, NETNS};

/// As statfs(2) names the file system of namespaces.
const NSFS_MAGIC: i64 = 0x6e73_6673;

pub(super) fn make(config: &NodeConfig, mark: &Mark, id: &ResourceId) -> Result<()> {
    let netns = mark.netns(id);
    let mut batch = String::new();
    line(&mut batch, format_args!("netns add {netns}"));
    add_pair(&mut batch, config, mark, id);
    connect(&mut batch, mark, id);
    ip(&[], batch)?;
    ip(&["-n", &netns], addresses(config, id, "add"))
}

fn add_pair(batch: &mut String, config: &NodeConfig, mark: &Mark, id: &ResourceId) {
    let (netns, link) = (mark.netns(id), mark.link(id));
    let mac = Mac::of(resource_address(config.address, id));
    line(
        batch,
        format_args!(
            "link add {link} mtu {MTU} type veth peer name eth0 mtu {MTU} address {mac} netns {netns}"
        ),
    );
}

/// What belongs inside a namespace; `verb` is add or replace.
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

pub(super) fn namespace_gap(mark: &Mark, id: &ResourceId, pid: Option<i32>) -> Option<String> {
    let netns = mark.netns(id);
    (!is_namespace(&netns, pid)).then(|| format!("namespace {netns} is gone"))
}

/// Makes what is not there around a process in the namespace.
pub(super) fn mend(config: &NodeConfig, mark: &Mark, id: &ResourceId, pid: i32) -> Result<()> {
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
        add_pair(&mut batch, config, mark, id);
    }
    connect(&mut batch, mark, id);
    ip(&[], batch)?;
    ip(&["-n", &netns], addresses(config, id, "replace"))
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
