//! One action on one resource, signed: what is done now, beside what shall be.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::kind::Change;
use crate::{AccountId, Action, Code, Failure, Name, NodeId, Version, WorkloadKind};

/// Something that is done with a resource of one node, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationDocument {
    pub account: AccountId,
    pub name: Name,
    /// The version that the signer knows; another one is left alone.
    pub version: Version,
    /// The node that has the resource.
    pub node: NodeId,
    pub resource: Name,
    pub action: Action,
    pub network: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<i64>,
    pub expires: i64,
    pub nonce: String,
}

impl OperationDocument {
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.action {
            Action::Exec { command } if command.is_empty() => {
                Err("action.command: a program and its arguments".into())
            }
            Action::Resize { to } if to.is_empty() => {
                Err("action.to: say which field gets which size".into())
            }
            Action::Wait | Action::Logs { .. } => {
                Err("action: what only looks is asked for, not signed".into())
            }
            Action::Start
            | Action::Stop
            | Action::Restart
            | Action::Exec { .. }
            | Action::Snapshot { .. }
            | Action::Restore { .. }
            | Action::DropSnapshot { .. }
            | Action::Resize { .. } => Ok(()),
        }
    }
}

impl Action {
    /// What it is called.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Exec { .. } => "exec",
            Self::Wait => "wait",
            Self::Logs { .. } => "logs",
            Self::Snapshot { .. } => "snapshot",
            Self::Restore { .. } => "restore",
            Self::DropSnapshot { .. } => "drop_snapshot",
            Self::Resize { .. } => "resize",
        }
    }

    /// Whether the resource is not as it was after this.
    pub fn changes_status(&self) -> bool {
        match self {
            Self::Start
            | Self::Stop
            | Self::Restart
            | Self::Wait
            | Self::Snapshot { .. }
            | Self::Restore { .. }
            | Self::DropSnapshot { .. }
            | Self::Resize { .. } => true,
            Self::Exec { .. } | Self::Logs { .. } => false,
        }
    }

    /// Whether doing it again after an attempt that broke off comes to the same as doing it once.
    pub fn may_repeat(&self) -> bool {
        match self {
            Self::Exec { .. } => false,
            Self::Start
            | Self::Stop
            | Self::Restart
            | Self::Wait
            | Self::Logs { .. }
            | Self::Snapshot { .. }
            | Self::Restore { .. }
            | Self::DropSnapshot { .. }
            | Self::Resize { .. } => true,
        }
    }
}

impl WorkloadKind {
    /// A checked spec with some fields at other values, all of which can change in place.
    pub fn resized(self, spec: &Value, to: &Map<String, Value>) -> Result<Value, Failure> {
        let mut wanted = spec.clone();
        for (field, value) in to {
            wanted[field] = value.clone();
        }
        let wanted = self.parse_spec(wanted)?;
        match self.change(spec, &wanted)? {
            Change::None | Change::Update(_) => Ok(wanted),
            Change::Replace { reason, .. } => Err(Failure::new(
                Code::InvalidSpec,
                format!("{self}: {reason}: deploy a version that says so"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Document, payload_type};

    fn operation(action: Value) -> Result<Document, String> {
        let document = json!({
            "account": 1, "name": "demo", "version": 1, "node": 1, "resource": "data",
            "action": action, "network": "dev", "expires": 2_000_000_000,
            "nonce": "0123456789abcdef",
        });
        let bytes = document.to_string();
        Document::from_payload(payload_type::OPERATION, bytes.as_bytes()).unwrap()
    }

    #[test]
    fn what_can_be_signed() {
        for action in [
            json!({ "action": "start" }),
            json!({ "action": "exec", "command": ["/bin/true"] }),
            json!({ "action": "snapshot", "name": "monday" }),
            json!({ "action": "restore", "name": "monday" }),
            json!({ "action": "drop_snapshot", "name": "monday" }),
            json!({ "action": "resize", "to": { "size": "1GiB" } }),
        ] {
            let document = operation(action.clone()).unwrap();
            assert_eq!(document.deployment_id().to_string(), "1/demo", "{action}");
            assert_eq!(document.payload_type(), payload_type::OPERATION);
        }
        for (action, says) in [
            (json!({ "action": "wait" }), "only looks"),
            (json!({ "action": "logs", "tail": 1, "follow": false }), "only looks"),
            (json!({ "action": "exec", "command": [] }), "action.command"),
            (json!({ "action": "resize", "to": {} }), "action.to"),
            (json!({ "action": "snapshot", "name": "../x" }), "is not a name"),
            (json!({ "action": "snapshot", "name": "a", "more": 1 }), "unknown field"),
            (json!({ "action": "explode" }), "unknown variant"),
        ] {
            let error = operation(action.clone()).unwrap_err();
            assert!(error.contains(says), "{action}: {error}");
        }
    }

    #[test]
    fn only_what_changes_in_place_is_resized() {
        let volume = |size: &str| WorkloadKind::Volume.parse_spec(json!({ "size": size })).unwrap();
        let to = |value: Value| value.as_object().cloned().unwrap_or_default();
        let grown = WorkloadKind::Volume.resized(&volume("1GiB"), &to(json!({ "size": "2GiB" })));
        assert_eq!(grown, Ok(volume("2GiB")));
        let machine = WorkloadKind::Machine.parse_spec(json!({ "image": "file:///a" })).unwrap();
        let more = WorkloadKind::Machine.resized(&machine, &to(json!({ "cpu": 2 }))).unwrap();
        assert_eq!(more["image"], machine["image"]);
        for wrong in [json!({ "image": "file:///b" }), json!({ "cpu": 0 }), json!({ "sise": 1 })] {
            let failure = WorkloadKind::Machine.resized(&machine, &to(wrong.clone())).unwrap_err();
            assert_eq!(failure.code, Code::InvalidSpec, "{wrong}");
        }
    }
}
