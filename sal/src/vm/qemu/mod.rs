//! QEMU, by QMP on a unix socket.
//!
//! The program starts held (`-S`) with an empty machine: processors, memory, kernel, a serial line, and
//! a row of ports. Disks and network are plugged in over QMP, before the guest runs as well as later:
//! there is one way, and what is refused is refused in words.
//!
//! A client that has just connected hears no events until it has said what it can, and for that time
//! neither does the log of its line. So they have a line of their own, which nobody connects to: a pipe
//! whose one end is a file that says what a client says, and whose other is nothing. Its log is kept.

mod qmp;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::qmp::Qmp;
use super::config::{Accel, Disk, Net, VmConfig};
use super::fault::{Answer, Fault, Kind, Refusal};
use super::hypervisor::{Hypervisor, VmInfo, VmState};
use super::{API, EVENTS, SERIAL, device_of};
use crate::error::{During, Result, shown};
use crate::files;

/// Ports that are free for disks that come later.
const SPARE_PORTS: usize = 4;
const NET: &str = "net0";
/// QEMU makes the names of a pipe's ends of this.
const EVENTS_LINE: &str = "events";
pub(super) const EVENTS_IN: &str = "events.in";
pub(super) const EVENTS_OUT: &str = "events.out";
/// The guest lets a device go within this, or later, unseen by us. Less than a ping waits: QEMU has one
/// ear.
const LETS_GO: Duration = Duration::from_secs(1);
/// What the names of our disks and of their images begin with.
const DISK: &str = "disk-";
/// Where the kernel counts what went through a link.
const LINKS: &str = "/sys/class/net";

pub(super) struct Qemu {
    dir: PathBuf,
    config: VmConfig,
    accel: Accel,
}

impl Qemu {
    pub fn new(dir: &Path, config: &VmConfig, accel: Accel) -> Self {
        Self { dir: dir.to_owned(), config: config.clone(), accel }
    }

    fn connect(&self, until: Instant) -> Answer<Qmp> {
        Qmp::connect(&self.dir, API, until)
    }

    fn command(&self, command: &str, until: Instant) -> Answer<Value> {
        self.connect(until)?.execute(command, json!({}))
    }

    fn status(qmp: &mut Qmp) -> Answer<String> {
        Ok(ask::<Status>(qmp, "query-status")?.status)
    }

    /// Ports in their order, the disks' first, then the network's.
    fn port(n: usize) -> String {
        format!("port{n}")
    }

    fn ports(&self) -> usize {
        self.config.disks.len() + 1 + SPARE_PORTS
    }
}

impl Hypervisor for Qemu {
    fn prepare(&self, _events: i32) -> Result<Vec<OsString>> {
        let says = b"{\"execute\": \"qmp_capabilities\"}\n";
        files::replace(&self.dir.join(EVENTS_IN), says, false)?;
        let out = self.dir.join(EVENTS_OUT);
        symlink("/dev/null", &out).during(format_args!("make {}", shown(&out)))?;
        let config = &self.config;
        // A name is what somebody else chose: a comma would begin an option.
        let name = format!("guest={},debug-threads=on", config.name.replace(',', ",,"));
        let mut words: Vec<OsString> = [
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-S",
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-name",
            &name,
            "-uuid",
            &config.uuid,
            "-machine",
            "q35,usb=off",
            "-accel",
            match self.accel {
                Accel::Kvm => "kvm",
                // What it translates is its own memory, which is bounded as the rest of it is: without
                // this it takes an eighth of the node's.
                Accel::Tcg => "tcg,tb-size=48",
            },
            "-cpu",
            match self.accel {
                Accel::Kvm => "host",
                Accel::Tcg => "max",
            },
            "-smp",
            &config.vcpus.to_string(),
            "-m",
            &format!("{}k", config.whole_memory() >> 10),
            "-chardev",
            &format!("pipe,id=events,path={EVENTS_LINE},logfile={EVENTS},logappend=on"),
            "-mon",
            "chardev=events,mode=control",
            "-chardev",
            &format!("socket,id=api,path={API},server=on,wait=off"),
            "-mon",
            "chardev=api,mode=control",
            "-chardev",
            &format!("socket,id=serial,path={SERIAL},server=on,wait=off"),
            "-serial",
            "chardev:serial",
            "-device",
            "pvpanic",
            "-object",
            "rng-random,id=rng,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=rng",
        ]
        .map(OsString::from)
        .into();
        for n in 0..self.ports() {
            // Without a window for I/O ports, of which there are few: virtio needs none.
            let port =
                format!("pcie-root-port,id={},chassis={},io-reserve=0", Self::port(n), n + 1);
            words.extend(["-device".into(), port.into()]);
        }
        words.extend(["-kernel".into(), config.kernel.clone().into()]);
        if let Some(initramfs) = &config.initramfs {
            words.extend(["-initrd".into(), initramfs.clone().into()]);
        }
        if !config.cmdline.is_empty() {
            words.extend(["-append".into(), config.cmdline.clone().into()]);
        }
        Ok(words)
    }

