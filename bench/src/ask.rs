//! What the bench asks of a peer's process, one JSON object per line, and what it answers.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Ask {
    /// Submit so many jobs, as many at a time as the peer's documentation recommends.
    Submit { jobs: usize },
    /// Start a worker if there is none yet, and wait until this process has handled so many in all.
    Work { total: usize },
    /// Submit one job after the other, at this pace, to the worker of this process.
    Pace { jobs: usize, every_us: u64 },
    /// Start a worker that never finishes what it takes, and wait until it has one job.
    Hold,
    /// Only say how much CPU was used until now.
    Usage,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answer {
    pub seconds: f64,
    /// What this process has used since it started, in user and system mode.
    pub cpu_us: u64,
    /// Of each job, from just before it was submitted until its handler began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latencies_us: Vec<f64>,
    /// Why it could not be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}
