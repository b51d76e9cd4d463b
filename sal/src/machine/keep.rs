//! Keeping a machine as it should be: what is seen of it, what of that is wrong, and what to do.
//!
//! What its program does by itself (end, be started again after a pause) is its shim's business; here
//! it is only told of. A machine that was stopped on request, or may rest, is left alone.

use rhizome_model::kind::{Isolation, MachineSpec, MachineState, MachineStatus};
use rhizome_model::{Drift, Drifted, Repair, ResourceId};

use super::container::limits;
use super::make::port;
use super::{Driver, identity};
use crate::btrfs::{self, Counted};
use crate::error::Result;
use crate::net;
use crate::oci::{Limits, Runtime, mounts};
use crate::program::{Place, Stop, Watched};
use crate::workload::{Driver as _, Found};

/// What the system shows of a machine.
#[derive(Debug, Clone, Default)]
struct Seen {
    root: bool,
    /// It was made for this spec, and has all of it.
    spec: bool,
    watched: Option<Watched>,
    /// What is not limited as declared.
    unlimited: Vec<&'static str>,
    network: Vec<String>,
    mounts: Vec<String>,
    /// Why what runs is of no use.
    hang: Option<String>,
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
    let watched = match &seen.watched {
        Some(Watched::Lost(cause)) => return vec![Found::new(Drift::Lost, cause.clone())],
        // What rests has no network, and gets one when it is started.
        Some(Watched::Rests) | None => false,
        Some(Watched::By { .. }) => true,
    };
    if let Some(cause) = &seen.hang {
        return vec![Found::new(Drift::Hung, cause.clone())];
    }
    let mut found = Vec::new();
    if !seen.unlimited.is_empty() {
        let cause = format!("not limited as declared: {}", seen.unlimited.join(", "));
        found.push(Found::new(Drift::Limit, cause));
    }
    if watched && !seen.network.is_empty() {
        found.push(Found::new(Drift::Network, seen.network.join(", ")));
    }
    if watched && !seen.mounts.is_empty() {
        found.push(Found::new(Drift::Mount, format!("not mounted: {}", seen.mounts.join(", "))));
    }
    found
}

impl Driver {
    pub(super) fn find_drift(&self, id: &ResourceId, spec: &MachineSpec) -> Result<Vec<Found>> {
        self.programs.finish_stop(id)?;
        let place = self.programs.place(id);
        self.finish_admission(id, &place)?;
        self.programs.look(id, |watched| self.see(id, &place, spec, watched)).map(|s| drift(&s))
    }

    fn see(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
        watched: Watched,
    ) -> Result<Seen> {
        let store = &self.node.store;
        if !store.has(&place.root) {
            return Ok(Seen::default());
        }
        let noted = btrfs::read_note(&place.root).as_deref() == Some(&identity(spec));
        // Without its folder nothing is known of it, and nothing of it runs.
        let spec_as_applied = place.applied().is_none_or(|applied: MachineSpec| applied == *spec);
        let pid = watched.pid();
        let network = match watched {
            Watched::By { pid } => port(spec).gaps(&self.node.config, &self.programs.mark, id, pid),
            Watched::Rests | Watched::Lost(_) => Vec::new(),
        };
        let is_vm = spec.isolation == Isolation::Vm;
        let mut unlimited = match pid {
            Some(_) => self.limits(spec).missing(self.programs.cgroups.limits(id)),
            None => Vec::new(),
        };
        // What is only a container's.
        unlimited.retain(|what| !is_vm || *what != "pids");
        if !is_vm && store.usage(&place.root, Counted::Own)?.1 != Some(spec.disk) {
            unlimited.push("disk");
        }
        let mounts = match pid {
            Some(pid) if !is_vm => mounts::missing(pid, &self.mounts(id, spec)),
            Some(_) | None => Vec::new(),
        };
        Ok(Seen {
            root: true,
            spec: noted && spec_as_applied,
            watched: Some(watched),
            unlimited,
            network,
            mounts,
            hang: pid.filter(|_| is_vm).and_then(|_| self.hang(place)),
        })
    }

    pub(super) fn mend_drift(
        &self,
        id: &ResourceId,
        spec: &MachineSpec,
        found: Found,
    ) -> Result<Drifted> {
        let place = self.programs.place(id);
        let pid = || place.pid();
        match found.drift {
            Drift::Limit => {
                match spec.isolation {
                    Isolation::Container => {
                        self.node.store.limit(&place.root, Counted::Own, spec.disk)?;
                        if pid().is_some() {
                            Runtime::find(&self.node)?.update(&place, &self.limits(spec))?;
                        }
                    }
                    Isolation::Vm => {
                        self.programs.cgroups.limit(id, spec.cpu, spec.vm_memory())?;
                    }
                }
                Ok(found.and_done(Repair::Restored))
            }
            // A hypervisor holds on to a TAP that is gone.
            Drift::Network if spec.isolation == Isolation::Vm && !self.has_link(id) => {
                self.programs.halt(id, Stop::Interrupt)?;
                self.ensured(id, spec, found, Repair::Started)
            }
            Drift::Network => {
                port(spec).mend(&self.node.config, &self.programs.mark, id, pid())?;
                Ok(found.and_done(Repair::Restored))
            }
            Drift::Hung => {
                self.end_hung(id, &place)?;
                self.ensured(id, spec, found, Repair::Started)
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
                self.programs.halt(id, Stop::Interrupt)?;
                self.ensured(id, spec, found, Repair::Started)
            }
            Drift::Missing => self.ensured(id, spec, found, Repair::Made),
            Drift::Spec => self.ensured(id, spec, found, Repair::Restored),
            Drift::Lost | Drift::Ended | Drift::Orphan => {
                self.ensured(id, spec, found, Repair::Started)
            }
        }
    }

    fn limits(&self, spec: &MachineSpec) -> Limits {
        match spec.isolation {
            Isolation::Container => limits(spec),
            Isolation::Vm => Limits { memory: spec.vm_memory(), ..limits(spec) },
        }
    }

    fn has_link(&self, id: &ResourceId) -> bool {
        net::has_link(&self.programs.mark.link(id))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_at_a_time_is_put_right_and_what_rests_is_left_alone() {
        let by = Some(Watched::By { pid: None });
        let well = Seen { root: true, spec: true, watched: by, ..Seen::default() };
        let drifts = |seen: &Seen| drift(seen).into_iter().map(|f| f.drift).collect::<Vec<_>>();
        assert_eq!(drifts(&well), []);
        assert_eq!(drifts(&Seen::default()), [Drift::Missing]);
        let hung = Seen { hang: Some(String::new()), network: vec!["link".into()], ..well.clone() };
        assert_eq!(drifts(&hung), [Drift::Hung], "a start makes its network, too");
        let lost = Some(Watched::Lost(String::new()));
        let lost = Seen { watched: lost, unlimited: vec!["disk"], ..well.clone() };
        assert_eq!(drifts(&lost), [Drift::Lost], "a start limits it too");
        assert_eq!(drifts(&Seen { spec: false, ..lost }), [Drift::Spec]);
        let gaps = Seen {
            unlimited: vec!["disk"],
            network: vec!["link".into()],
            mounts: vec!["/data".into()],
            ..well
        };
        assert_eq!(drifts(&gaps), [Drift::Limit, Drift::Network, Drift::Mount]);
        let rests = Seen { watched: Some(Watched::Rests), ..gaps };
        assert_eq!(drifts(&rests), [Drift::Limit]);
    }
}
