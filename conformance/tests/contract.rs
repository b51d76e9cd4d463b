//! Every case against every backend, each a test of its own. What cannot be run here is ignored.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use rhizome_conformance::{Backend, Case, Flaw, Model, Redis, Verdict, all, run_case};

fn main() -> ExitCode {
    let backends: [Arc<dyn Backend>; 4] = [
        Arc::new(Redis::functions()),
        Arc::new(Redis::scripts()),
        Arc::new(Redis::valkey()),
        Arc::new(Model::default()),
    ];
    let mut trials = Vec::new();
    for backend in &backends {
        trials.extend(all().map(|case| holds(backend.clone(), case)));
    }
    trials.extend(FLAWS.map(|(flaw, name)| is_found(flaw, name)));
    trials.push(Trial::test("the_guarantees_name_all_cases", the_guarantees_name_all_cases));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn holds(backend: Arc<dyn Backend>, case: &'static Case) -> Trial {
    let lacks = || case.needs.iter().any(|capability| backend.lacks(*capability).is_some());
    let skipped = backend.is_missing().is_some() || lacks();
    let name = format!("{}::{}", backend.name(), case.name);
    let test = move || match verdict(backend, case)? {
        Verdict::Held(_) => Ok(()),
        Verdict::Broken(why) => Err(Failed::from(format!("{}: {why}", case.guarantee))),
        // Asked for all the same.
        Verdict::Skipped(why) => Err(Failed::from(format!("it cannot be run: {why}"))),
    };
    Trial::test(name, test).with_ignored_flag(skipped)
}

fn verdict(backend: Arc<dyn Backend>, case: &'static Case) -> std::io::Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build()?;
    Ok(runtime.block_on(run_case(backend, case)))
}

/// What the queue promises is what the cases show, by name.
fn the_guarantees_name_all_cases() -> Result<(), Failed> {
    let head = include_str!("../../queue/src/lib.rs");
    let promises =
        head.split("//! # Guarantees").nth(1).and_then(|rest| rest.split("//! # How").next());
    let named: BTreeSet<&str> =
        promises.ok_or("it promises nothing")?.split('`').skip(1).step_by(2).collect();
    let cases: BTreeSet<&str> = all().map(|case| case.name).collect();
    if let Some(unnamed) = cases.difference(&named).next() {
        return Err(format!("the head of the queue does not name {unnamed}").into());
    }
    match named.difference(&cases).find(|name| name.contains('_')) {
        Some(unknown) => {
            Err(format!("the head of the queue names {unknown}, which is no case").into())
        }
        None => Ok(()),
    }
}

/// Promises that are not kept, and a case that finds out.
const FLAWS: [(Flaw, &str); 10] = [
    (Flaw::TakesAgain, "a_job_is_accepted_once"),
    (Flaw::NoFence, "a_stale_attempt_writes_nothing"),
    (Flaw::CountsReleases, "a_released_attempt_does_not_count"),
    (Flaw::NoTurns, "accounts_take_turns"),
    (Flaw::StartsLate, "nothing_starts_late"),
    (Flaw::NoPause, "a_pause_is_of_one_queue"),
    (Flaw::NoLimits, "an_account_runs_no_more_than_it_may"),
    (Flaw::NoOrder, "an_order_is_one_at_a_time"),
    (Flaw::KeepsChildren, "children_go_with_their_parent"),
    (Flaw::ForgivesDeath, "a_job_that_kills_its_runners_is_set_aside"),
];

fn is_found(flaw: Flaw, name: &'static str) -> Trial {
    Trial::test(format!("a_flaw_is_found::{flaw:?}"), move || {
        let case = all().find(|case| case.name == name).ok_or("there is no such case")?;
        match verdict(Arc::new(Model::with(flaw)), case)? {
            Verdict::Broken(_) => Ok(()),
            other => Err(Failed::from(format!("{name} with {flaw:?}: {other:?}"))),
        }
    })
}
