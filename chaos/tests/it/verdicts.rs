//! The checker finds what it is there to find: a true history that is falsified in one point.

use std::collections::BTreeMap;
use std::time::Duration;

use rhizome_chaos::checker::{Records, Verdict, check};
use rhizome_chaos::history::{Answer, Effects, History, What};
use rhizome_chaos::plan::{Plan, new_id};
use rhizome_chaos::server::Server;
use rhizome_chaos::worker;
use rhizome_model::{AccountId, Job, JobId, JobState};
use rhizome_queue::{Durability, Queue};
use tokio_util::sync::CancellationToken;

use crate::bed::{QUEUE, options, until};

/// Two jobs that succeeded, as it really was.
async fn truth() -> (Vec<Job>, History, Records) {
    let server = Server::start(Durability::None).unwrap();
    let queue = Queue::connect(&server.config()).await.unwrap();
    let (history, stop) = (History::default(), CancellationToken::new());
    let runner = queue.runner(options("a", 2)).await.unwrap();
    let working = tokio::spawn(worker::work(runner, Effects::Here(history.clone()), stop.clone()));
    let plan = Plan { work_ms: 5, ..Plan::default() };
    let mut dice = fastrand::Rng::new();
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let job = plan.job(new_id(&mut dice), QUEUE, AccountId(1)).unwrap();
        history.note(job.id, What::Submitting);
        queue.submit(std::slice::from_ref(&job)).await.unwrap();
        history.note(job.id, What::Accepted);
        until("it has ended", async || queue.job(job.id).await.unwrap().unwrap().state.is_ended())
            .await
            .unwrap();
        // What the runner was told is written down a little later.
        tokio::time::sleep(Duration::from_millis(5)).await;
        jobs.push(job);
    }
    stop.cancel();
    working.await.unwrap().unwrap();
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    let records = Records::read(&queue, &ids, &[QUEUE]).await.unwrap();
    (jobs, history, records)
}

fn finds(history: &History, records: &Records, what: &str) -> Verdict {
    let verdict = check(history, records);
    assert!(!verdict.holds(), "{verdict}");
    assert!(verdict.wrong.iter().any(|wrong| wrong.why.contains(what)), "{what}: {verdict}");
    verdict
}

#[tokio::test]
async fn the_truth_holds() {
    let (_, history, records) = truth().await;
    let verdict = check(&history, &records);
    assert!(verdict.holds(), "{verdict}");
    assert_eq!((verdict.accepted, verdict.attempts), (2, 2));
    assert_eq!(verdict.ended, BTreeMap::from([(JobState::Succeeded, 2)]));
}

#[tokio::test]
async fn a_lost_job_is_found() {
    let (jobs, history, mut records) = truth().await;
    records.jobs.remove(&jobs[0].id);
    assert_eq!(finds(&history, &records, "it is gone").lost, 1);
}

#[tokio::test]
async fn a_job_without_an_end_is_found() {
    let (jobs, history, mut records) = truth().await;
    records.jobs.get_mut(&jobs[0].id).unwrap().state = JobState::Queued;
    assert_eq!(finds(&history, &records, "it never ended").lost, 1);
}

#[tokio::test]
async fn two_attempts_at_a_time_are_found() {
    let (jobs, history, records) = truth().await;
    let runner = || String::from("b");
    let began = |attempt| What::Began { attempt, runner: runner(), pid: 1 };
    let id = new_id(&mut fastrand::Rng::new());
    history.note(id, What::Submitting);
    history.note(id, What::Unanswered);
    history.note(id, began(1));
    history.note(id, What::Began { attempt: 2, runner: "c".into(), pid: 2 });
    history.note(id, What::Ended { attempt: 1, runner: runner() });
    history.note(id, What::Ended { attempt: 2, runner: "c".into() });
    let verdict = finds(&history, &records, "began on c while attempt 1 ran on b");
    assert_eq!(verdict.duplicates, 1);
    finds(&history, &records, "it is gone");

    history.note(jobs[1].id, began(2));
    finds(&history, &records, "attempt 2 never ended on b");
    finds(&history, &records, "began after somebody saw the end");
    history.note_death("b");
    let verdict = check(&history, &records);
    assert!(!verdict.wrong.iter().any(|wrong| wrong.why.contains("never ended on b")));
}

#[tokio::test]
async fn a_second_end_is_found() {
    let (jobs, history, mut records) = truth().await;
    *records.ended.as_mut().unwrap().get_mut(&JobState::Succeeded).unwrap() += 1;
    assert_eq!(finds(&history, &records, "3 ends were counted").duplicates, 1);
    history.note(jobs[0].id, What::Seen { state: JobState::Failed });
    finds(&history, &records, "seen as Failed, and is Succeeded");
}

#[tokio::test]
async fn a_second_finish_is_found() {
    let (jobs, history, records) = truth().await;
    let (attempt, runner) = (2, String::from("b"));
    history.note(jobs[0].id, What::Began { attempt, runner: runner.clone(), pid: 1 });
    let answer = Answer::Finished(JobState::Succeeded);
    history.note(jobs[0].id, What::Ended { attempt, runner: runner.clone() });
    history.note(jobs[0].id, What::Told { attempt, runner, answer });
    finds(&history, &records, "more than one runner was told");
}

#[tokio::test]
async fn what_was_never_accepted_must_not_be_there() {
    let (jobs, history, records) = truth().await;
    let liar = History::default();
    for line in history.told().0 {
        if line.what != What::Accepted {
            liar.note(line.job, line.what);
        }
    }
    let of = jobs[1].id;
    liar.note(jobs[0].id, What::Duplicate { of });
    finds(&liar, &records, "it was refused, and is there all the same");
}

#[tokio::test]
async fn an_end_that_was_not_planned_is_found() {
    let (jobs, history, mut records) = truth().await;
    records.jobs.get_mut(&jobs[0].id).unwrap().state = JobState::Expired;
    finds(&history, &records, "it cannot have ended as Expired");
    records.jobs.get_mut(&jobs[0].id).unwrap().attempts = 4;
    finds(&history, &records, "4 attempts of 3");
}

#[tokio::test]
async fn jobs_of_one_key_at_a_time_and_in_order() {
    let (jobs, history, mut records) = truth().await;
    for job in &jobs {
        records.jobs.get_mut(&job.id).unwrap().job.order = Some("line".into());
    }
    assert!(check(&history, &records).holds());
    let backwards = History::default();
    let (lines, _) = history.told();
    for job in jobs.iter().rev() {
        lines
            .iter()
            .filter(|l| l.job == job.id)
            .for_each(|l| backwards.note(l.job, l.what.clone()));
    }
    assert!(check(&backwards, &records).holds(), "in the order in which they were submitted");
    records.jobs.get_mut(&jobs[0].id).unwrap().job.after = vec![jobs[1].id];
    assert!(check(&backwards, &records).holds());
    finds(&history, &records, "it began before what it needs had succeeded");
}
