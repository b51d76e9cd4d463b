//! Control groups: where a machine's processes are found, counted and ended.
//!
//! ```text
//!   <hierarchy>/rz<8 digits>/ACCOUNT.DEPLOYMENT.NAME         the container; the runtime makes it
//!   <tracking>/rz<8 digits>/shims/ACCOUNT.DEPLOYMENT.NAME    its shim, and the runtime while it starts
//!   <tracking>/rz<8 digits>/runners/…                        whoever starts runners puts them here
//! ```
//!
//! The tracking hierarchy is cgroup2 where it is mounted, as on every host of today, be it beside
//! v1. Ending a machine means: kill both groups until they are empty, then remove them everywhere.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, fork};
use rhizome_model::{Bytes, Code, Cpu, ResourceId};

use crate::error::{During, Result, SalError, shown};
use crate::files;

/// Processes that are killed are gone within this, unless the kernel hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of a processor's time.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;
/// The kernel takes no less.
const MIN_QUOTA_US: i64 = 1_000;
/// Of <linux/sched.h>.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const SHIMS: &str = "shims";
const RUNNERS: &str = "runners";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// The controllers are on hierarchies of their own, perhaps beside an empty cgroup2.
    V1,
    V2,
}

/// Of a container, as the kernel shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub cpu_quota_us: Option<u64>,
    pub memory: Option<u64>,
    pub pids: Option<u64>,
}

/// The groups of what no container runtime starts.
pub(crate) struct Confined {
    /// Where its processes are found.
    pub group: PathBuf,
    /// Those of hierarchies beside that one, which limit it.
    pub limits: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    /// Mount points of all hierarchies, the tracking one first.
    roots: Vec<PathBuf>,
    pub version: Version,
    /// The node's parent group.
    parent: String,
}

impl Cgroups {
    pub fn detect(parent: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").during("read the mounts")?;
        let (roots, version) = parse_mounts(&mounts, |v2| {
            let controllers = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
            ["cpu", "memory", "pids"]
                .iter()
                .all(|c| controllers.split_whitespace().any(|x| x == *c))
        })
        .ok_or_else(|| {
            SalError::new(
                Code::Unavailable,
                "no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup",
            )
        })?;
        Ok(Self { roots, version, parent: parent.to_owned() })
    }

    /// The groups of one kind of workload, below those of the node.
    pub fn below(&self, name: &str) -> Self {
        Self { parent: format!("{}/{name}", self.parent), ..self.clone() }
    }

    /// The folder for groups of runners. It is on the hierarchy where a shim joins a group of its
    /// own before it goes to the background: a shim outlives the group of the runner that started it.
    pub fn of_runners(&self) -> PathBuf {
        self.tracking().join(RUNNERS)
    }

    /// The group of a container, as the runtime is told.
    pub fn of_machine(&self, id: &ResourceId) -> String {
        format!("/{}/{}", self.parent, id.file_name())
    }

    /// The group that a shim joins.
    pub fn of_shim(&self, id: &ResourceId) -> PathBuf {
        self.tracking().join(SHIMS).join(id.file_name())
    }

    /// The file that counts how often a container ran out of memory.
    pub fn oom_file(&self, id: &ResourceId) -> PathBuf {
        let (controller, file) = match self.version {
            Version::V1 => ("memory", "memory.oom_control"),
            Version::V2 => ("", "memory.events"),
        };
        let root = self.roots.iter().find(|r| controller.is_empty() || r.ends_with(controller));
        let root = root.cloned().unwrap_or_default();
        root.join(&self.parent).join(id.file_name()).join(file)
    }

    /// What a container may use at most; each unknown where its controller is not there.
    pub fn limits(&self, id: &ResourceId) -> Limits {
        let group = format!("{}/{}", self.parent, id.file_name());
        let read = |v1: &str, v2: &str| {
            let files =
                self.roots.iter().flat_map(|r| [r.join(&group).join(v1), r.join(&group).join(v2)]);
            let text = files.filter_map(|file| fs::read_to_string(file).ok()).next()?;
            // Without a limit it says "max" or -1.
            let number = text.split_whitespace().next().and_then(|word| word.parse().ok());
            Some(number.unwrap_or(u64::MAX))
        };
        Limits {
            cpu_quota_us: read("cpu.cfs_quota_us", "cpu.max"),
            memory: read("memory.limit_in_bytes", "memory.max"),
            pids: read("pids.max", "pids.max"),
        }
    }

