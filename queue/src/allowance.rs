//! What the deployments of an account may reserve together, where its farm grants so much only.
//!
//! ```text
//!   reserve more ─▶ within the allowance? ─yes▶ reserved, in the same step
//!                        └─no─▶ the ledger is asked for more ─▶ agreed: the allowance grows ─▶ again
//!   reserved less ─▶ trim: the allowance shrinks ─▶ the ledger is told
//! ```
//!
//! So what the ledger knows is never less than what can be reserved here, whoever dies in between.
//! Both ways carry a number: the ledger takes what is newer only, and an allowance grows only if it
//! has not changed since the ledger was asked.

use std::collections::BTreeSet;
use std::fmt;

use rhizome_model::api::{NodeUsage, UsageReply};
use rhizome_model::{AccountId, Capacity, Code, Failure};

use crate::link::Call;
use crate::tasks::{amounts, free};
use crate::{Queue, QueueError, keys};

/// The allowance may change between two looks; it does not do so for ever.
const LOOKS: usize = 100;
/// The field of an account's allowance begins so, and those of its sums.
const FIELD: &str = "l ";
const SUM: &str = "u ";

/// What an account may have from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allow {
    /// What it could have before.
    AsBefore,
    /// Whatever is free.
    All,
    /// What the ledger has agreed to, and at least so much.
    AtLeast(Capacity),
}

impl Allow {
    pub(crate) fn words(self) -> String {
        match self {
            Self::AsBefore => String::new(),
            Self::All => "all".into(),
            Self::AtLeast(capacity) => amounts(capacity).join(" "),
        }
    }
}

/// More was asked for than an account may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beyond {
    /// Of the allowance as it was found.
    number: u64,
    pub allowed: Capacity,
    /// What the account would have reserved, all its deployments together.
    pub needed: Capacity,
}

impl Beyond {
    /// From the reply of a function, without its first word.
    pub(crate) fn parse(reply: &[String]) -> Option<Self> {
        let (number, rest) = reply.split_first()?;
        let (allowed, needed) = rest.split_at_checked(3)?;
        Some(Self { number: number.parse().ok()?, allowed: free(allowed)?, needed: free(needed)? })
    }

    /// What the ledger is asked for: in nothing less than what was agreed to.
    fn wanted(&self) -> Capacity {
        self.allowed.saturating_add(self.needed.saturating_sub(self.allowed))
    }
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allowed, needed, .. } = self;
        write!(f, "the account's deployments here may have {allowed}, and would have {needed}")
    }
}

impl Queue {
    /// Has the ledger agree to what an account would need, by way of `ask`. Fails with its refusal,
    /// or when nobody can be asked.
    pub async fn agree<A>(
        &self,
        account: AccountId,
        beyond: &Beyond,
        ask: impl Fn(NodeUsage) -> A,
    ) -> Result<(), Failure>
    where
        A: Future<Output = Result<UsageReply, Failure>>,
    {
        let (mut seen, mut allowed) = (beyond.number, beyond.allowed);
        for _ in 0..LOOKS {
            let beyond = Beyond { number: seen, allowed, needed: beyond.needed };
            let (number, capacity) = (seen + 1, beyond.wanted());
            let usage = NodeUsage { account, number, capacity, reserved: false };
            let reply = ask(usage).await?;
            let next = if reply.taken {
                (usage.number, usage.capacity)
            } else {
                // It was told more than we remember: we go on from there.
                (reply.number, allowed)
            };
            let is_set = self.set_allowance(account, seen, next).await?;
            if is_set && reply.taken {
                return Ok(());
            }
            let Some(now) = self.allowance(account).await? else { return Ok(()) };
            (seen, allowed) = now;
            if allowed.admit(beyond.needed).is_ok() {
                return Ok(());
            }
        }
        Err(Failure::new(Code::Internal, "the account's allowance never stayed the same"))
    }

