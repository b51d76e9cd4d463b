//! What the network of machines lets through, and what not. Every node has a network of its own,
//! so nothing here touches the host's.

use std::net::Ipv6Addr;

use rhizome_model::{Drift, ResourceId, gateway_address, resource_address};

use crate::netns::{
    End, Node, Wire, end_of, frame, inside, ipv4, join, link_local, neighbour, packet, parse_mac,
    route, router, seen, shell, udp,
};
use crate::pair::{SERVER, fetching, make, next, payloads_until, reach_each_other};
use crate::world::{World, id};

const ALL_NODES: End =
    End { mac: [0x33, 0x33, 0, 0, 0, 1], address: Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1) };

/// Frames from `a` to `b`, and whether `b` is to see them. All links get what goes to a group, also
/// when the bridge has been deceived about who is where.
fn frames(a: End, receiver: End) -> Vec<(&'static str, bool, Vec<u8>)> {
    let (other, b) = (receiver.address, End { mac: ALL_NODES.mac, ..receiver });
    let a_local = End { address: link_local(a.mac), ..a };
    let with_mac = |mac| End { mac, ..a };
    let with_address = |address: &str| End { address: address.parse().unwrap(), ..a };
    let nobody = with_address("::");
    let hello = udp(9, "hello");
    let tagged = [&[0, 5, 0x86, 0xdd][..], &packet(a, b, 17, &udp(9, "tagged"))[14..]].concat();
    vec![
        ("its own", true, packet(a, b, 17, &hello)),
        ("its own link-local", true, packet(a_local, b, 17, &hello)),
        ("a question for a neighbour", true, packet(a, b, 58, &neighbour(135, other))),
        ("an answer for itself", true, packet(a, b, 58, &neighbour(136, a.address))),
        (
            "an answer for its link-local",
            true,
            packet(a_local, b, 58, &neighbour(136, a_local.address)),
        ),
        ("is my address free?", true, packet(nobody, b, 58, &neighbour(135, a.address))),
        ("is another's address free?", false, packet(nobody, b, 58, &neighbour(135, other))),
        ("without an address", false, packet(nobody, b, 17, &hello)),
        ("the receiver's address", false, packet(End { mac: a.mac, ..b }, b, 17, &hello)),
        ("an address nearby", false, packet(End { address: next(a.address), ..a }, b, 17, &hello)),
        ("an address of elsewhere", false, packet(with_address("2001:db8::1"), b, 17, &hello)),
        ("a link-local address", false, packet(with_address("fe80::1"), b, 17, &hello)),
        ("the receiver's MAC", false, packet(with_mac(receiver.mac), b, 17, &hello)),
        ("a MAC nearby", false, packet(with_mac([2, 0, 0, 0, 0, 1]), b, 17, &hello)),
        ("an answer for another", false, packet(a, b, 58, &neighbour(136, other))),
        (
            "an answer for the gateway",
            false,
            packet(a, b, 58, &neighbour(136, gateway_address(other))),
        ),
        ("a router", false, packet(a_local, b, 58, &router())),
        ("a redirect", false, packet(a_local, b, 58, &[137; 40])),
        ("a DHCP server", false, packet(a_local, b, 17, &udp(546, "lease"))),
        ("ARP", false, frame(a.mac, b.mac, 0x0806, &[0; 28])),
        ("IPv4", false, frame(a.mac, b.mac, 0x0800, &ipv4())),
        ("a VLAN", false, frame(a.mac, b.mac, 0x8100, &tagged)),
        ("what nobody knows", false, frame(a.mac, b.mac, 0x1234, b"rubbish")),
    ]
}

/// The names of the frames that arrive.
fn arrived(world: &World, from: &ResourceId, to: &ResourceId) -> Vec<&'static str> {
    let (a, b) = (end_of(world, from), end_of(world, to));
    let (out, into) = (Wire::inside(world, from), Wire::inside(world, to));
    let frames = frames(a, b);
    let last = packet(a, End { mac: ALL_NODES.mac, ..b }, 17, &udp(9, "the last one"));
    frames.iter().for_each(|(_, _, frame)| out.send(frame));
    out.send(&last);
    let all = into.until(&last);
    let came = frames.into_iter().filter(|(_, _, frame)| all.contains(&seen(frame)));
    came.map(|(name, _, _)| name).collect()
}

