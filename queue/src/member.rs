//! How the functions are told of jobs, and of the queues and lanes that they may touch for them.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rhizome_model::{Job, JobId};

use crate::keys;
use crate::link::Call;

/// What stands for a job where its payload does not: `ID LANE`, the lane being the one of its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: JobId,
    pub(crate) home: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.home)
    }
}

impl FromStr for Member {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (id, home) = text.split_once(' ').ok_or_else(|| format!("'{text}'"))?;
        Ok(Self { id: id.parse().map_err(|e| format!("{e}"))?, home: home.to_owned() })
    }
}

/// What the functions must know of a job to end it or to move it.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) member: Member,
    unique: Option<String>,
    order: Option<String>,
    ends: Option<EffectOf>,
    pub(crate) most: u32,
    /// 0 when it may start at once.
    pub(crate) starts_at: i64,
    account: Arc<str>,
    plain: bool,
}

impl Identity {
    pub(crate) fn of(job: &Job) -> Self {
        Self {
            member: Member { id: job.id, home: keys::home(job) },
            unique: job.unique.clone(),
            order: job.order.clone(),
            ends: EffectOf::job(job),
            most: job.max_attempts,
            starts_at: job.starts_at.unwrap_or_default(),
            account: job.account.to_string().into(),
            plain: !is_special(job),
        }
    }

    /// Of a job whose payload cannot be read.
    pub(crate) fn unreadable(id: JobId, lane: &str, account: &str) -> Self {
        Self::of_member(Member { id, home: keys::lane_of(keys::queue_of(lane), account, 2) })
    }

    /// Of a job whose payload is not there.
    pub(crate) fn of_member(member: Member) -> Self {
        let account = member.home.split(':').nth(1).unwrap_or_default().into();
        Self {
            member,
            unique: None,
            order: None,
            ends: None,
            most: 1,
            starts_at: 0,
            account,
            plain: false,
        }
    }

    /// Of a job of which nothing is left.
    pub(crate) fn forgotten(id: JobId) -> Self {
        Self::unreadable(id, "none", "0")
    }

    /// Whether it has nothing that others wait for.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    pub(crate) fn id(&self) -> JobId {
        self.member.id
    }

    pub(crate) fn queue(&self) -> &str {
        keys::queue_of(&self.member.home)
    }

    pub(crate) fn account(&self) -> &Arc<str> {
        &self.account
    }

    /// The lane in which it waits when it was under way already.
    pub(crate) fn again(&self) -> String {
        keys::lane_of(self.queue(), self.account(), keys::AGAIN)
    }

    /// Appends it as the functions read it.
    pub(crate) fn write(&self, call: Call) -> Call {
        let record = keys::record(self.id());
        let order = self.order.as_ref().map_or_else(|| record.clone(), |name| keys::order(name));
        let ends = self.ends.as_ref();
        let journal = ends.map_or_else(|| record.clone(), |effect| effect.journal.clone());
        call.key(record)
            .key(keys::more(self.id()))
            .key(order)
            .key(journal)
            .key(keys::dead(self.queue()))
            .arg(self.member.to_string())
            .arg(self.unique.as_deref().unwrap_or_default())
            .arg(self.order.as_deref().unwrap_or_default())
            .arg(ends.map_or("", |effect| &effect.name))
    }
}

/// The effect of a script that ends with a job.
#[derive(Debug, Clone)]
pub(crate) struct EffectOf {
    /// The key.
    pub(crate) journal: String,
    /// As the functions read it.
    pub(crate) name: String,
}

impl EffectOf {
    pub(crate) fn job(job: &Job) -> Option<Self> {
        let (deployment, version, ends) = (job.deployment.as_ref()?, job.version?, job.ends?);
        let mark = if ends.only_failed { "!" } else { "" };
        let name = format!("{version} {}{mark}", ends.call);
        Some(Self { journal: keys::journal(deployment), name })
    }
}

/// Whether a job has more than the usual.
pub(crate) fn is_special(job: &Job) -> bool {
    job.unique.is_some()
        || job.order.is_some()
        || job.starts_at.is_some()
        || job.expires_at.is_some()
        || job.parent.is_some()
        || job.ends.is_some()
        || !job.after.is_empty()
}

/// The queues and lanes that a call may put jobs into, each once.
#[derive(Default)]
pub(crate) struct Places {
    queues: Vec<String>,
    /// With the place of its queue, from 1.
    homes: Vec<(String, usize)>,
    known: HashMap<String, usize>,
}

impl Places {
    pub(crate) fn of<'a>(homes: impl IntoIterator<Item = &'a str>) -> Self {
        let mut places = Self::default();
        for home in homes {
            places.add(home);
        }
        places
    }

    fn add(&mut self, home: &str) {
        if self.known.contains_key(home) {
            return;
        }
        let queue = keys::queue_of(home);
        let at = self.queues.iter().position(|q| q == queue).unwrap_or_else(|| {
            self.queues.push(queue.to_owned());
            self.queues.len() - 1
        });
        self.homes.push((home.to_owned(), at + 1));
        self.known.insert(home.to_owned(), self.homes.len());
    }

    /// The place of a lane, from 1.
    pub(crate) fn place(&self, home: &str) -> usize {
        self.known.get(home).copied().unwrap_or_default()
    }

    /// Appends them as the functions read them.
    pub(crate) fn write(&self, mut call: Call) -> Call {
        call = call.num(self.queues.len());
        for queue in &self.queues {
            call = with_queue(call, queue).arg(queue);
        }
        call = call.num(self.homes.len());
        for (home, queue) in &self.homes {
            call = call.key(keys::lane(home)).arg(home).num(queue);
        }
        call
    }
}

/// Appends the keys of a queue.
pub(crate) fn with_queue(call: Call, queue: &str) -> Call {
    call.key(keys::lane(&keys::ready(queue))).key(keys::turns(queue))
}
