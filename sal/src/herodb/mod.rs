//! `herodb`: a database that speaks the protocol of Redis, with data, address and password of its own.
//!
//! ```text
//!   <pool>/herodbs/… (subvolume, limited) ──/data──┐
//!   settings, users, start ───────────/etc/herodb──┼─▶ OCI bundle ──▶ shim ──▶ runtime ──▶ engine
//!   the node's /usr, read-only ────────────────────┤
//!   netns, links ──────────────────────────────────┘
//! ```
//!
//! - The engine is what the node has ([`engine`]); it runs as a user without any privileges, in a root
//!   of its own with nothing in it but the node's programs and its data.
//! - What it has acknowledged is on disk. It refuses writes before its volume is full ([`config`]); where that
//!   fills up all the same it ends, and starts again with what was acknowledged.
//! - Its subvolume gets its name when it is limited and its own. The rest is made anew whenever no
//!   shim lives, so any step may be the last before a crash.
//! - Its password is nowhere: what is applied, and what the engine is told, is a hash. We ask it as
//!   another user, who may look and may not read data.

mod actions;
mod client;
mod config;
mod container;
mod engine;
mod keep;
mod make;

use std::sync::Arc;

use rhizome_model::kind::{Health, Herodb, HerodbSpec, HerodbStatus, MachineState};
use rhizome_model::secret::HIDDEN;
use rhizome_model::{
    Action, Bytes, Code, Done, Drifted, ResourceId, WorkloadKind, resource_address,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::client::{Client, Seen, Silence};
use self::engine::Engine;
use crate::btrfs::Counted;
use crate::error::{Result, SalError};
use crate::node::Node;
use crate::program::{Past, Place, Programs, Untold};
use crate::workload::{Found, Notice, Sink};

/// It says that it is full when this much of a hundred is.
const PERCENT: u64 = 95;

pub(crate) struct Driver {
    node: Arc<Node>,
    programs: Programs,
}

/// What a database was made to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Applied {
    /// With the hash of the password in its place.
    spec: HerodbSpec,
    /// The engine and its version.
    driver: String,
}

impl crate::workload::Driver for Driver {
    type Kind = Herodb;

    fn new(node: Arc<Node>) -> Self {
        let programs = Programs::new(node.clone(), WorkloadKind::Herodb);
        Self { node, programs }
    }

    fn works_with(_: &Node) -> Option<String> {
        Some(match Engine::find() {
            Ok(engine) => format!("{} ({})", engine.words(), engine.program.display()),
            Err(error) => error.to_string(),
        })
    }

    fn ensure(&self, id: &ResourceId, spec: &HerodbSpec) -> Result<(HerodbStatus, Done)> {
        let place = self.programs.place(id);
        let wanted = hashed(id, spec)?;
        let has_data = self.node.store.has(&place.root);
        let applied: Option<Applied> = place.applied();
        if let (true, Some(applied)) = (has_data, &applied)
            && self.programs.is_settled(id)?
        {
            let changes = applied.spec != wanted;
            if changes {
                self.adjust(id, &place, applied, &wanted)?;
            }
            if self.programs.status(id).state == MachineState::Running {
                self.await_answer(id, &place)?;
            }
            let done = if changes { Done::Updated } else { Done::Unchanged };
            return Ok((self.status(id, &place)?, done));
        }
        let done = match &applied {
            _ if !has_data => Done::Created,
            None => Done::Created,
            Some(applied) if applied.spec == wanted => Done::Restored,
            Some(_) => Done::Updated,
        };
        self.check(id, &wanted)?;
        let past = if has_data { place.past() } else { Past::default() };
        let made = self.make(id, &place, &wanted);
        let made = made.and_then(|shim| self.start(id, &place, &wanted, past, shim));
        if let (Err(_), false) = (&made, has_data) {
            // Nothing of it was there before, and nothing is left of it.
            if let Err(error) = crate::workload::Driver::delete(self, id) {
                tracing::warn!(herodb = %id, %error, "what is left of a database stays");
            }
        }
        made?;
        Ok((self.status(id, &place)?, done))
    }

