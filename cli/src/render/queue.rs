//! Queues, jobs, pools and limits for people.

use jiff::tz::TimeZone;
use rhizome_model::api::{
    AccountLimits, AttemptEnd, AttemptView, JobView, PoolMode, PoolView, QueueView,
};
use rhizome_model::{AccountId, JobState, NodeId};

use super::{clean, clock, date, duration, table, value};

/// A line per queue, then one per queue and account.
pub fn queues(queues: &[QueueView]) -> String {
    let rows = queues.iter().map(|queue| {
        [
            queue.node.to_string(),
            queue.queue.clone(),
            mode(queue.mode).to_owned(),
            queue.slots.to_string(),
            queue.ready.to_string(),
            if queue.ready > 0 { duration(queue.oldest_ms) } else { "-".to_owned() },
            queue.running.to_string(),
            queue.retrying.to_string(),
            queue.delayed.to_string(),
            queue.waiting.to_string(),
            queue.dead.to_string(),
            format!("{:.1}", queue.rate_per_s),
            ended(&queue.ended),
        ]
    });
    let header = [
        "NODE", "QUEUE", "MODE", "SLOTS", "READY", "OLDEST", "RUNNING", "RETRYING", "DELAYED",
        "WAITING", "DEAD", "PER S", "ENDED",
    ];
    let of_account = |queue: &QueueView| {
        let row = |a: &rhizome_model::api::AccountQueueView| {
            [
                queue.node.to_string(),
                queue.queue.clone(),
                whose(a.account),
                a.ready.to_string(),
                a.running.to_string(),
                ended(&a.ended),
            ]
        };
        queue.accounts.iter().map(row).collect::<Vec<_>>()
    };
    let accounts: Vec<_> = queues.iter().flat_map(of_account).collect();
    let mut text = table(header, rows);
    if !accounts.is_empty() {
        let header = ["NODE", "QUEUE", "ACCOUNT", "READY", "RUNNING", "ENDED"];
        text.push_str("\n\n");
        text.push_str(&table(header, accounts));
    }
    text
}

/// Everything of one job.
pub fn job(job: &JobView, zone: &TimeZone) -> String {
    let mut about = job.deployment.as_ref().map_or_else(|| whose(job.account), |d| format!("{d}"));
    if let Some(resource) = &job.resource {
        about.push_str(&format!("/{resource}"));
    }
    let mut lines = vec![
        format!(
            "job {} on node {}: {} of {about}, {}",
            job.id,
            job.node,
            clean(&job.work),
            state(job.state)
        ),
        format!("queue      {}", clean(&job.queue)),
        format!("submitted  {}", date(job.submitted_at, zone)),
    ];
    let mut line = |name: &str, text: Option<String>| {
        lines.extend(text.map(|text| format!("{name:<11}{text}")));
    };
    line("ended", job.ended_at.map(|at| date(at, zone)));
    line("trace", job.trace.map(|t| t.to_string()));
    line("parent", job.parent.map(|id| id.to_string()));
    line("again", job.again.map(|id| format!("does {id} again")));
    let waits: Vec<_> = job.waits_for.iter().map(ToString::to_string).collect();
    line("waits for", (!waits.is_empty()).then(|| waits.join(", ")));
    line("progress", job.progress.as_ref().map(value));
    line("result", job.result.as_ref().map(value));
    line("failure", job.failure.as_ref().map(|f| clean(&f.to_string())));
    let mut text = lines.join("\n");
    if !job.attempts.is_empty() {
        let rows = job.attempts.iter().map(|a| attempt(a, zone));
        text.push_str("\n\n");
        text.push_str(&table(["ATTEMPT", "BEGAN", "TOOK", "RUNNER", "ENDED", "WHY"], rows));
    }
    if let Some(detail) = job.failure.as_ref().and_then(|f| f.detail.as_ref()) {
        text.push_str("\n\n");
        text.push_str(&clean(detail));
    }
    if !job.log.is_empty() {
        text.push_str("\n\n");
        text.push_str(&clean(&job.log.join("\n")));
    }
    text
}

fn attempt(attempt: &AttemptView, zone: &TimeZone) -> [String; 6] {
    let took = attempt.ended_at.map(|end| u64::try_from(end - attempt.started_at).unwrap_or(0));
    let end = match attempt.end {
        None => "under way",
        Some(AttemptEnd::Succeeded) => "succeeded",
        Some(AttemptEnd::Failed) => "failed",
        Some(AttemptEnd::Cancelled) => "cancelled",
        Some(AttemptEnd::Retried) => "failed, tried again",
        Some(AttemptEnd::Died) => "its runner died",
        Some(AttemptEnd::Released) => "given back untried",
    };
    [
        attempt.number.to_string(),
        clock(attempt.started_at, zone),
        took.map_or_else(|| "-".to_owned(), duration),
        attempt.runner.clone(),
        end.to_owned(),
        attempt.failure.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
    ]
}

