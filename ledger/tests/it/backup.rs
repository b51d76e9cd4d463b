use http::Method;
use rhizome_database::{DatabaseUrl, Store};
use rhizome_model::Code;
use serde_json::{Value, json};

use crate::harness::{Home, Ledger, now};

const SHOWN: [&str; 7] = [
    "/v1/farms",
    "/v1/nodes",
    "/v1/accounts?twin_id=1",
    "/v1/accounts?twin_id=2",
    "/v1/nodes/1",
    "/v2/availability?from=0",
    "/v2/farms/2/usage",
];

async fn everything(ledger: &Ledger) -> Vec<Value> {
    let mut all = Vec::new();
    for path in SHOWN {
        let (status, shown) = ledger.get(path).await;
        assert_eq!(status, 200, "{path}");
        all.push(shown);
    }
    all
}

async fn used() -> Ledger {
    let ledger = Ledger::start().await;
    let (a, b) = (ledger.account(1).await, ledger.account(2).await);
    ledger.farm(&a, "north").await;
    ledger.farm(&b, "south").await;
    let node = ledger.node(&a, 2).await;
    let report = json!({ "uptime": 100, "timestamp": now() });
    ledger.send(Method::POST, &format!("/v1/nodes/{node}/uptime"), Some(&a), &report).await;
    let capacity = json!({ "cpu": 1, "memory": 2, "disk": 3 });
    let usage = json!({ "account": 2, "number": 4, "capacity": capacity }).to_string();
    ledger.signed(Method::PUT, "/v2/nodes/1/approval", &b.key, r#"{"approved":true}"#).await;
    ledger.signed(Method::POST, "/v2/nodes/1/usage", &a.key, usage).await;
    ledger
}

/// The database that the tested one is not.
async fn other_store() -> Home {
    match crate::STORE {
        Store::Sqlite => Home::new_postgres().await,
        Store::Postgres => Home::of_file(tempfile::tempdir().unwrap()),
    }
}

#[tokio::test]
async fn a_backup_is_everything_also_in_the_other_store() {
    let ledger = used().await;
    let folder = tempfile::tempdir().unwrap();
    let (file, again) = (folder.path().join("backup"), folder.path().join("again"));
    // While the ledger runs.
    let rows = rhizome_ledger::backup(&ledger.home.url, &file).await.unwrap();
    assert!(rows > 10, "{rows}");
    let shown_before = everything(&ledger).await;
    assert_eq!(shown_before[6][0]["account"], 2);
    for home in [Home::new().await, other_store().await] {
        assert_eq!(rhizome_ledger::restore(&home.url, &file, false).await.unwrap(), rows);
        rhizome_ledger::backup(&home.url, &again).await.unwrap();
        let lines = |path| {
            let text = std::fs::read_to_string(path).unwrap();
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let (before, mut after) = (lines(&file), lines(&again));
        // What nodes have heard since the backup is not taken for newer than what they hear now.
        let revision = |lines: &[String]| {
            let at = lines.iter().position(|l| l.starts_with(r#"["revision","#)).unwrap();
            let row: (String, i64) = serde_json::from_str(&lines[at]).unwrap();
            (at, row.1)
        };
        let ((at, was), (now, is)) = (revision(&before), revision(&after));
        assert!(is > was + 1_000_000, "{is} after {was}");
        after.remove(now);
        after.insert(at, before[at].clone());
        assert_eq!(before, after, "each row of each table");
        let home = home.with_keys_of(&ledger.home);
        let restored = Ledger::start_in(home, "127.0.0.1:0".parse().unwrap()).await;
        let mut shown = everything(&restored).await;
        // The window ends now.
        shown[5] = shown_before[5].clone();
        assert_eq!(shown, shown_before);
        assert_eq!(restored.account(3).await.id, 3, "ids count on");
        restored.stop().await;
    }
}

#[tokio::test]
async fn a_ledger_in_use_is_not_overwritten_unless_told() {
    let (ledger, folder) = (used().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("backup");
    rhizome_ledger::backup(&ledger.home.url, &file).await.unwrap();
    let home = ledger.stop().await;
    let ledger = Ledger::start_in(home, "127.0.0.1:0".parse().unwrap()).await;
    ledger.account(3).await;
    let home = ledger.stop().await;
    let failure = rhizome_ledger::restore(&home.url, &file, false).await.unwrap_err();
    assert_eq!(failure.code, Code::Conflict, "{failure}");
    rhizome_ledger::restore(&home.url, &file, true).await.unwrap();
    let ledger = Ledger::start_in(home, "127.0.0.1:0".parse().unwrap()).await;
    assert_eq!(ledger.get("/v1/accounts?twin_id=2").await.0, 200);
    assert_eq!(ledger.get("/v1/accounts?twin_id=3").await.0, 404);
}

#[tokio::test]
async fn what_is_no_backup_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    let (ledger, empty) = (used().await, Home::new().await);
    rhizome_ledger::backup(&ledger.home.url, &file).await.unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let cut = &text[..text.len() / 2];
    let twice = text.replacen("[1,", "[2,", 1);
    for bad in ["", "junk", cut, &twice, &text.replace("\"farms\"", "\"other\"")] {
        std::fs::write(&file, bad).unwrap();
        assert!(rhizome_ledger::restore(&empty.url, &file, false).await.is_err(), "{:.60}", bad);
    }
    std::fs::write(&file, text).unwrap();
    rhizome_ledger::restore(&empty.url, &file, false).await.unwrap();
    let nowhere = DatabaseUrl::sqlite(folder.path().join("nothing.db"));
    let failure = rhizome_ledger::backup(&nowhere, &file).await.unwrap_err();
    assert_eq!(failure.code, Code::NotFound);
}
