//! What every hypervisor driver must do, as one suite: against QEMU, and against Cloud Hypervisor
//! where it is on `PATH`.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rhizome_guest::PvhEnd;
use rhizome_model::Code;
use rhizome_sal::vm::{self, Choice, Disk, Driver, Ready, Vm, VmState, Wish};

use crate::vm_bench::{Bench, GREETING, Tap, hypervisor, hypervisors};
use crate::world::assert_code;

macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod qemu {
            $(#[test]
            fn $case() {
                super::with(super::Wish::QemuTcg, super::$case);
            })*
        }

        mod cloud_hypervisor {
            $(#[test]
            fn $case() {
                super::with(super::Wish::CloudHypervisor, super::$case);
            })*
        }
    };
}

suite! {
    a_guest_runs_and_does_as_it_is_told,
    a_guest_that_powers_off_is_noticed,
    a_guest_that_resets_is_noticed,
    a_hypervisor_that_hangs_is_noticed,
    a_hypervisor_that_dies_while_it_starts_is_noticed,
    who_ends_a_start_ends_its_hypervisor,
    what_a_dead_one_left_is_taken_over,
    what_it_refuses_is_told_in_its_words,
    another_machine_is_not_taken_for_this_one,
    a_tap_is_its_network,
}

fn with(wish: Wish, case: fn(&Choice)) {
    if let Some(choice) = hypervisor(wish) {
        case(&choice);
    }
}

fn a_guest_runs_and_does_as_it_is_told(choice: &Choice) {
    let mut bench = Bench::new(choice, PvhEnd::Halt);
    bench.config.vcpus = 2;
    bench.config.disks = vec![bench.disk("one")];
    let pid = bench.start();
    bench.until_printed(GREETING);

    let vm = bench.vm();
    assert!(vm.ping().unwrap() < Duration::from_secs(2));
    let info = vm.info().unwrap();
    assert_eq!((info.state, info.vcpus, info.memory), (VmState::Running, 2, 64 << 20));
    assert_eq!(info.uuid.as_deref(), Some(bench.config.uuid.as_str()));
    assert_eq!(info.disks, [bench.config.disks[0].path.clone()]);
    assert!(vm.counters().unwrap().contains_key("disk-one"));

    // Whatever was asked for before may be asked for again.
    vm.pause().unwrap();
    vm.pause().unwrap();
    assert_eq!(vm.info().unwrap().state, VmState::Paused);
    vm.resume().unwrap();
    vm.resume().unwrap();
    assert_eq!(vm.info().unwrap().state, VmState::Running);

    let two = bench.disk("two");
    assert_eq!(vm.add_disk(&two).unwrap(), "disk-two");
    assert!(vm.info().unwrap().disks.contains(&two.path));
    assert_code(vm.add_disk(&two), Code::Conflict);
    // This guest does not look at its bus; it was asked.
    vm.remove_device("disk-two").unwrap();
    assert_code(vm.remove_device("disk-none"), Code::NotFound);

    // It ignores the button.
    assert!(bench.run("power").status.success());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(vm.info().unwrap().state, VmState::Running);

    vm.shutdown().unwrap();
    assert_eq!(bench.reap(pid), WaitStatus::Exited(pid, 0));
    assert_code(vm.ping(), Code::Unavailable);
    vm::clear(&bench.dir).unwrap();
    bench.assert_nothing_is_left();
    vm::clear(&bench.dir).unwrap();
}

fn a_guest_that_powers_off_is_noticed(choice: &Choice) {
    let bench = Bench::new(choice, PvhEnd::PowerOff);
    let pid = bench.start();
    assert_eq!(bench.reap(pid), WaitStatus::Exited(pid, 0));
    bench.until_printed(GREETING);
    let (status, told) = bench.verdict();
    assert_eq!(status, 0, "{told}");
    // Cloud Hypervisor does not always come to tell it.
    if !(told.is_empty() && choice.driver == Driver::CloudHypervisor) {
        assert_eq!(told, "the guest powered off");
    }
}

/// QEMU ends, and says why; Cloud Hypervisor boots the guest anew.
fn a_guest_that_resets_is_noticed(choice: &Choice) {
    let bench = Bench::new(choice, PvhEnd::Reset);
    let pid = bench.start();
    match choice.driver {
        Driver::Qemu { .. } => {
            assert_eq!(bench.reap(pid), WaitStatus::Exited(pid, 0));
            assert_eq!(bench.verdict(), (1, "the guest reset itself".to_owned()));
        }
        Driver::CloudHypervisor => {
            bench.until("a second boot", || bench.printed().matches(GREETING).count() > 1);
            assert_eq!(bench.verdict(), (0, String::new()));
            kill(pid, Signal::SIGKILL).unwrap();
            bench.reap(pid);
        }
    }
}

#[test]
fn a_guest_that_panics_is_noticed_by_qemu() {
    with(Wish::QemuTcg, |choice| {
        let bench = Bench::new(choice, PvhEnd::Panic);
        let pid = bench.start();
        bench.reap(pid);
        assert_eq!(bench.verdict(), (1, "the guest's kernel panicked".to_owned()));
    });
}

