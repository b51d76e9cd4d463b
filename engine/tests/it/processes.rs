//! The processes that sandboxes are made of, as the kernel shows them. Each test is a process of its
//! own, so all of its children are sandboxes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_engine::Sandboxes;
use tokio_util::sync::CancellationToken;

use crate::support::{Fake, script};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Zygote,
    /// Its cage is closed as far as it can be without the limits of an evaluation.
    Spare,
    Evaluates,
}

/// A process that has just been forked looks like the zygote, and is nothing for a moment after that.
fn role(pid: u32) -> Option<Role> {
    // The zygote has one of its own, its children have more.
    let filters = filters(pid)?.checked_sub(filters(std::process::id())?)?;
    let files = limit(pid, "Max open files")?;
    match (filters, files.as_str()) {
        (2.., "0") => Some(Role::Evaluates),
        (2.., _) => is_watched(pid).then_some(Role::Spare),
        (1, _) => Some(Role::Zygote),
        (0, _) => None,
    }
}

/// How many filters of system calls a process has.
fn filters(pid: u32) -> Option<u32> {
    status(pid)?.get("Seccomp_filters")?.parse().ok()
}

/// Whether a descriptor of ours stands for it: then it is not only there, but kept for the next who
/// asks. (The tests have one thread: whoever opened it has done what follows, too.)
fn is_watched(pid: u32) -> bool {
    let line = format!("Pid:\t{pid}\n");
    let of = |e: std::io::Result<fs::DirEntry>| fs::read_to_string(e.ok()?.path()).ok();
    fs::read_dir("/proc/self/fdinfo").unwrap().filter_map(of).any(|info| info.contains(&line))
}

pub fn children() -> Vec<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok());
    let own = std::process::id().to_string();
    // Others come and go meanwhile.
    let is_ours = |pid: &u32| status(*pid).is_some_and(|status| status["PPid"] == own);
    pids.filter_map(|name| name.parse().ok()).filter(is_ours).collect()
}

/// None when it is gone.
pub fn status(pid: u32) -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Some(lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect())
}

/// The hard limit.
pub fn limit(pid: u32, name: &str) -> Option<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().nth(1).map(str::to_owned)
}

pub fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begin.elapsed() < PATIENCE, "{what}: {:?}", children());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The zygote and the child that waits, when there is nothing else.
pub async fn calm() -> (u32, u32) {
    until("no child waits", || {
        let mut all: Vec<_> = children().into_iter().map(|pid| (role(pid), pid)).collect();
        all.sort_unstable();
        match all.as_slice() {
            [(Some(Role::Zygote), zygote), (Some(Role::Spare), spare)] => Some((*zygote, *spare)),
            _ => None,
        }
    })
    .await
}

/// The children that evaluate, when there are so many.
pub async fn evaluating(count: usize) -> Vec<u32> {
    until("they do not evaluate", || Some(those(Role::Evaluates)).filter(|all| all.len() == count))
        .await
}

/// The child that waits, beside whatever others do.
pub async fn waiting() -> u32 {
    until("no child waits", || those(Role::Spare).first().copied()).await
}

fn those(wanted: Role) -> Vec<u32> {
    children().into_iter().filter(|pid| role(*pid) == Some(wanted)).collect()
}

/// Reaped, too.
pub async fn is_gone(pid: u32) {
    until(&format!("{pid} lives on, or was not reaped"), || {
        (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(())
    })
    .await;
}

/// Dead; whoever has it now may not have reaped it.
pub async fn has_ended(pid: u32) {
    until(&format!("{pid} lives on"), || match status(pid) {
        None => Some(()),
        Some(status) => status["State"].starts_with('Z').then_some(()),
    })
    .await;
}

/// Does this while a child evaluates, which is then given up.
pub async fn while_evaluating<T>(sandboxes: &Sandboxes, act: impl FnOnce(u32) -> T) -> T {
    let host = Fake { stuck: BTreeSet::from(["data"]), ..Fake::default() };
    let script = script(STUCK);
    let evaluation = sandboxes.evaluate(&script, &host, CancellationToken::new());
    let child = async {
        until("it asks nothing", || host.asked().iter().find(|a| a.starts_with("read")).cloned())
            .await;
        act(evaluating(1).await[0])
    };
    tokio::select! {
        ended = evaluation => panic!("{ended:?}"),
        acted = child => acted,
    }
}

/// Waits for ever for a host on which `data` is stuck.
pub const STUCK: &str = "let v = volume(\"data\", #{ size: \"1MiB\" }); v.used";
