//! Keeping a database as it should be: what is seen of it, what of that is wrong, and what to do.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::kind::{HerodbSpec, MachineState};
use rhizome_model::{Drift, Drifted, Repair, ResourceId};

use super::container::limits;
use super::{Applied, Driver, Silence, hashed};
use crate::btrfs::Counted;
use crate::error::Result;
use crate::net;
use crate::oci::Runtime;
use crate::program::{Place, Stop, Watched};
use crate::workload::{Driver as _, Found};

/// An engine that says nothing so many times in a row is started again. One that computes says so
/// meanwhile.
const LOOKS: usize = 3;

impl Driver {
    pub(super) fn find_drift(&self, id: &ResourceId, spec: &HerodbSpec) -> Result<Vec<Found>> {
        self.programs.finish_stop(id)?;
        let (place, wanted) = (self.programs.place(id), hashed(id, spec)?);
        if !self.node.store.has(&place.root) {
            let cause = "its subvolume is gone, and with it what was in it";
            return Ok(vec![Found::new(Drift::Missing, cause)]);
        }
        // Without its folder nothing is known of it, and nothing of it runs.
        if place.applied().is_some_and(|applied: Applied| applied.spec != wanted) {
            return Ok(vec![Found::new(Drift::Spec, "it was made for another spec")]);
        }
        self.programs.look(id, |watched| self.see(id, &place, spec, &watched))
    }

    /// What is wrong, in the order in which to put it right.
    fn see(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &HerodbSpec,
        watched: &Watched,
    ) -> Result<Vec<Found>> {
        if let Watched::Lost(cause) = watched {
            return Ok(vec![Found::new(Drift::Lost, cause.clone())]);
        }
        let mut found = Vec::new();
        let mut unlimited = match watched.pid() {
            Some(_) => limits(spec).missing(self.programs.cgroups.limits(id)),
            None => Vec::new(),
        };
        if self.node.store.usage(&place.root, Counted::Own)?.1 != Some(spec.size) {
            unlimited.push("size");
        }
        if !unlimited.is_empty() {
            let cause = format!("not limited as declared: {}", unlimited.join(", "));
            found.push(Found::new(Drift::Limit, cause));
        } else if self.is_closed_for_nothing(id, place)? {
            found.push(Found::new(Drift::Limit, "it refused writes though there is room again"));
        }
        // What rests has no network, and gets one when it is started.
        if let Watched::By { pid } = watched {
            let gaps = net::Port::Veth.gaps(&self.node.config, &self.programs.mark, id, *pid);
            if !gaps.is_empty() {
                found.push(Found::new(Drift::Network, gaps.join(", ")));
            } else if self.is_hung(id, place) {
                return Ok(vec![Found::new(Drift::Hung, "it runs and says nothing")]);
            }
        }
        Ok(found)
    }

    fn is_hung(&self, id: &ResourceId, place: &Place) -> bool {
        let is_late = || {
            self.programs.status(id).state == MachineState::Running
                && self.ask(id, place).err() == Some(Silence::Late)
        };
        (0..LOOKS).all(|_| is_late())
    }

    fn is_closed_for_nothing(&self, id: &ResourceId, place: &Place) -> Result<bool> {
        if self.programs.status(id).state != MachineState::Running {
            return Ok(false);
        }
        let seen = self.ask(id, place).and_then(|mut client| client.look());
        Ok(seen.is_ok_and(|seen| seen.is_closed) && self.has_room(place)?)
    }

    pub(super) fn mend_drift(
        &self,
        id: &ResourceId,
        spec: &HerodbSpec,
        found: Found,
    ) -> Result<Drifted> {
        let place = self.programs.place(id);
        match found.drift {
            Drift::Limit => {
                self.node.store.limit(&place.root, Counted::Own, spec.size)?;
                if place.pid().is_some() {
                    Runtime::find(&self.node)?.update(&place, &limits(spec))?;
                    if self.has_room(&place)?
                        && let Ok(mut client) = self.ask(id, &place)
                        && let Err(silence) = client.open()
                    {
                        tracing::warn!(herodb = %id, %silence, "still refuses writes");
                    }
                }
                Ok(found.and_done(Repair::Restored))
            }
            Drift::Network => {
                net::Port::Veth.mend(&self.node.config, &self.programs.mark, id, place.pid())?;
                Ok(found.and_done(Repair::Restored))
            }
            Drift::Missing => self.ensured(id, spec, found, Repair::Made),
            Drift::Spec => self.ensured(id, spec, found, Repair::Restored),
            Drift::Hung => {
                // It would not hear that it is asked to end. It may have ended just now.
                if let Some(pid) = place.pid() {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                self.programs.halt(id, Stop::Interrupt)?;
                self.ensured(id, spec, found, Repair::Started)
            }
            Drift::Lost | Drift::Ended | Drift::Orphan | Drift::Mount => {
                self.ensured(id, spec, found, Repair::Started)
            }
        }
    }

    fn ensured(
        &self,
        id: &ResourceId,
        spec: &HerodbSpec,
        found: Found,
        done: Repair,
    ) -> Result<Drifted> {
        let (status, _) = self.ensure(id, spec)?;
        let at = status.next_start_at.filter(|_| status.state == MachineState::BackingOff);
        let now = jiff::Timestamp::now().as_millisecond();
        let waits = at.map(|at| u64::try_from(at.saturating_sub(now)).unwrap_or(0));
        let action = if waits.is_some() { Repair::Waits } else { done };
        Ok(Drifted { retry_in_ms: waits, ..found.and_done(action) })
    }
}
