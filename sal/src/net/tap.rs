//! TAPs: the links of virtual machines. A TAP is there before its hypervisor opens it, and stays
//! when that has died.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use rhizome_model::ResourceId;

use crate::error::{During, Result};
use crate::node::Mark;

use super::MTU;
use super::link::{LINKS, connect, group, has_link, ip};

/// Makes one and connects it, as [`connect`] does, without another program: a virtual machine waits
/// for it.
pub(super) fn make(mark: &Mark, id: &ResourceId) -> Result<()> {
    let link = mark.link(id);
    create(&link).during(format_args!("make the TAP {link}"))?;
    let set = |name: &str, value: &str| {
        fs::write(Path::new(LINKS).join(&link).join(name), value)
            .during(format_args!("set {name} of {link}"))
    };
    // The group first: what is connected is watched.
    set("netdev_group", &group(mark).to_string())?;
    set("ifalias", &mark.alias(id))?;
    set("mtu", &MTU.to_string())?;
    enslave(&link, &mark.name).during(format_args!("connect {link} to {}", mark.name))?;
    set("flags", &format!("{:#x}", libc::IFF_UP | libc::IFF_BROADCAST | libc::IFF_MULTICAST))
}

/// A TAP that stays when nobody has it open.
fn create(link: &str) -> std::io::Result<()> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(link)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the file is open, and the kernel reads and writes no more than a request.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: takes a number.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) })?;
    Ok(())
}

fn enslave(link: &str, bridge: &str) -> std::io::Result<()> {
    /// Of <linux/sockios.h>.
    const SIOCBRADDIF: libc::Ioctl = 0x89a2;
    let any = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = request(bridge)?;
    request.ifr_ifru.ifru_ifindex = nix::net::if_::if_nametoindex(link)?.cast_signed();
    // SAFETY: the socket is open, and the kernel reads and writes no more than a request.
    Errno::result(unsafe { libc::ioctl(any.as_raw_fd(), SIOCBRADDIF, &raw mut request) })?;
    Ok(())
}

fn request(link: &str) -> std::io::Result<libc::ifreq> {
    // SAFETY: all of it are numbers, and may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if link.len() >= request.ifr_name.len() {
        return Err(std::io::Error::other(format!("the name {link} is too long for a link")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

/// One that was deleted is made again, though the hypervisor that had it open has lost it.
pub(super) fn mend(mark: &Mark, id: &ResourceId) -> Result<()> {
    if !has_link(&mark.link(id)) {
        return make(mark, id);
    }
    let mut batch = String::new();
    connect(&mut batch, mark, id);
    ip(&[], batch)
}
