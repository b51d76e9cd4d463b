//! What an account uses of a farm. A grant of the farm counts once, over all its nodes together:
//!
//! ```text
//!   sum over the farm's nodes of (reserved there - granted of that node, at least 0)  <=  granted of the farm
//! ```

use std::collections::BTreeMap;
use std::fmt;

use super::Grant;
use crate::{AccountId, Capacity, NodeId};

/// What an account was granted of a farm and of its nodes, and what its deployments reserve there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FarmUse {
    account: AccountId,
    granted: Capacity,
    nodes: BTreeMap<NodeId, OnNode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct OnNode {
    granted: Capacity,
    reserved: Capacity,
}

impl OnNode {
    fn of_farm(self) -> Capacity {
        self.reserved.saturating_sub(self.granted)
    }
}

impl FarmUse {
    /// Of the grants those count that are the account's and in force.
    pub fn new<'a>(
        account: AccountId,
        grants: impl IntoIterator<Item = &'a Grant>,
        reserved: impl IntoIterator<Item = (NodeId, Capacity)>,
        now: i64,
    ) -> Self {
        let mut used = Self { account, granted: Capacity::default(), nodes: BTreeMap::new() };
        for grant in grants.into_iter().filter(|g| g.account == account && g.in_force(now)) {
            let of = match grant.node {
                Some(node) => &mut used.nodes.entry(node).or_default().granted,
                None => &mut used.granted,
            };
            *of = of.saturating_add(grant.capacity);
        }
        for (node, reserved) in reserved {
            used.nodes.entry(node).or_default().reserved = reserved;
        }
        used
    }

    /// The same for a node that the farm does not count as its own: of the whole farm nothing is
    /// granted there.
    #[must_use]
    pub fn of_nodes_only(self) -> Self {
        Self { granted: Capacity::default(), ..self }
    }

    /// What it was granted of the farm as a whole.
    pub const fn granted(&self) -> Capacity {
        self.granted
    }

    /// What its deployments have of that, on all nodes together.
    pub fn used(&self) -> Capacity {
        Capacity::total(self.nodes.values().map(|on| on.of_farm()))
    }

    /// Whether it may reserve `wanted` of a node, all its deployments together. What does not grow
    /// there, and what is granted of the node itself, is not asked about: grants may have ended.
    pub fn admit(&self, node: NodeId, wanted: Capacity) -> Result<(), Box<Exceeded>> {
        let here = self.nodes.get(&node).copied().unwrap_or_default();
        let others = self.nodes.iter().filter(|(n, _)| **n != node);
        let elsewhere = Capacity::total(others.map(|(_, on)| on.of_farm()));
        let more = wanted.where_more_than(here.reserved).saturating_sub(here.granted);
        let left = self.granted.saturating_sub(elsewhere).admit(more);
        let Err(short) = left else { return Ok(()) };
        Err(Box::new(Exceeded {
            account: self.account,
            node,
            wanted,
            of_node: here.granted,
            of_farm: self.granted,
            elsewhere,
            lacks: short.lacks(),
        }))
    }
}

