//! What people see: text made from what coord says. Pure, but for [`reporter`].

pub mod deployment;
pub mod event;
pub mod farm;
pub mod node;
pub mod plan;
pub mod queue;
pub mod reporter;

use comfy_table::Table;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A table of columns that are set apart by two blanks.
pub fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows.into_iter().map(|row| row.map(|cell| clean(&cell))));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A date and time to the second.
pub fn date(ms: i64, zone: &TimeZone) -> String {
    at(ms, zone, "%Y-%m-%d %H:%M:%S")
}

/// A time of day to the millisecond.
pub fn clock(ms: i64, zone: &TimeZone) -> String {
    at(ms, zone, "%H:%M:%S%.3f")
}

fn at(ms: i64, zone: &TimeZone, format: &str) -> String {
    match Timestamp::from_millisecond(ms) {
        Ok(time) => time.to_zoned(zone.clone()).strftime(format).to_string(),
        // Only a clock that is years off by millions gets here.
        Err(_) => format!("{ms} ms"),
    }
}

/// Milliseconds as people say them.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

/// Text from elsewhere, without what would steer a terminal.
pub fn clean(text: &str) -> String {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// A JSON value on one line; a text without its quotes.
pub fn value(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => clean(text),
        other => clean(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations() {
        assert_eq!(date(1_700_000_000_123, &TimeZone::UTC), "2023-11-14 22:13:20");
        assert_eq!(clock(1_700_000_000_123, &TimeZone::UTC), "22:13:20.123");
        let shown = [0, 999, 1_500, 119_999, 120_000, 7_200_000].map(duration);
        assert_eq!(shown, ["0 ms", "999 ms", "1.5 s", "120.0 s", "2 min", "2 h"]);
    }

    #[test]
    fn nothing_from_elsewhere_steers_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\r\n"), "a\u{fffd}[2Jb\u{fffd}\n");
    }
}
