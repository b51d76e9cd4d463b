//! The vocabulary of Rhizome and the rules that its words obey.
//!
//! Ids, the deployment document, the DSSE envelope, workload kinds with their specs and statuses,
//! jobs, the life of a deployment as a pure step function, capacity arithmetic, events, API types
//! and error codes. Everything here is pure: no I/O, no async, no clock.
//!
//! Must not know: Redis, HTTP, SQL, Rhai, or how a workload is made.

mod address;
pub mod api;
pub mod availability;
mod backoff;
mod capacity;
mod document;
mod drift;
mod dsse;
mod error;
mod event;
mod ids;
mod job;
mod journal;
pub mod kind;
mod operation;
mod phase;
mod plan;
mod quantity;
pub mod registrar;
pub mod secret;
pub mod statement;
mod task;
pub mod uptime;

pub use address::{gateway_address, node_prefix, resource_address};
pub use backoff::{Backoff, RetryPolicy};
pub use capacity::{Capacity, Shortfall};
pub use document::{
    Cosigner, DeleteDocument, DeploymentDocument, Document, MAX_LIFETIME_SECS, OnFailure,
    Placement, Policy, Window, WindowError,
};
pub use drift::{Drift, Drifted, Repair};
pub use dsse::{
    Envelope, EnvelopeError, MAX_ENVELOPE_BYTES, MAX_SIGNATURES, Signature, pae, payload_type,
};
pub use error::{Class, Code, Failure};
pub use event::{Done, Event, What};
pub use ids::{
    AccountId, DeploymentId, FarmId, IdError, JobId, KeyId, Name, NodeId, ResourceId, TraceId,
    Version,
};
pub use job::{
    Action, Ends, IllegalJobEvent, Job, JobEvent, JobState, Outcome, Priority, SCRIPT_QUEUE, Work,
    queue_name,
};
pub use journal::{Effect, Ended, Journal, Step};
pub use kind::WorkloadKind;
pub use operation::OperationDocument;
pub use phase::{IllegalMove, Move, Phase};
pub use plan::{Comparison, Observed, PlanRow, PlanStep};
pub use quantity::{Bytes, Cpu, QuantityError};
pub use task::{Demand, Desired, DesiredResource, Limits, NodeFacts, Task};