fn a_hypervisor_that_hangs_is_noticed(choice: &Choice) {
    let bench = Bench::new(choice, PvhEnd::Halt);
    let pid = bench.start();
    let vm = bench.vm();
    vm.ping().unwrap();
    kill(pid, Signal::SIGSTOP).unwrap();
    // One of its threads may still answer until all have stopped.
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    for _ in 0..2 {
        let begin = Instant::now();
        let error = assert_code(vm.ping(), Code::TimedOut);
        assert!(error.to_string().contains("hangs"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    }
    kill(pid, Signal::SIGCONT).unwrap();
    bench.until("it answers again", || vm.ping().is_ok());
    assert_eq!(vm.info().unwrap().state, VmState::Running);
    vm.shutdown().unwrap();
    bench.reap(pid);
}

fn a_hypervisor_that_dies_while_it_starts_is_noticed(choice: &Choice) {
    let mut bench = Bench::new(choice, PvhEnd::Halt);
    // Long enough for the guest not to be ready before.
    bench.config.ready = Ready::Address { address: "2001:db8::1".parse().unwrap() };
    bench.wrap(
        "\"$real\" \"$@\" & hypervisor=$!
        until [ -S serial.sock ]; do sleep 0.005; done
        kill -9 $hypervisor; wait $hypervisor",
    );
    let begin = Instant::now();
    let message = bench.fail_to_start();
    assert!(message.contains("ended"), "{message}");
    assert!(message.contains("exit status 137"), "{message}");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());

    bench.wrap("exit 3");
    let message = bench.fail_to_start();
    assert!(message.contains("ended before it answered: exit status 3"), "{message}");
}

fn who_ends_a_start_ends_its_hypervisor(choice: &Choice) {
    let mut bench = Bench::new(choice, PvhEnd::Halt);
    bench.config.ready = Ready::Address { address: "2001:db8::1".parse().unwrap() };
    let mut start = bench.begin("start");
    bench.until_printed(GREETING);
    kill(Pid::from_raw(start.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(start.wait().unwrap().code(), Some(1));
    assert!(!bench.dir.join("pid").exists());
    let is_gone = || {
        // It was reparented to us.
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::Signaled(..))) {}
        hypervisors(&bench.dir).is_empty()
    };
    bench.until("the hypervisor is gone", is_gone);
}

/// It is shut in: what it was not given it cannot open, whatever its guest makes of it.
#[test]
fn cloud_hypervisor_opens_only_what_it_was_given() {
    with(Wish::CloudHypervisor, |choice| {
        let mut bench = Bench::new(choice, PvhEnd::Halt);
        let [given, other] = ["given", "other"].map(|name| bench.folder.path().join(name));
        bench.config.disk_folders = vec![given.clone()];
        fs::create_dir(&given).unwrap();
        fs::create_dir(&other).unwrap();
        let pid = bench.start();
        let add = |folder: &Path, serial: &str| {
            let from = bench.disk(serial);
            let path = folder.join("disk.img");
            fs::rename(from.path, &path).unwrap();
            bench.vm().add_disk(&Disk { path, serial: serial.into(), readonly: false })
        };
        add(&given, "one").unwrap();
        let refused = assert_code(add(&other, "two"), Code::ToolFailed).to_string();
        assert!(refused.contains("Permission denied"), "{refused}");
        bench.vm().shutdown().unwrap();
        bench.reap(pid);
    });
}

fn what_a_dead_one_left_is_taken_over(choice: &Choice) {
    let bench = Bench::new(choice, PvhEnd::Halt);
    bench.deaf();
    for name in ["api.sock", "serial.sock"] {
        // A path that is short enough to be bound.
        let link = bench.folder.path().join("short");
        let _ = std::os::unix::fs::symlink(&bench.dir, &link);
        drop(UnixListener::bind(link.join(name)).unwrap());
    }
    fs::write(bench.dir.join("pid"), "1").unwrap();
    let first = bench.start();
    kill(first, Signal::SIGKILL).unwrap();
    bench.reap(first);
    assert!(bench.dir.join("api.sock").exists(), "it had no time to remove it");

    let second = bench.start();
    assert_ne!(first, second);
    bench.vm().ping().unwrap();
    bench.vm().shutdown().unwrap();
    bench.reap(second);
}

fn what_it_refuses_is_told_in_its_words(choice: &Choice) {
    let mut one = Bench::new(choice, PvhEnd::Halt);
    one.config.disks = vec![one.disk("shared")];
    let pid = one.start();
    let mut two = Bench::new(choice, PvhEnd::Halt);
    two.config.disks = one.config.disks.clone();
    let message = two.fail_to_start();
    assert!(message.contains("refuses") && message.to_lowercase().contains("lock"), "{message}");
    one.vm().shutdown().unwrap();
    one.reap(pid);
    // It is not in the way any more.
    let pid = two.start();
    two.vm().shutdown().unwrap();
    two.reap(pid);
}

fn another_machine_is_not_taken_for_this_one(choice: &Choice) {
    let mut bench = Bench::new(choice, PvhEnd::Halt);
    let pid = bench.start();
    bench.config.uuid = vm::uuid_of("1/demo/other");
    fs::write(bench.dir.join("vm.json"), serde_json::to_vec(&bench.config).unwrap()).unwrap();
    assert_code(Vm::open(&bench.dir).unwrap().info(), Code::Conflict);
    // None of our signals is held back from it.
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(bench.reap(pid), WaitStatus::Exited(pid, 0));
    assert!(!bench.errors().contains("ERROR"), "{}", bench.errors());
}

fn a_tap_is_its_network(choice: &Choice) {
    let tap = Tap::new();
    let carrier = || fs::read_to_string(format!("/sys/class/net/{}/carrier", tap.net.tap));
    assert_eq!(carrier().unwrap().trim(), "0");
    let mut bench = Bench::new(choice, PvhEnd::Halt);
    bench.config.net = Some(tap.net.clone());
    let pid = bench.start();
    assert_eq!(carrier().unwrap().trim(), "1");
    bench.vm().shutdown().unwrap();
    bench.reap(pid);

    bench.config.net.as_mut().unwrap().tap = "rz-none-such".into();
    bench.config.net.as_mut().unwrap().mac = "no mac at all".into();
    let message = bench.fail_to_start();
    assert!(message.contains("refuses") && message.contains("add-net"), "{message}");
}
