//! Why a guest ended, from what its hypervisor wrote about it.
//!
//! Cloud Hypervisor writes objects over several lines (its event monitor), QEMU one object per line
//! (what its QMP socket says). Both are streams of JSON values.
//!
//! Cloud Hypervisor writes from a thread of its own, and may be gone before its last event is written:
//! a guest that powers off can be one of which nothing is told, but its hypervisor's status is 0.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::EVENTS;

/// More is not read; a guest can make its hypervisor write.
const MAX_READ: u64 = 1 << 20;
/// What grows over this is begun anew.
const MAX_KEPT: u64 = 256 << 10;

/// Why a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// In order. Cloud Hypervisor says so, too, when it was told to end.
    PoweredOff,
    /// It asked for a reset, as a kernel does after a panic.
    Reset,
    /// It said that it panics.
    Panicked,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PoweredOff => "the guest powered off",
            Self::Reset => "the guest reset itself",
            Self::Panicked => "the guest's kernel panicked",
        })
    }
}

/// Cloud Hypervisor's source and event, or QEMU's event with its data.
#[derive(Deserialize)]
struct Event {
    source: Option<String>,
    event: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    reason: Option<String>,
}

/// Why the guest of a folder ended, where its hypervisor has said so.
pub fn ended(dir: &Path) -> Option<Ended> {
    let mut text = String::new();
    // What is cut in the middle of a letter is still read up to there.
    let _ = File::open(dir.join(EVENTS)).ok()?.take(MAX_READ).read_to_string(&mut text);
    told(&text)
}

fn told(text: &str) -> Option<Ended> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut ended = None;
    for value in values.map_while(Result::ok) {
        let Ok(event) = serde_json::from_value::<Event>(value) else { continue };
        let reason = event.data.and_then(|data| data.reason);
        match (event.source.as_deref(), event.event.as_deref(), reason.as_deref()) {
            (Some("guest"), Some("panic"), _)
            | (None, Some("GUEST_PANICKED"), _)
            | (None, Some("SHUTDOWN"), Some("guest-panic")) => return Some(Ended::Panicked),
            (None, Some("SHUTDOWN"), Some("guest-reset")) => ended = Some(Ended::Reset),
            (None, Some("SHUTDOWN"), Some("guest-shutdown"))
            | (Some("vm" | "vmm"), Some("shutdown"), _) => {
                ended = ended.or(Some(Ended::PoweredOff));
            }
            (Some("vm"), Some("rebooted" | "booted"), _) => ended = None,
            _ => {}
        }
    }
    ended
}

/// Keeps the events of a guest that never ends from filling the disk.
pub(super) fn trim(dir: &Path) {
    let path = dir.join(EVENTS);
    if path.metadata().is_ok_and(|meta| meta.len() > MAX_KEPT) {
        // The hypervisor appends: what it writes next is at the new end.
        let _ = File::options().write(true).truncate(true).open(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chv(source: &str, event: &str) -> String {
        format!(
            "{{\n  \"timestamp\": {{\n    \"secs\": 0,\n    \"nanos\": 1\n  }},\n  \"source\": \"{source}\",\n  \"event\": \"{event}\",\n  \"properties\": null\n}}\n\n"
        )
    }

    #[test]
    fn cloud_hypervisor_tells_over_many_lines() {
        let begin = [chv("vmm", "starting"), chv("vm", "booting"), chv("vm", "booted")].concat();
        assert_eq!(told(&begin), None);
        let off = begin.clone() + &chv("vm", "shutdown") + &chv("vm", "deleted");
        assert_eq!(told(&(off.clone() + &chv("vmm", "shutdown"))), Some(Ended::PoweredOff));
        assert_eq!(told(&(begin + &chv("guest", "panic"))), Some(Ended::Panicked));
        assert_eq!(told(&(off + &chv("vm", "booted"))), None, "it runs again");
    }

    #[test]
    fn what_grows_too_large_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(EVENTS);
        let length = || path.metadata().unwrap().len();
        std::fs::write(&path, vec![b' '; MAX_KEPT as usize]).unwrap();
        trim(folder.path());
        assert_eq!(length(), MAX_KEPT);
        std::fs::write(&path, vec![b' '; MAX_KEPT as usize + 1]).unwrap();
        trim(folder.path());
        assert_eq!(length(), 0);
        std::fs::remove_file(&path).unwrap();
        trim(folder.path());
    }

    #[test]
    fn qemu_tells_line_by_line_between_its_answers() {
        let shutdown = |reason: &str| {
            format!(
                "{{\"QMP\": {{\"version\": {{}}}}}}\r\n{{\"return\": {{}}}}\r\n{{\"timestamp\": {{\"seconds\": 1}}, \"event\": \"SHUTDOWN\", \"data\": {{\"guest\": true, \"reason\": \"{reason}\"}}}}\r\n"
            )
        };
        assert_eq!(told(&shutdown("guest-shutdown")), Some(Ended::PoweredOff));
        assert_eq!(told(&shutdown("guest-reset")), Some(Ended::Reset));
        assert_eq!(told(&shutdown("guest-panic")), Some(Ended::Panicked));
        assert_eq!(told(&shutdown("host-qmp-quit")), None, "its hypervisor's status says it");
        assert_eq!(told("{\"return\": {}}\n{\"return\": [1]}\n{\"ev"), None);
    }
}
