//! What jobs must not do to each other: unique keys, order, dependencies.

use std::collections::{BTreeMap, HashMap};

use rhizome_model::JobId;

use super::Story;
use crate::history::{Instant, What};

pub(super) fn judge(stories: &BTreeMap<JobId, Story<'_>>, mut blame: impl FnMut(JobId, String)) {
    let mut lines: HashMap<&str, Vec<&Story<'_>>> = HashMap::new();
    let mut keys: HashMap<&str, Vec<&Story<'_>>> = HashMap::new();
    for story in stories.values() {
        let Some(job) = story.record.map(|record| &record.job) else { continue };
        if let Some(order) = &job.order {
            lines.entry(order).or_default().push(story);
        }
        if let Some(unique) = &job.unique {
            keys.entry(unique).or_default().push(story);
        }
        for needed in &job.after {
            judge_need(story, stories.get(needed), &mut blame);
        }
    }
    lines.into_values().for_each(|line| judge_line(line, &mut blame));
    keys.into_values().for_each(|key| one_at_a_time(&key, "unique key", &mut blame));
    for story in stories.values() {
        judge_refusal(story, stories, &mut blame);
    }
}

/// A job begins after all that it needs have succeeded.
fn judge_need(
    story: &Story<'_>,
    needed: Option<&Story<'_>>,
    blame: &mut impl FnMut(JobId, String),
) {
    let Some(begun) = story.attempts.first() else { return };
    let ended = needed
        .filter(|needed| needed.ended_well())
        .and_then(|needed| needed.attempts.iter().filter_map(|attempt| attempt.ended).max());
    if ended.is_none_or(|ended| ended > begun.began) {
        blame(story.id, "it began before what it needs had succeeded".into());
    }
}

/// Jobs of one key run one at a time, in the order in which they were accepted.
fn judge_line(mut line: Vec<&Story<'_>>, blame: &mut impl FnMut(JobId, String)) {
    one_at_a_time(&line, "order key", blame);
    line.sort_by_key(|story| submitted(story).0);
    for pair in line.windows(2) {
        let [first, second] = pair else { continue };
        // Only where the answer to one came before the other was submitted is there an order.
        let in_order = submitted(first).1.is_some_and(|answered| answered < submitted(second).0);
        let last = first.attempts.iter().map(|attempt| attempt.began).max();
        let begun = second.attempts.first().map(|attempt| attempt.began);
        if let (true, Some(last), Some(begun)) = (in_order, last, begun)
            && begun < last
        {
            blame(second.id, format!("it overtook job {} of its order key", first.id));
        }
    }
}

/// When it was first submitted, and when that was answered.
fn submitted(story: &Story<'_>) -> (Instant, Option<Instant>) {
    let first = |is: fn(&What) -> bool| story.lines.iter().find(|l| is(&l.what)).map(|l| l.at);
    let answered = first(|what| matches!(what, What::Accepted | What::Known { .. }));
    (first(|what| matches!(what, What::Submitting)).unwrap_or(Instant::MAX), answered)
}

fn one_at_a_time(stories: &[&Story<'_>], what: &str, blame: &mut impl FnMut(JobId, String)) {
    let mut attempts: Vec<_> = stories
        .iter()
        .flat_map(|story| story.attempts.iter().map(move |attempt| (story.id, attempt)))
        .collect();
    attempts.sort_by_key(|(_, attempt)| attempt.began);
    for pair in attempts.windows(2) {
        let [(first, earlier), (second, later)] = pair else { continue };
        if first != second && later.began < earlier.over() {
            blame(*second, format!("it ran together with job {first} of its {what}"));
        }
    }
}

/// Who is refused because of another is refused because of one that is there.
fn judge_refusal(
    story: &Story<'_>,
    stories: &BTreeMap<JobId, Story<'_>>,
    blame: &mut impl FnMut(JobId, String),
) {
    for line in &story.lines {
        let What::Duplicate { of } = &line.what else { continue };
        if *of == story.id {
            blame(story.id, "it was refused because of itself".into());
        } else if stories.get(of).is_none_or(|other| other.record.is_none()) {
            blame(story.id, format!("it was refused because of job {of}, which there is not"));
        }
    }
}
