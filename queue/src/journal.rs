//! The journal of a script, as redis-server keeps it beside the task: per effect what was begun, and
//! how it ended.

use std::collections::HashMap;

use rhizome_model::{DeploymentId, Ended, Event, Job, Journal, NodeFacts, Outcome, Step, Task};

use crate::events::with_events;
use crate::jobs::with_jobs;
use crate::record::to_json;
use crate::runner::Lease;
use crate::tasks::{amounts, task_keys};
use crate::{Queue, QueueError, keys};

const FACTS: &str = "facts";
const VERSION: &str = "version";
/// In the place of a lease, where there was none.
const NO_LEASE: &str = "-";

/// What goes into a journal in one step, together with what follows from it. At most 128 of each.
#[derive(Debug, Clone, Default)]
pub struct Entries {
    pub facts: Option<NodeFacts>,
    pub steps: Vec<(u64, Step)>,
    /// Effects that end at once, without a job.
    pub results: Vec<(u64, Outcome)>,
    /// Resources among the steps that are declared.
    pub declared: usize,
    pub jobs: Vec<Job>,
    pub events: Vec<Event>,
}

impl Queue {
    /// What the script of the newest version did, as far as it is kept: until it has succeeded, or
    /// the next version comes.
    pub async fn journal(&self, id: &DeploymentId) -> Result<Journal, QueueError> {
        let mut get = redis::cmd("HGETALL");
        get.arg(keys::journal(id));
        let fields: HashMap<String, String> = self.link.query(&get).await?;
        read(&fields).map_err(|e| QueueError::corrupt(format!("the journal of {id}"), e))
    }
}

fn read(fields: &HashMap<String, String>) -> Result<Journal, String> {
    let mut journal = Journal::default();
    for (field, text) in fields {
        let wrong = |e: &dyn ToString| format!("{field}: {}", e.to_string());
        let number = |n: &str| n.parse::<u64>().map_err(|e| wrong(&e));
        if field == FACTS {
            journal.facts = Some(serde_json::from_str(text).map_err(|e| wrong(&e))?);
        } else if field == VERSION {
            // For the functions: a result belongs to the version that asked for it.
        } else if let Some(call) = field.strip_suffix('=') {
            let (by, outcome) = text.split_once('\n').ok_or_else(|| wrong(&"it is cut off"))?;
            let outcome = serde_json::from_str(outcome).map_err(|e| wrong(&e))?;
            let by = (by != NO_LEASE).then(|| by.to_owned());
            journal.results.insert(number(call)?, Ended { by, outcome });
        } else {
            let step = serde_json::from_str(text).map_err(|e| wrong(&e))?;
            journal.steps.insert(number(field)?, step);
        }
    }
    Ok(journal)
}

impl Lease {
    /// Writes what the script does next: the journal, the task's phase, time and reservation, jobs
    /// and events, in one step. Where more is reserved than before it must be free.
    pub async fn journal(&self, task: &Task, entries: &Entries) -> Result<(), QueueError> {
        let mut fields = Vec::new();
        if let Some(facts) = &entries.facts {
            fields.extend([FACTS.to_owned(), to_json(facts)?]);
        }
        for (call, step) in &entries.steps {
            fields.extend([call.to_string(), to_json(step)?]);
        }
        for (call, outcome) in &entries.results {
            let ending = format!("{}\n{}", self.token(), to_json(outcome)?);
            fields.extend([format!("{call}="), ending]);
        }
        self.write_shared("journal", Some(task), |call| {
            let call = call.key(keys::EVENTS).keys(task_keys(&task.deployment));
            let call = call.num(task.version).num(task.job).num(task.phase);
            let call = call.args(amounts(task.reserved)).num(task.updated_at);
            let call = call.num(entries.declared).num(fields.len()).args(&fields);
            with_jobs(with_events(call, &entries.events)?, &entries.jobs)
        })
        .await
    }
}
