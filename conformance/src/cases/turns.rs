//! Who is served next.

use std::collections::HashMap;

use anyhow::ensure;
use rhizome_model::{AccountId, Job, Priority};

use crate::bed::{done, job, job_of, jobs, take};
use crate::{Bed, Lease, Runner};

super::cases! {
    the_urgent_are_served_first: "within an account the urgent go first, and equals in their order",
    a_flood_delays_another_by_no_more_than_the_slots: "a flooding account delays another's single job by no more than the slots",
    a_flood_delays_another_by_no_more_than_many_slots: "the same, where runners take many at a time",
    accounts_take_turns: "accounts that wait are served in turn",
    what_was_under_way_goes_before_what_was_not: "a job that goes back keeps its turn",
}

async fn the_urgent_are_served_first(bed: Bed) -> anyhow::Result<()> {
    use Priority::{High, Low, Normal};
    let order = [Low, Normal, High, Normal, Low, High];
    let all = order.map(|priority| Job { priority, ..job() });
    bed.queue(&all).await?;
    let mut runner = bed.hire("a", 1).await?;
    for at in [2, 5, 1, 3, 0, 4] {
        crate::bed::serve(&mut runner, all[at].id).await?;
    }
    Ok(())
}

async fn a_flood_delays_another_by_no_more_than_the_slots(bed: Bed) -> anyhow::Result<()> {
    flood(&bed, &[3, 1]).await
}

async fn a_flood_delays_another_by_no_more_than_many_slots(bed: Bed) -> anyhow::Result<()> {
    flood(&bed, &[40, 24]).await
}

/// One account has two thousand jobs and all slots; another comes with one.
async fn flood(bed: &Bed, slots: &[usize]) -> anyhow::Result<()> {
    const JOBS: usize = 2000;
    let mut runners = Vec::new();
    for (n, slots) in slots.iter().enumerate() {
        runners.push((bed.hire(&format!("r{n}"), *slots).await?, *slots));
    }
    bed.queue(&jobs(JOBS, job)).await?;
    let mut held = Vec::new();
    for (at, (runner, slots)) in runners.iter_mut().enumerate() {
        for _ in 0..*slots {
            held.push((at, take(runner).await?));
        }
    }
    let single = job_of(2);
    bed.queue(std::slice::from_ref(&single)).await?;
    let window: usize = slots.iter().sum();
    let mut before = 0;
    loop {
        // All that runs ends, a runner after the other, and all slots are filled again.
        for (at, next) in refill(&mut runners, std::mem::take(&mut held)).await? {
            if next.job().id == single.id {
                ensure!(before <= window, "{before} started before it, {window} slots");
                return Ok(());
            }
            before += 1;
            held.push((at, next));
        }
        ensure!(before <= 4 * window, "it does not come: {before} started before it");
    }
}

type Held = Vec<(usize, Box<dyn Lease>)>;

async fn refill(runners: &mut [(Box<dyn Runner>, usize)], held: Held) -> anyhow::Result<Held> {
    let mut next = Vec::new();
    for (at, lease) in held {
        lease.finish(&done()).await?;
        drop(lease);
        next.push((at, take(&mut runners[at].0).await?));
    }
    Ok(next)
}

async fn accounts_take_turns(bed: Bed) -> anyhow::Result<()> {
    const EACH: usize = 40;
    for account in 1..=3 {
        bed.queue(&jobs(EACH, || job_of(account))).await?;
    }
    let mut runner = bed.hire("a", 1).await?;
    let mut served: HashMap<AccountId, usize> = HashMap::new();
    for n in 1..=EACH {
        let lease = take(&mut runner).await?;
        *served.entry(lease.job().account).or_default() += 1;
        lease.finish(&done()).await?;
        for account in 1..=3 {
            let has = served.get(&AccountId(account)).copied().unwrap_or_default();
            // An even share, give or take what one claim may bring.
            ensure!(has.abs_diff(n / 3) <= 2, "after {n} jobs: {served:?}");
        }
    }
    Ok(())
}

async fn what_was_under_way_goes_before_what_was_not(bed: Bed) -> anyhow::Result<()> {
    let first = Job { priority: Priority::Low, ..job() };
    bed.queue(std::slice::from_ref(&first)).await?;
    let mut runner = bed.hire("a", 1).await?;
    let lease = take(&mut runner).await?;
    bed.queue(&jobs(5, || Job { priority: Priority::High, ..job() })).await?;
    lease.release().await?;
    drop(lease);
    let lease = take(&mut runner).await?;
    ensure!((lease.job().id, lease.attempt()) == (first.id, 1));
    drop(runner);
    bed.bury("a").await?;
    let mut runner = bed.hire("b", 1).await?;
    let lease = take(&mut runner).await?;
    ensure!((lease.job().id, lease.attempt()) == (first.id, 2));
    Ok(lease.finish(&done()).await?)
}