    /// Makes limited groups for what no container runtime makes groups for.
    pub fn confine(&self, id: &ResourceId, cpu: Cpu, memory: Bytes) -> Result<Confined> {
        let memory = memory.0.to_string();
        let mut groups = Vec::new();
        for root in &self.roots {
            let parent = root.join(&self.parent);
            files::make_folder(&parent)?;
            self.hand_down(root);
            let limits = ["cpu.cfs_quota_us", "memory.limit_in_bytes"];
            let is_of_use = limits.iter().any(|file| parent.join(file).exists());
            if !is_of_use && !groups.is_empty() {
                continue;
            }
            let group = parent.join(id.file_name());
            files::make_folder(&group)?;
            limit_cpu(&group, cpu)?;
            set(&group, "memory.limit_in_bytes", &memory)?;
            set(&group, "memory.memsw.limit_in_bytes", &memory)?;
            set(&group, "memory.max", &memory)?;
            set(&group, "memory.swap.max", "0")?;
            groups.push(group);
        }
        let limits = groups.split_off(1.min(groups.len()));
        // `detect` lets no empty list of hierarchies through.
        Ok(Confined { group: groups.pop().unwrap_or_default(), limits })
    }

    /// Gives what runs in the groups of [`Self::confine`] other limits.
    pub fn limit(&self, id: &ResourceId, cpu: Cpu, memory: Bytes) -> Result<()> {
        let memory = memory.0.to_string();
        for root in &self.roots {
            let group = root.join(&self.parent).join(id.file_name());
            limit_cpu(&group, cpu)?;
            set(&group, "memory.limit_in_bytes", &memory)?;
            set(&group, "memory.memsw.limit_in_bytes", &memory)?;
            set(&group, "memory.max", &memory)?;
        }
        Ok(())
    }

    /// Where there is one hierarchy, controllers are handed down group by group.
    fn hand_down(&self, root: &Path) {
        let group = root.join(&self.parent);
        let mut above: Vec<_> = group.ancestors().take_while(|g| g.starts_with(root)).collect();
        above.reverse();
        for group in above.into_iter().filter(|_| self.version == Version::V2) {
            // Who lacks a controller says so where its limit cannot be written.
            let _ = fs::write(group.join("cgroup.subtree_control"), "+cpu +memory");
        }
    }

    pub fn prepare(&self) -> Result<()> {
        files::make_folder(&self.tracking().join(SHIMS))
    }

    pub fn prepare_shim(&self, id: &ResourceId) -> Result<()> {
        files::make_folder(&self.of_shim(id))
    }

    /// Ends every process of a machine, its shim too, and removes its groups.
    pub fn clear(&self, id: &ResourceId) -> Result<()> {
        end(&self.of_shim(id))?;
        for root in &self.roots {
            end(&root.join(&self.parent).join(id.file_name()))?;
        }
        Ok(())
    }

    /// Whether a process of the machine is left.
    pub fn is_populated(&self, id: &ResourceId) -> bool {
        self.roots.iter().any(|r| !members(&r.join(&self.parent).join(id.file_name())).is_empty())
    }

    /// The processes of a machine's container.
    pub fn processes(&self, id: &ResourceId) -> Vec<i32> {
        members(&self.tracking().join(id.file_name()))
    }

    /// The machines that have groups.
    pub fn list(&self) -> Result<Vec<ResourceId>> {
        let mut folders: Vec<_> = self.roots.iter().map(|r| r.join(&self.parent)).collect();
        folders.push(self.tracking().join(SHIMS));
        let mut found = Vec::new();
        for folder in folders {
            found.extend(files::names(&folder)?.iter().flat_map(|n| ResourceId::from_file_name(n)));
        }
        Ok(found)
    }

    /// Removes the node's parent groups, with whatever is in them.
    pub fn remove(&self) -> Result<()> {
        for root in &self.roots {
            end(&root.join(&self.parent))?;
        }
        Ok(())
    }

    fn tracking(&self) -> PathBuf {
        // `detect` lets no empty list through.
        self.roots.first().cloned().unwrap_or_default().join(&self.parent)
    }
}

/// Puts a process into a group.
pub(crate) fn put(pid: u32, group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), pid.to_string())
        .during(format_args!("put a process into the control group {}", shown(group)))
}

/// As fork(2), with the child in a control group from its first instruction on. To put a process into
/// one that it was not born in takes a kernel ten or twenty milliseconds, in which it makes no group
/// either: that is left to where the kernel knows no other way (no cgroup2, or Linux before 5.7).
///
/// # Safety
/// As for fork(2): the process must have one thread.
pub(crate) unsafe fn fork_into(group: &Path) -> Result<ForkResult> {
    let start = format!("start a process in the control group {}", shown(group));
    let folder = File::open(group).during(&start)?;
    // SAFETY: all of it are numbers, and may be zero.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = folder.as_raw_fd() as u64;
    // SAFETY: without a stack of its own the child goes on on the copy of this one.
    let born = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    let born = match Errno::result(born) {
        Ok(0) => return Ok(ForkResult::Child),
        Ok(pid) => i32::try_from(pid).map_err(std::io::Error::other),
        Err(Errno::ENOSYS | Errno::E2BIG | Errno::EINVAL | Errno::EBADF) => {
            // SAFETY: as our caller says.
            let forked = unsafe { fork() }.during(&start)?;
            if forked.is_child() && put(std::process::id(), group).is_err() {
                // Nothing of it may run elsewhere; its parent sees it end.
                // SAFETY: ends this process.
                unsafe { libc::_exit(1) };
            }
            return Ok(forked);
        }
        Err(error) => Err(error.into()),
    };
    Ok(ForkResult::Parent { child: Pid::from_raw(born.during(&start)?) })
}

