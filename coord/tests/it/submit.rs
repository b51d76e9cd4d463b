//! From an envelope to ready; and every refusal, which changes nothing.

use std::time::Instant;

use futures_util::StreamExt;
use rhizome_model::{Code, MAX_ENVELOPE_BYTES, Phase, What, payload_type};
use serde_json::json;

use crate::world::user::now_secs;
use crate::world::{User, World};

#[tokio::test]
async fn the_same_bytes_reach_every_node_and_the_outputs_come_back() {
    let world = World::new(2).await;
    let user = world.user(1);
    // Written in another way than we would: nobody on the way may tidy it up.
    let envelope: serde_json::Value =
        serde_json::from_slice(&user.sign(&user.document("demo", 1, &[1, 2]))).unwrap();
    let bytes = serde_json::to_vec_pretty(&envelope).unwrap();
    let submitted = user.submit(bytes.clone()).await.unwrap();
    assert_eq!((submitted.phase, submitted.after), (Phase::Pending, 0));
    let view = user.sees("demo", 1, Phase::Ready).await;
    for (node, task) in world.nodes.iter().zip(&view.tasks) {
        assert_eq!(node.received(), std::slice::from_ref(&bytes));
        assert_eq!(task.node, node.node.id);
        assert_eq!(task.outputs["ok"], json!(1));
        assert_eq!(task.resources[0].resource.name.as_str(), "data");
        assert_eq!(task.waiting_for, None);
    }
    assert_eq!(world.audited().await, ["accepted"]);
}

#[tokio::test]
async fn what_is_refused_changes_nothing() {
    let world = World::new(2).await;
    let user = world.user(1);
    user.deploy("demo", 2, &[1]).await;
    user.sees("demo", 2, Phase::Ready).await;
    world.nodes[1].with(|m| m.slow = true);
    user.deploy("busy", 1, &[2]).await;
    user.sees("busy", 1, Phase::Running).await;
    let kept = world.kept().await;

    let good = || user.document("new", 1, &[1]);
    let with = |field: &str, value: serde_json::Value| {
        let mut document = good();
        document[field] = value;
        user.sign(&document)
    };
    let tampered = |at: &str| {
        let mut envelope: serde_json::Value = serde_json::from_slice(&user.sign(&good())).unwrap();
        let other: serde_json::Value = serde_json::from_slice(&user.sign(&good())).unwrap();
        *envelope.pointer_mut(at).unwrap() = other.pointer(at).unwrap().clone();
        envelope.to_string().into_bytes()
    };
    let half_bad = || {
        let mut envelope: serde_json::Value = serde_json::from_slice(&user.sign(&good())).unwrap();
        let other: serde_json::Value = serde_json::from_slice(&User::new(2).sign(&good())).unwrap();
        envelope["signatures"].as_array_mut().unwrap().push(other["signatures"][0].clone());
        let mut spoilt = good();
        spoilt["name"] = json!("other");
        let other: serde_json::Value = serde_json::from_slice(&User::new(2).sign(&spoilt)).unwrap();
        envelope["signatures"][1] = other["signatures"][0].clone();
        envelope.to_string().into_bytes()
    };
    let foreign_type = user.key.sign_envelope("text/plain", b"{}").to_json().into_bytes();
    let operation = user.key.sign_envelope(payload_type::OPERATION, b"{}").to_json().into_bytes();
    let unknown = User::new(9);
    for (code, envelope) in [
        (Code::TooLarge, vec![b' '; MAX_ENVELOPE_BYTES + 1]),
        (Code::BadEnvelope, b"{}".to_vec()),
        (Code::BadEnvelope, Vec::new()),
        (Code::UnknownPayloadType, foreign_type),
        (Code::InvalidDocument, operation),
        (Code::BadSignature, tampered("/payload")),
        (Code::BadSignature, tampered("/signatures/0/sig")),
        (Code::BadSignature, half_bad()),
        (Code::InvalidDocument, with("surprise", json!(1))),
        (Code::InvalidDocument, with("name", json!("../x"))),
        (Code::InvalidDocument, with("version", json!(u64::MAX))),
        (Code::WrongNetwork, with("network", json!("main"))),
        (Code::Expired, with("expires", json!(now_secs() - 1))),
        (Code::NotYetValid, with("not_before", json!(now_secs() + 100))),
        (Code::UnknownAccount, unknown.sign(&unknown.document("new", 1, &[1]))),
        (Code::Unauthorised, User::new(2).sign(&good())),
        (Code::WrongNode, with("placement", json!({ "nodes": [1, 77] }))),
        (Code::WrongNode, with("placement", json!({ "nodes": [u64::MAX] }))),
        (Code::StaleVersion, user.sign(&user.document("demo", 2, &[1]))),
        (Code::StaleVersion, user.sign(&user.document("demo", 1, &[1]))),
        (Code::Conflict, user.sign(&user.document("busy", 2, &[2]))),
        (Code::Conflict, user.sign(&user.document("demo", 3, &[2]))),
        (Code::NotFound, user.sign_delete("nothing", 1)),
        (Code::StaleVersion, user.sign_delete("demo", 1)),
    ] {
        let failure = user.submit(envelope).await.unwrap_err();
        assert_eq!(failure.code, code, "{failure}");
        assert_eq!(world.kept().await, kept, "{code} changed something");
    }
    // Much too large is turned away by the server, before it is read.
    let failure = user.submit(vec![b' '; MAX_ENVELOPE_BYTES + 100_000]).await.unwrap_err();
    assert_eq!(failure.code, Code::TooLarge, "{failure}");
    let audited = world.audited().await;
    assert_eq!(audited.len(), 2 + 24);
    assert_eq!(audited[2..5], ["too_large", "bad_envelope", "bad_envelope"]);
    assert_eq!(world.nodes[0].received().len(), 1);
}

