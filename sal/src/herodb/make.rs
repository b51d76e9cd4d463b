//! Making databases, and changing them in place.

use std::fs;
use std::os::unix::fs::chown;
use std::time::{Duration, Instant};

use rhizome_model::kind::{HerodbSpec, MachineState};
use rhizome_model::{Bytes, Code, ResourceId, resource_address};

use super::client::Silence;
use super::config::{self, settings};
use super::container::{limits, make_root, program};
use super::{Applied, Driver, Engine};
use crate::btrfs::Counted;
use crate::error::{During, Result, SalError, shown};
use crate::oci::Runtime;
use crate::program::{Entry, Past, Place, Stop, Waiting};
use crate::{files, net, sal};

/// An engine that has nothing to load answers within this.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// What it has to load it loads within this, or who waits is told that it loads.
const LOAD_PATIENCE: Duration = Duration::from_secs(240);
const STEP: Duration = Duration::from_millis(5);
/// Of what an engine printed before it ended, this much goes into the error.
const DETAIL_LINES: usize = 20;
/// With this much on disk an engine can be opened for writes again.
const ROOM: Bytes = Bytes::mib(2);

impl Driver {
    /// What can be known to fail before anything is made.
    pub(super) fn check(&self, id: &ResourceId, spec: &HerodbSpec) -> Result<()> {
        let room = sal::disk(&self.node.store)?;
        if spec.size > room {
            let message = format!(
                "herodb {id} of {} does not fit into the node's pool of {room}: ask for less",
                spec.size
            );
            return Err(SalError::new(Code::PoolFull, message));
        }
        Engine::find()?;
        Runtime::find(&self.node).map(drop)
    }

    /// Makes what its engine needs, and the shim that is to start it; keeps what there is of data.
    pub(super) fn make(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &HerodbSpec,
    ) -> Result<Waiting> {
        self.programs.halt(id, Stop::Interrupt)?;
        let shim = self.programs.call_shim(id, Entry::Moved)?;
        let store = &self.node.store;
        if !store.has(&place.root) {
            store.delete(&place.new_root)?;
            store.create(&place.new_root)?;
            let owner = Some(config::USER);
            chown(&place.new_root, owner, owner)
                .during(format_args!("hand over {}", shown(&place.new_root)))?;
            store.limit(&place.new_root, Counted::Own, spec.size)?;
            fs::rename(&place.new_root, &place.root)
                .during(format_args!("name {}", shown(&place.root)))?;
        }
        store.limit(&place.root, Counted::Own, spec.size)?;
        net::Port::Veth.attach(&self.node.config, &self.programs.mark, id)?;
        Ok(shim)
    }

    /// Starts the engine and waits until it answers.
    pub(super) fn start(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &HerodbSpec,
        past: Past,
        shim: Waiting,
    ) -> Result<()> {
        let engine = Engine::find()?;
        files::make_folder(&place.dir)?;
        make_root(&place.dir)?;
        self.write_config(id, place, spec, &engine)?;
        let program = self.container(id, place, spec, &engine)?;
        place.write_applied(&Applied { spec: spec.clone(), driver: engine.words() })?;
        let waits = past.waits(jiff::Timestamp::now().as_millisecond());
        self.programs.start(id, shim, &program, past)?;
        // One that failed before is waited out, and nobody is made to wait for that.
        if waits { Ok(()) } else { self.await_answer(id, place) }
    }

    fn write_config(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &HerodbSpec,
        engine: &Engine,
    ) -> Result<()> {
        let hash = spec.password.as_deref().unwrap_or_default();
        let address = resource_address(self.node.config.address, id);
        config::write(&place.dir, spec, hash, address, (engine, &program(engine)))
    }

    /// Waits until a database that runs answers. One that ends meanwhile has failed.
    pub(super) fn await_answer(&self, id: &ResourceId, place: &Place) -> Result<()> {
        let begin = Instant::now();
        loop {
            let silence = match self.ask(id, place).and_then(|mut client| client.ping()) {
                Ok(()) => return Ok(()),
                Err(silence) => silence,
            };
            let program = self.programs.status(id);
            if !matches!(program.state, MachineState::Running) {
                let reason = program.last_exit.unwrap_or_else(|| "it was stopped".to_owned());
                let message = format!("herodb {id} cannot run: {reason}");
                let printed = self.programs.last_lines(id, DETAIL_LINES)?;
                return Err(SalError::new(Code::StartFailed, message).with_detail(printed));
            }
            match silence {
                // It comes to its end, and its status says that it has not yet.
                Silence::Loading if begin.elapsed() > LOAD_PATIENCE => return Ok(()),
                Silence::Loading => {}
                _ if begin.elapsed() > ANSWER_PATIENCE => {
                    let message =
                        format!("herodb {id} did not answer within {ANSWER_PATIENCE:?}: {silence}");
                    let printed = self.programs.last_lines(id, DETAIL_LINES)?;
                    return Err(SalError::new(Code::TimedOut, message).with_detail(printed));
                }
                Silence::Mute(_) | Silence::Late | Silence::Refused(_) => {}
            }
            std::thread::sleep(STEP);
        }
    }

    /// Takes a changed spec over: without a restart where the engine answers.
    pub(super) fn adjust(
        &self,
        id: &ResourceId,
        place: &Place,
        old: &Applied,
        new: &HerodbSpec,
    ) -> Result<()> {
        self.check(id, new)?;
        let engine = Engine::find()?;
        self.node.store.limit(&place.root, Counted::Own, new.size)?;
        self.write_config(id, place, new, &engine)?;
        self.write_bundle(id, place, new, &engine)?;
        let runs = place.pid().is_some();
        let mut driver = old.driver.clone();
        if runs && let Err(error) = self.tell(id, place, &old.spec, new) {
            tracing::info!(herodb = %id, %error, "is started again for what has changed");
            let shim = self.make(id, place, new)?;
            self.start(id, place, new, Past::default(), shim)?;
            driver = engine.words();
        }
        place.write_applied(&Applied { spec: new.clone(), driver })
    }

    /// Has a running engine and its container take over what has changed.
    fn tell(
        &self,
        id: &ResourceId,
        place: &Place,
        old: &HerodbSpec,
        new: &HerodbSpec,
    ) -> Result<()> {
        let refused =
            |silence: Silence| SalError::new(Code::ToolFailed, format!("herodb {id}: {silence}"));
        let contain = || Runtime::find(&self.node)?.update(place, &limits(new));
        let changes = limits(new) != limits(old);
        // The container is never smaller than what the engine may take.
        if changes && new.memory >= old.memory {
            contain()?;
        }
        let mut client = self.ask(id, place).map_err(refused)?;
        for (name, value) in settings(new) {
            client.set(name, &value).map_err(refused)?;
        }
        if changes && new.memory < old.memory {
            contain()?;
        }
        if old.password != new.password {
            client.load_users().map_err(refused)?;
            client = self.ask(id, place).map_err(refused)?;
            client.cut_off().map_err(refused)?;
        }
        if self.has_room(place)? { client.open().map_err(refused) } else { Ok(()) }
    }

    pub(super) fn has_room(&self, place: &Place) -> Result<bool> {
        let (used, limit) = self.node.store.usage(&place.root, Counted::Own)?;
        Ok(limit.is_none_or(|limit| used.0.saturating_add(ROOM.0) <= limit.0))
    }
}
