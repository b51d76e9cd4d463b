//! Keeping a program alive, whatever it is: by a shim, a process of its own that outlives ours.
//!
//! ```text
//!   Programs (of one kind) ──orders──▶ shim ──starter──▶ program
//!        ▲                              │
//!        └────────── record ────────────┘
//! ```
//!
//! - A program belongs to a resource; its folders, control groups, namespace and links carry the
//!   resource's id and kind, so that [`Programs::list`] finds what there is of one kind.
//! - Whoever holds the lock of a shim's folder is its shim. Without one the program is lost, unless
//!   it ended for good.
//!
//! Must not know: images, containers, machines.

mod controls;
mod life;
mod log;
mod look;
mod orders;
mod place;
mod run;
mod shim;
mod status;
mod tell;
mod untold;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rhizome_model::{Code, ResourceId, WorkloadKind};
use tokio::sync::mpsc;

use crate::cgroup::Cgroups;
use crate::error::{Result, SalError};
use crate::lock::Lock;
use crate::node::{Mark, NEW, Node};
use crate::workload::Notice;
use crate::{files, net};

pub(crate) use self::controls::Controls;
pub(crate) use self::life::{Past, Stop};
pub(crate) use self::look::Watched;
pub(crate) use self::orders::{Call, Program, Start};
pub(crate) use self::place::Place;
pub(crate) use self::run::{Entry, Waiting, unique};
pub use self::shim::machine_shim_main;
pub use self::untold::Untold;

const STEP: Duration = Duration::from_millis(1);

/// The programs of one kind on one node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Programs {
    pub node: Arc<Node>,
    pub kind: WorkloadKind,
    /// How the kind's namespaces and links are known.
    pub mark: Mark,
    /// The kind's control groups.
    pub cgroups: Cgroups,
}

impl Programs {
    pub fn new(node: Arc<Node>, kind: WorkloadKind) -> Self {
        let mark = node.mark.of(kind);
        let cgroups = match mark.prefix() {
            Some(prefix) => node.cgroups.below(prefix),
            None => node.cgroups.clone(),
        };
        Self { node, kind, mark, cgroups }
    }

    pub fn place(&self, id: &ResourceId) -> Place {
        Place::new(&self.node, self.kind, id)
    }

    /// Everything of this kind, whole or half.
    pub fn list(&self) -> Result<Vec<ResourceId>> {
        let mut found = self.alive()?;
        found.extend(ids_in(self.node.data(self.kind))?);
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// What the kernel holds of this kind, and what we were about to start.
    fn alive(&self) -> Result<Vec<ResourceId>> {
        let mut found = net::list(&self.mark)?;
        found.extend(self.cgroups.list()?);
        found.extend(ids_in(self.run())?);
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Ends a program, and takes away all that there is of it but its data.
    pub fn forget(&self, id: &ResourceId) -> Result<()> {
        let place = self.place(id);
        self.halt(id, Stop::Interrupt)?;
        // Who has neither folder nor link was never there, or has gone as far as that.
        if place.dir.exists() || net::is_attached(&self.mark, id) {
            net::detach(&self.node.config, &self.mark, id)?;
        }
        files::remove_folder(&place.dir)?;
        place.remove_logs()
    }

    pub fn untold(&self, id: &ResourceId) -> Result<Option<Untold>> {
        untold::untold(self.place(id))
    }

    /// Notices from now on what programs come to by themselves.
    pub fn watch(&self) -> Result<mpsc::Receiver<Notice>> {
        watch::watch(self.clone())
    }

    fn run(&self) -> PathBuf {
        self.node.run(self.kind)
    }
}

fn ids_in(folder: PathBuf) -> Result<Vec<ResourceId>> {
    let names = files::names(&folder)?.into_iter();
    Ok(names
        .flat_map(|name| ResourceId::from_file_name(name.strip_prefix(NEW).unwrap_or(&name)))
        .collect())
}

/// Ends all programs of a node and takes away what the kernel holds of them.
pub(crate) fn stop_all(node: &Arc<Node>) -> Result<()> {
    const AT_ONCE: usize = 8;
    let mut all = Vec::new();
    for kind in WorkloadKind::ALL {
        let programs = Programs::new(node.clone(), *kind);
        all.extend(programs.alive()?.into_iter().map(|id| (programs.clone(), id)));
    }
    let next = Mutex::new(all.into_iter());
    let work = || {
        loop {
            let next = next.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((programs, id)) = next else { return Ok(()) };
            let lock = format!("{}.{}", programs.kind, id.file_name());
            let _lock = Lock::take(&node.locks().join(lock))?;
            programs.halt(&id, Stop::Interrupt)?;
            net::detach(&node.config, &programs.mark, &id)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let mut done = Ok(());
        for thread in threads {
            done = done.and(thread.join().unwrap_or_else(|_| {
                Err(SalError::new(Code::Internal, "stopping the programs broke off"))
            }));
        }
        done
    })
}