#[tokio::test]
async fn a_nonce_counts_once_whatever_it_is_used_for() {
    let world = World::new(1).await;
    let user = world.user(1);
    let document = user.document("demo", 1, &[1]);
    let envelope = user.sign(&document);
    user.submit(envelope.clone()).await.unwrap();
    user.sees("demo", 1, Phase::Ready).await;
    let kept = world.kept().await;
    let failure = user.submit(envelope.clone()).await.unwrap_err();
    assert_eq!(failure.code, Code::Replayed);
    assert!(failure.message.contains("version 1 of 1/demo"), "{failure}");
    let mut next = user.document("demo", 2, &[1]);
    next["nonce"] = document["nonce"].clone();
    assert_eq!(user.submit(user.sign(&next)).await.unwrap_err().code, Code::Replayed);
    assert_eq!(world.kept().await, kept);
    // Another account's nonces are its own, and a restart forgets none.
    let other = world.user(2);
    let mut theirs = other.document("demo", 1, &[1]);
    theirs["nonce"] = document["nonce"].clone();
    other.submit(other.sign(&theirs)).await.unwrap();
    world.kill_coord().await;
    world.start_coord().await;
    assert_eq!(user.submit(envelope).await.unwrap_err().code, Code::Replayed);
}

#[tokio::test]
async fn a_refused_envelope_does_not_use_up_its_nonce() {
    let world = World::new(1).await;
    let user = world.user(1);
    let mut document = user.document("demo", 1, &[77]);
    assert_eq!(user.submit(user.sign(&document)).await.unwrap_err().code, Code::WrongNode);
    document["placement"] = json!({ "nodes": [1] });
    user.submit(user.sign(&document)).await.unwrap();
}

