//! The network of what has an address: one bridge per node, and a link of it per resource.
//!
//! ```text
//!     node ── rz<8 digits>  (bridge, prefix::1/64)
//!               ├── rz<13 digits> ═══ eth0 of container a, prefix:…/64, in rz<8 digits>.1.demo.a
//!               └── rz<13 digits>  a TAP, which the hypervisor of virtual machine b has open
//! ```
//!
//! The namespace's name and the alias of the host's link say whose they are. What comes in over a
//! link passes the node's filter only with the address and the MAC that belong to it: [`filter`].

mod bridge;
mod filter;
mod inside;
mod link;
mod tap;
mod veth;

use std::fs;
use std::path::Path;
use std::time::Duration;

use rhizome_model::{Code, ResourceId, WorkloadKind, resource_address};

use crate::error::{Result, SalError};
use crate::files;
use crate::node::{Mark, NodeConfig};

pub(crate) use link::has_link;
use link::{LINKS, ip, line};

pub(crate) use filter::admit;
pub(crate) use inside::is_inside;
pub(crate) use link::Mac;

/// Leaves room for the overlay's headers.
pub(crate) const MTU: u32 = 1400;
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(20);
const NETNS: &str = "/run/netns";

/// What a link of the node's bridge leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    /// eth0 of a network namespace of its own.
    Veth,
    /// A TAP that stays, for a hypervisor to open by its name.
    Tap,
}

/// Makes bridge and filter, and lets the node forward. The links that are there stay connected.
pub(crate) fn up(config: &NodeConfig, mark: &Mark) -> Result<()> {
    // Before the bridge: nothing shall pass unseen.
    filter::up(config, mark, &linked(mark)?)?;
    bridge::up(config, mark)
}

pub(crate) fn is_up(mark: &Mark) -> bool {
    has_link(&mark.name)
}

/// By what the node is joined to others.
pub(crate) fn driver(mark: &Mark) -> String {
    let tun = mark.tun();
    if has_link(&tun) { format!("mycelium ({tun})") } else { "plain IPv6".to_owned() }
}

pub(crate) fn down(mark: &Mark) -> Result<()> {
    bridge::down(mark)?;
    filter::down(mark)
}

impl Port {
    /// Makes a resource's network anew, and lets it send.
    pub fn attach(self, config: &NodeConfig, mark: &Mark, id: &ResourceId) -> Result<()> {
        // Its names are known before it is there: `nft` and `ip` work at a time.
        let attached = std::thread::scope(|scope| {
            let admission = scope.spawn(|| admit(config, mark, id));
            let connected = self.connect(config, mark, id);
            let broke_off = |_| Err(SalError::new(Code::Internal, "admitting a link broke off"));
            connected.and(admission.join().unwrap_or_else(broke_off))
        });
        if attached.is_err() {
            let _ = filter::dismiss(config, mark, id);
        }
        attached
    }

