use rhizome_identity::{LedgerClient, SigningKey};
use rhizome_model::registrar::{Interface, Location, NodeRegistration, Resources};
use rhizome_model::{AccountId, Code, FarmId, NodeId};

use crate::harness::Ledger;

fn registration(farm: FarmId) -> NodeRegistration {
    NodeRegistration {
        twin_id: AccountId(0),
        farm_id: farm,
        resources: Resources { hru: 0, sru: 10, cru: 2, mru: 4 },
        location: Location::default(),
        interfaces: vec![Interface { name: "eth0".into(), mac: String::new(), ips: vec![] }],
        secure_boot: false,
        virtualized: false,
        serial_number: "S".into(),
        supervisor_url: Some("http://127.0.0.1:1".into()),
    }
}

#[tokio::test]
async fn the_whole_of_it() {
    let ledger = Ledger::start().await;
    let key = SigningKey::from_seed([1; 32]);
    let client = LedgerClient::new(&ledger.base(), Some(key.clone())).unwrap();
    assert_eq!(client.account_by_key(&key.key_id()).await, Ok(None));
    let account = client.create_account(&key).await.unwrap();
    assert_eq!(client.create_account(&key).await.unwrap(), account, "a second time is the same");
    assert_eq!(client.account_by_key(&key.key_id()).await.unwrap(), Some(account.clone()));
    assert_eq!(client.account_by_id(account.id).await.unwrap(), Some(account.clone()));
    assert_eq!(client.account_by_id(AccountId(9)).await.unwrap(), None);

    let farm = client.create_farm("farm").await.unwrap();
    assert_eq!(client.create_farm("farm").await.unwrap_err().code, Code::Conflict);
    assert_eq!(client.farm_by_name("farm").await.unwrap().unwrap().farm_id, farm);
    assert_eq!(client.farm_by_name("far").await.unwrap(), None, "a part is not the name");
    assert_eq!(client.farm(farm).await.unwrap().unwrap().farm_name, "farm");
    assert_eq!(client.farms().await.unwrap().len(), 1);

    assert_eq!(client.node_by_account(account.id).await.unwrap(), None);
    let id = client.register_node(registration(farm)).await.unwrap();
    assert_eq!(client.register_node(registration(farm)).await.unwrap_err().code, Code::Conflict);
    let node = client.node_by_account(account.id).await.unwrap().unwrap();
    assert_eq!((node.id, node.farm, node.account, node.key), (id, farm, account.id, key.key_id()));
    assert_eq!(node.supervisor_url.as_deref(), Some("http://127.0.0.1:1"));
    assert!(!node.online && node.last_seen.is_none());
    client.report_uptime(id, 5).await.unwrap();
    let mut changed = registration(farm);
    changed.resources.cru = 8;
    client.update_node(id, &changed).await.unwrap();
    let node = client.node(id).await.unwrap().unwrap();
    assert!(node.online && node.last_seen.is_some() && node.resources.cru == 8);
    assert_eq!(client.nodes().await.unwrap(), [node]);
    assert_eq!(client.node(NodeId(9)).await.unwrap(), None);
}

#[tokio::test]
async fn a_client_acts_as_its_own_key_only() {
    let ledger = Ledger::start().await;
    let owner = LedgerClient::new(&ledger.base(), Some(SigningKey::from_seed([1; 32]))).unwrap();
    let farm = owner.create_farm("farm").await.unwrap();
    let node = owner.register_node(registration(farm)).await.unwrap();
    let other = LedgerClient::new(&ledger.base(), Some(SigningKey::from_seed([2; 32]))).unwrap();
    assert_eq!(other.report_uptime(node, 5).await.unwrap_err().code, Code::Unauthorised);
    let reader = LedgerClient::new(&ledger.base(), None).unwrap();
    assert_eq!(reader.nodes().await.unwrap().len(), 1);
    assert_eq!(reader.create_farm("x").await.unwrap_err().code, Code::BadRequest);
}

#[tokio::test]
async fn long_lists_come_whole() {
    let ledger = Ledger::start().await;
    let client = LedgerClient::new(&ledger.base(), Some(SigningKey::from_seed([1; 32]))).unwrap();
    for n in 0..1001 {
        client.create_farm(&format!("farm{n}")).await.unwrap();
    }
    let farms = client.farms().await.unwrap();
    assert_eq!(farms.len(), 1001);
    assert!(farms.windows(2).all(|pair| pair[0].farm_id < pair[1].farm_id));
    let (total, page) = ledger.list("/v1/farms?size=4294967295").await;
    assert_eq!((total, page.len()), (1001, 1000), "a page has its limit");
}
