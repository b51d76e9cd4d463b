//! The OCI bundle of a container: what the runtime is told.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, Capability, Linux, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
    LinuxDeviceCgroupBuilder, LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, LinuxSeccomp,
    LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator,
    LinuxSyscallBuilder, Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder, get_default_maskedpaths,
    get_default_mounts, get_default_readonly_paths,
};
use rhizome_model::Code;

use super::{Bind, Limits};
use crate::cgroup::{CPU_PERIOD_US, cpu_quota_us};
use crate::error::{Result as SalResult, SalError};
use crate::files;

/// As far as we may give as many ourselves.
const OPEN_FILES: u64 = 65_536;
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Enough for servers that start as root and step down; not CAP_NET_RAW nor CAP_NET_ADMIN, with
/// which a machine could use addresses that are not its own.
const CAPABILITIES: [Capability; 9] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setgid,
    Capability::Setuid,
    Capability::SysChroot,
];

/// btrfs lets everybody make subvolumes in his own folders, and a subvolume has a quota of its own:
/// none. So a machine can make none. (SNAP_CREATE, SUBVOL_CREATE and their second versions.)
const SUBVOLUME_IOCTLS: [u64; 4] = [0x5000_9401, 0x5000_940e, 0x5000_9417, 0x5000_9418];
/// What reaches into the kernel beyond namespaces.
const REFUSED_CALLS: [&str; 9] = [
    "add_key",
    "bpf",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "open_by_handle_at",
    "perf_event_open",
    "request_key",
    "userfaultfd",
];
const EPERM: u32 = 1;

/// A container that is about to be.
pub(crate) struct Bundle {
    pub args: Vec<String>,
    /// `NAME=value`; PATH, HOME and HOSTNAME have values of their own unless they are here.
    pub env: Vec<String>,
    pub workdir: String,
    pub hostname: String,
    pub root: PathBuf,
    pub is_root_readonly: bool,
    /// Also its group. Root has a few capabilities, everybody else has none.
    pub user: u32,
    /// The network namespace, as a path.
    pub netns: PathBuf,
    pub cgroup: String,
    pub mounts: Vec<Bind>,
    pub limits: Limits,
}

impl Bundle {
    /// Writes it into a program's folder.
    pub fn write(&self, dir: &Path) -> SalResult<()> {
        let config = self.config().map_err(|e| {
            SalError::new(Code::Internal, format!("write the container's configuration: {e}"))
        })?;
        files::replace_json(&dir.join("config.json"), &config, false)
    }

    fn config(&self) -> Result<Spec, OciSpecError> {
        let root = RootBuilder::default().path(self.root.clone()).readonly(self.is_root_readonly);
        SpecBuilder::default()
            .version("1.0.2")
            .hostname(&self.hostname)
            .root(root.build()?)
            .process(self.process()?)
            .mounts(self.mounts()?)
            .linux(self.linux()?)
            .build()
    }

    fn process(&self) -> Result<Process, OciSpecError> {
        let given =
            [DEFAULT_PATH.to_owned(), "HOME=/root".into(), format!("HOSTNAME={}", self.hostname)];
        let name = |text: &str| text.split_once('=').map(|(name, _)| name.to_owned());
        let set: HashSet<_> = self.env.iter().map(|e| name(e)).collect();
        let mut env: Vec<_> = given.into_iter().filter(|e| !set.contains(&name(e))).collect();
        env.extend(self.env.iter().cloned());
        let all: HashSet<_> = CAPABILITIES.into_iter().filter(|_| self.user == 0).collect();
        let capabilities = LinuxCapabilitiesBuilder::default()
            .bounding(all.clone())
            .effective(all.clone())
            .permitted(all)
            .inheritable(HashSet::new())
            .ambient(HashSet::new())
            .build()?;
        let (_, ours) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        let files = PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .hard(OPEN_FILES.min(ours))
            .soft(OPEN_FILES.min(ours))
            .build()?;
        ProcessBuilder::default()
            .terminal(false)
            .user(UserBuilder::default().uid(self.user).gid(self.user).build()?)
            .args(self.args.clone())
            .env(env)
            .cwd(self.workdir.clone())
            .capabilities(capabilities)
            .rlimits(vec![files])
            .no_new_privileges(true)
            .build()
    }

    fn mounts(&self) -> Result<Vec<Mount>, OciSpecError> {
        let mut mounts = get_default_mounts();
        // A machine has no business with control groups.
        mounts.retain(|m| m.destination() != "/sys/fs/cgroup");
        for Bind { source, path, readonly } in &self.mounts {
            let access = if *readonly { "ro" } else { "rw" };
            let options = ["rbind", access, "nosuid", "nodev"].map(str::to_owned).to_vec();
            let mount = MountBuilder::default()
                .destination(path)
                .source(source)
                .typ("bind")
                .options(options)
                .build()?;
            mounts.push(mount);
        }
        Ok(mounts)
    }

    fn linux(&self) -> Result<Linux, OciSpecError> {
        let sysctl = HashMap::from([
            // Who may not open raw sockets can still ping.
            ("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned()),
        ]);
        LinuxBuilder::default()
            .cgroups_path(&self.cgroup)
            .namespaces(self.namespaces()?)
            .resources(self.resources()?)
            .masked_paths(get_default_maskedpaths())
            .readonly_paths(get_default_readonly_paths())
            .seccomp(seccomp()?)
            .sysctl(sysctl)
            .build()
    }

    fn namespaces(&self) -> Result<Vec<LinuxNamespace>, OciSpecError> {
        use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
        let mut all = Vec::new();
        for kind in [Pid, Mount, Ipc, Uts, Cgroup] {
            all.push(LinuxNamespaceBuilder::default().typ(kind).build()?);
        }
        let network = LinuxNamespaceBuilder::default().typ(Network).path(self.netns.clone());
        all.push(network.build()?);
        Ok(all)
    }

    fn resources(&self) -> Result<LinuxResources, OciSpecError> {
        let memory = i64::try_from(self.limits.memory.0).unwrap_or(i64::MAX);
        let nothing = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
        LinuxResourcesBuilder::default()
            .devices(vec![nothing])
            // As much with swap as without: no swap.
            .memory(LinuxMemoryBuilder::default().limit(memory).swap(memory).build()?)
            .cpu(
                LinuxCpuBuilder::default()
                    .period(CPU_PERIOD_US)
                    .quota(cpu_quota_us(self.limits.cpu))
                    .build()?,
            )
            .pids(LinuxPidsBuilder::default().limit(i64::from(self.limits.pids)).build()?)
            .build()
    }
}

fn seccomp() -> Result<LinuxSeccomp, OciSpecError> {
    let mut calls = Vec::new();
    for ioctl in SUBVOLUME_IOCTLS {
        // The kernel reads 32 bits of this argument; without the mask the upper ones would hide it.
        let number = LinuxSeccompArgBuilder::default()
            .index(1usize)
            .value(0xffff_ffffu64)
            .value_two(ioctl)
            .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
            .build()?;
        let call = LinuxSyscallBuilder::default()
            .names(vec!["ioctl".to_owned()])
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(EPERM)
            .args(vec![number]);
        calls.push(call.build()?);
    }
    let refused = LinuxSyscallBuilder::default()
        .names(REFUSED_CALLS.map(str::to_owned).to_vec())
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(EPERM);
    calls.push(refused.build()?);
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActAllow)
        .architectures(architectures())
        .syscalls(calls)
        .build()
}

/// With the 32-bit variants: a filter that does not know them kills what uses them.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    } else if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        Vec::new()
    }
}
