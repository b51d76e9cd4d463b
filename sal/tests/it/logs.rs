//! What machines print: kept, followed, bounded.

use std::fs;
use std::time::{Duration, Instant};

use rhizome_model::Action;
use rhizome_sal::Chunk;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::world::{World, id};

#[tokio::test]
async fn logs_are_kept_by_stream_and_followed() {
    let world = World::new().await;
    let web = id("1/demo/web");
    let script = "echo one; echo two >&2; while [ ! -e /go ]; do sleep 0.05; done; echo three; printf end; sleep 1000";
    world.machines.ensure(&web, &world.script(script)).await.unwrap();
    let log = world.config.state.join("logs/1.demo.web.log");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs::read_to_string(&log).unwrap_or_default().contains("two") {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (_, text) = world.act(&web, Action::Logs { tail: 10, follow: false }).await.unwrap();
    assert!(text == "one\ntwo\n" || text == "two\none\n", "{text}");

    let (sender, mut receiver) = mpsc::channel(4);
    let cancel = CancellationToken::new();
    let (machines, target, token) = (world.machines.clone(), web.clone(), cancel.clone());
    let following = tokio::spawn(async move {
        let action = Action::Logs { tail: 1, follow: true };
        machines.act(&target, &action, "test", sender, token).await
    });
    assert!(receiver.recv().await.is_some());
    world.exec(&web, "touch /go").await;
    assert_eq!(receiver.recv().await.unwrap(), Chunk::Stdout(b"three\n".into()));
    // An unfinished line comes too, a little later.
    assert_eq!(receiver.recv().await.unwrap(), Chunk::Stdout(b"end".into()));
    cancel.cancel();
    following.await.unwrap().unwrap_err();
    let first = fs::read_to_string(&log).unwrap().lines().next().unwrap().to_owned();
    let fields: Vec<_> = first.splitn(4, ' ').collect();
    assert!(fields[0].ends_with('Z') && fields[0].contains('T'), "{first}");
    assert!(["stdout", "stderr"].contains(&fields[1]) && fields[2] == "F", "{first}");
}

#[tokio::test]
async fn logs_are_bounded_and_nothing_at_the_end_is_lost() {
    let world = World::new().await;
    let chatty = id("1/demo/chatty");
    let mut spec = world.script("seq 1 600000; echo the end");
    spec["restart"] = json!("never");
    world.machines.ensure(&chatty, &spec).await.unwrap();
    let (answer, _) = world.act(&chatty, Action::Wait).await.unwrap();
    assert_eq!(answer["exit_code"], 0);
    let output = answer["output"].as_str().unwrap();
    assert!(output.ends_with("599999\n600000\nthe end\n") && output.len() == 64 << 10);
    let size = |name: &str| fs::metadata(world.config.state.join("logs").join(name)).unwrap().len();
    let total = size("1.demo.chatty.log") + size("1.demo.chatty.log.1");
    assert!(total <= 16 << 20, "{total}");
    let (_, text) = world.act(&chatty, Action::Logs { tail: 3, follow: false }).await.unwrap();
    assert_eq!(text, "599999\n600000\nthe end\n");
    world.machines.delete(&chatty).await.unwrap();
    world.assert_clean();
}
