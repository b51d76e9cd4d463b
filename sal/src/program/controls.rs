//! What every program can be told: start, stop, restart. They mean the same for all kinds.

use rhizome_model::ResourceId;
use serde_json::Value;

use super::Programs;
use super::life::Past;
use super::place::Place;
use crate::error::Result;

/// A program as its kind knows it.
pub(crate) trait Controls {
    fn programs(&self) -> &Programs;
    fn id(&self) -> &ResourceId;
    fn place(&self) -> &Place;
    /// Makes what it lacks and starts it; nothing of it runs.
    fn begin(&self, past: Past) -> Result<()>;
    /// As its kind shows it.
    fn status(&self) -> Result<Value>;

    fn start(&self) -> Result<Value> {
        // A shim that has written an end is about to go.
        self.programs().is_settled(self.id())?;
        if self.place().shim().is_none() {
            self.begin(self.place().past_by_request())?;
        }
        self.status()
    }

    fn stop(&self) -> Result<Value> {
        self.programs().stop(self.id())?;
        self.status()
    }

    /// `by`: the job that wants it; done by half, it is gone on with.
    fn restart(&self, by: &str) -> Result<Value> {
        if !self.place().is_restarted_by(by) {
            self.programs().stop(self.id())?;
            self.place().note_restart(by)?;
        }
        self.start()
    }
}
