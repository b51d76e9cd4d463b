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
pub(crate) const RUNNER_QUEUES: &str = "{n}:runner-queues";
pub(crate) const TASKS: &str = "{n}:tasks";
pub(crate) const CAPACITY: &str = "{n}:capacity";

/// The lanes of a queue, in the order in which they are served: first what a runner left behind,
/// then by priority.
pub(crate) const LANES: u8 = 4;
/// Where what was under way already waits.
pub(crate) const AGAIN: u8 = 0;

pub(crate) fn record(id: JobId) -> String {
    record_of(&id.to_string())
}

pub(crate) fn record_of(id: &str) -> String {
    format!("{{n}}:job:{id}")
}

pub(crate) fn output(id: JobId) -> String {
    format!("{{n}}:output:{id}")
}

/// The key of a lane, from its name.
pub(crate) fn lane(name: &str) -> String {
    format!("{{n}}:lane:{name}")
}

pub(crate) fn lane_name(queue: &str, lane: u8) -> String {
    format!("{queue}:{lane}")
}

/// The lane of a job by its priority.
pub(crate) fn home(job: &Job) -> u8 {
    match job.priority {
        Priority::High => 1,
        Priority::Normal => 2,
        Priority::Low => 3,
    }
}

pub(crate) fn lane_names(queue: &str) -> impl Iterator<Item = String> + '_ {
    (0..LANES).map(move |lane| lane_name(queue, lane))
}

/// The queue of a lane.
pub(crate) fn queue_of(lane_name: &str) -> &str {
    lane_name.rsplit_once(':').map_or(lane_name, |(queue, _)| queue)
}

/// The lanes of several queues, in the order in which they are served: lane by lane, so that the
/// priority counts before the queue.
pub(crate) fn lanes_to_serve(queues: &[String]) -> Vec<String> {
    (0..LANES).flat_map(|lane| queues.iter().map(move |q| lane_name(q, lane))).collect()
}

/// A delayed job: everything that is needed to name its keys when it is due.
pub(crate) fn delayed_member(id: JobId, lane_name: &str) -> String {
    format!("{id} {lane_name}")
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

pub(crate) fn nonce(account: AccountId, nonce: &str) -> String {
    format!("{{n}}:nonce:{account}:{nonce}")
}

/// There while a call of this id may be repeated.
pub(crate) fn once(id: uuid::Uuid) -> String {
    format!("{{n}}:once:{id}")
}
