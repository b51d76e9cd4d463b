//! Finishes of jobs that have nothing special, which go together: [`crate::batch`].

use std::fmt::Write;
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

/// Which of these were ours to end, by the places (from 1) in the call of those that were not.
pub(super) fn judge(endings: &[Ending], fenced: &[usize]) -> Vec<bool> {
    let mut ours = vec![true; endings.len()];
    if fenced.is_empty() {
        return ours;
    }
    let order: Vec<usize> = groups(endings).into_iter().flat_map(|group| group.members).collect();
    for place in fenced {
        if let Some(ending) = place.checked_sub(1).and_then(|place| order.get(place)) {
            ours[*ending] = false;
        }
    }
    ours
}

pub(super) fn call(owner: &str, endings: &[Ending]) -> Call {
    let groups = groups(endings);
    let mut ids = String::with_capacity(33 * endings.len());
    for ending in groups.iter().flat_map(|group| group.of(endings)) {
        if !ids.is_empty() {
            ids.push(' ');
        }
        // Writing to a String does not fail.
        let _ = write!(ids, "{}", ending.id);
    }
    let mut call = Call::shared("finish_many")
        .keys(groups.iter().map(|group| keys::lane(&group.one.place.lane)))
        .arg(owner)
        .num(groups.len())
        .arg(ids);
    for Group { one, first, last, members } in &groups {
        call = call.arg(keys::queue_of(&one.place.lane)).arg(&*one.account).arg(one.state);
        call = call.num(one.attempt).arg(first).arg(last).num(members.len());
    }
    for ending in groups.iter().flat_map(|group| group.of(endings)) {
        call = call
            .key(keys::record(ending.id))
            .arg(&*ending.place.entry)
            .num(format_args!("{}\n{}", ending.outcome, ending.payload));
    }
    call
}

/// In the order in which the first of each comes.
fn groups(endings: &[Ending]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for (place, ending) in endings.iter().enumerate() {
        match groups.iter_mut().find(|group| group.is_of(ending)) {
            Some(group) => group.include(&ending.place.entry, place),
            None => groups.push(Group::begin(ending, place)),
        }
    }
    groups
}

/// Endings that have everything in common but the job, from their first to their last entry.
struct Group<'a> {
    one: &'a Ending,
    first: &'a str,
    last: &'a str,
    /// Their places among all endings.
    members: Vec<usize>,
}

impl<'a> Group<'a> {
    fn begin(one: &'a Ending, place: usize) -> Self {
        Self { one, first: &one.place.entry, last: &one.place.entry, members: vec![place] }
    }

    fn of(&self, endings: &'a [Ending]) -> impl Iterator<Item = &'a Ending> {
        self.members.iter().map(|place| &endings[*place])
    }

    fn is_of(&self, other: &Ending) -> bool {
        let one = self.one;
        one.place.lane == other.place.lane
            && one.account == other.account
            && one.state == other.state
            && one.attempt == other.attempt
    }

    fn include(&mut self, entry: &'a str, place: usize) {
        self.members.push(place);
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
        let groups = groups(&endings);
        let [group] = &groups[..] else { panic!("more than one group") };
        assert_eq!((group.first, group.last), ("2-5", "10-10"));
    }

    #[test]
    fn what_is_fenced_is_found_behind_its_group() {
        let failed = |entry| Ending { state: "failed", ..ending(entry) };
        // In the call: 1-0 and 3-0, then 2-0 and 4-0.
        let endings = [ending("1-0"), failed("2-0"), ending("3-0"), failed("4-0")];
        assert_eq!(judge(&endings, &[]), [true; 4]);
        assert_eq!(judge(&endings, &[2, 3]), [true, false, false, true]);
        assert_eq!(judge(&endings, &[0, 5]), [true; 4], "no place of this call");
    }
}
