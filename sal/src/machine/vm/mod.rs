//! A machine that is a virtual machine.
//!
//! ```text
//!   images ──clones──▶ <pool>/machines/…/{root,NAME}.raw, kernel, initramfs ─┐
//!   volumes ─────────▶ <pool>/volumes/…/disk.raw ────────────────────────────┼─▶ vm.json ─▶ hypervisor
//!   spec ────────────▶ cidata.raw (address, hostname, env, keys, mounts) ────┤
//!   TAP ─────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Disks are as large as declared and are counted so: btrfs limits none of them, as it counts an
//! extent that is written again twice for a while.

mod disks;
mod payload;
mod seed;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::kind::{Boot, Isolation, MachineSpec, Ready};
use rhizome_model::{Code, ResourceId, resource_address};

pub(super) use self::disks::NewDisk;
pub(crate) use self::disks::VOLUME_DISK;
use super::Driver;
use crate::cgroup::Confined;
use crate::error::{Result, SalError};
use crate::net::{self, Mac};
use crate::program::{Call, Place, Program, Start, Stop};
use crate::sal;
use crate::vm::{self, Choice, Net, SERIAL, Vm, VmConfig};

/// From the power button until it is killed.
const GRACE_MS: u64 = 20_000;
/// What starting a hypervisor takes at most, besides what the guest takes.
const START_MS: u64 = 90_000;
/// What `rhizome logs` shows.
const CONSOLE: &str = "console=ttyS0";

impl Driver {
    /// What can be known to fail before anything is made.
    pub(super) fn check_vm(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
    ) -> Result<()> {
        choose()?;
        let room = sal::memory()?;
        if spec.vm_memory() > room {
            return Err(SalError::new(
                Code::InsufficientCapacity,
                format!(
                    "machine {id} needs {} with its hypervisor, and the node has {room}: ask for less",
                    spec.vm_memory()
                ),
            ));
        }
        self.check_payload(place, boot(id, spec)?)
    }

    /// Writes what the hypervisor is told; what is to be kept alive is the hypervisor.
    pub(super) fn vm(&self, id: &ResourceId, place: &Place, spec: &MachineSpec) -> Result<Program> {
        let boot = boot(id, spec)?;
        self.copy_payload(place, boot)?;
        self.grow_disks(id, place, spec)?;
        self.write_seed(id, place, spec)?;
        vm::clear(&place.dir)?;
        let Confined { group, limits } =
            self.programs.cgroups.confine(id, spec.cpu, spec.vm_memory())?;
        let config = VmConfig { groups: limits, ..self.config(id, place, spec, boot)? };
        crate::files::replace_json(&place.dir.join("vm.json"), &config, false)?;
        let machine_vm = |verb: &str| {
            Call::new(&self.node.config.program).arg("machine-vm").arg(verb).arg(&place.dir)
        };
        Ok(Program {
            what: "boot".to_owned(),
            start: Start::MachineVm { group },
            start_timeout_ms: config.ready_ms + START_MS,
            stop: Some(machine_vm("power")),
            grace_ms: GRACE_MS,
            verdict: Some(machine_vm("ended")),
            becoming: None,
            serial: Some(SERIAL.to_owned()),
            clears: Vec::new(),
            restart: spec.restart,
        })
    }

    fn config(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
        boot: &Boot,
    ) -> Result<VmConfig> {
        let choice = choose()?;
        let address = resource_address(self.node.config.address, id);
        let config = VmConfig {
            name: id.to_string(),
            uuid: vm::uuid_of(&format!("{} {id}", self.node.config.key)),
            program: choice.program,
            driver: choice.driver,
            kernel: payload::kernel(place),
            initramfs: boot.initramfs.as_ref().map(|_| payload::initramfs(place)),
            cmdline: cmdline(&boot.cmdline),
            vcpus: spec.vcpus(),
            memory: spec.memory.0,
            disks: self.disks(id, place, spec),
            net: Some(Net {
                tap: self.programs.mark.link(id),
                mac: Mac::of(address).to_string(),
                mtu: net::MTU as u16,
            }),
            ready: match boot.ready {
                Ready::Address => vm::Ready::Address { address },
                Ready::Started => vm::Ready::Started,
            },
            ready_ms: u64::from(boot.timeout) * 1000,
            disk_folders: Vec::new(),
            groups: Vec::new(),
        };
        config.check()?;
        Ok(config)
    }

    /// Takes a changed spec over. What a hypervisor cannot change while it runs has the guest
    /// started again, on the same disks.
    pub(super) fn adjust_vm(
        &self,
        id: &ResourceId,
        place: &Place,
        old: &MachineSpec,
        new: &MachineSpec,
    ) -> Result<()> {
        let in_place = MachineSpec { cpu: new.cpu, restart: new.restart, ..old.clone() };
        if place.shim().is_none() {
            return place.write_applied(new);
        }
        if in_place != *new || old.vcpus() != new.vcpus() {
            // Of a shim that has come to its end.
            self.programs.halt(id, Stop::Interrupt)?;
            return self.bring_up(id, place, new, None, place.past());
        }
        if new.cpu != old.cpu && place.pid().is_some() {
            self.programs.cgroups.limit(id, new.cpu, new.vm_memory())?;
        }
        if new.restart != old.restart {
            self.programs.set_restart(id, new.restart)?;
        }
        place.write_applied(new)
    }

    /// Why a hypervisor that runs is of no use, if it is.
    pub(super) fn hang(&self, place: &Place) -> Option<String> {
        let error = Vm::open(&place.dir).and_then(|vm| vm.ping()).err()?;
        // One that is just ending listens no more, and is seen to by its shim.
        (error.code() == Code::TimedOut).then(|| format!("its hypervisor does not answer: {error}"))
    }

    /// Ends a hypervisor that does not hear.
    pub(super) fn end_hung(&self, id: &ResourceId, place: &Place) -> Result<()> {
        if let Some(pid) = place.pid() {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.programs.cgroups.clear(id)
    }
}

/// Which hypervisor the node has, in the words of a status.
pub(super) fn driver() -> String {
    choose().map(|choice| choice.to_string()).unwrap_or_default()
}

/// Or why the node has none.
pub(super) fn works_with() -> String {
    match choose() {
        Ok(choice) => format!("{choice} ({})", choice.program.display()),
        Err(error) => error.to_string(),
    }
}

fn choose() -> Result<Choice> {
    vm::choose(&vm::Programs::from_env()?)
}

fn boot<'a>(id: &ResourceId, spec: &'a MachineSpec) -> Result<&'a Boot> {
    spec.boot.as_ref().ok_or_else(|| {
        SalError::new(Code::InvalidSpec, format!("machine {id}: boot: a virtual machine needs it"))
    })
}

/// Whether it is a virtual machine that writes to nothing but its own disks.
pub(super) fn is_apart(spec: &MachineSpec) -> bool {
    spec.isolation == Isolation::Vm && spec.mounts.iter().all(|mount| mount.readonly)
}

fn cmdline(given: &str) -> String {
    match given.split_whitespace().any(|word| word.starts_with("console=")) {
        true => given.to_owned(),
        false => format!("{given} {CONSOLE}").trim_start().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_prints_goes_to_the_log_unless_it_is_told_otherwise() {
        assert_eq!(cmdline(""), "console=ttyS0");
        assert_eq!(cmdline("root=/dev/vda1 quiet"), "root=/dev/vda1 quiet console=ttyS0");
        assert_eq!(cmdline("console=hvc0 quiet"), "console=hvc0 quiet");
    }
}
