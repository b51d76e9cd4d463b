use futures_util::StreamExt as _;
use rhizome_model::api::OutputChunk;
use rhizome_model::{Code, Failure, Outcome};
use rhizome_queue::QueueError;
use serde_json::json;

use crate::support::{Server, deployment, event, job, message, new_id, runner, soon, take, task};

#[tokio::test]
async fn events_are_followed_and_resumed() {
    let server = Server::start();
    let queue = server.queue().await;
    let task = task(&deployment("demo"), 1, Default::default());
    assert_eq!(queue.last_event_id().await.unwrap(), "0-0");
    queue.publish(&[event(&task, "one"), event(&task, "two")]).await.unwrap();

    let mut from_start = Box::pin(queue.follow(None));
    let (first_id, first) = soon("one", from_start.next()).await.unwrap().unwrap();
    assert_eq!(message(&first), "one");
    let mut resumed = Box::pin(server.queue().await.follow(Some(first_id)));
    let (last_id, second) = soon("two", resumed.next()).await.unwrap().unwrap();
    assert_eq!(message(&second), "two");
    assert_eq!(last_id, queue.last_event_id().await.unwrap());

    let waiting = tokio::spawn(async move { resumed.next().await });
    queue.publish(&[event(&task, "three")]).await.unwrap();
    let (_, third) = soon("three", waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(message(&third), "three");
}

#[tokio::test]
async fn whoever_comes_too_late_is_told() {
    let server = Server::start();
    let queue = server.queue().await;
    let task = task(&deployment("demo"), 1, Default::default());
    let mut from_nothing = Box::pin(queue.follow(Some("0-0".into())));
    let mut ids = Vec::new();
    for n in ["one", "two", "three", "four"] {
        queue.publish(&[event(&task, n)]).await.unwrap();
        ids.push(queue.last_event_id().await.unwrap());
    }
    let (id, _) = soon("one", from_nothing.next()).await.unwrap().unwrap();
    assert_eq!(id, ids[0], "nothing was trimmed yet");

    let mut trim = redis::cmd("XTRIM");
    trim.arg("{n}:events").arg("MINID").arg(&ids[2]);
    trim.query_async::<()>(&mut server.wire().await).await.unwrap();

    let mut late = Box::pin(queue.follow(Some(ids[0].clone())));
    let trimmed = soon("the warning", late.next()).await.unwrap();
    assert!(matches!(trimmed, Err(QueueError::Trimmed)), "{trimmed:?}");
    let (id, third) = soon("three", late.next()).await.unwrap().unwrap();
    assert_eq!((&id, message(&third)), (&ids[2], "three"));
    let mut in_time = Box::pin(queue.follow(Some(ids[2].clone())));
    let (_, fourth) = soon("four", in_time.next()).await.unwrap().unwrap();
    assert_eq!(message(&fourth), "four");
}

#[tokio::test]
async fn output_streams_and_ends_with_the_job() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = job("volume");
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    let output = tokio::spawn(queue.output(job.id).map(Result::unwrap).collect::<Vec<_>>());
    let mut live = Box::pin(queue.output(job.id));
    let mut runner = runner(&queue, "a").await;
    let lease = take(&mut runner).await;
    let chunk = |n: usize| OutputChunk::Stdout { data: format!("chunk {n}") };
    lease.print(&chunk(0)).await.unwrap();
    assert_eq!(soon("a chunk while it runs", live.next()).await.unwrap().unwrap(), chunk(0));
    for n in 1..300 {
        lease.print(&chunk(n)).await.unwrap();
    }
    lease.finish(&Outcome::Succeeded(json!({ "exit_code": 0 }))).await.unwrap();
    let mut expected: Vec<_> = (0..300).map(chunk).collect();
    expected.push(OutputChunk::Exit { result: json!({ "exit_code": 0 }) });
    assert_eq!(soon("all output", output).await.unwrap(), expected);
    let late: Vec<_> = soon("all again", queue.output(job.id).map(Result::unwrap).collect()).await;
    assert_eq!(late, expected);
}

#[tokio::test]
async fn output_of_a_failure_says_why() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = job("volume");
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    let mut runner = runner(&queue, "a").await;
    let failure = Failure::new(Code::ToolFailed, "no such command");
    take(&mut runner).await.finish(&Outcome::Failed(failure.clone())).await.unwrap();
    let all: Vec<_> = soon("the end", queue.output(job.id).map(Result::unwrap).collect()).await;
    assert_eq!(all, [OutputChunk::Failed { failure }]);
    let unknown: Vec<_> = soon("the end", queue.output(new_id()).collect()).await;
    assert!(matches!(unknown[..], [Err(QueueError::NoSuchJob(_))]), "{unknown:?}");
}
