//! What an account may use.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::ensure;
use rhizome_model::AccountId;
use rhizome_model::api::AccountLimits;

use crate::Bed;
use crate::bed::{done, job_of, jobs, take};

super::cases! {
    an_account_runs_no_more_than_it_may: "no more jobs of an account run at a time than its limit, and no fewer",
    an_account_starts_no_more_per_second_than_it_may: "jobs of an account start at its rate, after a burst",
    accounts_at_their_limit_hold_up_nobody: "however many accounts wait for their limits, others start",
    a_limit_may_be_lifted: "a limit that is changed counts at once",
}

async fn an_account_runs_no_more_than_it_may(bed: Bed) -> anyhow::Result<()> {
    let limits = AccountLimits { concurrency: Some(2), ..AccountLimits::default() };
    bed.set_limits(Some(AccountId(1)), limits).await?;
    // Of two runners, each of which alone could run more.
    let mut a = bed.hire("a", 3).await?;
    let mut b = bed.hire("b", 3).await?;
    bed.queue(&jobs(10, || job_of(1))).await?;
    bed.queue(&jobs(10, || job_of(2))).await?;
    let mut running: HashMap<AccountId, usize> = HashMap::new();
    let mut held = Vec::new();
    let (mut started, mut most) = (0, 0);
    while started < 20 {
        let lease = tokio::select! {
            lease = take(&mut a) => lease?,
            lease = take(&mut b) => lease?,
            // All that may run does.
            () = tokio::time::sleep(Duration::from_millis(40)) => {
                ensure!(!held.is_empty(), "nothing runs, and nothing starts");
                let done_one: Box<dyn crate::Lease> = held.remove(0);
                done_one.finish(&done()).await?;
                *running.entry(done_one.job().account).or_default() -= 1;
                continue;
            }
        };
        started += 1;
        let now = running.entry(lease.job().account).or_default();
        *now += 1;
        if lease.job().account == AccountId(1) {
            most = most.max(*now);
        }
        held.push(lease);
    }
    ensure!(most == 2, "{most} ran at a time");
    Ok(())
}

/// Starts at this rate would be fast enough to be held up by nothing else.
const RATE: f64 = 20.0;
const BURST: usize = 4;

async fn an_account_starts_no_more_per_second_than_it_may(bed: Bed) -> anyhow::Result<()> {
    const JOBS: usize = 14;
    let limits =
        AccountLimits { rate_per_s: Some(RATE), burst: Some(BURST as u32), concurrency: None };
    // For everybody who has none of their own.
    bed.set_limits(None, limits).await?;
    let mut runner = bed.hire("a", 8).await?;
    let all = jobs(JOBS, || job_of(1));
    bed.queue(&all).await?;
    for _ in 0..JOBS {
        take(&mut runner).await?.finish(&done()).await?;
    }
    let mut starts = Vec::new();
    for job in &all {
        starts.extend(bed.record(job.id).await?.started_at);
    }
    ensure!(starts.len() == JOBS);
    starts.sort_unstable();
    let gap = 1000.0 / RATE;
    for (n, at) in starts.iter().enumerate() {
        let since = (at - starts[0]) as f64;
        let earliest = n.saturating_sub(BURST - 1) as f64 * gap;
        // Times are whole milliseconds.
        ensure!(since + 3.0 >= earliest, "start {n} came after {since} ms: {starts:?}");
        ensure!(since <= earliest + 2000.0, "start {n} came only after {since} ms: {starts:?}");
    }
    Ok(())
}

async fn a_limit_may_be_lifted(bed: Bed) -> anyhow::Result<()> {
    let account = Some(AccountId(1));
    let limits = AccountLimits { concurrency: Some(1), ..AccountLimits::default() };
    bed.set_limits(account, limits).await?;
    let mut runner = bed.hire("a", 4).await?;
    bed.queue(&jobs(4, || job_of(1))).await?;
    let mut held = vec![take(&mut runner).await?];
    bed.nothing_comes(&mut runner).await?;
    bed.set_limits(account, AccountLimits { concurrency: Some(2), ..limits }).await?;
    held.push(take(&mut runner).await?);
    bed.nothing_comes(&mut runner).await?;
    bed.set_limits(account, AccountLimits::default()).await?;
    for _ in 0..2 {
        held.push(take(&mut runner).await?);
    }
    for lease in held {
        lease.finish(&done()).await?;
    }
    Ok(())
}

async fn accounts_at_their_limit_hold_up_nobody(bed: Bed) -> anyhow::Result<()> {
    const BLOCKED: u64 = 300;
    const FREE: AccountId = AccountId(999_999);
    // The first job of each starts, and the second one not today.
    let limits = AccountLimits { rate_per_s: Some(0.001), ..AccountLimits::default() };
    bed.set_limits(None, limits).await?;
    let free = AccountLimits { concurrency: Some(3), ..AccountLimits::default() };
    bed.set_limits(Some(FREE), free).await?;
    let both: Vec<_> = (1..=BLOCKED).flat_map(|n| [job_of(n), job_of(n)]).collect();
    bed.queue(&both).await?;
    let mut runner = bed.hire("a", 4).await?;
    for _ in 0..BLOCKED {
        take(&mut runner).await?.finish(&done()).await?;
    }
    bed.nothing_comes(&mut runner).await?;
    bed.queue(&jobs(12, || job_of(FREE.0))).await?;
    for n in 0..12 {
        let next = tokio::time::timeout(Duration::from_secs(3), take(&mut runner)).await;
        let lease = next.map_err(|_| anyhow::anyhow!("only {n} of 12 start"))??;
        ensure!(lease.job().account == FREE);
        lease.finish(&done()).await?;
    }
    Ok(())
}