    /// Makes a resource's link anew, over which nothing passes before [`admit`]. An `ip` that died with its
    /// caller can still be on its way out of the kernel and get in between, so a failure is tried again.
    pub fn connect(self, config: &NodeConfig, mark: &Mark, id: &ResourceId) -> Result<()> {
        let mut attempt = 1;
        loop {
            let made = unlink(mark, id).and_then(|()| match self {
                Self::Veth => veth::make(config, mark, id),
                Self::Tap => tap::make(mark, id),
            });
            match made {
                Err(error) if attempt < ATTEMPTS => {
                    tracing::debug!(resource = %id, attempt, %error, "its network is made again");
                    std::thread::sleep(PAUSE * attempt);
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    /// What is not there of a resource's network; nothing when all is well. Inside a namespace one
    /// can look only while a process is in it.
    pub fn gaps(
        self,
        config: &NodeConfig,
        mark: &Mark,
        id: &ResourceId,
        pid: Option<i32>,
    ) -> Vec<String> {
        let (link, bridge) = (mark.link(id), &mark.name);
        let mut gaps = Vec::new();
        if !has_link(bridge) {
            gaps.push(format!("bridge {bridge} is gone"));
        }
        if self == Self::Veth {
            gaps.extend(veth::namespace_gap(mark, id, pid));
        }
        if !has_link(&link) {
            gaps.push(format!("link {link} is gone"));
        } else if !link::is_connected(&link, bridge) {
            gaps.push(format!("link {link} is not connected"));
        } else if !link::is_in_group(&link, mark) {
            gaps.push(format!("link {link} is not in the node's group"));
        } else if link::mtu(&link) != Some(MTU) {
            gaps.push(format!("link {link} has another MTU than {MTU}"));
        }
        gaps.extend(filter::gap(config, mark, id));
        if let (Self::Veth, Some(pid)) = (self, pid)
            && has_link(&link)
        {
            gaps.extend(inside::gap(pid, resource_address(config.address, id)));
        }
        gaps
    }

    /// Makes what is not there of a resource's network, without disturbing what is.
    pub fn mend(
        self,
        config: &NodeConfig,
        mark: &Mark,
        id: &ResourceId,
        pid: Option<i32>,
    ) -> Result<()> {
        up(config, mark)?;
        match (self, pid) {
            (Self::Veth, None) => return self.attach(config, mark, id),
            (Self::Veth, Some(pid)) => match veth::mend(config, mark, id, pid) {
                // It ended meanwhile: there is nothing left that could be disturbed.
                Err(_) if !is_inside(pid) => return self.attach(config, mark, id),
                done => done?,
            },
            (Self::Tap, _) => tap::mend(mark, id)?,
        }
        admit(config, mark, id)
    }
}

/// Removes a resource's namespace and links, and what the filter lets through of it; what is not
/// there is fine.
pub(crate) fn detach(config: &NodeConfig, mark: &Mark, id: &ResourceId) -> Result<()> {
    // First: while there are links, whoever takes this over knows of the rest.
    filter::dismiss(config, mark, id)?;
    unlink(mark, id)
}

/// Whether there is anything to detach; what the filter knows goes before the rest.
pub(crate) fn is_attached(mark: &Mark, id: &ResourceId) -> bool {
    has_link(&mark.link(id)) || Path::new(NETNS).join(mark.netns(id)).exists()
}

fn unlink(mark: &Mark, id: &ResourceId) -> Result<()> {
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

/// The resources that have a namespace or a link.
pub(crate) fn list(mark: &Mark) -> Result<Vec<ResourceId>> {
    let spaces = files::names(Path::new(NETNS))?;
    let mut found: Vec<_> = spaces.iter().filter_map(|n| mark.netns_resource(n)).collect();
    found.extend(aliases()?.iter().filter_map(|(_, alias)| mark.alias_resource(alias)));
    Ok(found)
}

/// All links of a node, of whatever kind.
fn linked(mark: &Mark) -> Result<Vec<(String, ResourceId)>> {
    let marks: Vec<_> = WorkloadKind::ALL.iter().map(|kind| mark.of(*kind)).collect();
    let of = |alias: &str| marks.iter().find_map(|mark| mark.alias_resource(alias));
    let all = aliases()?.into_iter();
    Ok(all.filter_map(|(link, alias)| Some((link, of(&alias)?))).collect())
}

/// The links that may be ours, with what is written on them.
fn aliases() -> Result<Vec<(String, String)>> {
    let links = files::names(Path::new(LINKS))?.into_iter().filter(|n| n.starts_with("rz"));
    // A link may go while we look.
    let alias = |link: &str| fs::read_to_string(Path::new(LINKS).join(link).join("ifalias"));
    Ok(links.filter_map(|link| alias(&link).ok().map(|alias| (link, alias))).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rhizome_model::{Bytes, KeyId, gateway_address};

    use super::*;
    use crate::node::Pool;

    /// A node that is nothing but its network.
    struct Bare {
        config: NodeConfig,
        mark: Mark,
    }

    impl Bare {
        fn new(name: &str) -> Self {
            let key = KeyId(
                *blake3::hash(format!("{name} {}", std::process::id()).as_bytes()).as_bytes(),
            );
            let config = NodeConfig {
                key,
                address: "5d3:7a10:1:2::7".parse().unwrap(),
                state: "/nowhere".into(),
                pool: Pool::LoopFile { size: Bytes::mib(1) },
                program: "/nowhere".into(),
                image_roots: Vec::new(),
            };
            let bare = Self { config, mark: Mark::new(key) };
            up(&bare.config, &bare.mark).unwrap();
            bare
        }
    }

    impl Drop for Bare {
        fn drop(&mut self) {
            for id in list(&self.mark).unwrap() {
                detach(&self.config, &self.mark, &id).unwrap();
            }
            down(&self.mark).unwrap();
        }
    }

    fn run(line: &str) {
        let mut words = line.split(' ');
        let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(status.success(), "{line}");
    }

    #[test]
    fn a_tap_stays_for_its_hypervisor_and_is_put_right() {
        let bare = Bare::new("tap");
        let (config, mark, id) = (&bare.config, &bare.mark, "1/demo/vm".parse().unwrap());
        Port::Tap.attach(config, mark, &id).unwrap();
        let link = mark.link(&id);
        let gaps = || Port::Tap.gaps(config, mark, &id, None);
        assert_eq!(gaps(), [""; 0]);
        assert_eq!(list(mark).unwrap(), std::slice::from_ref(&id));
        let read = |name: &str| fs::read_to_string(format!("{LINKS}/{link}/{name}")).unwrap();
        assert_eq!(read("ifalias").trim(), mark.alias(&id));
        assert_eq!(read("mtu").trim(), "1400");
        // IFF_TAP, and one that stays.
        let flags = u32::from_str_radix(read("tun_flags").trim().trim_start_matches("0x"), 16);
        assert_eq!(flags.unwrap() & 0x0802, 0x0802);

        let table = &mark.name;
        for broken in [
            format!("ip link set {link} nomaster"),
            format!("ip link set {link} down"),
            format!("ip link set {link} group 0"),
            format!("ip link set {link} mtu 1500"),
            format!("nft flush set bridge {table} macs"),
            format!("nft delete table bridge {table}"),
            format!("ip link delete {table}"),
            format!("ip link delete {link}"),
        ] {
            let index = read("ifindex");
            run(&broken);
            assert!(!gaps().is_empty(), "{broken}");
            Port::Tap.mend(config, mark, &id, None).unwrap();
            assert_eq!(gaps(), [""; 0], "{broken}");
            let is_gone = broken == format!("ip link delete {link}");
            assert_eq!(read("ifindex") == index, !is_gone, "{broken}: it stays while it can");
        }
        detach(config, mark, &id).unwrap();
        assert!(!has_link(&link));
        assert_eq!(list(mark).unwrap(), []);
        detach(config, mark, &id).unwrap();
    }

    #[test]
    fn the_bridge_keeps_its_mac_and_down_takes_everything() {
        let bare = Bare::new("bridge");
        let (config, mark) = (&bare.config, &bare.mark);
        let mac = || fs::read_to_string(format!("{LINKS}/{}/address", mark.name)).unwrap();
        let wanted = Mac::of(gateway_address(config.address)).to_string();
        assert_eq!(mac().trim(), wanted);
        for n in 0..3 {
            Port::Tap.attach(config, mark, &format!("1/demo/vm-{n}").parse().unwrap()).unwrap();
            assert_eq!(mac().trim(), wanted);
        }
        let name = mark.name.clone();
        drop(bare);
        assert!(!has_link(&name));
        let tables = Command::new("nft").args(["list", "tables"]).output().unwrap();
        assert!(!String::from_utf8(tables.stdout).unwrap().contains(&name));
    }
}
