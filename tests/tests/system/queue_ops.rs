//! What operators do with queues, jobs and runners, and what becomes of jobs when runners hang.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::{Action, DeploymentId, Job, JobId, ResourceId, Version, Work, WorkloadKind};
use rhizome_queue::{Durability, Queue, QueueConfig};
use rhizome_tests::{System, eventually};
use serde_json::Value;

use crate::image::busybox;

const SOON: Duration = Duration::from_secs(30);

/// The job that makes a volume of the first version of `1/app`.
fn making(volume: &str) -> JobId {
    derived(&format!("make volume {volume}"))
}

fn derived(what: &str) -> JobId {
    JobId::derived(&app(), Version(1), what)
}

fn app() -> DeploymentId {
    "1/app".parse().unwrap()
}

fn id(resource: &str) -> ResourceId {
    app().resource(resource.parse().unwrap())
}

/// Volumes that are made as long as nobody holds their locks.
fn deploy_volumes(system: &System, names: &[&str]) {
    let line = |name: &&str| format!("volume(\"{name}\", #{{ size: \"4MiB\" }});\n");
    let script = system.script("volumes.rhai", &names.iter().map(line).collect::<String>());
    system.rhizome(&["deploy", &script, "--name", "app", "--detach"]).ok();
}

/// While it is held, whoever makes the resource waits for it in the middle of its work.
fn hold(system: &System, resource: &str) -> Flock<File> {
    let path = system.state.join(format!("node-1/locks/{resource}"));
    let file = File::options().create(true).append(true).open(path).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).unwrap()
}

fn job(system: &System, id: JobId) -> Option<Value> {
    let answer = system.rhizome(&["job", &id.to_string()]);
    (answer.code == 0).then(|| answer.json())
}

