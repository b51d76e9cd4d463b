//! A deployment's life: versions, failure, several nodes, secrets, what others may see.

use std::time::Duration;

use rhizome_tests::{System, eventually};

use crate::image::busybox;

fn sleeper(image: &str, names: &[&str]) -> String {
    let machine = |name: &&str| {
        format!(
            "machine(\"{name}\", #{{ image: \"{image}\", command: [\"/bin/sleep\", \"100000\"], memory: \"16MiB\", cpu: 0.05 }});\n"
        )
    };
    names.iter().map(machine).collect()
}

#[test]
fn a_newer_version_is_what_the_node_then_has() {
    let system = System::start();
    let image = busybox(&system.state);
    let first = system.script("v1.rhai", &sleeper(&image, &["a", "b"]));
    system.rhizome(&["deploy", &first, "--name", "app"]).ok();
    let before = system.kernel();
    assert_eq!(before.machines().len(), 2);

    let second = system.script("v2.rhai", &sleeper(&image, &["b", "c"]));
    let deployed = system.rhizome(&["deploy", &second, "--name", "app"]).ok().json();
    assert_eq!(deployed["version"], 2);
    let after = system.kernel();
    let names: Vec<_> = after.machines().into_iter().collect();
    assert_eq!(names, ["1.app.b", "1.app.c"]);
    // What did not change was not touched.
    assert_eq!(before.containers["1.app.b"], after.containers["1.app.b"]);
}

#[test]
fn a_version_that_fails_leaves_what_was_before() {
    let system = System::start();
    let image = busybox(&system.state);
    let broken = format!(
        "{}machine(\"bad\", #{{ image: \"file:///nowhere.tar\" }});",
        sleeper(&image, &["x"])
    );
    let broken = system.script("broken.rhai", &broken);
    system.rhizome(&["deploy", &broken, "--name", "app"]).refused(1, "image_not_found");
    assert!(system.kernel().machines().is_empty(), "a failed first version leaves nothing");

    let good = system.script("good.rhai", &sleeper(&image, &["a"]));
    system.rhizome(&["deploy", &good, "--name", "app"]).ok();
    let before = system.kernel();
    system.rhizome(&["deploy", &broken, "--name", "app"]).refused(1, "image_not_found");
    let after = system.kernel();
    assert_eq!(after.machines(), before.machines());
    assert_eq!(after.containers, before.containers);
    let capacity = system.rhizome(&["node", "1"]).ok().json();
    let reserved = &capacity["status"]["usage"]["reserved"]["memory"];
    assert_eq!(reserved.as_u64(), Some(16 << 20), "{capacity}");
}

