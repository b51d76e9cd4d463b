//! Workload kinds: what a script can declare.
//!
//! A kind is its spec (desired), its status (observed) and a few pure rules. To add one: write its
//! module here, its module in `rhizome-sal`, and its line in [`for_each_kind!`]. The Rhai function,
//! the editor definitions, the JSON schema, `plan`, admission and the queue all come from these.

mod change;
mod herodb;
mod machine;
mod volume;

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use change::{Change, FieldChange, change};
pub use herodb::{Herodb, HerodbSpec, HerodbStatus};
pub use machine::{
    Boot, Disk, Health, Isolation, Machine, MachineSpec, MachineState, MachineStatus, Mount, Ready,
    Restart,
};
pub use volume::{Volume, VolumeSnapshot, VolumeSpec, VolumeStatus};

use crate::{Capacity, Code, Failure, Name, ResourceId, RetryPolicy};

/// The registry. Calls `$callback!` with one `module: Type,` per kind; the module is that of
/// `rhizome-sal`, the name in scripts and the name of the queue.
#[macro_export]
macro_rules! for_each_kind {
    ($callback:path) => {
        $callback! {
            volume: Volume,
            machine: Machine,
            herodb: Herodb,
        }
    };
}

/// One kind of workload.
pub trait Kind: Send + Sync + 'static {
    /// What a script says; unknown fields are refused.
    type Spec: Serialize + DeserializeOwned + JsonSchema + Clone + PartialEq + Send + Sync + 'static;
    /// What a handle's properties are.
    type Status: Serialize + DeserializeOwned + JsonSchema + Clone + Send + Sync + 'static;

    /// One sentence for editors and tables.
    const SUMMARY: &'static str;

    /// How often an operation on it is tried whose cause of failure may pass.
    const RETRY: RetryPolicy = RetryPolicy::USUAL;

    /// Whether resources of the kind can hold data that nobody could make again.
    const KEEPS_DATA: bool = false;

    /// Properties that are known beforehand and mean nothing before the resource is there: who reads
    /// them waits for it.
    const AFTER_READY: &'static [&'static str] = &[];

    /// Rules that the types cannot say. The error names the field. Secrets are tokens, or opened.
    fn check(_spec: &Self::Spec) -> Result<(), String> {
        Ok(())
    }

    /// Rules for a spec whose secrets are tokens still: what must not be written in clear.
    fn check_written(_spec: &Self::Spec) -> Result<(), String> {
        Ok(())
    }

    /// The spec with what follows from whose it is.
    fn complete(spec: Self::Spec, _id: &ResourceId) -> Self::Spec {
        spec
    }

    /// What it takes from the node: reserved, reported and enforced.
    fn demand(spec: &Self::Spec) -> Capacity;

    /// The spec with all that can change in place at one and the same value: what the resource is
    /// made for. Where two specs differ in it, the resource is made anew.
    fn fixed(spec: &Self::Spec) -> Self::Spec;

    /// Whether a resource in this state does hold such data.
    fn holds_data(_status: &Self::Status) -> bool {
        false
    }

    /// Whether a change in place leaves less room for what the resource holds.
    fn shrinks(_old: &Self::Spec, _new: &Self::Spec) -> bool {
        false
    }

    /// Why what a resource in this state holds does not fit into a spec that shrinks it, and what
    /// to do about it.
    fn fits(_old: &Self::Spec, _new: &Self::Spec, _status: &Self::Status) -> Result<(), String> {
        Ok(())
    }

    /// The resources of the same deployment that must be there before, with the field that says so.
    fn references(_spec: &Self::Spec) -> Vec<Reference> {
        Vec::new()
    }

    /// What is known of the status before the resource exists, from a complete spec. Secrets in it
    /// are tokens: it goes before what the resource itself says, which has none.
    fn predict(_spec: &Self::Spec, _address: Ipv6Addr) -> Value {
        Value::Object(serde_json::Map::new())
    }
}

/// That a spec needs another resource of its deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub field: String,
    pub kind: WorkloadKind,
    pub name: Name,
}