#[test]
fn a_machine_sends_as_itself_only_and_a_flushed_filter_comes_back() {
    Node::new().run(async |world| {
        let a = make(world, "1/demo/a", "sleep 1000").await;
        let b = make(world, "1/demo/b", "sleep 1000").await;
        let all = frames(end_of(world, &a), end_of(world, &b));
        let wanted: Vec<_> =
            all.iter().filter(|(_, passes, _)| *passes).map(|(n, _, _)| *n).collect();
        assert_eq!(arrived(world, &a, &b), wanted);

        let mark = world.mark();
        for (broken, opens) in [
            (format!("delete table bridge {mark}"), true),
            (format!("flush chain bridge {mark} machine"), true),
            (format!("flush set bridge {mark} sources"), false),
            (format!("flush set bridge {mark} macs"), false),
            (format!("delete table inet {mark}"), false),
            ("flush ruleset".to_owned(), true),
        ] {
            shell(&format!("nft {broken}"));
            if opens {
                // So it was the filter that held them up, and nothing else.
                assert_eq!(arrived(world, &a, &b).len(), all.len(), "{broken}");
            }
            let spec = world.script("sleep 1000");
            let drifted = world.machines.keep(&a, &spec).await.unwrap().drifted;
            assert_eq!(drifted.iter().map(|d| d.drift).collect::<Vec<_>>(), [Drift::Network]);
            assert_eq!(arrived(world, &a, &b), wanted, "{broken}");
            // It came back for all of them.
            assert!(world.machines.keep(&b, &spec).await.unwrap().drifted.is_empty());
        }

        world.machines.delete(&a).await.unwrap();
        let left = shell(&format!("nft list table bridge {mark}"));
        assert_eq!(left.matches("elements").count(), 3, "those of b: {left}");
        world.machines.delete(&b).await.unwrap();
        let left = shell(&format!("nft list table bridge {mark}"));
        assert!(!left.contains("elements"), "{left}");
        world.assert_clean();
        world.sal.down().await.unwrap();
        assert_eq!(shell("nft list tables"), "");
        assert!(!shell("ip -o link").contains("rz"));
    });
}

#[test]
fn the_node_takes_nobody_on_its_bridge_for_a_router_and_forwards_no_ipv4() {
    Node::new().run(async |world| {
        let a = make(world, "1/demo/a", "sleep 1000").await;
        let (own, bridge) = (end_of(world, &a), world.mark());
        let conf = format!("/proc/sys/net/ipv6/conf/{bridge}/accept_ra");
        assert_eq!(std::fs::read_to_string(&conf).unwrap(), "0\n");
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "0\n");
        assert_eq!(shell(&format!("ip -4 -o address show dev {bridge}")), "");
        // As if somebody had turned it on: the filter stands for itself.
        std::fs::write(&conf, "2").unwrap();
        let own = End { address: link_local(own.mac), ..own };
        let gateway = parse_mac(
            &std::fs::read_to_string(format!("/sys/class/net/{bridge}/address")).unwrap(),
        );
        let (out, into) = (Wire::inside(world, &a), Wire::on(&bridge));
        let routers = || shell("ip -6 route show default");
        let last = |n: u8| {
            packet(
                own,
                End { mac: gateway, address: ALL_NODES.address },
                17,
                &udp(9, &n.to_string()),
            )
        };
        out.send(&packet(own, ALL_NODES, 58, &router()));
        out.send(&last(1));
        into.until(&last(1));
        assert_eq!(routers(), "");

        shell(&format!("nft delete table bridge {bridge}"));
        out.send(&packet(own, ALL_NODES, 58, &router()));
        out.send(&last(2));
        into.until(&last(2));
        assert!(
            routers().contains(&own.address.to_string()),
            "without the filter it would be believed"
        );
    });
}

