//! Who uses a volume.

use std::collections::BTreeMap;
use std::sync::Arc;

use rhizome_model::kind::{Isolation, MachineSpec};
use rhizome_model::{Code, ResourceId, WorkloadKind};

use super::Driver;
use crate::error::{Result, SalError};
use crate::files;
use crate::lock::Lock;
use crate::node::Node;
use crate::program::Programs;

/// A machine that runs, or is about to, with the volume mounted. Machines start only while nobody
/// holds the volume's lock, so the answer stays true for who holds it.
pub(crate) fn user_of(node: &Arc<Node>, volume: &ResourceId) -> Result<Option<ResourceId>> {
    Ok(users_of(node, volume)?.into_iter().map(|user| user.id).next())
}

struct User {
    id: ResourceId,
    isolation: Isolation,
    readonly: bool,
}

fn users_of(node: &Arc<Node>, volume: &ResourceId) -> Result<Vec<User>> {
    let programs = Programs::new(node.clone(), WorkloadKind::Machine);
    let mut users = Vec::new();
    for name in files::names(&node.run(WorkloadKind::Machine))? {
        let Ok(id) = ResourceId::from_file_name(&name) else { continue };
        if id.deployment_id() != volume.deployment_id() {
            continue;
        }
        let place = programs.place(&id);
        let Some(spec) = place.applied::<MachineSpec>() else { continue };
        let mounts = spec.mounts.iter().filter(|m| m.volume == volume.name);
        let Some(readonly) = mounts.map(|m| m.readonly).reduce(|a, b| a && b) else { continue };
        if place.shim().is_some() || programs.cgroups.is_populated(&id) {
            users.push(User { id, isolation: spec.isolation, readonly });
        }
    }
    Ok(users)
}

impl Driver {
    /// Keeps the volumes of a machine as they are while it starts. To a virtual machine a volume is
    /// a disk, and two that write to one disk destroy what is on it.
    pub(super) fn hold_volumes(&self, id: &ResourceId, spec: &MachineSpec) -> Result<Vec<Lock>> {
        let deployment = id.deployment_id();
        let mut locks = Vec::new();
        let mounts: BTreeMap<_, _> = spec.mounts.iter().map(|m| (&m.volume, m)).collect();
        for (name, mount) in mounts {
            let volume = deployment.resource(name.clone());
            let path = self.node.locks().join(format!("volume.{}", volume.file_name()));
            locks.push(match spec.isolation {
                Isolation::Container => Lock::share(&path)?,
                Isolation::Vm => Lock::take(&path)?,
            });
            let clashes = |user: &User| {
                let has_disk = [spec.isolation, user.isolation].contains(&Isolation::Vm);
                user.id != *id && has_disk && !(mount.readonly && user.readonly)
            };
            if let Some(user) = users_of(&self.node, &volume)?.into_iter().find(clashes) {
                return Err(SalError::new(
                    Code::Conflict,
                    format!(
                        "machine {id} mounts volume {volume}, which is a disk that {} uses: give each a volume of its own, or stop the other",
                        user.id
                    ),
                ));
            }
        }
        Ok(locks)
    }
}
