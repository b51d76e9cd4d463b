//! What can go wrong with the queue; each variant is a decision of the caller.

use rhizome_model::{Code, Failure, JobId, Shortfall};

use crate::allowance::Beyond;

#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// redis-server is away or cannot write, and stayed so for as long as the call was patient. The
    /// same call may go through later.
    #[error(
        "the node's redis-server did not do what it was asked for; see whether it runs and can write"
    )]
    Unavailable(#[source] redis::RedisError),
    /// The lease is lost, or the task is another's by now: stop, touch nothing.
    #[error("the lease is lost: another attempt has the job, or a newer version has the task")]
    Fenced,
    #[error("{0}")]
    Shortfall(Shortfall),
    #[error("{0}")]
    Beyond(Beyond),
    /// The events asked for are no longer kept; what follows begins with the oldest that are.
    #[error("some of the events asked for are no longer kept")]
    Trimmed,
    /// redis-server is not set up as it must be.
    #[error("redis-server cannot be used: {0}")]
    Refused(String),
    /// There is no such job, or it ended so long ago that it is forgotten.
    #[error("there is no job {0}; what ended is kept for an hour, a dead letter for a week")]
    NoSuchJob(JobId),
    #[error("job {0} has not ended; cancel it first, or wait for its end")]
    NotEnded(JobId),
    /// What is stored cannot be read.
    #[error("what redis-server holds as {what} cannot be read: {cause}")]
    Corrupt { what: String, cause: String },
}

impl QueueError {
    pub(crate) fn corrupt(what: impl Into<String>, cause: impl ToString) -> Self {
        Self::Corrupt { what: what.into(), cause: cause.to_string() }
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        let code = match &error {
            QueueError::Unavailable(_) | QueueError::Refused(_) => Code::Unavailable,
            QueueError::Fenced | QueueError::NotEnded(_) => Code::Conflict,
            QueueError::Shortfall(_) => Code::InsufficientCapacity,
            QueueError::Beyond(_) => Code::NotGranted,
            QueueError::Trimmed | QueueError::NoSuchJob(_) => Code::NotFound,
            QueueError::Corrupt { .. } => Code::Internal,
        };
        let failure = Self::new(code, error.to_string());
        match error {
            QueueError::Unavailable(cause) => failure.with_detail(cause.to_string()),
            QueueError::Fenced
            | QueueError::Shortfall(_)
            | QueueError::Beyond(_)
            | QueueError::Trimmed
            | QueueError::Refused(_)
            | QueueError::NoSuchJob(_)
            | QueueError::NotEnded(_)
            | QueueError::Corrupt { .. } => failure,
        }
    }
}
