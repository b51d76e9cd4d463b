//! Crash points of those who submit, cancel and look.

use rhizome_chaos::history::What;
use rhizome_model::{Job, JobId};
use rhizome_queue::{Durability, Queue, QueueConfig, Submission};

use crate::bed::{Bed, fail_everywhere};

/// Submits through the proxy; when that client is dead, the next one asks again with the same ids.
async fn submit(bed: &mut Bed, jobs: &[Job]) -> anyhow::Result<()> {
    bed.submitting(jobs);
    let far = bed.far.clone();
    match bed.step(far.submit(jobs)).await? {
        Some(answers) => bed.submitted(jobs, Some(answers)),
        None => {
            bed.submitted(jobs, None)?;
            bed.submitting(jobs);
            let answers = bed.near.submit(jobs).await?;
            bed.submitted(jobs, Some(answers))
        }
    }
}

/// What comes before anything else, on a redis-server that does not know the functions yet.
#[tokio::test]
async fn connect() {
    fail_everywhere(async |bed| {
        bed.counts = |_| true;
        let socket = bed.proxy.socket().to_owned();
        let config = QueueConfig { socket, durability: Durability::Always };
        let job = bed.job()?;
        bed.submitting(std::slice::from_ref(&job));
        let step =
            async { Queue::connect(&config).await?.submit(std::slice::from_ref(&job)).await };
        let answers = bed.step(step).await?;
        bed.submitted(std::slice::from_ref(&job), answers)
    })
    .await;
}

#[tokio::test]
async fn submit_one() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        submit(bed, &[job]).await
    })
    .await;
}

/// Two calls: a function takes 256.
#[tokio::test]
async fn submit_many() {
    fail_everywhere(async |bed| {
        let jobs = (0..300).map(|_| bed.job()).collect::<anyhow::Result<Vec<_>>>()?;
        submit(bed, &jobs).await
    })
    .await;
}

#[tokio::test]
async fn submit_what_must_be_alone() {
    fail_everywhere(async |bed| {
        let unique = Some("key".to_owned());
        let first = Job { unique: unique.clone(), ..bed.job()? };
        let second = Job { unique, ..bed.job()? };
        submit(bed, std::slice::from_ref(&first)).await?;
        bed.submitting(std::slice::from_ref(&second));
        let answers = bed.near.submit(std::slice::from_ref(&second)).await?;
        anyhow::ensure!(answers == [Submission::Duplicate(first.id)], "{answers:?}");
        bed.submitted(&[second], Some(answers))
    })
    .await;
}

#[tokio::test]
async fn submit_what_waits() {
    fail_everywhere(async |bed| {
        let first = bed.job()?;
        let later = Job { starts_at: Some(soon()), ..bed.job()? };
        let after = Job { after: vec![first.id, later.id], ..bed.job()? };
        let order = Some("key".to_owned());
        let in_line = Job { order: order.clone(), ..bed.job()? };
        let behind = Job { order, ..bed.job()? };
        submit(bed, &[first, later, after, in_line, behind]).await
    })
    .await;
}

fn soon() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_millis() as i64 + 20
}

async fn cancel(bed: &mut Bed, id: JobId) -> anyhow::Result<()> {
    bed.history.note(id, What::Cancelling);
    let far = bed.far.clone();
    if let Some(state) = bed.step(far.cancel(id)).await? {
        bed.history.note(id, What::Cancelled { state });
    }
    Ok(())
}

#[tokio::test]
async fn cancel_queued() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        bed.given(&job).await?;
        cancel(bed, job.id).await
    })
    .await;
}

#[tokio::test]
async fn cancel_delayed() {
    fail_everywhere(async |bed| {
        let job = Job { starts_at: Some(soon() + 50), ..bed.job()? };
        bed.given(&job).await?;
        cancel(bed, job.id).await
    })
    .await;
}

#[tokio::test]
async fn cancel_with_children_and_those_that_wait() {
    fail_everywhere(async |bed| {
        let parent = bed.job()?;
        bed.given(&parent).await?;
        for _ in 0..2 {
            let child = Job { parent: Some(parent.id), ..bed.job()? };
            bed.given(&child).await?;
        }
        let waits = Job { after: vec![parent.id], ..bed.job()? };
        bed.given(&waits).await?;
        cancel(bed, parent.id).await
    })
    .await;
}

#[tokio::test]
async fn cancel_running() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        bed.given(&job).await?;
        let mut runner = bed.far_runner(1).await?;
        let lease = bed.take(&mut runner).await?;
        cancel(bed, job.id).await?;
        bed.ended(&lease);
        drop(lease);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn again() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        bed.given(&job).await?;
        bed.history.note(job.id, What::Cancelling);
        bed.near.cancel(job.id).await?;
        let far = bed.far.clone();
        let done = bed.step(far.again(job.id)).await?;
        let twice = bed.near.again(job.id).await?;
        anyhow::ensure!(done.is_none_or(|once| once == twice), "asked twice, it is the same job");
        bed.jobs.push(twice);
        bed.history.note(twice, What::Submitting);
        bed.history.note(twice, What::Accepted);
        Ok(())
    })
    .await;
}
