//! The proxy counts what passes, and does what it is told.

use std::path::Path;

use rhizome_chaos::proxy::{Fault, Plan, Proxy, what_matters};
use rhizome_chaos::server::Server;
use rhizome_queue::Durability;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const INCR: &[u8] = b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n";

/// What comes back until the connection is closed, for requests that are sent together.
async fn ask(socket: &Path, requests: &[u8]) -> String {
    let mut wire = UnixStream::connect(socket).await.unwrap();
    wire.write_all(requests).await.unwrap();
    wire.shutdown().await.unwrap();
    let mut answer = String::new();
    // A connection that is cut with something unread is reset.
    let _ = wire.read_to_string(&mut answer).await;
    answer
}

/// As [`ask`], with a client that waits for each answer.
async fn ask_and_wait(socket: &Path, requests: &[&[u8]]) -> Vec<String> {
    let mut wire = UnixStream::connect(socket).await.unwrap();
    let mut answers = Vec::new();
    for request in requests {
        let mut answer = vec![0; 64];
        let sent = wire.write_all(request).await;
        let read = if sent.is_ok() { wire.read(&mut answer).await.unwrap_or(0) } else { 0 };
        answers.push(String::from_utf8_lossy(&answer[..read]).into_owned());
    }
    answers
}

async fn wire() -> (Server, Proxy) {
    let server = Server::start(Durability::None).unwrap();
    rhizome_queue::Queue::connect(&server.config()).await.unwrap();
    let proxy = Proxy::start(&server.folder().join("proxy.sock"), &server.socket()).unwrap();
    (server, proxy)
}

#[tokio::test]
async fn each_fault_is_what_it_says() {
    let (_server, proxy) = wire().await;
    let socket = proxy.socket();
    let ping: &[u8] = b"*1\r\n$4\r\nPING\r\n";
    assert_eq!(ask_and_wait(socket, &[ping, INCR]).await, ["+PONG\r\n", ":1\r\n"]);

    for (fault, heard, then) in [
        (Fault::Before, "", ":3\r\n"),
        (Fault::InReply, ":5", ":6\r\n"),
        (Fault::Repeat, "", ":9\r\n"),
    ] {
        proxy.count(what_matters, Plan::Nth(2, fault));
        let answers = ask_and_wait(socket, &[ping, INCR, INCR, INCR]).await;
        assert_eq!(answers[0], "+PONG\r\n", "what does not count passes");
        assert_eq!((answers[2].as_str(), answers[3].as_str()), (heard, ""), "{fault:?}");
        assert_eq!(proxy.calm(), ["INCR", "INCR"]);
        assert_eq!(proxy.fired(), 1);
        assert_eq!(ask_and_wait(socket, &[INCR]).await, [then], "{fault:?}");
    }

    proxy.count(what_matters, Plan::Nth(1, Fault::DeadAfter));
    assert_eq!(ask_and_wait(socket, &[INCR]).await, [""]);
    proxy.died().await;
    assert_eq!(ask_and_wait(socket, &[ping]).await, [""], "the dead do not come back");
}

#[tokio::test]
async fn a_storm_is_the_same_for_the_same_seed() {
    let (_server, proxy) = wire().await;
    let mut storms = Vec::new();
    for seed in [7, 7, 8] {
        proxy.count(what_matters, Plan::Storm { chance: 0.2, seed });
        let mut heard = Vec::new();
        for _ in 0..60 {
            heard.push(!ask_and_wait(proxy.socket(), &[INCR]).await[0].ends_with('\n'));
        }
        assert_eq!(heard.iter().filter(|cut| **cut).count() as u64, proxy.fired());
        storms.push(heard);
    }
    assert_eq!(storms[0], storms[1]);
    assert_ne!(storms[0], storms[2]);
    assert!(ask(proxy.socket(), b"nonsense\r\n").await.is_empty());
}
