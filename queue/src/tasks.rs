//! Tasks: what the node holds, what is reserved for it, and taking in something new.

use std::collections::BTreeMap;

use rhizome_model::{
    Bytes, Capacity, Cpu, DeploymentId, Event, Job, JobId, Name, Outcome, Phase, Shortfall, Task,
    Version,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::allowance::{Allow, Beyond};
use crate::events::with_events;
use crate::jobs::with_jobs;
use crate::link::Call;
use crate::member::Identity;
use crate::record::{Fields, Place, to_json};
use crate::{Queue, QueueError, keys};

/// Numbers up to here are exact inside redis-server.
const EXACT: u64 = 1 << 53;
/// The task may change between two looks; it does not do so for ever.
const LOOKS: usize = 100;

/// A new version, or the end, of a task.
pub struct Accept<'a> {
    /// Accepted or deleting; its job is one of `jobs`; it reserves what it needs from now on.
    pub task: &'a Task,
    /// Version and phase of what the node held when `task` was made from it; none if nothing.
    pub base: Option<(Version, Phase)>,
    pub nonce: &'a str,
    /// Unix seconds; the nonce is remembered until then.
    pub nonce_expires: i64,
    /// Of the envelope.
    pub digest: &'a str,
    /// All that can be reserved.
    pub total: Capacity,
    /// By its account.
    pub allow: Allow,
    pub jobs: &'a [Job],
    pub events: &'a [Event],
}

/// What became of it. Only [`Acceptance::Accepted`] changed anything.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one at a time, and looked at once")]
pub enum Acceptance {
    /// With the job that worked on the task until now and was told to stop, if there was one.
    Accepted {
        superseded: Option<JobId>,
    },
    /// This very envelope is what the node holds.
    Same(Task),
    /// The nonce was used before.
    Replayed,
    /// Not a version after the current one.
    Stale {
        current: Version,
    },
    /// A version is under way, or what the task was made from has changed meanwhile.
    Conflict {
        phase: Phase,
    },
    Shortfall(Shortfall),
    Beyond(Beyond),
}

impl Queue {
    /// Takes in a task in one step: nonce, version, phase and capacity are checked, and then task,
    /// reservation, nonce, jobs and events are written, or nothing is.
    pub async fn accept(&self, request: Accept<'_>) -> Result<Acceptance, QueueError> {
        for _ in 0..LOOKS {
            let call = self.accept_call(&request).await?;
            let reply: Vec<String> = self.link.call(&call).await?;
            if let Some(acceptance) = self.acceptance(&request, &reply).await? {
                return Ok(acceptance);
            }
        }
        let what = format!("task {}", request.task.deployment);
        Err(QueueError::corrupt(what, "the job that works on it never stayed in one place"))
    }

    async fn accept_call(&self, request: &Accept<'_>) -> Result<Call, QueueError> {
        let task = request.task;
        let (worker, lane) = self.superseded(task).await?;
        let (version, phase) = match request.base {
            Some((version, phase)) => (version.to_string(), phase.to_string()),
            None => Default::default(),
        };
        let call = Call::shared("accept")
            .keys(task_keys(&task.deployment))
            .key(keys::nonce(task.deployment.account, request.nonce))
            .key(keys::EVENTS)
            .args([request.digest, request.nonce])
            .num(request.nonce_expires.max(1))
            .args(amounts(request.total))
            .args([version, phase])
            .arg(if request.task.phase == Phase::Deleting { "1" } else { "0" })
            .arg(to_json(&Outcome::Cancelled)?)
            .arg(request.allow.words());
        let call = worker.write(call).key(keys::lane(&lane)).arg(&lane);
        let call = with_events(with_task(call, Some(task))?, request.events)?;
        with_jobs(call, request.jobs)
    }

    /// The job that works on a task that is to be deleted, and its lane: it is told to stop.
    async fn superseded(&self, task: &Task) -> Result<(Identity, String), QueueError> {
        if task.phase != Phase::Deleting {
            return Ok((Identity::forgotten(JobId([0; 16])), String::new()));
        }
        let mut get = redis::cmd("HGET");
        get.arg(keys::task(&task.deployment)).arg("job");
        let worker: Option<String> = self.link.query(&get).await?;
        let worker = worker.map(|id| id.parse::<JobId>()).transpose();
        let worker = worker.map_err(|e| QueueError::corrupt("a task's job", e))?;
        let id = worker.unwrap_or(JobId([0; 16]));
        Ok(match self.place(id).await? {
            Some(Place::Live { identity, lane }) => (identity, lane),
            Some(Place::Ended(_)) | None => (Identity::forgotten(id), String::new()),
        })
    }

