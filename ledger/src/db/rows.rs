//! Statements over many rows at once.
//!
//! The number of rows is part of a statement's text, and a store keeps the plan of each text: so rows
//! go in groups of powers of two, and there are few texts.

use std::fmt::Write as _;

use rhizome_database::{Query, Record, Tx, Value, query_built};

use super::DbError;

/// Stores take 32,766 values in one statement at least; larger ones gain nothing.
const MAX_GROUP: usize = 256;

/// `INSERT INTO target VALUES …, …  tail`, for all rows.
pub async fn insert(
    tx: &mut Tx,
    target: &str,
    tail: &str,
    rows: Vec<Vec<Value>>,
) -> Result<(), DbError> {
    let mut rows = rows.into_iter();
    while let left = rows.len()
        && left > 0
    {
        let group: Vec<_> = rows.by_ref().take(group_of(left)).collect();
        let columns = group.first().map_or(0, Vec::len);
        let places = places(group.len(), columns);
        let statement = query_built(format!("INSERT INTO {target} VALUES {places} {tail}"));
        bind_all(statement, group.into_iter().flatten()).execute(&mut *tx).await?;
    }
    Ok(())
}

/// What `sql` finds, in which `{}` stands for the list of keys.
pub async fn fetch<T: Record>(
    tx: &mut Tx,
    sql: &str,
    keys: impl IntoIterator<Item = impl Into<Value>>,
) -> Result<Vec<T>, DbError> {
    let mut keys = keys.into_iter().map(Into::into).collect::<Vec<Value>>().into_iter();
    let mut found = Vec::new();
    while let left = keys.len()
        && left > 0
    {
        let group: Vec<_> = keys.by_ref().take(group_of(left)).collect();
        let statement = query_built(sql.replace("{}", &places(1, group.len())));
        found.extend(bind_all(statement, group).fetch_all(&mut *tx).await?);
    }
    Ok(found)
}

fn group_of(left: usize) -> usize {
    // The largest power of two that is not above it.
    (1 << left.ilog2()).min(MAX_GROUP)
}

fn bind_all(query: Query, values: impl IntoIterator<Item = Value>) -> Query {
    values.into_iter().fold(query, Query::bind)
}

/// `($1, $2), ($3, $4)`
fn places(rows: usize, columns: usize) -> String {
    let mut text = String::with_capacity(rows * columns * 7);
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            let comma = if column == 0 { "" } else { ", " };
            let _ = write!(text, "{comma}${}", row * columns + column + 1);
        }
        text.push(')');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_on() {
        assert_eq!(places(2, 2), "($1, $2), ($3, $4)");
        assert_eq!(places(1, 3), "($1, $2, $3)");
    }

    #[test]
    fn groups_are_powers_of_two() {
        let groups: Vec<_> = [1, 2, 3, 7, 255, 256, 5000].map(group_of).into();
        assert_eq!(groups, [1, 2, 2, 4, 128, 256, 256]);
    }
}
