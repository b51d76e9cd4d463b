use rhizome_queue::{Durability, Queue, QueueError};

use crate::support::{Server, job};

async fn setting(server: &Server, name: &str) -> String {
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg(name);
    let pair: Vec<String> = get.query_async(&mut server.wire().await).await.unwrap();
    pair[1].clone()
}

#[tokio::test]
async fn durability_is_set_and_the_default_is_always() {
    let server = Server::start();
    server.queue_with(Durability::default()).await;
    assert_eq!(setting(&server, "appendfsync").await, "always");
    server.queue_with(Durability::Everysec).await;
    assert_eq!(setting(&server, "appendfsync").await, "everysec");
    server.queue_with(Durability::None).await;
    assert_eq!(setting(&server, "appendfsync").await, "no");
}

#[tokio::test]
async fn a_server_that_would_evict_is_refused() {
    let server = Server::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    match Queue::connect(&server.config(Durability::Always)).await {
        Err(QueueError::Refused(why)) => assert!(why.contains("noeviction"), "{why}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was taken"),
    }
}

#[tokio::test]
async fn without_a_server_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let config = rhizome_queue::QueueConfig {
        socket: folder.path().join("none.sock"),
        durability: Durability::Always,
    };
    assert!(matches!(Queue::connect(&config).await, Err(QueueError::Unavailable(_))));
}

#[tokio::test]
async fn functions_that_went_missing_are_loaded_again() {
    let server = Server::start();
    let queue = server.queue().await;
    redis::cmd("FUNCTION").arg("FLUSH").query_async::<()>(&mut server.wire().await).await.unwrap();
    queue.submit(&[job("volume")]).await.unwrap();
}
