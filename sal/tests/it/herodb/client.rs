//! What the tests of databases share: a client of a tenant, and where a database is.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use rhizome_model::{Action, ResourceId, WorkloadKind};
use rhizome_sal::{Ensured, SalError, Workload};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::world::{World, collect, names};

pub const PASSWORD: &str = "correct-horse-battery";

pub fn databases(world: &World) -> std::sync::Arc<dyn Workload> {
    world.sal.workload(WorkloadKind::Herodb)
}

pub fn spec(size: &str) -> Value {
    json!({ "size": size, "memory": "64MiB", "cpu": 1, "password": PASSWORD })
}

pub async fn ensure(world: &World, id: &ResourceId, spec: &Value) -> Result<Ensured, SalError> {
    databases(world).ensure(id, spec).await
}

pub async fn act(
    world: &World,
    id: &ResourceId,
    action: Action,
) -> Result<(Value, String), SalError> {
    let (sender, receiver) = mpsc::channel(16);
    let printed = tokio::spawn(collect(receiver));
    let by = format!("test {:?}", Instant::now());
    let answer = databases(world).act(id, &action, &by, sender, CancellationToken::new()).await;
    Ok((answer?, printed.await.unwrap()))
}

pub async fn status(world: &World, id: &ResourceId) -> Value {
    databases(world).observe(id).await.unwrap().unwrap_or(Value::Null)
}

pub async fn until(world: &World, id: &ResourceId, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = status(world, id).await;
        if wanted(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "still {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn is_good(status: &Value) -> bool {
    status["state"] == "running" && status["health"]["status"] == "good"
}

/// A client of a tenant.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn open(status: &Value) -> Self {
        let address: Ipv6Addr = status["address"].as_str().unwrap().parse().unwrap();
        let port = u16::try_from(status["port"].as_u64().unwrap()).unwrap();
        let stream = TcpStream::connect(SocketAddr::from((address, port))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(BufReader::new(stream))
    }

    pub fn with(status: &Value, password: &str) -> Self {
        let mut client = Self::open(status);
        assert_eq!(client.ask(&["AUTH", password]), "+OK");
        client
    }

    /// A reply as it comes; of a text the text, and nothing when the connection is closed.
    pub fn ask(&mut self, words: &[&str]) -> String {
        let mut request = format!("*{}\r\n", words.len());
        words.iter().for_each(|w| request += &format!("${}\r\n{w}\r\n", w.len()));
        let _ = self.0.get_mut().write_all(request.as_bytes());
        let mut line = String::new();
        let _ = self.0.read_line(&mut line);
        match line.trim_end().strip_prefix('$').map(|n| n.parse::<usize>()) {
            Some(Ok(length)) => {
                let mut bytes = vec![0; length + 2];
                self.0.read_exact(&mut bytes).unwrap();
                String::from_utf8_lossy(&bytes[..length]).into_owned()
            }
            _ => line.trim_end().to_owned(),
        }
    }
}

pub fn run_folder(world: &World, id: &ResourceId) -> PathBuf {
    world.config.state.join("run/herodbs").join(id.file_name())
}

pub fn engine_pid(world: &World, id: &ResourceId) -> Pid {
    let text = fs::read_to_string(run_folder(world, id).join("pid")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap())
}

/// Nothing of it is left, wherever a database is.
pub fn assert_gone(world: &World) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let groups = |folder: PathBuf| {
        let inside = names(&folder).into_iter();
        inside.filter(|name| ResourceId::from_file_name(name).is_ok()).collect::<Vec<_>>()
    };
    loop {
        let mut found = world.traces();
        found.extend(names(&world.pool().join("herodbs")));
        found.extend(names(&world.config.state.join("run/herodbs")));
        for hierarchy in crate::world::hierarchies() {
            let group = hierarchy.join(world.mark()).join("herodb");
            found.extend(groups(group.join("shims")));
            found.extend(groups(group));
        }
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left over: {found:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
