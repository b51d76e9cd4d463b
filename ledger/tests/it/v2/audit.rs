use rhizome_database::{Database, Migrator, query};
use rhizome_ledger::{AuditVerdict, verify_audit};
use rhizome_model::statement::KeyChange;

use super::{id, ok};
use crate::harness::Ledger;

async fn database(ledger: &Ledger) -> Database {
    let mut none = Migrator::DEFAULT;
    none.set_ignore_missing(true);
    Database::open(&ledger.home.url, &none).await.unwrap()
}

/// A ledger with a log of seven rows.
async fn filled() -> Ledger {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    let farm = ledger.farm(&owner, "home").await;
    ledger.node(&owner, farm).await;
    for seed in 2..6 {
        let add = KeyChange::Add { key: id(seed), weight: 1 };
        ok(ledger.change_keys(owner.id, add, &[1, seed]).await);
    }
    ledger
}

#[tokio::test]
async fn every_change_is_in_it_and_it_is_whole() {
    let ledger = filled().await;
    let log = ok(ledger.get("/v2/audit").await);
    let actions: Vec<_> =
        log.as_array().unwrap().iter().map(|e| e["action"].as_str().unwrap()).collect();
    assert_eq!(actions[..4], ["account.create", "farm.create", "node.create", "key.add"]);
    assert_eq!(log[3]["key"], serde_json::json!(id(1)));
    let part = ok(ledger.get("/v2/audit?after=5&limit=1").await);
    assert_eq!(part, serde_json::json!([log[5]]));
    let last_hash = log[6]["hash"].as_str().unwrap().to_owned();
    let whole = AuditVerdict::Whole { rows: 7, last_hash: last_hash.clone() };
    assert_eq!(verify_audit(&ledger.home.url, None).await.unwrap(), whole);
    assert_eq!(verify_audit(&ledger.home.url, Some((7, last_hash))).await.unwrap(), whole);
}

#[tokio::test]
async fn what_is_changed_removed_or_moved_is_found() {
    let ledger = filled().await;
    let last = ok(ledger.get("/v2/audit").await)[6]["hash"].as_str().unwrap().to_owned();
    let database = database(&ledger).await;
    for (statements, found) in [
        (&["UPDATE audit SET detail = '{}' WHERE number = 4"][..], 4),
        (&["UPDATE audit SET account = 2 WHERE number = 5"], 5),
        (&["DELETE FROM audit WHERE number = 3"], 3),
        (&["DELETE FROM audit WHERE number = 1"], 1),
        (&["DELETE FROM audit WHERE number > 5"], 6),
        // Two rows change places.
        (
            &[
                "UPDATE audit SET number = 100 WHERE number = 4",
                "UPDATE audit SET number = 4 WHERE number = 5",
                "UPDATE audit SET number = 5 WHERE number = 100",
            ],
            4,
        ),
        // The end is cut off, and the count with it: only who kept the end finds out.
        (
            &[
                "DELETE FROM audit WHERE number > 5",
                "UPDATE sequences SET last = 5 WHERE name = 'audit'",
            ],
            6,
        ),
    ] {
        let kept = rows(&database).await;
        for statement in statements {
            query(statement).execute(&database).await.unwrap();
        }
        let verdict = verify_audit(&ledger.home.url, Some((7, last.clone()))).await.unwrap();
        assert!(
            matches!(&verdict, AuditVerdict::Broken { number, .. } if *number == found),
            "{statements:?}: {verdict:?}"
        );
        restore(&database, kept).await;
        let whole = verify_audit(&ledger.home.url, None).await.unwrap();
        assert!(matches!(whole, AuditVerdict::Whole { rows: 7, .. }), "{whole:?}");
    }
    // A whole chain that is another one.
    let other = verify_audit(&ledger.home.url, Some((7, "00".repeat(32)))).await.unwrap();
    assert!(matches!(other, AuditVerdict::Broken { number: 7, .. }), "{other:?}");
}

type Row = (i64, i64, Option<i64>, String, String, String, String, Vec<u8>);

async fn rows(database: &Database) -> Vec<Row> {
    query(
        "SELECT number, at, account, key, action, subject, detail, hash FROM audit ORDER BY number",
    )
    .fetch_all(database)
    .await
    .unwrap()
}

async fn restore(database: &Database, rows: Vec<Row>) {
    query("DELETE FROM audit").execute(database).await.unwrap();
    for (number, at, account, key, action, subject, detail, hash) in rows {
        query(
            "INSERT INTO audit (number, at, account, key, action, subject, detail, hash)
             VALUES ($1, $2, CAST($3 AS BIGINT), $4, $5, $6, $7, $8)",
        )
        .bind(number)
        .bind(at)
        .bind(account)
        .bind(key)
        .bind(action)
        .bind(subject)
        .bind(detail)
        .bind(hash)
        .execute(database)
        .await
        .unwrap();
    }
    query("UPDATE sequences SET last = 7 WHERE name = 'audit'").execute(database).await.unwrap();
}
