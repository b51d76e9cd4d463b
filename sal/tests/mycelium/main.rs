//! Real Mycelium daemons, where the program is on PATH; without it each of these is ignored.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../it/daemon.rs"]
mod daemon;
#[path = "../it/netns.rs"]
#[allow(dead_code)]
mod netns;
#[path = "../it/pair.rs"]
mod pair;
#[path = "../it/world.rs"]
#[allow(dead_code)]
mod world;

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use rhizome_model::api::PeerState;
use rhizome_sal::{Mycelium, Peers};

use daemon::{address, config, until};
use netns::{End, Node, Wire, end_of, inside, join, packet, shell, udp};
use pair::{next, payloads_until, reach_each_other};
use world::{id, processes};

fn main() -> ExitCode {
    let trials = vec![
        trial("machines_of_two_nodes_reach_each_other", machines_of_two_nodes_reach_each_other),
        trial("a_daemon_whose_peers_are_away_says_so", a_daemon_whose_peers_are_away_says_so),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, test: fn(PathBuf)) -> Trial {
    let program = Mycelium::find();
    let is_missing = program.is_none();
    let test = move || {
        test(program.ok_or_else(|| Failed::from("mycelium is not on PATH"))?);
        Ok(())
    };
    Trial::test(name, test).with_ignored_flag(is_missing)
}

/// Starts the daemon of a node.
fn start(node: &Node, n: usize, program: PathBuf, peers: Peers) -> Mycelium {
    node.run(async move |world| Mycelium::start(config(world, n, program, peers)).await.unwrap())
}

fn machines_of_two_nodes_reach_each_other(program: PathBuf) {
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
    let (own, out, gateway) = a.run(async move |world| inside(world, &web()));
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

fn a_daemon_whose_peers_are_away_says_so(program: PathBuf) {
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
