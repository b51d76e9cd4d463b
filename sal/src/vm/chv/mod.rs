//! Cloud Hypervisor, by its REST API on a unix socket.
//!
//! What its description does not say, and is so: every refusal but "not found", "exists" and "invalid"
//! is a 500, told apart by its words; `vm.create` checks nothing, `vm.boot` does; a device added to a
//! machine that does not run is answered with nothing.

mod client;
#[cfg(test)]
mod contract;
mod types;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::client::Client;
use super::config::{Disk, Net, VmConfig};
use super::fault::{Answer, Fault, Kind, Refusal};
use super::hypervisor::{Hypervisor, VmInfo, VmState};
use super::{API, device_of, text};
use crate::error::Result;

pub(super) struct CloudHypervisor {
    dir: PathBuf,
    config: VmConfig,
    client: Client,
}

impl CloudHypervisor {
    pub fn new(dir: &Path, config: &VmConfig) -> Self {
        Self { dir: dir.to_owned(), config: config.clone(), client: Client::new(dir) }
    }

    fn get<T: DeserializeOwned>(&self, path: &str, until: Instant) -> Answer<T> {
        let body = self.client.call(&Method::GET, path, None, until)?;
        serde_json::from_slice(&body).map_err(|e| Fault::Strange(format!("{path}: {e}")))
    }

    fn put(&self, path: &str, until: Instant) -> Answer<()> {
        self.client.call(&Method::PUT, path, None, until).map(drop)
    }

    fn put_json<T: Serialize>(&self, path: &str, body: &T, until: Instant) -> Answer<()> {
        let body = serde_json::to_vec(body).map_err(|e| Fault::Strange(e.to_string()))?;
        self.client.call(&Method::PUT, path, Some(body), until).map(drop)
    }
}

impl Hypervisor for CloudHypervisor {
    fn prepare(&self, events: i32) -> Result<Vec<OsString>> {
        let (api, events) = (format!("path={API}"), format!("fd={events}"));
        let words = ["--api-socket", &api, "--event-monitor", &events, "--seccomp", "true"];
        Ok(words.map(OsString::from).into())
    }

    fn ping(&self, until: Instant) -> Answer<()> {
        self.get::<types::Ping>("vmm.ping", until).map(drop)
    }

    fn create(&self, until: Instant) -> Answer<()> {
        self.put_json("vm.create", &types::Config::new(&self.dir, &self.config), until)
    }

    fn add_net(&self, net: &Net, until: Instant) -> Answer<()> {
        self.put_json("vm.add-net", &types::Net::new(net), until)
    }

    /// It keeps what nobody has read yet.
    fn is_heard(&self, _until: Instant) -> Answer<bool> {
        Ok(true)
    }

    fn boot(&self, until: Instant) -> Answer<()> {
        self.put("vm.boot", until)
    }

    fn info(&self, until: Instant) -> Answer<VmInfo> {
        self.get::<types::Info>("vm.info", until).map(types::Info::into_info)
    }

    fn counters(&self, until: Instant) -> Answer<BTreeMap<String, BTreeMap<String, u64>>> {
        let mut counters: BTreeMap<String, BTreeMap<String, u64>> =
            self.get("vm.counters", until)?;
        // The largest number says that there is none yet.
        counters.values_mut().for_each(|device| device.retain(|_, value| *value != u64::MAX));
        Ok(counters)
    }

    fn power_button(&self, until: Instant) -> Answer<()> {
        self.put("vm.power-button", until)
    }

    fn pause(&self, until: Instant) -> Answer<()> {
        self.put("vm.pause", until)
    }

    fn resume(&self, until: Instant) -> Answer<()> {
        self.put("vm.resume", until)
    }

    fn add_disk(&self, disk: &Disk, until: Instant) -> Answer<String> {
        self.put_json("vm.add-disk", &types::Disk::new(disk), until)?;
        Ok(device_of(disk))
    }

    fn remove_device(&self, id: &str, until: Instant) -> Answer<()> {
        self.put_json("vm.remove-device", &types::Remove { id }, until)
    }

    fn shutdown(&self, until: Instant) -> Answer<()> {
        match self.put("vm.shutdown", until) {
            // It does not run any more, or never did.
            Err(Fault::Refused(Refusal { kind: Kind::WrongState | Kind::NotFound, .. })) => {}
            other => other?,
        }
        match self.put("vm.delete", until) {
            Err(Fault::Refused(Refusal { kind: Kind::WrongState | Kind::NotFound, .. })) => {}
            other => other?,
        }
        self.put("vmm.shutdown", until)
    }
}
