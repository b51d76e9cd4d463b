//! The payload that every peer carries.

use serde::{Deserialize, Serialize};

/// As JSON.
pub const BYTES: usize = 300;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Payload {
    pub n: u64,
    padding: String,
}

impl Payload {
    pub fn new(n: u64) -> Self {
        let bare = r#"{"n":,"padding":""}"#.len() + n.to_string().len();
        Self { n, padding: "x".repeat(BYTES - bare) }
    }

    pub fn range(count: usize) -> Vec<Self> {
        (0..count as u64).map(Self::new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_has_the_same_size() {
        for n in [0, 9, 10, 4711, u64::MAX] {
            assert_eq!(serde_json::to_string(&Payload::new(n)).unwrap().len(), BYTES);
        }
    }
}
