//! Finishes of jobs that have nothing special, which go together: [`crate::batch`].

use std::sync::Arc;

use rhizome_model::{JobId, Outcome};

use crate::events::id_parts;
use crate::link::Call;
use crate::pending::Place;
use crate::record::to_json;
use crate::{QueueError, keys};

/// One lease, and how its job ended.
#[derive(Clone)]
pub(crate) struct Ending {
    pub(crate) place: Place,
    pub(crate) id: JobId,
    pub(crate) account: Arc<str>,
    pub(crate) state: &'static str,
    pub(crate) outcome: String,
    pub(crate) attempt: u32,
    pub(crate) payload: Arc<str>,
}

/// The state that an outcome is, as the records have it.
pub(super) fn state_of(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded(_) => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

impl Ending {
    pub(super) fn new(
        place: &Place,
        (id, account): (JobId, &Arc<str>),
        outcome: &Outcome,
        attempt: u32,
        payload: &Arc<str>,
    ) -> Result<Self, QueueError> {
        Ok(Self {
            place: place.clone(),
            id,
            account: account.clone(),
            state: state_of(outcome),
            outcome: to_json(outcome)?,
            attempt,
            payload: payload.clone(),
        })
    }
}

/// Which of so many were ours to end, by the places (from 1) of those that were not.
pub(super) fn judge(endings: usize, fenced: &[usize]) -> Vec<bool> {
    (1..=endings).map(|place| !fenced.contains(&place)).collect()
}

pub(super) fn call(owner: &str, endings: &[Ending]) -> Call {
    let mut groups: Vec<Group> = Vec::new();
    let mut places = Vec::with_capacity(endings.len());
    for ending in endings {
        let at = groups.iter().position(|group| group.is_of(ending));
        places.push(at.unwrap_or(groups.len()) + 1);
        match at {
            Some(at) => groups[at].include(&ending.place.entry),
            None => groups.push(Group::of(ending)),
        }
    }
    let mut call = Call::shared("finish_many")
        .keys(groups.iter().map(|group| keys::lane(&group.one.place.lane)))
        .arg(owner)
        .num(groups.len());
    for Group { one, first, last } in &groups {
        call = call.arg(keys::queue_of(&one.place.lane)).arg(&*one.account).arg(one.state);
        call = call.num(one.attempt).arg(first).arg(last);
    }
    for (ending, place) in endings.iter().zip(places) {
        call = call
            .key(keys::record(ending.id))
            .num(place)
            .arg(&*ending.place.entry)
            .num(format_args!("{}\n{}", ending.outcome, ending.payload));
    }
    call
}

/// Endings that have everything in common but the job, from their first to their last entry.
struct Group<'a> {
    one: &'a Ending,
    first: &'a str,
    last: &'a str,
}

impl<'a> Group<'a> {
    fn of(one: &'a Ending) -> Self {
        Self { one, first: &one.place.entry, last: &one.place.entry }
    }

    fn is_of(&self, other: &Ending) -> bool {
        let one = self.one;
        one.place.lane == other.place.lane
            && one.account == other.account
            && one.state == other.state
            && one.attempt == other.attempt
    }

    fn include(&mut self, entry: &'a str) {
        if id_parts(entry) < id_parts(self.first) {
            self.first = entry;
        } else if id_parts(entry) > id_parts(self.last) {
            self.last = entry;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(entry: &str) -> Ending {
        Ending {
            place: Place { lane: "volume:1:2".into(), entry: entry.into() },
            id: JobId([1; 16]),
            account: "1".into(),
            state: "succeeded",
            outcome: "{}".into(),
            attempt: 1,
            payload: "".into(),
        }
    }

    #[test]
    fn a_group_grows_by_number_not_by_letter() {
        let endings = ["9-0", "10-2", "10-10", "2-5"].map(ending);
        let mut group = Group::of(&endings[0]);
        for ending in &endings[1..] {
            assert!(group.is_of(ending));
            group.include(&ending.place.entry);
        }
        assert_eq!((group.first, group.last), ("2-5", "10-10"));
    }
}
