//! A node in a network of its own, and the frames that somebody with privileges inside a machine's
//! network would send and see.

use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rhizome_model::{ResourceId, resource_address};
use tokio::runtime::Runtime;

use crate::world::World;

type Job = Box<dyn FnOnce(&Runtime, &World) + Send>;

/// A world on a thread that has network and mounts of its own, as have all that it starts.
pub struct Node {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    pub tid: i32,
}

impl Node {
    pub fn new() -> Self {
        Self::with(None)
    }

    // Two test programs share this, and one of them needs it.
    #[allow(dead_code)]
    pub fn at(address: Ipv6Addr) -> Self {
        Self::with(Some(address))
    }

    fn with(address: Option<Ipv6Addr>) -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            isolate();
            // With a thread of its own for what goes on between the jobs.
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
            let world = runtime.block_on(async {
                match address {
                    Some(address) => World::at(address).await,
                    None => World::new().await,
                }
            });
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            inbox.into_iter().for_each(|job| job(&runtime, &world));
        });
        let tid = started.recv_timeout(Duration::from_secs(60)).unwrap();
        Self { jobs: Some(jobs), thread: Some(thread), tid }
    }

    /// Runs something on the node.
    pub fn run<T: Send + 'static>(&self, job: impl AsyncFnOnce(&World) -> T + Send + 'static) -> T {
        let (sender, answer) = mpsc::channel();
        let job: Job = Box::new(move |runtime, world| {
            sender.send(runtime.block_on(job(world))).unwrap();
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        answer.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    /// Runs a shell script in the node's own network.
    pub fn shell(&self, script: impl Into<String>) -> String {
        let script = script.into();
        self.run(async move |_| shell(&script))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

pub fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn isolate() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    // Else the pools of other tests would be held open here.
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
    for pool in mounts.lines().filter(|l| l.starts_with("/dev/loop")) {
        umount2(pool.split(' ').nth(1).unwrap(), MntFlags::MNT_DETACH).unwrap();
    }
    // A sysfs shows the network that it was mounted in; control groups are mounted below it.
    let aside = tempfile::tempdir().unwrap();
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some("/sys/fs/cgroup"), aside.path(), none, bind, none).unwrap();
    umount2("/sys", MntFlags::MNT_DETACH).unwrap();
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
    mount(Some(aside.path()), "/sys/fs/cgroup", none, MsFlags::MS_MOVE, none).unwrap();
    shell("ip link set lo up");
}

/// Joins two nodes by a pair of links `up0` with fd00::1 and fd00::2.
pub fn join(a: &Node, b: &Node) {
    a.shell(format!("ip link add up0 type veth peer name up0 netns {}", b.tid));
    for (node, own) in [(a, 1), (b, 2)] {
        node.shell(format!("ip address add fd00::{own}/64 dev up0 nodad; ip link set up0 up"));
    }
}

/// Routes the /64 of each to the other, as routers between them would.
pub fn route(a: &Node, b: &Node) {
    let prefix = |node: &Node| node.run(async |w| rhizome_model::node_prefix(w.config.address));
    for (node, other, behind) in [(a, 2, prefix(b)), (b, 1, prefix(a))] {
        node.shell(format!("ip route add {behind}/64 via fd00::{other}"));
    }
}

/// One end of a frame's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub mac: [u8; 6],
    pub address: Ipv6Addr,
}

/// A machine's own, as its network shows it.
pub fn end_of(world: &World, id: &ResourceId) -> End {
    let netns = format!("{}.{}", world.mark(), id.file_name());
    let mac = shell(&format!("ip netns exec {netns} cat /sys/class/net/eth0/address"));
    End { mac: parse_mac(&mac), address: resource_address(world.config.address, id) }
}

/// What somebody inside a machine has: its own end, a socket on its link, and where its gateway is.
pub fn inside(world: &World, id: &ResourceId) -> (End, Wire, [u8; 6]) {
    let mac = shell(&format!("cat /sys/class/net/{}/address", world.mark()));
    (end_of(world, id), Wire::inside(world, id), parse_mac(&mac))
}

pub fn parse_mac(text: &str) -> [u8; 6] {
    let bytes: Vec<_> =
        text.trim().split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A raw socket on a link, `eth0` of a machine's network namespace or a link of the thread's own.
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    pub fn inside(world: &World, id: &ResourceId) -> Self {
        let path = format!("/run/netns/{}.{}", world.mark(), id.file_name());
        let open = move || {
            setns(std::fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            Self::on("eth0")
        };
        std::thread::spawn(open).join().unwrap()
    }

    pub fn on(link: &str) -> Self {
        let all = (libc::ETH_P_ALL as u16).to_be();
        let name = std::ffi::CString::new(link).unwrap();
        // SAFETY: plain system calls; the address is fully initialised and lives through the call.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(all));
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let size = size_of::<libc::sockaddr_ll>() as u32;
            let bound = libc::bind(fd, (&raw const address).cast(), size);
            assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
            Self { socket }
        }
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.socket, frame), Ok(frame.len()));
    }

    /// All that comes until `last` does.
    pub fn until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut seen = Vec::new();
        while seen.last().is_none_or(|frame: &Vec<u8>| frame != last) {
            assert!(Instant::now() < deadline, "the last frame did not come after {}", seen.len());
            seen.extend(self.next());
        }
        seen
    }

    /// What comes soon.
    pub fn next(&self) -> Option<Vec<u8>> {
        let mut poll =
            libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one element, which lives through the call.
        if unsafe { libc::poll(&raw mut poll, 1, 100) } <= 0 {
            return None;
        }
        let mut buffer = vec![0; 2048];
        let length = nix::unistd::read(&self.socket, &mut buffer).unwrap();
        buffer.truncate(length);
        Some(buffer)
    }
}

