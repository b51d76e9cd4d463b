//! What a process gives up before it reads a script.
//!
//! ```text
//!   give_up   namespaces, user and groups, capabilities, new privileges; then system calls: a list
//!             of what evaluation, closing and forking need, the rest kills   (once, in the zygote)
//!   close     files, processes, memory, processor time; then what closing and forking needed of
//!             the list                                                       (in each child)
//! ```
//!
//! A child forked ahead does not know its limits yet. It closes the cage in two steps: `close_ahead`
//! takes forking away, `close_rest` closing. What is left is the same list: what evaluation needs.
//!
//! The list is the zygote's, and children only take from it: the kernel tries a filter with each
//! system call that is permitted so far, which for a list is the most of what a child costs.
//!
//! Everything here is part of the promise that a script can do nothing but compute and ask its
//! parent; so whatever cannot be given up ends the process. Only namespaces are a second fence
//! behind the list of system calls, and are left out where the kernel does not permit them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, chdir, geteuid, pivot_root, setgroups, setresgid, setresuid};
use rhizome_model::Limits;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// Deeply nested values are printed, compared and dropped by recursion: with the limits of arrays
/// and maps this stack is never used up.
const STACK: u64 = 64 << 20;
/// The script is told of its used up time at a line; this kills what does not get there.
const CPU_GRACE_MS: u64 = 200;

/// System calls of evaluation: the pipe, memory, the clocks, ending. Not tgkill(2): who aborts is
/// killed for it, and has said why.
const NEEDED: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    // Rhai waits up to 50 ms for a value that the script itself holds.
    libc::SYS_clock_nanosleep,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What the zygote needs beyond that to fork children, and what these need to become one.
const FORKING: &[i64] = &[
    libc::SYS_clone,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_getppid,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    // What the C library calls for it elsewhere.
    libc::SYS_dup3,
    // Debug builds look whether what is closed is open.
    libc::SYS_fcntl,
    libc::SYS_close,
];

/// What a child needs to wait, and to close the rest of its cage.
const CLOSING: &[i64] = &[
    libc::SYS_ppoll,
    libc::SYS_close_range,
    libc::SYS_prlimit64,
    libc::SYS_setitimer,
    libc::SYS_prctl,
    libc::SYS_seccomp,
];

/// What no process of ours that comes near a script may have.
pub fn give_up(uid_gid: u32) -> io::Result<()> {
    alone()?;
    let spaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if geteuid().is_root() {
        // A container may hold back the right to make namespaces.
        if unshare(spaces | CloneFlags::CLONE_NEWNS).is_ok() {
            leave_all_files()?;
        }
        let (user, group) = (Uid::from_raw(uid_gid), Gid::from_raw(uid_gid));
        setgroups(&[])?;
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
    } else {
        let _ = unshare(spaces | CloneFlags::CLONE_NEWUSER);
    }
    chdir("/")?;
    drop_capabilities()?;
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    // After the change of user, which resets it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(())
}

/// An empty root. A copy of the system's mounts would keep alive what is unmounted outside.
fn leave_all_files() -> io::Result<()> {
    let none = None::<&str>;
    let empty = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // A folder that every system has.
    mount(Some("none"), "/proc", Some("tmpfs"), empty, none)?;
    chdir("/proc")?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(())
}

/// The list of system calls holds the calling thread only.
fn alone() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads == 1 {
        return Ok(());
    }
    Err(io::Error::other(format!("started with {threads} threads, must be called before any")))
}

fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 bits for each of three sets.
    const VERSION: u32 = 0x2008_0522;
    let header = Header { version: VERSION, pid: 0 };
    let none = [[0u32; 3]; 2];
    // SAFETY: both point to live memory of the layout that this version of capset(2) reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What closes around a process that has given up everything else.
pub struct Cage {
    /// Of the zygote.
    list: BpfProgram,
    /// Against what the zygote and its children needed until it is closed.
    both: BpfProgram,
    /// The same in two steps.
    forking: BpfProgram,
    closing: BpfProgram,
    /// Address space before the script.
    base: u64,
}