fn limit_cpu(group: &Path, cpu: Cpu) -> Result<()> {
    let quota = cpu_quota_us(cpu);
    set(group, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
    set(group, "cpu.cfs_quota_us", &quota.to_string())?;
    set(group, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))
}

/// Writes a file of a group, if it has one: not every hierarchy has every controller.
fn set(group: &Path, file: &str, value: &str) -> Result<()> {
    let file = group.join(file);
    if !file.exists() {
        return Ok(());
    }
    fs::write(&file, value).during(format_args!("write {value} to {}", shown(&file)))
}

pub(crate) fn cpu_quota_us(cpu: Cpu) -> i64 {
    (i64::from(cpu.millis()) * (CPU_PERIOD_US as i64) / 1000).max(MIN_QUOTA_US)
}

/// The hierarchies in a mountinfo, the tracking one first.
fn parse_mounts(
    mountinfo: &str,
    has_controllers: impl Fn(&Path) -> bool,
) -> Option<(Vec<PathBuf>, Version)> {
    let (mut v1, mut v2) = (Vec::new(), None);
    for line in mountinfo.lines() {
        let (Some(path), Some((_, tail))) = (line.split(' ').nth(4), line.split_once(" - ")) else {
            continue;
        };
        match tail.split(' ').next() {
            Some("cgroup") => v1.push(PathBuf::from(path)),
            Some("cgroup2") if v2.is_none() => v2 = Some(PathBuf::from(path)),
            _ => {}
        }
    }
    let version =
        if v2.as_deref().is_some_and(has_controllers) { Version::V2 } else { Version::V1 };
    let roots: Vec<_> = v2.into_iter().chain(v1).collect();
    (!roots.is_empty()).then_some((roots, version))
}

/// The processes in a group and below it.
fn members(group: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<_> = text.lines().filter_map(|l| l.parse().ok()).collect();
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            pids.extend(members(&entry.path()));
        }
    }
    pids
}

/// Kills all in a group and below, and removes it. A group that is not there is fine.
fn end(group: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(200);
    while group.exists() {
        let pids = members(group);
        if pids.is_empty() {
            remove_tree(group);
        } else {
            // One write kills the whole tree, also what forks meanwhile (cgroup2, Linux 5.14).
            if fs::write(group.join("cgroup.kill"), "1").is_err() {
                for pid in pids.into_iter().filter(|p| *p > 1) {
                    // It may be gone already.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
        if !group.exists() {
            break;
        }
        if Instant::now() > deadline {
            return Err(SalError::new(
                Code::TimedOut,
                format!("the processes in {} do not end though they are killed", shown(group)),
            ));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

fn remove_tree(group: &Path) {
    if let Ok(entries) = fs::read_dir(group) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                remove_tree(&entry.path());
            }
        }
    }
    // Busy while a last process leaves; the caller tries again.
    let _ = fs::remove_dir(group);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Born in every hierarchy of this machine: where the kernel makes it so, and where not.
    #[test]
    fn a_child_is_born_in_its_group() {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let (roots, _) = parse_mounts(&mounts, |_| false).unwrap();
        for root in roots.iter().filter(|root| !root.ends_with("cpuset")) {
            let group = root.join(format!("rhizome-born-{}", std::process::id()));
            fs::create_dir(&group).unwrap();
            // SAFETY: the test process does nothing else meanwhile, and the child ends by `_exit`.
            match unsafe { fork_into(&group) }.unwrap() {
                ForkResult::Child => {
                    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
                    let is_there = own.contains("/rhizome-born-");
                    // SAFETY: ends this process without running anything of the test's.
                    unsafe { libc::_exit(i32::from(!is_there)) };
                }
                ForkResult::Parent { child } => {
                    let status = nix::sys::wait::waitpid(child, None).unwrap();
                    fs::remove_dir(&group).unwrap();
                    let well = nix::sys::wait::WaitStatus::Exited(child, 0);
                    assert_eq!(status, well, "{}", root.display());
                }
            }
        }
    }

    const HYBRID: &str = "\
24 1 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw
25 24 0:2 / /sys/fs/cgroup/memory rw,relatime shared:3 - cgroup cgroup rw,memory
26 24 0:3 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn the_hierarchies_are_told_apart() {
        let (roots, version) = parse_mounts(HYBRID, |_| false).unwrap();
        assert_eq!(version, Version::V1);
        assert!(roots[0].ends_with("unified") && roots[1].ends_with("memory"));
        assert_eq!(parse_mounts(HYBRID, |_| true).unwrap().1, Version::V2);
        assert!(parse_mounts("1 0 0:1 / / rw - ext4 /dev/vda rw", |_| true).is_none());
    }
}
