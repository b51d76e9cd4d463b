//! A virtual machine from a signed script: a Linux guest under QEMU.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_guest::linux;
use rhizome_tests::{System, eventually};
use serde_json::Value;

use crate::image::busybox;

/// As the node reaches it.
fn get(address: &str, path: &str) -> String {
    rhizome_guest::get(address.parse().unwrap(), path).unwrap()
}

fn status(system: &System) -> Value {
    let shown = system.rhizome(&["show", "vm"]).ok().json();
    let resources = shown["tasks"][0]["resources"].as_array().unwrap();
    resources.iter().find(|r| r["name"] == "vm").unwrap()["status"].clone()
}

#[test]
fn a_signed_script_boots_a_guest_that_outlives_its_runner_and_goes_without_a_trace() {
    let system = System::start();
    let Some(guest) = linux(&system.state) else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/vm.rhai");
    let script = script.to_string_lossy().into_owned();
    let kernel = format!("kernel=file://{}", guest.kernel.display());
    let initramfs = format!("initramfs=file://{}", guest.initramfs.display());
    let params = ["--name", "vm", "--param", &kernel, "--param", &initramfs];
    let begin = Instant::now();
    let deployed = system.rhizome(&[&["deploy", &script], &params[..]].concat()).ok().json();
    println!("deployed after {:?}", begin.elapsed());
    let address = deployed["outputs"]["address"].as_str().unwrap().to_owned();
    let before = status(&system);
    assert_eq!(before["health"]["status"], "good", "{before}");
    assert_eq!(before["driver"], deployed["outputs"]["driver"]);

    // From the node, and from a container.
    let facts = get(&address, "/facts");
    for fact in ["hostname=vm", &format!("address={address}/64"), "mtu=1400", "mount=/data rw"] {
        assert!(facts.contains(fact), "no {fact} in {facts}");
    }
    assert_eq!(get(&address, "/cgi-bin/write?/data/kept=kept"), "written\n");
    let image = busybox(&system.state);
    let probe = system.script(
        "probe.rhai",
        &format!(
            "let m = machine(\"m\", #{{ image: \"{image}\", restart: \"never\", memory: \"16MiB\",
                 command: [\"/bin/wget\", \"-q\", \"-O\", \"-\", \"http://[{address}]/env\"] }});
             output(\"said\", m.wait().output);"
        ),
    );
    let probed = || system.rhizome(&["deploy", &probe, "--name", "probe"]).ok().json();
    assert_eq!(probed()["outputs"]["said"], "GREETING='hello'\n");
    let log = system.plain(&["logs", "vm/vm"]).ok().stdout;
    assert!(log.contains("guest ready vm"), "{log}");
    let refused = system.plain(&["exec", "vm/vm", "--", "ls"]);
    assert!(refused.code != 0 && refused.stderr.contains("ssh_keys"), "{refused:?}");

    // Whoever made it dies, and it is theirs again who come after.
    for role in ["runner", "supervisor"] {
        for pid in system.pids(role) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
    eventually("the node takes deployments again", Duration::from_secs(60), || {
        let gone = system.pids("supervisor").is_empty() || system.pids("runner").is_empty();
        (!gone && probed()["phase"] == "ready").then_some(())
    });
    assert_eq!(status(&system)["pid"], before["pid"]);
    assert!(Path::new("/proc").join(before["pid"].to_string()).exists());
    assert!(get(&address, "/facts").contains("hostname=vm"));

    let deploy = |more: &[&str]| {
        system.rhizome(&[&["deploy", &script], &params[..], more].concat()).ok().json()
    };
    assert_eq!(deploy(&[])["version"], 2);
    assert_eq!(status(&system)["pid"], before["pid"], "what is so is not touched");
    // Another environment is another machine on the same disk.
    deploy(&["--param", "greeting=again"]);
    let after = status(&system);
    assert_ne!(after["pid"], before["pid"]);
    assert_eq!(get(&address, "/files/data/kept"), "kept");
    assert_eq!(get(&address, "/env"), "GREETING='again'\n");

    let begin = Instant::now();
    system.rhizome(&["stop", "vm/vm"]).ok();
    println!("stopped after {:?}", begin.elapsed());
    assert_eq!(
        (&status(&system)["state"], &status(&system)["exit_code"]),
        (&"stopped".into(), &0.into())
    );
    let log = system.plain(&["logs", "vm/vm"]).ok().stdout;
    assert!(log.contains("guest powers off"), "{log}");

    system.rhizome(&["delete", "vm"]).ok();
    system.rhizome(&["delete", "probe"]).ok();
    let kernel = system.kernel();
    assert!(kernel.links.is_empty() && kernel.cgroups.is_empty(), "{kernel:#?}");
    assert!(kernel.subvolumes.is_empty() && kernel.volumes.is_empty(), "{kernel:#?}");
    let nodes = std::fs::read_dir(&system.state).unwrap().flatten().map(|e| e.path());
    let runs: Vec<_> = nodes.map(|n| n.join("run/machines")).filter(|r| r.exists()).collect();
    assert_eq!(runs.len(), 1);
    assert_eq!(std::fs::read_dir(&runs[0]).unwrap().count(), 0);
}
