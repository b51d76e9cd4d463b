//! Real Mycelium daemons, where the program is on PATH; what can be without it is always.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use rhizome_model::Code;
use rhizome_model::api::{NetworkView, PeerState};
use rhizome_sal::{Mycelium, MyceliumConfig, Peers};

use crate::net::{next, payloads_until, reach_each_other};
use crate::netns::{End, Node, Wire, end_of, join, packet, parse_mac, shell, udp};
use crate::world::{World, assert_code, id, processes};

/// Secrets and the addresses that follow from them; others have computed them too.
const SECRETS: [([u8; 32], &str); 2] = [
    ([7; 32], "44d:b237:e17f:d05e:81ad:b16f:4531:84b3"),
    (
        [
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
            24, 25, 26, 27, 28, 29, 30, 31,
        ],
        "430:9364:d8d8:84a9:dd60:de78:c767:d361",
    ),
];

fn address(n: usize) -> Ipv6Addr {
    SECRETS[n].1.parse().unwrap()
}

fn config(world: &World, n: usize, program: PathBuf, peers: Peers) -> MyceliumConfig {
    MyceliumConfig {
        program,
        node: world.config.key,
        secret: SECRETS[n].0.into(),
        address: address(n),
        peers,
        port: 9651,
        home: world.config.state.clone(),
    }
}

/// Starts the daemon of a node.
fn start(node: &Node, n: usize, program: PathBuf, peers: Peers) -> Mycelium {
    node.run(async move |world| Mycelium::start(config(world, n, program, peers)).await.unwrap())
}

/// Waits until the state is as wanted.
fn until(
    node: &Node,
    daemon: &Mycelium,
    wanted: impl Fn(&NetworkView) -> bool + Send + 'static,
) -> NetworkView {
    let mut state = daemon.state();
    node.run(async move |_| {
        let found = tokio::time::timeout(Duration::from_secs(40), state.wait_for(wanted)).await;
        let view = found.map(|found| found.unwrap().clone());
        view.unwrap_or_else(|_| panic!("still {:?}", state.borrow()))
    })
}

/// The program, or why there is nothing to test.
fn program() -> Option<PathBuf> {
    let found = Mycelium::find();
    if found.is_none() {
        println!("SKIPPED: mycelium is not on PATH");
    }
    found
}

#[test]
fn machines_of_two_nodes_reach_each_other_through_real_daemons() {
    let Some(program) = program() else { return };
    let (a, b) = (Node::at(address(0)), Node::at(address(1)));
    join(&a, &b);
    let peer = Peers::parse(&["tcp://[fd00::2]:9651"], false).unwrap();
    let at_b = start(&b, 1, program.clone(), Peers::Alone);
    until(&b, &at_b, |view| view.problem.is_none());
    let at_a = start(&a, 0, program.clone(), peer);
    let view = until(&a, &at_a, |view| view.problem.is_none() && view.routes > 0);
    println!("{}: {} at {}, peers {:?}", program.display(), view.driver, view.address, view.peers);
    assert_eq!(view.address, address(0));
    assert_eq!(view.peers[0].state, PeerState::Alive);
    assert_eq!(view.peers[0].endpoint, "tcp://[fd00::2]:9651");
    until(&b, &at_b, |view| view.problem.is_none() && view.routes > 0);

    // The node's own address is the daemon's, the /64 around it is the bridge's.
    let shown = a.run(async |world| {
        let tun = format!("{}-my", world.mark());
        let to = |address: Ipv6Addr| shell(&format!("ip -6 route get {address}"));
        let machine = rhizome_model::resource_address(world.config.address, &id("1/demo/web"));
        (
            shell(&format!("ip -6 -o address show dev {tun} scope global")),
            std::fs::read_to_string(format!("/sys/class/net/{tun}/mtu")).unwrap(),
            to(machine).contains(&format!("dev {} ", world.mark())),
            to(address(1)).contains(&format!("dev {tun} ")),
        )
    });
    println!("{}", shown.0.trim());
    assert!(shown.0.contains(&format!("{}/7", address(0))), "{}", shown.0);
    assert_eq!((shown.1.as_str(), shown.2, shown.3), ("1400\n", true, true));

    reach_each_other(&a, &b);
    println!("a container of each node fetched 1 MiB from one of the other");
    nothing_forged_gets_across(&a, &b);
    println!("no forged address got across");
    let view = until(&a, &at_a, |view| view.traffic.bytes > 1 << 20);
    println!("routed: {} packets, {} bytes", view.traffic.packets, view.traffic.bytes);

    a_dead_daemon_is_noticed_and_comes_back(&a, &at_a);
    reach_each_other(&a, &b);

    for (node, daemon) in [(a, at_a), (b, at_b)] {
        node.run(async move |world| {
            daemon.stop().await;
            let tun = format!("{}-my", world.mark());
            assert_eq!(processes(&tun), [""; 0]);
            assert!(!shell("ip -o link").contains(&tun));
            world.machines.delete(&id("1/demo/web")).await.unwrap();
            world.assert_clean();
        });
    }
}

fn nothing_forged_gets_across(a: &Node, b: &Node) {
    let web = || id("1/demo/web");
    let to = b.run(async move |world| end_of(world, &web()));
    let into = b.run(async move |world| Wire::inside(world, &web()));
    let (own, out, gateway) = a.run(async move |world| {
        let mac = shell(&format!("cat /sys/class/net/{}/address", world.mark()));
        (end_of(world, &web()), Wire::inside(world, &web()), parse_mac(&mac))
    });
    let routed = End { mac: gateway, ..to };
    for from in [next(own.address), to.address, address(0), "400::1".parse().unwrap()] {
        out.send(&packet(End { address: from, ..own }, routed, 17, &udp(9, "forged")));
    }
    out.send(&packet(own, routed, 17, &udp(9, "honest")));
    assert_eq!(payloads_until(&into, "honest"), ["honest"]);
}

fn a_dead_daemon_is_noticed_and_comes_back(node: &Node, daemon: &Mycelium) {
    let pid = node.run(async |world| {
        let found = processes(&format!("{}-my", world.mark()));
        assert_eq!(found.len(), 1, "{found:?}");
        // Neither its arguments nor its environment hold its key.
        assert!(!found[0].contains("0707"), "{found:?}");
        found[0].split(' ').next().unwrap().parse().unwrap()
    });
    let killed = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL).unwrap();
    let view = until(node, daemon, |view| view.restarts == 1);
    let problem = view.problem.unwrap_or_default();
    assert!(problem.contains("signal: 9") || problem.contains("starts"), "{problem}");
    println!("killed: {problem}");
    let view = until(node, daemon, |view| view.problem.is_none() && view.routes > 0);
    println!("it is back: {} peers, {} routes", view.peers.len(), view.routes);
}

#[test]
fn a_daemon_whose_peers_are_away_says_so() {
    let Some(program) = program() else { return };
    let node = Node::at(address(0));
    let peers = Peers::parse(&["tcp://[fd00::9]:9651", "quic://127.0.0.1:1"], false).unwrap();
    let daemon = start(&node, 0, program, peers);
    let view = until(&node, &daemon, |view| !view.peers.is_empty());
    let problem = view.problem.unwrap();
    println!("{problem}");
    assert!(problem.contains("connected to none of its peers"), "{problem}");
    assert_eq!(view.peers.len(), 2);
    node.run(async move |_| daemon.stop().await);
}

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
