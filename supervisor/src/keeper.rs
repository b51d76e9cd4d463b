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
const RESTART: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
/// A runner that lived this long is none that dies again and again. One that lived as long as the
/// longest pause starts again without one.
const HEALTHY: Duration = Duration::from_secs(60);
/// A runner finishes what it has in this time; then it is killed and its jobs go back.
const STOP: Duration = Duration::from_secs(30);
/// How soon the end of a runner is noticed that is not our child.
const LOOK: Duration = Duration::from_millis(50);

/// Keeps the runner of a slot running until it is told to leave.
pub(crate) async fn keep(shared: Arc<Shared>, slot: u64, pool: usize, leave: CancellationToken) {
    let queues = shared.pools[pool].queues.join(",");
    let (mut deaths, mut early) = (0, 0);
    while !leave.is_cancelled() {
        let started = Instant::now();
        run(&shared, slot, pool, &leave).await;
        if leave.is_cancelled() {
            break;
        }
        metrics::counter!("rhizome_runner_restarts_total", "queues" => queues.clone()).increment(1);
        deaths = if started.elapsed() > HEALTHY { 1 } else { deaths + 1 };
        early = if started.elapsed() > RESTART.cap { 1 } else { early + 1 };
        let pause = random::jittered(RESTART, early);
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
            shared.give_back(&name).await;
            return;
        }
    };
    let pid = child.id().unwrap_or_default();
    shared.update(slot, |s| s.running = Some((name.clone(), pid)));
    watch(&mut child, &name, leave).await;
    // While it still counts as running: without a group, its process group is found by its id.
    shared.end(&name).await;
    shared.update(slot, |s| s.running = None);
    shared.give_back(&name).await;
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
    shared.give_back(&runner).await;
}

