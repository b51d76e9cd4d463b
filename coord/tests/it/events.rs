//! Events: all of them, once, in order, through whatever is cut.

use std::time::Duration;

use futures_util::StreamExt;
use rhizome_model::{Event, Phase, What};

use crate::world::{SOON, User, World, until, until_within};

fn log(n: usize) -> What {
    What::Log { message: n.to_string() }
}

/// Follows until `count` log lines were seen, resuming whenever the stream breaks.
async fn logs_through_cuts(user: &User, count: usize) -> Vec<(u64, Event)> {
    let mut seen: Vec<(u64, Event)> = Vec::new();
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let after = seen.last().map_or(0, |(n, _)| *n);
        if let Ok(stream) = user.follow("demo", after).await {
            let mut stream = std::pin::pin!(stream);
            while let Ok(Some(Ok((number, event)))) =
                tokio::time::timeout(Duration::from_secs(2), stream.next()).await
            {
                seen.push((number, event));
                if seen.iter().filter(|(_, e)| matches!(e.what, What::Log { .. })).count() == count
                {
                    return seen;
                }
            }
        }
        assert!(tokio::time::Instant::now() < deadline, "only {} came", seen.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn no_gap_and_no_duplicate_through_restarts_of_both_sides() {
    const LINES: usize = 600;
    let world = World::new(1).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    let reader = {
        let user = world.user(1);
        tokio::spawn(async move { logs_through_cuts(&user, LINES).await })
    };
    for n in 0..LINES {
        world.nodes[0].says("1/demo", 1, log(n));
        match n {
            100 | 400 => {
                world.kill_coord().await;
                world.start_coord().await;
            }
            200 | 300 | 500 => {
                world.nodes[0].place.close();
                world.nodes[0].place.open();
            }
            _ if n % 7 == 0 => tokio::time::sleep(Duration::from_millis(1)).await,
            _ => {}
        }
    }
    let seen = reader.await.unwrap();
    let numbers: Vec<_> = seen.iter().map(|(n, _)| *n).collect();
    assert_eq!(numbers, (1..=seen.len() as u64).collect::<Vec<_>>());
    let lines: Vec<_> = seen
        .iter()
        .filter_map(|(_, e)| match &e.what {
            What::Log { message } => Some(message.parse::<usize>().unwrap()),
            _ => None,
        })
        .collect();
    assert_eq!(lines, (0..LINES).collect::<Vec<_>>());
    let listed = user.events("demo").await;
    assert_eq!(listed, seen.into_iter().map(|(_, e)| e).collect::<Vec<_>>());
}

#[tokio::test]
async fn each_reader_begins_where_it_wants() {
    let world = World::new(2).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1, 2]).await;
    user.sees("demo", 1, Phase::Ready).await;
    let all = user.events("demo").await;
    let first = What::Phase { phase: Phase::Pending, failure: None, outputs: None };
    assert_eq!((all[0].node, &all[0].what), (None, &first));
    assert!(all[1..].iter().all(|e| e.node.is_some()), "every node's word carries its name");
    for after in [0, 3, all.len() as u64 - 1] {
        let stream = user.follow("demo", after).await.unwrap();
        let rest: Vec<_> =
            stream.take(all.len() - after as usize).map(|e| e.unwrap().1).collect().await;
        assert_eq!(rest, all[after as usize..]);
    }
    // Live, without asking again.
    let mut live = std::pin::pin!(user.follow("demo", all.len() as u64).await.unwrap());
    world.nodes[1].says("1/demo", 1, log(7));
    let (number, event) = live.next().await.unwrap().unwrap();
    assert_eq!((number, &event.what), (all.len() as u64 + 1, &log(7)));
    // From far beyond the end: it waits.
    let mut beyond = std::pin::pin!(user.follow("demo", u64::MAX).await.unwrap());
    // Though it does not listen for a while.
    (8..200).for_each(|n| world.nodes[1].says("1/demo", 1, log(n)));
    until("all is mirrored", || async {
        user.events("demo").await.iter().any(|e| e.what == log(199)).then_some(())
    })
    .await;
    for n in 8..200 {
        let (number, event) = live.next().await.unwrap().unwrap();
        assert_eq!((number, &event.what), ((all.len() + n - 6) as u64, &log(n)));
    }
    let waited = tokio::time::timeout(Duration::from_millis(100), beyond.next()).await;
    assert!(waited.is_err(), "{waited:?}");
}

#[tokio::test]
async fn a_node_speaks_for_its_own_tasks_only() {
    let world = World::new(2).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    user.deploy("other", 1, &[2]).await;
    user.sees("other", 1, Phase::Ready).await;
    let before = user.events("demo").await;
    let gone = What::Phase { phase: Phase::Deleting, failure: None, outputs: None };
    world.nodes[1].says("1/demo", 1, gone.clone());
    world.nodes[1].says("1/never-heard-of", 1, gone);
    world.nodes[1].says("1/other", 1, log(1));
    until("the mark is mirrored", || async {
        user.events("other").await.iter().any(|e| e.what == log(1)).then_some(())
    })
    .await;
    assert_eq!(user.events("demo").await, before);
    assert_eq!(user.show("demo").await.unwrap().phase, Phase::Ready);
}

#[tokio::test]
async fn what_was_trimmed_is_found_by_looking() {
    let world = World::new(1).await;
    let user = world.user(1);
    world.nodes[0].with(|m| m.slow = true);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Running).await;
    world.nodes[0].place.close();
    world.nodes[0].goes_on();
    world.nodes[0].trims();
    world.nodes[0].place.open();
    let view = user.sees("demo", 1, Phase::Ready).await;
    assert_eq!(view.tasks[0].outputs["ok"], 1);
    let events = user.events("demo").await;
    let last = &events.last().unwrap().what;
    assert!(matches!(last, What::Phase { phase: Phase::Ready, outputs: Some(_), .. }), "{last:?}");
    // What comes now is mirrored as before.
    world.nodes[0].says("1/demo", 1, log(1));
    until("the line is mirrored", || async {
        user.events("demo").await.iter().any(|e| e.what == log(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_log_of_a_deployment_is_bounded_and_says_so() {
    const LINES: usize = 11_000;
    let world = World::new(1).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    for n in 0..LINES {
        world.nodes[0].says("1/demo", 1, log(n));
    }
    let limit = Duration::from_secs(120);
    until_within(limit, "the last line is mirrored", || async {
        let last = user.events_after("demo", LINES as u64).await;
        (last.last()?.what == log(LINES - 1)).then_some(())
    })
    .await;
    let kept = user.events("demo").await.len();
    assert!((10_000..10_000 + 256).contains(&kept), "{kept}");
    let path = "/v1/deployments/1/demo/events";
    let mut stream = std::pin::pin!(user.client.events(path, Some("5")).await.unwrap());
    assert_eq!(stream.next().await.unwrap().unwrap().event, "trimmed");
    let first: u64 = stream.next().await.unwrap().unwrap().id.parse().unwrap();
    assert!(first > 700, "{first}");
}
