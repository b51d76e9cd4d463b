//! Where the parts of one machine are, and the files that its shim and we speak by.
//!
//! ```text
//!   <state>/run/machines/<file name>/config.json   the OCI bundle
//!                                    spec.json     the spec that was applied
//!                                    orders.json   what the shim is to do        (we write)
//!                                    state.json    what became of it             (the shim writes)
//!                                    shim.lock     held by the living shim
//!   <state>/logs/<file name>.log, .log.1           what the machine printed
//!   <pool>/machines/<file name>                    its root file system
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rhizome_model::ResourceId;
use rhizome_model::kind::{MachineSpec, Restart};
use serde::{Deserialize, Serialize};

use super::life::{Record, Stop};
use super::log;
use crate::error::{During, Result, shown};
use crate::files;
use crate::node::Node;

/// What a shim is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Orders {
    /// Names this run: a shim of another run has nothing to do any more.
    pub run: String,
    /// The runtime's program.
    pub runtime: PathBuf,
    pub runtime_root: PathBuf,
    pub container: String,
    pub restart: Restart,
    pub log: PathBuf,
    /// The control group that the shim joins.
    pub cgroup: PathBuf,
    /// Counts how often the container ran out of memory.
    pub oom: PathBuf,
    /// How often it was started again before this run.
    pub restarts: u32,
    /// Written before the shim is signalled: who comes next must not take the machine for one that
    /// stays, though the signal is still under way.
    #[serde(default)]
    pub stop: Option<Stop>,
}

pub(super) struct Place {
    /// The bundle, and the shim's folder.
    pub dir: PathBuf,
    pub root: PathBuf,
    pub new_root: PathBuf,
    pub log: PathBuf,
    pub container: String,
    pub runtime_state: PathBuf,
}

impl Place {
    pub fn new(node: &Node, id: &ResourceId) -> Self {
        let name = id.file_name();
        Self {
            dir: node.run().join(&name),
            root: node.machines().join(&name),
            new_root: node.machines().join(format!(".new-{name}")),
            log: node.logs().join(format!("{name}.log")),
            runtime_state: node.runtime_root().join(&name),
            container: name,
        }
    }

    pub fn applied(&self) -> Option<MachineSpec> {
        files::read_json(&self.dir.join("spec.json"))
    }

    pub fn write_applied(&self, spec: &MachineSpec) -> Result<()> {
        files::replace_json(&self.dir.join("spec.json"), spec, true)
    }

    pub fn orders(&self) -> Option<Orders> {
        files::read_json(&orders_file(&self.dir))
    }

    pub fn write_orders(&self, orders: &Orders) -> Result<()> {
        files::replace_json(&orders_file(&self.dir), orders, false)
    }

    pub fn record(&self) -> Option<Record> {
        files::read_json(&record_file(&self.dir))
    }

    /// The living shim: the kernel knows who holds its lock.
    pub fn shim(&self) -> Option<i32> {
        let file = File::options().read(true).write(true).open(lock_file(&self.dir)).ok()?;
        let mut question = whole_file();
        fcntl(&file, FcntlArg::F_GETLK(&mut question)).ok()?;
        (i32::from(question.l_type) != libc::F_UNLCK).then_some(question.l_pid)
    }

    pub fn remove_logs(&self) -> Result<()> {
        files::remove(&self.log)?;
        files::remove(&log::rotated(&self.log))
    }
}

pub(super) fn orders_file(dir: &Path) -> PathBuf {
    dir.join("orders.json")
}

pub(super) fn record_file(dir: &Path) -> PathBuf {
    dir.join("state.json")
}

fn lock_file(dir: &Path) -> PathBuf {
    dir.join("shim.lock")
}

/// Takes the shim's lock; `None` while another shim has it. It is the process's own, so neither
/// the runtime nor the container inherits it.
pub(super) fn take_shim_lock(dir: &Path) -> Result<Option<File>> {
    let path = lock_file(dir);
    let file = File::options().create(true).append(true).read(true).open(&path);
    let file = file.during(format_args!("open {}", shown(&path)))?;
    match fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
        Ok(_) => Ok(Some(file)),
        Err(nix::errno::Errno::EACCES | nix::errno::Errno::EAGAIN) => Ok(None),
        Err(e) => Err(e).during(format_args!("lock {}", shown(&path))),
    }
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
