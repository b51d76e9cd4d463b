//! A node of its own for one test, and what the system itself shows of it.

use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhizome_model::{Action, Bytes, Code, KeyId, ResourceId, WorkloadKind};
use rhizome_sal::{Chunk, NodeConfig, Pool, Sal, SalError, Workload};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub const SHIM: &str = env!("CARGO_BIN_EXE_rhizome-machine-shim");

pub struct World {
    pub sal: Sal,
    pub config: NodeConfig,
    pub volumes: Arc<dyn Workload>,
    pub machines: Arc<dyn Workload>,
    pub folder: tempfile::TempDir,
    pub image: String,
}

impl World {
    pub async fn new() -> Self {
        Self::with_pool(Bytes::gib(1)).await
    }

    pub async fn with_pool(size: Bytes) -> Self {
        Self::with(size, None).await
    }

    /// A node with this address.
    pub async fn at(address: Ipv6Addr) -> Self {
        Self::with(Bytes::gib(1), Some(address)).await
    }

    async fn with(size: Bytes, known: Option<Ipv6Addr>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("images/busybox.tar");
        build_image(&image);
        let key = unique_key(folder.path());
        let config = NodeConfig {
            key: KeyId(key),
            address: known.unwrap_or_else(|| address(&key)),
            state: folder.path().join("state"),
            pool: Pool::LoopFile { size },
            program: SHIM.into(),
            image_roots: vec![folder.path().join("images")],
        };
        let sal = Sal::up(config.clone()).await.unwrap();
        Self {
            volumes: sal.workload(WorkloadKind::Volume),
            machines: sal.workload(WorkloadKind::Machine),
            image: format!("file://{}", image.display()),
            sal,
            config,
            folder,
        }
    }

    /// The spec of a machine that runs a shell script.
    pub fn script(&self, script: &str) -> Value {
        json!({ "image": self.image, "command": ["/bin/sh", "-c", script], "memory": "64MiB" })
    }

    pub fn pool(&self) -> PathBuf {
        self.config.state.join("pool")
    }

    pub fn root(&self, id: &ResourceId) -> PathBuf {
        self.pool().join("machines").join(id.file_name())
    }

    pub fn mark(&self) -> String {
        format!("rz{}", &self.config.key.to_string()[..8])
    }

    pub async fn act(&self, id: &ResourceId, action: Action) -> Result<(Value, String), SalError> {
        let (sender, receiver) = mpsc::channel(16);
        let printed = tokio::spawn(collect(receiver));
        let answer =
            self.machines.act(id, &action, &unique(), sender, CancellationToken::new()).await;
        Ok((answer?, printed.await.unwrap()))
    }

    pub async fn exec(&self, id: &ResourceId, script: &str) -> (i64, String) {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let (answer, printed) = self.act(id, Action::Exec { command }).await.unwrap();
        (answer["exit_code"].as_i64().unwrap(), printed)
    }

    pub async fn status(&self, id: &ResourceId) -> Value {
        self.machines.observe(id).await.unwrap().unwrap_or(Value::Null)
    }

    /// Waits until the status is as wanted.
    pub async fn until(&self, id: &ResourceId, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status(id).await;
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "still {status}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Everything that the system shows of this node's machines and volumes, itself excepted.
    pub fn traces(&self) -> Vec<String> {
        let mark = self.mark();
        let state = self.config.state.to_string_lossy().into_owned();
        let mut found = Vec::new();
        let mut look = |what: &str, names: Vec<String>| {
            found.extend(names.into_iter().map(|n| format!("{what} {n}")));
        };
        for folder in ["machines", "volumes", "snapshots"] {
            look(folder, names(&self.pool().join(folder)));
        }
        look("run", names(&self.config.state.join("run/machines")));
        look("runtime", names(&self.config.state.join("run/runtime")));
        look("log", names(&self.config.state.join("logs")));
        let starts =
            |names: Vec<String>| names.into_iter().filter(|n| n.starts_with(&mark)).collect();
        look("netns", starts(names(Path::new("/run/netns"))));
        for link in names(Path::new("/sys/class/net")) {
            let alias = fs::read_to_string(format!("/sys/class/net/{link}/ifalias"));
            if alias.unwrap_or_default().starts_with(&format!("rhizome:{mark}:")) {
                look("link", vec![link]);
            }
        }
        for hierarchy in hierarchies() {
            let groups = |folder: &Path| {
                let inside = names(folder).into_iter();
                inside.filter(|n| ResourceId::from_file_name(n).is_ok()).collect()
            };
            look("cgroup", groups(&hierarchy.join(&mark)));
            look("shim's cgroup", groups(&hierarchy.join(&mark).join("shims")));
        }
        look("process", processes(&state));
        found
    }

    /// Waits until nothing of any machine or volume is left.
    pub fn assert_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let traces = self.traces();
            if traces.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left over: {traces:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let sal = self.sal.clone();
        let down = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(sal.down())
        });
        let result = down.join().unwrap();
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

/// What processes have a text in their command line.
pub fn processes(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for pid in names(Path::new("/proc")).iter().filter(|n| n.parse::<u32>().is_ok()) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(text) && pid != &std::process::id().to_string() {
            found.push(format!("{pid} {line}"));
        }
    }
    found
}

pub fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let lines = mounts.lines().filter(|l| l.contains(" - cgroup"));
    lines.filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from).collect()
}

pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

pub fn id(text: &str) -> ResourceId {
    text.parse().unwrap()
}

pub fn assert_code<T: std::fmt::Debug>(result: Result<T, SalError>, code: Code) -> SalError {
    let error = result.unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    error
}

/// Somebody who has asked for nothing before.
fn unique() -> String {
    static ASKED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    format!("test {}", ASKED.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

pub async fn collect(mut receiver: mpsc::Receiver<Chunk>) -> String {
    let mut bytes = Vec::new();
    while let Some(Chunk::Stdout(chunk) | Chunk::Stderr(chunk)) = receiver.recv().await {
        bytes.extend(chunk);
    }
    String::from_utf8(bytes).unwrap()
}

pub fn build_image(path: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/build-image.sh");
    // Built once per run of all tests, and copied.
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("busybox.tar");
    let done =
        Command::new("flock").arg(env!("CARGO_TARGET_TMPDIR")).arg(script).arg(&built).status();
    assert!(done.unwrap().success());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::copy(&built, path).unwrap();
}

fn unique_key(folder: &Path) -> [u8; 32] {
    *blake3::hash(folder.as_os_str().as_encoded_bytes()).as_bytes()
}

fn address(key: &[u8; 32]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&key[16..]);
    octets[0] = 0x04;
    octets.into()
}
