//! What a job of these tests does: its plan stands in its specification.

use std::time::Duration;

use anyhow::Context as _;
use rhizome_model::{AccountId, Job, JobId, Name, Priority, ResourceId, Work, WorkloadKind};
use serde::{Deserialize, Serialize};

/// The queues of these tests; each job is in one.
pub const QUEUES: [&str; 2] = ["volume", "script"];
pub const ACCOUNTS: u64 = 5;

/// What each attempt of a job does, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Lasts as long, then ends as below.
    pub work_ms: u64,
    /// What it prints on its way, and notes as progress.
    pub prints: u32,
    /// The process that runs this attempt aborts in the middle.
    pub abort_in: Option<u32>,
    /// The lease of this attempt is dropped without an end.
    pub drop_in: Option<u32>,
    /// Half of the attempts are given back untried.
    pub releases: bool,
    /// So many attempts fail, with others to follow.
    pub failures: u32,
    /// Then it fails for good instead of succeeding.
    pub fails: bool,
    /// Works until it is cancelled, at most for so long.
    pub until_cancelled_ms: Option<u64>,
}

impl Plan {
    pub fn of(job: &Job) -> anyhow::Result<Self> {
        let Work::Ensure { spec, .. } = &job.work else {
            anyhow::bail!("job {} is none of these tests", job.id);
        };
        serde_json::from_value(spec.clone()).with_context(|| format!("the plan of job {}", job.id))
    }

    pub fn work(&self) -> Duration {
        Duration::from_millis(self.until_cancelled_ms.unwrap_or(self.work_ms))
    }

    pub fn job(&self, id: JobId, queue: &str, account: AccountId) -> anyhow::Result<Job> {
        let name = || "chaos".parse::<Name>();
        let resource = ResourceId { account, deployment: name()?, name: name()? };
        let spec = serde_json::to_value(self)?;
        let work = Work::Ensure { kind: WorkloadKind::Volume, id: resource, spec };
        Ok(Job::new(id, queue, account, work))
    }
}

pub fn new_id(dice: &mut fastrand::Rng) -> JobId {
    JobId(uuid::Builder::from_random_bytes(dice.u128(..).to_le_bytes()).into_uuid().into_bytes())
}

/// A random job; `now` is the node's time in Unix milliseconds.
pub fn random_job(dice: &mut fastrand::Rng, now: i64) -> anyhow::Result<Job> {
    let plan = random_plan(dice);
    let queue = QUEUES[usize::from(one_in(dice, 5))];
    let job = plan.job(new_id(dice), queue, AccountId(1 + dice.u64(..ACCOUNTS)))?;
    Ok(Job {
        priority: Priority::ALL[dice.usize(..Priority::ALL.len())],
        max_attempts: dice.u32(3..=12),
        starts_at: one_in(dice, 6).then(|| now + dice.i64(-50..3000)),
        expires_at: one_in(dice, 25).then(|| now + dice.i64(0..4000)),
        unique: one_in(dice, 20).then(|| format!("only-{}", dice.u8(..20))),
        order: one_in(dice, 20).then(|| format!("line-{}", dice.u8(..10))),
        ..job
    })
}

fn one_in(dice: &mut fastrand::Rng, sides: u32) -> bool {
    dice.u32(..sides) == 0
}

fn random_plan(dice: &mut fastrand::Rng) -> Plan {
    let short = Plan { work_ms: dice.u64(..80), ..Plan::default() };
    match dice.u32(..100) {
        0 => Plan { abort_in: Some(1), ..short },
        1..=2 => Plan { drop_in: Some(dice.u32(1..3)), ..short },
        3..=5 => Plan { releases: true, ..short },
        6..=15 => Plan { failures: dice.u32(1..4), ..short },
        // More than it has attempts.
        16 => Plan { failures: u32::MAX, ..short },
        17..=19 => Plan { fails: true, ..short },
        20..=21 => Plan { until_cancelled_ms: Some(dice.u64(200..2000)), ..short },
        22..=26 => Plan { prints: dice.u32(1..5), ..short },
        27..=30 => Plan { work_ms: dice.u64(100..1500), ..short },
        _ => short,
    }
}
