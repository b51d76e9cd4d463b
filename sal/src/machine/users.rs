//! Who uses a volume.

use std::sync::Arc;

use rhizome_model::kind::MachineSpec;
use rhizome_model::{ResourceId, WorkloadKind};

use super::Driver;
use crate::error::Result;
use crate::files;
use crate::lock::Lock;
use crate::node::Node;
use crate::program::Programs;

/// A machine that runs, or is about to, with the volume mounted. Machines start only while nobody
/// holds the volume's lock, so the answer stays true for who holds it.
pub(crate) fn user_of(node: &Arc<Node>, volume: &ResourceId) -> Result<Option<ResourceId>> {
    let programs = Programs::new(node.clone(), WorkloadKind::Machine);
    for name in files::names(&node.run(WorkloadKind::Machine))? {
        let Ok(id) = ResourceId::from_file_name(&name) else { continue };
        if id.deployment_id() != volume.deployment_id() {
            continue;
        }
        let place = programs.place(&id);
        let mounts = place
            .applied()
            .is_some_and(|s: MachineSpec| s.mounts.iter().any(|m| m.volume == volume.name));
        if mounts && (place.shim().is_some() || programs.cgroups.is_populated(&id)) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

impl Driver {
    /// Keeps the volumes of a machine as they are while it starts.
    pub(super) fn share_volumes(&self, id: &ResourceId, spec: &MachineSpec) -> Result<Vec<Lock>> {
        let mut names: Vec<_> = spec.mounts.iter().map(|m| &m.volume).collect();
        names.sort();
        names.dedup();
        let deployment = id.deployment_id();
        let lock = |name: &rhizome_model::Name| {
            let volume = deployment.resource(name.clone());
            Lock::share(&self.node.locks().join(format!("volume.{}", volume.file_name())))
        };
        names.into_iter().map(lock).collect()
    }
}
