//! A Mycelium daemon that is not what it should be. Real ones are in `tests/mycelium`.

use std::path::PathBuf;

use rhizome_model::Code;
use rhizome_sal::{Mycelium, Peers};

use crate::daemon::{config, until};
use crate::netns::Node;
use crate::world::{World, assert_code};

/// Programs that are not what they should be: those need no Mycelium.
fn fake(world: &World, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = world.folder.path().join("mycelium");
    let version = "if [ \"$1\" = --version ]; then echo mycelium 9.9; exit; fi";
    std::fs::write(&path, format!("#!/bin/sh\n{version}\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_daemon_that_ends_or_is_mute_is_a_reason() {
    let node = Node::new();
    for (script, reason) in [
        ("echo it does not work >&2; exit 3", "exit status: 3): it does not work"),
        // The key is there to be read, and is not said.
        ("test $(head -c 32 $2 | wc -c) = 32 && exit 4", "exit status: 4)"),
    ] {
        let daemon = node.run(async move |world| {
            let config = config(world, 0, fake(world, script), Peers::Alone);
            Mycelium::start(config).await.unwrap()
        });
        let view = until(&node, &daemon, |view| view.restarts >= 2);
        assert_eq!(view.driver, "mycelium 9.9");
        assert!(view.problem.as_ref().unwrap().contains(reason), "{view:?}");
        node.run(async move |_| daemon.stop().await);
    }
    let daemon = node.run(async |world| {
        let config = config(world, 0, fake(world, "exec sleep 1000"), Peers::Alone);
        Mycelium::start(config).await.unwrap()
    });
    let view = until(&node, &daemon, |view| view.problem.as_ref().unwrap() != "mycelium starts");
    assert!(view.problem.unwrap().contains("does not answer"));
    node.run(async move |world| {
        daemon.stop().await;
        let error =
            Mycelium::start(config(world, 0, "/nowhere/mycelium".into(), Peers::Alone)).await;
        assert_code(error.map(drop), Code::MissingTool);
    });
}