/// A line per pool, then one per runner.
pub fn pools(pools: &[(NodeId, PoolView)]) -> String {
    let rows = pools.iter().map(|(node, pool)| {
        [
            node.to_string(),
            pool.queues.join(" "),
            mode(pool.mode).to_owned(),
            pool.scale.to_string(),
            pool.runners.len().to_string(),
        ]
    });
    let of_pool = |(node, pool): &(NodeId, PoolView)| {
        let row = |runner: &rhizome_model::api::RunnerView| {
            let (pid, restarts) = (runner.pid.to_string(), runner.restarts.to_string());
            [node.to_string(), runner.name.clone(), pid, restarts]
        };
        pool.runners.iter().map(row).collect::<Vec<_>>()
    };
    let runners: Vec<_> = pools.iter().flat_map(of_pool).collect();
    let mut text = table(["NODE", "QUEUES", "MODE", "SCALE", "RUNNING"], rows);
    if !runners.is_empty() {
        text.push_str("\n\n");
        text.push_str(&table(["NODE", "RUNNER", "PID", "RESTARTS"], runners));
    }
    text
}

pub fn limits(rows: &[(NodeId, String, AccountLimits)]) -> String {
    let all = || "-".to_owned();
    let rows = rows.iter().map(|(node, account, limits)| {
        [
            node.to_string(),
            account.clone(),
            limits.concurrency.map_or_else(all, |n| n.to_string()),
            limits.rate_per_s.map_or_else(all, |r| r.to_string()),
            limits.burst.map_or_else(all, |b| b.to_string()),
        ]
    });
    table(["NODE", "ACCOUNT", "CONCURRENCY", "PER S", "BURST"], rows)
}

pub fn state(state: JobState) -> &'static str {
    match state {
        JobState::Waiting => "waiting",
        JobState::Queued => "queued",
        JobState::Delayed => "delayed",
        JobState::Running => "running",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
        JobState::Expired => "expired",
        JobState::Quarantined => "quarantined",
    }
}

fn mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Running => "running",
        PoolMode::Paused => "paused",
        PoolMode::Drained => "drained",
    }
}

/// The node's own upkeep is no account's.
fn whose(account: AccountId) -> String {
    if account == AccountId(0) { "the node".to_owned() } else { account.to_string() }
}

fn ended(states: &std::collections::BTreeMap<JobState, u64>) -> String {
    let parts: Vec<_> = states.iter().map(|(s, n)| format!("{n} {}", state(*s))).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rhizome_model::api::{AccountQueueView, RunnerView};
    use rhizome_model::{Code, Failure, JobId, TraceId};

    use super::*;

    #[test]
    fn queues_for_people() {
        let ended = BTreeMap::from([(JobState::Succeeded, 20), (JobState::Failed, 1)]);
        let account = |account, ready| AccountQueueView {
            account: AccountId(account),
            ready,
            running: 1,
            ended: ended.clone(),
        };
        let busy = QueueView {
            node: NodeId(1),
            queue: "machine".into(),
            mode: PoolMode::Running,
            slots: 8,
            ready: 3,
            running: 2,
            delayed: 2,
            retrying: 1,
            waiting: 4,
            dead: 0,
            oldest_ms: 1500,
            rate_per_s: 12.345,
            ended: ended.clone(),
            accounts: vec![account(0, 0), account(7, 3)],
        };
        let idle = QueueView {
            queue: "script".into(),
            mode: PoolMode::Paused,
            ready: 0,
            rate_per_s: 0.0,
            ended: BTreeMap::new(),
            accounts: Vec::new(),
            ..busy
        };
        insta::assert_snapshot!(queues(&[busy, idle]));
    }

    #[test]
    fn a_job_for_people() {
        let attempt = |number: u32, end: Option<AttemptEnd>| AttemptView {
            number,
            runner: format!("machine-{number}"),
            started_at: 1_700_000_000_000 + i64::from(number) * 1000,
            ended_at: end.map(|_| 1_700_000_000_250 + i64::from(number) * 1000),
            end,
            failure: (end == Some(AttemptEnd::Retried))
                .then(|| Failure::new(Code::ToolFailed, "'runc' failed")),
        };
        let view = JobView {
            node: NodeId(1),
            id: JobId([0x0f; 16]),
            queue: "machine".into(),
            account: AccountId(7),
            deployment: Some("7/demo".parse().unwrap()),
            resource: Some("web".parse().unwrap()),
            work: "ensure".into(),
            state: JobState::Running,
            submitted_at: 1_700_000_000_123,
            ended_at: None,
            trace: Some(TraceId([0xab; 16])),
            parent: Some(JobId([1; 16])),
            again: None,
            waits_for: Vec::new(),
            attempts: vec![
                attempt(1, Some(AttemptEnd::Died)),
                attempt(2, Some(AttemptEnd::Retried)),
                attempt(3, None),
            ],
            progress: None,
            result: None,
            failure: None,
            log: vec!["one".into(), "two \u{1b}[2J".into()],
        };
        insta::assert_snapshot!(job(&view, &TimeZone::UTC));
    }

    #[test]
    fn pools_and_limits_for_people() {
        let runners = vec![RunnerView { name: "volume-1".into(), pid: 42, restarts: 1 }];
        let busy =
            PoolView { queues: vec!["volume".into()], mode: PoolMode::Running, scale: 1, runners };
        let queues = vec!["volume-actions".into(), "machine-actions".into()];
        let drained = PoolView { queues, mode: PoolMode::Drained, scale: 2, runners: Vec::new() };
        let shown = pools(&[(NodeId(1), busy), (NodeId(1), drained)]);
        let some = AccountLimits { concurrency: Some(4), rate_per_s: Some(0.5), burst: None };
        let rows = [
            (NodeId(1), "7".to_owned(), some),
            (NodeId(1), "default".to_owned(), AccountLimits::default()),
        ];
        insta::assert_snapshot!(format!("{shown}\n\n{}", limits(&rows)));
    }
}