    /// None when the job that works on the task has moved, and the caller has to look again.
    async fn acceptance(
        &self,
        request: &Accept<'_>,
        reply: &[String],
    ) -> Result<Option<Acceptance>, QueueError> {
        let deployment = &request.task.deployment;
        let corrupt = |cause: &dyn ToString| {
            QueueError::corrupt(format!("task {deployment}"), cause.to_string())
        };
        let rest = reply.get(1).map(String::as_str).unwrap_or_default();
        let acceptance = match reply.first().map(String::as_str) {
            Some("accepted") if rest.is_empty() => Acceptance::Accepted { superseded: None },
            Some("accepted") => {
                Acceptance::Accepted { superseded: Some(rest.parse().map_err(|e| corrupt(&e))?) }
            }
            Some("same") => match self.task(deployment).await? {
                Some(task) => Acceptance::Same(task),
                None => return Ok(None),
            },
            Some("replayed") => Acceptance::Replayed,
            Some("stale") => Acceptance::Stale { current: rest.parse().map_err(|e| corrupt(&e))? },
            Some("conflict") => {
                Acceptance::Conflict { phase: parse_word(rest).map_err(|e| corrupt(&e))? }
            }
            Some("short") => Acceptance::Shortfall(Shortfall {
                asked: request.task.reserved,
                free: free(&reply[1..]).ok_or_else(|| corrupt(&"its capacity"))?,
            }),
            Some("beyond") => Acceptance::Beyond(
                Beyond::parse(&reply[1..]).ok_or_else(|| corrupt(&"an account's allowance"))?,
            ),
            Some("moved") => return Ok(None),
            Some(other) => return Err(corrupt(&other)),
            None => return Err(corrupt(&"an empty answer")),
        };
        Ok(Some(acceptance))
    }

    /// A task; of one that was deleted only version, phase and job.
    pub async fn task(&self, id: &DeploymentId) -> Result<Option<Task>, QueueError> {
        let corrupt = |e| QueueError::corrupt(format!("task {id}"), e);
        for _ in 0..LOOKS {
            let mut get = redis::cmd("HGETALL");
            get.arg(keys::task(id));
            let fields: Fields = self.link.query(&get).await?;
            if fields.is_empty() {
                return Ok(None);
            }
            let (mut task, declared) = read_task(id, &fields).map_err(corrupt)?;
            // None, or they stand in the document: it was written before there were journals.
            if task.declared.len() == declared {
                return Ok(Some(task));
            }
            task.declared = self.journal(id).await?.declared();
            // Else it changed between the two looks.
            if task.declared.len() == declared {
                return Ok(Some(task));
            }
        }
        Err(corrupt("its declarations never stayed the same".into()))
    }

    /// Version and phase of a task.
    pub async fn progress(
        &self,
        id: &DeploymentId,
    ) -> Result<Option<(Version, Phase)>, QueueError> {
        let mut get = redis::cmd("HMGET");
        get.arg(keys::task(id)).arg("v").arg("ph");
        let (version, phase): (Option<String>, Option<String>) = self.link.query(&get).await?;
        let (Some(version), Some(phase)) = (version, phase) else { return Ok(None) };
        let corrupt = |e: &dyn ToString| QueueError::corrupt(format!("task {id}"), e.to_string());
        let version = version.parse().map_err(|e| corrupt(&e))?;
        Ok(Some((version, parse_word(&phase).map_err(|e| corrupt(&e))?)))
    }

    /// All tasks that are not deleted, by id.
    pub async fn tasks(&self) -> Result<Vec<Task>, QueueError> {
        let mut list = redis::cmd("SMEMBERS");
        list.arg(keys::TASKS);
        let mut ids: Vec<String> = self.link.query(&list).await?;
        ids.sort_unstable();
        let mut tasks = Vec::with_capacity(ids.len());
        for some in ids.chunks(crate::BATCH) {
            let mut get = redis::pipe();
            let some: Vec<DeploymentId> = some
                .iter()
                .map(|id| id.parse().map_err(|e| QueueError::corrupt("the list of tasks", e)))
                .collect::<Result<_, _>>()?;
            for id in &some {
                get.cmd("HGETALL").arg(keys::task(id));
            }
            let found: Vec<Fields> = self.link.query_all(&get).await?;
            for (id, fields) in some.iter().zip(found) {
                // One that was deleted between the two looks has no document.
                if !fields.contains_key("doc") {
                    continue;
                }
                let corrupt = |e| QueueError::corrupt(format!("task {id}"), e);
                match read_task(id, &fields).map_err(corrupt)? {
                    (task, declared) if task.declared.len() == declared => tasks.push(task),
                    _ => tasks.extend(self.task(id).await?.filter(|t| t.phase != Phase::Deleted)),
                }
            }
        }
        Ok(tasks)
    }

