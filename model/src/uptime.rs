//! What a node says about how long it has been up, and what the ledger answers.
//!
//! ```text
//!   POST /v2/nodes/{id}/uptime   UptimeBatch ─▶ UptimeReply   signed by the node's key (RFC 9421)
//! ```
//!
//! A report is made once and keeps its boot id and its sequence for ever, so sending it again is
//! harmless. What could not be sent is kept and sent later, oldest first. A report that the ledger
//! refuses is named in the reply: the node drops it, and the others of its batch count.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Reports in one request: ten days' worth, and far below the limit of a body.
pub const MAX_UPTIME_BATCH: usize = 1000;

/// The kernel's name of one boot: a UUID as /proc/sys/kernel/random/boot_id has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(String);

impl BootId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BootId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = text.len() == 36
            && text.bytes().enumerate().all(|(at, b)| match at {
                8 | 13 | 18 | 23 => b == b'-',
                _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
            });
        if form { Ok(Self(text.to_owned())) } else { Err("a boot id is a lower-case UUID") }
    }
}

impl TryFrom<String> for BootId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BootId> for String {
    fn from(id: BootId) -> Self {
        id.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One report: at `at`, the kernel of this boot had run for `uptime_s`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootReport {
    #[schema(value_type = String)]
    pub boot_id: BootId,
    /// Counts the reports of this boot, from 1. A number that is missing was lost: the node's spool
    /// is bounded.
    #[schema(minimum = 1)]
    pub sequence: u64,
    /// Seconds since the kernel started.
    pub uptime_s: u64,
    /// Unix seconds by the node's clock, when the report was made.
    pub at: i64,
}

/// Reports of one node, oldest first, at most [`MAX_UPTIME_BATCH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UptimeBatch {
    #[schema(min_items = 1, max_items = 1000)]
    pub reports: Vec<BootReport>,
}

/// What became of a batch. Every report that it does not list as refused is stored, now or before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UptimeReply {
    /// How many were new.
    pub stored: u64,
    /// How many were known already.
    pub known: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedReport>,
    /// The highest sequence that the ledger has of the boot of the batch's last report: a node that
    /// lost its count goes on behind it.
    pub highest: u64,
}

/// A report that will never be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RefusedReport {
    #[schema(value_type = String)]
    pub boot_id: BootId,
    pub sequence: u64,
    /// Why, in one sentence.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_a_lower_case_uuid() {
        let good = "0c7a1f3e-58f4-4d0e-9d6c-b1a2c3d4e5f6";
        assert_eq!(good.parse::<BootId>().unwrap().to_string(), good);
        for bad in
            ["", &good.to_uppercase(), &good[..35], &good.replace('-', "0"), &format!("{good}\n")]
        {
            assert!(bad.parse::<BootId>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<BootId>(bad.into()).is_err());
        }
    }
}