    fn applied(&self, id: &ResourceId) -> Result<Option<HerodbSpec>> {
        Ok(self.programs.place(id).applied().map(|applied: Applied| applied.spec))
    }

    fn observe(&self, id: &ResourceId) -> Result<Option<HerodbStatus>> {
        let place = self.programs.place(id);
        if self.node.store.has(&place.root) { self.status(id, &place).map(Some) } else { Ok(None) }
    }

    fn delete(&self, id: &ResourceId) -> Result<()> {
        let place = self.programs.place(id);
        self.programs.forget(id)?;
        self.node.store.delete(&place.new_root)?;
        self.node.store.delete(&place.root)
    }

    fn list(&self) -> Result<Vec<ResourceId>> {
        self.programs.list()
    }

    fn drift(&self, id: &ResourceId, spec: &HerodbSpec) -> Result<Vec<Found>> {
        self.find_drift(id, spec)
    }

    fn mend(&self, id: &ResourceId, spec: &HerodbSpec, found: Found) -> Result<Drifted> {
        self.mend_drift(id, spec, found)
    }

    fn untold(&self, id: &ResourceId) -> Result<Option<Untold>> {
        self.programs.untold(id)
    }

    fn watch(&self) -> Result<Option<mpsc::Receiver<Notice>>> {
        self.programs.watch().map(Some)
    }

    fn changes(action: &Action) -> bool {
        matches!(action, Action::Start | Action::Stop | Action::Restart)
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

impl Driver {
    fn status(&self, id: &ResourceId, place: &Place) -> Result<HerodbStatus> {
        let program = self.programs.status(id);
        let address = resource_address(self.node.config.address, id);
        let (used, limit) = self.node.store.usage(&place.root, Counted::Own)?;
        let runs = program.state == MachineState::Running;
        let seen = runs.then(|| self.ask(id, place).and_then(|mut client| client.look()));
        let health = match (&seen, program.health) {
            (Some(Ok(seen)), Health::Good) => health(seen),
            (Some(Err(silence)), Health::Good) => failing(silence.to_string()),
            (_, health) => health,
        };
        let seen = seen.and_then(std::result::Result::ok);
        Ok(HerodbStatus {
            state: program.state,
            health,
            address,
            port: Herodb::PORT,
            url: Herodb::url(address, HIDDEN),
            password: HIDDEN.to_owned(),
            driver: place.applied().map(|a: Applied| a.driver).unwrap_or_default(),
            keys: seen.as_ref().map(|s| s.keys),
            memory_used: seen.as_ref().map(|s| s.memory_used),
            size: limit.unwrap_or(Bytes(0)),
            used,
            restarts: program.restarts,
            last_exit: program.last_exit,
            next_start_at: program.next_start_at,
            started_at: program.started_at,
        })
    }

    /// A connection as the user that we are for it.
    fn ask(&self, id: &ResourceId, place: &Place) -> std::result::Result<Client, Silence> {
        let password = config::admin(&place.dir)
            .ok_or_else(|| Silence::Mute("our password for it is gone".into()))?;
        Client::connect(resource_address(self.node.config.address, id), &password)
    }
}

fn failing(reason: impl Into<String>) -> Health {
    Health::Failing { reason: reason.into() }
}

fn health(seen: &Seen) -> Health {
    if seen.is_closed {
        return failing("its volume is full, so it refuses writes: give it a larger size");
    }
    if seen.memory_used.0 / PERCENT >= seen.memory_most.0 / 100 {
        return failing(format!(
            "it is full, so it refuses writes that do not fit: its data takes {} of {}; remove keys, \
             or give it more memory (data can have three quarters) and size (a quarter above 32 MiB)",
            seen.memory_used, seen.memory_most
        ));
    }
    if !seen.is_log_written {
        return failing("it cannot write its log of changes; see its log");
    }
    Health::Good
}

/// The spec as we keep it.
fn hashed(id: &ResourceId, spec: &HerodbSpec) -> Result<HerodbSpec> {
    let password = spec.password.as_deref().ok_or_else(|| {
        SalError::new(Code::InvalidSpec, format!("herodb {id} has no password: give it one"))
    })?;
    Ok(HerodbSpec { password: Some(config::hash(password)), ..spec.clone() })
}
