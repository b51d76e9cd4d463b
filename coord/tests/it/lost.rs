//! A node that lost everything gets it again.

use rhizome_model::{Phase, What};

use crate::world::{World, until};

#[tokio::test]
async fn what_a_node_had_it_gets_again() {
    let world = World::new(1).await;
    let user = world.user(1);
    for name in ["one", "two"] {
        user.deploy(name, 1, &[1]).await;
        user.sees(name, 1, Phase::Ready).await;
    }
    let node = &world.nodes[0];
    node.place.close();
    node.forgets_everything();
    node.place.open();
    for name in ["one", "two"] {
        until("the node has it again", || async {
            let id = format!("1/{name}").parse().unwrap();
            node.with(|m| m.tasks.contains_key(&id)).then_some(())
        })
        .await;
        user.sees(name, 1, Phase::Ready).await;
        let events = user.events(name).await;
        let again: Vec<_> = events
            .iter()
            .filter_map(|e| match &e.what {
                What::Phase { phase, .. } => Some(phase.to_string()),
                What::Retrying { cause, .. } => Some(cause.clone()),
                _ => None,
            })
            .collect();
        let lost = "the node does not know it any more";
        let once = ["pending", "accepted", "running", "ready"];
        let expected: Vec<_> = once.iter().chain(&[lost]).chain(&once).copied().collect();
        assert_eq!(again, expected);
    }
    let received = node.received();
    assert_eq!(received.len(), 4);
    assert!(received[2..].iter().all(|r| received[..2].contains(r)), "not the same bytes");
}

#[tokio::test]
async fn what_was_under_way_goes_on() {
    let world = World::new(1).await;
    let user = world.user(1);
    let node = &world.nodes[0];
    node.with(|m| m.slow = true);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Running).await;
    node.place.close();
    node.forgets_everything();
    node.with(|m| m.slow = false);
    node.place.open();
    user.sees("demo", 1, Phase::Ready).await;
}

/// Version 2 failed, so the node was back at version 1 when it lost it.
#[tokio::test]
async fn the_version_that_worked_comes_back() {
    let world = World::new(1).await;
    let user = world.user(1);
    let node = &world.nodes[0];
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    node.with(|m| m.broken = true);
    user.deploy("demo", 2, &[1]).await;
    let failed = user.sees("demo", 2, Phase::Failed).await;
    assert_eq!(failed.tasks[0].failure.as_ref().unwrap().message, "it failed");
    node.place.close();
    node.forgets_everything();
    node.with(|m| m.broken = false);
    node.place.open();
    let id = "1/demo".parse().unwrap();
    let version = until("the node has something again", || async {
        node.with(|m| m.tasks.get(&id).map(|(t, _)| t.version.0))
    })
    .await;
    assert_eq!(version, 1);
    assert_eq!(user.show("demo").await.unwrap().phase, Phase::Failed, "what failed did fail");
}

#[tokio::test]
async fn what_was_being_deleted_there_is_gone() {
    let world = World::new(1).await;
    let user = world.user(1);
    let node = &world.nodes[0];
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    node.place.close();
    user.submit(user.sign_delete("demo", 1)).await.unwrap();
    node.forgets_everything();
    node.place.open();
    user.sees("demo", 1, Phase::Deleted).await;
}
