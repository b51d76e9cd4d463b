//! What `make demo` shows, checked.

use std::path::Path;

use rhizome_tests::System;

use crate::image::busybox;

#[test]
fn a_signed_script_becomes_machines_that_talk_and_leaves_nothing() {
    let mut system = System::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo.rhai");
    let script = script.to_string_lossy();
    let image = format!("image={}", busybox(&system.state));

    let deployed =
        system.rhizome(&["deploy", &script, "--name", "demo", "--param", &image]).ok().json();
    assert_eq!(deployed["phase"], "ready", "{deployed}");
    let fetched = deployed["outputs"]["fetched"].as_str().unwrap().to_owned();
    assert!(!fetched.trim().is_empty());

    let machines = system.kernel().machines();
    assert_eq!(machines.into_iter().collect::<Vec<_>>(), ["1.demo.client", "1.demo.web"]);

    // The page came over the network from web: it is in web's volume.
    let page = system.plain(&["exec", "demo/web", "--", "/bin/cat", "/data/index.html"]).ok();
    assert_eq!(page.stdout.trim(), fetched.trim());
    let log = system.plain(&["logs", "demo/client"]).ok();
    assert!(log.stdout.contains(fetched.trim()), "{}", log.stdout);
    assert_eq!(system.plain(&["exec", "demo/web", "--", "/bin/sh", "-c", "exit 7"]).code, 7);

    let shown = system.rhizome(&["show", "demo"]).ok().json();
    assert_eq!(shown["phase"], "ready");
    let resources = shown["tasks"][0]["resources"].as_array().unwrap();
    let state = |name| &resources.iter().find(|r| r["name"] == name).unwrap()["status"]["state"];
    assert_eq!((state("web"), state("client")), (&"running".into(), &"exited".into()), "{shown}");
    let events = system.plain(&["events", "demo"]).ok();
    assert!(events.stdout.contains("web"), "{}", events.stdout);

    system.rhizome(&["delete", "demo"]).ok();
    let kernel = system.kernel();
    assert!(kernel.machines().is_empty() && kernel.volumes.is_empty(), "{kernel:#?}");

    system.down();
    assert!(system.kernel().is_empty(), "{:#?}", system.kernel());
    let left = rhizome_tests::processes_naming(&system.state);
    assert!(left.is_empty(), "{left:?}");
}