#[test]
fn secrets_reach_the_machine_and_nothing_else() {
    let system = System::start();
    let image = busybox(&system.state);
    let script = system.script(
        "secret.rhai",
        &format!(
            "let m = machine(\"m\", #{{ image: \"{image}\", restart: \"never\",
                 env: #{{ PASSWORD: `<${{secret(\"password\")}}>` }},
                 command: [\"/bin/sh\", \"-c\", \"printf %s \\\"$PASSWORD\\\" | md5sum\"] }});
             output(\"said\", m.wait().output);
             output(\"token\", secret(\"password\"));"
        ),
    );
    let deployed = system
        .rhizome(&["deploy", &script, "--name", "app", "--secret", "password=tr0ub4dor"])
        .ok();
    // md5 of "<tr0ub4dor>": the machine had it, in its place in the text.
    assert_eq!(deployed.json()["outputs"]["said"], "53a020a914d84f304afb609948574b65  -\n");
    assert!(!deployed.stdout.contains("tr0ub4dor"));
    for command in [&["show", "app"][..], &["events", "app"]] {
        assert!(!system.rhizome(command).ok().stdout.contains("tr0ub4dor"));
    }
    assert!(!system.logs().contains("tr0ub4dor"));
    let log = std::fs::read(system.state.join("node-1/appendonlydir/appendonly.aof.1.incr.aof"));
    let log = String::from_utf8_lossy(&log.unwrap_or_default()).into_owned();
    assert!(!log.is_empty() && !log.contains("tr0ub4dor"), "the queue's file holds the secret");
}

#[test]
fn one_deployment_on_two_nodes() {
    let system = System::start_with(&["--nodes", "2"]);
    let image = busybox(&system.state);
    let source = format!("{}output(\"peers\", peers.len());", sleeper(&image, &["a"]));
    let script = system.script("two.rhai", &source);
    let deployed = system
        .rhizome(&["deploy", &script, "--name", "app", "--node", "1", "--node", "2"])
        .ok()
        .json();
    assert_eq!(deployed["phase"], "ready", "{deployed}");
    assert_eq!(system.kernel().namespaces.len(), 1, "the same name on both nodes");
    assert_eq!(system.kernel().containers["1.app.a"].len(), 2, "one process on each");
    let nodes = system.rhizome(&["nodes"]).ok().json();
    assert_eq!(nodes.as_array().map(Vec::len), Some(2), "{nodes}");
    system.rhizome(&["delete", "app"]).ok();
    assert!(system.kernel().machines().is_empty());
}

#[test]
fn a_machine_that_ends_is_started_again() {
    let system = System::start();
    let image = busybox(&system.state);
    let script = system.script(
        "flaky.rhai",
        &format!(
            "machine(\"m\", #{{ image: \"{image}\", command: [\"/bin/sh\", \"-c\", \"echo again; sleep 0.2; exit 3\"] }});"
        ),
    );
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
    eventually("it said it twice", Duration::from_secs(20), || {
        let log = system.plain(&["logs", "app/m"]).stdout;
        (log.matches("again").count() >= 2).then_some(())
    });
}

#[test]
fn the_example_of_rollback_goes_back_or_keeps_as_it_says() {
    let system = System::start();
    let image = format!("image={}", busybox(&system.state));
    let script = example("rollback.rhai");
    let good = ["deploy", &script, "--name", "shop", "--param", &image];
    system.rhizome(&good).ok();
    let before = system.kernel();
    let change = ["--param", "greeting=Servus", "--param", "broken=true"];
    let worse: Vec<&str> = good.iter().chain(&change).copied().collect();

    let failed = system.rhizome(&worse).refused(1, "script_failed").json();
    assert!(failed["error"].as_str().unwrap().contains("the cache is cold"), "{failed}");
    let after = system.kernel();
    assert_eq!((after.machines(), &after.volumes), (before.machines(), &before.volumes));
    assert_eq!(greeting(&system), "Hello");

    let keeping: Vec<&str> = worse.iter().chain(&["--on-failure", "keep"]).copied().collect();
    system.rhizome(&keeping).refused(1, "script_failed");
    let kept: Vec<_> = system.kernel().volumes.into_iter().collect();
    assert_eq!(kept, ["1.shop.cache", "1.shop.data"]);
    assert_eq!(greeting(&system), "Servus");
}

/// What the example's page says, from inside its machine.
fn greeting(system: &System) -> String {
    let page = eventually("the page is there", Duration::from_secs(20), || {
        let page = system.plain(&["exec", "shop/web", "--", "/bin/cat", "/data/index.html"]);
        (page.code == 0).then_some(page.stdout)
    });
    page.trim().to_owned()
}

fn example(name: &str) -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_rollback_that_does_not_succeed_says_so_until_it_does() {
    let system = System::start();
    let image = busybox(&system.state);
    let script = system.script(
        "stuck.rhai",
        &format!(
            "let v = volume(\"v\", #{{ size: \"8MiB\" }}); v.used;
             let m = machine(\"m\", #{{ image: \"{image}\", restart: \"never\", memory: \"16MiB\", cpu: 0.1,
                 command: [\"/bin/sh\", \"-c\", \"while [ ! -e /go/go ]; do sleep 0.1; done\"],
                 mounts: [#{{ volume: v, path: \"/go\" }}] }});
             m.wait();
             fail(\"enough\");"
        ),
    );
    system.rhizome(&["deploy", &script, "--name", "app", "--detach"]).ok();
    let folder = eventually("the volume", Duration::from_secs(30), || {
        system.kernel().containers.get("1.app.m")?;
        Some(system.state.join("node-1/pool/volumes/1.app.v")).filter(|folder| folder.is_dir())
    });
    std::fs::write(folder.join("go"), "").unwrap();
    // Not even root may remove it.
    let immutable = |flag: &str| {
        let done = std::process::Command::new("chattr").arg(flag).arg(&folder).status().unwrap();
        assert!(done.success());
    };
    immutable("+i");
    let shown = eventually("it is stuck", Duration::from_secs(30), || {
        let shown = system.rhizome(&["show", "app"]).ok().json();
        (shown["phase"] == "rollback_stuck").then_some(shown)
    });
    assert!(shown.to_string().contains("not permitted"), "{shown}");
    assert!(system.kernel().volumes.contains("1.app.v"));
    immutable("-i");
    eventually("it has gone back", Duration::from_secs(60), || {
        let shown = system.rhizome(&["show", "app"]).ok().json();
        (shown["phase"] == "failed" && shown.to_string().contains("enough")).then_some(())
    });
    let kernel = system.kernel();
    assert!(kernel.volumes.is_empty() && kernel.machines().is_empty());
}
