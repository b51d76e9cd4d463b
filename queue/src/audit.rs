//! Looking through all that redis-server holds of jobs, for what does not fit together.
//!
//! For tests, and for whoever doubts. It reads key by key: what moves meanwhile, as the upkeep does, can
//! seem not to fit. So a fault is what is found twice in a row; while many move, it means nothing. It
//! costs as much as there is.

mod look;

use std::collections::{BTreeMap, BTreeSet};

use rhizome_model::JobId;

use crate::events::id_parts;
use crate::member::Member;
use crate::{Queue, QueueError, keys};
use look::{Lane, Look};

/// What was found, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// What cannot be: a job that is nowhere, or in two places, or that nobody would ever start.
    pub faults: Vec<String>,
    /// Accounts that have a turn and nothing that waits for it. The next look of a runner ends that.
    pub idle_turns: Vec<String>,
    /// All that is held of jobs and does not go by itself with time: nothing, when all have ended.
    pub remains: Vec<String>,
}

impl Queue {
    pub async fn audit(&self) -> Result<Audit, QueueError> {
        let first = self.look_through().await?;
        if first.faults.is_empty() {
            return Ok(first);
        }
        let mut second = self.look_through().await?;
        second.faults.retain(|fault| first.faults.contains(fault));
        Ok(second)
    }

    async fn look_through(&self) -> Result<Audit, QueueError> {
        let look = Look::at(&self.link).await?;
        let mut auditor = Auditor { look: &look, audit: Audit::default() };
        auditor.lanes();
        auditor.numbers();
        auditor.turns();
        auditor.records();
        auditor.delayed();
        auditor.waited();
        auditor.orders();
        auditor.unique();
        auditor.counts();
        auditor.remains();
        Ok(auditor.audit)
    }
}

struct Auditor<'a> {
    look: &'a Look,
    audit: Audit,
}