impl Cage {
    /// Made in the zygote when it holds all that a child starts with.
    pub fn new() -> io::Result<Self> {
        let both = [FORKING, CLOSING].concat();
        Ok(Self {
            list: permit(&both)?,
            both: refuse(&both)?,
            forking: refuse(FORKING)?,
            closing: refuse(CLOSING)?,
            base: address_space()?,
        })
    }

    /// In the zygote, when it has nothing left to do but to fork.
    pub fn enter(&self) -> io::Result<()> {
        apply_filter(&self.list).map_err(io::Error::other)
    }

    /// At once.
    pub fn close(&self, limits: &Limits) -> io::Result<()> {
        self.limit(limits)?;
        apply_filter(&self.both).map_err(io::Error::other)
    }

    /// As far as it goes without the limits.
    pub fn close_ahead(&self) -> io::Result<()> {
        apply_filter(&self.forking).map_err(io::Error::other)
    }

    /// After `close_ahead`.
    pub fn close_rest(&self, limits: &Limits) -> io::Result<()> {
        self.limit(limits)?;
        apply_filter(&self.closing).map_err(io::Error::other)
    }

    fn limit(&self, limits: &Limits) -> io::Result<()> {
        let memory = self.base.saturating_add(limits.memory);
        let seconds = limits.cpu_ms.div_ceil(1000).saturating_add(1);
        for (resource, most) in [
            (Resource::RLIMIT_NOFILE, 0),
            (Resource::RLIMIT_FSIZE, 0),
            (Resource::RLIMIT_NPROC, 0),
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_STACK, STACK),
            (Resource::RLIMIT_AS, memory),
            (Resource::RLIMIT_CPU, seconds),
        ] {
            setrlimit(resource, most, most)?;
        }
        kill_after(limits.cpu_ms.saturating_add(CPU_GRACE_MS))
    }
}

