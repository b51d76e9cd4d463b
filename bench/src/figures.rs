//! What is measured, how rounds become one figure, and who is better.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::peers::Kind;

/// In the order in which they are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    Submit,
    Drain,
    Both,
    DispatchP50,
    DispatchP99,
    RedisCpu,
    ClientCpu,
    Memory,
    IdleCommands,
    IdleRedisCpu,
    IdleClientCpu,
    Recovery,
    UnseenRecovery,
}

impl Figure {
    pub const ALL: [Self; 13] = [
        Self::Submit,
        Self::Drain,
        Self::Both,
        Self::DispatchP50,
        Self::DispatchP99,
        Self::RedisCpu,
        Self::ClientCpu,
        Self::Memory,
        Self::IdleCommands,
        Self::IdleRedisCpu,
        Self::IdleClientCpu,
        Self::Recovery,
        Self::UnseenRecovery,
    ];

    pub fn key(self) -> &'static str {
        match self {
            Self::Submit => "submit_per_s",
            Self::Drain => "drain_per_s",
            Self::Both => "both_per_s",
            Self::DispatchP50 => "dispatch_p50_us",
            Self::DispatchP99 => "dispatch_p99_us",
            Self::RedisCpu => "redis_us_per_job",
            Self::ClientCpu => "client_us_per_job",
            Self::Memory => "bytes_per_job",
            Self::IdleCommands => "idle_commands_per_s",
            Self::IdleRedisCpu => "idle_redis_ms_per_s",
            Self::IdleClientCpu => "idle_client_ms_per_s",
            Self::Recovery => "recovery_s",
            Self::UnseenRecovery => "unseen_recovery_s",
        }
    }

    pub fn words(self) -> &'static str {
        match self {
            Self::Submit => "submitted/s",
            Self::Drain => "drained/s",
            Self::Both => "both at once/s",
            Self::DispatchP50 => "dispatch p50, µs",
            Self::DispatchP99 => "dispatch p99, µs",
            Self::RedisCpu => "Redis CPU per job, µs",
            Self::ClientCpu => "client CPU per job, µs",
            Self::Memory => "bytes per queued job",
            Self::IdleCommands => "idle: Redis commands/s",
            Self::IdleRedisCpu => "idle: Redis CPU, ms/s",
            Self::IdleClientCpu => "idle: client CPU, ms/s",
            Self::Recovery => "recovery after kill -9, s",
            Self::UnseenRecovery => "same, nobody saw it, s",
        }
    }

    pub fn decimals(self) -> usize {
        match self {
            Self::Submit | Self::Drain | Self::Both | Self::Memory => 0,
            Self::DispatchP50 | Self::DispatchP99 => 0,
            Self::RedisCpu | Self::ClientCpu | Self::IdleCommands => 1,
            Self::IdleRedisCpu | Self::IdleClientCpu => 2,
            Self::Recovery | Self::UnseenRecovery => 3,
        }
    }

    /// With the decimals that are shown.
    pub fn rounded(self, value: f64) -> f64 {
        let unit = 10f64.powi(self.decimals() as i32);
        (value * unit).round() / unit
    }

    fn better(self, ours: f64, theirs: f64) -> bool {
        match self {
            Self::Submit | Self::Drain | Self::Both => ours > theirs,
            _ => ours < theirs,
        }
    }
}

/// Why there is no figure.
#[derive(Debug, Clone, PartialEq)]
pub enum Missing {
    TimedOut(Duration),
    Failed(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut(limit) => write!(f, "not in {} s", limit.as_secs()),
            Self::Failed(_) => write!(f, "failed"),
        }
    }
}

impl From<anyhow::Error> for Missing {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

pub type Measured = Result<f64, Missing>;
/// What was measured of one peer in one round.
pub type Round = BTreeMap<Figure, Measured>;

/// The same of all rounds, as one.
pub fn median(rounds: &[Round]) -> Round {
    let of = |figure: Figure| {
        let all: Vec<&Measured> = rounds.iter().filter_map(|r| r.get(&figure)).collect();
        let mut values: Vec<f64> = all.iter().filter_map(|m| m.as_ref().ok()).copied().collect();
        values.sort_unstable_by(f64::total_cmp);
        let missing = all.iter().find_map(|m| m.as_ref().err());
        match (values.is_empty(), missing) {
            (false, _) => Some((figure, Ok(values[values.len() / 2]))),
            (true, Some(missing)) => Some((figure, Err(missing.clone()))),
            (true, None) => None,
        }
    };
    Figure::ALL.into_iter().filter_map(of).collect()
}

/// How Rhizome compares on one figure.
pub struct Verdict {
    pub figure: Figure,
    pub better_than: Vec<Kind>,
    pub not_better_than: Vec<(Kind, f64)>,
    /// They have no figure to compare with.
    pub unknown: Vec<(Kind, Missing)>,
}

pub fn verdicts(peers: &BTreeMap<Kind, Round>) -> Vec<Verdict> {
    let Some(ours) = peers.get(&Kind::Rhizome) else { return Vec::new() };
    let judge = |(figure, value): (&Figure, &Measured)| {
        let value = *value.as_ref().ok()?;
        let (mut better_than, mut not_better_than) = (Vec::new(), Vec::new());
        let mut unknown = Vec::new();
        for (kind, round) in peers.iter().filter(|(k, _)| **k != Kind::Rhizome) {
            match round.get(figure) {
                Some(Ok(theirs)) if figure.better(value, *theirs) => better_than.push(*kind),
                Some(Ok(theirs)) => not_better_than.push((*kind, *theirs)),
                Some(Err(missing)) => unknown.push((*kind, missing.clone())),
                None => {}
            }
        }
        Some(Verdict { figure: *figure, better_than, not_better_than, unknown })
    };
    ours.iter().filter_map(judge).collect()
}

/// Ours by the best of theirs.
pub fn drain_ratio(peers: &BTreeMap<Kind, Round>) -> Option<(f64, Kind)> {
    let drained = |round: &Round| round.get(&Figure::Drain)?.as_ref().ok().copied();
    let ours = drained(peers.get(&Kind::Rhizome)?)?;
    let theirs = peers.iter().filter(|(k, _)| **k != Kind::Rhizome);
    let (kind, best) = theirs
        .filter_map(|(k, r)| Some((*k, drained(r)?)))
        .max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    Some((ours / best, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(value: Measured) -> Round {
        Round::from([(Figure::Drain, value)])
    }

    #[test]
    fn the_median_is_that_of_the_rounds_that_have_a_figure() {
        let failed = || round(Err(Missing::Failed("it died".into())));
        let rounds = [round(Ok(9.0)), failed(), round(Ok(1.0)), round(Ok(2.0))];
        assert_eq!(median(&rounds)[&Figure::Drain], Ok(2.0));
        assert!(median(&[failed()])[&Figure::Drain].is_err());
    }

    #[test]
    fn more_is_better_for_rates_and_less_for_costs() {
        assert!(Figure::Drain.better(2.0, 1.0));
        assert!(Figure::Memory.better(1.0, 2.0));
        assert!(!Figure::Memory.better(2.0, 2.0));
    }

    #[test]
    fn the_ratio_is_to_the_best_of_the_others() {
        let peers = BTreeMap::from([
            (Kind::Rhizome, round(Ok(8.0))),
            (Kind::BullmqRust, round(Ok(1.0))),
            (Kind::RustySidekiq, round(Ok(2.0))),
        ]);
        assert_eq!(drain_ratio(&peers), Some((4.0, Kind::RustySidekiq)));
    }
}