/// A kind with its types erased: what the engine, the planner and the queue work with.
struct Vtable {
    name: &'static str,
    summary: &'static str,
    retry: RetryPolicy,
    spec_schema: fn() -> Schema,
    status_schema: fn() -> Schema,
    parse: fn(Value) -> Result<Value, String>,
    complete: fn(&Value, &ResourceId) -> Result<Value, String>,
    after_ready: &'static [&'static str],
    demand: fn(&Value) -> Result<Capacity, String>,
    references: fn(&Value) -> Result<Vec<Reference>, String>,
    predict: fn(&Value, Ipv6Addr) -> Result<Value, String>,
    change: fn(&Value, &Value) -> Result<Change, String>,
    keeps_data: bool,
    holds_data: fn(&Value) -> Result<bool, String>,
    shrinks: fn(&Value, &Value) -> Result<bool, String>,
    fits: fn(&Value, &Value, &Value) -> Result<Fits, String>,
}

/// What [`Kind::fits`] says.
type Fits = Result<(), String>;

const fn vtable<K: Kind>(name: &'static str) -> Vtable {
    Vtable {
        name,
        summary: K::SUMMARY,
        retry: K::RETRY,
        spec_schema: || schemars::schema_for!(K::Spec),
        status_schema: || schemars::schema_for!(K::Status),
        parse: |value| {
            let spec = read::<K>(&value)?;
            K::check_written(&spec)?;
            K::check(&spec)?;
            serde_json::to_value(spec).map_err(|e| e.to_string())
        },
        complete: |value, id| {
            let spec = K::complete(read::<K>(value)?, id);
            serde_json::to_value(spec).map_err(|e| e.to_string())
        },
        after_ready: K::AFTER_READY,
        demand: |value| Ok(K::demand(&read::<K>(value)?)),
        references: |value| Ok(K::references(&read::<K>(value)?)),
        predict: |value, address| Ok(K::predict(&read::<K>(value)?, address)),
        change: |old, new| Ok(change::<K>(&read::<K>(old)?, &read::<K>(new)?)),
        keeps_data: K::KEEPS_DATA,
        holds_data: |status| Ok(K::holds_data(&read_status::<K>(status)?)),
        shrinks: |old, new| Ok(K::shrinks(&read::<K>(old)?, &read::<K>(new)?)),
        fits: |old, new, status| {
            Ok(K::fits(&read::<K>(old)?, &read::<K>(new)?, &read_status::<K>(status)?))
        },
    }
}

fn read<K: Kind>(value: &Value) -> Result<K::Spec, String> {
    K::Spec::deserialize(value).map_err(|e| e.to_string())
}

fn read_status<K: Kind>(value: &Value) -> Result<K::Status, String> {
    K::Status::deserialize(value).map_err(|e| e.to_string())
}

macro_rules! registry {
    ($($module:ident: $kind:ident,)*) => {
        /// The name of a kind; also the name of its function in scripts and of its queue.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum WorkloadKind { $($kind,)* }

        impl WorkloadKind {
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            fn vtable(self) -> &'static Vtable {
                match self {
                    $(Self::$kind => {
                        static TABLE: Vtable = vtable::<$kind>(stringify!($module));
                        &TABLE
                    })*
                }
            }
        }
    };
}
for_each_kind!(registry);

