//! The fence around a runner: when it is dead or lost, nothing that it started runs any more.
//!
//! ```text
//!   <groups>/RUNNER    the runner, its sandboxes, the tools that it waits for
//! ```
//!
//! Each runner begins in a control group of its own, which whatever it starts inherits. Ending the
//! group means: kill until it is empty. Only then may the runner's jobs be given to others, and when
//! they were, the group is removed: one that is there is a runner with which somebody is not done. A
//! machine's shim leaves the group before it goes to the background, so machines live on.
//!
//! Where no group can be made, the runner's process group is killed instead. That misses what made
//! a process group of its own: sandboxes, which die with their parent anyway.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

/// A process that is killed is gone at once, unless the kernel holds it; then we say so this often.
const COMPLAIN: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_micros(200);
const LATE: Duration = Duration::from_millis(20);

/// The groups of all runners of a node.
#[derive(Debug)]
pub struct Groups {
    folder: Option<PathBuf>,
}

impl Groups {
    /// Makes the folder of the groups, or goes without.
    pub fn open(folder: Option<PathBuf>) -> Self {
        let made = folder.map(|f| prove(&f).map(|()| f)).transpose();
        let folder = made.unwrap_or_else(|error| {
            tracing::warn!(%error, "runners get no control groups: a process group is killed instead");
            None
        });
        Self { folder }
    }

    /// Has the command begin in the group of a runner.
    pub fn enclose(&self, command: &mut Command, runner: &str) -> io::Result<()> {
        let Some(group) = self.group(runner) else { return Ok(()) };
        let join = joining(&group)?;
        // SAFETY: one system call on a file that is open already.
        unsafe { command.pre_exec(join) };
        Ok(())
    }

    /// The runners whose groups are there: before we start any, those of a supervisor before us.
    pub fn left_behind(&self) -> Vec<String> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let names =
            children(folder).into_iter().filter_map(|g| Some(g.file_name()?.to_str()?.to_owned()));
        names.filter(|name| self.group(name).is_some()).collect()
    }

    pub fn is_empty(&self, runner: &str) -> bool {
        self.group(runner).is_none_or(|group| members(&group).is_empty())
    }

    /// Kills what is left of a runner and returns when nothing of it runs, however long that takes:
    /// until then its jobs must not be another's. `pid` is the runner's own, if it is a child of ours.
    pub async fn end(&self, runner: &str, pid: Option<u32>) {
        let Some(group) = self.group(runner) else {
            if let Some(pid) = pid.and_then(|p| i32::try_from(p).ok()).filter(|p| *p > 1) {
                // Gone already when it was the last of its group.
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            return;
        };
        let (mut pause, mut complained) = (LOOK, Instant::now());
        loop {
            let processes = members(&group);
            if processes.is_empty() {
                return;
            }
            kill_all(&group, &processes);
            if complained.elapsed() > COMPLAIN {
                complained = Instant::now();
                tracing::error!(
                    runner,
                    ?processes,
                    "what is left of a runner does not end though it is killed"
                );
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LATE);
        }
    }

    /// Removes the group of a runner that has ended.
    pub async fn remove(&self, runner: &str) {
        let Some(group) = self.group(runner) else { return };
        let mut pause = LOOK;
        while group.exists() && members(&group).is_empty() {
            remove(&group);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LATE);
        }
    }

    fn group(&self, runner: &str) -> Option<PathBuf> {
        // A name is ours; one that leads elsewhere is none.
        let plain = !runner.is_empty() && !runner.contains('/') && !runner.starts_with('.');
        self.folder.as_ref().filter(|_| plain).map(|folder| folder.join(runner))
    }
}

/// Makes a group; what comes back joins the process that calls it, with one write.
fn joining(group: &Path) -> io::Result<impl FnMut() -> io::Result<()> + Send + Sync + 'static> {
    fs::create_dir_all(group)?;
    let procs = File::options().write(true).open(group.join("cgroup.procs"))?;
    // 0 is the process that writes.
    Ok(move || (&procs).write_all(b"0"))
}

/// Whether a process can join a group here: not every hierarchy lets one, for example `cpuset` of v1.
fn prove(folder: &Path) -> io::Result<()> {
    use std::os::unix::process::CommandExt;
    let group = folder.join(format!(".proof-{}", std::process::id()));
    let join = joining(&group)?;
    let mut command = std::process::Command::new("true");
    // SAFETY: one system call on a file that is open already.
    unsafe { command.pre_exec(join) };
    let proven = command.status().map(drop);
    remove(&group);
    proven
}

