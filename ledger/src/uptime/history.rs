//! What the ledger makes of a report, as a function of what it knew.
//!
//! ```text
//!            up_from ═══════ up_until        at
//!   known       ├────────────────┤           │
//!   report                    ├──────reach───┤   touches: one longer span
//!   report                            ├──────┤   does not: a new span, the old one is closed
//! ```
//!
//! A report vouches for the time since its boot, an hour at most. So what a node has been up is a
//! union of spans: it does not matter in which order reports come, nor how often, and whoever claims
//! more uptime than there was time gains an hour at most. Time that no report vouches for counts as
//! down: that is a gap.

use rhizome_model::uptime::{BootId, BootReport};

/// A report vouches for this much time before it: nodes report every 40 minutes at least.
pub const REACH_SECS: i64 = 3600;
/// Clocks are corrected by some seconds; what differs by more is told.
const SLACK_SECS: i64 = 120;
/// A report may be this far ahead of our clock.
const AHEAD_SECS: i64 = 60;
/// What happened before this is forgotten, and no longer taken.
pub const RETENTION_SECS: i64 = 400 * 24 * 3600;

/// Time during which a node was up, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    pub from: i64,
    pub until: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// v4 clients say none.
    pub id: Option<BootId>,
    pub started: i64,
    /// The highest of its reports.
    pub sequence: i64,
}

/// What a report says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub boot: Option<(BootId, i64)>,
    pub uptime: i64,
    pub at: i64,
}

impl From<BootReport> for Report {
    fn from(report: BootReport) -> Self {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            boot: Some((report.boot_id, number(report.sequence))),
            uptime: number(report.uptime_s),
            at: report.at,
        }
    }
}

impl Report {
    fn started(&self) -> i64 {
        self.at.saturating_sub(self.uptime)
    }

    fn vouches_for(&self) -> Span {
        Span { from: self.started().max(self.at.saturating_sub(REACH_SECS)), until: self.at }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Restart,
    /// The node's clock was set while it ran, or is not ours.
    Skew,
    /// More uptime than time.
    Lie,
}

impl Kind {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Skew => "skew",
            Self::Lie => "lie",
        }
    }
}

/// Something odd that a report told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub at: i64,
    pub kind: Kind,
    pub detail: String,
}

/// What became of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Stored,
    /// It came before.
    Known,
    /// It will never be taken, for this reason.
    Refused(String),
}

/// What is known of a node's uptime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The last span and the last boot; none before the first report.
    pub now: Option<(Span, Boot)>,
    /// Earlier spans, in order, with holes between them.
    pub spans: Vec<Span>,
    /// Earlier boots that have an id.
    pub boots: Vec<Boot>,
    /// New ones.
    pub events: Vec<Event>,
}

impl History {
    /// Whether a report continues what is known last, so that nothing earlier need be looked at.
    pub fn continues(&self, report: &Report) -> bool {
        self.now.as_ref().is_none_or(|(span, boot)| {
            let id = report.boot.as_ref().map(|(id, _)| id);
            report.at >= span.until
                && report.vouches_for().from >= span.from
                && (id.is_none() || id == boot.id.as_ref())
        })
    }

    /// Takes a report. `now` is our clock.
    pub fn take(&mut self, report: &Report, now: i64) -> Verdict {
        if let Some(reason) = self.refusal(report, now) {
            return Verdict::Refused(reason);
        }
        if self.knows(report) {
            return Verdict::Known;
        }
        let Some((span, boot)) = self.now.take() else {
            self.now = Some((report.vouches_for(), first_heard(report)));
            return Verdict::Stored;
        };
        let boot = if report.at < span.until {
            self.late_boot(boot, report)
        } else {
            self.next_boot(span, boot, report)
        };
        self.spans.push(span);
        unite(&mut self.spans, report.vouches_for());
        self.now = self.spans.pop().map(|last| (last, boot));
        Verdict::Stored
    }

    fn refusal(&mut self, report: &Report, now: i64) -> Option<String> {
        if report.at > now.saturating_add(AHEAD_SECS) {
            let ahead = report.at.saturating_sub(now);
            self.tell(now, Kind::Skew, format!("its clock is {ahead} s ahead of the ledger's"));
            return Some(format!("it is {ahead} s ahead of the ledger's clock"));
        }
        if report.at < now.saturating_sub(RETENTION_SECS) {
            return Some("it is older than what the ledger keeps".into());
        }
        if report.started() < 0 {
            self.tell(report.at, Kind::Lie, format!("claims an uptime of {} s", report.uptime));
            return Some("no kernel has been up since before 1970".into());
        }
        None
    }

    /// A boot counts its reports, and a node sends the oldest first.
    fn knows(&self, report: &Report) -> bool {
        let Some((id, sequence)) = &report.boot else { return false };
        let current = self.now.iter().map(|(_, boot)| boot);
        let mut boots = current.chain(&self.boots);
        boots.any(|boot| boot.id.as_ref() == Some(id) && *sequence <= boot.sequence)
    }

    /// The boot that is the last one after this report, and what is odd about it.
    fn next_boot(&mut self, span: Span, boot: Boot, report: &Report) -> Boot {
        let moved = report.started().saturating_sub(boot.started);
        let known_id = boot.id.as_ref();
        let same = match (&report.boot, known_id) {
            (Some((id, _)), Some(known)) => id == known,
            // Without an id the kernel's start must tell.
            _ => moved <= SLACK_SECS,
        };
        if !same {
            if report.started() < span.until - SLACK_SECS {
                let started = report.started();
                let detail = format!(
                    "claims to be up since {started}, but another boot reported at {}",
                    span.until
                );
                self.tell(report.at, Kind::Lie, detail);
            } else {
                let detail = format!("up again since {}", report.started());
                self.tell(report.at, Kind::Restart, detail);
            }
            if boot.id.is_some() {
                self.boots.push(boot);
            }
            return first_heard(report);
        }
        if moved < -SLACK_SECS {
            let detail = format!("{} s more uptime than time has passed", -moved);
            self.tell(report.at, Kind::Lie, detail);
        } else if moved > SLACK_SECS {
            let detail = format!("its clock was set forward by {moved} s");
            self.tell(report.at, Kind::Skew, detail);
        }
        let next = first_heard(report);
        Boot { id: next.id.or(boot.id), sequence: next.sequence.max(boot.sequence), ..next }
    }

    /// The last boot stays what it is after a report from before.
    fn late_boot(&mut self, mut boot: Boot, report: &Report) -> Boot {
        if let Some((id, sequence)) = &report.boot {
            if boot.id.as_ref() == Some(id) {
                boot.sequence = boot.sequence.max(*sequence);
            } else if let Some(known) = self.boots.iter_mut().find(|b| b.id.as_ref() == Some(id)) {
                known.sequence = known.sequence.max(*sequence);
            } else {
                self.boots.push(first_heard(report));
            }
        }
        boot
    }

    fn tell(&mut self, at: i64, kind: Kind, detail: String) {
        self.events.push(Event { at, kind, detail });
    }
}

fn first_heard(report: &Report) -> Boot {
    let (id, sequence) = report.boot.clone().unzip();
    Boot { id, started: report.started(), sequence: sequence.unwrap_or(0) }
}

/// Adds a span; those that touch become one.
fn unite(spans: &mut Vec<Span>, mut new: Span) {
    spans.retain(|span| {
        let apart = span.until < new.from || new.until < span.from;
        if !apart {
            new = Span { from: new.from.min(span.from), until: new.until.max(span.until) };
        }
        apart
    });
    let at = spans.partition_point(|span| span.from < new.from);
    spans.insert(at, new);
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