#[test]
fn every_link_leaves_room_for_the_overlay() {
    Node::new().run(async |world| {
        let a = make(world, "1/demo/a", "sleep 1000").await;
        let mtu = |link: &str| {
            std::fs::read_to_string(format!("/sys/class/net/{link}/mtu")).unwrap().trim().to_owned()
        };
        assert_eq!(world.exec(&a, "cat /sys/class/net/eth0/mtu").await, (0, "1400\n".into()));
        let links = shell("ls /sys/class/net");
        let ours: Vec<_> = links.lines().filter(|l| l.starts_with("rz")).collect();
        assert_eq!(ours.len(), 2, "{links}");
        assert!(ours.iter().all(|link| mtu(link) == "1400"));

        let link = ours.iter().find(|link| **link != world.mark()).unwrap();
        shell(&format!("ip link set {link} mtu 1300"));
        let kept = world.machines.keep(&a, &world.script("sleep 1000")).await.unwrap();
        assert_eq!(kept.drifted.len(), 1);
        assert_eq!(mtu(link), "1400");
    });
}

#[test]
fn two_nodes_of_one_machine_reach_each_other_and_disturb_nobody() {
    Node::new().run(async |first| {
        shell("nft add table bridge others; nft add table inet others");
        let second = World::new().await;
        let name = "1/demo/web";
        for world in [first, &second] {
            make(world, name, SERVER).await;
        }
        for (world, other) in [(first, &second), (&second, first)] {
            let address = resource_address(other.config.address, &id(name));
            let (code, size) = world.exec(&id(name), &fetching(address)).await;
            assert_eq!((code, size.as_str()), (0, "1048576\n"));
        }
        second.machines.delete(&id(name)).await.unwrap();
        second.sal.down().await.unwrap();
        let mark = first.mark();
        let mut left: Vec<String> = shell("nft list tables").lines().map(str::to_owned).collect();
        left.sort();
        let mut wanted = ["bridge others", "inet others"].map(|t| format!("table {t}")).to_vec();
        wanted.extend(["bridge", "inet"].map(|family| format!("table {family} {mark}")));
        wanted.sort();
        assert_eq!(left, wanted);
        let spec = first.script(SERVER);
        assert!(first.machines.keep(&id(name), &spec).await.unwrap().drifted.is_empty());
    });
}

#[test]
fn machines_of_two_nodes_reach_each_other_and_no_forged_address_gets_across() {
    let (a, b) = (Node::new(), Node::new());
    join(&a, &b);
    route(&a, &b);
    reach_each_other(&a, &b);
    let web = || id("1/demo/web");
    let to = b.run(async move |world| end_of(world, &web()));
    let into = b.run(async move |world| Wire::inside(world, &web()));

    // From inside a machine of the other node, by way of its gateway.
    let (own, out, gateway) = a.run(async move |world| inside(world, &web()));
    let routed = End { mac: gateway, ..to };
    let forged = [
        End { address: next(own.address), ..own },
        End { address: to.address, ..own },
        End { address: "400::1".parse().unwrap(), ..own },
        End { mac: [2, 0, 0, 0, 0, 1], ..own },
    ];
    forged.iter().for_each(|from| out.send(&packet(*from, routed, 17, &udp(9, "forged"))));
    out.send(&packet(own, routed, 17, &udp(9, "honest")));
    assert_eq!(payloads_until(&into, "honest"), ["honest"]);

    // From outside of both: by the wire between them.
    let uplink = |node: &Node| parse_mac(&node.shell("cat /sys/class/net/up0/address"));
    let (from, router) = (uplink(&a), End { mac: uplink(&b), ..to });
    let out = a.run(async |_| Wire::on("up0"));
    let outside = |address: &str| End { mac: from, address: address.parse().unwrap() };
    let neighbour_of_it = End { mac: from, address: next(to.address) };
    for from in [outside("2001:db8::1"), outside("fd00::1"), neighbour_of_it] {
        out.send(&packet(from, router, 17, &udp(9, "forged")));
    }
    out.send(&packet(outside("400::1"), router, 17, &udp(9, "overlay")));
    assert_eq!(payloads_until(&into, "overlay"), ["overlay"]);

    for node in [&a, &b] {
        node.run(async |world| {
            world.machines.delete(&id("1/demo/web")).await.unwrap();
            world.assert_clean();
        });
    }
}
