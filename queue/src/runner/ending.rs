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
    pub(crate) account: String,
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
        (id, account): (JobId, &str),
        outcome: &Outcome,
        attempt: u32,
        payload: &Arc<str>,
    ) -> Result<Self, QueueError> {
        Ok(Self {
            place: place.clone(),
            id,
            account: account.to_owned(),
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
    let mut lanes: Vec<Span> = Vec::new();
    let mut places = Vec::with_capacity(endings.len());
    for ending in endings {
        let at = lanes.iter().position(|span| span.lane == ending.place.lane);
        places.push(at.unwrap_or(lanes.len()) + 1);
        match at {
            Some(at) => lanes[at].include(&ending.place.entry),
            None => lanes.push(Span::of(&ending.place)),
        }
    }
    let mut call = Call::shared("finish_many")
        .keys(lanes.iter().map(|span| keys::lane(span.lane)))
        .arg(owner)
        .num(lanes.len());
    for span in &lanes {
        call = call.args([keys::queue_of(span.lane), span.first, span.last]);
    }
    for (ending, place) in endings.iter().zip(places) {
        call = call
            .key(keys::record(ending.id))
            .num(place)
            .arg(&ending.place.entry)
            .arg(ending.id.to_string())
            .arg(&ending.account)
            .arg(ending.state)
            .num(ending.attempt)
            .num(format_args!("{}\n{}", ending.outcome, ending.payload));
    }
    call
}

/// From the first to the last entry of some leases of one lane.
struct Span<'a> {
    lane: &'a str,
    first: &'a str,
    last: &'a str,
}

impl<'a> Span<'a> {
    fn of(place: &'a Place) -> Self {
        Self { lane: &place.lane, first: &place.entry, last: &place.entry }
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

    fn place(entry: &str) -> Place {
        Place { lane: "volume:2".into(), entry: entry.into() }
    }

    #[test]
    fn a_span_grows_by_number_not_by_letter() {
        let places = ["9-0", "10-2", "10-10", "2-5"].map(place);
        let mut span = Span::of(&places[0]);
        for place in &places[1..] {
            span.include(&place.entry);
        }
        assert_eq!((span.first, span.last), ("2-5", "10-10"));
    }
}
