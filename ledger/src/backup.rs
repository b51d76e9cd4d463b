//! Backup and restore: one file, the same for either store.
//!
//! ```text
//!   {"rhizome_ledger": 1}
//!   {"table": "farms", "columns": [["id", "int"], …]}
//!   [1, "north", …]                      one line for each row
//!   {"rows": 4711}                       the end: a file without it is not whole
//! ```
//!
//! A backup is what the database was at one moment, while the ledger runs. A restore is one
//! transaction: all of it or nothing.

use std::io::Write;
use std::path::Path;

use rhizome_database::{Database, DatabaseUrl, Kind, Value, query, query_built, read_table};
use rhizome_model::{Code, Failure};
use serde_json::{Value as Json, json};

use crate::db::{DbError, MIGRATIONS, insert_rows};

const FORMAT: u64 = 1;
/// Nodes have seen statements that are newer than the backup, and take none that is older than what
/// they have seen: a restored ledger goes on from far beyond them.
const REVISIONS_AHEAD: i64 = 1 << 32;
/// These have rows in a new database as well.
const NEVER_EMPTY: [&str; 2] = ["settings", "sequences"];

/// Writes the ledger into a file, for its owner's eyes only; how many rows.
pub async fn backup(url: &DatabaseUrl, file: &Path) -> Result<u64, Failure> {
    if let DatabaseUrl::Sqlite(path) = url
        && !path.exists()
    {
        let message = format!("there is no database {}", path.display());
        return Err(Failure::new(Code::NotFound, message));
    }
    let fail = |e: &dyn std::fmt::Display| {
        let message = format!("cannot write a backup of {url} to {}: {e}", file.display());
        Failure::new(Code::StateNotWritable, message)
    };
    let mut text = Vec::new();
    let rows = dump(url, &mut text).await.map_err(|e| fail(&e))?;
    write_whole(file, &text).map_err(|e| fail(&e))?;
    Ok(rows)
}

/// Whole or not at all.
fn write_whole(file: &Path, text: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let new = Path::new(&name);
    let mut options = std::fs::OpenOptions::new();
    let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(new)?;
    out.write_all(text)?;
    out.sync_all()?;
    std::fs::rename(new, file)?;
    let folder = file.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder)?.sync_all()
}

async fn dump(url: &DatabaseUrl, out: &mut Vec<u8>) -> Result<u64, DbError> {
    let database = Database::open(url, &MIGRATIONS).await?;
    let names = database.tables().await?;
    let mut tx = database.snapshot().await?;
    let mut count = 0;
    line(out, &json!({ "rhizome_ledger": FORMAT }));
    for name in names {
        let table = read_table(&mut tx, &name).await?;
        let columns: Vec<_> =
            table.columns.iter().map(|(c, kind)| json!([c, word(*kind)])).collect();
        line(out, &json!({ "table": name, "columns": columns }));
        for row in table.rows {
            count += 1;
            line(out, &Json::Array(row.into_iter().map(to_json).collect()));
        }
    }
    line(out, &json!({ "rows": count }));
    drop(tx);
    database.close().await;
    Ok(count)
}

fn line(out: &mut Vec<u8>, json: &Json) {
    out.extend_from_slice(json.to_string().as_bytes());
    out.push(b'\n');
}

const fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Int => "int",
        Kind::Bool => "bool",
        Kind::Text => "text",
        Kind::Bytes => "bytes",
    }
}

fn to_json(value: Value) -> Json {
    match value {
        Value::Int(v) => v.into(),
        Value::Bool(v) => v.into(),
        Value::Text(v) => v.into(),
        Value::Bytes(v) => v.map(hex::encode).into(),
    }
}

fn from_json(json: &Json, kind: Kind) -> Option<Value> {
    Some(match (kind, json) {
        (_, Json::Null) => kind.null(),
        (Kind::Int, Json::Number(n)) => n.as_i64()?.into(),
        (Kind::Bool, Json::Bool(b)) => (*b).into(),
        (Kind::Text, Json::String(s)) => s.into(),
        (Kind::Bytes, Json::String(s)) => hex::decode(s).ok()?.into(),
        _ => return None,
    })
}

/// A table of a backup.
struct Saved {
    name: String,
    columns: Vec<(String, Kind)>,
    rows: Vec<Vec<Value>>,
}