fn kill_all(group: &Path, processes: &[i32]) {
    // One write ends the whole tree, also what forks meanwhile (cgroup2, Linux 5.14).
    if fs::write(group.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for pid in processes.iter().filter(|p| **p > 1) {
        // It may be gone already.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

/// The processes in a group and below it.
fn members(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<_> = text.lines().filter_map(|l| l.parse().ok()).collect();
    pids.extend(children(group).iter().flat_map(|child| members(child)));
    pids
}

fn remove(group: &Path) {
    children(group).iter().for_each(|child| remove(child));
    // Busy while a last process leaves; the caller tries again.
    let _ = fs::remove_dir(group);
}

fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Stdio;

    use super::*;

    /// Where this machine has control groups that we may make; cgroup2, where it is, comes first.
    fn hierarchies() -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let lines: Vec<Vec<_>> = mounts.lines().map(|l| l.split(' ').collect()).collect();
        let v2 = lines.iter().filter(|words| words[2] == "cgroup2");
        let v1 = lines.iter().filter(|words| words[2] == "cgroup" && words[1].ends_with("pids"));
        let folder = |words: &Vec<&str>| {
            let name = format!("rz-test-{}", uuid::Uuid::new_v4().simple());
            let folder = Path::new(words[1]).join(name);
            fs::create_dir_all(&folder).ok().map(|()| folder)
        };
        v2.chain(v1).filter_map(folder).collect()
    }

    /// Groups of a test's own; the folder is for the test to remove.
    pub(crate) fn groups() -> Option<(Groups, PathBuf)> {
        let mut folders = hierarchies().into_iter();
        let first = folders.next()?;
        folders.for_each(|other| fs::remove_dir(other).unwrap());
        Some((Groups::open(Some(first.clone())), first))
    }

    fn alive(pid: u32) -> bool {
        // A child that is dead and not yet waited for has no command line.
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
    }

    #[tokio::test]
    async fn whatever_a_runner_started_ends_with_its_group() {
        let folders = hierarchies();
        if folders.is_empty() {
            eprintln!("skipped: no control groups can be made here");
        }
        for folder in folders {
            all_of_it_ends_in(folder).await;
        }
    }

    async fn all_of_it_ends_in(all: PathBuf) {
        let groups = Groups::open(Some(all.clone()));
        let mut command = Command::new("sh");
        // The second has a session of its own and is nobody's child any more.
        command
            .args(["-c", "sleep 1000 & setsid sleep 1000 & echo $!; read never"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        groups.enclose(&mut command, "volume-1").unwrap();
        let mut child = command.spawn().unwrap();
        let folder = groups.group("volume-1").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while members(&folder).len() < 3 {
            assert!(Instant::now() < deadline, "{:?}", members(&folder));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let pids = members(&folder);
        assert_eq!(groups.left_behind(), ["volume-1"]);
        assert!(!groups.is_empty("volume-1"));
        // Stopped processes die too.
        kill(Pid::from_raw(pids[0]), Signal::SIGSTOP).unwrap();

        groups.end("volume-1", child.id()).await;
        assert!(groups.is_empty("volume-1"));
        assert_eq!(groups.left_behind(), ["volume-1"], "somebody is still to see to its jobs");
        groups.remove("volume-1").await;
        assert!(!folder.exists() && groups.is_empty("volume-1"));
        for pid in pids {
            assert!(!alive(pid.unsigned_abs()), "{pid} lives on");
        }
        child.wait().await.unwrap();
        groups.end("volume-1", None).await;
        fs::remove_dir(all).unwrap();
    }

    #[tokio::test]
    async fn without_groups_the_process_group_is_killed() {
        let groups = Groups::open(Some(PathBuf::from("/proc/no-groups-here")));
        assert_eq!(groups.folder, None);
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; read never"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        groups.enclose(&mut command, "volume-1").unwrap();
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
        tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line).await.unwrap();
        groups.end("volume-1", child.id()).await;
        assert!(!child.wait().await.unwrap().success());
        let grandchild: u32 = line.trim().parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while alive(grandchild) {
            assert!(Instant::now() < deadline, "{grandchild} lives on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_none() {
        let groups = Groups { folder: Some("/sys/fs/cgroup/x".into()) };
        for name in ["", "..", "../y", "a/b", "."] {
            assert_eq!(groups.group(name), None, "{name}");
        }
    }
}