#[track_caller]
fn in_state(system: &System, id: JobId, state: &str) -> Value {
    let mut last = None;
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        last = job(system, id).or(last);
        match &last {
            Some(job) if job["state"] == state => return job.clone(),
            _ => assert!(Instant::now() < limit, "job {id} is not {state}: {last:#?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ready(system: &System) {
    eventually("the deployment is ready", SOON, || {
        (system.rhizome(&["show", "app"]).ok().json()["phase"] == "ready").then_some(())
    });
}

/// The pool that serves a queue.
fn pool(system: &System, queue: &str) -> Value {
    let pools = system.rhizome(&["runners"]).ok().json();
    let mut pools = pools["pools"].as_array().unwrap().iter();
    let serves = |p: &&Value| p["queues"].as_array().unwrap().iter().any(|q| q == queue);
    pools.find(serves).unwrap().clone()
}

fn pids(pool: &Value) -> Vec<i32> {
    let runners = pool["runners"].as_array().unwrap().iter();
    runners.map(|r| i32::try_from(r["pid"].as_i64().unwrap()).unwrap()).collect()
}

/// The runners of a pool that are alive, when there are so many.
fn runners(system: &System, queue: &str, wanted: usize) -> Option<Vec<i32>> {
    let pids = pids(&pool(system, queue));
    let alive = |pid: &i32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    (pids.len() == wanted && pids.iter().all(alive)).then_some(pids)
}

fn queue(system: &System, queue: &str) -> Value {
    let queues = system.rhizome(&["queues"]).ok().json();
    queues["queues"].as_array().unwrap().iter().find(|q| q["queue"] == queue).unwrap().clone()
}

/// Submits to a node's queue what no command would.
struct Direct {
    runtime: tokio::runtime::Runtime,
    queue: Queue,
}

impl Direct {
    fn open(system: &System) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let socket = system.state.join("node-1/redis.sock");
        let config = QueueConfig { socket, durability: Durability::Always };
        let queue = runtime.block_on(Queue::connect(&config)).unwrap();
        Self { runtime, queue }
    }

    fn submit(&self, name: &str, work: Work, change: impl FnOnce(&mut Job)) -> JobId {
        let mut job =
            Job::new(derived(name), rhizome_model::queue_name(&work), app().account, work);
        change(&mut job);
        self.runtime.block_on(self.queue.submit(std::slice::from_ref(&job))).unwrap();
        job.id
    }

    /// Runs a command in the machine `m`, once.
    fn exec(&self, name: &str, command: &[&str], change: impl FnOnce(&mut Job)) -> JobId {
        let command = command.iter().map(|w| (*w).to_owned()).collect();
        let action = Action::Exec { command };
        let work = Work::Act { kind: WorkloadKind::Machine, id: id("m"), action };
        self.submit(name, work, |job| {
            job.max_attempts = 1;
            change(job);
        })
    }
}

fn deploy_machine(system: &System) {
    let image = busybox(&system.state);
    let source = format!(
        "machine(\"m\", #{{ image: \"{image}\", command: [\"/bin/sleep\", \"100000\"], memory: \"32MiB\" }});"
    );
    let script = system.script("machine.rhai", &source);
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
}

/// Processes with exactly this command line.
fn running(command: &str) -> usize {
    let wanted = command.replace(' ', "\0") + "\0";
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
    lines.filter(|line| line == wanted.as_bytes()).count()
}

#[test]
fn runners_are_scaled_up_and_down_while_jobs_run() {
    let system = System::start();
    let names: Vec<_> = (0..40).map(|n| format!("v-{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let first = runners(&system, "volume", 1).unwrap();
    let held = hold(&system, "volume.1.app.v-0");
    deploy_volumes(&system, &names);
    in_state(&system, making(names[0]), "running");

    let begin = Instant::now();
    system.rhizome(&["runners", "scale", "volume=3", "machine=2"]).ok();
    let three = eventually("three runners", SOON, || runners(&system, "volume", 3));
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    assert!(three.contains(&first[0]), "the one that was there stays");
    assert!(runners(&system, "machine", 2).is_some());
    // It has taken a job, which it may end.
    system.rhizome(&["runners", "scale", "volume=1"]).ok();
    let pool = pool(&system, "volume");
    assert_eq!((&pool["scale"], &pool["mode"]), (&1.into(), &"running".into()));
    drop(held);
    assert_eq!(eventually("one is left", SOON, || runners(&system, "volume", 1)), first);

    ready(&system);
    assert_eq!(system.kernel().volumes.len(), names.len());
    for name in names {
        let job = job(&system, making(name)).unwrap();
        let ends: Vec<_> = job["attempts"].as_array().unwrap().iter().map(|a| &a["end"]).collect();
        assert_eq!(ends.last().unwrap(), &"succeeded", "{job:#?}");
        assert!(ends.iter().all(|e| *e != "died"), "{job:#?}");
    }
    system.rhizome(&["runners", "scale", "nothing=1"]).refused(1, "not_found");
    system.rhizome(&["runners", "scale", "volume=1000"]).refused(2, "bad_request");
}

#[test]
fn a_paused_pool_starts_nothing_and_a_drained_one_has_no_runners() {
    let system = System::start();
    let before = runners(&system, "volume", 1).unwrap();
    system.rhizome(&["runners", "pause", "volume"]).ok();
    deploy_volumes(&system, &["data"]);
    in_state(&system, making("data"), "queued");
    let paused = queue(&system, "volume");
    assert_eq!((&paused["mode"], &paused["running"]), (&"paused".into(), &0.into()), "{paused:#?}");
    assert!(paused["ready"].as_u64() >= Some(1), "{paused:#?}");
    assert_eq!(runners(&system, "volume", 1).unwrap(), before, "its runner stays");

    // It stays so when the supervisor is killed, and no fault is seen in it.
    let supervisor = system.pids("supervisor")[0];
    kill(Pid::from_raw(supervisor.cast_signed()), Signal::SIGKILL).unwrap();
    eventually("another supervisor is there", SOON, || {
        let answer = system.rhizome(&["runners"]);
        (answer.code == 0 && system.pids("supervisor") != [supervisor]).then_some(())
    });
    eventually("it has a runner", SOON, || runners(&system, "volume", 1));
    assert_eq!(pool(&system, "volume")["mode"], "paused");
    assert_eq!(job(&system, making("data")).unwrap()["state"], "queued");
    assert!(system.kernel().volumes.is_empty());

    system.rhizome(&["runners", "drain", "volume"]).ok();
    eventually("no runner is left", SOON, || runners(&system, "volume", 0));
    assert_eq!(job(&system, making("data")).unwrap()["state"], "queued");
    let node = system.rhizome(&["node", "1"]).ok().json();
    assert_eq!(node["node"]["reachable"], true, "{node:#?}");

    let begin = Instant::now();
    system.rhizome(&["runners", "resume", "volume"]).ok();
    ready(&system);
    let job = job(&system, making("data")).unwrap();
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1), "{job:#?}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());

    // All at once, and back: no runners is a drain, a number ends it.
    let all = system.rhizome(&["runners", "pause"]).ok().json();
    assert!(all["pools"].as_array().unwrap().iter().all(|p| p["mode"] == "paused"), "{all:#?}");
    system.rhizome(&["runners", "resume"]).ok();
    system.rhizome(&["runners", "scale", "volume=0"]).ok();
    assert_eq!(pool(&system, "volume")["mode"], "drained");
    system.rhizome(&["runners", "scale", "volume=2"]).ok();
    eventually("two runners", SOON, || runners(&system, "volume", 2));
    assert_eq!(pool(&system, "volume")["mode"], "running");
}

#[test]
fn a_job_whose_runner_is_killed_or_hangs_is_done_by_another_once() {
    let system = System::start();
    let held = hold(&system, "volume.1.app.data");
    deploy_volumes(&system, &["data"]);
    let id = making("data");
    let first = in_state(&system, id, "running");
    let runner = |job: &Value, n: usize| job["attempts"][n]["runner"].as_str().unwrap().to_owned();

    // Killed: seen at once.
    let victim = runners(&system, "volume", 1).unwrap()[0];
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let second = eventually("another has it", SOON, || {
        job(&system, id).filter(|j| j["attempts"].as_array().map(Vec::len) == Some(2))
    });
    assert_eq!(second["attempts"][0]["end"], "died", "{second:#?}");
    assert_ne!(runner(&second, 1), runner(&first, 0));
    let shown = system.plain(&["job", &id.to_string()]).ok().stdout;
    assert!(shown.contains("its runner died") && shown.contains("under way"), "{shown}");

    // Stopped: found by its silence, and ended before the job is another's.
    let hangs = eventually("a runner", SOON, || runners(&system, "volume", 1))[0];
    kill(Pid::from_raw(hangs), Signal::SIGSTOP).unwrap();
    let third = eventually("a third has it", Duration::from_secs(60), || {
        job(&system, id).filter(|j| j["attempts"].as_array().map(Vec::len) == Some(3))
    });
    assert!(!alive(hangs), "it could go on beside the other");
    assert_eq!(third["attempts"][1]["end"], "died", "{third:#?}");
    drop(held);

    let done = in_state(&system, id, "succeeded");
    let ends: Vec<_> = done["attempts"].as_array().unwrap().iter().map(|a| &a["end"]).collect();
    assert_eq!(ends, ["died", "died", "succeeded"]);
    ready(&system);
    assert_eq!(system.kernel().volumes.len(), 1);
    let events = system.rhizome(&["events", "app"]).ok().stdout;
    assert_eq!(events.matches("\"event\":\"ready\"").count(), 1, "{events}");
}

fn alive(pid: i32) -> bool {
    // A child that is dead and not yet waited for has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[test]
fn an_attempt_has_its_time_and_ends_whatever_it_does() {
    let system = System::start();
    deploy_machine(&system);
    let direct = Direct::open(&system);
    // What can be told to stop stops.
    let late = direct.exec("late", &["/bin/sleep", "71234"], |job| job.timeout_ms = 1500);
    let failed = in_state(&system, late, "failed");
    assert_eq!(failed["failure"]["code"], "timed_out", "{failed:#?}");
    assert_eq!(running("/bin/sleep 71234"), 0);

    // A script's job that waits for something is left.
    let held = hold(&system, "machine.1.app.m");
    let settle = direct.submit("settle", Work::Settle, |job| {
        (job.deployment, job.version) = (Some(app()), Some(Version(1)));
        (job.max_attempts, job.timeout_ms) = (1, 1500);
    });
    let failed = in_state(&system, settle, "failed");
    assert_eq!(failed["failure"]["code"], "timed_out", "{failed:#?}");
    drop(held);

    // What waits in the kernel cannot be stopped: its runner ends, and only then another begins.
    let held = hold(&system, "volume.1.app.slow");
    let ensure = Work::Ensure {
        kind: WorkloadKind::Volume,
        id: id("slow"),
        spec: serde_json::json!({ "size": 4 << 20 }),
    };
    let hangs = direct.submit("hangs", ensure, |job| job.timeout_ms = 1000);
    in_state(&system, hangs, "running");
    let runner = runners(&system, "volume", 1).unwrap()[0];
    let second = eventually("another attempt", Duration::from_secs(60), || {
        job(&system, hangs).filter(|j| j["attempts"].as_array().map(Vec::len) == Some(2))
    });
    assert_eq!(second["attempts"][0]["end"], "died", "{second:#?}");
    assert!(!alive(runner), "two would be at it at once");
    drop(held);
    in_state(&system, hangs, "succeeded");
}

#[test]
fn jobs_are_cancelled_done_again_and_released_by_hand() {
    let system = System::start();
    deploy_machine(&system);
    let direct = Direct::open(&system);

    let long = direct.exec("long", &["/bin/sleep", "81234"], |_| {});
    in_state(&system, long, "running");
    eventually("the command runs", SOON, || (running("/bin/sleep 81234") == 1).then_some(()));
    system.rhizome(&["job", "cancel", &long.to_string()]).ok();
    in_state(&system, long, "cancelled");
    assert_eq!(running("/bin/sleep 81234"), 0);

    // A command of a machine that is not there fails, and fails again.
    let lost = Work::Act {
        kind: WorkloadKind::Machine,
        id: id("nowhere"),
        action: Action::Exec { command: vec!["/bin/true".into()] },
    };
    let lost = direct.submit("lost", lost, |job| job.max_attempts = 1);
    in_state(&system, lost, "failed");
    let again = system.rhizome(&["job", "retry", &lost.to_string()]).ok().json();
    assert_eq!(system.rhizome(&["job", "retry", &lost.to_string()]).ok().json(), again, "once");
    let second: JobId = again["id"].as_str().unwrap().parse().unwrap();
    let job = in_state(&system, second, "failed");
    assert_eq!(job["again"], lost.to_string(), "{job:#?}");
    let waits = direct.exec("waits", &["/bin/sleep", "91234"], |_| {});
    in_state(&system, waits, "running");
    system.rhizome(&["job", "retry", &waits.to_string()]).refused(3, "conflict");
    system.rhizome(&["job", "release", &waits.to_string()]).refused(3, "conflict");

    // Its runner dies under it: it is set aside, listed, and released.
    let runner = runners(&system, "machine-actions", 1).unwrap()[0];
    kill(Pid::from_raw(runner), Signal::SIGKILL).unwrap();
    in_state(&system, waits, "quarantined");
    let dead = system.rhizome(&["queues", "--dead", "machine-actions"]).ok().stdout;
    assert!(dead.contains(&waits.to_string()), "{dead}");
    let released = system.rhizome(&["job", "release", &waits.to_string()]).ok().json();
    let released: JobId = released["id"].as_str().unwrap().parse().unwrap();
    in_state(&system, released, "running");
    system.rhizome(&["job", "cancel", &released.to_string()]).ok();
    in_state(&system, released, "cancelled");
    let nobody = JobId([0xee; 16]).to_string();
    system.rhizome(&["job", &nobody]).refused(1, "not_found");

    // What it printed is shown, and what it was for.
    let printed = direct.exec("prints", &["/bin/echo", "hello from inside"], |_| {});
    let job = in_state(&system, printed, "succeeded");
    assert_eq!(job["log"], serde_json::json!(["hello from inside"]), "{job:#?}");
    assert_eq!(job["work"], "exec");
    let audit = std::fs::read_to_string(system.state.join("node-1/audit.log")).unwrap();
    for line in ["\"what\":\"cancel\"", "\"what\":\"again\"", &lost.to_string()] {
        assert!(audit.contains(line), "{line} is not in the audit log:\n{audit}");
    }
}

#[test]
fn an_account_has_its_limits() {
    let system = System::start();
    deploy_machine(&system);
    let direct = Direct::open(&system);
    system.rhizome(&["limits", "set", "1", "--concurrency", "1"]).ok();
    let limits = system.rhizome(&["limits"]).ok().json();
    assert_eq!(limits["limits"][0]["account"], "1", "{limits}");
    assert_eq!(limits["limits"][0]["concurrency"], 1, "{limits}");
    let first = direct.exec("first", &["/bin/sleep", "61234"], |_| {});
    in_state(&system, first, "running");
    let second = direct.exec("second", &["/bin/true"], |_| {});
    // The node's own upkeep shows that the queue goes on; this one has to wait.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(job(&system, second).unwrap()["state"], "queued");
    let accounts = queue(&system, "machine-actions")["accounts"].clone();
    let own = accounts.as_array().unwrap().iter().find(|a| a["account"] == 1).unwrap();
    assert_eq!((&own["running"], &own["ready"]), (&1.into(), &1.into()), "{own}");
    system.rhizome(&["limits", "set", "1"]).ok();
    in_state(&system, second, "succeeded");
    system.rhizome(&["job", "cancel", &first.to_string()]).ok();
    system.rhizome(&["limits", "set", "1", "--concurrency", "0"]).refused(2, "bad_request");
}

#[test]
fn a_stranger_sees_and_changes_nothing_of_others() {
    let system = System::start();
    let key = system.state.join("stranger.key");
    let key = key.to_string_lossy().into_owned();
    system.rhizome(&["--key", &key, "key", "new"]).ok();
    system.rhizome(&["--key", &key, "account", "register"]).ok();
    let stranger = |args: &[&str]| system.rhizome(&[&["--key", &key], args].concat());
    let held = hold(&system, "volume.1.app.data");
    deploy_volumes(&system, &["data"]);
    let id = making("data").to_string();
    in_state(&system, making("data"), "running");
    let nobodys = "ee".repeat(16);
    for command in [&["job", &id][..], &["job", "cancel", &id], &["job", "retry", &id]] {
        let words = stranger(command).refused(1, "not_found").json()["error"].clone();
        let nowhere = [&command[..command.len() - 1], &[nobodys.as_str()]].concat();
        let not_there = stranger(&nowhere).refused(1, "not_found").json()["error"].clone();
        let same = words.as_str().unwrap().replace(&id, &nobodys);
        assert_eq!(same, not_there.as_str().unwrap(), "it tells that the job exists");
    }
    for command in [
        &["queues"][..],
        &["runners"],
        &["runners", "scale", "volume=0"],
        &["runners", "pause", "volume"],
        &["limits"],
        &["limits", "set", "default", "--concurrency", "1"],
    ] {
        stranger(command).refused(3, "unauthorised");
    }
    assert_eq!(
        stranger(&["queues", "--dead", "volume"]).ok().json()["dead"],
        serde_json::json!([])
    );
    drop(held);
    ready(&system);
    assert_eq!(pool(&system, "volume")["mode"], "running");
    let audit = std::fs::read_to_string(system.state.join("node-1/audit.log")).unwrap();
    assert!(audit.contains("\"what\":\"runners\"") && audit.contains("unauthorised"), "{audit}");
    // What an operator signed for one node counts on no other: the path that is signed names it.
    system.rhizome(&["runners", "--node", "7"]).refused(1, "not_found");
}

#[test]
fn one_trace_leads_from_the_envelope_through_every_attempt() {
    let system = System::start();
    let source = "log(\"as told\"); volume(\"data\", #{ size: \"4MiB\" });";
    let script = system.script("app.rhai", source);
    let document = system.rhizome(&["document", &script, "--name", "app"]).ok().stdout;
    let envelope = system.with_input(&["sign", "-"], &document).ok().stdout;
    let submitted = system.with_input(&["submit", "-"], &envelope).ok().json();
    let made = job(&system, making("data")).unwrap();
    let trace = made["trace"].as_str().unwrap().to_owned();
    assert_eq!(submitted["trace"], trace, "{submitted:#?}");
    assert_eq!(submitted["job"], JobId::script(&app(), Version(1)).to_string());
    let evaluated = job(&system, JobId::script(&app(), Version(1))).unwrap();
    assert_eq!(evaluated["trace"], trace);
    assert_eq!(evaluated["log"], serde_json::json!(["as told"]), "{evaluated:#?}");
    assert_eq!(made["parent"], evaluated["id"]);
    for log in ["coord.log", "node-1.log"] {
        let text = std::fs::read_to_string(system.state.join("logs").join(log)).unwrap();
        assert!(text.contains(&format!("trace_id={trace}")), "{log} does not tell of {trace}");
    }
    let shown = system.plain(&["job", made["id"].as_str().unwrap()]).ok().stdout;
    assert!(shown.contains(&trace) && shown.contains("ensure of 1/app/data"), "{shown}");
    let metrics = metrics(&system);
    for line in [
        "rhizome_queue_ready{queue=\"volume\"}",
        "rhizome_queue_ended_total{queue=\"volume\",state=\"succeeded\"}",
        "rhizome_runners{queues=\"volume\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
}

/// What the supervisor tells Prometheus, once it has looked at the queue after the deployment.
fn metrics(system: &System) -> String {
    use std::io::{Read, Write};
    let node = std::fs::read(system.state.join("node-1/node.json")).unwrap();
    let node: Value = serde_json::from_slice(&node).unwrap();
    let listen = node["listen"].as_str().unwrap();
    eventually("a look at the queues", SOON, || {
        let mut stream = std::net::TcpStream::connect(listen).unwrap();
        let request =
            format!("GET /metrics HTTP/1.1\r\nhost: {listen}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.contains("state=\"succeeded\"").then_some(text)
    })
}
