//! The nonces that were seen, in bounded memory.

use std::collections::{BTreeSet, HashSet};

/// At some hundred bytes each this is a few megabytes, and more requests than two cores verify in
/// a window.
pub const CAPACITY: usize = 100_000;

type Id = [u8; 32];

/// Remembers each (key, nonce) while its request would still be in time.
///
/// When it is full, the oldest is forgotten and whatever is as old as that is refused from then on:
/// under a flood the window narrows, but nothing ever counts twice.
#[derive(Debug, Default)]
pub struct Nonces {
    seen: HashSet<Id>,
    by_time: BTreeSet<(i64, Id)>,
    /// What was created then or before is refused.
    floor: i64,
}

impl Nonces {
    /// Whether this is the first time. `oldest` is the creation time below which nothing is valid.
    pub fn insert(&mut self, id: Id, created: i64, oldest: i64) -> bool {
        while let Some(&(time, old)) = self.by_time.first() {
            if time >= oldest && self.seen.len() < CAPACITY {
                break;
            }
            if time >= oldest {
                self.floor = self.floor.max(time);
            }
            self.by_time.pop_first();
            self.seen.remove(&old);
        }
        if created <= self.floor || !self.seen.insert(id) {
            return false;
        }
        self.by_time.insert((created, id));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> Id {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    #[test]
    fn once_and_not_again() {
        let mut nonces = Nonces::default();
        assert!(nonces.insert(id(1), 100, 40));
        assert!(!nonces.insert(id(1), 100, 40));
        assert!(!nonces.insert(id(1), 101, 41), "another time does not make it another nonce");
        assert!(nonces.insert(id(2), 100, 40));
    }

    #[test]
    fn what_is_out_of_time_is_forgotten() {
        let mut nonces = Nonces::default();
        assert!(nonces.insert(id(1), 100, 40));
        assert!(nonces.insert(id(2), 200, 140));
        assert_eq!(nonces.seen.len(), 1);
    }

    #[test]
    fn a_flood_neither_grows_it_nor_opens_it() {
        let mut nonces = Nonces::default();
        assert!(nonces.insert(id(0), 100, 40));
        for n in 1..=CAPACITY {
            assert!(nonces.insert(id(n), 101, 40));
        }
        assert!(nonces.seen.len() <= CAPACITY && nonces.by_time.len() <= CAPACITY);
        assert!(!nonces.insert(id(0), 100, 40), "a forgotten nonce counted twice");
    }
}
