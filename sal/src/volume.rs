//! `volume`: a btrfs subvolume `<pool>/volumes/ACCOUNT.DEPLOYMENT.NAME` whose size btrfs enforces.

use std::sync::Arc;

use rhizome_model::kind::{Volume, VolumeSpec, VolumeStatus};
use rhizome_model::{Bytes, Code, ResourceId};

use crate::btrfs::Counted;
use crate::error::{Result, SalError};
use crate::files;
use crate::node::Node;
use crate::sal;

pub(crate) struct Driver {
    node: Arc<Node>,
}

impl crate::workload::Driver for Driver {
    type Kind = Volume;

    fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn ensure(&self, id: &ResourceId, spec: &VolumeSpec) -> Result<VolumeStatus> {
        let (store, path) = (&self.node.store, self.node.volume(id));
        let room = sal::disk(store)?;
        if spec.size > room {
            return Err(SalError::new(
                Code::PoolFull,
                format!(
                    "volume {id} of {} does not fit into the node's pool of {room}: ask for less",
                    spec.size
                ),
            ));
        }
        if !store.has(&path) {
            store.create(&path)?;
        }
        let (used, limit) = store.usage(&path, Counted::Referenced)?;
        if limit != Some(spec.size) {
            self.resize(id, spec.size, limit)?;
        }
        Ok(VolumeStatus { size: spec.size, used })
    }

    fn observe(&self, id: &ResourceId) -> Result<Option<VolumeStatus>> {
        let path = self.node.volume(id);
        if !self.node.store.has(&path) {
            return Ok(None);
        }
        let (used, limit) = self.node.store.usage(&path, Counted::Referenced)?;
        // Without a limit it is half made: it has no size that anybody asked for.
        Ok(Some(VolumeStatus { size: limit.unwrap_or(Bytes(0)), used }))
    }

    fn delete(&self, id: &ResourceId) -> Result<()> {
        self.node.store.delete(&self.node.volume(id))
    }

    fn list(&self) -> Result<Vec<ResourceId>> {
        let folder = self.node.volumes();
        let names = files::names(&folder)?;
        let mut found: Vec<_> = names
            .iter()
            .filter(|name| self.node.store.has(&folder.join(name)))
            .filter_map(|name| ResourceId::from_file_name(name).ok())
            .collect();
        found.sort();
        Ok(found)
    }
}

impl Driver {
    fn resize(&self, id: &ResourceId, size: Bytes, from: Option<Bytes>) -> Result<()> {
        let (store, path) = (&self.node.store, self.node.volume(id));
        if from.is_some_and(|f| size < f) {
            // What is written but not yet on disk counts too.
            store.sync()?;
            let (used, _) = store.usage(&path, Counted::Referenced)?;
            if used > size {
                return Err(SalError::new(
                    Code::QuotaExceeded,
                    format!(
                        "volume {id} holds {used} and cannot shrink to {size}: remove files first"
                    ),
                ));
            }
        }
        store.limit(&path, Counted::Referenced, size)
    }
}
