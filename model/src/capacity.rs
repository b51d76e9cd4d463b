//! What a node has, what is reserved, what a deployment asks for: one arithmetic for admission,
//! for reports and for enforcement.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, Cpu};

/// Processors, memory and disk.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, utoipa::ToSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    pub cpu: Cpu,
    pub memory: Bytes,
    pub disk: Bytes,
}

impl Capacity {
    pub fn saturating_add(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    pub fn saturating_sub(self, other: Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    pub fn total(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(Self::default(), Self::saturating_add)
    }

    /// Whether `asked` fits into what is free here; what is left afterwards.
    pub fn admit(self, asked: Self) -> Result<Self, Shortfall> {
        let fits = asked.cpu <= self.cpu && asked.memory <= self.memory && asked.disk <= self.disk;
        if fits { Ok(self.saturating_sub(asked)) } else { Err(Shortfall { asked, free: self }) }
    }

    /// Where there is more than `before`, the whole amount; elsewhere nothing.
    pub fn where_more_than(self, before: Self) -> Self {
        self.zip(before, |now, before| if now > before { now } else { 0 })
    }

    fn zip(self, other: Self, op: fn(u64, u64) -> u64) -> Self {
        let cpu = op(self.cpu.millis().into(), other.cpu.millis().into());
        Self {
            cpu: Cpu::from_millis(u32::try_from(cpu).unwrap_or(u32::MAX)),
            memory: Bytes(op(self.memory.0, other.memory.0)),
            disk: Bytes(op(self.disk.0, other.disk.0)),
        }
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cpu, {} memory, {} disk", self.cpu, self.memory, self.disk)
    }
}

/// A demand that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct Shortfall {
    pub asked: Capacity,
    pub free: Capacity,
}

impl Shortfall {
    /// What there is not enough of, in words.
    pub fn lacks(&self) -> String {
        let mut lacks = Vec::new();
        if self.asked.cpu > self.free.cpu {
            lacks.push("cpu");
        }
        if self.asked.memory > self.free.memory {
            lacks.push("memory");
        }
        if self.asked.disk > self.free.disk {
            lacks.push("disk");
        }
        lacks.join(" and ")
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (asked, free, lacks) = (self.asked, self.free, self.lacks());
        write!(f, "asked for {asked}; free are {free}; not enough {lacks}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capacity() -> impl Strategy<Value = Capacity> {
        (0..2000u32, 0..4096u64, 0..4096u64).prop_map(|(cpu, memory, disk)| Capacity {
            cpu: Cpu::from_millis(cpu),
            memory: Bytes(memory),
            disk: Bytes(disk),
        })
    }

    proptest! {
        #[test]
        fn what_is_admitted_and_what_is_left_make_up_the_whole(free in capacity(), asked in capacity()) {
            match free.admit(asked) {
                Ok(left) => prop_assert_eq!(left.saturating_add(asked), free),
                Err(short) => prop_assert!(short.to_string().contains("not enough ")),
            }
        }
    }
}
