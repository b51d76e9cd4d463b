//! Keeping a machine as it should be: what is seen of it, what of that is wrong, and what to do.
//!
//! What its program does by itself (end, be started again after a pause) is its shim's business; here
//! it is only told of. A machine that was stopped on request, or may rest, is left alone.

use std::time::{Duration, Instant};

use rhizome_model::kind::{MachineSpec, MachineState, MachineStatus};
use rhizome_model::{Code, Drift, Drifted, Repair, ResourceId};
use serde::{Deserialize, Serialize};

use super::bundle::cpu_quota_us;
use super::life::{Life, Record, Stop};
use super::place::{Place, booted_at};
use super::{Driver, Runtime, STEP, actions, identity, mounts};
use crate::btrfs::{self, Counted};
use crate::error::{Result, SalError};
use crate::lock::Lock;
use crate::workload::{Driver as _, Found};
use crate::{files, net};

/// A shim writes down an end within this.
const NOTED_WITHIN: Duration = Duration::from_secs(10);
/// The kernel counts memory in pages; the largest there are.
const PAGE: u64 = 64 << 10;

/// What the system shows of a machine.
#[derive(Debug, Clone, Default)]
struct Seen {
    root: bool,
    /// It was made for this spec, and has all of it.
    spec: bool,
    /// A shim sees to it.
    watched: bool,
    /// It ended for good, or was stopped on request.
    rests: bool,
    /// Why nothing watches it.
    loss: String,
    /// What is not limited as declared.
    unlimited: Vec<&'static str>,
    network: Vec<String>,
    mounts: Vec<String>,
}

/// What is wrong, in the order in which to put it right.
fn drift(seen: &Seen) -> Vec<Found> {
    // Making it again, or starting it, makes up for everything else.
    if !seen.root {
        return vec![Found::new(Drift::Missing, "its root file system is gone")];
    }
    if !seen.spec {
        return vec![Found::new(Drift::Spec, "it was made for another spec")];
    }
    if !seen.watched && !seen.rests {
        return vec![Found::new(Drift::Lost, seen.loss.clone())];
    }
    let mut found = Vec::new();
    if !seen.unlimited.is_empty() {
        let cause = format!("not limited as declared: {}", seen.unlimited.join(", "));
        found.push(Found::new(Drift::Limit, cause));
    }
    // What rests has no network, and gets one when it is started.
    if seen.watched && !seen.network.is_empty() {
        found.push(Found::new(Drift::Network, seen.network.join(", ")));
    }
    if seen.watched && !seen.mounts.is_empty() {
        found.push(Found::new(Drift::Mount, format!("not mounted: {}", seen.mounts.join(", "))));
    }
    found
}

impl Driver {
    pub(super) fn find_drift(&self, id: &ResourceId, spec: &MachineSpec) -> Result<Vec<Found>> {
        let place = Place::new(&self.node, id);
        self.finish_stop(id, &place)?;
        loop {
            let (seen, pid) = self.see(id, &place, spec)?;
            // Around a program that ended while it was looked at everything seems to be gone.
            if pid.is_none_or(net::is_inside) {
                return Ok(drift(&seen));
            }
            let deadline = Instant::now() + NOTED_WITHIN;
            while place.record().and_then(|r| r.life.pid()) == pid && place.shim().is_some() {
                if Instant::now() > deadline {
                    return Err(SalError::new(
                        Code::TimedOut,
                        format!("the end of machine {id} was not noted within {NOTED_WITHIN:?}"),
                    ));
                }
                std::thread::sleep(STEP);
            }
        }
    }

