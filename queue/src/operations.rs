//! Signed operations: each nonce leads to one job.

use rhizome_model::Job;

use crate::jobs::with_jobs;
use crate::link::Call;
use crate::{Queue, QueueError, keys};

/// What a signed envelope asks to be done once.
pub struct Operate<'a> {
    pub nonce: &'a str,
    /// Unix seconds; the nonce is remembered until then.
    pub nonce_expires: i64,
    /// Of the envelope.
    pub digest: &'a str,
    pub job: &'a Job,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Accepted,
    /// This very envelope was taken before: nothing changed.
    Same,
    /// Another envelope had the nonce.
    Replayed,
}

impl Queue {
    /// Notes the nonce and enqueues the job in one step, or neither.
    pub async fn operate(&self, request: Operate<'_>) -> Result<Operation, QueueError> {
        let Operate { nonce, nonce_expires, digest, job } = request;
        let call = Call::shared("operate")
            .key(keys::nonce(job.account, nonce))
            .arg(digest)
            .num(nonce_expires.max(1));
        let call = with_jobs(call, std::slice::from_ref(job))?;
        let word: String = self.link.call(&call).await?;
        match word.as_str() {
            // A repetition by the wire is a repetition by the sender: the job is there.
            "accepted" => Ok(Operation::Accepted),
            "same" => Ok(Operation::Same),
            "replayed" => Ok(Operation::Replayed),
            other => Err(QueueError::corrupt(format!("job {}", job.id), other)),
        }
    }
}
