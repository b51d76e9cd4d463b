//! The attempts of one job: one at a time, none too many, none after the end.

use std::collections::HashMap;

use super::Story;
use crate::history::{Answer, Instant, Line, What};
use crate::plan::Plan;

pub(super) struct Attempt<'a> {
    pub(super) number: u32,
    pub(super) runner: &'a str,
    pub(super) began: Instant,
    /// When its work was over, as it said itself.
    pub(super) ended: Option<Instant>,
    /// When its runner was dead.
    died: Option<Instant>,
    answer: Option<&'a Answer>,
}

impl Attempt<'_> {
    /// From then on nothing of it runs any more.
    pub(super) fn over(&self) -> Instant {
        self.ended.or(self.died).unwrap_or(Instant::MAX)
    }

    /// Whether its runner may have been given up before the queue took note of another end.
    pub(super) fn may_have_died(&self) -> bool {
        match self.answer {
            None => self.died.is_some(),
            Some(Answer::Dropped | Answer::Fenced | Answer::Lost | Answer::Unavailable) => true,
            Some(_) => false,
        }
    }

    fn was_released(&self, plan: &Plan) -> bool {
        let unheard = plan.releases && self.answer.is_none() && self.ended.is_some();
        self.answer == Some(&Answer::Released) || unheard
    }
}

/// Puts the lines of runners together.
pub(super) fn of<'a>(
    lines: &[&'a Line],
    deaths: &HashMap<String, Instant>,
    mut blame: impl FnMut(String),
) -> Vec<Attempt<'a>> {
    let mut attempts: Vec<Attempt<'a>> = Vec::new();
    for line in lines {
        match &line.what {
            What::Began { attempt, runner, .. } => attempts.push(Attempt {
                number: *attempt,
                runner,
                began: line.at,
                ended: None,
                died: deaths.get(runner).copied(),
                answer: None,
            }),
            What::Ended { attempt, runner } | What::Told { attempt, runner, .. } => {
                let mut of_it = attempts.iter_mut().rev();
                let began = of_it.find(|a| a.number == *attempt && a.runner == runner.as_str());
                match (began, &line.what) {
                    (Some(began), What::Told { answer, .. }) => began.answer = Some(answer),
                    (Some(began), _) => began.ended = Some(line.at),
                    (None, what) => blame(format!("an attempt ends that never began: {what:?}")),
                }
            }
            _ => {}
        }
    }
    attempts
}

pub(super) fn judge(story: &Story<'_>, mut blame: impl FnMut(String)) {
    for attempt in story.attempts.iter().filter(|attempt| attempt.over() == Instant::MAX) {
        blame(format!("attempt {} never ended on {}", attempt.number, attempt.runner));
    }
    // They are in the order in which they began.
    for (n, earlier) in story.attempts.iter().enumerate() {
        for later in story.attempts[n + 1..].iter().filter(|later| later.began < earlier.over()) {
            blame(format!(
                "attempt {} began on {} while attempt {} ran on {}",
                later.number, later.runner, earlier.number, earlier.runner
            ));
        }
    }
    if let Some(first) = story.seen_ended().map(|(at, _)| at).min() {
        for late in story.attempts.iter().filter(|attempt| attempt.began > first) {
            blame(format!("attempt {} began after somebody saw the end", late.number));
        }
    }
    let told = |answer: &&Answer| matches!(answer, Answer::Finished(_) | Answer::Exhausted);
    if story.attempts.iter().filter_map(|a| a.answer).filter(told).count() > 1 {
        blame("more than one runner was told that it ended the job".into());
    }
    judge_numbers(story, &mut blame);
    judge_memory(story, blame);
}

/// What the queue remembers of the attempts is what they were.
fn judge_memory(story: &Story<'_>, mut blame: impl FnMut(String)) {
    let Some(record) = story.record else { return };
    let plan = Plan::of(&record.job).unwrap_or_default();
    for attempt in story.attempts.iter().filter(|attempt| !attempt.was_released(&plan)) {
        let remembered = record.history.iter().find(|known| known.number == attempt.number);
        if remembered.is_none_or(|known| known.runner != attempt.runner) {
            blame(format!(
                "attempt {} was on {}, and is remembered as {remembered:?}",
                attempt.number, attempt.runner
            ));
        }
    }
}

/// An attempt that counts has a number of its own, and there are not too many.
fn judge_numbers(story: &Story<'_>, mut blame: impl FnMut(String)) {
    let Some(job) = story.record.map(|record| &record.job) else { return };
    // A plan that cannot be read is blamed elsewhere.
    let plan = Plan::of(job).unwrap_or_default();
    let mut last = 0;
    for attempt in &story.attempts {
        if attempt.number <= last {
            blame(format!("attempt {} comes after attempt {last}", attempt.number));
        }
        if attempt.number > job.max_attempts {
            blame(format!("attempt {} of {}", attempt.number, job.max_attempts));
        }
        last = attempt.number - u32::from(attempt.was_released(&plan));
    }
}
