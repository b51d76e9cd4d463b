//! A running SQLite file is copied from under its ledger.

use std::path::Path;

use http::Method;
use rhizome_identity::SigningKey;

use crate::harness::{Home, Ledger, new_account, now};

/// What a kill -9 leaves is what the files hold at that moment. At many moments while accounts are
/// made from several sides, the files are copied from under the running ledger; the copy must open
/// and hold every account that was answered before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_kill() {
    let ledger = Ledger::start().await;
    for round in 0..8u8 {
        let keys: Vec<_> =
            (0..6u8).map(|n| SigningKey::from_seed([round * 6 + n + 1; 32])).collect();
        let requests: Vec<_> = keys.iter().map(|key| new_account(key, now())).collect();
        let made =
            futures(requests.iter().map(|r| ledger.send(Method::POST, "/v1/accounts", None, r)))
                .await;
        assert!(made.iter().all(|(status, _)| *status == 201), "{made:?}");
        let copy = tempfile::tempdir().unwrap();
        copy_database(ledger.sqlite_file(), copy.path());
        let revived = Ledger::start_in(Home::of_file(copy), "127.0.0.1:0".parse().unwrap()).await;
        for (_, account) in &made {
            let id = account["twin_id"].as_u64().unwrap();
            let found = revived.get(&format!("/v1/accounts?twin_id={id}")).await;
            assert_eq!(found, (200, account.clone()));
        }
        // Ids go on where they were: none is given twice, none is left out.
        assert_eq!(revived.account(200).await.id, u64::from(round + 1) * 6 + 1);
        revived.stop().await;
    }
}

async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = all.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = pending.iter().map(|_| None).collect();
    std::future::poll_fn(move |cx| {
        for (future, slot) in pending.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(done.drain(..).flatten().collect())
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}

fn copy_database(from: &Path, to: &Path) {
    // The shared memory file is an index that is built again from the log.
    for suffix in ["", "-wal"] {
        let name = format!("{}{suffix}", from.file_name().unwrap().to_str().unwrap());
        std::fs::copy(from.with_file_name(&name), to.join(&name)).unwrap();
    }
}
