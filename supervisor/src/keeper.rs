//! Keeping one runner running.
//!
//! A runner holds the other end of its standard input open: when the supervisor dies, however it
//! dies, the runner reads the end, finishes what it has and stops. When a runner is dead, first all
//! that it started is ended, then what it could not deliver is delivered, then its jobs go back.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhizome_model::Backoff;
use rhizome_service::random;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::pools::Shared;

/// Between restarts of a runner that keeps dying.
const RESTART: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));
/// A runner that lived this long starts again without a pause.
const HEALTHY: Duration = Duration::from_secs(60);
/// A runner finishes what it has in this time; then it is killed and its jobs go back.
const STOP: Duration = Duration::from_secs(30);
/// How soon the end of a runner is noticed that is not our child.
const LOOK: Duration = Duration::from_millis(50);

/// Keeps the runner of a slot running until it is told to leave.
pub(crate) async fn keep(shared: Arc<Shared>, slot: u64, pool: usize, leave: CancellationToken) {
    let queues = shared.pools[pool].queues.join(",");
    let mut deaths = 0;
    while !leave.is_cancelled() {
        let started = Instant::now();
        run(&shared, slot, pool, &leave).await;
        if leave.is_cancelled() {
            break;
        }
        metrics::counter!("rhizome_runner_restarts_total", "queues" => queues.clone()).increment(1);
        deaths = if started.elapsed() > HEALTHY { 1 } else { deaths + 1 };
        let pause = random::jittered(RESTART, deaths);
        shared.update(slot, |s| {
            s.restarts += 1;
            s.problem = (deaths > 5)
                .then(|| format!("the runner of {queues} dies again and again; see its log"));
        });
        leave.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
    shared.remove(slot);
}

/// One runner, from its start until its jobs are given back.
async fn run(shared: &Shared, slot: u64, pool: usize, leave: &CancellationToken) {
    let name = unique_name(&shared.pools[pool].queues);
    let mut child = match spawn(shared, pool, &name) {
        Ok(child) => child,
        Err(error) => {
            let program = shared.pools[pool].command.0.display();
            tracing::error!(runner = %name, %error, "cannot start {program}");
            shared.end(&name).await;
            return;
        }
    };
    let pid = child.id().unwrap_or_default();
    shared.update(slot, |s| s.running = Some((name.clone(), pid)));
    watch(&mut child, &name, leave).await;
    // While it still counts as running: without a group, its process group is found by its id.
    shared.end(&name).await;
    shared.update(slot, |s| s.running = None);
    give_back(shared, &name).await;
}

fn spawn(shared: &Shared, pool: usize, name: &str) -> std::io::Result<Child> {
    let (program, args) = &shared.pools[pool].command;
    let mut command = Command::new(program);
    command
        .args(args)
        .args(["--name", name, "--spool"])
        .arg(&shared.spool)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Its own group: a Ctrl-C in the terminal is for us, and we tell it.
        .process_group(0);
    shared.groups.enclose(&mut command, name)?;
    command.spawn()
}

/// Waits until the runner ends. When it is to leave, it is told by the end of its standard input.
async fn watch(child: &mut Child, name: &str, leave: &CancellationToken) {
    // Waiting would close it, and that is the sign to stop.
    let lifeline = child.stdin.take();
    let status = tokio::select! {
        status = child.wait() => status,
        () = leave.cancelled() => {
            drop(lifeline);
            match tokio::time::timeout(STOP, child.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    tracing::warn!(runner = %name, "does not stop; killed");
                    let _ = child.start_kill();
                    child.wait().await
                }
            }
        }
    };
    match status {
        Ok(status) if status.success() => tracing::info!(runner = %name, "stopped"),
        Ok(status) => tracing::warn!(runner = %name, %status, "died"),
        Err(error) => tracing::warn!(runner = %name, %error, "cannot be waited for"),
    }
}

/// A runner of a supervisor that died has read the end of its standard input: it is left to finish
/// what it has, as long as any other.
pub(crate) async fn bury_left_behind(shared: Arc<Shared>, runner: String) {
    let deadline = Instant::now() + STOP;
    while !shared.groups.is_empty(&runner) && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    shared.end(&runner).await;
    give_back(&shared, &runner).await;
}

async fn give_back(shared: &Shared, name: &str) {
    match shared.queue.release_runner(name).await {
        Ok(0) => {}
        Ok(jobs) => tracing::info!(runner = %name, jobs, "gave back the jobs of a dead runner"),
        Err(error) => {
            tracing::warn!(runner = %name, %error, "its jobs go back when its heartbeat is missed");
        }
    }
}

fn unique_name(queues: &[String]) -> String {
    let pool = queues.first().map_or("idle", String::as_str);
    format!("{pool}-{}-{}", std::process::id(), uuid::Uuid::new_v4().simple())
}