/// More than was granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Exceeded {
    pub account: AccountId,
    pub node: NodeId,
    /// What was asked for of the node.
    pub wanted: Capacity,
    pub of_node: Capacity,
    pub of_farm: Capacity,
    /// What the account's deployments have of `of_farm` on other nodes.
    pub elsewhere: Capacity,
    pub lacks: String,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, node, wanted, of_node, of_farm, elsewhere, lacks } = self;
        write!(f, "account {account} was granted {of_farm} of the whole farm")?;
        if *of_node != Capacity::default() {
            write!(f, " and {of_node} of node {node} besides")?;
        }
        write!(f, ", and its deployments have {elsewhere} of the farm's on other nodes; ")?;
        write!(f, "asked for {wanted} of node {node}; not enough {lacks}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Bytes, Cpu};

    const ACCOUNT: AccountId = AccountId(7);

    fn amounts(cpu: u32, memory: u64, disk: u64) -> Capacity {
        Capacity { cpu: Cpu::from_millis(cpu), memory: Bytes(memory), disk: Bytes(disk) }
    }

    fn each(n: u32) -> Capacity {
        amounts(n, n.into(), n.into())
    }

    fn grant(node: Option<u64>, capacity: Capacity) -> Grant {
        Grant { id: 1, account: ACCOUNT, node: node.map(NodeId), capacity, until: None }
    }

    fn used(grants: &[Grant], reserved: &[(u64, Capacity)]) -> FarmUse {
        FarmUse::new(ACCOUNT, grants, reserved.iter().map(|(n, c)| (NodeId(*n), *c)), 1000)
    }

    #[test]
    fn a_grant_of_the_farm_counts_once_over_its_nodes() {
        let farm = used(&[grant(None, each(10))], &[(1, each(6)), (2, each(1))]);
        assert_eq!((farm.granted(), farm.used()), (each(10), each(7)));
        assert_eq!(farm.admit(NodeId(3), each(3)), Ok(()));
        assert_eq!(
            farm.admit(NodeId(2), each(4)),
            Ok(()),
            "what it has there is not counted twice"
        );
        let more = farm.admit(NodeId(3), amounts(3, 4, 3)).unwrap_err();
        assert_eq!((more.elsewhere, more.lacks.as_str()), (each(7), "memory"));
        let said = more.to_string();
        assert!(said.starts_with("account 7 was granted 0.01 cpu"), "{said}");
        assert!(said.ends_with("of node 3; not enough memory"), "{said}");
    }

    #[test]
    fn what_is_granted_of_a_node_comes_before_what_is_granted_of_the_farm() {
        let grants = [grant(None, each(10)), grant(Some(1), each(5)), grant(Some(2), each(5))];
        let farm = used(&grants, &[(1, each(9)), (2, each(3))]);
        assert_eq!(farm.used(), each(4), "what is left of node 2 is no other node's");
        assert_eq!(farm.admit(NodeId(2), each(11)), Ok(()));
        let refused = farm.admit(NodeId(2), each(12)).unwrap_err();
        assert_eq!(
            (refused.of_node, refused.of_farm, refused.elsewhere),
            (each(5), each(10), each(4))
        );
        assert!(refused.to_string().contains("of node 2 besides"), "{refused}");
        assert_eq!(farm.admit(NodeId(3), each(6)), Ok(()));
        assert!(farm.admit(NodeId(3), each(7)).is_err());
    }

    #[test]
    fn grants_of_others_and_such_as_have_ended_do_not_count() {
        let ended = Grant { until: Some(1000), ..grant(None, each(10)) };
        let other = Grant { account: AccountId(8), ..grant(None, each(10)) };
        let farm = used(&[ended, other], &[(1, each(6)), (2, each(6))]);
        assert_eq!(farm.granted(), each(0));
        assert!(farm.admit(NodeId(3), each(1)).is_err());
        assert!(farm.admit(NodeId(1), each(7)).is_err(), "nothing new");
        for less in [each(6), each(5), each(0), amounts(6, 0, 6)] {
            assert_eq!(farm.admit(NodeId(1), less), Ok(()), "what it has may stay or shrink");
        }
        let swapped = farm.admit(NodeId(1), amounts(0, 7, 0)).unwrap_err();
        assert_eq!(swapped.lacks, "memory", "only what grows is looked at");
    }

    #[test]
    fn what_a_node_has_granted_itself_is_taken_also_when_the_farm_is_used_up() {
        let grants = [grant(None, each(1)), grant(Some(2), each(5))];
        let farm = used(&grants, &[(1, each(9)), (2, each(1))]);
        assert_eq!(farm.admit(NodeId(2), each(5)), Ok(()));
        assert!(farm.admit(NodeId(2), each(6)).is_err());
    }

    #[test]
    fn amounts_without_end_do_not_wrap_around() {
        let most = amounts(u32::MAX, u64::MAX, u64::MAX);
        let farm = used(&[grant(None, most), grant(None, most)], &[(1, most), (2, most)]);
        assert_eq!(farm.used(), most);
        assert!(farm.admit(NodeId(3), each(1)).is_err());
        let farm = used(&[grant(None, most)], &[]);
        assert_eq!(farm.admit(NodeId(3), most), Ok(()));
    }

    fn some() -> impl Strategy<Value = Capacity> {
        (0..8u32, 0..8u64, 0..8u64).prop_map(|(c, m, d)| amounts(c, m, d))
    }

    proptest! {
        /// Whatever nodes ask for, and in whichever order, what was taken never exceeds the grants.
        #[test]
        fn the_sum_never_exceeds_the_grants(
            of_farm in some(),
            of_nodes in proptest::collection::btree_map(1..5u64, some(), 0..4),
            asked in proptest::collection::vec((1..5u64, some()), 0..30),
        ) {
            let mut grants = vec![grant(None, of_farm)];
            grants.extend(of_nodes.iter().map(|(node, c)| grant(Some(*node), *c)));
            let mut reserved = BTreeMap::new();
            for (node, wanted) in asked {
                let now: Vec<_> = reserved.iter().map(|(n, c)| (*n, *c)).collect();
                let fits = {
                    let then = reserved.iter().filter(|(n, _)| **n != node).map(|(n, c)| (*n, *c));
                    let then: Vec<_> = then.chain([(node, wanted)]).collect();
                    of_farm.admit(used(&grants, &then).used()).is_ok()
                };
                let taken = used(&grants, &now).admit(NodeId(node), wanted).is_ok();
                // While no grant ends, the sum alone decides.
                prop_assert_eq!(taken, fits);
                if taken {
                    reserved.insert(node, wanted);
                }
            }
        }
    }
}
