//! A job as an entry of a lane holds it: attempts that counted (2 bytes, big-endian; the highest bit
//! says that it was in another place before), the id (16 bytes), then its JSON without the id, which
//! comes first there.

use std::sync::Arc;

use redis::Value;
use rhizome_model::{Job, JobId};

use crate::QueueError;
use crate::record::to_json;

const HEADER: usize = 18;
const MOVED: u16 = 1 << 15;
/// `{"id":"`, 32 digits, `",`
const ID_IN_JSON: usize = 41;

/// What stands in an entry.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) id: JobId,
    /// Attempts that counted before this one.
    pub(crate) before: u32,
    /// Whether it was in another place before, so that more is known of it than its record.
    pub(crate) moved: bool,
    /// The JSON after the id.
    pub(crate) payload: Arc<str>,
    /// Where the lane does not say it.
    pub(crate) account: Option<String>,
}

/// What an entry of a job that was never tried holds.
pub(crate) fn encode(job: &Job) -> Result<Vec<u8>, QueueError> {
    let json = to_json(job)?;
    let mut value = Vec::with_capacity(HEADER + json.len() - ID_IN_JSON);
    value.extend_from_slice(&[0, 0]);
    value.extend_from_slice(&job.id.0);
    value.extend_from_slice(&json.as_bytes()[ID_IN_JSON..]);
    Ok(value)
}

/// The job of what a record or an entry holds after its id.
pub(crate) fn job_of(id: JobId, payload: &str) -> Result<Job, serde_json::Error> {
    let mut json = String::with_capacity(ID_IN_JSON + payload.len());
    json.push_str("{\"id\":\"");
    json.push_str(&id.to_string());
    json.push_str("\",");
    json.push_str(payload);
    serde_json::from_str(&json)
}

/// What is no text is kept as far as it is: it will be refused as JSON, with the reason. Nearly always it
/// is one, and to see that is cheaper than to look for the parts that are not.
fn text_of(payload: &[u8]) -> Arc<str> {
    match str::from_utf8(payload) {
        Ok(text) => text.into(),
        Err(_) => String::from_utf8_lossy(payload).into(),
    }
}

impl Content {
    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let (attempts, rest) = value.split_first_chunk::<2>()?;
        let (id, payload) = rest.split_first_chunk::<16>()?;
        Some(Self {
            id: JobId(*id),
            before: u32::from(u16::from_be_bytes(*attempts) & !MOVED),
            moved: u16::from_be_bytes(*attempts) & MOVED != 0,
            payload: text_of(payload),
            account: None,
        })
    }

    pub(crate) fn job(&self) -> Result<Job, serde_json::Error> {
        job_of(self.id, &self.payload)
    }
}

/// The entries of one lane in an answer: its key, then each with its id. What is not such an answer
/// has none.
pub(crate) fn entries(lane: Value) -> Option<(String, Vec<(String, Content)>)> {
    let Value::Array(parts) = lane else { return None };
    let [key, entries] = <[Value; 2]>::try_from(parts).ok()?;
    let Value::Array(entries) = entries else { return None };
    Some((text(key)?, entries.into_iter().filter_map(entry).collect()))
}

/// One entry: its id and its content.
pub(crate) fn entry(entry: Value) -> Option<(String, Content)> {
    let Value::Array(parts) = entry else { return None };
    let [id, fields] = <[Value; 2]>::try_from(parts).ok()?;
    let Value::Array(fields) = fields else { return None };
    let mut fields = fields.into_iter();
    let (_, value) = (fields.next()?, fields.next()?);
    let Value::BulkString(value) = value else { return None };
    let mut content = Content::decode(&value)?;
    content.account = fields.nth(1).and_then(text);
    Some((text(id)?, content))
}

pub(crate) fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rhizome_model::{AccountId, Work, WorkloadKind};

    use super::*;

    #[test]
    fn a_job_reads_back() {
        let work = Work::Sweep { kind: WorkloadKind::Volume };
        let job = Job::new(JobId([7; 16]), "volume", AccountId(3), work);
        let content = Content::decode(&encode(&job).unwrap()).unwrap();
        assert_eq!((content.id, content.before), (job.id, 0));
        assert_eq!(content.job().unwrap(), job);
    }

    #[test]
    fn what_is_too_short_is_no_job() {
        assert!(Content::decode(&[0; HEADER - 1]).is_none());
        assert!(entries(Value::Nil).is_none());
    }
}
