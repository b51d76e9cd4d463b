//! `kill -9` of each process, one at a time, while 20 machines are being made.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_tests::{Kernel, System, command, eventually};

use crate::image::busybox;

const MACHINES: usize = 20;

#[derive(Debug, Clone, Copy)]
enum Victim {
    Process(&'static str),
    /// Who does the jobs of a queue.
    RunnerOf(&'static str),
}

impl Victim {
    /// None while it is not there: a process that died a moment ago may not be back yet.
    fn pid(self, system: &System) -> Option<u32> {
        let pids = match self {
            Self::Process(role) => system.pids(role),
            Self::RunnerOf(queue) => system.runners_of(queue),
        };
        pids.first().copied()
    }
}

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

/// Deploys; kills one process after the other, each when some machines more exist and the deployment
/// is still under way; looks at what is there in the end.
fn survive(victims: &[Victim]) {
    let system = System::start();
    let script = fleet(&system);
    let mut deploy = command()
        .args(["--json", "--state"])
        .arg(&system.state)
        .args(["deploy", &script, "--name", "fleet"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for (round, victim) in victims.iter().enumerate() {
        let wanted = 1 + round * (MACHINES - 2) / victims.len();
        let pid = eventually("some machines more", Duration::from_secs(60), || {
            assert!(deploy.try_wait().unwrap().is_none(), "it ended before {victim:?} was killed");
            let far_enough = system.kernel().namespaces.len() >= wanted;
            far_enough.then(|| victim.pid(&system)).flatten()
        });
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    }

    let output = deploy.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", system.logs());
    let expected: Vec<_> = (0..MACHINES).map(|i| format!("1.fleet.m-{i}")).collect();
    // An attempt that was killed may still be clearing up behind the one that finished.
    let whole = |kernel: &Kernel| {
        let all = [&kernel.namespaces, &kernel.links, &kernel.cgroups, &kernel.subvolumes];
        all.iter().all(|seen| expected.iter().all(|m| seen.contains(m)) && seen.len() == MACHINES)
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !whole(&system.kernel()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let kernel = system.kernel();
    assert_eq!(kernel.machines().len(), MACHINES);
    assert_eq!(kernel.volumes.iter().collect::<Vec<_>>(), ["1.fleet.data"]);
    // Each machine runs once: one `sleep` of its own in the process table. The runtime says that it
    // runs a moment before it has become the program.
    eventually("each machine has its one process", Duration::from_secs(5), || {
        let (kernel, sleeps) = (system.kernel(), sleepers());
        let own = |machine: &String| kernel.containers[machine].intersection(&sleeps).count();
        expected.iter().all(|machine| own(machine) == 1).then_some(())
    });
    assert_eq!(sleepers_of(&system.kernel()), MACHINES, "none runs twice");
    system.rhizome(&["delete", "fleet"]).ok();
    assert!(system.kernel().machines().is_empty() && system.kernel().volumes.is_empty());
}

fn sleepers_of(kernel: &Kernel) -> usize {
    let sleeps = sleepers();
    kernel
        .containers
        .values()
        .flatten()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .filter(|p| sleeps.contains(p))
        .count()
}

fn sleepers() -> std::collections::BTreeSet<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line == b"/bin/sleep\x00100000\x00"
    })
    .collect()
}

#[test]
fn each_runner_and_the_supervisor_are_killed() {
    use Victim::{Process, RunnerOf};
    survive(&[
        RunnerOf("script"),
        RunnerOf("volume"),
        RunnerOf("machine"),
        RunnerOf("machine-actions"),
        Process("supervisor"),
    ]);
}

#[test]
fn node_coord_ledger_and_redis_are_killed() {
    survive(&["redis-server", "coord", "ledger", "node", "redis-server"].map(Victim::Process));
}

#[test]
fn the_runner_of_machines_is_killed_again_and_again() {
    survive(&[Victim::RunnerOf("machine"); 6]);
}

/// Its supervisor sees a runner die and gives its jobs back at once, so there is no lease to wait for:
/// what it costs is the next attempt, which finds in the journal what was done.
#[test]
fn the_death_of_the_runner_of_scripts_costs_less_than_two_seconds() {
    let system = System::start();
    let script = fleet(&system);
    let run = |name: &str, kills: bool| {
        let begun = Instant::now();
        let mut deploy = command();
        deploy.args(["--json", "--state"]).arg(&system.state);
        deploy.args(["deploy", &script, "--name", name]).stdout(Stdio::null());
        let mut deploy = deploy.spawn().unwrap();
        if kills {
            eventually("some of the machines", Duration::from_secs(60), || {
                assert!(
                    deploy.try_wait().unwrap().is_none(),
                    "it ended before anything was killed"
                );
                (system.kernel().namespaces.len() >= 3).then_some(())
            });
            let runner = Victim::RunnerOf("script").pid(&system).unwrap();
            kill(Pid::from_raw(runner.cast_signed()), Signal::SIGKILL).unwrap();
        }
        assert!(deploy.wait().unwrap().success(), "{}", system.logs());
        let took = begun.elapsed();
        system.rhizome(&["delete", name]).ok();
        took
    };
    run("warm-up", false);
    let (calm, disturbed) = (run("calm", false), run("disturbed", true));
    println!("undisturbed {calm:?}, with a death {disturbed:?}");
    assert!(disturbed < calm + Duration::from_secs(2), "{calm:?} and {disturbed:?}");
}
