//! Whatever goes away comes back, and nothing is lost or done twice meanwhile.

use rhizome_model::{Code, Failure, Phase, What};

use crate::world::{Mood, World, until};

fn away(text: &str) -> Failure {
    Failure::new(Code::Unavailable, text)
}

#[tokio::test]
async fn a_node_that_is_down_gets_it_when_it_is_back() {
    let world = World::new(1).await;
    let user = world.user(1);
    world.nodes[0].place.close();
    user.deploy("demo", 1, &[1]).await;
    let waiting = until("a reason is shown", || async {
        user.show("demo").await.unwrap().tasks.remove(0).waiting_for
    })
    .await;
    assert!(waiting.contains("node 1") && waiting.contains("cannot reach"), "{waiting}");
    assert!(waiting.contains("next try in"), "{waiting}");
    world.nodes[0].place.open();
    let view = user.sees("demo", 1, Phase::Ready).await;
    assert_eq!(view.tasks[0].waiting_for, None);
    let events = user.events("demo").await;
    let told = events.iter().filter(|e| matches!(e.what, What::Retrying { .. })).count();
    assert_eq!(told, 1, "told once, not at every attempt");
}

#[tokio::test]
async fn a_node_that_fails_is_asked_again() {
    let world = World::new(1).await;
    let user = world.user(1);
    let busy = Failure::new(Code::Conflict, "busy with the version before");
    let broken = Failure::new(Code::Internal, "a fault");
    let other = Failure::new(Code::NoSuchRoute, "something else serves here");
    let moods = [away("not ready"), busy, broken, other].map(Mood::Fails);
    world.nodes[0].next(moods);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    let received = world.nodes[0].received();
    assert_eq!(received.len(), 5);
    assert!(received.iter().all(|r| *r == received[0]));
}

#[tokio::test]
async fn coord_dies_before_its_node_is_back() {
    let world = World::new(1).await;
    let user = world.user(1);
    world.nodes[0].place.close();
    user.deploy("demo", 1, &[1]).await;
    world.kill_coord().await;
    world.nodes[0].place.open();
    world.start_coord().await;
    user.sees("demo", 1, Phase::Ready).await;
}

/// The node took it, but coord died before it heard so.
#[tokio::test]
async fn coord_dies_in_the_middle_of_sending() {
    for mood in [Mood::TakesAndHangs, Mood::Hangs] {
        let world = World::new(1).await;
        let user = world.user(1);
        world.nodes[0].next([mood]);
        user.deploy("demo", 1, &[1]).await;
        until("the node has it", || async { world.nodes[0].received().first().cloned() }).await;
        world.kill_coord().await;
        world.start_coord().await;
        user.sees("demo", 1, Phase::Ready).await;
        // Its events may be there before it is sent again.
        until("it is sent again", || async { world.nodes[0].received().get(1).cloned() }).await;
        let received = world.nodes[0].received();
        assert!(received.len() == 2 && received[0] == received[1]);
        let ready = user.events("demo").await;
        let ready =
            ready.iter().filter(|e| matches!(e.what, What::Phase { phase: Phase::Ready, .. }));
        assert_eq!(ready.count(), 1);
    }
}

#[tokio::test]
async fn coord_dies_while_a_script_runs() {
    let world = World::new(1).await;
    let user = world.user(1);
    world.nodes[0].with(|m| m.slow = true);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Running).await;
    world.kill_coord().await;
    world.nodes[0].goes_on();
    world.start_coord().await;
    user.sees("demo", 1, Phase::Ready).await;
    assert_eq!(world.nodes[0].received().len(), 1, "what was delivered is not sent again");
}

/// Killed again and again while many deployments are under way: each ends ready, once.
#[tokio::test]
async fn coord_dies_often() {
    let world = World::new(2).await;
    let user = world.user(1);
    for round in 0..5 {
        for n in 0..4 {
            user.deploy(&format!("d{round}-{n}"), 1, &[1, 2]).await;
        }
        world.kill_coord().await;
        world.start_coord().await;
    }
    for round in 0..5 {
        for n in 0..4 {
            let name = format!("d{round}-{n}");
            user.sees(&name, 1, Phase::Ready).await;
            let events = user.events(&name).await;
            for node in 1..=2 {
                let ready = events.iter().filter(|e| {
                    e.node.is_some_and(|n| n.0 == node)
                        && matches!(e.what, What::Phase { phase: Phase::Ready, .. })
                });
                assert_eq!(ready.count(), 1, "{name} on node {node}: {events:?}");
            }
        }
    }
}

#[tokio::test]
async fn without_the_ledger_it_starts_and_reads_but_takes_nothing() {
    let world = World::new(1).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    world.kill_coord().await;
    world.ledger.place.close();
    world.start_coord().await;
    assert_eq!(user.show("demo").await.unwrap().phase, Phase::Ready);
    assert!(!user.events("demo").await.is_empty());
    let kept = world.kept().await;
    let next = user.sign(&user.document("demo", 2, &[1]));
    assert_eq!(user.submit(next.clone()).await.unwrap_err().code, Code::Unavailable);
    assert_eq!(
        user.client.get::<serde_json::Value>("/v1/nodes").await.unwrap_err().code,
        Code::Unavailable
    );
    assert_eq!(world.kept().await, kept);
    world.ledger.place.open();
    user.submit(next).await.unwrap();
    user.sees("demo", 2, Phase::Ready).await;
}

#[tokio::test]
async fn a_ledger_that_goes_away_later_stops_nothing() {
    let world = World::new(1).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    world.ledger.place.close();
    user.deploy("demo", 2, &[1]).await;
    user.sees("demo", 2, Phase::Ready).await;
}

#[tokio::test]
async fn a_node_that_moved_is_found_at_its_new_address() {
    let world = World::new(1).await;
    let user = world.user(1);
    world.ledger.change_node(1, |n| n.supervisor_url = None);
    user.deploy("demo", 1, &[1]).await;
    let waiting = until("a reason is shown", || async {
        user.show("demo").await.unwrap().tasks.remove(0).waiting_for
    })
    .await;
    assert!(waiting.contains("has not told the ledger where it serves"), "{waiting}");
    let url = world.nodes[0].place.url();
    world.ledger.change_node(1, |n| n.supervisor_url = Some(url));
    user.sees("demo", 1, Phase::Ready).await;
}

#[tokio::test]
async fn a_delete_overtakes_what_its_node_never_got() {
    let world = World::new(1).await;
    let user = world.user(1);
    world.nodes[0].place.close();
    user.deploy("demo", 1, &[1]).await;
    user.submit(user.sign_delete("demo", 1)).await.unwrap();
    assert_eq!(user.show("demo").await.unwrap().phase, Phase::Deleting);
    world.nodes[0].place.open();
    user.sees("demo", 1, Phase::Deleted).await;
    assert!(world.nodes[0].with(|m| m.tasks.is_empty()));
}

#[tokio::test]
async fn a_delete_that_its_node_refuses_can_be_signed_anew() {
    let world = World::new(1).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    world.nodes[0].next([Mood::Fails(Failure::new(Code::Expired, "too late"))]);
    user.submit(user.sign_delete("demo", 1)).await.unwrap();
    let waiting = until("a reason is shown", || async {
        user.show("demo").await.unwrap().tasks.remove(0).waiting_for
    })
    .await;
    assert!(waiting.contains("refuses to delete it: too late"), "{waiting}");
    user.submit(user.sign_delete("demo", 1)).await.unwrap();
    user.sees("demo", 1, Phase::Deleted).await;
}
