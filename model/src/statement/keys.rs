//! The keys of an account, and how they change.
//!
//! ```text
//!   add     ─▶ active ── rotate (a new key takes its place) ─▶ ended
//!                └────── revoke ──────────────────────────────▶ ended
//! ```
//!
//! A key that has ended is kept in the history and can never come back, in no account. Each active
//! key has a weight; what changes the set needs signers that together reach the account's
//! threshold. A rotation needs the old key and the new one, whatever they weigh: it changes
//! nobody's share.

use serde::{Deserialize, Serialize};

use crate::{AccountId, KeyId};

/// Keys that an account may have at once, and in its whole history.
const MAX_ACTIVE: usize = 16;
const MAX_KEYS: usize = 256;
/// No key weighs more, so sums are never large.
const MAX_WEIGHT: u32 = 1000;
const NONCE_LENGTH: std::ops::RangeInclusive<usize> = 16..=64;
/// A change of keys is signed by hands that may be far apart, but not for ever.
const MAX_LIFETIME_SECS: i64 = 7 * 24 * 3600;

/// An account with its keys, in the order in which they came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = StatementAccount)]
pub struct Account {
    pub id: AccountId,
    pub keys: Vec<AccountKey>,
    /// What the signers of a change of keys must weigh together.
    pub threshold: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccountKey {
    pub key: KeyId,
    pub weight: u32,
    /// Unix seconds.
    pub since: i64,
    /// Absent while it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<KeyEnd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyEnd {
    /// Unix seconds.
    pub at: i64,
    pub how: KeyEnding,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyEnding {
    Rotated,
    Revoked,
}

/// What shall become of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyChange {
    /// One more key. The new key signs as well.
    Add {
        key: KeyId,
        weight: u32,
    },
    /// A new key in place of an old one, with its weight. Both sign.
    Rotate {
        old: KeyId,
        new: KeyId,
    },
    Revoke {
        key: KeyId,
    },
    /// What signers of later changes must weigh.
    Threshold {
        weight: u32,
    },
}

/// The payload of a change of keys. Its envelope carries the signatures of all who agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDocument {
    pub network: String,
    pub account: AccountId,
    pub change: KeyChange,
    /// Unix seconds.
    pub expires: i64,
    pub nonce: String,
}

impl KeyDocument {
    pub fn parse(payload: &[u8]) -> Result<Self, String> {
        let document: Self = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !NONCE_LENGTH.contains(&document.nonce.len()) || !document.nonce.bytes().all(plain) {
            return Err(format!("nonce: {NONCE_LENGTH:?} letters, digits, '-' and '_'"));
        }
        Ok(document)
    }

    /// Whether it counts now; `Err` says why not.
    pub fn check_time(&self, now: i64) -> Result<(), String> {
        if self.expires <= now {
            return Err(format!("it expired {} s ago; sign it again", now - self.expires));
        }
        if self.expires.saturating_sub(now) > MAX_LIFETIME_SECS {
            return Err(format!("expires: at most {} days ahead", MAX_LIFETIME_SECS / 86_400));
        }
        Ok(())
    }
}

/// Why a change of keys is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    #[error("the key {0} is not an active key of the account")]
    NotActive(KeyId),
    #[error("the key {0} was a key of this account before; make a new one")]
    Known(KeyId),
    #[error("the signature of the key {0} is missing")]
    Unsigned(KeyId),
    #[error("the signers weigh {weight} together; the account asks for {threshold}")]
    TooLight { weight: u32, threshold: u32 },
    #[error("a weight is 1 to {MAX_WEIGHT}, and a threshold at most what all keys weigh together")]
    Weight,
    #[error("an account has at most {MAX_ACTIVE} active keys, and {MAX_KEYS} in its history")]
    TooMany,
}

impl Account {
    /// As it is when it is made.
    pub fn with_key(id: AccountId, key: KeyId, since: i64) -> Self {
        Self { id, keys: vec![AccountKey { key, weight: 1, since, ended: None }], threshold: 1 }
    }

    pub fn key(&self, key: &KeyId) -> Option<&AccountKey> {
        self.keys.iter().find(|k| k.key == *key)
    }

    pub fn active(&self) -> impl Iterator<Item = &AccountKey> {
        self.keys.iter().filter(|k| k.ended.is_none())
    }

