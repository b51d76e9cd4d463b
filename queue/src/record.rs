//! What is known of a job.

use std::collections::HashMap;

use redis::streams::{StreamPendingCountReply, StreamRangeReply};
use rhizome_model::{Failure, Job, JobId, JobState, Outcome};
use serde::de::DeserializeOwned;

use crate::{Queue, QueueError, keys};

/// A job may change its place between two looks; it does not do so for ever.
const LOOKS: usize = 100;

/// What is known of a job. Times are Unix milliseconds of redis-server's clock.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    pub job: Job,
    pub state: JobState,
    /// Attempts that count: those that ended, and the one under way.
    pub attempts: u32,
    /// Who works on it.
    pub runner: Option<String>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why the last attempt failed that will be, or was, followed by another.
    pub failure: Option<Failure>,
    pub submitted_at: i64,
    /// The begin of the attempt under way, or of the last one.
    pub started_at: Option<i64>,
    pub ended_at: Option<i64>,
}

pub(crate) type Fields = HashMap<String, String>;

impl Queue {
    pub async fn job(&self, id: JobId) -> Result<Option<JobRecord>, QueueError> {
        let key = keys::record(id);
        for _ in 0..LOOKS {
            let mut get = redis::cmd("HGETALL");
            get.arg(&key);
            let fields: Fields = self.link.query(&get).await?;
            if fields.is_empty() {
                return Ok(None);
            }
            let record = Record { id, fields };
            if record.text("st")? != "queued" {
                return record.settled().map(Some);
            }
            if let Some(found) = self.in_lane(&record).await? {
                return Ok(Some(found));
            }
        }
        Err(QueueError::corrupt(format!("job {id}"), "it is in no lane, though its record says so"))
    }

    /// A job that waits in its lane or runs; none when it has just left.
    async fn in_lane(&self, record: &Record) -> Result<Option<JobRecord>, QueueError> {
        let lane = keys::lane(record.text("l").or_else(|_| record.text("h"))?);
        let entry = record.text("s")?;
        let mut look = redis::pipe();
        look.cmd("XPENDING").arg(&lane).arg(keys::GROUP).arg(entry).arg(entry).arg(1);
        look.cmd("XRANGE").arg(&lane).arg(entry).arg(entry);
        look.cmd("TIME");
        let (pending, range, time): (StreamPendingCountReply, StreamRangeReply, (i64, i64)) =
            self.link.query_all(&look).await?;
        let Some(entry) = range.ids.first() else { return Ok(None) };
        let payload: String = entry.get("j").unwrap_or_default();
        let mut found = record.read(&payload, JobState::Queued)?;
        if let Some(lease) = pending.ids.first() {
            found.state = JobState::Running;
            found.attempts += 1;
            found.runner = Some(lease.consumer.clone());
            let idle = i64::try_from(lease.last_delivered_ms).unwrap_or(i64::MAX);
            found.started_at = Some(time.0 * 1000 + time.1 / 1000 - idle);
        }
        Ok(Some(found))
    }
}

struct Record {
    id: JobId,
    fields: Fields,
}

impl Record {
    fn settled(&self) -> Result<JobRecord, QueueError> {
        let state = self.parse_state()?;
        self.read(self.text("j")?, state)
    }

    fn read(&self, payload: &str, state: JobState) -> Result<JobRecord, QueueError> {
        Ok(JobRecord {
            job: self.json("its payload", payload)?,
            state,
            attempts: self.number("a")?.unwrap_or_default().try_into().unwrap_or(u32::MAX),
            runner: None,
            outcome: self.optional("o")?,
            failure: self.optional("f")?,
            submitted_at: self.submitted_at()?,
            started_at: self.number("b")?,
            ended_at: self.number("e")?,
        })
    }

    /// Noted once it left its first entry; until then the entry's id tells.
    fn submitted_at(&self) -> Result<i64, QueueError> {
        if let Some(noted) = self.number("t")? {
            return Ok(noted);
        }
        let entry = self.text("s")?;
        let time = entry.split_once('-').map_or(entry, |(time, _)| time);
        time.parse().map_err(|e| self.corrupt("when it was submitted", e))
    }

    fn parse_state(&self) -> Result<JobState, QueueError> {
        parse_state(self.text("st")?).map_err(|e| self.corrupt("its state", e))
    }

    fn text(&self, field: &str) -> Result<&str, QueueError> {
        self.fields.get(field).map(String::as_str).ok_or_else(|| self.corrupt(field, "missing"))
    }

    fn number(&self, field: &str) -> Result<Option<i64>, QueueError> {
        let number = self.fields.get(field).map(|text| text.parse::<i64>()).transpose();
        number.map_err(|e| self.corrupt(field, e))
    }

    fn optional<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, QueueError> {
        self.fields.get(field).map(|text| self.json(field, text)).transpose()
    }

    fn json<T: DeserializeOwned>(&self, what: &str, text: &str) -> Result<T, QueueError> {
        serde_json::from_str(text).map_err(|e| self.corrupt(what, e))
    }

    fn corrupt(&self, what: &str, cause: impl ToString) -> QueueError {
        QueueError::corrupt(format!("job {}, {what}", self.id), cause)
    }
}

/// The states are stored as the model writes them.
pub(crate) fn parse_state(word: &str) -> Result<JobState, serde_json::Error> {
    serde_json::from_value(serde_json::Value::from(word))
}

/// JSON of our own types.
pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<String, QueueError> {
    serde_json::to_string(value).map_err(|e| QueueError::corrupt("something to be stored", e))
}
