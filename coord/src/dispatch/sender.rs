//! Sends one task's envelope to its node until the node has answered for good.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rhizome_model::api::TaskView;
use rhizome_model::{Class, Code, Failure, NodeId, Phase, What};
use rhizome_service::{clock, random};

use super::workers::Work;
use super::{Inner, RETRY, rest};
use crate::store::{Order, Result, TaskKey};

/// A node plans a script before it answers; longer than this it does not take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Followers are told of the first attempt that fails, and then this often.
const TELL_EVERY: Duration = Duration::from_secs(600);

/// What an attempt came to.
#[derive(Debug)]
pub enum Sent {
    /// The node has it.
    Taken(Box<TaskView>),
    /// There was nothing to delete.
    Gone,
    Refused(Failure),
    /// The node could not say.
    Later(Failure),
}

#[derive(Default)]
struct Tries {
    envelope: String,
    count: u32,
    told: Option<Instant>,
}

/// `first` is what it was called for, where that is at hand.
pub async fn run(inner: &Arc<Inner>, work: Work<TaskKey>, mut first: Option<Order>) {
    let mut tries = Tries::default();
    loop {
        let order = match first.take() {
            None => inner.store.order(&work.key).await,
            order => Ok(order),
        };
        let wait = match order {
            Ok(None) if work.may_end() => return,
            Ok(None) => continue,
            Ok(Some(order)) => attempt(inner, &order, &mut tries).await,
            Err(error) => Err(error),
        };
        match wait {
            // Nothing has rung since: nothing else is to be sent.
            Ok(None) if work.may_end() => return,
            Ok(None) => {}
            Ok(Some(wait)) => rest(wait, &work.bell).await,
            Err(error) => {
                tracing::error!(deployment = %work.key.deployment, node = %work.key.node,
                    error = %Failure::from(error), "a task cannot be sent; it is tried again");
                tokio::time::sleep(RETRY.cap).await;
            }
        }
    }
}

/// One attempt; how long to wait before the next one.
async fn attempt(inner: &Arc<Inner>, order: &Order, tries: &mut Tries) -> Result<Option<Duration>> {
    let Order { key, envelope, .. } = order;
    if tries.envelope != *envelope {
        *tries = Tries { envelope: envelope.clone(), ..Tries::default() };
    }
    match send(inner, key.node, &order.bytes, order.deletes).await {
        Sent::Taken(view) => {
            inner.store.delivered(key, envelope, &view).await?;
            inner.followers.ring(|node| *node == key.node);
            Ok(None)
        }
        Sent::Gone => {
            let what = What::Phase { phase: Phase::Deleted, failure: None, outputs: None };
            let event = order.event(Some(key.node), clock::now_ms(), what);
            inner.store.gone(order, event).await?;
            Ok(None)
        }
        Sent::Refused(failure) => {
            tracing::info!(deployment = %key.deployment, node = %key.node, code = %failure.code,
                "a node refused an envelope");
            inner.store.refused(key, envelope, &failure, clock::now_ms()).await?;
            Ok(None)
        }
        Sent::Later(failure) => {
            inner.nodes.doubt(key.node);
            later(inner, order, &failure, tries).await.map(Some)
        }
    }
}

async fn later(
    inner: &Arc<Inner>,
    order: &Order,
    failure: &Failure,
    tries: &mut Tries,
) -> Result<Duration> {
    metrics::counter!("rhizome_coord_dispatch_retries_total").increment(1);
    tries.count = tries.count.saturating_add(1);
    let wait = random::jittered(RETRY, tries.count);
    let node = order.key.node;
    let reason = format!(
        "node {node} cannot take it yet: {failure}; next try in {:.1} s",
        wait.as_secs_f64()
    );
    let tell = tries.told.is_none_or(|at| at.elapsed() >= TELL_EVERY);
    let told = tell.then(|| What::Retrying {
        what: format!("sending it to node {node}"),
        cause: failure.message.clone(),
        in_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
    });
    if tell {
        tries.told = Some(Instant::now());
        tracing::warn!(deployment = %order.key.deployment, node = %node, error = %failure,
            "a node cannot take an envelope yet; it is tried again");
    }
    inner.store.waiting(order, &reason, told, clock::now_ms()).await?;
    Ok(wait)
}

/// Sends the bytes as they came.
pub async fn send(inner: &Inner, node: NodeId, bytes: &[u8], deleting: bool) -> Sent {
    let _permit = inner.sends.acquire().await.expect("nothing ever closes it");
    let supervisor = match inner.nodes.supervisor(node).await {
        Ok(supervisor) => supervisor,
        Err(failure) => return Sent::Later(failure),
    };
    // It needs no signature of ours: it says itself whose it is.
    let call = supervisor.plain.post_bytes::<TaskView>("/v1/envelopes", bytes.to_vec());
    let answer = tokio::time::timeout(ANSWER_WITHIN, call).await.unwrap_or_else(|_| {
        let message = format!("its supervisor did not answer within {} s", ANSWER_WITHIN.as_secs());
        Err(Failure::new(Code::Unavailable, message))
    });
    judge(node, answer, deleting)
}

fn judge(node: NodeId, answer: Result<TaskView, Failure>, deleting: bool) -> Sent {
    match answer {
        Ok(view) if view.node == node => Sent::Taken(Box::new(view)),
        Ok(view) => Sent::Later(Failure::new(
            Code::Unavailable,
            format!("at its address node {} answers", view.node),
        )),
        Err(failure) if deleting && failure.code == Code::NotFound => Sent::Gone,
        // Not about the envelope: the node is busy, broken, or something else serves at its address.
        Err(failure)
            if failure.code.status() >= 500
                || failure.code.class() == Class::Misuse
                || matches!(
                    failure.code,
                    Code::Conflict | Code::Unauthenticated | Code::NotFound
                ) =>
        {
            Sent::Later(failure)
        }
        Err(failure) => Sent::Refused(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_an_answer_or_another_try() {
        let codes = |deleting| {
            Code::ALL.iter().map(move |c| {
                match judge(NodeId(1), Err(Failure::new(*c, "")), deleting) {
                    Sent::Taken(_) => panic!("a failure was taken"),
                    Sent::Gone => format!("{c} gone"),
                    Sent::Refused(_) => format!("{c} refused"),
                    Sent::Later(_) => format!("{c} later"),
                }
            })
        };
        insta::assert_snapshot!(codes(false).collect::<Vec<_>>().join("\n"));
        let differ: Vec<_> = codes(true).filter(|c| !codes(false).any(|d| d == *c)).collect();
        assert_eq!(differ, ["not_found gone"]);
    }
}
