//! `volume`: a btrfs subvolume `<pool>/volumes/ACCOUNT.DEPLOYMENT.NAME` whose size btrfs enforces, with
//! its snapshots.

mod snapshots;

use std::fs;
use std::sync::Arc;

use rhizome_model::kind::{Change, Volume, VolumeSpec, VolumeStatus, change};
use rhizome_model::{Action, Bytes, Code, Done, Drift, Drifted, Repair, ResourceId};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::btrfs::Counted;
use crate::error::{During, Result, SalError, shown};
use crate::files;
use crate::machine::VOLUME_DISK;
use crate::node::{NEW, Node};
use crate::sal;
use crate::workload::{Found, Sink, no_such_action};

pub(crate) struct Driver {
    node: Arc<Node>,
}

impl crate::workload::Driver for Driver {
    type Kind = Volume;

    fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn ensure(&self, id: &ResourceId, spec: &VolumeSpec) -> Result<(VolumeStatus, Done)> {
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
        // Of one that was broken off, here or in a restore.
        store.delete(&self.node.new_volume(id))?;
        if !store.has(&path) {
            self.make(id)?;
        }
        let (used, limit) = store.usage(&path, Counted::Referenced)?;
        // Without a limit it is half made, by this call or by one that broke off.
        let done = match limit.map(|size| change::<Volume>(&VolumeSpec { size }, spec)) {
            None => Done::Created,
            Some(Change::None) => Done::Unchanged,
            Some(Change::Update(_)) => Done::Updated,
            Some(Change::Replace { reason, .. }) => {
                let message = format!("volume {id} would lose what it holds: {reason}");
                return Err(SalError::new(Code::InvalidSpec, message));
            }
        };
        if done != Done::Unchanged {
            store.limit(&path, Counted::Referenced, spec.size)?;
        }
        Ok((self.status(id, spec.size, used)?, done))
    }

    fn applied(&self, id: &ResourceId) -> Result<Option<VolumeSpec>> {
        let path = self.node.volume(id);
        if !self.node.store.has(&path) {
            return Ok(None);
        }
        let (_, limit) = self.node.store.usage(&path, Counted::Referenced)?;
        Ok(limit.map(|size| VolumeSpec { size }))
    }

    fn observe(&self, id: &ResourceId) -> Result<Option<VolumeStatus>> {
        let path = self.node.volume(id);
        if !self.node.store.has(&path) {
            return Ok(None);
        }
        let (used, limit) = self.node.store.usage(&path, Counted::Referenced)?;
        // Without a limit it is half made: it has no size that anybody asked for.
        self.status(id, limit.unwrap_or(Bytes(0)), used).map(Some)
    }

    fn delete(&self, id: &ResourceId) -> Result<()> {
        let (store, path) = (&self.node.store, self.node.volume(id));
        self.drop_snapshots(id)?;
        store.delete(&self.node.new_volume(id))?;
        store.delete(&path)?;
        store.forget_room(&path)
    }

    fn drift(&self, id: &ResourceId, spec: &VolumeSpec) -> Result<Vec<Found>> {
        let (store, path) = (&self.node.store, self.node.volume(id));
        if !store.has(&path) {
            let cause = "its subvolume is gone, and with it what was in it";
            return Ok(vec![Found::new(Drift::Missing, cause)]);
        }
        let (_, limit) = store.usage(&path, Counted::Referenced)?;
        let is = |limit: Bytes| format!("it may grow to {limit}, not to {}", spec.size);
        Ok(match limit {
            Some(limit) if limit == spec.size => Vec::new(),
            Some(limit) => vec![Found::new(Drift::Limit, is(limit))],
            None => vec![Found::new(Drift::Limit, "it has no limit")],
        })
    }

    fn mend(&self, id: &ResourceId, spec: &VolumeSpec, found: Found) -> Result<Drifted> {
        let action = if found.drift == Drift::Missing { Repair::Made } else { Repair::Restored };
        crate::workload::Driver::ensure(self, id, spec)?;
        Ok(found.and_done(action))
    }

    fn list(&self) -> Result<Vec<ResourceId>> {
        let folder = self.node.volumes();
        let is_ours = |name: &String| self.node.store.has(&folder.join(name));
        let names = files::names(&folder)?.into_iter().filter(is_ours);
        let names = names.chain(files::names(&self.node.snapshots())?);
        let mut found: Vec<_> = names
            .filter_map(|name| {
                ResourceId::from_file_name(name.strip_prefix(NEW).unwrap_or(&name)).ok()
            })
            .collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    fn changes(action: &Action) -> bool {
        matches!(
            action,
            Action::Snapshot { .. } | Action::Restore { .. } | Action::DropSnapshot { .. }
        )
    }

    fn act(
        &self,
        id: &ResourceId,
        action: &Action,
        by: &str,
        _: Sink<'_>,
        _: &CancellationToken,
    ) -> Result<Value> {
        match action {
            Action::Snapshot { name } => self.take_snapshot(id, name, by),
            Action::Restore { name } => self.restore(id, name, by),
            Action::DropSnapshot { name } => self.drop_snapshot(id, name),
            _ => Err(no_such_action(id, action)),
        }
    }
}

impl Driver {
    /// It has its name when it counts.
    fn make(&self, id: &ResourceId) -> Result<()> {
        let (store, path, new) = (&self.node.store, self.node.volume(id), self.node.new_volume(id));
        store.forget_room(&path)?;
        store.create(&new)?;
        store.count_with(&new, &path)?;
        fs::rename(&new, &path).during(format_args!("name {}", shown(&path)))
    }

    fn status(&self, id: &ResourceId, size: Bytes, used: Bytes) -> Result<VolumeStatus> {
        let path = self.node.volume(id);
        let empty = files::is_empty(&path)?;
        let disk = fs::metadata(path.join(VOLUME_DISK)).ok().map(|meta| Bytes(meta.len()));
        Ok(VolumeStatus { size, used, empty, snapshots: self.snapshots(id)?, disk })
    }
}