    /// And the process that it was seen around.
    fn see(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
    ) -> Result<(Seen, Option<i32>)> {
        let store = &self.node.store;
        if !store.has(&place.root) {
            return Ok((Seen::default(), None));
        }
        let noted = btrfs::read_note(&place.root).as_deref() == Some(&identity(spec));
        // Without its folder nothing is known of it, and nothing of it runs.
        let spec_as_applied = place.applied().is_none_or(|applied| applied == *spec);
        let settled = self.is_settled(id, place)?;
        let watched = settled && place.shim().is_some();
        let record = place.record();
        let pid = record.as_ref().filter(|_| watched).and_then(|r| r.life.pid());
        let network = if watched {
            net::gaps(&self.node.config, &self.node.mark, id, pid)
        } else {
            Vec::new()
        };
        let mut unlimited = if pid.is_some() { self.unlimited(id, spec) } else { Vec::new() };
        if store.usage(&place.root, Counted::Own)?.1 != Some(spec.disk) {
            unlimited.push("disk");
        }
        let seen = Seen {
            root: true,
            spec: noted && spec_as_applied,
            watched,
            rests: settled && !watched,
            loss: loss(record.as_ref()),
            unlimited,
            network,
            mounts: pid.map_or_else(Vec::new, |pid| mounts::missing(pid, &self.mounts(id, spec))),
        };
        Ok((seen, pid))
    }

    fn unlimited(&self, id: &ResourceId, spec: &MachineSpec) -> Vec<&'static str> {
        let limits = self.node.cgroups.limits(id);
        let quota = u64::try_from(cpu_quota_us(spec.cpu)).unwrap_or(u64::MAX);
        let in_pages =
            |limit: u64| spec.memory.0.checked_sub(limit).is_some_and(|less| less < PAGE);
        let is = |limit: Option<u64>, wanted: u64| limit.is_none_or(|limit| limit == wanted);
        let all = [
            ("cpu", is(limits.cpu_quota_us, quota)),
            ("memory", limits.memory.is_none_or(in_pages)),
            ("pids", is(limits.pids, spec.pids.into())),
        ];
        all.into_iter().filter(|(_, limited)| !limited).map(|(name, _)| name).collect()
    }

    /// A stop that was asked for and broke off with whoever made it: what was asked for counts.
    fn finish_stop(&self, id: &ResourceId, place: &Place) -> Result<()> {
        let asked = place.orders().is_some_and(|o| o.stop == Some(Stop::Request));
        let stopped = place.record().is_some_and(|r| r.life == Life::Stopped);
        if asked && !stopped { actions::stop(self, id, place).map(drop) } else { Ok(()) }
    }

    pub(super) fn mend_drift(
        &self,
        id: &ResourceId,
        spec: &MachineSpec,
        found: Found,
    ) -> Result<Drifted> {
        let place = Place::new(&self.node, id);
        let pid = || place.record().and_then(|r| r.life.pid());
        match found.drift {
            Drift::Limit => {
                self.node.store.limit(&place.root, Counted::Own, spec.disk)?;
                if pid().is_some() {
                    Runtime::find(&self.node)?.update(&place, spec)?;
                }
                Ok(found.and_done(Repair::Restored))
            }
            Drift::Network => {
                net::mend(&self.node.config, &self.node.mark, id, pid())?;
                Ok(found.and_done(Repair::Restored))
            }
            Drift::Mount => {
                let mounts = self.mounts(id, spec);
                match pid().map(|pid| mounts::restore(pid, &mounts)) {
                    Some(Ok(())) => return Ok(found.and_done(Repair::Restored)),
                    // What cannot be put right while it runs is right after a start.
                    Some(Err(error)) => {
                        tracing::warn!(machine = %id, %error, "is started again for its mounts");
                    }
                    None => {}
                }
                self.halt(id, &place, Stop::Interrupt)?;
                self.ensured(id, spec, found, Repair::Started)
            }
            Drift::Missing => self.ensured(id, spec, found, Repair::Made),
            Drift::Spec => self.ensured(id, spec, found, Repair::Restored),
            Drift::Lost | Drift::Ended | Drift::Orphan => {
                self.ensured(id, spec, found, Repair::Started)
            }
        }
    }

    fn ensured(
        &self,
        id: &ResourceId,
        spec: &MachineSpec,
        found: Found,
        done: Repair,
    ) -> Result<Drifted> {
        let (status, _) = self.ensure(id, spec)?;
        let waits = pause_of(&status);
        let action = if waits.is_some() { Repair::Waits } else { done };
        Ok(Drifted { retry_in_ms: waits, ..found.and_done(action) })
    }
}

