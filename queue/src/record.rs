//! What is known of a job.

use std::collections::HashMap;

use redis::Value;
use redis::streams::StreamPendingCountReply;
use rhizome_model::api::AttemptEnd;
use rhizome_model::{Failure, Job, JobId, JobState, Outcome};
use serde::de::DeserializeOwned;

use crate::jobs::identity;
use crate::link::{Call, Link};
use crate::member::Identity;
use crate::stored::{self, Content};
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
    /// Every attempt, the first one first, as far as they are kept (64).
    pub history: Vec<Attempt>,
    /// What its runner last said about how far it is.
    pub progress: Option<serde_json::Value>,
    /// The jobs that it still waits for.
    pub waits_for: Vec<JobId>,
}

/// One attempt of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    pub runner: String,
    pub started_at: i64,
    pub ended_at: Option<i64>,
    /// None while it is under way.
    pub end: Option<AttemptEnd>,
    pub failure: Option<Failure>,
}

pub(crate) type Fields = HashMap<String, String>;

/// What a record says.
enum Line {
    /// In a lane: its name and the entry.
    Lane(String, String),
    Delayed,
    Waiting,
    Ended(Ended),
}

struct Ended {
    state: JobState,
    attempts: u32,
    begun: Option<i64>,
    ended: i64,
    entry: String,
    owner: String,
    outcome: Outcome,
    payload: String,
}

impl Line {
    fn parse(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        match kind {
            "q" => {
                let (lane, entry) = rest.split_once(' ').ok_or("no entry")?;
                Ok(Self::Lane(lane.to_owned(), entry.to_owned()))
            }
            "d" => Ok(Self::Delayed),
            "w" => Ok(Self::Waiting),
            "e" => Ended::parse(rest).map(Self::Ended),
            other => Err(format!("'{other}'")),
        }
    }
}

impl Ended {
    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.splitn(3, '\n');
        let mut line = || lines.next().ok_or("it is cut off");
        let (head, outcome, payload) = (line()?, line()?, line()?);
        let words: Vec<&str> = head.split(' ').collect();
        let [state, attempts, begun, ended, entry, owner] = words[..] else {
            return Err(format!("'{head}'"));
        };
        let number = |word: &str| word.parse::<i64>().map_err(|e| format!("'{word}': {e}"));
        Ok(Self {
            state: parse_state(state).map_err(|e| e.to_string())?,
            attempts: attempts.parse().map_err(|e| format!("'{attempts}': {e}"))?,
            begun: (begun != "-").then(|| number(begun)).transpose()?,
            ended: number(ended)?,
            entry: entry.to_owned(),
            owner: owner.to_owned(),
            outcome: serde_json::from_str(outcome).map_err(|e| e.to_string())?,
            payload: payload.to_owned(),
        })
    }
}

/// Where a job is.
pub(crate) enum Place {
    Live {
        identity: Identity,
        /// Empty when it is in none.
        lane: String,
    },
    Ended(JobState),
}

/// The record of a job, in words.
pub(crate) async fn text(link: &Link, id: JobId) -> Result<Option<String>, QueueError> {
    link.call(&Call::new("record").key(keys::record(id)).key(keys::NUMBERS)).await
}

/// Where a job is; nothing inside when it is not known; none when it moved meanwhile.
pub(crate) async fn place(link: &Link, id: JobId) -> Result<Option<Option<Place>>, QueueError> {
    let Some(text) = text(link, id).await? else { return Ok(Some(None)) };
    let corrupt = |e: String| QueueError::corrupt(format!("job {id}"), e);
    let (content, lane) = match Line::parse(&text).map_err(corrupt)? {
        Line::Ended(ended) => return Ok(Some(Some(Place::Ended(ended.state)))),
        Line::Lane(lane, entry) => (read_entry(link, &lane, &entry).await?, lane),
        Line::Delayed | Line::Waiting => (read_value(link, id).await?, String::new()),
    };
    Ok(content.map(|content| Some(Place::Live { identity: identity(&content, &lane), lane })))
}

async fn read_entry(link: &Link, lane: &str, entry: &str) -> Result<Option<Content>, QueueError> {
    let mut range = redis::cmd("XRANGE");
    range.arg(keys::lane(lane)).arg(entry).arg(entry);
    let mut found: Vec<Value> = link.query(&range).await?;
    Ok(found.pop().and_then(stored::entry).map(|(_, content)| content))
}

async fn read_value(link: &Link, id: JobId) -> Result<Option<Content>, QueueError> {
    let mut get = redis::cmd("HGET");
    get.arg(keys::more(id)).arg("j");
    let value: Option<Vec<u8>> = link.query(&get).await?;
    Ok(value.and_then(|value| Content::decode(&value)))
}

