//! The names of everything in Redis. Nothing outside of this crate knows one.
//!
//! All carry the hash tag `{n}`: one node's state is one partition, so every function can touch
//! whatever it needs, also on a cluster.

use rhizome_model::{AccountId, DeploymentId, Job, JobId, Priority};

pub(crate) const GROUP: &str = "g";

pub(crate) const QUEUES: &str = "{n}:queues";
pub(crate) const DELAYED: &str = "{n}:delayed";
pub(crate) const DONE: &str = "{n}:done";
pub(crate) const COUNTERS: &str = "{n}:counters";
pub(crate) const CONTROL: &str = "{n}:control";
pub(crate) const EVENTS: &str = "{n}:events";
pub(crate) const RUNNERS: &str = "{n}:runners";
pub(crate) const SERVICES: &str = "{n}:services";
pub(crate) const TASKS: &str = "{n}:tasks";
pub(crate) const CAPACITY: &str = "{n}:capacity";
pub(crate) const LOAD: &str = "{n}:load";
pub(crate) const SETTINGS: &str = "{n}:settings";
pub(crate) const WAITED: &str = "{n}:waited";
pub(crate) const RELEASES: &str = "{n}:releases";
pub(crate) const LANES: &str = "{n}:lanes";
/// By which records name lanes.
pub(crate) const NUMBERS: &str = "{n}:lane-numbers";
pub(crate) const PERIODIC: &str = "{n}:periodic";
pub(crate) const PERIODIC_SLOTS: &str = "{n}:periodic-slots";
const TOKENS: &str = "{n}:tokens";
const UNIQUE: &str = "{n}:unique";

/// What most functions may touch, in the order in which they expect it.
pub(crate) const SHARED: [&str; 13] = [
    COUNTERS, DONE, LOAD, SETTINGS, TOKENS, DELAYED, WAITED, RELEASES, UNIQUE, CONTROL, LANES,
    QUEUES, NUMBERS,
];

pub(crate) fn record(id: JobId) -> String {
    format!("{{n}}:job:{id}")
}

/// What is known of a job besides its record.
pub(crate) fn more(id: JobId) -> String {
    format!("{{n}}:more:{id}")
}

pub(crate) fn output(id: JobId) -> String {
    format!("{{n}}:output:{id}")
}

/// The jobs that another asked for.
pub(crate) fn children(id: JobId) -> String {
    format!("{{n}}:children:{id}")
}

/// The jobs of one order, the first of which may run.
pub(crate) fn order(name: &str) -> String {
    format!("{{n}}:order:{name}")
}

/// The accounts that wait for their turn.
pub(crate) fn turns(queue: &str) -> String {
    format!("{{n}}:turns:{queue}")
}

/// The key of a lane, from its name.
pub(crate) fn lane(name: &str) -> String {
    format!("{LANE}{name}")
}

const LANE: &str = "{n}:lane:";

/// The name of a lane, from its key.
pub(crate) fn lane_name(key: &str) -> &str {
    key.strip_prefix(LANE).unwrap_or(key)
}

/// What a free runner may take at once; idle runners block on it.
pub(crate) fn ready(queue: &str) -> String {
    format!("{queue}:r")
}

/// The lanes of an account in a queue: first what was under way already, then by priority.
pub(crate) const LANES_OF_ACCOUNT: usize = 1 + Priority::ALL.len();
/// Where what was under way already waits.
pub(crate) const AGAIN: usize = 0;

/// A lane of an account.
pub(crate) fn lane_of(queue: &str, account: &str, place: usize) -> String {
    format!("{queue}:{account}:{place}")
}

/// The lane in which a job waits when it cannot start at once.
pub(crate) fn home(job: &Job) -> String {
    let place = match job.priority {
        Priority::High => 1,
        Priority::Normal => 2,
        Priority::Low => 3,
    };
    lane_of(&job.queue, &job.account.to_string(), place)
}

/// The queue of a lane.
pub(crate) fn queue_of(lane_name: &str) -> &str {
    // Names of queues have no colon.
    lane_name.split(':').next().unwrap_or(lane_name)
}

pub(crate) fn dead(queue: &str) -> String {
    format!("{{n}}:dead:{queue}")
}

pub(crate) fn task(id: &DeploymentId) -> String {
    format!("{{n}}:task:{id}")
}

pub(crate) fn statuses(id: &DeploymentId) -> String {
    format!("{{n}}:statuses:{id}")
}

/// What the script of the version under way did.
pub(crate) fn journal(id: &DeploymentId) -> String {
    format!("{{n}}:journal:{id}")
}

pub(crate) fn nonce(account: AccountId, nonce: &str) -> String {
    format!("{{n}}:nonce:{account}:{nonce}")
}

/// There while a call of this id may be repeated.
pub(crate) fn once(id: uuid::Uuid) -> String {
    format!("{{n}}:once:{id}")
}
