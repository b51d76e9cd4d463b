//! The leases that a runner holds, and how they are told to stop.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::pending::Place;

/// Cancellations that came before their lease and are remembered.
const EARLY: usize = 1024;

/// Why a lease's work should stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// Somebody asked for it: clean up and say [`Cancelled`](rhizome_model::Outcome::Cancelled).
    Requested,
    /// The lease is another's by now: stop, touch nothing.
    Lost,
}

/// A lease's token, with the reason. Most leases are never asked for it.
#[derive(Default)]
pub(crate) struct Flag {
    token: OnceLock<CancellationToken>,
    reason: OnceLock<CancelReason>,
}

impl Flag {
    pub(crate) fn token(&self) -> CancellationToken {
        let token = self.token.get_or_init(CancellationToken::new);
        // Whoever raises looks for the token after it has set the reason, and we the other way round:
        // one of us sees the other.
        if self.reason().is_some() {
            token.cancel();
        }
        token.clone()
    }

    pub(crate) fn raise(&self, reason: CancelReason) {
        // The first reason stands.
        let _ = self.reason.set(reason);
        if let Some(token) = self.token.get() {
            token.cancel();
        }
    }

    pub(crate) fn reason(&self) -> Option<CancelReason> {
        self.reason.get().copied()
    }
}

#[derive(Default)]
pub(crate) struct Held(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    leases: HashMap<Place, Arc<Flag>>,
    /// Cancellations can overtake the claims that they are for.
    early: VecDeque<Place>,
    /// Leases that ended since a comparison began, while one is under way.
    ended: Option<HashSet<Place>>,
    /// Ended here, but redis-server does not know it yet.
    undelivered: HashSet<Place>,
    /// What a comparison found and a claim may still bring.
    adopted: HashSet<Place>,
}

impl Held {
    /// A new lease; none when it is held already.
    pub(crate) fn add(&self, place: &Place) -> Option<Arc<Flag>> {
        let mut inner = self.locked();
        let known = inner.leases.contains_key(place) || inner.undelivered.contains(place);
        if known || inner.adopted.contains(place) {
            return None;
        }
        let flag = Arc::new(Flag::default());
        if let Some(at) = inner.early.iter().position(|p| p == place) {
            inner.early.remove(at);
            flag.raise(CancelReason::Requested);
        }
        inner.leases.insert(place.clone(), flag.clone());
        Some(flag)
    }

    pub(crate) fn remove(&self, place: &Place) {
        let mut inner = self.locked();
        if inner.leases.remove(place).is_some()
            && let Some(ended) = &mut inner.ended
        {
            ended.insert(place.clone());
        }
    }

    pub(crate) fn cancel(&self, place: Place) {
        let mut inner = self.locked();
        match inner.leases.get(&place) {
            Some(flag) => flag.raise(CancelReason::Requested),
            None => {
                if inner.early.len() == EARLY {
                    inner.early.pop_front();
                }
                inner.early.push_back(place);
            }
        }
    }

    /// These have ended here; redis-server will hear of it.
    pub(crate) fn wait_for_delivery(&self, places: &[Place]) {
        self.locked().undelivered.extend(places.iter().cloned());
    }

    pub(crate) fn delivered(&self, places: &[Place]) {
        let mut inner = self.locked();
        for place in places {
            inner.undelivered.remove(place);
            if let Some(ended) = &mut inner.ended {
                ended.insert(place.clone());
            }
        }
    }

    /// A comparison with what redis-server says begins; the leases as of now.
    pub(crate) fn begin_comparison(&self) -> Vec<Place> {
        let mut inner = self.locked();
        inner.ended = Some(HashSet::new());
        inner.leases.keys().cloned().collect()
    }

    /// Ends a comparison: of what was held when it began, what is not `theirs` is lost. Returns
    /// which of theirs are held by nobody here.
    pub(crate) fn end_comparison(&self, before: &[Place], theirs: &[Place]) -> Vec<Place> {
        let mut inner = self.locked();
        let ended = inner.ended.take().unwrap_or_default();
        let known: HashSet<&Place> = theirs.iter().collect();
        for place in before.iter().filter(|place| !known.contains(place)) {
            if let Some(flag) = inner.leases.get(place) {
                flag.raise(CancelReason::Lost);
            }
        }
        let unknown = |p: &&Place| {
            !inner.leases.contains_key(p) && !ended.contains(p) && !inner.undelivered.contains(p)
        };
        theirs.iter().filter(unknown).cloned().collect()
    }

    /// Remembers what a comparison found until the claim under way has answered.
    pub(crate) fn adopt(&self, place: &Place) {
        self.locked().adopted.insert(place.clone());
    }

    pub(crate) fn claim_answered(&self) {
        self.locked().adopted.clear();
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(entry: &str) -> Place {
        Place { lane: "volume:2".into(), entry: entry.into() }
    }

    #[test]
    fn a_cancellation_may_come_before_its_lease() {
        let held = Held::default();
        held.cancel(place("1-0"));
        assert_eq!(held.add(&place("1-0")).unwrap().reason(), Some(CancelReason::Requested));
        assert_eq!(held.add(&place("2-0")).unwrap().reason(), None);
    }

    #[test]
    fn a_comparison_tells_lost_and_unknown_from_what_just_ended() {
        let held = Held::default();
        let lost = held.add(&place("1-0")).unwrap();
        let kept = held.add(&place("2-0")).unwrap();
        held.add(&place("3-0")).unwrap();
        let before = held.begin_comparison();
        held.remove(&place("3-0"));
        let unknown = held.end_comparison(&before, &[place("2-0"), place("3-0"), place("4-0")]);
        assert_eq!(unknown, [place("4-0")]);
        assert_eq!((lost.reason(), kept.reason()), (Some(CancelReason::Lost), None));
    }

    #[test]
    fn what_ended_is_not_taken_again_before_its_end_is_delivered() {
        let held = Held::default();
        held.add(&place("1-0")).unwrap();
        held.wait_for_delivery(&[place("1-0")]);
        held.remove(&place("1-0"));
        let before = held.begin_comparison();
        assert_eq!(held.end_comparison(&before, &[place("1-0")]), []);
        assert!(held.add(&place("1-0")).is_none());
        let before = held.begin_comparison();
        held.delivered(&[place("1-0")]);
        assert_eq!(held.end_comparison(&before, &[place("1-0")]), [], "it was seen before that");
    }

    #[test]
    fn what_is_held_or_adopted_is_not_taken_twice() {
        let held = Held::default();
        held.add(&place("1-0")).unwrap();
        assert!(held.add(&place("1-0")).is_none());
        held.remove(&place("1-0"));
        held.adopt(&place("1-0"));
        assert!(held.add(&place("1-0")).is_none());
        held.claim_answered();
        assert!(held.add(&place("1-0")).is_some());
    }
}
