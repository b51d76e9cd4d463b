//! Whatever is asked of a list: it is what the whole list has of it, in order, page by page, and
//! `X-Total-Count` says how many.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use http::Method;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rhizome_identity::SigningKey;
use serde_json::{Value, json};

use crate::harness::{Ledger, now};

const ACCOUNTS: u8 = 24;
const FARMS: u64 = 4;

/// What is asked; a name, a value, and what it means.
type Ask = (&'static str, String);

async fn fleet() -> Ledger {
    let ledger = Ledger::start().await;
    for n in 1..=ACCOUNTS {
        let account = ledger.account(n).await;
        if u64::from(n) <= FARMS {
            let name = ["North", "northEast", "South", "s0uth"][usize::from(n) - 1];
            ledger.farm(&account, name).await;
        }
        let node = ledger.node(&account, u64::from(n) % FARMS.min(u64::from(n)) + 1).await;
        if n % 3 != 0 {
            let report = json!({ "uptime": 100, "timestamp": now() - i64::from(n) * 2 });
            let path = format!("/v1/nodes/{node}/uptime");
            assert_eq!(ledger.send(Method::POST, &path, Some(&account), &report).await.0, 201);
        }
    }
    ledger
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let number = |name: &'static str, max: u64| {
        prop::option::weighted(0.3, (0..=max).prop_map(move |n| (name, n.to_string())))
    };
    let flag = |name: &'static str| {
        prop::option::weighted(0.3, any::<bool>().prop_map(move |b| (name, b.to_string())))
    };
    (
        number("node_id", 30),
        number("farm_id", 6),
        number("twin_id", 30),
        flag("online"),
        flag("healthy"),
        prop::option::weighted(0.3, Just(("last_seen", "60".to_owned()))),
    )
        .prop_map(|(a, b, c, d, e, f)| [a, b, c, d, e, f].into_iter().flatten().collect())
}

fn fits(node: &Value, asks: &[Ask]) -> bool {
    let online = asks.iter().find(|(name, _)| *name == "online");
    asks.iter().all(|(name, value)| match *name {
        "node_id" | "farm_id" | "twin_id" | "online" => {
            node[*name] == serde_json::from_str::<Value>(value).unwrap()
        }
        // With `online` it says how long; alone, that it was seen.
        "last_seen" => online.is_some() || node["online"] == json!(true),
        _ => true,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_filtered_as_they_are_shown() {
    let ledger = fleet().await;
    let (_, all) = ledger.get("/v1/nodes?size=1000").await;
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), usize::from(ACCOUNTS));
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(Config { cases: 96, ..Config::default() });
        let input = (asks(), 0..4_usize, 0..12_usize);
        runner
            .run(&input, |(asks, page, size)| {
                let query: Vec<_> =
                    asks.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let path = format!("/v1/nodes?{}&page={page}&size={size}", query.join("&"));
                let (total, shown) = handle.block_on(ledger.list(&path));
                let wanted: Vec<_> = all.iter().filter(|node| fits(node, &asks)).collect();
                prop_assert_eq!(total, wanted.len(), "{}", path);
                let begin = page.saturating_sub(1) * size;
                let paged: Vec<_> = wanted.into_iter().skip(begin).take(size).collect();
                prop_assert_eq!(shown.iter().collect::<Vec<_>>(), paged, "{}", path);
                Ok(())
            })
            .unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_away_are_listed_by_page() {
    let ledger = Ledger::start().await;
    ledger.farm(&ledger.account(0).await, "far").await;
    let makes = (1..=201_u64).map(async |n| {
        let key = SigningKey::from_seed(*blake3::hash(&n.to_le_bytes()).as_bytes());
        let account = ledger.account_of(key).await;
        (ledger.node(&account, 1).await, account)
    });
    let nodes: BTreeMap<_, _> = join_all(makes).await.into_iter().collect();
    let shown = async |query: &str| {
        let (total, shown) = ledger.list(&format!("/v1/nodes?{query}")).await;
        (total, shown.iter().map(|node| node["node_id"].as_u64().unwrap()).collect::<Vec<_>>())
    };
    let ids: Vec<u64> = nodes.keys().copied().collect();
    assert_eq!(shown("online=false&page=3").await, (201, ids[100..150].to_vec()));
    assert_eq!(shown("online=false&page=5").await, (201, ids[200..].to_vec()));
    assert_eq!(shown("online=true").await, (0, Vec::new()));

    let (up, account) = nodes.iter().nth(120).unwrap();
    let path = format!("/v1/nodes/{up}/uptime");
    let report = json!({ "uptime": 100, "timestamp": now() });
    assert_eq!(ledger.send(Method::POST, &path, Some(account), &report).await.0, 201);
    let away: Vec<u64> = ids.iter().copied().filter(|id| id != up).collect();
    assert_eq!(shown("online=true").await, (1, vec![*up]));
    assert_eq!(shown("online=false&page=3").await, (200, away[100..150].to_vec()));
    assert_eq!(shown("online=false&page=4").await, (200, away[150..].to_vec()));
    assert_eq!(shown("online=false&page=5").await, (200, Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn farms_are_filtered_as_they_are_shown() {
    let ledger = fleet().await;
    let (_, all) = ledger.get("/v1/farms").await;
    let all = all.as_array().unwrap();
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(Config { cases: 96, ..Config::default() });
        let part =
            prop::option::of(prop::sample::select(vec!["n", "NORTH", "east", "0", "%", "_", "x"]));
        let input = (part, prop::option::of(0..6_u64), prop::option::of(0..6_u64));
        runner
            .run(&input, |(part, farm, twin)| {
                let mut path = String::from("/v1/farms?");
                for (name, value) in [("farm_id", farm), ("twin_id", twin)] {
                    path.extend(value.map(|value| format!("{name}={value}&")));
                }
                path.extend(part.map(|part| format!("farm_name={}", part.replace('%', "%25"))));
                let (total, shown) = handle.block_on(ledger.list(&path));
                let fits = |shown: &&Value| {
                    let name = shown["farm_name"].as_str().unwrap().to_lowercase();
                    part.is_none_or(|part| name.contains(&part.to_lowercase()))
                        && farm.is_none_or(|id| shown["farm_id"] == id)
                        && twin.is_none_or(|id| shown["twin_id"] == id)
                };
                let wanted: Vec<_> = all.iter().filter(fits).collect();
                prop_assert_eq!(total, wanted.len(), "{}", path);
                prop_assert_eq!(shown.iter().collect::<Vec<_>>(), wanted, "{}", path);
                Ok(())
            })
            .unwrap();
    });
}