/// This one and all that follow.
pub fn close_descriptors(first: RawFd) -> io::Result<()> {
    let first = u32::try_from(first).map_err(io::Error::other)?;
    // SAFETY: nothing in this single-threaded process uses a descriptor from there on.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// SIGPROF, which ends the process, after so much processor time. RLIMIT_CPU counts seconds only.
fn kill_after(ms: u64) -> io::Result<()> {
    let value = libc::timeval {
        tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        tv_usec: (ms % 1000) as i64 * 1000,
    };
    let timer =
        libc::itimerval { it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 }, it_value: value };
    let none = std::ptr::null_mut::<libc::itimerval>();
    // SAFETY: the timer lives on this stack; the old value is not asked for.
    let result =
        unsafe { libc::syscall(libc::SYS_setitimer, libc::ITIMER_PROF, &raw const timer, none) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn address_space() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm is not as expected"))?;
    // SAFETY: asks for a constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Ok(pages * u64::try_from(page).map_err(io::Error::other)?)
}

/// Evaluation's system calls and these; any other kills.
fn permit(more: &[i64]) -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        NEEDED.iter().chain(more).map(|call| (*call, Vec::new())).collect();
    let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    for (call, argument, op, value) in [
        (libc::SYS_read, 0, SeccompCmpOp::Eq, 0),
        (libc::SYS_write, 0, SeccompCmpOp::Le, 2),
        // No memory becomes code.
        (libc::SYS_mmap, 2, executable.clone(), 0),
        (libc::SYS_mprotect, 2, executable, 0),
    ] {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value);
        let rule = condition.and_then(|c| SeccompRule::new(vec![c])).map_err(io::Error::other)?;
        rules.insert(call, vec![rule]);
    }
    filter(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// These kill; whether others do is for the filter that is there to say.
fn refuse(these: &[i64]) -> io::Result<BpfProgram> {
    let rules = these.iter().map(|call| (*call, Vec::new())).collect();
    filter(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    others: SeccompAction,
    these: SeccompAction,
) -> io::Result<BpfProgram> {
    let machine = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, others, these, machine);
    filter.and_then(BpfProgram::try_from).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use nix::sys::signal::kill;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, fork};

    use super::*;

    fn at_once() -> io::Result<()> {
        let cage = Cage::new()?;
        cage.enter()?;
        cage.close(&Limits::default())
    }

    fn in_two_steps() -> io::Result<()> {
        let cage = Cage::new()?;
        cage.enter()?;
        cage.close_ahead()?;
        close_descriptors(3)?;
        cage.close_rest(&Limits::default())
    }

    /// What becomes of a process that does this in a cage that is closed, either way.
    fn in_the_cage(act: fn()) -> WaitStatus {
        let [once, twice] = [at_once, in_two_steps].map(|close| in_a_cage(close, act));
        let kind = |status: &WaitStatus| (std::mem::discriminant(status), signal(status));
        assert_eq!(kind(&once), kind(&twice));
        twice
    }

    fn signal(status: &WaitStatus) -> Option<Signal> {
        match status {
            WaitStatus::Signaled(_, signal, _) => Some(*signal),
            _ => None,
        }
    }

    fn in_a_cage(close: fn() -> io::Result<()>, act: fn()) -> WaitStatus {
        // SAFETY: the test process does nothing else meanwhile, and the child ends by `_exit`.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
            ForkResult::Child => {
                if close().is_err() {
                    // SAFETY: ends this process without running anything of the test's.
                    unsafe { libc::_exit(9) };
                }
                act();
                // SAFETY: as above.
                unsafe { libc::_exit(0) }
            }
        }
    }

    fn ends_well(act: fn()) -> bool {
        matches!(in_the_cage(act), WaitStatus::Exited(_, 0))
    }

    fn is_killed(act: fn()) -> bool {
        matches!(in_the_cage(act), WaitStatus::Signaled(_, Signal::SIGSYS, _))
    }

    /// Memory of one page with these rights.
    fn map(rights: i32) {
        let (none, flags) = (std::ptr::null_mut(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping, which nothing refers to.
        unsafe { libc::mmap(none, 4096, rights, flags, -1, 0) };
    }

    #[test]
    fn whoever_waits_for_a_script_forks_no_more() {
        let zygote = || Cage::new()?.enter();
        let spare = || {
            let cage = Cage::new()?;
            cage.enter()?;
            cage.close_ahead()
        };
        let forks = || {
            // SAFETY: the copy ends by `_exit` at once.
            if let Ok(ForkResult::Child) = unsafe { fork() } {
                // SAFETY: ends a process that has done nothing.
                unsafe { libc::_exit(0) };
            }
        };
        let (zygote, spare) = (in_a_cage(zygote, forks), in_a_cage(spare, forks));
        assert!(matches!(zygote, WaitStatus::Exited(_, 0)), "{zygote:?}");
        assert!(matches!(spare, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{spare:?}");
    }

    #[test]
    fn computing_is_allowed() {
        assert!(ends_well(|| ()));
        assert!(ends_well(|| drop(vec![1u8; 32 << 20])));
        assert!(ends_well(|| map(libc::PROT_READ | libc::PROT_WRITE)));
    }

    #[test]
    fn everything_else_kills() {
        assert!(is_killed(|| drop(std::fs::File::open("/etc/hostname"))));
        assert!(is_killed(|| drop(std::fs::remove_file("/nonexistent"))));
        assert!(is_killed(|| drop(std::net::UdpSocket::bind("[::1]:0"))));
        assert!(is_killed(|| kill(Pid::from_raw(1), None).unwrap_or(())));
        assert!(is_killed(|| kill(Pid::this(), None).unwrap_or(())));
        assert!(is_killed(|| nix::sys::signal::raise(Signal::SIGUSR1).unwrap_or(())));
        assert!(is_killed(|| drop(std::process::Command::new("/bin/true").spawn())));
        assert!(is_killed(|| drop(std::thread::Builder::new().spawn(|| ()))));
        assert!(is_killed(|| map(libc::PROT_READ | libc::PROT_EXEC)));
        assert!(is_killed(|| setrlimit(Resource::RLIMIT_CPU, 1, 1).unwrap_or(())));
        assert!(is_killed(|| prctl::set_dumpable(true).unwrap_or(())));
        assert!(is_killed(|| {
            // SAFETY: the descriptor is not there; the filter looks at its number before that.
            let other = unsafe { BorrowedFd::borrow_raw(3) };
            let _ = nix::unistd::write(other, b"x");
        }));
    }
}