/// An Ethernet frame.
pub fn frame(from: [u8; 6], to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// An Ethernet frame with an IPv6 packet, of UDP (17) or ICMPv6 (58), whose checksum is right.
pub fn packet(from: End, to: End, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (source, target) = (from.address.octets(), to.address.octets());
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let pseudo = [&source[..], &target, &[0, 0], &length, &[0, 0, 0, protocol], payload].concat();
    let mut payload = payload.to_vec();
    let at = if protocol == 58 { 2 } else { 6 };
    payload[at..at + 2].copy_from_slice(&checksum(&pseudo));
    let head = [0x60, 0, 0, 0, length[0], length[1], protocol, 255];
    frame(from.mac, to.mac, 0x86dd, &[&head[..], &source, &target, &payload].concat())
}

/// An IPv4 header that is right, and nothing behind it.
pub fn ipv4() -> Vec<u8> {
    let mut head = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum);
    head
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |c: &[u8]| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!sum as u16).to_be_bytes()
}

/// As it is seen: the kernel takes the tag of a VLAN out.
pub fn seen(frame: &[u8]) -> Vec<u8> {
    match frame[12..14] {
        [0x81, 0] => [&frame[..12], &frame[16..]].concat(),
        _ => frame.to_vec(),
    }
}

pub fn udp(port: u16, text: &str) -> Vec<u8> {
    let length = u16::try_from(8 + text.len()).unwrap();
    [
        &7777u16.to_be_bytes()[..],
        &port.to_be_bytes(),
        &length.to_be_bytes(),
        &[0, 0],
        text.as_bytes(),
    ]
    .concat()
}

/// Neighbour solicitation (135) or advertisement (136).
pub fn neighbour(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets()].concat()
}

/// A router advertisement: a default router for half an hour.
pub fn router() -> Vec<u8> {
    [&[134, 0, 0, 0, 64, 0][..], &1800u16.to_be_bytes(), &[0; 8]].concat()
}

pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    octets.into()
}
