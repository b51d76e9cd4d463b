//! An event as one line.

use jiff::tz::TimeZone;
use rhizome_model::{Done, Drift, Drifted, Event, Failure, Repair, What};
use serde_json::Value;

use super::{clean, clock, duration, value};

/// `time  who  what`.
pub fn line(event: &Event, zone: &TimeZone) -> String {
    let who = event.node.map_or_else(|| "coord".to_owned(), |node| format!("node {node}"));
    format!("{}  {who}  {}", clock(event.at, zone), words(&event.what))
}

/// What happened, without when and where.
pub fn words(what: &What) -> String {
    match what {
        What::Phase { phase, failure: None, .. } => phase.to_string(),
        What::Phase { phase, failure: Some(failure), .. } => {
            format!("{phase}: {}", because(failure))
        }
        What::Declared { resource, kind, line } => {
            format!("{kind} {resource}: declared in line {line}")
        }
        What::Ready { resource, kind, status, done } => {
            format!("{kind} {resource}: {}", ready(*done, status))
        }
        What::ResourceFailed { resource, kind, failure, retry_in_ms } => {
            let again = retry_in_ms
                .map_or_else(String::new, |ms| format!("; tried again in {}", duration(ms)));
            format!("{kind} {resource}: failed: {}{again}", because(failure))
        }
        What::ResourceDeleted { resource, kind } => format!("{kind} {resource}: deleted"),
        What::Log { message } => format!("log: {}", clean(message)),
        What::Output { key, value: said } => format!("output: {} = {}", clean(key), value(said)),
        What::Retrying { what, cause, in_ms } => {
            format!("{}: tried again in {}: {}", clean(what), duration(*in_ms), clean(cause))
        }
        What::Drift { resource, kind, drifted } => format!("{kind} {resource}: {}", drift(drifted)),
    }
}

/// What was found, why if known, and what was done.
fn drift(drifted: &Drifted) -> String {
    let Drifted { drift, action, cause, retry_in_ms } = drifted;
    let found = match drift {
        Drift::Missing => "was gone",
        Drift::Ended => "ended",
        Drift::Lost => "did not run",
        Drift::Hung => "did not answer",
        Drift::Network => "its network was not whole",
        Drift::Mount => "a volume was not mounted",
        Drift::Limit => "was not limited",
        Drift::Spec => "was not as declared",
        Drift::Orphan => "is an orphan",
    };
    let cause = cause.as_deref().map_or_else(String::new, |cause| format!(" ({})", clean(cause)));
    let done = match (action, retry_in_ms) {
        (Repair::Waits, Some(ms)) => format!("is started again in {}", duration(*ms)),
        (Repair::Waits, None) => "is started again".to_owned(),
        (Repair::Made, _) => "made again".to_owned(),
        (Repair::Started, _) => "started again".to_owned(),
        (Repair::Restored, _) => "put right".to_owned(),
        (Repair::Left, _) => "left alone, as its restart policy says".to_owned(),
        (Repair::Removed, _) => "removed".to_owned(),
    };
    format!("{found}{cause}: {done}")
}

/// The failure in one line.
pub fn because(failure: &Failure) -> String {
    let about = failure.resource.as_ref().map_or_else(String::new, |name| format!("{name}: "));
    format!("{about}{} ({})", clean(&failure.message), failure.code)
}

/// What making it took, and where it answers.
pub fn ready(done: Option<Done>, status: &Value) -> String {
    let done = done.map_or_else(String::new, |done| format!(", {}", done.as_str()));
    format!("ready{done}{}", address(status))
}

/// Where a resource answers, of those that have an address.
fn address(status: &Value) -> String {
    match status.get("address") {
        Some(Value::String(address)) => format!(" at {}", clean(address)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use rhizome_model::{Code, NodeId, Phase, Version, WorkloadKind};
    use serde_json::json;

    use super::*;

    #[test]
    fn every_event_has_a_line() {
        let web: rhizome_model::Name = "web".parse().unwrap();
        let kind = WorkloadKind::Machine;
        let failure = Failure::new(Code::ImageNotFound, "no image at file:///x");
        let phase = |phase, failure| What::Phase { phase, failure, outputs: None };
        let what = [
            phase(Phase::Pending, None),
            phase(Phase::Failed, Some(failure.clone().about(web.clone()))),
            What::Declared { resource: web.clone(), kind, line: 3 },
            What::Ready {
                resource: web.clone(),
                kind,
                status: json!({ "address": "5d3::1" }),
                done: Some(Done::Updated),
            },
            What::ResourceFailed {
                resource: web.clone(),
                kind,
                failure: failure.clone(),
                retry_in_ms: Some(1500),
            },
            What::ResourceFailed { resource: web.clone(), kind, failure, retry_in_ms: None },
            What::ResourceDeleted { resource: web.clone(), kind },
            What::Log { message: "hello\u{1b}[31m".into() },
            What::Output { key: "url".into(), value: json!("http://[5d3::1]/") },
            What::Retrying { what: "dispatch".into(), cause: "node away".into(), in_ms: 200 },
            What::Drift {
                resource: web.clone(),
                kind,
                drifted: Drifted {
                    drift: Drift::Ended,
                    action: Repair::Waits,
                    cause: Some("it ended with exit status 3".into()),
                    retry_in_ms: Some(4000),
                },
            },
            What::Drift {
                resource: web,
                kind,
                drifted: Drifted {
                    drift: Drift::Network,
                    action: Repair::Restored,
                    cause: Some("link rz0 is gone".into()),
                    retry_in_ms: None,
                },
            },
        ];
        let lines: Vec<_> = what
            .into_iter()
            .enumerate()
            .map(|(i, what)| {
                let event = Event {
                    at: 1_700_000_000_123,
                    deployment: "1/demo".parse().unwrap(),
                    version: Version(1),
                    node: (i > 0).then_some(NodeId(1)),
                    what,
                };
                line(&event, &TimeZone::UTC)
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
