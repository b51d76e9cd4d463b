//! `kill -9` of each process, one at a time, while 20 machines are being made.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_tests::{System, command, eventually};

use crate::image::busybox;

const MACHINES: usize = 20;

fn fleet(system: &System) -> String {
    let image = busybox(&system.state);
    system.script(
        "fleet.rhai",
        &format!(
            "let data = volume(\"data\", #{{ size: \"16MiB\" }});
             for i in 0..{MACHINES} {{
                 machine(`m-${{i}}`, #{{ image: \"{image}\", memory: \"16MiB\", cpu: 0.05, disk: \"8MiB\",
                     mounts: [#{{ volume: data, path: \"/data\" }}], command: [\"/bin/sleep\", \"100000\"] }});
             }}"
        ),
    )
}

/// Deploys, kills with every `step` machines more that exist, and looks at what is there in the end.
fn survive(roles: &[&str]) {
    let system = System::start();
    let script = fleet(&system);
    let mut deploy = command()
        .args(["--json", "--state"])
        .arg(&system.state)
        .args(["deploy", &script, "--name", "fleet"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut killed = 0;
    for (round, role) in roles.iter().enumerate() {
        let wanted = 1 + round * (MACHINES - 4) / roles.len();
        eventually("some machines more", Duration::from_secs(60), || {
            let done = deploy.try_wait().unwrap().is_some();
            (system.kernel().namespaces.len() >= wanted || done).then_some(())
        });
        for pid in system.pids(role) {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
            killed += 1;
            // One at a time: the next one dies when this one's successor had a chance to start.
            std::thread::sleep(Duration::from_millis(150));
        }
    }
    assert!(killed >= roles.len(), "every role has a process to kill");

    let output = deploy.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", system.logs());
    let expected: Vec<_> = (0..MACHINES).map(|i| format!("1.fleet.m-{i}")).collect();
    // An attempt that was killed may still be clearing up behind the one that finished.
    eventually("the kernel agrees", Duration::from_secs(30), || {
        let kernel = system.kernel();
        let all = [&kernel.namespaces, &kernel.links, &kernel.cgroups, &kernel.subvolumes];
        let whole = all.iter().all(|seen| expected.iter().all(|m| seen.contains(m)) && seen.len() == MACHINES);
        whole.then_some(())
    });
    let kernel = system.kernel();
    assert_eq!(kernel.machines().len(), MACHINES);
    assert_eq!(kernel.volumes.iter().collect::<Vec<_>>(), ["1.fleet.data"]);
    // Each machine runs once: one `sleep` of its own in the process table.
    let sleeps = sleepers();
    for machine in &expected {
        let pids: std::collections::BTreeSet<_> = kernel.containers[machine].iter().collect();
        let own = pids.iter().filter(|p| sleeps.contains(**p)).count();
        assert_eq!(own, 1, "{machine}: {pids:?}");
    }
    system.rhizome(&["delete", "fleet"]).ok();
    assert!(system.kernel().machines().is_empty() && system.kernel().volumes.is_empty());
}

fn sleepers() -> std::collections::BTreeSet<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line == b"/bin/sleep\0100000\0"
    })
    .collect()
}

#[test]
fn runners_supervisor_and_node_are_killed() {
    survive(&["runner", "supervisor", "node"]);
}

#[test]
fn coord_ledger_and_redis_are_killed() {
    survive(&["redis-server", "coord", "ledger", "redis-server"]);
}
