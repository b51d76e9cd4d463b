//! `machine`: a container with its own root file system, limits and IPv6 address.
//!
//! ```text
//!   image ──snapshot──▶ <pool>/machines/…  ─┐
//!   volumes ──────────── bind mounts ───────┼─▶ OCI bundle ──▶ shim ──▶ runtime ──▶ program
//!   netns, links ───────────────────────────┘
//! ```
//!
//! - The root file system gets its name when it is whole: limited, and marked with the identity of
//!   the spec that it was made for. As long as spec and identity agree it is kept, over restarts of
//!   the program and of the node; otherwise the machine is replaced.
//! - The rest (namespace, groups, bundle, shim) is made anew whenever no shim lives, after what an
//!   earlier attempt has left is cleared away. So any step may be the last before a crash.
//! - A machine that ended by its own policy, or was stopped on request, stays so.

mod actions;
mod bundle;
mod keep;
mod life;
mod log;
mod mounts;
mod place;
mod runtime;
mod shim;
mod users;
mod watch;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::kind::{
    Change, Health, Kind as _, Machine, MachineSpec, MachineState, MachineStatus, change,
};
use rhizome_model::{Action, Bytes, Code, Done, Drifted, ResourceId, resource_address};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::bundle::Bundle;
use self::life::{GRACE_MS, Life, Past, Record, Stop};
use self::place::{Orders, Place};
use crate::btrfs::{self, Counted};
use crate::error::{During, Result, SalError, shown};
use crate::lock::Lock;
use crate::node::Node;
use crate::tool::Tool;
use crate::workload::{Found, Notice, Sink};
use crate::{files, image, net, sal};

pub use self::keep::Untold;
pub(crate) use self::runtime::Runtime;
pub use self::shim::machine_shim_main;
pub(crate) use self::users::user_of;

/// A container runs, or has failed to, within this.
const START_PATIENCE: Duration = Duration::from_secs(90);
/// A shim that is told to stop is gone within the program's grace and this.
const STOP_PATIENCE: Duration = Duration::from_millis(GRACE_MS + 5_000);
const STEP: Duration = Duration::from_millis(1);
/// Of what a machine printed before it failed to start, this much goes into the error.
const DETAIL_LINES: usize = 20;

pub(crate) struct Driver {
    node: Arc<Node>,
}

impl crate::workload::Driver for Driver {
    type Kind = Machine;

    fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn ensure(&self, id: &ResourceId, spec: &MachineSpec) -> Result<(MachineStatus, Done)> {
        let place = Place::new(&self.node, id);
        let identity = identity(spec);
        let keeps_root = self.node.store.has(&place.root)
            && btrfs::read_note(&place.root).as_deref() == Some(&identity);
        let applied = place.applied();
        let change = applied.as_ref().map(|applied| change::<Machine>(applied, spec));
        if let (true, Some(applied), Some(Change::None | Change::Update(_))) =
            (keeps_root, &applied, &change)
            && self.is_settled(id, &place)?
        {
            let changes = applied != spec;
            if changes {
                self.adjust(id, &place, applied, spec)?;
            }
            let done = if changes { Done::Updated } else { Done::Unchanged };
            return Ok((self.status(id, &place)?, done));
        }
        let done = match (self.node.store.has(&place.root), keeps_root, &change) {
            (false, _, _) | (true, true, None | Some(Change::Replace { .. })) => Done::Created,
            (true, false, _) => Done::Replaced,
            (true, true, Some(Change::None)) => Done::Restored,
            (true, true, Some(Change::Update(_))) => Done::Updated,
        };
        self.check(id, spec)?;
        let runtime = Runtime::find(&self.node)?;
        // Before anything of the old machine goes: it stays when its new image is no good.
        let image = if keeps_root { None } else { Some(image::obtain(&self.node, &spec.image)?) };
        let past = if keeps_root { place.past() } else { Past::default() };
        let made = match &image {
            None => self.revive(id, &place, spec),
            Some(image) => self.make_anew(id, &place, spec, &identity, image),
        };
        let started = made.and_then(|()| self.start(id, &place, spec, &runtime, past));
        if let (Err(_), false) = (&started, keeps_root) {
            // Nothing of it was there before, and nothing is left of it.
            if let Err(error) = crate::workload::Driver::delete(self, id) {
                tracing::warn!(machine = %id, %error, "what is left of a machine stays");
            }
        }
        started?;
        Ok((self.status(id, &place)?, done))
    }

    fn observe(&self, id: &ResourceId) -> Result<Option<MachineStatus>> {
        let place = Place::new(&self.node, id);
        match place.applied() {
            Some(_) if self.node.store.has(&place.root) => self.status(id, &place).map(Some),
            _ => Ok(None),
        }
    }