#[tokio::test]
async fn a_new_version_takes_the_place_of_the_old_one() {
    let world = World::new(2).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    let submitted = user.deploy("demo", 5, &[1, 2]).await;
    let view = user.sees("demo", 5, Phase::Ready).await;
    assert_eq!(view.tasks.len(), 2);
    assert!(view.tasks.iter().all(|t| t.outputs["ok"] == json!(5)));
    let events = user.events("demo").await;
    assert!(events[..submitted.after as usize].iter().all(|e| e.version.0 == 1));
    assert!(events[submitted.after as usize..].iter().all(|e| e.version.0 == 5));
    // What an old version still says is kept, and moves nothing.
    let failure = rhizome_model::Failure::new(Code::ScriptFailed, "late");
    let late = What::Phase { phase: Phase::Failed, failure: Some(failure), outputs: None };
    world.nodes[0].says("1/demo", 1, late);
    world.nodes[0].says("1/demo", 5, What::Log { message: "mark".into() });
    let mut stream = std::pin::pin!(user.follow("demo", 0).await.unwrap());
    while !matches!(&stream.next().await.unwrap().unwrap().1.what, What::Log { .. }) {}
    assert_eq!(user.show("demo").await.unwrap().phase, Phase::Ready);
}

#[tokio::test]
async fn a_delete_ends_it_and_the_name_is_free_again() {
    let world = World::new(1).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    let submitted = user.submit(user.sign_delete("demo", 1)).await.unwrap();
    assert_eq!(submitted.phase, Phase::Deleting);
    user.sees("demo", 1, Phase::Deleted).await;
    let listed = |path: &'static str| {
        let client = user.client.clone();
        async move { client.get::<Vec<serde_json::Value>>(path).await.unwrap().len() }
    };
    assert_eq!(listed("/v1/deployments").await, 0);
    assert_eq!(listed("/v1/deployments?all=true").await, 1);
    assert_eq!(user.submit(user.sign_delete("demo", 1)).await.unwrap_err().code, Code::NotFound);
    let again = user.sign(&user.document("demo", 1, &[1]));
    assert_eq!(user.submit(again).await.unwrap_err().code, Code::StaleVersion);
    user.deploy("demo", 2, &[1]).await;
    user.sees("demo", 2, Phase::Ready).await;
    assert_eq!(listed("/v1/deployments").await, 1);
}

#[tokio::test]
async fn what_its_node_refuses_is_refused_with_the_nodes_words() {
    let world = World::new(1).await;
    let user = world.user(1);
    let no = rhizome_model::Failure::new(Code::InsufficientCapacity, "asked for too much")
        .with_detail("here");
    world.nodes[0].next([crate::world::Mood::Fails(no.clone())]);
    user.deploy("demo", 1, &[1]).await;
    let view = user.sees("demo", 1, Phase::Refused).await;
    assert_eq!(view.tasks[0].failure.as_ref(), Some(&no));
    let events = user.events("demo").await;
    assert!(events.iter().any(|e| matches!(&e.what, What::Phase { phase: Phase::Refused, failure: Some(f), .. } if *f == no)));
    assert_eq!(world.nodes[0].received().len(), 1, "a refusal is not tried again");
    // The next version is another matter; and what was never taken can be deleted.
    user.deploy("demo", 2, &[1]).await;
    user.sees("demo", 2, Phase::Ready).await;
    world.nodes[0].next([crate::world::Mood::Fails(no)]);
    user.deploy("other", 1, &[1]).await;
    user.sees("other", 1, Phase::Refused).await;
    user.submit(user.sign_delete("other", 1)).await.unwrap();
    user.sees("other", 1, Phase::Deleted).await;
}

/// The part of coord in the time from submit to result: everything but the supervisor's own work.
#[tokio::test]
async fn it_is_quick() {
    let world = World::new(1).await;
    let user = world.user(1);
    let mut times = Vec::new();
    for version in 1..=30 {
        let envelope = user.sign(&user.document("demo", version, &[1]));
        let begin = Instant::now();
        let submitted = user.submit(envelope).await.unwrap();
        let mut stream = std::pin::pin!(user.follow("demo", submitted.after).await.unwrap());
        loop {
            let (_, event) = stream.next().await.unwrap().unwrap();
            if matches!(event.what, What::Phase { phase: Phase::Ready, .. }) {
                break;
            }
        }
        times.push(begin.elapsed());
    }
    times.sort();
    println!("submit to result: p50 {:?}, max {:?}", times[15], times[29]);
    // A debug build on a shared machine; `rhizome bench submit` measures the real thing.
    assert!(times[15].as_millis() < 250, "{times:?}");
}
