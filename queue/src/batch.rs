//! Natural batching: what piles up while a round trip is under way goes together in the next.
//!
//! ```text
//!   ask ─▶ inbox ─▶ worker: takes all that is there, up to 256 ─▶ one call ─▶ an answer to each
//!                └▶ worker: the same, while the others wait for their calls
//! ```
//!
//! Nothing waits for company: whoever comes alone goes alone, at once. Several workers, so that
//! redis-server has the next batch while the answers to the last are read.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::{BATCH, QueueError};

const WORKERS: usize = 4;
/// Of those who wait for a worker; more wait to get in.
const INBOX: usize = 4 * BATCH;

struct Asked<I, O> {
    item: I,
    answer: oneshot::Sender<Result<O, QueueError>>,
}

/// Where to put one's item.
pub(crate) struct Batcher<I, O> {
    inbox: mpsc::Sender<Asked<I, O>>,
}

impl<I: Send + 'static, O: Send + 'static> Batcher<I, O> {
    /// `work` does up to 256 items and answers each, in their order. It ends with the batcher.
    pub(crate) fn new<F, W>(work: F) -> Self
    where
        F: Fn(Vec<I>) -> W + Send + Sync + 'static,
        W: Future<Output = Result<Vec<O>, QueueError>> + Send,
    {
        let (inbox, items) = mpsc::channel(INBOX);
        let (items, work) = (Arc::new(Mutex::new(items)), Arc::new(work));
        for _ in 0..WORKERS {
            let (items, work) = (items.clone(), work.clone());
            tokio::spawn(async move { serve(&items, &*work).await });
        }
        Self { inbox }
    }

    /// Once it is in, the item is done even if the answer is no longer waited for.
    pub(crate) async fn ask(&self, item: I) -> Result<O, QueueError> {
        let (answer, answered) = oneshot::channel();
        let gone = || QueueError::Refused("this process no longer talks to it".into());
        self.inbox.send(Asked { item, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

async fn serve<I, O, W>(items: &Mutex<mpsc::Receiver<Asked<I, O>>>, work: &impl Fn(Vec<I>) -> W)
where
    W: Future<Output = Result<Vec<O>, QueueError>>,
{
    let mut asked = Vec::new();
    while take(&mut *items.lock().await, &mut asked).await {
        let (batch, answers): (Vec<_>, Vec<_>) =
            asked.drain(..).map(|asked| (asked.item, asked.answer)).unzip();
        // Who no longer waits for its answer does not get one.
        match work(batch).await {
            Ok(outs) => answers.into_iter().zip(outs).for_each(|(to, out)| {
                let _ = to.send(Ok(out));
            }),
            Err(error) => answers.into_iter().for_each(|to| {
                let _ = to.send(Err(error.clone()));
            }),
        }
    }
}

/// Takes what is there, and what those ask who are about to run anyway; false at the end.
async fn take<T>(inbox: &mut mpsc::Receiver<T>, asked: &mut Vec<T>) -> bool {
    if inbox.recv_many(asked, BATCH).await == 0 {
        return false;
    }
    tokio::task::yield_now().await;
    while asked.len() < BATCH
        && let Ok(more) = inbox.try_recv()
    {
        asked.push(more);
    }
    true
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn what_piles_up_goes_together() {
        let (sizes, mut seen) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let open = gate.clone();
        let batcher = Arc::new(Batcher::new(move |items: Vec<usize>| {
            let (gate, sizes) = (gate.clone(), sizes.clone());
            async move {
                sizes.send(items.len()).unwrap();
                gate.acquire().await.unwrap().forget();
                Ok(items.into_iter().map(|n| n * 2).collect())
            }
        }));
        let ask = |n| {
            let batcher = batcher.clone();
            tokio::spawn(async move { (n, batcher.ask(n).await.unwrap()) })
        };
        let mut asking = vec![ask(0)];
        assert_eq!(seen.recv().await, Some(1), "alone, at once");
        for n in 1..WORKERS {
            asking.push(ask(n));
            assert_eq!(seen.recv().await, Some(1), "another worker");
        }
        asking.extend((WORKERS..WORKERS + 300).map(ask));
        while batcher.inbox.capacity() > INBOX - 300 {
            tokio::task::yield_now().await;
        }
        open.add_permits(100);
        for asked in asking {
            let (n, doubled) = asked.await.unwrap();
            assert_eq!(doubled, n * 2);
        }
        assert_eq!((seen.recv().await, seen.recv().await), (Some(BATCH), Some(300 - BATCH)));
    }

    #[tokio::test]
    async fn a_failed_call_is_told_to_all() {
        let failing = |_: Vec<()>| async { Err::<Vec<()>, _>(QueueError::Trimmed) };
        let batcher = Batcher::new(failing);
        let (one, two) = tokio::join!(batcher.ask(()), batcher.ask(()));
        assert!(matches!((one, two), (Err(QueueError::Trimmed), Err(QueueError::Trimmed))));
    }
}