/// The state of a job that is known.
pub(crate) async fn state(link: &Link, id: JobId) -> Result<JobState, QueueError> {
    for _ in 0..LOOKS {
        let record = text(link, id).await?.ok_or(QueueError::NoSuchJob(id))?;
        match Line::parse(&record).map_err(|e| QueueError::corrupt(format!("job {id}"), e))? {
            Line::Ended(ended) => return Ok(ended.state),
            Line::Delayed => return Ok(JobState::Delayed),
            Line::Waiting => return Ok(JobState::Waiting),
            Line::Lane(lane, entry) => {
                let mut look = redis::cmd("XPENDING");
                look.arg(keys::lane(&lane)).arg(keys::GROUP).arg(&entry).arg(&entry).arg(1);
                let pending: StreamPendingCountReply = link.query(&look).await?;
                if text(link, id).await?.as_ref() == Some(&record) {
                    let runs = !pending.ids.is_empty();
                    return Ok(if runs { JobState::Running } else { JobState::Queued });
                }
            }
        }
    }
    Err(QueueError::corrupt(format!("job {id}"), "it never stayed in one place"))
}

impl Queue {
    /// A job that has not ended, or ended less than an hour ago; a dead letter, for a week.
    pub async fn job(&self, id: JobId) -> Result<Option<JobRecord>, QueueError> {
        for _ in 0..LOOKS {
            let Some(text) = text(&self.link, id).await? else { return Ok(None) };
            let mut get = redis::cmd("HGETALL");
            get.arg(keys::more(id));
            let more = self.link.query(&get).await?;
            let line = Line::parse(&text);
            let line = line.map_err(|e| QueueError::corrupt(format!("job {id}"), e))?;
            let known = Known { id, more };
            let found = match line {
                Line::Ended(ended) => Some(known.ended(ended)?),
                Line::Delayed => known.elsewhere(JobState::Delayed)?,
                Line::Waiting => known.elsewhere(JobState::Waiting)?,
                Line::Lane(lane, entry) => self.in_lane(&known, &lane, &entry).await?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Err(QueueError::corrupt(format!("job {id}"), "it is in no lane, though its record says so"))
    }

    /// A job that waits in its lane or runs; none when it has just left.
    async fn in_lane(
        &self,
        known: &Known,
        lane: &str,
        entry: &str,
    ) -> Result<Option<JobRecord>, QueueError> {
        let lane = keys::lane(lane);
        let mut look = redis::pipe();
        look.cmd("XPENDING").arg(&lane).arg(keys::GROUP).arg(entry).arg(entry).arg(1);
        look.cmd("XRANGE").arg(&lane).arg(entry).arg(entry);
        look.cmd("TIME");
        type Found = (StreamPendingCountReply, Vec<Value>, (i64, i64));
        let (pending, mut range, time): Found = self.link.query_all(&look).await?;
        let Some((_, content)) = range.pop().and_then(stored::entry) else { return Ok(None) };
        let mut found = known.read(JobState::Queued, content.before, &content.payload, entry)?;
        if let Some(lease) = pending.ids.first() {
            let idle = i64::try_from(lease.last_delivered_ms).unwrap_or(i64::MAX);
            let begun = time.0 * 1000 + time.1 / 1000 - idle;
            found.state = JobState::Running;
            found.attempts += 1;
            found.runner = Some(lease.consumer.clone());
            found.started_at = Some(begun);
            found.history.push(Attempt {
                number: found.attempts,
                runner: lease.consumer.clone(),
                started_at: begun,
                ended_at: None,
                end: None,
                failure: None,
            });
        }
        Ok(Some(found))
    }
}

/// What is known of a job besides its record.
struct Known {
    id: JobId,
    more: HashMap<String, Vec<u8>>,
}

impl Known {
    /// A job that is in no lane; none when it has just gone into one.
    fn elsewhere(&self, state: JobState) -> Result<Option<JobRecord>, QueueError> {
        let value = self.more.get("j").and_then(|value| Content::decode(value));
        value.map(|c| self.read(state, c.before, &c.payload, "")).transpose()
    }

    fn ended(&self, ended: Ended) -> Result<JobRecord, QueueError> {
        let mut found = self.read(ended.state, ended.attempts, &ended.payload, &ended.entry)?;
        found.started_at = ended.begun.or(found.started_at);
        found.ended_at = Some(ended.ended);
        if let Some(begun) = ended.begun {
            found.history.push(Attempt {
                number: ended.attempts,
                runner: ended.owner,
                started_at: begun,
                ended_at: Some(ended.ended),
                end: Some(last_end(ended.state)),
                failure: match &ended.outcome {
                    Outcome::Failed(failure) => Some(failure.clone()),
                    Outcome::Succeeded(_) | Outcome::Cancelled => None,
                },
            });
        }
        found.outcome = Some(ended.outcome);
        Ok(found)
    }

    fn read(
        &self,
        state: JobState,
        attempts: u32,
        payload: &str,
        entry: &str,
    ) -> Result<JobRecord, QueueError> {
        let job = stored::job_of(self.id, payload).map_err(|e| self.corrupt("its payload", e))?;
        let history = self.history()?;
        Ok(JobRecord {
            submitted_at: self.submitted_at(entry)?,
            job,
            state,
            attempts,
            runner: None,
            outcome: None,
            failure: self.json("f")?,
            started_at: history.last().map(|attempt| attempt.started_at),
            ended_at: None,
            history,
            progress: self.json("p")?,
            waits_for: self.waits_for(),
        })
    }

    fn history(&self) -> Result<Vec<Attempt>, QueueError> {
        let mut attempts = Vec::new();
        for (field, text) in &self.more {
            let Some(number) = field.strip_prefix("h ").and_then(|n| n.parse().ok()) else {
                continue;
            };
            let text = String::from_utf8_lossy(text);
            let attempt = past_attempt(number, &text);
            attempts.push(attempt.map_err(|e| self.corrupt("its history", e))?);
        }
        attempts.sort_unstable_by_key(|attempt: &Attempt| attempt.number);
        Ok(attempts)
    }

    fn waits_for(&self) -> Vec<JobId> {
        let ids = self.more.keys().filter_map(|field| field.strip_prefix("w ")?.parse().ok());
        let mut ids: Vec<JobId> = ids.collect();
        ids.sort_unstable();
        ids
    }

    /// Noted once it left its first entry; until then the entry's id tells.
    fn submitted_at(&self, entry: &str) -> Result<i64, QueueError> {
        let noted = self.more.get("t").map(|text| String::from_utf8_lossy(text).into_owned());
        let text = noted.as_deref().unwrap_or(entry);
        let time = text.split_once('-').map_or(text, |(time, _)| time);
        time.parse().map_err(|e| self.corrupt("when it was submitted", e))
    }

    fn json<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, QueueError> {
        let value = self.more.get(field).map(|text| serde_json::from_slice(text)).transpose();
        value.map_err(|e| self.corrupt(field, e))
    }

    fn corrupt(&self, what: &str, cause: impl ToString) -> QueueError {
        QueueError::corrupt(format!("job {}, {what}", self.id), cause)
    }
}

/// `BEGUN ENDED HOW RUNNER`, then the failure.
fn past_attempt(number: u32, text: &str) -> Result<Attempt, String> {
    let (head, failure) = text.split_once('\n').unwrap_or((text, ""));
    let words: Vec<&str> = head.split(' ').collect();
    let [begun, ended, how, runner] = words[..] else { return Err(format!("'{head}'")) };
    let number_of = |word: &str| word.parse::<i64>().map_err(|e| format!("'{word}': {e}"));
    let end = serde_json::from_value(how.into()).map_err(|e| e.to_string())?;
    let failure = (!failure.is_empty()).then(|| serde_json::from_str(failure));
    Ok(Attempt {
        number,
        runner: runner.to_owned(),
        started_at: number_of(begun)?,
        ended_at: Some(number_of(ended)?),
        end: Some(end),
        failure: failure.transpose().map_err(|e| e.to_string())?,
    })
}

/// How the last attempt of a job ended.
fn last_end(state: JobState) -> AttemptEnd {
    match state {
        JobState::Succeeded => AttemptEnd::Succeeded,
        JobState::Cancelled => AttemptEnd::Cancelled,
        JobState::Quarantined => AttemptEnd::Died,
        JobState::Failed
        | JobState::Expired
        | JobState::Waiting
        | JobState::Queued
        | JobState::Delayed
        | JobState::Running => AttemptEnd::Failed,
    }
}

/// The outcome in a record as it is stored; none while the job has not ended.
pub(crate) fn outcome_in(record: &str) -> Result<Option<Outcome>, String> {
    let ended = record.strip_prefix("e ").map(Ended::parse).transpose()?;
    Ok(ended.map(|ended| ended.outcome))
}

/// The states are stored as the model writes them.
pub(crate) fn parse_state(word: &str) -> Result<JobState, serde_json::Error> {
    serde_json::from_value(serde_json::Value::from(word))
}

/// JSON of our own types.
pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<String, QueueError> {
    serde_json::to_string(value).map_err(|e| QueueError::corrupt("something to be stored", e))
}
