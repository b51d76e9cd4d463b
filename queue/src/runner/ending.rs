//! Finishes without a task and without events, which go together: [`crate::batch`].

use rhizome_model::Outcome;

use crate::events::id_parts;
use crate::link::{Call, Link};
use crate::pending::Place;
use crate::record::to_json;
use crate::{QueueError, keys};

/// One lease, and how its job ended.
pub(crate) struct Ending {
    pub(crate) place: Place,
    pub(crate) id: String,
    pub(crate) state: &'static str,
    pub(crate) outcome: String,
    pub(crate) attempt: u32,
    pub(crate) payload: String,
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
        id: &str,
        outcome: &Outcome,
        attempt: u32,
        payload: &str,
    ) -> Result<Self, QueueError> {
        Ok(Self {
            place: place.clone(),
            id: id.to_owned(),
            state: state_of(outcome),
            outcome: to_json(outcome)?,
            attempt,
            payload: payload.to_owned(),
        })
    }
}

/// Whether each was `owner`'s to end.
pub(super) async fn end_all(
    link: &Link,
    owner: &str,
    endings: &[Ending],
) -> Result<Vec<bool>, QueueError> {
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
    let mut call = Call::new("finish_many")
        .keys([keys::DONE, keys::COUNTERS])
        .keys(lanes.iter().map(|span| keys::lane(span.lane)))
        .keys(endings.iter().map(|ending| keys::record_of(&ending.id)))
        .arg(owner)
        .num(lanes.len());
    for span in &lanes {
        call = call.args([keys::queue_of(span.lane), span.first, span.last]);
    }
    for (ending, place) in endings.iter().zip(places) {
        call = call
            .num(place)
            .args([&ending.place.entry, &ending.id])
            .arg(ending.state)
            .arg(&ending.outcome)
            .num(ending.attempt)
            .arg(&ending.payload);
    }
    let words: Vec<String> = link.call(&call).await?;
    if words.len() == endings.len() {
        Ok(words.iter().map(|word| word == "ok").collect())
    } else {
        Err(QueueError::corrupt("the end of jobs", format!("{words:?}")))
    }
}

/// The entries of one lane, from the first to the last.
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
        }
        if id_parts(entry) > id_parts(self.last) {
            self.last = entry;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_compares_numbers() {
        let place = Place { lane: "volume:2".into(), entry: "10-2".into() };
        let mut span = Span::of(&place);
        for entry in ["10-10", "9-99", "10-1"] {
            span.include(entry);
        }
        assert_eq!((span.first, span.last), ("9-99", "10-10"));
    }
}
