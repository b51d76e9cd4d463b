//! What a job prints while it runs.

use std::collections::VecDeque;

use futures_util::Stream;
use redis::streams::StreamReadReply;
use rhizome_model::api::OutputChunk;
use rhizome_model::{Code, Failure, JobId, Outcome};

use crate::backoff::{RECONNECT, jittered};
use crate::exclusive::Exclusive;
use crate::link::BLOCK;
use crate::{Queue, QueueError, keys};

/// Pieces that one read takes.
const READ: usize = 200;

impl Queue {
    /// What the job prints, from the beginning of what is kept. Ends after the job: its last item
    /// says how. Items of several attempts follow each other.
    pub fn output(
        &self,
        id: JobId,
    ) -> impl Stream<Item = Result<OutputChunk, QueueError>> + Send + use<> {
        let reader = Reader {
            queue: self.clone(),
            id,
            connection: None,
            last: "0-0".to_owned(),
            ready: VecDeque::new(),
            failures: 0,
            state: State::Reading,
        };
        futures_util::stream::unfold(reader, |mut reader| async move {
            let item = reader.next().await?;
            Some((item, reader))
        })
    }
}

struct Reader {
    queue: Queue,
    id: JobId,
    connection: Option<Exclusive>,
    last: String,
    ready: VecDeque<String>,
    failures: u32,
    state: State,
}

enum State {
    Reading,
    /// The job has ended: what was printed until then is still to be read.
    Draining(Result<Outcome, QueueError>),
    Over,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<OutputChunk, QueueError>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                let what = || format!("output of job {}", self.id);
                return Some(
                    serde_json::from_str(&chunk).map_err(|e| QueueError::corrupt(what(), e)),
                );
            }
            match std::mem::replace(&mut self.state, State::Over) {
                State::Reading => self.state = self.read_or_end().await,
                State::Draining(outcome) => match self.drain().await {
                    Ok(true) => self.state = State::Draining(outcome),
                    Ok(false) => return Some(outcome.map(last_item)),
                    Err(error) => return Some(Err(error)),
                },
                State::Over => return None,
            }
        }
    }

    /// Waits for more, or for the end of the job.
    async fn read_or_end(&mut self) -> State {
        let (queue, id) = (self.queue.clone(), self.id);
        let read = async {
            match self.read().await {
                Ok(()) => self.failures = 0,
                Err(error) => {
                    self.connection = None;
                    self.failures += 1;
                    tracing::debug!(job = %id, %error, "lost sight of output; connects again");
                    tokio::time::sleep(jittered(RECONNECT, self.failures)).await;
                }
            }
        };
        tokio::select! {
            biased;
            outcome = queue.wait(id) => State::Draining(outcome),
            () = read => State::Reading,
        }
    }

    async fn read(&mut self) -> redis::RedisResult<()> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.queue.link.dedicated().await?),
        };
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(READ).arg("BLOCK").arg(BLOCK.as_millis() as u64);
        read.arg("STREAMS").arg(keys::output(self.id)).arg(&self.last);
        let news: Option<StreamReadReply> = read.query_async(connection).await?;
        self.take(news);
        Ok(())
    }

    /// Reads without waiting; false when nothing is left. The reader that blocks is given up: what
    /// it may still answer is read here.
    async fn drain(&mut self) -> Result<bool, QueueError> {
        self.connection = None;
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(READ).arg("STREAMS").arg(keys::output(self.id)).arg(&self.last);
        let news: Option<StreamReadReply> = self.queue.link.query(&read).await?;
        self.take(news);
        Ok(!self.ready.is_empty())
    }

    fn take(&mut self, news: Option<StreamReadReply>) {
        for entry in news.into_iter().flat_map(|n| n.keys).flat_map(|k| k.ids) {
            self.ready.extend(entry.get::<String>("d"));
            self.last = entry.id;
        }
    }
}

fn last_item(outcome: Outcome) -> OutputChunk {
    match outcome {
        Outcome::Succeeded(result) => OutputChunk::Exit { result },
        Outcome::Failed(failure) => OutputChunk::Failed { failure },
        Outcome::Cancelled => {
            OutputChunk::Failed { failure: Failure::new(Code::Cancelled, "it was cancelled") }
        }
    }
}