    fn ping(&self, until: Instant) -> Answer<()> {
        self.command("query-version", until).map(drop)
    }

    fn create(&self, until: Instant) -> Answer<()> {
        let mut qmp = self.connect(until)?;
        let status = Self::status(&mut qmp)?;
        if status != "prelaunch" {
            return Err(wrong_state(&status));
        }
        for (n, disk) in self.config.disks.iter().enumerate() {
            plug_disk(&mut qmp, disk, &Self::port(n))?;
        }
        Ok(())
    }

    fn add_net(&self, net: &Net, until: Instant) -> Answer<()> {
        let mut qmp = self.connect(until)?;
        qmp.execute(
            "netdev_add",
            json!({ "type": "tap", "id": NET, "ifname": net.tap, "script": "no", "downscript": "no" }),
        )?;
        let port = Self::port(self.config.disks.len());
        qmp.execute(
            "device_add",
            json!({
                "driver": "virtio-net-pci", "id": "net-device", "netdev": NET, "bus": port,
                "mac": net.mac, "host_mtu": net.mtu, "romfile": "",
            }),
        )
        .map(drop)
    }

    fn is_heard(&self, until: Instant) -> Answer<bool> {
        let lines: Vec<Line> = ask(&mut self.connect(until)?, "query-chardev")?;
        let serial = lines.iter().find(|line| line.label == "serial");
        Ok(serial.is_some_and(|line| !line.filename.starts_with("disconnected:")))
    }

    fn boot(&self, until: Instant) -> Answer<()> {
        self.command("cont", until).map(drop)
    }

    fn info(&self, until: Instant) -> Answer<VmInfo> {
        let mut qmp = self.connect(until)?;
        close_images(&mut qmp)?;
        let status = Self::status(&mut qmp)?;
        let uuid: Uuid = ask(&mut qmp, "query-uuid")?;
        let memory: Memory = ask(&mut qmp, "query-memory-size-summary")?;
        let cpus: Vec<Value> = ask(&mut qmp, "query-cpus-fast")?;
        let disks: Vec<Block> = ask(&mut qmp, "query-block")?;
        Ok(VmInfo {
            state: state(&status)?,
            uuid: Some(uuid.uuid),
            vcpus: u32::try_from(cpus.len()).unwrap_or(u32::MAX),
            memory: memory.base,
            disks: disks.into_iter().filter_map(|d| d.inserted).map(|i| i.file.into()).collect(),
        })
    }

    fn counters(&self, until: Instant) -> Answer<BTreeMap<String, BTreeMap<String, u64>>> {
        let disks: Vec<BlockStats> = ask(&mut self.connect(until)?, "query-blockstats")?;
        let mut counters = BTreeMap::new();
        for disk in disks {
            let device = disk
                .qdev
                .as_deref()
                .and_then(|path| path.strip_prefix("/machine/peripheral/")?.split('/').next());
            let Some(device) = device else { continue };
            counters.insert(device.to_owned(), disk.stats.named());
        }
        if let Some(net) = &self.config.net {
            counters.insert(NET.to_owned(), link_counters(&net.tap));
        }
        Ok(counters)
    }

    fn power_button(&self, until: Instant) -> Answer<()> {
        self.command("system_powerdown", until).map(drop)
    }

    fn pause(&self, until: Instant) -> Answer<()> {
        self.command("stop", until).map(drop)
    }

    fn resume(&self, until: Instant) -> Answer<()> {
        self.command("cont", until).map(drop)
    }

    fn add_disk(&self, disk: &Disk, until: Instant) -> Answer<String> {
        let mut qmp = self.connect(until)?;
        let device = device_of(disk);
        if close_images(&mut qmp)?.contains(&device) {
            let chain = vec![format!("there is a device {device} already")];
            return Err(Fault::Refused(Refusal { kind: Kind::Exists, status: None, chain }));
        }
        let port = free_port(&mut qmp, self.ports())?;
        plug_disk(&mut qmp, disk, &port)?;
        Ok(device)
    }

    fn remove_device(&self, id: &str, until: Instant) -> Answer<()> {
        let mut qmp = self.connect(until)?;
        qmp.execute("device_del", json!({ "id": id }))?;
        let patience = until.min(Instant::now() + LETS_GO);
        qmp.hear("DEVICE_DELETED", |data| data["device"] == id, patience)?;
        close_images(&mut qmp).map(drop)
    }

