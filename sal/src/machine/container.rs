//! A machine that is a container.

use std::path::Path;

use rhizome_model::ResourceId;
use rhizome_model::kind::MachineSpec;

use super::Driver;
use crate::btrfs::Counted;
use crate::error::Result;
use crate::oci::{Bind, Bundle, Limits, Runtime};
use crate::program::{Place, Program};

impl Driver {
    /// Writes the bundle; what is to be kept alive is the container of it.
    pub(super) fn container(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
    ) -> Result<Program> {
        self.write_bundle(id, place, spec)?;
        let what = format!("run '{}'", spec.command.join(" "));
        Ok(Runtime::find(&self.node)?.container(place, what, spec.restart))
    }

    /// Takes a changed spec over while it runs: limits, disk, restart policy.
    pub(super) fn adjust_container(
        &self,
        id: &ResourceId,
        place: &Place,
        old: &MachineSpec,
        new: &MachineSpec,
    ) -> Result<()> {
        if new.disk != old.disk {
            self.node.store.limit(&place.root, Counted::Own, new.disk)?;
        }
        self.write_bundle(id, place, new)?;
        if limits(new) != limits(old) && place.pid().is_some() {
            Runtime::find(&self.node)?.update(place, &limits(new))?;
        }
        if new.restart != old.restart {
            self.programs.set_restart(id, new.restart)?;
        }
        place.write_applied(new)
    }

    fn write_bundle(&self, id: &ResourceId, place: &Place, spec: &MachineSpec) -> Result<()> {
        let bundle = Bundle {
            args: spec.command.clone(),
            env: spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect(),
            workdir: spec.workdir.clone(),
            hostname: id.name.to_string(),
            root: place.root.clone(),
            is_root_readonly: false,
            user: 0,
            netns: Path::new("/run/netns").join(self.programs.mark.netns(id)),
            cgroup: self.programs.cgroups.of_machine(id),
            mounts: self.mounts(id, spec),
            limits: limits(spec),
        };
        bundle.write(&place.dir)
    }

    pub(super) fn mounts(&self, id: &ResourceId, spec: &MachineSpec) -> Vec<Bind> {
        let deployment = id.deployment_id();
        let mounts = spec.mounts.iter().map(|mount| Bind {
            source: self.node.volume(&deployment.resource(mount.volume.clone())),
            path: mount.path.clone(),
            readonly: mount.readonly,
        });
        mounts.collect()
    }
}

pub(super) fn limits(spec: &MachineSpec) -> Limits {
    Limits { cpu: spec.cpu, memory: spec.memory, pids: spec.pids }
}
