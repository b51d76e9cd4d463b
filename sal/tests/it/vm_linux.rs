//! Linux under QEMU: it becomes what its NoCloud disk says, and answers on its address.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use rhizome_guest::{CMDLINE, PvhEnd, get, linux};
use rhizome_model::Code;
use rhizome_sal::vm::{self, Disk, Ended, Ready, Seed, SeedMount, SeedNet, VmState, Wish};

use crate::vm_bench::{Bench, Tap, hypervisor};
use crate::world::assert_code;

fn has_open(pid: Pid, path: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    open.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path))
}

fn seed(tap: &Tap) -> Seed {
    Seed {
        instance_id: "i-7".into(),
        hostname: "web".into(),
        ssh_keys: vec!["ssh-ed25519 AAAA me@there".into()],
        env: [("GREETING", "it's \"so\""), ("LINES", "a\nb")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        network: Some(SeedNet {
            mac: tap.net.mac.clone(),
            address: tap.guest,
            prefix: 64,
            gateway: tap.gateway,
            routes: vec!["400::/7".into()],
            nameservers: Vec::new(),
            mtu: 1400,
        }),
        mounts: vec![SeedMount {
            serial: "data".into(),
            path: "/srv/data".into(),
            readonly: false,
            filesystem: "ext4".into(),
        }],
    }
}

#[test]
fn linux_becomes_what_its_seed_says_and_keeps_its_disk() {
    let Some(choice) = hypervisor(Wish::QemuTcg) else { return };
    let mut bench = Bench::new(&choice, PvhEnd::Halt);
    let Some(guest) = linux(bench.folder.path()) else { return };
    let tap = Tap::new();
    let data = bench.disk("data");
    let cidata = bench.dir.join("seed.img");
    vm::write_seed(&cidata, &seed(&tap)).unwrap();
    bench.config.kernel = guest.kernel;
    bench.config.initramfs = Some(guest.initramfs);
    bench.config.cmdline = CMDLINE.into();
    bench.config.memory = 256 << 20;
    bench.config.disks = vec![data, Disk { path: cidata, serial: "cidata".into(), readonly: true }];
    bench.config.net = Some(tap.net.clone());
    bench.config.ready = Ready::Address { address: tap.guest };

    let begin = Instant::now();
    let pid = bench.start();
    println!("its address answered after {:?}", begin.elapsed());
    bench.until_printed("guest ready web");
    let facts = get(tap.guest, "/facts").unwrap();
    for fact in [
        "hostname=web",
        "instance=i-7",
        "ssh=yes",
        &format!("address={}/64", tap.guest),
        "mtu=1400",
        "mount=/srv/data rw",
    ] {
        assert!(facts.lines().any(|line| line == fact), "{fact}: {facts}");
    }
    assert_eq!(get(tap.guest, "/env").unwrap(), "GREETING='it'\\''s \"so\"'\nLINES='a\nb'\n");
    get(tap.guest, "/cgi-bin/write?/srv/data/note=kept").unwrap();
    assert_eq!(get(tap.guest, "/files/srv-data/note").unwrap(), "kept");
    let counters = bench.vm().counters().unwrap();
    assert!(counters["disk-data"]["write_bytes"] > 0, "{counters:?}");
    assert!(counters["net0"]["tx_bytes"] > 0, "{counters:?}");

    // Plugged in while it runs, and given back by the guest.
    let later = bench.disk("later");
    let device = bench.vm().add_disk(&later).unwrap();
    bench.vm().remove_device(&device).unwrap();
    bench.until("the disk is gone", || !bench.vm().info().unwrap().disks.contains(&later.path));
    bench.until("its image is closed", || !has_open(pid, &later.path));
    assert_code(bench.vm().remove_device(&device), Code::NotFound);

    assert!(bench.run("power").status.success());
    assert_eq!(bench.reap(pid), WaitStatus::Exited(pid, 0));
    bench.until_printed("guest powers off");
    assert_eq!(vm::ended(&bench.dir), Some(Ended::PoweredOff));

    let pid = bench.start();
    let ready = || bench.printed().matches("guest ready web").count();
    bench.until("it is ready again", || ready() == 2);
    assert_eq!(get(tap.guest, "/files/srv-data/note").unwrap(), "kept");
    assert_eq!(bench.vm().info().unwrap().state, VmState::Running);
    bench.vm().shutdown().unwrap();
    bench.reap(pid);
    drop(tap);
    vm::clear(&bench.dir).unwrap();
    bench.assert_nothing_is_left();
}

#[test]
fn a_kernel_that_panics_is_a_reset_and_one_that_never_answers_fails_in_time() {
    let Some(choice) = hypervisor(Wish::QemuTcg) else { return };
    let mut bench = Bench::new(&choice, PvhEnd::Halt);
    let Some(guest) = linux(bench.folder.path()) else { return };
    bench.config.ready = Ready::Address { address: "2001:db8::1".parse().unwrap() };
    bench.config.ready_ms = 1_000;
    let begin = Instant::now();
    let message = bench.fail_to_start();
    assert!(message.contains("did not answer within 1s"), "{message}");
    assert!(begin.elapsed() < Duration::from_secs(5));

    // Without an initramfs there is no root, which is a panic.
    bench.config.kernel = guest.kernel;
    bench.config.cmdline = CMDLINE.into();
    bench.config.memory = 256 << 20;
    bench.config.ready_ms = 30_000;
    let message = bench.fail_to_start();
    assert!(message.contains("the guest reset itself"), "{message}");

    let rubbish = bench.folder.path().join("rubbish");
    fs::write(&rubbish, "no kernel").unwrap();
    bench.config.kernel = rubbish;
    let message = bench.fail_to_start();
    assert!(message.contains("is no kernel"), "{message}");
}
