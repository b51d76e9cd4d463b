//! What a script acts on, and how an evaluation ends.

use std::collections::BTreeMap;

use async_trait::async_trait;
use rhizome_model::{Action, DesiredResource, Failure, Name};
use serde_json::Value;

/// The other side of a script: it makes things so, or only predicts them.
///
/// Calls come one after the other, in program order. `call` counts the effects (`declare`, `act` and
/// `log` together) from 0, so the same script with the same answers gives the same numbers.
#[async_trait]
pub trait Host: Send + Sync {
    /// Once per declaration. Returns at once, with the properties that are known beforehand (a
    /// JSON object). The spec is checked and complete; what it refers to was declared before.
    async fn declare(&self, call: u64, resource: DesiredResource) -> Result<Value, HostError>;

    /// Waits until the resource is there; its status. Asked at most once per resource.
    async fn read(&self, name: &Name) -> Result<Value, HostError>;

    /// Waits until the resource is there, for a property that is known beforehand: its status, or
    /// null where nothing is waited for.
    async fn ready(&self, name: &Name) -> Result<Value, HostError> {
        self.read(name).await
    }

    /// Does something with a declared resource; the action's answer.
    async fn act(&self, call: u64, name: &Name, action: Action) -> Result<Value, HostError>;

    /// What stands for a secret of the deployment: the secret itself, or a token for it.
    async fn secret(&self, name: &str) -> Result<String, HostError>;

    /// The script said something.
    async fn log(&self, call: u64, message: String) -> Result<(), HostError>;

    /// The script set an output.
    async fn output(&self, key: String, value: Value) -> Result<(), HostError>;

    /// After the last statement: waits for every declared resource.
    async fn finish(&self) -> Result<(), HostError>;
}

/// Why the host does not answer.
#[derive(Debug, Clone)]
pub enum HostError {
    /// It failed. The script may catch it.
    Failed(Failure),
    /// The evaluation fails with this, whatever the script would catch.
    Fatal(Failure),
    /// A planner cannot know this value.
    Unknown,
    /// The lease is lost or the job was cancelled: stop at once.
    Aborted,
}

/// What a script that came to its end said and declared.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Evaluation {
    pub outputs: BTreeMap<String, Value>,
    /// In the order of declaration.
    pub resources: Vec<DesiredResource>,
}

/// Why an evaluation did not come to its end.
#[derive(Debug, Clone)]
pub enum Stop {
    /// With `detail`: file, line, column, the line itself and a hint.
    Failed(Failure),
    /// It needs a value that only execution knows.
    Unknown,
    /// The host or the caller wanted it to end.
    Aborted,
}
