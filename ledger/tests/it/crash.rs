use crate::harness::Ledger;

#[tokio::test]
async fn a_restart_keeps_everything() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    ledger.farm(&owner, "farm").await;
    ledger.node(&owner, 1).await;
    let paths = ["/v1/accounts?twin_id=1", "/v1/farms/1", "/v1/nodes/1"];
    let mut before = Vec::new();
    for path in paths {
        before.push(ledger.get(path).await);
    }
    let ledger = ledger.restart().await;
    for (path, before) in paths.iter().zip(before) {
        assert_eq!(ledger.get(path).await, before);
    }
    assert_eq!(ledger.account(2).await.id, 2, "ids count on");
}
