use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_800_000_000;

fn boot_id(n: u8) -> BootId {
    format!("{n:08x}-0000-4000-8000-000000000000").parse().unwrap()
}

fn report(boot: u8, sequence: i64, uptime: i64, at: i64) -> Report {
    Report { boot: Some((boot_id(boot), sequence)), uptime, at }
}

fn plain(uptime: i64, at: i64) -> Report {
    Report { boot: None, uptime, at }
}

fn spans(history: &History) -> Vec<(i64, i64)> {
    let last = history.now.iter().map(|(span, _)| *span);
    history.spans.iter().copied().chain(last).map(|s| (s.from - NOW, s.until - NOW)).collect()
}

fn told(history: &History) -> Vec<&'static str> {
    history.events.iter().map(|e| e.kind.word()).collect()
}

/// Our clock has long passed all of them.
fn after(reports: &[Report]) -> History {
    let mut history = History::default();
    for report in reports {
        assert_eq!(history.take(report, NOW + 1_000_000), Verdict::Stored, "{report:?}");
    }
    history
}

#[test]
fn reports_in_time_make_one_span() {
    let history =
        after(&[report(1, 1, 10, NOW), report(1, 2, 2410, NOW + 2400), plain(4810, NOW + 4800)]);
    assert_eq!((spans(&history), told(&history)), (vec![(-10, 4800)], vec![]));
    let (_, boot) = history.now.unwrap();
    assert_eq!((boot.id, boot.started, boot.sequence), (Some(boot_id(1)), NOW - 10, 2));
}

#[test]
fn silence_is_a_gap_until_it_is_filled() {
    let first = report(1, 1, 10, NOW);
    let last = report(1, 5, 20_010, NOW + 20_000);
    let mut history = after(&[first, last]);
    assert_eq!(spans(&history), [(-10, 0), (16_400, 20_000)]);
    assert_eq!(told(&history), Vec::<&str>::new(), "a gap is what lies between spans");
    for at in [3000, 6000, 9000, 12_000, 15_000, 18_000] {
        history.take(&plain(10 + at, NOW + at), NOW + 1_000_000);
    }
    assert_eq!(spans(&history), [(-10, 20_000)]);
}

#[test]
fn a_restart_is_told_with_and_without_a_boot_id() {
    for next in [report(2, 1, 100, NOW + 2400), plain(100, NOW + 2400)] {
        let history = after(&[report(1, 1, 5000, NOW), next]);
        assert_eq!(spans(&history), [(-3600, 0), (2300, 2400)]);
        assert_eq!(told(&history), ["restart"]);
        assert_eq!(history.boots.len(), 1);
    }
}

#[test]
fn more_uptime_than_time_is_a_lie_and_gains_an_hour_at_most() {
    for next in [report(1, 2, 99_999, NOW + 2400), plain(99_999, NOW + 2400)] {
        let history = after(&[report(1, 1, 10, NOW), next]);
        assert_eq!((spans(&history), told(&history)), (vec![(-1200, 2400)], vec!["lie"]));
    }
    // A boot that claims to have run while another did.
    let history = after(&[report(1, 1, 10, NOW), report(2, 1, 5000, NOW + 2400)]);
    assert_eq!(told(&history), ["lie"]);
}

#[test]
fn a_clock_that_is_set_or_wrong_is_told() {
    let history = after(&[report(1, 1, 10, NOW), report(1, 2, 1000, NOW + 2400)]);
    assert_eq!(told(&history), ["skew"]);
    let mut history = History::default();
    let hour_ahead = report(1, 1, 10, NOW + 3600);
    assert!(matches!(history.take(&hour_ahead, NOW), Verdict::Refused(_)));
    assert_eq!((told(&history), history.now), (vec!["skew"], None));
}

#[test]
fn what_will_never_be_taken() {
    let mut history = History::default();
    let old = NOW - RETENTION_SECS - 1;
    for bad in [plain(1, old), plain(NOW + 1, NOW), plain(1, i64::MAX), plain(i64::MAX, NOW)] {
        assert!(matches!(history.take(&bad, NOW), Verdict::Refused(_)), "{bad:?}");
    }
    assert_eq!(history.now, None);
}

#[test]
fn a_report_that_comes_again_is_known() {
    let first = report(1, 1, 10, NOW);
    let other = report(2, 1, 10, NOW + 9000);
    let mut history = after(&[first.clone(), other.clone()]);
    let before = history.clone();
    for again in [first, other] {
        assert_eq!(history.take(&again, NOW + 1_000_000), Verdict::Known);
    }
    assert_eq!(history, before);
}

#[test]
fn a_boot_that_is_heard_of_late_is_no_restart() {
    let history = after(&[report(2, 1, 10, NOW + 9000), report(1, 1, 10, NOW)]);
    assert_eq!((spans(&history), told(&history)), (vec![(-10, 0), (8990, 9000)], vec![]));
    assert_eq!(history.boots[0].id, Some(boot_id(1)));
}

proptest! {
    /// Whatever comes, in whatever order: what is up is the union of what was vouched for.
    #[test]
    fn the_order_of_reports_does_not_matter(
        reports in prop::collection::vec((1..20_000i64, 0..200_000i64), 1..40),
    ) {
        let mut history = History::default();
        for (uptime, at) in &reports {
            prop_assert_eq!(history.take(&plain(*uptime, NOW + at), NOW + 1_000_000), Verdict::Stored);
        }
        let up = |t: i64| reports.iter().any(|(u, at)| (at - u.min(&REACH_SECS)..=*at).contains(&t));
        let spans = spans(&history);
        for t in (-20_000..200_001).step_by(97) {
            prop_assert_eq!(spans.iter().any(|(from, until)| (*from..=*until).contains(&t)), up(t));
        }
        prop_assert!(spans.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", spans);
    }
}
