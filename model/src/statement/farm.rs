//! Who may use the nodes of a farm, and how much.

use serde::{Deserialize, Serialize};

use crate::{AccountId, Capacity, FarmId, KeyId, NodeId};

/// The number of a grant.
pub type GrantId = u64;

/// Grants that a farm may have in force at a time: they all stand in its statement.
pub const MAX_GRANTS: usize = 1000;

/// Whom a farm is open to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FarmAccess {
    /// Every account may deploy.
    #[default]
    Open,
    /// Only the owner, and who has a grant.
    Closed,
}

/// A farm as its nodes need to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = StatementFarm)]
pub struct Farm {
    pub id: FarmId,
    pub owner: AccountId,
    pub access: FarmAccess,
    /// Coordinators that may follow its nodes.
    pub coordinators: Vec<KeyId>,
    /// Those that were not taken back.
    pub grants: Vec<Grant>,
}

/// An account may use so much, until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Grant {
    pub id: GrantId,
    pub account: AccountId,
    /// Of this node; without one, of the farm: of all its nodes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    pub capacity: Capacity,
    /// Unix seconds; without one, until it is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
}

impl Grant {
    pub fn counts(&self, node: NodeId, account: AccountId, now: i64) -> bool {
        self.account == account && self.node.is_none_or(|n| n == node) && self.in_force(now)
    }

    pub fn in_force(&self, now: i64) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// What an account may use of a node, all its deployments together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// Whatever is free.
    All,
    UpTo {
        /// Of this node.
        node: Capacity,
        /// Of all nodes of the farm together, beyond what was granted of each.
        farm: Capacity,
    },
    /// The farm is closed to it.
    Nothing,
}

impl Farm {
    /// In an open farm grants change nothing: they give, they never take away.
    pub fn allowance(&self, node: NodeId, account: AccountId, now: i64) -> Allowance {
        if self.access == FarmAccess::Open || self.owner == account {
            return Allowance::All;
        }
        let mut grants = self.grants.iter().filter(|g| g.counts(node, account, now)).peekable();
        if grants.peek().is_none() {
            return Allowance::Nothing;
        }
        let (of_node, of_farm): (Vec<_>, Vec<_>) = grants.partition(|g| g.node.is_some());
        let total = |grants: Vec<&Grant>| Capacity::total(grants.into_iter().map(|g| g.capacity));
        Allowance::UpTo { node: total(of_node), farm: total(of_farm) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, Cpu};

    fn capacity(n: u32) -> Capacity {
        Capacity { cpu: Cpu::from_millis(n), memory: Bytes(n.into()), disk: Bytes(n.into()) }
    }

    fn grant(id: u64, account: u64, node: Option<u64>, until: Option<i64>) -> Grant {
        let capacity = capacity(10u32.pow(u32::try_from(id).unwrap()));
        Grant { id, account: AccountId(account), node: node.map(NodeId), capacity, until }
    }

    fn farm(access: FarmAccess) -> Farm {
        Farm {
            id: FarmId(1),
            owner: AccountId(1),
            access,
            coordinators: vec![],
            grants: vec![
                grant(0, 2, None, None),
                grant(1, 2, Some(5), None),
                grant(2, 2, None, Some(1000)),
                grant(3, 3, Some(6), None),
            ],
        }
    }

    #[test]
    fn an_open_farm_is_open_to_all() {
        let farm = farm(FarmAccess::Open);
        for account in 1..5 {
            assert_eq!(farm.allowance(NodeId(5), AccountId(account), 0), Allowance::All);
        }
    }

    #[test]
    fn a_closed_farm_is_open_to_its_owner_and_to_whom_it_was_granted() {
        let farm = farm(FarmAccess::Closed);
        let allowance = |node, account, now| farm.allowance(NodeId(node), AccountId(account), now);
        assert_eq!(allowance(5, 1, 0), Allowance::All);
        let up_to = |node, farm| Allowance::UpTo { node: capacity(node), farm: capacity(farm) };
        assert_eq!(allowance(5, 2, 999), up_to(10, 101));
        assert_eq!(allowance(5, 2, 1000), up_to(10, 1), "one has ended");
        assert_eq!(allowance(6, 2, 1000), up_to(0, 1), "one is for node 5");
        assert_eq!(allowance(5, 3, 0), Allowance::Nothing, "it is for node 6");
        assert_eq!(allowance(5, 4, 0), Allowance::Nothing);
    }
}