    pub fn is_active(&self, key: &KeyId) -> bool {
        self.active().any(|k| k.key == *key)
    }

    /// The key that stands for the account where one must: the oldest active one. None once all
    /// have ended, which is an account that can do nothing any more.
    pub fn main_key(&self) -> Option<KeyId> {
        self.active().next().map(|k| k.key)
    }

    /// The weight of the active keys among the signers.
    pub fn weight_of(&self, signers: &[KeyId]) -> u32 {
        self.active().filter(|k| signers.contains(&k.key)).map(|k| k.weight).sum()
    }

    /// The account after a change that `signers` have signed.
    pub fn changed(
        &self,
        change: &KeyChange,
        signers: &[KeyId],
        now: i64,
    ) -> Result<Self, KeyRefusal> {
        let mut account = self.clone();
        match *change {
            KeyChange::Add { key, weight } => {
                self.reach_threshold(signers)?;
                signed(signers, &key)?;
                if !(1..=MAX_WEIGHT).contains(&weight) {
                    return Err(KeyRefusal::Weight);
                }
                account.take_up(key, weight, now)?;
            }
            KeyChange::Rotate { old, new } => {
                signed(signers, &old)?;
                signed(signers, &new)?;
                let weight = self.active_key(&old)?.weight;
                account.end(&old, KeyEnding::Rotated, now)?;
                account.take_up(new, weight, now)?;
                // It stands where the old one stood, so that it is the main key where that was.
                let at = self.keys.iter().position(|k| k.key == old).unwrap_or_default();
                if let Some(key) = account.keys.pop() {
                    account.keys.insert(at, key);
                }
            }
            KeyChange::Revoke { key } => {
                self.reach_threshold(signers)?;
                account.end(&key, KeyEnding::Revoked, now)?;
                // What is left must be able to change the keys again.
                account.threshold = account.threshold.min(account.total()).max(1);
            }
            KeyChange::Threshold { weight } => {
                self.reach_threshold(signers)?;
                if !(1..=self.total()).contains(&weight) {
                    return Err(KeyRefusal::Weight);
                }
                account.threshold = weight;
            }
        }
        Ok(account)
    }

    fn total(&self) -> u32 {
        self.active().map(|k| k.weight).sum()
    }

    fn reach_threshold(&self, signers: &[KeyId]) -> Result<(), KeyRefusal> {
        let (weight, threshold) = (self.weight_of(signers), self.threshold);
        if weight >= threshold { Ok(()) } else { Err(KeyRefusal::TooLight { weight, threshold }) }
    }

    fn active_key(&self, key: &KeyId) -> Result<&AccountKey, KeyRefusal> {
        self.active().find(|k| k.key == *key).ok_or(KeyRefusal::NotActive(*key))
    }

    fn take_up(&mut self, key: KeyId, weight: u32, now: i64) -> Result<(), KeyRefusal> {
        if self.key(&key).is_some() {
            return Err(KeyRefusal::Known(key));
        }
        if self.active().count() >= MAX_ACTIVE || self.keys.len() >= MAX_KEYS {
            return Err(KeyRefusal::TooMany);
        }
        self.keys.push(AccountKey { key, weight, since: now, ended: None });
        Ok(())
    }

    fn end(&mut self, key: &KeyId, how: KeyEnding, now: i64) -> Result<(), KeyRefusal> {
        self.active_key(key)?;
        for held in self.keys.iter_mut().filter(|k| k.key == *key) {
            held.ended = Some(KeyEnd { at: now, how });
        }
        Ok(())
    }
}

