//! Ctrl-C and a new start on the same folder; and the hard way.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_tests::{System, eventually};

use crate::image::{busybox, counts_its_starts};

#[test]
fn started_again_on_the_same_folder_it_finds_everything_as_it_was() {
    let mut system = System::start();
    let script = counts_its_starts(&system);
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
    let node = system.rhizome(&["nodes"]).ok().json()[0]["key"].clone();

    system.down();
    assert!(system.kernel().is_empty(), "{:#?}", system.kernel());
    system.up();

    assert_eq!(system.rhizome(&["nodes"]).ok().json()[0]["key"], node);
    assert_eq!(system.rhizome(&["list"]).ok().json()[0]["phase"], "ready");
    eventually("the machine runs again with its data", Duration::from_secs(30), || {
        let starts = system.plain(&["exec", "app/m", "--", "/bin/cat", "/data/starts"]);
        (starts.stdout == "start\nstart\n").then_some(())
    });
}

#[test]
fn after_a_kill_of_everything_the_machines_were_never_gone() {
    let mut system = System::start();
    let image = busybox(&system.state);
    let script = system.script(
        "app.rhai",
        &format!(
            "machine(\"m\", #{{ image: \"{image}\", command: [\"/bin/sleep\", \"100000\"] }});"
        ),
    );
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
    let before = system.kernel().containers;
    for role in ["dev", "node", "supervisor", "runner", "coord", "ledger", "redis-server"] {
        for pid in system.pids(role) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
    eventually("all of it is dead", Duration::from_secs(20), || {
        system.pids("node").is_empty().then_some(())
    });
    system.forget();
    system.up();
    eventually("the node has reconciled", Duration::from_secs(30), || {
        (system.rhizome(&["show", "app"]).code == 0).then_some(())
    });
    assert_eq!(system.kernel().containers, before);
}

#[test]
fn a_dev_that_was_killed_takes_its_processes_with_it_and_leaves_the_machines() {
    let mut system = System::start();
    let image = busybox(&system.state);
    let script = system.script(
        "app.rhai",
        &format!(
            "machine(\"m\", #{{ image: \"{image}\", command: [\"/bin/sleep\", \"100000\"] }});"
        ),
    );
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
    let before = system.kernel().containers;
    let dev = system.pids("dev")[0];
    kill(Pid::from_raw(dev.cast_signed()), Signal::SIGKILL).unwrap();
    system.forget();
    // At once, while the others are still ending.
    system.up();
    system.rhizome(&["show", "app"]).ok();
    assert_eq!(system.kernel().containers, before);
    let again = system.script("again.rhai", "output(\"ok\", 1);");
    system.rhizome(&["deploy", &again, "--name", "again"]).ok();
    eventually("one of each is left", Duration::from_secs(60), || {
        let one = |role| system.pids(role).len() == 1;
        (one("dev") && one("coord") && one("ledger") && one("node") && one("supervisor"))
            .then_some(())
    });
}
