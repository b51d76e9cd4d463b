//! A virtual machine under one of two hypervisors, behind one trait.
//!
//! ```text
//!   machine-vm start DIR ──▶ hypervisor, a session of its own, in DIR
//!     ping ─ create ─ add-net ─ boot ─ ready?     ├─ api.sock     REST, or QMP
//!        │                                        ├─ serial.sock  what the guest prints
//!        └─▶ DIR/pid, or DIR/runtime.log          └─ events.log   what becomes of the guest
//! ```
//!
//! - The hypervisor is told everything over its socket, so that what it refuses is said in words.
//! - Every call ends within a time of its own: a hypervisor that hangs is an error, not a wait.
//! - Nothing here is kept in memory: who comes next finds the same by `vm.json` and the sockets.
//!
//! Must not know: resources, deployments, restart policies.

mod choice;
mod chv;
mod config;
mod door;
mod ended;
mod fault;
mod hypervisor;
mod payload;
mod qemu;
mod ready;
mod seed;
mod seed_disk;
mod start;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rhizome_model::Code;

pub use self::choice::{Choice, Programs, Wish, choose};
pub use self::config::{Accel, Disk, Driver, Net, Ready, VmConfig, uuid_of};
pub use self::door::connect;
pub use self::ended::{Ended, ended};
use self::hypervisor::{Hypervisor, hypervisor};
pub use self::hypervisor::{VmInfo, VmState};
pub use self::payload::{KernelKind, check_initramfs, check_kernel};
pub use self::seed::{Seed, SeedMount, SeedNet};
pub use self::seed_disk::write_seed;
pub use self::start::machine_vm_main;
pub(crate) use self::start::start;
use crate::error::{Result, SalError, shown};
use crate::files;

/// What the guest prints on its first serial line.
pub const SERIAL: &str = "serial.sock";
const API: &str = "api.sock";
const EVENTS: &str = "events.log";
const CONFIG: &str = "vm.json";
const PID: &str = "pid";
const ERROR: &str = "runtime.log";
/// When it was booted (`at`, Unix milliseconds), and how long we waited for the hypervisor until then:
/// for its first answer, and for those to what it was asked (`took_us`).
const BOOTED: &str = "booted.json";
/// What a hypervisor, or its start, leaves in the folder. Cloud Hypervisor locks its socket by a file.
const LEFT: [&str; 9] =
    [API, "api.sock.lock", SERIAL, EVENTS, qemu::EVENTS_IN, qemu::EVENTS_OUT, PID, ERROR, BOOTED];

/// A hypervisor is alive when it answers within this.
const PING: Duration = Duration::from_secs(2);
/// Any other call.
const CALL: Duration = Duration::from_secs(5);

/// A virtual machine that was started in a folder.
pub struct Vm {
    dir: PathBuf,
    config: VmConfig,
    hypervisor: Box<dyn Hypervisor>,
}

impl Vm {
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        let config: VmConfig = files::read_json(&path).ok_or_else(|| {
            let message = format!("{} holds no virtual machine", shown(&path));
            SalError::new(Code::NotFound, message)
        })?;
        let hypervisor = hypervisor(dir, &config)?;
        Ok(Self { dir: dir.to_owned(), config, hypervisor })
    }

    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// How long the hypervisor took to answer. `timed_out` says that it is there and hangs,
    /// `unavailable` that nobody listens.
    pub fn ping(&self) -> Result<Duration> {
        ended::trim(&self.dir);
        let begin = Instant::now();
        self.done("ping", self.hypervisor.ping(begin + PING))?;
        Ok(begin.elapsed())
    }

    /// What the hypervisor says of it; it must be this very machine.
    pub fn info(&self) -> Result<VmInfo> {
        let info = self.done("info", self.hypervisor.info(deadline()))?;
        if info.uuid.as_ref().is_none_or(|uuid| *uuid == self.config.uuid) {
            return Ok(info);
        }
        let message = format!("the hypervisor of {} runs another machine", self.config.name);
        Err(SalError::new(Code::Conflict, message))
    }

    /// By device, what it counts.
    pub fn counters(&self) -> Result<BTreeMap<String, BTreeMap<String, u64>>> {
        self.done("counters", self.hypervisor.counters(deadline()))
    }

    /// Presses the power button; the guest may ignore it.
    pub fn power_button(&self) -> Result<()> {
        self.done("power-button", self.hypervisor.power_button(deadline()))
    }

    pub fn pause(&self) -> Result<()> {
        if self.info()?.state == VmState::Paused {
            return Ok(());
        }
        self.done("pause", self.hypervisor.pause(deadline()))
    }

    pub fn resume(&self) -> Result<()> {
        if self.info()?.state == VmState::Running {
            return Ok(());
        }
        self.done("resume", self.hypervisor.resume(deadline()))
    }

    /// Plugs a disk into the running guest; answers the name of the device.
    pub fn add_disk(&self, disk: &Disk) -> Result<String> {
        disk.check()?;
        self.done("add-disk", self.hypervisor.add_disk(disk, deadline()))
    }

    /// Asks the guest to let a device go.
    pub fn remove_device(&self, id: &str) -> Result<()> {
        self.done("remove-device", self.hypervisor.remove_device(id, deadline()))
    }

    /// Ends guest and hypervisor at once; what was written is on the disks.
    pub fn shutdown(&self) -> Result<()> {
        self.done("shutdown", self.hypervisor.shutdown(deadline()))
    }

    fn done<T>(&self, what: &str, result: std::result::Result<T, fault::Fault>) -> Result<T> {
        result.map_err(|fault| fault.during(self.config.driver, what))
    }
}

fn deadline() -> Instant {
    Instant::now() + CALL
}

/// Removes what a hypervisor that is gone has left in its folder.
pub fn clear(dir: &Path) -> Result<()> {
    LEFT.iter().try_for_each(|name| files::remove(&dir.join(name)))
}

/// The device that a disk becomes.
fn device_of(disk: &Disk) -> String {
    format!("disk-{}", disk.serial)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