    fn delete(&self, id: &ResourceId) -> Result<()> {
        let place = Place::new(&self.node, id);
        self.halt(id, &place, Stop::Interrupt)?;
        net::detach(&self.node.mark, id)?;
        files::remove_folder(&place.dir)?;
        place.remove_logs()?;
        self.node.store.delete(&place.new_root)?;
        self.node.store.delete(&place.root)
    }

    fn list(&self) -> Result<Vec<ResourceId>> {
        list(&self.node)
    }

    fn drift(&self, id: &ResourceId, spec: &MachineSpec) -> Result<Vec<Found>> {
        self.find_drift(id, spec)
    }

    fn mend(&self, id: &ResourceId, spec: &MachineSpec, found: Found) -> Result<Drifted> {
        self.mend_drift(id, spec, found)
    }

    fn untold(&self, id: &ResourceId) -> Result<Option<Untold>> {
        keep::untold(Place::new(&self.node, id))
    }

    fn watch(&self) -> Result<Option<mpsc::Receiver<Notice>>> {
        watch::watch(self.node.clone()).map(Some)
    }

    fn changes(action: &Action) -> bool {
        match action {
            Action::Start | Action::Stop | Action::Restart => true,
            Action::Exec { .. }
            | Action::Wait
            | Action::Logs { .. }
            | Action::Snapshot { .. }
            | Action::Restore { .. }
            | Action::DropSnapshot { .. }
            | Action::Resize { .. } => false,
        }
    }

    fn act(
        &self,
        id: &ResourceId,
        action: &Action,
        by: &str,
        sink: Sink<'_>,
        cancel: &CancellationToken,
    ) -> Result<Value> {
        actions::act(self, id, action, by, sink, cancel)
    }
}

