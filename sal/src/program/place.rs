//! Where the parts of one program are, and the files that its shim and we speak by.
//!
//! ```text
//!   <state>/run/<kind>s/<file name>/spec.json     the spec that was applied
//!                                   orders.json   what the shim is to do        (we write)
//!                                   state.json    what became of it             (the shim writes)
//!                                   shim.lock     held by the living shim
//!                                   pid           which process it is           (the starter writes)
//!                                   runtime.log   why it did not start          (the starter writes)
//!                                   told.json     which of its ends were told of
//!   <state>/logs/<name>.log, .log.1               what it printed
//!   <pool>/<kind>s/<file name>                    its data
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rhizome_model::{ResourceId, WorkloadKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::life::{Past, Record};
use super::log;
use super::orders::Orders;
use crate::error::{During, Result, shown};
use crate::files;
use crate::node::{NEW, Node};

const RECORD: &str = "state.json";
const RESTART: &str = "restart.json";
const SHIM_LOCK: &str = "shim.lock";

pub(crate) struct Place {
    /// The shim's folder; also for what the program is told by.
    pub dir: PathBuf,
    pub root: PathBuf,
    pub new_root: PathBuf,
    pub log: PathBuf,
    /// It and its resource by one name, which no other program of the node has.
    pub name: String,
}

impl Place {
    pub fn new(node: &Node, kind: WorkloadKind, id: &ResourceId) -> Self {
        let file_name = id.file_name();
        let name = match node.mark.of(kind).prefix() {
            Some(kind) => format!("{kind}.{file_name}"),
            None => file_name.clone(),
        };
        Self {
            dir: node.run(kind).join(&file_name),
            root: node.data(kind).join(&file_name),
            new_root: node.data(kind).join(format!("{NEW}{file_name}")),
            log: node.logs().join(format!("{name}.log")),
            name,
        }
    }

    pub fn applied<S: DeserializeOwned>(&self) -> Option<S> {
        files::read_json(&self.dir.join("spec.json"))
    }

    pub fn write_applied<S: Serialize>(&self, spec: &S) -> Result<()> {
        files::replace_json(&self.dir.join("spec.json"), spec, true)
    }

    /// Where the starter says which process is the program.
    pub fn pid_file(&self) -> PathBuf {
        pid_file(&self.dir)
    }

    /// Where the starter says why there is none: lines of JSON, each with a `msg`.
    pub fn starter_log(&self) -> PathBuf {
        starter_log(&self.dir)
    }

    pub(super) fn orders(&self) -> Option<Orders> {
        files::read_json(&orders_file(&self.dir))
    }

    pub(super) fn write_orders(&self, orders: &Orders) -> Result<()> {
        files::replace_json(&orders_file(&self.dir), orders, false)
    }

    pub(super) fn record(&self) -> Option<Record> {
        files::read_json(&record_file(&self.dir))
    }

    /// The program's process, as far as is known.
    pub fn pid(&self) -> Option<i32> {
        self.record().and_then(|r| r.life.pid())
    }

    /// What a new shim takes over from one that is gone.
    pub fn past(&self) -> Past {
        let now = jiff::Timestamp::now().as_millisecond();
        self.record().map(|r| r.past(now, booted_at())).unwrap_or_default()
    }

    /// What a start on request takes over: no pause, and no failures.
    pub fn past_by_request(&self) -> Past {
        self.record().map(|r| r.past_by_request()).unwrap_or_default()
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

    pub(super) fn remove_logs(&self) -> Result<()> {
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

pub(super) fn pid_file(dir: &Path) -> PathBuf {
    dir.join("pid")
}

pub(super) fn starter_log(dir: &Path) -> PathBuf {
    dir.join("runtime.log")
}

fn lock_file(dir: &Path) -> PathBuf {
    dir.join(SHIM_LOCK)
}

/// Whether a change of the file of this name says that something happened to the program.
pub(super) fn is_telling(name: &str) -> bool {
    name == RECORD || name == SHIM_LOCK
}

/// Takes the shim's lock; `None` while another shim has it. It is the process's own, so neither
/// the starter nor the program inherits it.
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