    fn shutdown(&self, until: Instant) -> Answer<()> {
        match self.command("quit", until) {
            // It may be gone before it has answered.
            Ok(_) | Err(Fault::Broken(_)) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}

fn ask<T: DeserializeOwned>(qmp: &mut Qmp, command: &str) -> Answer<T> {
    let value = qmp.execute(command, json!({}))?;
    serde_json::from_value(value).map_err(|e| Fault::Strange(format!("{command}: {e}")))
}

fn plug_disk(qmp: &mut Qmp, disk: &Disk, port: &str) -> Answer<()> {
    let device = device_of(disk);
    qmp.execute(
        "blockdev-add",
        json!({
            "driver": "raw", "node-name": device, "read-only": disk.readonly,
            "file": { "driver": "file", "filename": disk.path, "discard": "unmap" },
        }),
    )?;
    let plugged = qmp.execute(
        "device_add",
        json!({
            "driver": "virtio-blk-pci", "id": device, "drive": device, "serial": disk.serial,
            "bus": port,
        }),
    );
    if plugged.is_err() {
        // The first failure is the one to tell.
        let _ = qmp.execute("blockdev-del", json!({ "node-name": device }));
    }
    plugged.map(drop)
}

/// Closes the images of disks that the guest has let go, whenever that was. Answers the devices that
/// are there.
fn close_images(qmp: &mut Qmp) -> Answer<Vec<String>> {
    let listed = qmp.execute("qom-list", json!({ "path": "/machine/peripheral" }))?;
    let listed: Vec<Named> =
        serde_json::from_value(listed).map_err(|e| Fault::Strange(format!("qom-list: {e}")))?;
    let devices: Vec<String> = listed.into_iter().map(|named| named.name).collect();
    let nodes: Vec<Node> = ask(qmp, "query-named-block-nodes")?;
    for node in nodes.iter().filter(|node| node.name.starts_with(DISK)) {
        if !devices.contains(&node.name) {
            qmp.execute("blockdev-del", json!({ "node-name": node.name }))?;
        }
    }
    Ok(devices)
}

/// A port without a device.
fn free_port(qmp: &mut Qmp, ports: usize) -> Answer<String> {
    let buses: Vec<Bus> = ask(qmp, "query-pci")?;
    let slots: Vec<&Slot> = buses.iter().flat_map(|bus| &bus.devices).collect();
    let is_free = |port: &String| {
        let slot = slots.iter().find(|slot| slot.qdev_id == *port);
        slot.is_some_and(|slot| slot.pci_bridge.as_ref().is_none_or(|b| b.devices.is_empty()))
    };
    (0..ports).map(Qemu::port).find(is_free).ok_or_else(|| {
        let chain = vec!["every port of the machine has a device: remove one first".to_owned()];
        Fault::Refused(Refusal { kind: Kind::WrongState, status: None, chain })
    })
}

fn state(status: &str) -> Answer<VmState> {
    Ok(match status {
        "prelaunch" | "inmigrate" => VmState::Created,
        "running" | "watchdog" => VmState::Running,
        "paused" | "suspended" | "debug" | "save-vm" | "restore-vm" => VmState::Paused,
        "shutdown" | "guest-panicked" | "internal-error" | "io-error" => VmState::Ended,
        other => return Err(Fault::Strange(format!("a machine that is {other}"))),
    })
}

fn wrong_state(status: &str) -> Fault {
    let chain = vec![format!("the machine is {status}")];
    Fault::Refused(Refusal { kind: Kind::WrongState, status: None, chain })
}

/// As the guest sees it: what the node's end receives, the guest has sent.
fn link_counters(tap: &str) -> BTreeMap<String, u64> {
    let names = [
        ("rx_bytes", "tx_bytes"),
        ("tx_bytes", "rx_bytes"),
        ("rx_frames", "tx_packets"),
        ("tx_frames", "rx_packets"),
    ];
    let read = |file: &str| {
        let path = format!("{LINKS}/{tap}/statistics/{file}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    names.iter().filter_map(|(name, file)| Some(((*name).to_owned(), read(file)?))).collect()
}

#[derive(Deserialize)]
struct Status {
    status: String,
}

#[derive(Deserialize)]
struct Line {
    label: String,
    filename: String,
}

#[derive(Deserialize)]
struct Uuid {
    #[serde(rename = "UUID")]
    uuid: String,
}

#[derive(Deserialize)]
struct Memory {
    #[serde(rename = "base-memory")]
    base: u64,
}

#[derive(Deserialize)]
struct Block {
    inserted: Option<Inserted>,
}

#[derive(Deserialize)]
struct Inserted {
    file: String,
}

#[derive(Deserialize)]
struct BlockStats {
    qdev: Option<String>,
    stats: Stats,
}

#[derive(Deserialize)]
struct Stats {
    rd_bytes: u64,
    wr_bytes: u64,
    rd_operations: u64,
    wr_operations: u64,
}

impl Stats {
    fn named(&self) -> BTreeMap<String, u64> {
        [
            ("read_bytes", self.rd_bytes),
            ("write_bytes", self.wr_bytes),
            ("read_ops", self.rd_operations),
            ("write_ops", self.wr_operations),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Node {
    #[serde(rename = "node-name", default)]
    name: String,
}

#[derive(Deserialize)]
struct Bus {
    devices: Vec<Slot>,
}

#[derive(Deserialize)]
struct Slot {
    qdev_id: String,
    pci_bridge: Option<Bridge>,
}

#[derive(Deserialize)]
struct Bridge {
    #[serde(default)]
    devices: Vec<Value>,
}