/// Puts a backup in place of what is in a database; how many rows. One that holds anything is refused,
/// unless it is to be replaced.
pub async fn restore(url: &DatabaseUrl, file: &Path, replace: bool) -> Result<u64, Failure> {
    let bad = |why: String| {
        Failure::new(
            Code::BadRequest,
            format!("{} is no backup of a ledger: {why}", file.display()),
        )
    };
    let text = std::fs::read_to_string(file).map_err(|e| bad(e.to_string()))?;
    let tables = parse(&text).map_err(bad)?;
    let fail = |e: &dyn std::fmt::Display| {
        Failure::new(Code::StateNotWritable, format!("cannot restore into {url}: {e}"))
    };
    let database = Database::open(url, &MIGRATIONS).await.map_err(|e| fail(&e))?;
    let known = database.tables().await.map_err(|e| fail(&e))?;
    let mut tx = database.begin().await.map_err(|e| fail(&e))?;
    if let Some(strange) = tables.iter().find(|table| !known.contains(&table.name)) {
        return Err(bad(format!(
            "it has a table '{}' that this version does not know",
            strange.name
        )));
    }
    for name in known.iter().filter(|name| !NEVER_EMPTY.contains(&name.as_str())) {
        let rows = read_table(&mut tx, name).await.map_err(|e| fail(&e))?.rows;
        if !replace && !rows.is_empty() {
            let message = format!("{url} is in use: it has rows in '{name}'; --replace drops them");
            return Err(Failure::new(Code::Conflict, message));
        }
    }
    let put = async {
        for name in known.iter().rev() {
            query_built(format!("DELETE FROM {name}")).execute(&mut tx).await?;
        }
        let mut count = 0;
        for table in tables {
            count += table.rows.len() as u64;
            let columns: Vec<_> = table.columns.iter().map(|(name, _)| name.as_str()).collect();
            let target = format!("{} ({})", table.name, columns.join(", "));
            insert_rows(&mut tx, &target, "", table.rows).await?;
        }
        query("UPDATE sequences SET last = last + $1 WHERE name = 'revision'")
            .bind(REVISIONS_AHEAD)
            .execute(&mut tx)
            .await?;
        tx.commit().await?;
        Ok::<_, DbError>(count)
    };
    let count = put.await.map_err(|e| fail(&e))?;
    database.close().await;
    Ok(count)
}

/// The tables of a backup that is whole.
fn parse(text: &str) -> Result<Vec<Saved>, String> {
    let mut lines = text.lines().map(serde_json::from_str::<Json>);
    let head = lines.next().and_then(Result::ok).unwrap_or_default();
    if head["rhizome_ledger"] != FORMAT {
        return Err("its first line is another".into());
    }
    let mut tables: Vec<Saved> = Vec::new();
    let mut count = 0_u64;
    let mut whole = false;
    for (number, line) in (2..).zip(lines) {
        let wrong = || format!("line {number} is not understood");
        let line = line.map_err(|_| wrong())?;
        match (&line, tables.last_mut()) {
            _ if whole => return Err(wrong()),
            (Json::Object(end), _) if end.contains_key("rows") => {
                whole = line["rows"] == count;
            }
            (Json::Object(_), _) => tables.push(table(&line).ok_or_else(wrong)?),
            (Json::Array(row), Some(table)) if row.len() == table.columns.len() => {
                let values =
                    row.iter().zip(&table.columns).map(|(v, (_, kind))| from_json(v, *kind));
                table.rows.push(values.collect::<Option<_>>().ok_or_else(wrong)?);
                count += 1;
            }
            _ => return Err(wrong()),
        }
    }
    if whole { Ok(tables) } else { Err("its end is missing".into()) }
}

fn table(line: &Json) -> Option<Saved> {
    let name = name(line["table"].as_str()?)?;
    let columns = line["columns"].as_array()?.iter().map(|column| {
        let kind = [Kind::Int, Kind::Bool, Kind::Text, Kind::Bytes];
        let kind = kind.into_iter().find(|kind| column[1] == word(*kind))?;
        Some((self::name(column[0].as_str()?)?, kind))
    });
    Some(Saved { name, columns: columns.collect::<Option<_>>()?, rows: Vec::new() })
}

/// A name that becomes part of a statement.
fn name(text: &str) -> Option<String> {
    let plain = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit());
    plain.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_is_refused() {
        let good = "{\"rhizome_ledger\":1}\n{\"table\":\"t\",\"columns\":[[\"a\",\"int\"]]}\n[1]\n{\"rows\":1}\n";
        assert_eq!(parse(good).unwrap()[0].rows, [[Value::from(1_i64)]]);
        for bad in [
            String::new(),
            good.replace(":1}\n{", ":2}\n{"),
            good.replace("[1]", "[\"x\"]"),
            good.replace("[1]", "[1,2]"),
            good.replace("[1]\n", ""),
            good.replace("{\"rows\":1}\n", ""),
            good.replace("\"t\"", "\"t; DROP\""),
            format!("{good}[2]\n"),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }
}
