//! Crash points of what writes tasks: taking one in, and the leases that work on it.

use rhizome_chaos::history::{Answer, What};
use rhizome_model::{
    Bytes, Capacity, Cpu, Event, Job, JobState, Outcome, Phase, Task, Version, What as Happened,
};
use rhizome_queue::{Accept, Acceptance, Allow, Queue, QueueError, Submission};
use serde_json::json;

use crate::bed::{Bed, fail_everywhere};
use crate::leases::end;

fn gib(n: u64) -> Capacity {
    Capacity { cpu: Cpu::from_millis(100), memory: Bytes(n << 30), disk: Bytes(n << 30) }
}

/// The first version of a task; the job works on it.
fn task(job: &Job) -> anyhow::Result<Task> {
    let mut task = Task::new("1/chaos".parse()?, Version(1), job.id);
    task.phase = Phase::Accepted;
    task.reserved = gib(1);
    task.envelope = "as signed".into();
    Ok(task)
}

fn event(task: &Task, message: &str) -> Event {
    let what = Happened::Log { message: message.into() };
    Event { at: 1, deployment: task.deployment.clone(), version: task.version, node: None, what }
}

async fn accept(
    queue: &Queue,
    task: &Task,
    jobs: &[Job],
    events: &[Event],
) -> Result<Acceptance, QueueError> {
    let request = Accept {
        task,
        base: None,
        nonce: "a nonce",
        nonce_expires: i64::from(u32::MAX),
        digest: "a digest",
        total: gib(16),
        allow: Allow::AsBefore,
        jobs,
        events,
    };
    queue.accept(request).await
}

/// A task that the node has, and its job, which a runner of the client is about to get.
async fn accepted(bed: &mut Bed) -> anyhow::Result<(Task, Job)> {
    let job = bed.job()?;
    let task = task(&job)?;
    bed.submitting(std::slice::from_ref(&job));
    let taken = accept(&bed.near, &task, std::slice::from_ref(&job), &[]).await?;
    anyhow::ensure!(matches!(taken, Acceptance::Accepted { .. }), "{taken:?}");
    bed.history.note(job.id, What::Accepted);
    Ok((task, job))
}

/// All of it is there, once, or nothing.
#[tokio::test]
async fn take_in() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        let (task, jobs) = (task(&job)?, [job]);
        let event = event(&task, "accepted");
        bed.submitting(&jobs);
        let far = bed.far.clone();
        let taken = bed.step(accept(&far, &task, &jobs, std::slice::from_ref(&event))).await?;
        let taken = match taken {
            Some(taken) => taken,
            None => {
                // Nobody knows; the same envelope again must find what there is.
                bed.submitted(&jobs, None)?;
                bed.submitting(&jobs);
                let held = bed.near.task(&task.deployment).await?;
                let reserved = bed.near.reserved().await?;
                let whole = if held.is_some() { task.reserved } else { Capacity::default() };
                anyhow::ensure!(reserved == whole, "half of it: {held:?} {reserved:?}");
                accept(&bed.near, &task, &jobs, std::slice::from_ref(&event)).await?
            }
        };
        let taken_in = match &taken {
            Acceptance::Accepted { superseded: None } => true,
            Acceptance::Same(same) => *same == task,
            _ => false,
        };
        anyhow::ensure!(taken_in, "{taken:?}");
        bed.submitted(&jobs, Some(vec![Submission::Queued]))?;
        anyhow::ensure!(bed.near.reserved().await? == task.reserved, "not what was asked for");
        bed.is_there_once(&event).await
    })
    .await;
}

#[tokio::test]
async fn update_and_note_a_status() {
    fail_everywhere(async |bed| {
        let (mut task, _) = accepted(bed).await?;
        let mut runner = bed.far_runner(1).await?;
        let lease = bed.take(&mut runner).await?;
        task.phase = Phase::Running;
        task.reserved = gib(2);
        let (updated, seen) = (event(&task, "updated"), event(&task, "seen"));
        let name = "data".parse()?;
        let step = async {
            lease.update(&task, std::slice::from_ref(&updated)).await?;
            let (status, seen) = (json!({ "path": "/data" }), std::slice::from_ref(&seen));
            lease.set_status(&task.deployment, &name, Some(&status), seen).await
        };
        let alive = bed.step(step).await?.is_some();
        if alive {
            bed.is_there_once(&updated).await?;
            anyhow::ensure!(bed.near.task(&task.deployment).await? == Some(task.clone()));
            anyhow::ensure!(bed.near.reserved().await? == gib(2));
            let statuses = bed.near.statuses(&task.deployment).await?;
            anyhow::ensure!(statuses.get(&name) == Some(&json!({ "path": "/data" })));
        }
        end(bed, &lease, alive).await
    })
    .await;
}

/// The job ends and the task changes, both or neither.
#[tokio::test]
async fn finish_with_a_task() {
    fail_everywhere(async |bed| {
        let (mut task, job) = accepted(bed).await?;
        let before = task.clone();
        let mut runner = bed.far_runner(1).await?;
        let lease = bed.take(&mut runner).await?;
        bed.ended(&lease);
        task.phase = Phase::Ready;
        task.reserved = gib(3);
        let (done, ready) = (Outcome::Succeeded(json!(1)), event(&task, "ready"));
        let step = lease.finish_with(&done, Some(&task), std::slice::from_ref(&ready));
        if bed.step(step).await?.is_some() {
            bed.told(&lease, Answer::Finished(JobState::Succeeded));
            bed.is_there_once(&ready).await?;
        }
        let ended = bed.near.job(job.id).await?.is_some_and(|r| r.state == JobState::Succeeded);
        let whole = if ended { &task } else { &before };
        let there = bed.near.task(&task.deployment).await?;
        anyhow::ensure!(there.as_ref() == Some(whole), "half of it: {there:?}");
        anyhow::ensure!(bed.near.reserved().await? == whole.reserved);
        Ok(())
    })
    .await;
}

/// What is known of a resource, by whoever looks, with no lease.
#[tokio::test]
async fn status_without_a_lease() {
    fail_everywhere(async |bed| {
        let (task, job) = accepted(bed).await?;
        let far = bed.far.clone();
        let name = "data".parse()?;
        let noted = bed.step(far.set_status(&task.deployment, &name, Some(&json!(1)))).await?;
        if noted.is_some() {
            let statuses = bed.near.statuses(&task.deployment).await?;
            anyhow::ensure!(statuses.get(&name) == Some(&json!(1)), "{statuses:?}");
        }
        anyhow::ensure!(bed.near.job(job.id).await?.is_some());
        Ok(())
    })
    .await;
}
