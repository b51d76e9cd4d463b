//! Nodes, placements, and calls that go through to them.

use futures_util::StreamExt;
use http::{HeaderMap, Method};
use rhizome_identity::http_signature;
use rhizome_model::api::{
    AccountView, ExecRequest, NodeStatus, NodeView, PlacementReply, PlacementRequest, PoolChange,
    PoolMode,
};
use rhizome_model::{Code, Phase};
use serde_json::Value;

use crate::world::{SOON, User, World};

#[tokio::test]
async fn nodes_are_shown_as_they_are() {
    let world = World::new(3).await;
    let user = world.user(1);
    world.nodes[1].place.close();
    world.ledger.change_node(3, |n| n.online = false);
    let nodes: Vec<NodeView> = user.client.get("/v1/nodes").await.unwrap();
    let seen: Vec<_> = nodes
        .iter()
        .map(|n| (n.id.0, n.online, n.reachable, n.capacity.is_some(), n.problem.is_some()))
        .collect();
    assert_eq!(
        seen,
        [(1, true, true, true, false), (2, true, false, false, true), (3, false, true, true, true)]
    );
    assert_eq!(nodes[0].address, world.nodes[0].key().mycelium_address());
    assert!(nodes[1].problem.as_ref().unwrap().contains("cannot reach"), "{nodes:?}");
    let one: NodeView = user.client.get("/v1/nodes/1").await.unwrap();
    assert_eq!(one, nodes[0]);
    let failure = user.client.get::<NodeView>("/v1/nodes/9").await.unwrap_err();
    assert_eq!(failure.code, Code::NotFound);
    let status: NodeStatus = user.client.get("/v1/nodes/1/status").await.unwrap();
    assert_eq!(status.facts.id.0, 1);
    let failure = user.client.get::<NodeStatus>("/v1/nodes/2/status").await.unwrap_err();
    assert_eq!(failure.code, Code::Unavailable);
}

/// At the address of one node another one answers.
#[tokio::test]
async fn a_node_is_not_taken_for_another() {
    let world = World::new(2).await;
    let user = world.user(1);
    let url = world.nodes[1].place.url();
    world.ledger.change_node(1, |n| n.supervisor_url = Some(url));
    let node: NodeView = user.client.get("/v1/nodes/1").await.unwrap();
    assert!(
        !node.reachable && node.problem.as_ref().unwrap().contains("answers as node 2"),
        "{node:?}"
    );
}

#[tokio::test]
async fn a_placement_takes_the_freest_nodes_that_work() {
    let world = World::new(4).await;
    let user = world.user(1);
    for (node, free) in world.nodes.iter().zip([10, 30, 20, 40]) {
        node.with(|m| m.free_mib = free);
    }
    world.nodes[3].place.close();
    let place = async |count| {
        let request = PlacementRequest { count };
        let reply = user.client.post::<PlacementReply>("/v1/placements", &request).await;
        reply.map(|r| r.nodes.iter().map(|n| n.id.0).collect::<Vec<_>>())
    };
    assert_eq!(place(2).await.unwrap(), [2, 3]);
    assert_eq!(place(3).await.unwrap(), [2, 3, 1]);
    let failure = place(4).await.unwrap_err();
    assert_eq!(failure.code, Code::InsufficientCapacity);
    assert!(failure.detail.as_ref().unwrap().contains("node 4"), "{failure:?}");
    assert_eq!(place(0).await.unwrap_err().code, Code::BadRequest);
}

#[tokio::test]
async fn nodes_that_nobody_approved_of_and_closed_farms_are_passed_over() {
    let world = World::new(2).await;
    world.ledger.disapprove(1);
    let place = async |user: &User, count| {
        let request = PlacementRequest { count };
        let reply = user.client.post::<PlacementReply>("/v1/placements", &request).await;
        reply.map(|r| r.nodes.iter().map(|n| n.id.0).collect::<Vec<_>>())
    };
    let (owner, other) = (world.user(1), world.user(2));
    assert_eq!(place(&other, 1).await.unwrap(), [2]);
    let failure = place(&other, 2).await.unwrap_err();
    assert!(failure.detail.unwrap().contains("has not approved of it"));
    // Who holds what the ledger said before is told with the next poll: here, by a new coord.
    world.ledger.close_farm();
    let world = world.with_coord_that_knows_nothing().await;
    assert_eq!(place(&owner, 1).await.unwrap(), [2]);
    let failure = place(&other, 1).await.unwrap_err();
    assert!(failure.detail.unwrap().contains("rhizome grant"));
    let refused = other.submit(other.sign(&other.document("app", 1, &[2]))).await.unwrap_err();
    assert_eq!(refused.code, Code::NotGranted);
    drop(world);
}

