//! The oracle: what the kernel has of a system, whatever the system itself believes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A process whose command line names the state folder.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    pub args: Vec<String>,
}

/// Everything in the kernel that belongs to the nodes of one state folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// `ACCOUNT.DEPLOYMENT.NAME` of machines, and `KIND.ACCOUNT.DEPLOYMENT.NAME` of others, by where
    /// they were seen.
    pub namespaces: BTreeSet<String>,
    pub links: BTreeSet<String>,
    pub cgroups: BTreeSet<String>,
    pub subvolumes: BTreeSet<String>,
    pub volumes: BTreeSet<String>,
    /// Processes per machine.
    pub containers: BTreeMap<String, BTreeSet<u32>>,
    pub mounts: Vec<String>,
    pub loops: Vec<String>,
    pub bridges: BTreeSet<String>,
}

impl Kernel {
    pub fn look(state: &Path) -> Self {
        let mut kernel = Self::default();
        let text = state.to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        kernel.mounts = mounts.lines().filter(|m| m.contains(&text)).map(str::to_owned).collect();
        for block in names("/sys/block") {
            let backing = format!("/sys/block/{block}/loop/backing_file");
            let backing = std::fs::read_to_string(backing).unwrap_or_default();
            if backing.contains(&text) {
                kernel.loops.push(block);
            }
        }
        for node in names(state).into_iter().filter(|n| n.starts_with("node-")) {
            let folder = state.join(node);
            kernel.subvolumes.extend(visible(&folder.join("pool/machines")));
            kernel.volumes.extend(visible(&folder.join("pool/volumes")));
            let Ok(file) = std::fs::read(folder.join("node.json")) else { continue };
            let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
            kernel.look_for_mark(&format!("rz{}", &file["key"].as_str().unwrap()[..8]));
        }
        kernel
    }

    fn look_for_mark(&mut self, mark: &str) {
        let prefix = format!("{mark}.");
        self.namespaces.extend(
            names("/run/netns").iter().filter_map(|n| n.strip_prefix(&prefix)).map(str::to_owned),
        );
        let alias_prefix = format!("rhizome:{mark}:");
        for link in names("/sys/class/net") {
            let alias = std::fs::read_to_string(format!("/sys/class/net/{link}/ifalias"));
            let alias = alias.unwrap_or_default();
            if let Some(id) = alias.trim().strip_prefix(&alias_prefix) {
                self.links.insert(id.replace(['/', ':'], "."));
            } else if link == mark {
                self.bridges.insert(link);
            }
        }
        for hierarchy in names("/sys/fs/cgroup") {
            self.look_at_cgroups(&Path::new("/sys/fs/cgroup").join(hierarchy), mark, 3);
        }
        self.look_at_cgroups(Path::new("/sys/fs/cgroup"), mark, 3);
    }

    fn look_at_cgroups(&mut self, folder: &Path, mark: &str, depth: usize) {
        for name in directories(folder) {
            let path = folder.join(&name);
            if name.contains(mark) {
                self.look_at_groups(&path, "");
                self.look_at_groups(&path.join("herodb"), "herodb.");
            } else if depth > 0 {
                self.look_at_cgroups(&path, mark, depth - 1);
            }
        }
    }

    fn look_at_groups(&mut self, folder: &Path, kind: &str) {
        // A resource's name has dots; what groups other things has none.
        for name in directories(folder).into_iter().filter(|n| n.contains('.')) {
            let members = folder.join(&name).join("cgroup.procs");
            let members = std::fs::read_to_string(members).unwrap_or_default();
            let pids = members.lines().filter_map(|p| p.parse::<u32>().ok());
            let name = format!("{kind}{name}");
            self.containers.entry(name.clone()).or_default().extend(pids);
            self.cgroups.insert(name);
        }
    }

    /// Whether nothing is left in the kernel. What lies in the pool's files is not in the kernel.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.links.is_empty()
            && self.cgroups.is_empty()
            && self.mounts.is_empty()
            && self.loops.is_empty()
            && self.bridges.is_empty()
    }

    /// The machines, when every place agrees on which there are.
    #[track_caller]
    pub fn machines(&self) -> BTreeSet<String> {
        assert_eq!(self.namespaces, self.links, "namespaces and links differ: {self:#?}");
        assert_eq!(self.namespaces, self.cgroups, "namespaces and cgroups differ: {self:#?}");
        let is_machine = |name: &&String| name.starts_with(|c: char| c.is_ascii_digit());
        let machines: BTreeSet<_> = self.namespaces.iter().filter(is_machine).cloned().collect();
        assert_eq!(machines, self.subvolumes, "namespaces and subvolumes differ: {self:#?}");
        machines
    }
}

/// Processes whose command line names this path, without ourselves.
pub fn processes_naming(path: &Path) -> Vec<Process> {
    let text = path.to_string_lossy().into_owned();
    let own = std::process::id();
    let pids = names("/proc").into_iter().filter_map(|n| n.parse::<u32>().ok());
    pids.filter(|pid| *pid != own)
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let args: Vec<String> = line
                .split(|b| *b == 0)
                .map(|a| String::from_utf8_lossy(a).into_owned())
                .filter(|a| !a.is_empty())
                .collect();
            args.iter().any(|a| a.contains(&text)).then_some(Process { pid, args })
        })
        .collect()
}

fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn directories(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Without what is being made or removed under a hidden name.
fn visible(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|n| !n.starts_with('.')).collect()
}
