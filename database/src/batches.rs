//! Group commit: what piled up while one batch was being committed goes into the next, together.
//!
//! ```text
//!   submit ─▶ inbox ─▶ one task: take all that is there ─▶ begin ─▶ handle ─▶ commit ─▶ answers
//! ```
//!
//! No timer: alone, an item is committed at once; under load, a batch is as large as a commit is slow.
//! An answer is given after the commit.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::{mpsc, oneshot};

use crate::{Database, Error, Tx};

/// What waits for the next commit; more wait outside. Bounds the memory, and the time of a commit.
const INBOX: usize = 4096;
/// Statements with more values than stores take would be refused; longer batches take longer, too.
const MAX_BATCH: usize = 1024;

type Pending<I, O> = (I, oneshot::Sender<Result<O, Error>>);

/// Items of one kind on their way into the database. Clones share the inbox; when the last is gone,
/// what is in it is still committed.
pub struct Batches<I, O> {
    inbox: mpsc::Sender<Pending<I, O>>,
}

impl<I, O> Clone for Batches<I, O> {
    fn clone(&self) -> Self {
        Self { inbox: self.inbox.clone() }
    }
}

/// A future that borrows the transaction.
pub type Handling<'t, O> = Pin<Box<dyn Future<Output = Result<Vec<O>, Error>> + Send + 't>>;

impl<I: Send + 'static, O: Send + 'static> Batches<I, O> {
    /// `handle` makes the changes of all items and answers each, in their order. When it fails, none
    /// was made, and all are told so.
    pub fn new<F>(database: Database, handle: F) -> Self
    where
        F: for<'t> Fn(&'t mut Tx, Vec<I>) -> Handling<'t, O> + Send + Sync + 'static,
    {
        let (inbox, outbox) = mpsc::channel(INBOX);
        tokio::spawn(write(database, outbox, handle));
        Self { inbox }
    }

    /// The answer to an item, after it was committed.
    pub async fn submit(&self, item: I) -> Result<O, Error> {
        let (answer, answered) = oneshot::channel();
        if self.inbox.send((item, answer)).await.is_err() {
            return Err(stopped());
        }
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }
}

fn stopped() -> Error {
    sqlx::Error::WorkerCrashed.into()
}

async fn write<I, O, F>(database: Database, mut inbox: mpsc::Receiver<Pending<I, O>>, handle: F)
where
    F: for<'t> Fn(&'t mut Tx, Vec<I>) -> Handling<'t, O>,
{
    let mut taken = Vec::new();
    loop {
        // The turn first, then the items: what comes while another change has it goes with these.
        if inbox.recv_many(&mut taken, 1).await == 0 {
            return;
        }
        let begun = database.begin().await;
        while taken.len() < MAX_BATCH
            && let Ok(pending) = inbox.try_recv()
        {
            taken.push(pending);
        }
        let (items, waiting): (Vec<I>, Vec<_>) = taken.drain(..).unzip();
        let count = items.len();
        let done = async {
            let mut tx = begun?;
            let answers = handle(&mut tx, items).await?;
            tx.commit().await?;
            Ok(answers)
        };
        match done.await {
            Ok(answers) => {
                debug_assert_eq!(answers.len(), count, "one answer for each item");
                for (answer, waiting) in answers.into_iter().zip(waiting) {
                    // Whoever asked may be gone.
                    let _ = waiting.send(Ok(answer));
                }
            }
            Err(error) => {
                for waiting in waiting {
                    let _ = waiting.send(Err(Error::clone(&error)));
                }
            }
        }
    }
}