    /// From now on an account may have what it has, and at least so much, also one that could have all
    /// before; the ledger is told by way of `tell`, unless it was told last under the number `told`. The
    /// number under which it knows now.
    pub async fn trim<A>(
        &self,
        account: AccountId,
        least: Capacity,
        told: Option<u64>,
        tell: impl Fn(NodeUsage) -> A,
    ) -> Result<u64, Failure>
    where
        A: Future<Output = Result<UsageReply, Failure>>,
    {
        for _ in 0..LOOKS {
            let call = Call::new("trim").key(keys::CAPACITY).num(account).args(amounts(least));
            let reply: Vec<String> = self.link.call(&call).await?;
            let found = parse(account, &reply)?;
            let (number, capacity) =
                found.ok_or_else(|| QueueError::corrupt("an account's allowance", "it is gone"))?;
            if told == Some(number) {
                return Ok(number);
            }
            let reply = tell(NodeUsage { account, number, capacity, reserved: true }).await?;
            if reply.taken {
                return Ok(number);
            }
            let next = (reply.number.saturating_add(1), capacity);
            self.set_allowance(account, number, next).await?;
        }
        Err(Failure::new(Code::Internal, "the account's allowance never stayed the same"))
    }

    /// What the deployments of an account reserve here, together.
    pub async fn reserved_by(&self, account: AccountId) -> Result<Capacity, QueueError> {
        let mut get = redis::cmd("HMGET");
        get.arg(keys::CAPACITY);
        for dimension in ["cpu", "mem", "disk"] {
            get.arg(format!("{SUM}{account} {dimension}"));
        }
        let found: Vec<Option<String>> = self.link.query(&get).await?;
        let found: Vec<String> =
            found.into_iter().map(|n| n.unwrap_or_else(|| "0".into())).collect();
        let corrupt =
            || QueueError::corrupt(format!("what account {account} reserves"), found.join(" "));
        free(&found).ok_or_else(corrupt)
    }

    /// The accounts that have an allowance.
    pub async fn accounts_with_allowance(&self) -> Result<BTreeSet<AccountId>, QueueError> {
        self.accounts(FIELD).await
    }

    /// The accounts that reserve something.
    pub async fn accounts_that_reserve(&self) -> Result<BTreeSet<AccountId>, QueueError> {
        self.accounts(SUM).await
    }

    async fn accounts(&self, field: &str) -> Result<BTreeSet<AccountId>, QueueError> {
        let mut list = redis::cmd("HKEYS");
        list.arg(keys::CAPACITY);
        let fields: Vec<String> = self.link.query(&list).await?;
        let account = |name: &String| {
            let of = name.strip_prefix(field)?;
            of.split(' ').next()?.parse().ok().map(AccountId)
        };
        Ok(fields.iter().filter_map(account).collect())
    }

    async fn allowance(&self, account: AccountId) -> Result<Option<(u64, Capacity)>, QueueError> {
        let mut get = redis::cmd("HGET");
        get.arg(keys::CAPACITY).arg(format!("{FIELD}{account}"));
        let text: Option<String> = self.link.query(&get).await?;
        let words: Vec<String> =
            text.iter().flat_map(|text| text.split(' ')).map(str::to_owned).collect();
        parse(account, &words)
    }

    /// Whether it was still the one of this number.
    async fn set_allowance(
        &self,
        account: AccountId,
        seen: u64,
        (number, capacity): (u64, Capacity),
    ) -> Result<bool, QueueError> {
        let call = Call::new("agree").key(keys::CAPACITY).num(account).num(seen).num(number);
        let word: String = self.link.call(&call.args(amounts(capacity))).await?;
        Ok(word == "ok")
    }
}

/// None when there is none.
fn parse(account: AccountId, words: &[String]) -> Result<Option<(u64, Capacity)>, QueueError> {
    let Some((number, rest)) = words.split_first() else { return Ok(None) };
    let read = || Some((number.parse().ok()?, free(rest)?));
    let corrupt = || QueueError::corrupt(format!("account {account}'s allowance"), words.join(" "));
    read().map(Some).ok_or_else(corrupt)
}
