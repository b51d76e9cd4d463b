//! Scripts that survive: whatever dies while one is evaluated, it ends as if nothing had.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod world;

use std::fmt::Write;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rhizome_model::{Code, OnFailure, Phase, Policy};

use world::{Ended, World};

/// One statement of a script; numbers name earlier declarations, as far as there are any.
#[derive(Debug, Clone)]
enum Statement {
    Declare { mib: u8 },
    DeclareBad,
    Read(usize),
    Act(usize),
    Caught(usize),
    Log,
    Output,
    Fail,
}

fn statement() -> impl Strategy<Value = Statement> {
    prop_oneof![
        6 => (1u8..5).prop_map(|mib| Statement::Declare { mib }),
        1 => Just(Statement::DeclareBad),
        4 => any::<usize>().prop_map(Statement::Read),
        4 => any::<usize>().prop_map(Statement::Act),
        2 => any::<usize>().prop_map(Statement::Caught),
        2 => Just(Statement::Log),
        2 => Just(Statement::Output),
        1 => Just(Statement::Fail),
    ]
}

fn source(statements: &[Statement]) -> String {
    let mut source = String::from("let last = 0;\n");
    let mut names: Vec<String> = Vec::new();
    for (n, statement) in statements.iter().enumerate() {
        let pick = |at: &usize| names.get(at % names.len().max(1)).cloned();
        let line = match statement {
            Statement::Declare { mib } => {
                names.push(format!("v{n}"));
                format!("let v{n} = volume(\"v{n}\", #{{ size: \"{mib}MiB\" }});")
            }
            Statement::DeclareBad => {
                names.push(format!("v{n}"));
                format!("let v{n} = volume(\"bad{n}\", #{{ size: \"1MiB\" }});")
            }
            Statement::Log => format!("log(`{n} ${{last}}`);"),
            Statement::Fail => format!("if last > {} {{ fail(\"enough\"); }}", n % 3),
            Statement::Read(at) => match pick(at) {
                Some(v) => format!("log(`{v} ${{{v}.used}}`);"),
                None => continue,
            },
            Statement::Act(at) => match pick(at) {
                Some(v) => format!("last = {v}.wait().exit_code;"),
                None => continue,
            },
            Statement::Caught(at) => match pick(at) {
                Some(v) => {
                    format!("try {{ last = {v}.wait().exit_code; }} catch (e) {{ log(e.code); }}")
                }
                None => continue,
            },
            Statement::Output => format!("output(\"o{n}\", last);"),
        };
        // Writing to a String does not fail.
        let _ = writeln!(source, "{line}");
    }
    source
}

async fn undisturbed(
    world: &World,
    name: &str,
    policy: &Policy,
    versions: &[String],
) -> Vec<Ended> {
    let runner = world.script_runner();
    let mut ends = Vec::new();
    for (n, source) in versions.iter().enumerate() {
        let job = world.submit(name, n as u64 + 1, policy.clone(), source).await;
        ends.push(world.ended(name, job).await);
    }
    world.kill(runner).await;
    ends
}

async fn disturbed(
    world: &World,
    name: &str,
    policy: &Policy,
    versions: &[String],
    deaths: &[u64],
) -> Vec<Ended> {
    let mut ends = Vec::new();
    for (n, source) in versions.iter().enumerate() {
        let job = world.submit(name, n as u64 + 1, policy.clone(), source).await;
        for micros in deaths {
            let runner = world.script_runner();
            tokio::time::sleep(Duration::from_micros(*micros)).await;
            world.kill(runner).await;
        }
        let runner = world.script_runner();
        ends.push(world.ended(name, job).await);
        world.kill(runner).await;
    }
    ends
}