#[tokio::test]
async fn accounts_are_found_by_their_key() {
    let world = World::new(0).await;
    let user = world.user(1);
    let path = format!("/v1/accounts/{}", user.key.key_id());
    let account: AccountView = user.client.get(&path).await.unwrap();
    assert_eq!((account.id.0, account.key), (1, user.key.key_id()));
    // Who has no account learns so about themselves.
    let nobody = User::new(9).of(&world.coord.url());
    let path = format!("/v1/accounts/{}", nobody.key.key_id());
    let failure = nobody.client.get::<AccountView>(&path).await.unwrap_err();
    assert_eq!(failure.code, Code::UnknownAccount);
    let failure = user.client.get::<AccountView>("/v1/accounts/xyz").await.unwrap_err();
    assert_eq!(failure.code, Code::BadRequest);
}

#[tokio::test]
async fn logs_stream_through_with_the_callers_own_signature() {
    let world = World::new(2).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1, 2]).await;
    user.sees("demo", 1, Phase::Ready).await;
    let path = "/v1/deployments/1/demo/resources/data/logs?follow=true&tail=5";
    let call = |path: String| {
        let client = user.client.clone();
        async move { client.call(Method::GET, &path, Vec::new(), HeaderMap::new(), None).await }
    };
    let failure = call(path.into()).await.unwrap_err();
    assert_eq!(failure.code, Code::BadRequest, "it is on both nodes: {failure}");
    let answer = call(format!("{path}&node=2")).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let mut lines = std::pin::pin!(answer.bytes_stream());
    // The first line is here although the node has not ended yet.
    let first = tokio::time::timeout(SOON, lines.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first, "first\n");
    world.nodes[1].says("1/demo", 1, rhizome_model::What::Log { message: String::new() });
    assert_eq!(lines.next().await.unwrap().unwrap(), "second\n");
    assert!(lines.next().await.is_none());
    let signer = user.key.key_id().to_string();
    let expected = [(format!("GET {path}&node=2"), signer)];
    assert_eq!(world.nodes[1].with(|m| m.calls.clone()), expected);
    let failure = call("/v1/deployments/1/demo/resources/nothing/logs".into()).await.unwrap_err();
    assert_eq!(failure.code, Code::NotFound);
    let failure = call(format!("{path}&node=7")).await.unwrap_err();
    assert_eq!(failure.code, Code::NotFound);
}

#[tokio::test]
async fn a_command_goes_through_with_its_body() {
    let world = World::new(1).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    let path = "/v1/deployments/1/demo/resources/data/exec";
    let request = ExecRequest { command: vec!["echo".into(), "hello".into()] };
    let echoed: ExecRequest = user.client.post(path, &request).await.unwrap();
    assert_eq!(echoed, request);
    // A body that is not the signed one ends here.
    let mut headers = http_signature::signer(user.key.clone())(&Method::POST, path, None, b"{}");
    headers.insert("content-type", "application/json".parse().unwrap());
    let body = serde_json::to_vec(&request).unwrap();
    let failure = user.plain.call(Method::POST, path, body, headers, None).await.unwrap_err();
    assert_eq!(failure.code, Code::Unauthenticated);
    assert_eq!(world.nodes[0].with(|m| m.calls.len()), 1);
}

#[tokio::test]
async fn what_operators_ask_goes_through_as_they_signed_it() {
    let world = World::new(1).await;
    let (owner, other) = (world.user(1), world.user(2));
    let job = "0123456789abcdef0123456789abcdef";
    for path in ["queues", "queues/volume/dead", &format!("jobs/{job}"), "runners", "limits"] {
        let path = format!("/v1/nodes/1/{path}");
        let answer: Value = owner.client.get(&path).await.unwrap();
        assert_eq!(answer["asked"], path);
        let failure = other.client.get::<Value>(&path).await.unwrap_err();
        assert_eq!(failure.code, Code::Unauthorised, "the node's own word: {path}");
    }
    for path in [format!("jobs/{job}/cancel"), format!("jobs/{job}/again")] {
        let answer: Value =
            owner.client.post_bytes(&format!("/v1/nodes/1/{path}"), vec![]).await.unwrap();
        assert_eq!(answer["asked"], format!("/v1/nodes/1/{path}"));
    }
    let pause = PoolChange { mode: Some(PoolMode::Paused), scale: None };
    let answer: Value = owner.client.post("/v1/nodes/1/runners/volume", &pause).await.unwrap();
    assert_eq!(answer["body"], "{\"mode\":\"paused\"}");
    let none = serde_json::json!({});
    let answer: Value = owner.client.put("/v1/nodes/1/limits/default", &none).await.unwrap();
    assert_eq!(answer["asked"], "/v1/nodes/1/limits/default");
    let failure = owner.client.get::<Value>("/v1/nodes/9/runners").await.unwrap_err();
    assert_eq!(failure.code, Code::NotFound);
}
