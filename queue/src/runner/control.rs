//! Hearing what a runner is told: cancellations, and that it was given up.

use std::sync::Arc;

use redis::streams::{StreamId, StreamReadReply};

use super::Shared;
use crate::backoff::{RECONNECT, jittered};
use crate::keys;
use crate::link::BLOCK;
use crate::pending::Place;

const MESSAGES: usize = 256;

pub(super) async fn run(shared: Arc<Shared>, mut last: String) {
    let mut failures = 0;
    loop {
        if let Err(error) = listen(&shared, &mut last, &mut failures).await {
            failures += 1;
            tracing::debug!(%error, failures, "the control stream is silent; connects again");
            tokio::time::sleep(jittered(RECONNECT, failures)).await;
        }
    }
}

async fn listen(shared: &Shared, last: &mut String, failures: &mut u32) -> redis::RedisResult<()> {
    let mut connection = shared.queue.link.dedicated().await?;
    loop {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(MESSAGES).arg("BLOCK").arg(BLOCK.as_millis() as u64);
        read.arg("STREAMS").arg(keys::CONTROL).arg(&*last);
        let news: Option<StreamReadReply> = read.query_async(&mut connection).await?;
        *failures = 0;
        for message in news.into_iter().flat_map(|n| n.keys).flat_map(|k| k.ids) {
            hear(shared, &message);
            *last = message.id;
        }
    }
}

fn hear(shared: &Shared, message: &StreamId) {
    if let Some("look" | "settings") = message.get::<String>("k").as_deref() {
        shared.look.notify_one();
        return;
    }
    if message.get::<String>("w").as_ref() != Some(&shared.options.name) {
        return;
    }
    match message.get::<String>("k").as_deref() {
        Some("cancel") => {
            let word = |field| message.get::<String>(field).map(Arc::from);
            if let (Some(lane), Some(entry)) = (word("l"), word("s")) {
                shared.held.cancel(Place { lane, entry });
            }
        }
        Some("lost") => shared.doubt.notify_one(),
        Some(_) | None => {}
    }
}