/// Two versions of random scripts; the runner dies at random moments of the one run and not of the other.
#[test]
fn a_script_whose_runners_die_ends_as_one_whose_runner_lives() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let world = runtime.block_on(World::new());
    let cases = std::env::var("RHIZOME_SCRIPTS").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    let seed = match std::env::var("RHIZOME_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => uuid::Uuid::new_v4().as_u64_pair().0,
    };
    println!("RHIZOME_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config =
        Config { cases, max_shrink_iters: 30, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let script = || proptest::collection::vec(statement(), 1..14);
    let keep = any::<bool>();
    let deaths = proptest::collection::vec(3_000u64..60_000, 1..4);
    let number = std::cell::Cell::new(0);
    let ended = runner.run(&(script(), script(), keep, deaths), |(first, second, keep, deaths)| {
        number.set(number.get() + 1);
        let number = number.get();
        let versions = [source(&first), source(&second)];
        let on_failure = if keep { OnFailure::Keep } else { OnFailure::Rollback };
        let policy = Policy { on_failure, ..Policy::default() };
        let (calm, stormy) = (format!("calm-{number}"), format!("stormy-{number}"));
        let (calm, stormy) = runtime.block_on(async {
            (
                undisturbed(&world, &calm, &policy, &versions).await,
                disturbed(&world, &stormy, &policy, &versions, &deaths).await,
            )
        });
        prop_assert_eq!(calm, stormy, "{}\n---\n{}", &versions[0], &versions[1]);
        Ok(())
    });
    ended.unwrap_or_else(|failure| panic!("RHIZOME_SEED={seed}: {failure}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_is_caught_is_not_that_of_the_script() {
    let world = World::new().await;
    let source =
        "let a = volume(\"a\", #{ size: \"1MiB\" }); let b = volume(\"bad\", #{ size: \"1MiB\" });
        try { b.used; } catch (e) { output(\"code\", e.code); }
        output(\"a\", a.used);";
    let ends = undisturbed(&world, "caught", &Policy::default(), &[source.into()]).await;
    assert_eq!((ends[0].phase, ends[0].code), (Phase::Ready, None));
    assert_eq!(ends[0].outputs["code"], "invalid_spec");
    assert_eq!(ends[0].volumes.keys().collect::<Vec<_>>(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cause_is_told_with_its_line() {
    let world = World::new().await;
    let source = "let a = volume(\"bad-a\", #{ size: \"1MiB\" });\nlet b = volume(\"bad-b\", #{ size: \"1MiB\" });\na.used;";
    let runner = world.script_runner();
    let job = world.submit("causes", 1, Policy::default(), source).await;
    let ended = world.ended("causes", job).await;
    world.kill(runner).await;
    assert_eq!((ended.phase, ended.code), (Phase::Failed, Some(Code::InvalidSpec)));
    assert!(ended.volumes.is_empty(), "a first version that fails leaves nothing");
    let task = world.queue.task(&"1/causes".parse().unwrap()).await.unwrap().unwrap();
    let detail = task.failure.unwrap().detail.unwrap();
    assert!(
        detail.contains("line 1: volume 'bad-a'") && detail.contains("line 2: volume 'bad-b'"),
        "{detail}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_that_follow_from_each_other_cost_one_write_each_and_those_that_do_not_share() {
    let world = World::new().await;
    let runner = world.script_runner();
    let after_each_other =
        "let v = volume(\"v\", #{ size: \"1MiB\" }); for i in 0..50 { v.wait(); }";
    let job = world.submit("chain", 1, Policy::default(), after_each_other).await;
    assert_eq!(world.ended("chain", job).await.phase, Phase::Ready);
    let writes = world.writes(job);
    // The volume and 50 actions: how each ended was written with the end of its job.
    assert_eq!(writes, 51);
    let side_by_side = "for i in 0..500 { volume(`v-${i}`, #{ size: \"1MiB\" }); }";
    let job = world.submit("flat", 1, Policy::default(), side_by_side).await;
    assert_eq!(world.ended("flat", job).await.volumes.len(), 500);
    let writes = world.writes(job);
    assert!(writes < 450, "{writes} writes for 500 declarations");
    world.kill(runner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_reads_without_end_is_ended() {
    let world = World::new().await;
    let source = "let v = volume(\"talkative\", #{ size: \"1MiB\" }); loop { v.wait(); }";
    let ends = undisturbed(&world, "reads", &Policy::default(), &[source.into()]).await;
    assert_eq!((ends[0].phase, ends[0].code), (Phase::Failed, Some(Code::ScriptLimit)));
    assert!(ends[0].volumes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_does_something_else_stops_and_goes_back() {
    let source = "let a = volume(\"a\", #{ size: \"1MiB\" }); log(\"one\");
        let slow = volume(\"slow\", #{ size: \"1MiB\" }); slow.wait();";
    let cases = [
        (0, "1048576", "2097152", "declares volume 'a' in line 1 with another spec"),
        (1, "one", "two", "logs \"two\", but now it logs \"one\""),
        (3, "wait", "stop", "does stop with 'slow', but now it does wait with 'slow'"),
    ];
    let world = World::new().await;
    for (call, from, to, words) in cases {
        let name = format!("other-{call}");
        let job = world.submit(&name, 1, Policy::default(), source).await;
        let runner = world.script_runner();
        world.until_journaled(&name, 3).await;
        world.kill(runner).await;
        world.falsify(&name, call, from, to);
        let runner = world.script_runner();
        let ended = world.ended(&name, job).await;
        world.kill(runner).await;
        assert_eq!((ended.phase, ended.code), (Phase::Failed, Some(Code::NondeterministicScript)));
        let task = world.queue.task(&format!("1/{name}").parse().unwrap()).await.unwrap().unwrap();
        let message = task.failure.unwrap().message;
        assert!(message.contains(words), "{message}");
        assert!(ended.volumes.is_empty(), "{name} has gone back: {:?}", ended.volumes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_while_no_script_runner_lived_is_in_the_journal_and_not_done_again() {
    let source = "let slow = volume(\"slow\", #{ size: \"1MiB\" });
        output(\"times\", slow.wait().exit_code);";
    let world = World::new().await;
    let job = world.submit("alone", 1, Policy::default(), source).await;
    let runner = world.script_runner();
    world.until_journaled("alone", 1).await;
    world.kill(runner).await;
    world.until_answered("alone", 1).await;
    world.forget_act("alone", 1);
    let runner = world.script_runner();
    let ended = world.ended("alone", job).await;
    world.kill(runner).await;
    assert_eq!((ended.phase, ended.acts["slow"]), (Phase::Ready, 1));
    assert_eq!(ended.outputs["times"], 1);
}