/// Everything of this node that looks like a machine, whole or half.
fn list(node: &Node) -> Result<Vec<ResourceId>> {
    let mut found = net::list(&node.mark)?;
    found.extend(node.cgroups.list()?);
    for folder in [node.machines(), node.run()] {
        for name in files::names(&folder)? {
            let name = name.strip_prefix(".new-").unwrap_or(&name);
            found.extend(ResourceId::from_file_name(name));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Ends all machines of a node and takes away what the kernel holds of them.
pub(crate) fn stop_all(node: &Arc<Node>) -> Result<()> {
    const AT_ONCE: usize = 8;
    let all = list(node)?;
    let next = std::sync::Mutex::new(all.into_iter());
    let work = || {
        let driver = Driver { node: node.clone() };
        loop {
            let id = next.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some(id) = id else { return Ok(()) };
            let _lock = Lock::take(&node.locks().join(format!("machine.{}", id.file_name())))?;
            driver.halt(&id, &Place::new(node, &id), Stop::Interrupt)?;
            net::detach(&node.mark, &id)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let mut done = Ok(());
        for thread in threads {
            done = done.and(thread.join().unwrap_or_else(|_| {
                Err(SalError::new(Code::Internal, "stopping the machines broke off"))
            }));
        }
        done
    })
}

impl Driver {
    /// Whether the machine is as it should stay: a shim sees to it, or it ended for good. A start
    /// that is under way is waited for; a stop that somebody has left half done is not settled.
    fn is_settled(&self, id: &ResourceId, place: &Place) -> Result<bool> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            // A shim that has not written yet is starting, whatever the one before it has written.
            let orders = place.orders();
            let stops = orders.as_ref().is_some_and(|o| o.stop.is_some());
            let run = orders.map(|o| o.run);
            let record = place.record().filter(|r| Some(&r.run) == run.as_ref());
            let watches = record
                .is_some_and(|r| !r.life.is_end() && !matches!(r.life, Life::Starting { .. }));
            if place.shim().is_none() {
                // Looked at again: it may have ended between our two looks.
                let rests = place
                    .record()
                    .is_some_and(|r| matches!(r.life, Life::Exited { .. } | Life::Stopped));
                return Ok(rests && !self.node.cgroups.is_populated(id));
            }
            if stops || watches {
                return Ok(!stops);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(STEP);
        }
    }

    /// What can be known to fail before anything is made.
    fn check(&self, id: &ResourceId, spec: &MachineSpec) -> Result<()> {
        let room = sal::disk(&self.node.store)?;
        if spec.disk > room {
            return Err(SalError::new(
                Code::PoolFull,
                format!(
                    "machine {id} with a disk of {} does not fit into the node's pool of {room}: ask for less",
                    spec.disk
                ),
            ));
        }
        for (source, path, _) in self.mounts(id, spec) {
            if !self.node.store.has(&source) {
                let name =
                    source.file_name().unwrap_or_default().to_string_lossy().replace('.', "/");
                return Err(SalError::new(
                    Code::NotFound,
                    format!(
                        "machine {id} mounts volume {name} on {path}, and there is no such volume: declare it first"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Makes the rest of a machine whose root file system is there.
    fn revive(&self, id: &ResourceId, place: &Place, spec: &MachineSpec) -> Result<()> {
        self.halt(id, place, Stop::Interrupt)?;
        self.node.store.limit(&place.root, Counted::Own, spec.disk)?;
        net::attach(&self.node.config, &self.node.mark, id)
    }

    /// Clears away whatever there was, and makes root file system and network.
    fn make_anew(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
        identity: &str,
        image: &Path,
    ) -> Result<()> {
        crate::workload::Driver::delete(self, id)?;
        let store = &self.node.store;
        // The file system waits for its transaction, the network for `ip`: both at a time.
        std::thread::scope(|scope| {
            let root = scope.spawn(|| {
                store.snapshot(image, &place.new_root)?;
                store.limit(&place.new_root, Counted::Own, spec.disk)?;
                btrfs::write_note(&place.new_root, identity)?;
                fs::rename(&place.new_root, &place.root)
                    .during(format_args!("name {}", shown(&place.root)))
            });
            let net = net::attach(&self.node.config, &self.node.mark, id);
            let root = root.join().unwrap_or_else(|_| {
                Err(SalError::new(Code::Internal, "making a root file system broke off"))
            });
            root.and(net)
        })
    }

    /// Writes bundle and orders, starts the shim and waits until the program runs.
    fn start(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
        runtime: &Runtime,
        past: Past,
    ) -> Result<()> {
        let _volumes = self.share_volumes(id, spec)?;
        files::make_folder(&place.dir)?;
        self.write_bundle(id, place, spec)?;
        place.write_applied(spec)?;
        self.node.cgroups.prepare_shim(id)?;
        let run = unique();
        place.write_orders(&Orders {
            run: run.clone(),
            runtime: runtime.program().to_owned(),
            runtime_root: self.node.runtime_root(),
            container: place.container.clone(),
            restart: spec.restart,
            log: place.log.clone(),
            cgroup: self.node.cgroups.of_shim(id),
            oom: self.node.cgroups.oom_file(id),
            past,
            stop: None,
        })?;
        Tool::new(&self.node.config.program).arg("machine-shim").arg(&place.dir).arg(&run).run()?;
        let record = await_start(id, place, &run)?;
        let Life::Failed { reason } = record.life else { return Ok(()) };
        let printed = log::last_lines(&place.log, DETAIL_LINES)?;
        Err(SalError::new(
            Code::StartFailed,
            format!("machine {id} cannot run '{}': {reason}", spec.command.join(" ")),
        )
        .with_detail(printed))
    }

    fn write_bundle(&self, id: &ResourceId, place: &Place, spec: &MachineSpec) -> Result<()> {
        let config = Bundle {
            spec,
            hostname: id.name.as_str(),
            root: place.root.clone(),
            netns: Path::new("/run/netns").join(self.node.mark.netns(id)),
            cgroup: self.node.cgroups.of_machine(id),
            mounts: self.mounts(id, spec),
        }
        .config()
        .map_err(|e| {
            SalError::new(Code::Internal, format!("write the container's configuration: {e}"))
        })?;
        files::replace_json(&place.dir.join("config.json"), &config, false)
    }

    fn mounts(&self, id: &ResourceId, spec: &MachineSpec) -> Vec<(PathBuf, String, bool)> {
        let deployment = id.deployment_id();
        let mounts = spec.mounts.iter().map(|mount| {
            let volume = deployment.resource(mount.volume.clone());
            (self.node.volume(&volume), mount.path.clone(), mount.readonly)
        });
        mounts.collect()
    }

    /// Ends the shim, the program and every process of it.
    fn halt(&self, id: &ResourceId, place: &Place, stop: Stop) -> Result<()> {
        if let Some(shim) = place.shim() {
            if let Some(mut orders) = place.orders() {
                orders.stop = Some(stop);
                place.write_orders(&orders)?;
            }
            let signal = match stop {
                Stop::Request => Signal::SIGTERM,
                Stop::Interrupt => Signal::SIGINT,
            };
            // It may have ended just now.
            let _ = kill(Pid::from_raw(shim), signal);
            let deadline = Instant::now() + STOP_PATIENCE;
            while place.shim() == Some(shim) && Instant::now() < deadline {
                std::thread::sleep(STEP);
            }
        }
        self.node.cgroups.clear(id)?;
        files::remove_folder(&place.runtime_state)
    }

    /// Takes a changed spec over without replacing the machine: limits, disk, restart policy.
    fn adjust(
        &self,
        id: &ResourceId,
        place: &Place,
        old: &MachineSpec,
        new: &MachineSpec,
    ) -> Result<()> {
        self.check(id, new)?;
        if new.disk != old.disk {
            self.resize(id, place, old.disk, new.disk)?;
        }
        self.write_bundle(id, place, new)?;
        let limits = |s: &MachineSpec| (s.cpu, s.memory, s.pids);
        let runs = place.record().is_some_and(|r| r.life.pid().is_some());
        if limits(new) != limits(old) && runs {
            Runtime::find(&self.node)?.update(place, new)?;
        }
        if let (true, Some(mut orders)) = (new.restart != old.restart, place.orders()) {
            orders.restart = new.restart;
            place.write_orders(&orders)?;
            if let Some(shim) = place.shim() {
                // It may have ended just now.
                let _ = kill(Pid::from_raw(shim), Signal::SIGHUP);
            }
        }
        place.write_applied(new)
    }

    fn resize(&self, id: &ResourceId, place: &Place, from: Bytes, to: Bytes) -> Result<()> {
        let store = &self.node.store;
        if to < from {
            store.sync()?;
            let (used, _) = store.usage(&place.root, Counted::Own)?;
            if used > to {
                return Err(SalError::new(
                    Code::QuotaExceeded,
                    format!(
                        "the disk of machine {id} holds {used} and cannot shrink to {to}: remove files first"
                    ),
                ));
            }
        }
        store.limit(&place.root, Counted::Own, to)
    }

    fn status(&self, id: &ResourceId, place: &Place) -> Result<MachineStatus> {
        let record = place.record();
        let lives = place.shim().is_some();
        let (state, health) = state_of(record.as_ref(), lives);
        let pid = record.as_ref().filter(|_| lives).and_then(|r| r.life.pid());
        let driver = Runtime::find(&self.node).map_or("", |r| r.name());
        let (disk_used, _) = self.node.store.usage(&place.root, Counted::Own)?;
        Ok(MachineStatus {
            state,
            health,
            address: resource_address(self.node.config.address, id),
            hostname: id.name.to_string(),
            driver: driver.to_owned(),
            pid: pid.and_then(|p| u32::try_from(p).ok()),
            exit_code: record.as_ref().and_then(|r| r.exit_code),
            last_exit: record.as_ref().and_then(|r| r.last_exit().map(str::to_owned)),
            restarts: record.as_ref().map_or(0, |r| r.restarts),
            next_start_at: record.as_ref().filter(|_| lives).and_then(Record::next_start_at),
            started_at: record.as_ref().and_then(|r| r.started_at),
            disk_used,
        })
    }
}

/// What a record means, given whether its shim lives.
fn state_of(record: Option<&Record>, lives: bool) -> (MachineState, Health) {
    let failing = |reason: &str| Health::Failing { reason: reason.to_owned() };
    let lost = || {
        (
            MachineState::Exited,
            failing("the process that watches it is gone; it starts again when it is ensured"),
        )
    };
    let Some(record) = record else { return lost() };
    match &record.life {
        Life::Exited { .. } if record.exit_code == Some(0) => (MachineState::Exited, Health::Good),
        Life::Exited { reason } | Life::Failed { reason } => {
            (MachineState::Exited, failing(reason))
        }
        Life::Stopped => (MachineState::Stopped, Health::Good),
        _ if !lives => lost(),
        Life::Starting { .. } => (MachineState::BackingOff, failing("it is being started")),
        Life::Running { .. } => (MachineState::Running, Health::Good),
        Life::Stopping { .. } => (MachineState::Running, failing("it is being stopped")),
        Life::BackingOff { reason, .. } => (MachineState::BackingOff, failing(reason)),
        Life::Interrupted => lost(),
    }
}

/// What a root file system is made for: all of a spec that cannot change in place.
fn identity(spec: &MachineSpec) -> String {
    let json = serde_json::to_vec(&Machine::fixed(spec)).expect("a spec has only text keys");
    blake3::hash(&json).to_hex().to_string()
}

fn await_start(id: &ResourceId, place: &Place, run: &str) -> Result<Record> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        let ours = || place.record().filter(|r| r.run == run);
        if let Some(record) = ours().filter(|r| !matches!(r.life, Life::Starting { .. })) {
            return Ok(record);
        }
        if Instant::now() > deadline {
            return Err(SalError::new(
                Code::TimedOut,
                format!("machine {id} did not start within {START_PATIENCE:?}"),
            ));
        }
        std::thread::sleep(STEP);
    }
}

/// A name that no other run has.
fn unique() -> String {
    let now = jiff::Timestamp::now().as_nanosecond();
    format!("{now:x}-{:x}", std::process::id())
}
