//! What the ledger signs, and those who hold it.

use std::os::unix::fs::PermissionsExt;

use http::Method;
use rhizome_identity::{
    Accounts, LedgerClient, SigningKey, Statements, StatementsConfig, active_account, open_signed,
};
use rhizome_model::statement::{Changes, KeyChange, Says, Statement, Subject};
use rhizome_model::{AccountId, Code, FarmId, KeyId, NodeId};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{id, ok};
use crate::harness::{Home, Ledger, now};

async fn ledger_key(ledger: &Ledger) -> KeyId {
    ok(ledger.get("/v2/ledger").await)["key"].as_str().unwrap().parse().unwrap()
}

async fn statement(ledger: &Ledger, path: &str) -> Statement {
    let envelope = ok(ledger.get(&format!("/v2/statements/{path}")).await).to_string();
    open_signed(envelope.as_bytes(), &ledger_key(ledger).await, "dev", now()).unwrap()
}

async fn changes(ledger: &Ledger, after: u64) -> Changes {
    let envelope = ok(ledger.get(&format!("/v2/statements?after={after}")).await).to_string();
    open_signed(envelope.as_bytes(), &ledger_key(ledger).await, "dev", now()).unwrap()
}

/// What a node keeps, in a folder.
fn holder(ledger: &Ledger, folder: &std::path::Path, key: Option<KeyId>) -> Statements {
    let client = LedgerClient::new(&ledger.base(), None).unwrap();
    let config = StatementsConfig { folder: folder.into(), network: "dev".into(), ledger_key: key };
    Statements::load(client, config).unwrap()
}

#[tokio::test]
async fn statements_say_what_is_so_and_changes_what_no_longer_is() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    let farm = ledger.farm(&owner, "home").await;
    let node = ledger.node(&owner, farm).await;
    let first = statement(&ledger, "account/1").await;
    assert_eq!((first.revision, first.as_of), (0, 0));
    assert_eq!(statement(&ledger, &format!("key/{}", id(1))).await.says, first.says);
    let Says::Node(said) = statement(&ledger, &format!("node/{node}")).await.says else { panic!() };
    assert_eq!((said.key, said.approved), (id(1), true));

    ok(ledger.change_keys(1, KeyChange::Rotate { old: id(1), new: id(2) }, &[1, 2]).await);
    let page = changes(&ledger, 0).await;
    let named: Vec<_> = page.changed.iter().map(|c| c.subject).collect();
    assert_eq!(named, [Subject::Account(AccountId(1)), Subject::Node(NodeId(node))]);
    assert_eq!((page.after, page.through, page.more), (0, 2, false));
    assert_eq!(changes(&ledger, 2).await.changed, []);
    let second = statement(&ledger, &format!("key/{}", id(1))).await;
    assert!(second.revision > first.revision && second.as_of == 2, "an old key leads there, too");
    ok(ledger
        .signed(Method::PUT, "/v2/farms/1/access", &super::key(2), r#"{"access":"closed"}"#)
        .await);
    let page = changes(&ledger, 2).await;
    assert_eq!(page.changed[0].subject, Subject::Farm(FarmId(farm)));
}

#[tokio::test]
async fn a_database_is_signed_for_with_one_key() {
    let ledger = Ledger::start().await;
    let key = ledger_key(&ledger).await;
    let file = ledger.home.config().signing_key;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let ledger = ledger.restart().await;
    assert_eq!(ledger_key(&ledger).await, key);
    let home = ledger.stop().await;
    let config =
        rhizome_ledger::LedgerConfig { signing_key: file.with_extension("other"), ..home.config() };
    let listener = rhizome_service::http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let failure =
        rhizome_ledger::run(config, listener, CancellationToken::new()).await.unwrap_err();
    assert_eq!(failure.code, Code::StateNotWritable);
    assert!(failure.message.contains("--signing-key"), "{failure}");
}

#[tokio::test]
async fn a_node_does_without_the_ledger_also_after_a_restart() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    ledger.farm(&owner, "home").await;
    let folder = tempfile::tempdir().unwrap();
    let node = holder(&ledger, folder.path(), None);
    assert_eq!(node.by_key(&id(2)).await.unwrap(), None);
    let known = node.by_id(AccountId(1)).await.unwrap().unwrap();
    assert!(node.farm(FarmId(1)).await.unwrap().is_some());
    node.poll().await.unwrap();
    // It was not there, and is found as soon as it is.
    ledger.account(2).await;
    assert_eq!(node.by_key(&id(2)).await.unwrap().unwrap().id, AccountId(2));
    let address = ledger.address;
    let home = ledger.stop().await;
    assert_eq!(node.by_key(&id(1)).await.unwrap(), Some(known.clone()));
    drop(node);
    let away = LedgerClient::new(&format!("http://{address}"), None).unwrap();
    let config =
        StatementsConfig { folder: folder.path().into(), network: "dev".into(), ledger_key: None };
    let node = Statements::load(away, config).unwrap();
    assert_eq!(node.by_key(&id(1)).await.unwrap(), Some(known));
    assert!(node.farm(FarmId(1)).await.unwrap().is_some());
    let unknown = node.by_id(AccountId(3)).await.unwrap_err();
    assert_eq!(unknown.code, Code::Unavailable);
    drop(home);
}

#[tokio::test]
async fn a_revocation_counts_from_the_next_poll_on() {
    let ledger = Ledger::start().await;
    ledger.account(1).await;
    let folder = tempfile::tempdir().unwrap();
    let node = holder(&ledger, folder.path(), None);
    assert!(active_account(&node, &id(1)).await.is_ok());
    node.poll().await.unwrap();
    ok(ledger.change_keys(1, KeyChange::Add { key: id(2), weight: 1 }, &[1, 2]).await);
    ok(ledger.change_keys(1, KeyChange::Revoke { key: id(1) }, &[2]).await);
    node.poll().await.unwrap();
    assert_eq!(active_account(&node, &id(1)).await.unwrap_err().code, Code::RevokedKey);
    assert!(active_account(&node, &id(2)).await.is_ok());
    // It is known after a restart, too, and without the ledger.
    ledger.stop().await;
    let away = LedgerClient::new("http://127.0.0.1:1", None).unwrap();
    let config =
        StatementsConfig { folder: folder.path().into(), network: "dev".into(), ledger_key: None };
    let node = Statements::load(away, config).unwrap();
    assert_eq!(active_account(&node, &id(1)).await.unwrap_err().code, Code::RevokedKey);
}

#[tokio::test]
async fn another_ledger_is_not_believed() {
    let ledger = Ledger::start().await;
    ledger.account(1).await;
    let folder = tempfile::tempdir().unwrap();
    let node = holder(&ledger, folder.path(), None);
    node.by_id(AccountId(1)).await.unwrap().unwrap();
    // At the same place, with a database and a key of its own, and with an account 1 of its own.
    let address = ledger.address;
    ledger.stop().await;
    let other = Ledger::start_in(Home::new().await, address).await;
    other.account(9).await;
    assert_eq!(node.poll().await.unwrap_err().code, Code::BadStatement);
    assert_eq!(node.by_key(&id(9)).await.unwrap_err().code, Code::BadStatement);
    // What was known before still counts.
    assert!(active_account(&node, &id(1)).await.is_ok());
    let pinned = tempfile::tempdir().unwrap();
    let strict = holder(&other, pinned.path(), Some(SigningKey::from_seed([8; 32]).key_id()));
    assert_eq!(strict.by_id(AccountId(1)).await.unwrap_err().code, Code::BadStatement);
    let about = ok(other.get("/v2/ledger").await);
    assert_eq!(about["network"], json!("dev"));
}
