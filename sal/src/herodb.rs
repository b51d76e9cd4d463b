//! `herodb`: a database that speaks the protocol of Redis.

use std::sync::Arc;

use rhizome_model::kind::{Herodb, HerodbSpec, HerodbStatus};
use rhizome_model::{Code, Done, Drifted, ResourceId};

use crate::error::{Result, SalError};
use crate::node::Node;
use crate::workload::Found;

pub(crate) struct Driver {
    _node: Arc<Node>,
}

fn not_yet() -> SalError {
    SalError::new(Code::MissingTool, "databases cannot be made yet")
}

impl crate::workload::Driver for Driver {
    type Kind = Herodb;

    fn new(node: Arc<Node>) -> Self {
        Self { _node: node }
    }

    fn ensure(&self, _: &ResourceId, _: &HerodbSpec) -> Result<(HerodbStatus, Done)> {
        Err(not_yet())
    }

    fn observe(&self, _: &ResourceId) -> Result<Option<HerodbStatus>> {
        Ok(None)
    }

    fn delete(&self, _: &ResourceId) -> Result<()> {
        Ok(())
    }

    fn list(&self) -> Result<Vec<ResourceId>> {
        Ok(Vec::new())
    }

    fn drift(&self, _: &ResourceId, _: &HerodbSpec) -> Result<Vec<Found>> {
        Ok(Vec::new())
    }

    fn mend(&self, _: &ResourceId, _: &HerodbSpec, _: Found) -> Result<Drifted> {
        Err(not_yet())
    }
}