    /// The last status of each resource.
    pub async fn statuses(&self, id: &DeploymentId) -> Result<BTreeMap<Name, Value>, QueueError> {
        let mut get = redis::cmd("HGETALL");
        get.arg(keys::statuses(id));
        let statuses: BTreeMap<String, String> = self.link.query(&get).await?;
        let corrupt =
            |e: &dyn ToString| QueueError::corrupt(format!("statuses of {id}"), e.to_string());
        let read = |(name, status): (String, String)| {
            let name: Name = name.parse().map_err(|e| corrupt(&e))?;
            Ok((name, serde_json::from_str(&status).map_err(|e| corrupt(&e))?))
        };
        statuses.into_iter().map(read).collect()
    }

    /// Notes a resource's status, for as long as the task is there.
    pub async fn set_status(
        &self,
        id: &DeploymentId,
        resource: &Name,
        status: Option<&Value>,
    ) -> Result<(), QueueError> {
        let call = Call::new("status").key(keys::task(id)).key(keys::statuses(id));
        self.link.call(&with_status(call, resource, status)?).await
    }

    /// The sum of what all tasks reserve.
    pub async fn reserved(&self) -> Result<Capacity, QueueError> {
        let mut get = redis::cmd("HMGET");
        get.arg(keys::CAPACITY).arg("cpu").arg("mem").arg("disk");
        let amounts: Vec<Option<String>> = self.link.query(&get).await?;
        let amounts: Vec<String> =
            amounts.into_iter().map(|a| a.unwrap_or_else(|| "0".into())).collect();
        free(&amounts)
            .ok_or_else(|| QueueError::corrupt("what is reserved", format!("{amounts:?}")))
    }
}

pub(crate) fn task_keys(id: &DeploymentId) -> [String; 5] {
    [
        keys::task(id),
        keys::TASKS.into(),
        keys::CAPACITY.into(),
        keys::statuses(id),
        keys::journal(id),
    ]
}

/// Appends a task as the functions read it.
pub(crate) fn with_task(call: Call, task: Option<&Task>) -> Result<Call, QueueError> {
    let Some(task) = task else { return Ok(call.arg("none")) };
    // What it declares stands in its journal.
    let bare = Task { declared: Vec::new(), ..task.clone() };
    Ok(call
        .arg("task")
        .arg(task.deployment.to_string())
        .num(task.version)
        .num(task.phase)
        .num(task.job)
        .num(task.declared.len())
        .args(amounts(task.reserved))
        .num(task.updated_at)
        .arg(to_json(&bare)?))
}

/// Appends a status as the functions read it.
pub(crate) fn with_status(
    call: Call,
    resource: &Name,
    status: Option<&Value>,
) -> Result<Call, QueueError> {
    let call = call.arg(resource.as_str());
    match status {
        Some(status) => Ok(call.arg("1").arg(to_json(status)?)),
        None => Ok(call.arg("0").arg("")),
    }
}

/// An amount that is no longer exact is larger than any node has, and is refused as that.
pub(crate) fn amounts(capacity: Capacity) -> [String; 3] {
    let of = |n: u64| n.min(EXACT).to_string();
    [of(capacity.cpu.millis().into()), of(capacity.memory.0), of(capacity.disk.0)]
}

pub(crate) fn free(amounts: &[String]) -> Option<Capacity> {
    let [cpu, memory, disk] = amounts else { return None };
    Some(Capacity {
        cpu: Cpu::from_millis(cpu.parse().ok()?),
        memory: Bytes(memory.parse().ok()?),
        disk: Bytes(disk.parse().ok()?),
    })
}

/// A task without its declarations, and how many there are.
fn read_task(id: &DeploymentId, fields: &Fields) -> Result<(Task, usize), String> {
    let text = |field: &str| fields.get(field).ok_or_else(|| format!("{field} is missing"));
    let number = |field: &str| -> Result<i64, String> {
        text(field)?.parse().map_err(|e| format!("{field}: {e}"))
    };
    let mut task = match fields.get("doc") {
        Some(document) => serde_json::from_str(document).map_err(|e| e.to_string())?,
        None => {
            let version = text("v")?.parse().map_err(|e| format!("v: {e}"))?;
            let job = text("job")?.parse().map_err(|e| format!("job: {e}"))?;
            Task::new(id.clone(), version, job)
        }
    };
    task.phase = parse_word(text("ph")?).map_err(|e| e.to_string())?;
    task.updated_at = number("at")?;
    let reserved = ["cpu", "mem", "disk"].map(|field| fields.get(field).cloned());
    if let [Some(cpu), Some(memory), Some(disk)] = reserved {
        task.reserved = free(&[cpu, memory, disk]).ok_or("its reservation")?;
    }
    let declared = usize::try_from(number("nd")?).map_err(|e| format!("nd: {e}"))?;
    Ok((task, declared))
}

fn parse_word<T: DeserializeOwned>(word: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(Value::from(word))
}
