//! `volume`: a folder with a size, kept until it is deleted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Kind;
use crate::{Bytes, Capacity, Name};

/// A btrfs subvolume whose size btrfs itself enforces.
pub struct Volume;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// The most that it can hold, for example "10GiB".
    pub size: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeStatus {
    /// The most that it can hold, in bytes.
    pub size: Bytes,
    /// What it holds, in bytes.
    pub used: Bytes,
    /// Whether nothing is in it: what it uses then are its own trees.
    pub empty: bool,
    /// What it held at other times, in the order of their names. What they keep counts as used.
    #[serde(default)]
    pub snapshots: Vec<VolumeSnapshot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeSnapshot {
    pub name: Name,
    /// Unix milliseconds.
    pub taken_at: i64,
}

/// Below this btrfs cannot even keep its own trees.
const MIN_SIZE: Bytes = Bytes::mib(1);

impl Kind for Volume {
    type Spec = VolumeSpec;
    type Status = VolumeStatus;

    const SUMMARY: &'static str = "A folder with a size that machines can mount.";

    const KEEPS_DATA: bool = true;

    fn check(spec: &VolumeSpec) -> Result<(), String> {
        if spec.size < MIN_SIZE {
            return Err(format!("size: at least {MIN_SIZE}, not {}", spec.size));
        }
        Ok(())
    }

    fn demand(spec: &VolumeSpec) -> Capacity {
        Capacity { disk: spec.size, ..Capacity::default() }
    }

    /// It grows in place and shrinks in place, as far down as what it holds: it is never made anew.
    fn fixed(_: &VolumeSpec) -> VolumeSpec {
        VolumeSpec { size: Bytes::default() }
    }

    fn holds_data(status: &VolumeStatus) -> bool {
        !status.empty || !status.snapshots.is_empty()
    }

    fn predict(spec: &VolumeSpec, _: std::net::Ipv6Addr) -> serde_json::Value {
        serde_json::json!({ "size": spec.size })
    }
}
