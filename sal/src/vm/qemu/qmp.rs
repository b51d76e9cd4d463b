//! The QEMU machine protocol: one JSON value per line; a greeting, commands, answers, and events that
//! come in between.
//!
//! QEMU serves one client at a time and lets the others wait: who connects must not stay.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::vm::door;
use crate::vm::fault::{Answer, Fault, Kind, Refusal};

/// An answer with every device of a large machine has some 100 KiB.
const MAX_LINE: usize = 4 << 20;

pub(super) struct Qmp {
    stream: UnixStream,
    begin: Instant,
    until: Instant,
    read: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _about: Value,
    },
    Return {
        #[serde(rename = "return")]
        value: Value,
    },
    Error {
        error: Error,
    },
    Event {
        event: String,
        #[serde(default)]
        data: Value,
    },
}

#[derive(Deserialize)]
struct Error {
    class: String,
    desc: String,
}

impl Qmp {
    /// Connects and greets. All that follows is over by `until`.
    pub fn connect(dir: &Path, name: &str, until: Instant) -> Answer<Self> {
        let begin = Instant::now();
        let stream = door::open(dir, name, until)?;
        let mut qmp = Self { stream, begin, until, read: Vec::new() };
        match qmp.message(until)? {
            Some(Message::Greeting { .. }) => {}
            Some(_) => return Err(Fault::Strange("no greeting".to_owned())),
            None => return Err(qmp.hangs()),
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub fn execute(&mut self, command: &str, arguments: Value) -> Answer<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.send(line.as_bytes())?;
        loop {
            match self.message(self.until)? {
                Some(Message::Return { value }) => return Ok(value),
                Some(Message::Error { error }) => return Err(Fault::Refused(refusal(error))),
                Some(Message::Event { .. } | Message::Greeting { .. }) => {}
                None => return Err(self.hangs()),
            }
        }
    }

    /// Whether an event comes in time.
    pub fn hear(
        &mut self,
        name: &str,
        is_it: impl Fn(&Value) -> bool,
        until: Instant,
    ) -> Answer<bool> {
        loop {
            match self.message(until)? {
                Some(Message::Event { event, data }) if event == name && is_it(&data) => {
                    return Ok(true);
                }
                Some(_) => {}
                None => return Ok(false),
            }
        }
    }

    fn hangs(&self) -> Fault {
        Fault::Hangs(self.begin.elapsed())
    }

    fn send(&mut self, line: &[u8]) -> Answer<()> {
        let patience = self.patience(self.until).ok_or_else(|| self.hangs())?;
        let sent = self
            .stream
            .set_write_timeout(Some(patience))
            .and_then(|()| self.stream.write_all(line));
        sent.map_err(|e| if is_timeout(&e) { self.hangs() } else { Fault::Broken(e.to_string()) })
    }

    fn patience(&self, until: Instant) -> Option<Duration> {
        Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    /// The next message; None when it does not come in time.
    fn message(&mut self, until: Instant) -> Answer<Option<Message>> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|e| {
                    Fault::Strange(format!("{e}: {}", String::from_utf8_lossy(&line).trim()))
                });
            }
            if self.read.len() > MAX_LINE {
                return Err(Fault::Strange("an answer without an end".to_owned()));
            }
            let Some(patience) = self.patience(until) else { return Ok(None) };
            let read = self
                .stream
                .set_read_timeout(Some(patience))
                .and_then(|()| self.stream.read(&mut buffer));
            match read {
                Ok(0) => return Err(Fault::Broken("it closed the connection".to_owned())),
                Ok(n) => self.read.extend_from_slice(&buffer[..n]),
                Err(e) if is_timeout(&e) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Fault::Broken(e.to_string())),
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn refusal(error: Error) -> Refusal {
    let kind = match error.class.as_str() {
        "DeviceNotFound" => Kind::NotFound,
        _ if error.desc.contains("Duplicate") => Kind::Exists,
        _ => Kind::Failed,
    };
    Refusal { kind, status: None, chain: vec![error.desc] }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers one client with these lines, each after a line of his.
    fn serve(lines: &'static [&'static str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            client.write_all(b"{\"QMP\": {\"version\": {}}}\r\n").unwrap();
            for line in lines {
                let mut buffer = [0; 1024];
                if client.read(&mut buffer).unwrap_or(0) == 0 {
                    return;
                }
                client.write_all(line.as_bytes()).unwrap();
            }
            // Silent, but there.
            let _ = client.read(&mut [0; 1024]);
            let _ = client.read(&mut [0; 1024]);
        });
        dir
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(300)
    }

    #[test]
    fn events_come_between_question_and_answer() {
        let dir =
            serve(&["{\"return\": {}}\r\n", "{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"ret"]);
        let mut qmp = Qmp::connect(dir.path(), "s", soon()).unwrap();
        let fault = qmp.execute("stop", json!({})).unwrap_err();
        assert!(matches!(fault, Fault::Hangs(_)), "{fault}");
    }

    #[test]
    fn a_refusal_is_told_in_its_words() {
        let dir = serve(&[
            "{\"return\": {}}\r\n",
            "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"Device 'x' not found\"}}\r\n",
        ]);
        let mut qmp = Qmp::connect(dir.path(), "s", soon()).unwrap();
        let Fault::Refused(refusal) = qmp.execute("device_del", json!({})).unwrap_err() else {
            panic!("not refused")
        };
        assert_eq!(
            (refusal.kind, refusal.to_string()),
            (Kind::NotFound, "Device 'x' not found".into())
        );
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let dir = serve(&["hello\n"]);
        let fault = Qmp::connect(dir.path(), "s", soon()).err().unwrap();
        assert!(matches!(fault, Fault::Strange(_)), "{fault}");
    }
}
