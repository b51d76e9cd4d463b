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
    /// The size of the disk in it that a virtual machine has, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeSnapshot {
    pub name: Name,
    /// Unix milliseconds.
    pub taken_at: i64,
}

/// Below this btrfs cannot even keep its own trees.
const MIN_SIZE: Bytes = Bytes::mib(1);

/// What a volume keeps beside its disk for btrfs's own trees: a part, and at least so much.
const BESIDE_DISK: (u64, Bytes) = (32, Bytes::mib(4));
const STEP: u64 = 1 << 20;

impl Volume {
    /// The least that a volume must have more than, to have room for a disk.
    pub const LEAST_BESIDE_DISK: Bytes = BESIDE_DISK.1;

    /// How large the disk of a virtual machine in it is: whole MiB.
    pub fn disk_in(size: Bytes) -> Bytes {
        let (part, least) = BESIDE_DISK;
        let room = size.0.saturating_sub((size.0 / part).max(least.0));
        Bytes(room / STEP * STEP)
    }
}

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

    fn shrinks(old: &VolumeSpec, new: &VolumeSpec) -> bool {
        new.size < old.size
    }

    fn fits(_: &VolumeSpec, new: &VolumeSpec, status: &VolumeStatus) -> Result<(), String> {
        let size = new.size;
        if let Some(disk) = status.disk.filter(|disk| *disk > Self::disk_in(size)) {
            return Err(format!(
                "the volume is a disk of {disk}, which cannot shrink to a volume of {size}: declare another one"
            ));
        }
        if status.used > size {
            return Err(format!(
                "the volume holds {} with its snapshots and cannot shrink to {size}: remove files or snapshots first",
                status.used
            ));
        }
        Ok(())
    }

    fn predict(spec: &VolumeSpec, _: std::net::Ipv6Addr) -> serde_json::Value {
        serde_json::json!({ "size": spec.size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_leaves_the_volume_room_for_its_trees() {
        assert_eq!(Volume::disk_in(Bytes::mib(4)), Bytes(0));
        assert_eq!(Volume::disk_in(Bytes::mib(64)), Bytes::mib(60));
        assert_eq!(Volume::disk_in(Bytes::gib(10)), Bytes::mib(9920));
    }

    #[test]
    fn it_shrinks_as_far_down_as_what_it_holds() {
        let spec = |mib| VolumeSpec { size: Bytes::mib(mib) };
        let holds = |mib, disk: Option<u64>| VolumeStatus {
            size: Bytes::mib(64),
            used: Bytes::mib(mib),
            empty: false,
            snapshots: Vec::new(),
            disk: disk.map(Bytes::mib),
        };
        assert!(Volume::shrinks(&spec(64), &spec(63)) && !Volume::shrinks(&spec(64), &spec(64)));
        assert_eq!(Volume::fits(&spec(64), &spec(8), &holds(8, None)), Ok(()));
        let refused = Volume::fits(&spec(64), &spec(8), &holds(9, None)).unwrap_err();
        assert!(refused.contains("9.0 MiB") && refused.contains("8.0 MiB"), "{refused}");
        let refused = Volume::fits(&spec(64), &spec(32), &holds(1, Some(60))).unwrap_err();
        assert!(refused.contains("a disk of 60.0 MiB"), "{refused}");
    }
}
