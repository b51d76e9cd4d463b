use proptest::prelude::*;

use super::record::{ENDS, Past, RECOVERED_MS, Record};
use super::step::CANNOT_START;
use super::*;

fn policy(restart: Restart) -> Policy {
    Policy { restart, grace_ms: 10_000 }
}

const EPOCH: i64 = 1_700_000_000_000;

fn record() -> Record {
    Record::new("r".into(), Past::default(), EPOCH)
}

fn run(record: &mut Record, restart: Restart, now: u64) {
    record.step(Event::Started { pid: 7 }, policy(restart), now).unwrap();
    record.started_at = Some(1);
}

fn end(exit_code: i32) -> Event {
    Event::Ended { exit_code, reason: "why".into() }
}

#[test]
fn the_policy_decides_who_rests() {
    for (restart, code, rests) in [
        (Restart::Always, 0, false),
        (Restart::Always, 1, false),
        (Restart::OnFailure, 0, true),
        (Restart::OnFailure, 137, false),
        (Restart::Never, 1, true),
    ] {
        let mut record = record();
        run(&mut record, restart, 0);
        record.step(end(code), policy(restart), 5).unwrap();
        assert_eq!(record.life.is_end(), rests, "{restart:?} {code}");
        assert_eq!(record.exit_code, Some(code));
    }
}

#[test]
fn pauses_double_up_to_five_minutes_and_begin_anew_after_recovery() {
    let mut record = record();
    let (mut now, mut pauses) = (0, Vec::new());
    for _ in 0..11 {
        run(&mut record, Restart::Always, now);
        record.step(end(1), policy(Restart::Always), now).unwrap();
        let until = record.life.due().unwrap();
        pauses.push((until - now) / 1000);
        now = until;
        record.step(Event::Due, policy(Restart::Always), now).unwrap();
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    assert_eq!(record.restarts, 11);
    run(&mut record, Restart::Always, now);
    record.step(end(1), policy(Restart::Always), now + RECOVERED_MS).unwrap();
    assert_eq!(record.life.due(), Some(now + RECOVERED_MS + 1000));
}

#[test]
fn only_the_first_start_can_fail_for_good() {
    let failed = || Event::NotStarted { reason: "no such file".into() };
    let mut record = record();
    record.step(failed(), policy(Restart::Always), 0).unwrap();
    assert!(matches!(record.life, Life::Failed { .. }));

    let mut record = self::record();
    run(&mut record, Restart::Always, 0);
    record.step(end(1), policy(Restart::Always), 0).unwrap();
    record.step(Event::Due, policy(Restart::Always), 1000).unwrap();
    record.step(failed(), policy(Restart::Always), 1000).unwrap();
    assert!(matches!(record.life, Life::BackingOff { .. }));
    assert_eq!(record.exit_code, Some(CANNOT_START));
}

/// A machine that has failed so often and is at the end's pause now.
fn failing(times: u32) -> Record {
    let mut record = record();
    for _ in 0..times {
        run(&mut record, Restart::Always, 0);
        record.step(end(1), policy(Restart::Always), 0).unwrap();
        if record.failures < times {
            record.step(Event::Due, policy(Restart::Always), 0).unwrap();
        }
    }
    record
}

#[test]
fn a_pause_is_waited_out_whoever_dies_meanwhile() {
    let record = failing(3);
    let (now, later) = (EPOCH + 1_000, EPOCH + 60_000);
    let mut next = Record::new("s".into(), record.past(now, 0), now);
    assert_eq!(next.life.due(), Some(3_000), "4 s less the one that has passed");
    assert_eq!((next.failures, next.restarts), (3, 2));
    next.step(Event::Due, policy(Restart::Always), 3_000).unwrap();
    next.step(Event::Started { pid: 8 }, policy(Restart::Always), 3_000).unwrap();
    next.step(end(1), policy(Restart::Always), 3_000).unwrap();
    assert_eq!(next.life.due(), Some(3_000 + 8_000), "it goes on doubling");
    let numbers: Vec<_> = next.ends.iter().map(|e| e.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);

    let next = Record::new("s".into(), record.past(later, 0), later);
    assert_eq!((next.life, next.restarts), (Life::Starting { stop: None }, 3));
    let back = EPOCH - 1_000_000;
    let next = Record::new("s".into(), record.past(back, 0), back);
    assert_eq!(next.life.due(), Some(4_000), "a clock that was set back");
}

#[test]
fn a_loss_is_made_up_for_at_once_and_then_after_pauses() {
    let mut record = record();
    run(&mut record, Restart::Always, 0);
    record.started_at = Some(EPOCH);
    let past = record.past(EPOCH + 5, 0);
    assert_eq!((past.failures, past.restarts), (1, 1));
    let mut next = Record::new("s".into(), past, EPOCH + 5);
    assert_eq!(next.life, Life::Starting { stop: None });

    next.step(Event::Started { pid: 8 }, policy(Restart::Always), 0).unwrap();
    next.started_at = Some(EPOCH + 5);
    let past = next.past(EPOCH + 10, 0);
    assert_eq!(Record::new("t".into(), past, EPOCH + 10).life.due(), Some(1_000));
    let recovered = next.past(EPOCH + 5 + RECOVERED_MS as i64, 0);
    assert_eq!(recovered.failures, 1, "as the first one");
    let rebooted = next.past(EPOCH + 10, EPOCH + 8);
    assert_eq!((rebooted.failures, rebooted.pause), (1, None), "the node's fault");
}

#[test]
fn ends_that_nobody_asked_for_are_noted_and_bounded() {
    let mut record = record();
    run(&mut record, Restart::OnFailure, 0);
    record.step(end(0), policy(Restart::OnFailure), 7).unwrap();
    assert_eq!(record.ends, [], "it did what it should");

    let mut record = self::record();
    run(&mut record, Restart::Never, 0);
    record.step(end(3), policy(Restart::Never), 7).unwrap();
    assert_eq!(record.ends.last().map(|e| (e.at, e.pause_ms)), Some((EPOCH + 7, None)));

    let record = failing(40);
    assert_eq!(record.ends.len(), ENDS);
    assert_eq!(record.ends.last().map(|e| e.number), Some(40));
    assert_eq!(record.past_by_request().failures, 0);
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1..9i32).prop_map(|pid| Event::Started { pid }),
        Just(Event::NotStarted { reason: String::new() }),
        (0..3i32).prop_map(end),
        Just(Event::Stop(Stop::Request)),
        Just(Event::Stop(Stop::Interrupt)),
        Just(Event::Due),
    ]
}

proptest! {
    #[test]
    fn an_end_is_an_end_and_a_stop_always_leads_to_one(events in prop::collection::vec(event(), 0..40)) {
        let mut record = record();
        for (now, event) in events.into_iter().enumerate() {
            let before = record.clone();
            let done = record.step(event, policy(Restart::Always), now as u64);
            prop_assert!(done.is_ok() || record == before);
            prop_assert!(!before.life.is_end() || done.is_err());
            if done.is_ok() && record.life.pid().is_some() {
                record.started_at = Some(1);
            }
        }
        let stop = record.step(Event::Stop(Stop::Request), policy(Restart::Always), 99);
        if stop.is_ok() {
            let _ = record.step(Event::Started { pid: 1 }, policy(Restart::Always), 99);
            let _ = record.step(end(0), policy(Restart::Always), 99);
        }
        prop_assert!(record.life.is_end());
    }
}