impl WorkloadKind {
    pub fn as_str(self) -> &'static str {
        self.vtable().name
    }

    pub fn summary(self) -> &'static str {
        self.vtable().summary
    }

    /// How its operations are tried again.
    pub fn retry(self) -> RetryPolicy {
        self.vtable().retry
    }

    /// JSON Schema (2020-12) of the spec.
    pub fn spec_schema(self) -> Schema {
        (self.vtable().spec_schema)()
    }

    /// JSON Schema (2020-12) of the status.
    pub fn status_schema(self) -> Schema {
        (self.vtable().status_schema)()
    }

    /// Checks a spec and writes it out with every default, so that equal intents are equal values.
    pub fn parse_spec(self, value: Value) -> Result<Value, Failure> {
        (self.vtable().parse)(value).map_err(|e| self.invalid(&e))
    }

    /// A checked spec with what follows from whose it is.
    pub fn complete(self, spec: &Value, id: &ResourceId) -> Result<Value, Failure> {
        (self.vtable().complete)(spec, id).map_err(|e| self.invalid(&e))
    }

    /// Whether who reads a property waits for the resource, though it is known beforehand.
    pub fn waits_for(self, property: &str) -> bool {
        self.vtable().after_ready.contains(&property)
    }

    /// What a checked spec takes from the node.
    pub fn demand(self, spec: &Value) -> Result<Capacity, Failure> {
        (self.vtable().demand)(spec).map_err(|e| self.invalid(&e))
    }

    /// What a checked spec refers to.
    pub fn references(self, spec: &Value) -> Result<Vec<Reference>, Failure> {
        (self.vtable().references)(spec).map_err(|e| self.invalid(&e))
    }

    /// What of the status is known beforehand.
    pub fn predict(self, spec: &Value, address: Ipv6Addr) -> Result<Value, Failure> {
        (self.vtable().predict)(spec, address).map_err(|e| self.invalid(&e))
    }

    /// What a resource with a checked spec goes through to be as another one says.
    pub fn change(self, old: &Value, new: &Value) -> Result<Change, Failure> {
        (self.vtable().change)(old, new).map_err(|e| self.invalid(&e))
    }

    /// Whether its resources can hold data that nobody could make again.
    pub fn keeps_data(self) -> bool {
        self.vtable().keeps_data
    }

    /// Whether a resource in this state does.
    pub fn holds_data(self, status: &Value) -> Result<bool, Failure> {
        (self.vtable().holds_data)(status).map_err(|e| self.invalid(&e))
    }

    /// Whether a change in place leaves less room for what a resource holds.
    pub fn shrinks(self, old: &Value, new: &Value) -> Result<bool, Failure> {
        (self.vtable().shrinks)(old, new).map_err(|e| self.invalid(&e))
    }

    /// Refuses a spec that shrinks a resource below what it holds in this state.
    pub fn fits(self, old: &Value, new: &Value, status: &Value) -> Result<(), Failure> {
        let fits = (self.vtable().fits)(old, new, status).map_err(|e| self.invalid(&e))?;
        fits.map_err(|why| Failure::new(Code::BelowUse, why))
    }

    fn invalid(self, error: &str) -> Failure {
        Failure::new(Code::InvalidSpec, format!("{self}: {error}"))
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no workload kind '{0}'")]
pub struct UnknownKind(String);

impl FromStr for WorkloadKind {
    type Err = UnknownKind;
    fn from_str(s: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .iter()
            .copied()
            .find(|k| k.as_str() == s)
            .ok_or_else(|| UnknownKind(s.chars().take(40).collect()))
    }
}

impl Serialize for WorkloadKind {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for WorkloadKind {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for WorkloadKind {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .enum_values(Some(Self::ALL.iter().map(|k| k.as_str())))
            .into()
    }
}
impl utoipa::ToSchema for WorkloadKind {}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_describes_itself() {
        for kind in WorkloadKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
            insta::assert_json_snapshot!(format!("{kind}_spec"), kind.spec_schema());
        }
    }

    #[test]
    fn specs_are_checked_and_completed() {
        let spec = WorkloadKind::Volume.parse_spec(json!({ "size": "1GiB" })).unwrap();
        assert_eq!(spec, json!({ "size": 1u64 << 30 }));
        for (kind, wrong, says) in [
            (
                WorkloadKind::Volume,
                json!({ "size": "1GiB", "colour": 1 }),
                "unknown field `colour`",
            ),
            (WorkloadKind::Volume, json!({}), "missing field `size`"),
            (WorkloadKind::Volume, json!({ "size": 0 }), "size"),
            (WorkloadKind::Machine, json!({ "image": "ftp://x" }), "image"),
            (WorkloadKind::Machine, json!({ "image": "file:///x", "memory": "1KiB" }), "memory"),
            (
                WorkloadKind::Machine,
                json!({ "image": "file:///x", "mounts": [{ "volume": "a", "path": "/../etc" }] }),
                "mounts[0].path",
            ),
        ] {
            let failure = kind.parse_spec(wrong).unwrap_err();
            assert_eq!(failure.code, Code::InvalidSpec);
            assert!(failure.message.contains(says), "{}", failure.message);
        }
    }
}