fn signed(signers: &[KeyId], key: &KeyId) -> Result<(), KeyRefusal> {
    if signers.contains(key) { Ok(()) } else { Err(KeyRefusal::Unsigned(*key)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> KeyId {
        KeyId([n; 32])
    }

    fn account() -> Account {
        Account::with_key(AccountId(1), key(1), 100)
    }

    /// Keys 1, 2 and 3, of which two must agree.
    fn two_of_three() -> Account {
        let add = |n| KeyChange::Add { key: key(n), weight: 1 };
        let account = account().changed(&add(2), &[key(1), key(2)], 101).unwrap();
        let account = account.changed(&add(3), &[key(2), key(3)], 102).unwrap();
        account.changed(&KeyChange::Threshold { weight: 2 }, &[key(1)], 103).unwrap()
    }

    #[test]
    fn a_rotation_needs_the_old_and_the_new_key() {
        let change = KeyChange::Rotate { old: key(1), new: key(2) };
        let rotated = account().changed(&change, &[key(1), key(2)], 200).unwrap();
        assert_eq!(rotated.main_key(), Some(key(2)));
        let ended = rotated.key(&key(1)).unwrap().ended;
        assert_eq!(ended, Some(KeyEnd { at: 200, how: KeyEnding::Rotated }));
        for (signers, missing) in [(vec![key(1)], 2), (vec![key(2)], 1), (vec![], 1)] {
            let refused = account().changed(&change, &signers, 200);
            assert_eq!(refused, Err(KeyRefusal::Unsigned(key(missing))));
        }
        let back = KeyChange::Rotate { old: key(2), new: key(1) };
        let refused = rotated.changed(&back, &[key(1), key(2)], 300);
        assert_eq!(refused, Err(KeyRefusal::Known(key(1))));
        let again = rotated.changed(&change, &[key(1), key(2)], 300);
        assert_eq!(again, Err(KeyRefusal::NotActive(key(1))));
    }

    #[test]
    fn a_rotated_key_stands_where_the_old_one_stood() {
        let change = KeyChange::Rotate { old: key(1), new: key(9) };
        let rotated = two_of_three().changed(&change, &[key(1), key(9)], 200).unwrap();
        assert_eq!(rotated.main_key(), Some(key(9)));
        assert_eq!(rotated.threshold, 2);
    }

    #[test]
    fn revoking_needs_the_weight_of_the_threshold() {
        let revoke = KeyChange::Revoke { key: key(1) };
        let account = two_of_three();
        let light = KeyRefusal::TooLight { weight: 1, threshold: 2 };
        assert_eq!(account.changed(&revoke, &[key(2)], 200), Err(light.clone()));
        // Strangers weigh nothing, however many they are.
        assert_eq!(account.changed(&revoke, &[key(2), key(7), key(8)], 200), Err(light));
        let after = account.changed(&revoke, &[key(2), key(3)], 200).unwrap();
        assert!(!after.is_active(&key(1)) && after.main_key() == Some(key(2)));
        // A key that is gone no longer counts.
        let next = KeyChange::Revoke { key: key(2) };
        assert!(after.changed(&next, &[key(1), key(3)], 300).is_err());
        // What is left can still be changed by all of it.
        let last = after.changed(&next, &[key(2), key(3)], 300).unwrap();
        assert_eq!(last.threshold, 1);
        let none = last.changed(&KeyChange::Revoke { key: key(3) }, &[key(3)], 400).unwrap();
        assert_eq!((none.main_key(), none.weight_of(&[key(3)])), (None, 0));
    }

    #[test]
    fn weights_and_thresholds_that_lock_out_are_refused() {
        let signers = [key(1), key(2)];
        for weight in [0, MAX_WEIGHT + 1] {
            let add = KeyChange::Add { key: key(2), weight };
            assert_eq!(account().changed(&add, &signers, 1), Err(KeyRefusal::Weight));
        }
        for weight in [0, 2] {
            let change = KeyChange::Threshold { weight };
            assert_eq!(account().changed(&change, &signers, 1), Err(KeyRefusal::Weight));
        }
    }

    proptest! {
        /// Whatever is tried: no key comes back, and the active keys can reach the threshold.
        #[test]
        fn an_account_never_locks_itself_out(
            steps in prop::collection::vec((0..4u8, 1..9u8, 1..9u8, 1..4u32, prop::collection::vec(1..9u8, 0..5)), 0..40),
        ) {
            let mut account = account();
            for (what, a, b, weight, signers) in steps {
                let change = match what {
                    0 => KeyChange::Add { key: key(a), weight },
                    1 => KeyChange::Rotate { old: key(a), new: key(b) },
                    2 => KeyChange::Revoke { key: key(a) },
                    _ => KeyChange::Threshold { weight },
                };
                let signers: Vec<_> = signers.into_iter().map(key).collect();
                let Ok(after) = account.changed(&change, &signers, 1) else { continue };
                for ended in account.keys.iter().filter(|k| k.ended.is_some()) {
                    prop_assert!(after.key(&ended.key) == Some(ended));
                }
                prop_assert!(after.main_key().is_none() || after.total() >= after.threshold);
                account = after;
            }
        }
    }
}