fn unique_name(queues: &[String]) -> String {
    let pool = queues.first().map_or("idle", String::as_str);
    format!("{pool}-{}-{}", std::process::id(), uuid::Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use rhizome_model::api::{PoolChange, PoolMode};
    use rhizome_model::{AccountId, Job, JobId, JobState, Work};
    use rhizome_queue::{Durability, Queue, QueueConfig, RunnerOptions};
    use rhizome_service::Shutdown;

    use crate::fence::{Groups, tests::groups};
    use crate::pools::{Pool, Pools};

    use super::*;

    struct Redis {
        process: Child,
        folder: tempfile::TempDir,
    }

    impl Redis {
        fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let process = Command::new("redis-server")
                .args(["--port", "0", "--unixsocket", "redis.sock", "--appendonly", "yes"])
                .current_dir(folder.path())
                .stdout(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("redis-server is installed");
            Self { process, folder }
        }

        async fn queue(&self) -> Queue {
            let socket = self.folder.path().join("redis.sock");
            Queue::connect(&QueueConfig { socket, durability: Durability::None }).await.unwrap()
        }
    }

    /// A program that, like a runner, ends when its standard input does.
    fn pool() -> Pool {
        let args = ["-c", "read never", "sh"].map(str::to_owned).to_vec();
        Pool { queues: vec!["volume".into()], runners: 1, command: (PathBuf::from("sh"), args) }
    }

    fn pids(pools: &Pools) -> Vec<u32> {
        pools.view()[0].runners.iter().map(|r| r.pid).collect()
    }

    async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_so().await {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn scale(runners: usize) -> PoolChange {
        PoolChange { mode: None, scale: Some(runners) }
    }

    #[tokio::test]
    async fn there_are_as_many_runners_as_are_wanted() {
        let redis = Redis::start();
        let (queue, shutdown) = (redis.queue().await, Shutdown::new());
        let spool = redis.folder.path().join("spool");
        let start = |queue: Queue, shutdown: &Shutdown| {
            Pools::start(vec![pool()], queue, Groups::open(None), spool.clone(), shutdown)
        };
        let pools = start(queue.clone(), &shutdown);
        until("one runs", async || pids(&pools).len() == 1).await;
        let first = pids(&pools);
        pools.change("volume", scale(3)).await.unwrap();
        until("three run", async || pids(&pools).len() == 3).await;
        // One that dies is followed by another.
        kill(Pid::from_raw(first[0].cast_signed()), Signal::SIGKILL).unwrap();
        until("three others run", async || {
            pids(&pools).len() == 3 && !pids(&pools).contains(&first[0])
        })
        .await;
        assert!(pools.health().is_ok());
        let drained = pools.change("volume", scale(0)).await.unwrap();
        assert_eq!((drained.mode, drained.scale), (PoolMode::Drained, 3));
        until("none runs", async || pids(&pools).is_empty()).await;
        assert!(pools.health().is_ok(), "a drained pool is no fault");
        assert!(shutdown.finish(Duration::from_secs(10)).await);

        // It is kept, also for another supervisor, which hears of changes that are not its own.
        let shutdown = Shutdown::new();
        let pools = start(queue.clone(), &shutdown);
        until("the settings are read", async || pools.view()[0].mode == PoolMode::Drained).await;
        assert!(pids(&pools).is_empty());
        queue.set_scale("volume", 2).await.unwrap();
        queue.set_mode("volume", PoolMode::Paused).await.unwrap();
        until("two run", async || pids(&pools).len() == 2).await;
        assert_eq!(pools.view()[0].mode, PoolMode::Paused);
        assert!(shutdown.finish(Duration::from_secs(10)).await);
        assert!(pids(&pools).is_empty());
        let too_many = pools.change("volume", scale(1000)).await.unwrap_err();
        assert_eq!(too_many.code, rhizome_model::Code::BadRequest);
    }

    /// A job that a runner of this name holds, and the name's group with a process that ends after so
    /// long.
    async fn held(
        queue: &Queue,
        groups: &Groups,
        seconds: &str,
    ) -> (JobId, Child, impl Sized + use<>) {
        let job = Job::new(JobId([1; 16]), "volume", AccountId(1), Work::Script);
        queue.submit(std::slice::from_ref(&job)).await.unwrap();
        let options = RunnerOptions {
            name: "volume-old".into(),
            queues: vec!["volume".into()],
            ..Default::default()
        };
        let mut old = queue.runner(options).await.unwrap();
        let lease = old.next().await.unwrap();
        let mut command = Command::new("sleep");
        command.arg(seconds);
        groups.enclose(&mut command, "volume-old").unwrap();
        (job.id, command.spawn().unwrap(), (lease, old))
    }

    fn idle() -> Vec<Pool> {
        vec![Pool { runners: 0, ..pool() }]
    }

    #[tokio::test]
    async fn what_a_dead_supervisor_left_ends_before_its_jobs_go_back() {
        let Some((groups, all)) = groups() else {
            eprintln!("skipped: no control groups can be made here");
            return;
        };
        let redis = Redis::start();
        let (queue, shutdown) = (redis.queue().await, Shutdown::new());
        let (job, mut child, _holder) = held(&queue, &groups, "1").await;
        let spool: &Path = redis.folder.path();
        let _pools = Pools::start(idle(), queue.clone(), groups, spool.into(), &shutdown);
        let state = async || queue.job(job).await.unwrap().unwrap().state;
        let begin = Instant::now();
        until("it has gone back", async || state().await == JobState::Queued).await;
        assert!(child.try_wait().unwrap().is_some(), "its process was still there");
        assert!(begin.elapsed() < Duration::from_secs(10), "only its silence told");
        assert!(shutdown.finish(Duration::from_secs(10)).await);
        std::fs::remove_dir(all).unwrap();
    }

    /// Else its silence would have to tell, which it cannot while redis-server does not stay long
    /// enough to hear it.
    #[tokio::test]
    async fn jobs_of_a_dead_runner_go_back_as_soon_as_redis_server_is_there_whoever_died_meanwhile()
    {
        let Some((groups, all)) = groups() else {
            eprintln!("skipped: no control groups can be made here");
            return;
        };
        let redis = Redis::start();
        let queue = redis.queue().await;
        let (job, mut child, _holder) = held(&queue, &groups, "0").await;
        child.wait().await.unwrap();
        let pid = Pid::from_raw(redis.process.id().unwrap().cast_signed());
        let spool: &Path = redis.folder.path();
        let start = |shutdown: &Shutdown| {
            let groups = Groups::open(Some(all.clone()));
            Pools::start(idle(), queue.clone(), groups, spool.into(), shutdown)
        };
        let state = async || queue.job(job).await.unwrap().unwrap().state;

        kill(pid, Signal::SIGSTOP).unwrap();
        let first = Shutdown::new();
        let _pools = start(&first);
        // It is about to wait for redis-server, and does so in vain.
        first.finish(Duration::from_secs(1)).await;
        assert_eq!(groups.left_behind(), ["volume-old"]);

        let second = Shutdown::new();
        let _pools = start(&second);
        kill(pid, Signal::SIGCONT).unwrap();
        let begin = Instant::now();
        until("it has gone back", async || state().await == JobState::Queued).await;
        assert!(begin.elapsed() < Duration::from_secs(10), "only its silence told");
        until("it is done with", async || groups.left_behind().is_empty()).await;
        assert!(second.finish(Duration::from_secs(10)).await);
        std::fs::remove_dir(all).unwrap();
    }
}
