//! Where the parts of one machine are, and the files that its shim and we speak by.
//!
//! ```text
//!   <state>/run/machines/<file name>/config.json   the OCI bundle
//!                                    spec.json     the spec that was applied
//!                                    orders.json   what the shim is to do        (we write)
//!                                    state.json    what became of it             (the shim writes)
//!                                    shim.lock     held by the living shim
//!                                    told.json     which of its ends were told of
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

use super::life::{Past, Record, Stop};
use super::log;
use crate::error::{During, Result, shown};
use crate::files;
use crate::node::Node;

const RECORD: &str = "state.json";
const RESTART: &str = "restart.json";
const SHIM_LOCK: &str = "shim.lock";

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
    /// What was before this run.
    #[serde(default)]
    pub past: Past,
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

    /// What a new shim takes over from one that is gone.
    pub fn past(&self) -> Past {
        let now = jiff::Timestamp::now().as_millisecond();
        self.record().map(|r| r.past(now, booted_at())).unwrap_or_default()
    }

    /// The living shim: the kernel knows who holds its lock.
    pub fn shim(&self) -> Option<i32> {
        // Only to read: who watches for the end of a shim sees a writer of this file go.
        let file = File::open(lock_file(&self.dir)).ok()?;
        let mut question = whole_file();
        fcntl(&file, FcntlArg::F_GETLK(&mut question)).ok()?;
        (i32::from(question.l_type) != libc::F_UNLCK).then_some(question.l_pid)
    }

    /// Notes that a restart has come as far as the end of what ran: asked for again, only the start
    /// is left.
    pub fn note_restart(&self, by: &str) -> Result<()> {
        files::replace_json(&self.dir.join(RESTART), &by, true)
    }

    pub fn is_restarted_by(&self, by: &str) -> bool {
        files::read_json::<String>(&self.dir.join(RESTART)).as_deref() == Some(by)
    }

    pub fn remove_logs(&self) -> Result<()> {
        files::remove(&self.log)?;
        files::remove(&log::rotated(&self.log))
    }
}

/// When the node was booted, in Unix milliseconds; 0 where the kernel does not say.
pub(super) fn booted_at() -> i64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let seconds = text.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<i64>().ok());
    seconds.map_or(0, |s| s.saturating_mul(1000))
}

pub(super) fn orders_file(dir: &Path) -> PathBuf {
    dir.join("orders.json")
}

pub(super) fn record_file(dir: &Path) -> PathBuf {
    dir.join(RECORD)
}

fn lock_file(dir: &Path) -> PathBuf {
    dir.join(SHIM_LOCK)
}

/// Whether a change of the file of this name says that something happened to the machine.
pub(super) fn is_telling(name: &str) -> bool {
    name == RECORD || name == SHIM_LOCK
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
