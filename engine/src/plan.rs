//! What a script would make, without making it.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use rhizome_model::secret::secret_token;
use rhizome_model::{
    Action, Capacity, Code, DeploymentId, DesiredResource, Failure, Limits, Name, resource_address,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{Context, Host, HostError, Sandboxes, Script, Stop};

/// A script that nothing keeps waiting is at its end long before.
const WALL_MS: u64 = 30_000;

/// What a script would declare and say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// In the order of declaration.
    pub resources: Vec<DesiredResource>,
    /// What they take together.
    pub total: Capacity,
    /// False when the script needs a value that only execution knows: this is what comes before.
    pub complete: bool,
    pub logs: Vec<String>,
    pub outputs: BTreeMap<String, Value>,
}

impl Plan {
    /// The script's source, where there may be more in it than the plan has seen.
    pub fn unseen<'a>(&self, source: &'a str) -> Option<&'a str> {
        (!self.complete).then_some(source)
    }
}

/// Evaluates a script against a host that only predicts. Secrets are placeholders in it.
pub async fn plan(sandboxes: &Sandboxes, script: &Script) -> Result<Plan, Failure> {
    let planner = Planner::new(&script.context);
    let mut script = script.clone();
    script.limits = without_waiting(script.limits);
    let complete = match sandboxes.evaluate(&script, &planner, CancellationToken::new()).await {
        Ok(_) => true,
        Err(Stop::Unknown) => false,
        Err(Stop::Failed(failure)) => return Err(failure),
        Err(Stop::Aborted) => return Err(Failure::new(Code::Cancelled, "the plan was cancelled")),
    };
    let mut plan = planner.plan.into_inner().unwrap_or_else(PoisonError::into_inner);
    plan.complete = complete;
    Ok(plan)
}

/// Limits for a host that never makes a script wait.
pub fn without_waiting(limits: Limits) -> Limits {
    Limits { wall_ms: limits.wall_ms.min(WALL_MS), ..limits }
}

/// The host that predicts.
pub struct Planner {
    node: Ipv6Addr,
    deployment: DeploymentId,
    plan: Mutex<Plan>,
}

impl Planner {
    pub fn new(context: &Context) -> Self {
        Self {
            node: context.node.address,
            deployment: context.deployment.clone(),
            plan: Mutex::default(),
        }
    }

    fn note<T>(&self, note: impl FnOnce(&mut Plan) -> T) -> T {
        note(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Host for Planner {
    async fn declare(&self, _: u64, resource: DesiredResource) -> Result<Value, HostError> {
        let id = self.deployment.resource(resource.name.clone());
        let address = resource_address(self.node, &id);
        let predicted =
            resource.kind.predict(&resource.spec, address).map_err(HostError::Failed)?;
        let demand = resource.demand().map_err(HostError::Failed)?;
        self.note(|plan| {
            plan.total = plan.total.saturating_add(demand);
            plan.resources.push(resource);
        });
        Ok(predicted)
    }

    async fn read(&self, _: &Name) -> Result<Value, HostError> {
        Err(HostError::Unknown)
    }

    async fn ready(&self, _: &Name) -> Result<Value, HostError> {
        Ok(Value::Null)
    }

    async fn act(&self, _: u64, _: &Name, _: Action) -> Result<Value, HostError> {
        Err(HostError::Unknown)
    }

    async fn secret(&self, name: &str) -> Result<String, HostError> {
        // Of the same form as the real token, so that the two can be compared.
        Ok(secret_token(&format!("{}/{name}", self.deployment), ""))
    }

    async fn log(&self, _: u64, message: String) -> Result<(), HostError> {
        self.note(|plan| plan.logs.push(message));
        Ok(())
    }

    async fn output(&self, key: String, value: Value) -> Result<(), HostError> {
        self.note(|plan| plan.outputs.insert(key, value));
        Ok(())
    }

    async fn finish(&self) -> Result<(), HostError> {
        Ok(())
    }
}
