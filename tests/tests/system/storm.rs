//! Many deployments with many versions, some of which fail, while whatever runs is killed.
//!
//! ```text
//!   clients: deploy, update, fail, delete, each deployment by itself      killer: SIGKILL, who and when
//!                      └────────────── the seed decides ──────────────────────────┘
//!   then: every deployment is what its newest successful version says, or gone; nothing else is there
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_tests::{Kernel, System, eventually};
use serde_json::Value;

use crate::image::busybox;

const CLIENTS: usize = 6;
const VERSIONS: usize = 4;
const ROLES: [&str; 9] = [
    "runner",
    "runner",
    "runner",
    "runner",
    "supervisor",
    "redis-server",
    "coord",
    "ledger",
    "node",
];
/// Of one deployment or its end; kills on the way included.
const LIMIT: Duration = Duration::from_secs(180);

/// What one version declares: volumes by name with MiB, and machines.
#[derive(Debug, Clone, Default, PartialEq)]
struct Shape {
    volumes: BTreeMap<String, u64>,
    machines: BTreeSet<String>,
    fails: bool,
}

impl Shape {
    fn random(rng: &mut fastrand::Rng) -> Self {
        let mut shape = Self { fails: rng.u8(0..10) < 3, ..Self::default() };
        for name in ["a", "b", "c"] {
            if rng.bool() {
                shape.volumes.insert(name.into(), rng.u64(1..4));
            }
        }
        if rng.u8(0..4) == 0 {
            shape.machines.insert("m".into());
        }
        shape
    }

    fn script(&self, image: &str) -> String {
        let mut script = String::new();
        for (name, mib) in &self.volumes {
            script += &format!("let {name} = volume(\"{name}\", #{{ size: \"{mib}MiB\" }});\n");
        }
        let machine = |name: &str, image: &str| {
            format!(
                "machine(\"{name}\", #{{ image: \"{image}\", memory: \"8MiB\", cpu: 0.01, disk: \"8MiB\", \
                 command: [\"/bin/sleep\", \"100000\"] }});\n"
            )
        };
        for name in &self.machines {
            script += &machine(name, image);
        }
        if self.fails {
            script += &machine("bad", "file:///there/is/none.tar");
        }
        script
    }
}

/// One client's deployment, from its first version to its last word. What must be there then.
fn live(
    system: &System,
    image: &str,
    name: &str,
    rng: &mut fastrand::Rng,
    unlucky: &AtomicUsize,
) -> Option<Shape> {
    let mut there: Option<Shape> = None;
    for version in 1..=rng.usize(1..=VERSIONS) {
        let shape = Shape::random(rng);
        let file = system.script(&format!("{name}-{version}.rhai"), &shape.script(image));
        // Whoever hears nothing, or that a version is under way, asks again.
        let good = eventually("a version has its end", LIMIT, || {
            let answer = system.rhizome(&["deploy", &file, "--name", name]);
            match answer.code {
                0 => Some(true),
                1 => Some(false),
                3 | 4 => None,
                _ => panic!("{name} v{version}: {answer:?}\n{}", system.logs()),
            }
        });
        assert!(!(good && shape.fails), "{name} v{version} cannot be made");
        if good {
            there = Some(shape);
        } else if !shape.fails {
            // Jobs that were killed too often are set aside: the version fails, and goes back.
            println!("{name} v{version} failed of itself");
            unlucky.fetch_add(1, Ordering::Relaxed);
        }
    }
    if rng.u8(0..4) == 0 {
        eventually("it is deleted", LIMIT, || {
            system.rhizome(&["delete", name]);
            let shown = show(system, name)?;
            (shown["phase"] == "deleted" || shown["code"] == "not_found").then_some(())
        });
        return None;
    }
    there
}

fn show(system: &System, name: &str) -> Option<Value> {
    let answer = system.rhizome(&["show", name]);
    let shown: Value = serde_json::from_str(answer.stdout.lines().next()?).ok()?;
    (shown["code"] != "unavailable").then_some(shown)
}

fn what_must_be(there: &BTreeMap<String, Shape>) -> (BTreeSet<String>, BTreeSet<String>) {
    let of = |pick: fn(&Shape) -> Vec<String>| {
        let all = there.iter().flat_map(|(d, shape)| {
            pick(shape).into_iter().map(move |name| format!("1.{d}.{name}"))
        });
        all.collect::<BTreeSet<_>>()
    };
    (of(|s| s.volumes.keys().cloned().collect()), of(|s| s.machines.iter().cloned().collect()))
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().map_or(usual, |n| n.parse().unwrap())
}

/// The long form: `make chaos`.
#[test]
fn every_deployment_is_what_its_newest_good_version_says() {
    let deployments = number("RHIZOME_STORM", 12) as usize;
    let seed = number("RHIZOME_SEED", uuid::Uuid::new_v4().as_u64_pair().0);
    println!("RHIZOME_SEED={seed} RHIZOME_STORM={deployments}");
    let system = System::start();
    let image = busybox(&system.state);
    let (next, kills, unlucky) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    let mut there = BTreeMap::new();
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut rng = fastrand::Rng::with_seed(seed);
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(rng.u64(100..1200)));
                let role = ROLES[rng.usize(0..ROLES.len())];
                let pids = system.pids(role);
                // One that died a moment ago may not be back yet.
                let Some(pid) = pids.get(rng.usize(0..pids.len().max(1))) else { continue };
                if kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).is_ok() {
                    kills.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let client = || {
            let mut ends = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= deployments {
                    return ends;
                }
                let name = format!("d-{n}");
                let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(n as u64 + 1));
                ends.push((name.clone(), live(&system, &image, &name, &mut rng, &unlucky)));
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let ends: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        over.store(true, Ordering::Relaxed);
        killer.join().unwrap();
        for end in ends {
            let end = end.unwrap_or_else(|_| panic!("RHIZOME_SEED={seed}"));
            there.extend(end.into_iter().filter_map(|(name, shape)| Some((name, shape?))));
        }
    });
    println!("{} kills, {} deployments are there", kills.load(Ordering::Relaxed), there.len());
    let unlucky = unlucky.into_inner();
    assert!(unlucky * 10 <= deployments * VERSIONS, "{unlucky} versions failed of themselves");
    let (volumes, machines) = what_must_be(&there);
    let as_it_must_be =
        |kernel: &Kernel| kernel.volumes == volumes && kernel.machines() == machines;
    let mut last = system.kernel();
    for _ in 0..600 {
        if as_it_must_be(&last) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        last = system.kernel();
    }
    assert_eq!(last.volumes, volumes, "RHIZOME_SEED={seed}");
    assert_eq!(last.machines(), machines, "RHIZOME_SEED={seed}");
    for (machine, processes) in &last.containers {
        // The one that was asked for, and what keeps it.
        assert!(!processes.is_empty(), "{machine} has no process");
    }
    for name in there.keys() {
        eventually("it is deleted", LIMIT, || {
            system.rhizome(&["delete", name]);
            let shown = show(&system, name)?;
            (shown["phase"] == "deleted" || shown["code"] == "not_found").then_some(())
        });
    }
    eventually("nothing is left", LIMIT, || {
        let kernel = system.kernel();
        (kernel.machines().is_empty() && kernel.volumes.is_empty()).then_some(())
    });
}