fn pause_of(status: &MachineStatus) -> Option<u64> {
    let at = status.next_start_at.filter(|_| status.state == MachineState::BackingOff)?;
    let now = jiff::Timestamp::now().as_millisecond();
    Some(u64::try_from(at.saturating_sub(now)).unwrap_or(0))
}

fn loss(record: Option<&Record>) -> String {
    match record {
        None => "nothing is known of its last run".into(),
        Some(record) => match &record.life {
            Life::Failed { reason } => reason.clone(),
            Life::Interrupted => "the node had stopped it".into(),
            _ if record.is_before(booted_at()) => "the node was booted".into(),
            _ => "the process that watched it is gone".into(),
        },
    }
}

/// What of its ends was told.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    number: u64,
}

/// What a machine came to by itself and nobody has told of yet. While this is there nobody else is
/// given it.
pub struct Untold {
    /// Unix milliseconds, and what happened; the oldest first.
    pub ends: Vec<(i64, Drifted)>,
    place: Place,
    number: u64,
    _lock: Lock,
}

impl Untold {
    /// From now on they are told.
    pub fn told(self) -> std::result::Result<(), SalError> {
        files::replace_json(&told_file(&self.place), &Told { number: self.number }, false)
    }
}

pub(super) fn untold(place: Place) -> Result<Option<Untold>> {
    if !has_untold(&place) {
        return Ok(None);
    }
    let lock = Lock::take(&place.dir.join("told.lock"))?;
    let told = told(&place);
    let Some(record) = place.record() else { return Ok(None) };
    let ends: Vec<_> = record.ends.iter().filter(|end| end.number > told).collect();
    let Some(number) = ends.last().map(|end| end.number) else { return Ok(None) };
    let ends = ends.iter().map(|end| {
        let drifted = Drifted {
            drift: Drift::Ended,
            action: if end.pause_ms.is_some() { Repair::Waits } else { Repair::Left },
            cause: Some(end.reason.clone()),
            retry_in_ms: end.pause_ms,
        };
        (end.at, drifted)
    });
    Ok(Some(Untold { ends: ends.collect(), number, place, _lock: lock }))
}

pub(super) fn has_untold(place: &Place) -> bool {
    let newest = place.record().and_then(|r| r.ends.last().map(|end| end.number));
    newest.is_some_and(|newest| newest > told(place))
}

fn told(place: &Place) -> u64 {
    files::read_json::<Told>(&told_file(place)).unwrap_or_default().number
}

fn told_file(place: &Place) -> std::path::PathBuf {
    place.dir.join("told.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_at_a_time_is_put_right_and_what_rests_is_left_alone() {
        let well = Seen { root: true, spec: true, watched: true, ..Seen::default() };
        let drifts = |seen: &Seen| drift(seen).into_iter().map(|f| f.drift).collect::<Vec<_>>();
        assert_eq!(drifts(&well), []);
        assert_eq!(drifts(&Seen::default()), [Drift::Missing]);
        let lost = Seen { watched: false, unlimited: vec!["disk"], ..well.clone() };
        assert_eq!(drifts(&lost), [Drift::Lost], "a start limits it too");
        assert_eq!(drifts(&Seen { spec: false, ..lost }), [Drift::Spec]);
        let gaps = Seen {
            unlimited: vec!["disk"],
            network: vec!["link".into()],
            mounts: vec!["/data".into()],
            ..well
        };
        assert_eq!(drifts(&gaps), [Drift::Limit, Drift::Network, Drift::Mount]);
        let rests = Seen { watched: false, rests: true, ..gaps };
        assert_eq!(drifts(&rests), [Drift::Limit]);
    }
}
