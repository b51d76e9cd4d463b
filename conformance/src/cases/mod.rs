//! The cases. Each shows one guarantee, on a node of its own.

mod attempts;
mod cancelling;
mod dependencies;
mod limits;
mod orders;
mod outages;
mod pausing;
mod seeing;
mod submitting;
mod time;
mod turns;

use std::pin::Pin;

use crate::{Bed, Capability};

type Showing = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// One guarantee.
pub struct Case {
    pub name: &'static str,
    /// What it shows.
    pub guarantee: &'static str,
    pub needs: &'static [Capability],
    pub(crate) run: fn(Bed) -> Showing,
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Case> {
    let all: [&'static [Case]; 11] = [
        submitting::CASES,
        turns::CASES,
        limits::CASES,
        time::CASES,
        cancelling::CASES,
        dependencies::CASES,
        orders::CASES,
        pausing::CASES,
        attempts::CASES,
        seeing::CASES,
        outages::CASES,
    ];
    all.into_iter().flatten()
}

/// `name: "guarantee" [what it needs],…` each being a function of that name.
macro_rules! cases {
    ($($name:ident: $guarantee:literal $([$($needs:ident),*])?,)*) => {
        pub(super) const CASES: &[crate::Case] = &[$(crate::Case {
            name: stringify!($name),
            guarantee: $guarantee,
            needs: &[$($(crate::Capability::$needs),*)?],
            run: |bed| Box::pin($name(bed)),
        }),*];
    };
}
use cases;
