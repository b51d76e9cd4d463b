//! Of Cloud Hypervisor's types, what we say and what we read. It ignores fields that it does not
//! know, so a slip of the pen here would go unseen: the contract test looks.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{VmInfo, VmState, device_of, text};
use crate::vm::{SERIAL, config};

#[derive(Serialize)]
pub(super) struct Config {
    cpus: Cpus,
    memory: Memory,
    payload: Payload,
    disks: Vec<Disk>,
    serial: Console,
    console: Console,
    platform: Platform,
    pvpanic: bool,
    landlock_enable: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    landlock_rules: Vec<LandlockRule>,
}

#[derive(Serialize)]
struct Cpus {
    boot_vcpus: u32,
    max_vcpus: u32,
}

#[derive(Serialize)]
struct Memory {
    size: u64,
}

#[derive(Serialize)]
struct Payload {
    kernel: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    initramfs: Option<String>,
    cmdline: String,
}

#[derive(Serialize)]
struct Console {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<&'static str>,
}

#[derive(Serialize)]
struct Platform {
    system_uuid: String,
}

#[derive(Serialize)]
struct LandlockRule {
    path: String,
    access: &'static str,
}

#[derive(Serialize)]
pub(super) struct Disk {
    id: String,
    path: String,
    serial: String,
    readonly: bool,
    /// Otherwise it looks into the image, which a guest writes, to find out.
    image_type: &'static str,
}

#[derive(Serialize)]
pub(super) struct Net {
    id: &'static str,
    tap: String,
    mac: String,
    mtu: u16,
}

#[derive(Serialize)]
pub(super) struct Remove<'a> {
    pub id: &'a str,
}

impl Config {
    pub fn new(dir: &Path, config: &config::VmConfig) -> Self {
        let mode = |mode, socket| Console { mode, socket };
        Self {
            cpus: Cpus { boot_vcpus: config.vcpus, max_vcpus: config.vcpus },
            memory: Memory { size: config.whole_memory() },
            payload: Payload {
                kernel: text(&config.kernel),
                initramfs: config.initramfs.as_deref().map(text),
                cmdline: config.cmdline.clone(),
            },
            disks: config.disks.iter().map(Disk::new).collect(),
            serial: mode("Socket", Some(SERIAL)),
            console: mode("Off", None),
            platform: Platform { system_uuid: config.uuid.clone() },
            pvpanic: true,
            landlock_enable: has_landlock(),
            landlock_rules: rules(dir, config),
        }
    }
}

/// What it needs later, when it has shut itself in: it adds what it is made of by itself.
fn rules(dir: &Path, config: &config::VmConfig) -> Vec<LandlockRule> {
    if !has_landlock() {
        return Vec::new();
    }
    let rule = |path: &Path, access| LandlockRule { path: text(path), access };
    let mut rules = vec![
        // It binds its sockets again when the guest reboots.
        rule(dir, "rw"),
        rule(Path::new("/dev/net/tun"), "rw"),
        // It reads there how a TAP was made.
        rule(Path::new("/sys/devices/virtual/net"), "r"),
    ];
    rules.extend(config.disk_folders.iter().map(|folder| rule(folder, "rw")));
    rules
}

/// Whether the kernel lets a program shut itself in as far as Cloud Hypervisor wants to.
fn has_landlock() -> bool {
    const CREATE_RULESET: nix::libc::c_long = 444;
    const ASK_VERSION: nix::libc::c_long = 1;
    const LEAST: nix::libc::c_long = 3;
    // SAFETY: with this flag the call only answers a number.
    unsafe { nix::libc::syscall(CREATE_RULESET, 0, 0, ASK_VERSION) >= LEAST }
}

impl Disk {
    pub fn new(disk: &config::Disk) -> Self {
        Self {
            id: device_of(disk),
            path: text(&disk.path),
            serial: disk.serial.clone(),
            readonly: disk.readonly,
            image_type: "Raw",
        }
    }
}

impl Net {
    pub fn new(net: &config::Net) -> Self {
        Self { id: "net0", tap: net.tap.clone(), mac: net.mac.clone(), mtu: net.mtu }
    }
}

#[derive(Deserialize)]
pub(super) struct Ping {
    #[serde(rename = "version")]
    _version: String,
}

#[derive(Deserialize)]
pub(super) struct Info {
    config: InfoConfig,
    state: State,
}

#[derive(Deserialize)]
struct InfoConfig {
    #[serde(default)]
    cpus: InfoCpus,
    #[serde(default)]
    memory: InfoMemory,
    #[serde(default)]
    disks: Option<Vec<InfoDisk>>,
    #[serde(default)]
    platform: Option<InfoPlatform>,
}

#[derive(Deserialize, Default)]
struct InfoCpus {
    boot_vcpus: u32,
}

#[derive(Deserialize, Default)]
struct InfoMemory {
    size: u64,
}

#[derive(Deserialize)]
struct InfoDisk {
    path: Option<String>,
}

/// Versions before 53 call it `uuid`.
#[derive(Deserialize)]
struct InfoPlatform {
    system_uuid: Option<String>,
    uuid: Option<String>,
}

#[derive(Deserialize)]
enum State {
    Created,
    Running,
    Shutdown,
    Paused,
    BreakPoint,
}

impl Info {
    pub fn into_info(self) -> VmInfo {
        let config = self.config;
        VmInfo {
            state: match self.state {
                State::Created => VmState::Created,
                State::Running => VmState::Running,
                State::Paused | State::BreakPoint => VmState::Paused,
                State::Shutdown => VmState::Ended,
            },
            uuid: config.platform.and_then(|p| p.system_uuid.or(p.uuid)),
            vcpus: config.cpus.boot_vcpus,
            memory: config.memory.size,
            disks: config
                .disks
                .into_iter()
                .flatten()
                .filter_map(|d| d.path)
                .map(Into::into)
                .collect(),
        }
    }
}