impl Auditor<'_> {
    fn fault(&mut self, what: String) {
        self.audit.faults.push(what);
    }

    /// The first word of a record, and the rest.
    fn record(&self, id: JobId) -> Option<(&str, &str)> {
        let text = &self.look.records.get(&id)?.0;
        Some(text.split_once(' ').unwrap_or((text, "")))
    }

    fn is_live(&self, id: JobId) -> bool {
        self.record(id).is_some_and(|(kind, _)| kind != "e")
    }

    fn kind_is(&self, id: JobId, kind: &str) -> bool {
        self.record(id).is_some_and(|(is, _)| is == kind)
    }

    fn lanes(&mut self) {
        for (name, lane) in &self.look.lanes {
            if !self.look.listed.contains(name) {
                self.fault(format!("lane {name} is not in the list of lanes"));
            }
            for entry in lane.pending.iter().filter(|entry| !lane.entries.contains_key(*entry)) {
                self.fault(format!("lane {name}: {entry} is held and not there"));
            }
            for (entry, (id, _)) in &lane.entries {
                let here = format!("{name} {entry}");
                if self.record(*id) != Some(("q", &here)) {
                    self.fault(format!(
                        "{here} is job {id}, whose record is {:?}",
                        self.record(*id)
                    ));
                }
                if lane.was_given(entry) && !lane.pending.contains(entry) {
                    self.fault(format!("{here} was handed out, and nobody has it"));
                }
            }
        }
    }

    /// No number is two lanes'.
    fn numbers(&mut self) {
        let free = self.look.numbers.get("-").map(String::as_str).unwrap_or_default();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for number in free.split_whitespace() {
            if self.look.numbers.contains_key(number) || !seen.insert(number) {
                self.fault(format!("the number {number} is free, and in use"));
            }
        }
        for (name, number) in self.look.numbers.iter().filter(|(name, _)| name.contains(':')) {
            let of = self.look.numbers.get(number);
            if of != Some(name) {
                self.fault(format!("lane {name} has the number {number}, which is that of {of:?}"));
            }
        }
    }

    /// Accounts of a queue with something that waits in their lanes.
    fn waiting_accounts(&self, queue: &str) -> BTreeSet<&str> {
        let lanes = self.look.lanes.iter();
        let waiting =
            lanes.filter(|(name, lane)| keys::queue_of(name) == queue && lane.has_ready());
        waiting.filter_map(|(name, _)| home_account(name)).collect()
    }

    fn turns(&mut self) {
        for (name, _) in self.look.lanes.iter().filter(|(_, lane)| lane.has_ready()) {
            let Some(account) = home_account(name) else { continue };
            let turns = self.look.turns.get(keys::queue_of(name));
            if !turns.is_some_and(|turns| turns.iter().any(|joined| joined == account)) {
                self.fault(format!("something waits in lane {name}, and it has no turn"));
            }
        }
        for (queue, turns) in &self.look.turns {
            let waiting = self.waiting_accounts(queue);
            let idle = turns.iter().filter(|account| !waiting.contains(account.as_str()));
            let idle: Vec<_> = idle.map(|account| format!("{queue} {account}")).collect();
            self.audit.idle_turns.extend(idle);
        }
    }

    fn records(&mut self) {
        for (id, (text, expires)) in &self.look.records {
            let (kind, place) = text.split_once(' ').unwrap_or((text, ""));
            let more = self.look.more.get(id);
            let has = |field: &str| more.is_some_and(|(fields, _)| fields.contains_key(field));
            if *expires != (kind == "e") {
                self.fault(format!(
                    "job {id} ({kind}): whether its record goes with time is wrong"
                ));
            }
            match kind {
                "q" => {
                    let is_there = place.split_once(' ').is_some_and(|(lane, entry)| {
                        let lane = self.look.lanes.get(lane);
                        lane.is_some_and(|lane| lane.entries.contains_key(entry))
                    });
                    if !is_there {
                        self.fault(format!("job {id} is not at {place}"));
                    }
                }
                "d" if !self.look.delayed.contains(&format!("{id} {place}")) => {
                    self.fault(format!("job {id} is delayed, and nothing will wake it"));
                }
                "w" => self.waiting(*id),
                _ => {}
            }
            if matches!(kind, "d" | "w") != has("j") {
                self.fault(format!("job {id} ({kind}): its content is in a wrong place"));
            }
        }
    }

    /// A job that waits has something to wait for.
    fn waiting(&mut self, id: JobId) {
        let Some((fields, _)) = self.look.more.get(&id) else {
            return self.fault(format!("job {id} waits for nothing"));
        };
        let text = |field: &str| fields.get(field).map(|text| String::from_utf8_lossy(text));
        let waits: Vec<&str> = fields.keys().filter_map(|field| field.strip_prefix("w ")).collect();
        if text("wn").as_deref() != Some(&waits.len().to_string()) || waits.is_empty() {
            self.fault(format!("job {id} waits for {waits:?}, and counts {:?}", text("wn")));
        }
        for other in waits.into_iter().filter(|other| *other != "#") {
            let noted = self.look.waited.get(other);
            if !noted.is_some_and(|members| members.contains(&id.to_string())) {
                self.fault(format!("job {id} waits for {other}, where that is not noted"));
            }
        }
    }

    fn delayed(&mut self) {
        for member in self.look.delayed.iter().filter(|member| !member.starts_with("x ")) {
            let id = member.parse::<Member>().map(|member| member.id);
            if !id.as_ref().is_ok_and(|id| self.kind_is(*id, "d")) {
                self.fault(format!("'{member}' is to be woken, and is not delayed"));
            }
        }
    }

    fn waited(&mut self) {
        for (id, members) in &self.look.waited {
            let is_live = id.parse().is_ok_and(|id| self.is_live(id));
            if !is_live && !self.look.releases.contains(id) {
                self.fault(format!("'{members}' wait for {id}, which has ended"));
            }
        }
    }

    fn orders(&mut self) {
        for (name, members) in &self.look.orders {
            for (place, text) in members.iter().enumerate() {
                let Ok(Member { id, .. }) = text.parse() else {
                    self.fault(format!("order {name}: '{text}'"));
                    continue;
                };
                let fields = self.look.more.get(&id).map(|(fields, _)| fields);
                let holds_back = fields.is_some_and(|fields| fields.contains_key("w #"));
                if !self.is_live(id) {
                    self.fault(format!("order {name}: {id} is not there any more"));
                } else if holds_back == (place == 0) && !self.look.releases.contains(name) {
                    self.fault(format!("order {name}: {id} is at {place}, waiting {holds_back}"));
                }
            }
        }
    }

    fn unique(&mut self) {
        for (key, id) in &self.look.unique {
            if !id.parse().is_ok_and(|id| self.is_live(id)) {
                self.fault(format!("the key '{key}' is of job {id}, which has ended"));
            }
        }
    }

    /// What is counted beside what it counts.
    fn counts(&mut self) {
        let mut real: BTreeMap<String, i64> = BTreeMap::new();
        for (id, (text, _)) in &self.look.records {
            let word = match text.split(' ').next() {
                Some("d") => "delayed",
                Some("w") => "waiting",
                _ => continue,
            };
            let home = self.look.home_of(*id, text);
            *real.entry(format!("{} - {word}", keys::queue_of(&home))).or_default() += 1;
        }
        for (field, n) in &self.look.counters {
            let is_gauge = field.ends_with(" - delayed") || field.ends_with(" - waiting");
            if is_gauge && real.get(field).copied().unwrap_or_default() != *n {
                self.fault(format!("'{field}' is {:?}, and counted as {n}", real.get(field)));
            }
        }
        let mut slots: BTreeMap<String, i64> = BTreeMap::new();
        for service in self.look.services.values() {
            let Some((number, queues)) = service.split_once(' ') else { continue };
            for queue in queues.split(',') {
                *slots.entry(format!("s {queue}")).or_default() += number.parse().unwrap_or(0);
            }
        }
        if slots != self.look.load {
            self.fault(format!("runners have {slots:?}, counted as {:?}", self.look.load));
        }
    }

    fn remains(&mut self) {
        let look = self.look;
        let mut all = Vec::new();
        let lanes = look.lanes.iter().filter(|(_, lane)| !lane.entries.is_empty());
        all.extend(lanes.map(|(name, lane)| format!("lane {name}: {}", lane.entries.len())));
        let stays = |(_, (_, expires)): &(&JobId, &(String, bool))| !expires;
        all.extend(look.records.iter().filter(stays).map(|(id, (text, _))| format!("{id} {text}")));
        let more = look.more.iter().filter(|(_, (_, expires))| !expires);
        all.extend(more.map(|(id, (fields, _))| format!("more of {id}: {:?}", fields.keys())));
        all.extend(look.delayed.iter().map(|member| format!("delayed {member}")));
        all.extend(look.waited.keys().map(|id| format!("waited for: {id}")));
        all.extend(look.unique.keys().map(|key| format!("unique {key}")));
        all.extend(look.orders.keys().map(|name| format!("order {name}")));
        all.extend(look.releases.iter().map(|note| format!("release {note}")));
        let turns = look.turns.iter();
        all.extend(turns.map(|(queue, turns)| format!("turns of {queue}: {turns:?}")));
        all.extend(look.services.keys().map(|name| format!("runner {name}")));
        let consumers = look.lanes.iter().filter(|(_, lane)| !lane.consumers.is_empty());
        all.extend(consumers.map(|(name, lane)| format!("lane {name} knows {:?}", lane.consumers)));
        self.audit.remains = all;
    }
}

impl Lane {
    fn was_given(&self, entry: &str) -> bool {
        id_parts(entry) <= id_parts(&self.delivered)
    }

    fn has_ready(&self) -> bool {
        self.entries.keys().any(|entry| !self.was_given(entry))
    }
}

/// The account of a lane; none when accounts share it.
fn home_account(lane: &str) -> Option<&str> {
    let mut words = lane.split(':').skip(1);
    let account = words.next()?;
    words.next().map(|_| account)
}
