//! Noticing what programs come to by themselves, at once.
//!
//! The kernel tells of two things in a program's folder: that its shim has written a new record, and
//! that its lock was let go of by the one process that may write it, which is the end of the shim.

use std::collections::HashMap;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use rhizome_model::ResourceId;
use tokio::sync::mpsc;

use super::life::{Life, Record};
use super::{Programs, place};
use crate::error::{During, Result, shown};
use crate::files;
use crate::workload::Notice;

/// Notices that wait for the one who asked for them.
const BACKLOG: usize = 256;
/// Whether there is still somebody who listens is looked at this often.
const LISTENS_MS: u16 = 1_000;

pub(super) fn watch(programs: Programs) -> Result<mpsc::Receiver<Notice>> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .during("watch the programs")?;
    let name = format!("{}s", programs.kind);
    let mut watcher =
        Watcher { programs, inotify, sender, folders: HashMap::new(), said: HashMap::new() };
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            if let Err(error) = watcher.run() {
                tracing::warn!(%error, "what programs come to is noticed only every minute now");
            }
        })
        .during("start watching the programs")?;
    Ok(receiver)
}

struct Watcher {
    programs: Programs,
    inotify: Inotify,
    sender: mpsc::Sender<Notice>,
    folders: HashMap<WatchDescriptor, ResourceId>,
    said: HashMap<ResourceId, String>,
}

impl Watcher {
    fn run(&mut self) -> Result<()> {
        self.look_at_all()?;
        while !self.sender.is_closed() {
            let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            match nix::poll::poll(&mut fds, LISTENS_MS) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                other => other.during("wait for the programs")?,
            };
            for event in self.inotify.read_events().during("hear of the programs")? {
                self.hear(&event)?;
            }
        }
        Ok(())
    }

    fn hear(&mut self, event: &InotifyEvent) -> Result<()> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return self.look_at_all();
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            if let Some(gone) = self.folders.remove(&event.wd) {
                self.said.remove(&gone);
            }
            return Ok(());
        }
        let name = event.name.as_deref().and_then(|n| n.to_str()).unwrap_or_default();
        match self.folders.get(&event.wd).cloned() {
            Some(id) if place::is_telling(name) => self.look_at(&id),
            Some(_) => {}
            None => self.follow(name),
        }
        Ok(())
    }

    fn look_at_all(&mut self) -> Result<()> {
        let run = self.programs.run();
        files::make_folder(&run)?;
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        self.inotify.add_watch(&run, flags).during(format_args!("watch {}", shown(&run)))?;
        files::names(&run)?.iter().for_each(|name| self.follow(name));
        Ok(())
    }

    fn follow(&mut self, name: &str) {
        let Ok(id) = ResourceId::from_file_name(name) else { return };
        let flags =
            AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        // It may be gone already.
        let Ok(folder) = self.inotify.add_watch(&self.programs.run().join(name), flags) else {
            return;
        };
        self.folders.insert(folder, id.clone());
        self.look_at(&id);
    }

    fn look_at(&mut self, id: &ResourceId) {
        let place = self.programs.place(id);
        let Some(record) = place.record() else { return };
        let Some(what) = news(&record, place.shim().is_some()) else { return };
        if self.said.get(id) == Some(&what) {
            return;
        }
        self.said.insert(id.clone(), what.clone());
        // It waits for who listens, who may be gone meanwhile.
        let _ = self.sender.blocking_send(Notice { id: id.clone(), what });
    }
}

/// What is worth to be told of a record: not the first start, nor what somebody asked for.
fn news(record: &Record, watched: bool) -> Option<String> {
    let Record { run, restarts, failures, .. } = record;
    match &record.life {
        Life::BackingOff { .. } if watched => Some(format!("{run} waits after {restarts}")),
        Life::Running { .. } if watched && *failures > 0 => Some(format!("{run} runs {restarts}")),
        Life::Exited { .. } | Life::Failed { .. } => Some(format!("{run} ended")),
        Life::Stopped | Life::Interrupted => None,
        Life::Starting { .. }
        | Life::Running { .. }
        | Life::Stopping { .. }
        | Life::BackingOff { .. }
            if !watched =>
        {
            Some(format!("{run} is lost"))
        }
        Life::Starting { .. }
        | Life::Running { .. }
        | Life::Stopping { .. }
        | Life::BackingOff { .. } => None,
    }
}
