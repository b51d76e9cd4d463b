//! What a hypervisor must know. One implementation per program; both are asked over a socket.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::chv::CloudHypervisor;
use super::config::{Disk, Driver, Net, VmConfig};
use super::fault::Answer;
use super::qemu::Qemu;
use crate::error::Result;

/// What a hypervisor says of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmInfo {
    pub state: VmState,
    /// Old hypervisors do not say.
    pub uuid: Option<String>,
    pub vcpus: u32,
    /// Bytes.
    pub memory: u64,
    pub disks: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// It has not run yet.
    Created,
    Running,
    Paused,
    /// The guest is off, or came to a stop that it cannot leave.
    Ended,
}

/// Every call is over by its deadline.
pub(super) trait Hypervisor {
    /// Puts what it reads when it starts into the machine's folder, in which it runs, with `events` open
    /// for its events. Answers its arguments.
    fn prepare(&self, events: i32) -> Result<Vec<OsString>>;
    fn ping(&self, until: Instant) -> Answer<()>;
    /// Makes the machine, with its disks, and does not let it run.
    fn create(&self, until: Instant) -> Answer<()>;
    fn add_net(&self, net: &Net, until: Instant) -> Answer<()>;
    /// Whether somebody reads what the guest prints; what it prints before may be lost.
    fn is_heard(&self, until: Instant) -> Answer<bool>;
    fn boot(&self, until: Instant) -> Answer<()>;
    fn info(&self, until: Instant) -> Answer<VmInfo>;
    fn counters(&self, until: Instant) -> Answer<BTreeMap<String, BTreeMap<String, u64>>>;
    fn power_button(&self, until: Instant) -> Answer<()>;
    fn pause(&self, until: Instant) -> Answer<()>;
    fn resume(&self, until: Instant) -> Answer<()>;
    /// Answers the name of the device.
    fn add_disk(&self, disk: &Disk, until: Instant) -> Answer<String>;
    fn remove_device(&self, id: &str, until: Instant) -> Answer<()>;
    /// Ends machine and hypervisor.
    fn shutdown(&self, until: Instant) -> Answer<()>;
}

pub(super) fn hypervisor(dir: &Path, config: &VmConfig) -> Result<Box<dyn Hypervisor>> {
    Ok(match config.driver {
        Driver::CloudHypervisor => Box::new(CloudHypervisor::new(dir, config)),
        Driver::Qemu { accel } => Box::new(Qemu::new(dir, config, accel)),
    })
}
