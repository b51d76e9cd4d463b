//! A grant of a farm counts once, over all its nodes together.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};

use super::{code, ok};
use crate::harness::{Answer, Caller, Ledger, new_node, now};

/// So many processors, GiB of memory and GiB of disk.
fn amounts(cpu: f64, memory: u64, disk: u64) -> Value {
    let cpu = if cpu.fract() == 0.0 { json!(cpu as u64) } else { json!(cpu) };
    json!({ "cpu": cpu, "memory": memory << 30, "disk": disk << 30 })
}

fn each(n: u64) -> Value {
    amounts(n as f64, n, n)
}

/// A closed farm, an account that deploys there, and nodes with accounts of their own.
struct Farm {
    ledger: Ledger,
    owner: Caller,
    tenant: Caller,
    nodes: Vec<(u64, Caller)>,
}

impl Farm {
    async fn with_nodes(count: u8) -> Self {
        let ledger = Ledger::start().await;
        let (owner, tenant) = (ledger.account(1).await, ledger.account(2).await);
        let farm = ledger.farm(&owner, "home").await;
        assert_eq!(farm, 1);
        let mut made = Self { ledger, owner, tenant, nodes: vec![] };
        for seed in 0..count {
            let account = made.ledger.account(100 + seed).await;
            let node = made.ledger.node(&account, farm).await;
            made.approve(node, true).await;
            made.nodes.push((node, account));
        }
        made.access("closed").await;
        made
    }

    async fn access(&self, access: &str) {
        let body = json!({ "access": access }).to_string();
        ok(self.ledger.signed(Method::PUT, "/v2/farms/1/access", &self.owner.key, body).await);
    }

    async fn approve(&self, node: u64, approved: bool) {
        let (path, body) = (format!("/v2/nodes/{node}/approval"), json!({ "approved": approved }));
        ok(self.ledger.signed(Method::PUT, &path, &self.owner.key, body.to_string()).await);
    }

    /// The number of the grant.
    async fn grant(&self, node: Option<u64>, capacity: &Value, until: Option<i64>) -> u64 {
        let grant = json!({ "account": self.tenant.id, "node": node, "capacity": capacity, "until": until });
        let path = "/v2/farms/1/grants";
        let body = grant.to_string();
        let made = ok(self.ledger.signed(Method::POST, path, &self.owner.key, body).await);
        made["id"].as_u64().unwrap()
    }

    async fn revoke(&self, grant: u64) {
        let path = format!("/v2/farms/1/grants/{grant}");
        ok(self.ledger.signed(Method::DELETE, &path, &self.owner.key, "").await);
    }

    /// What the node at this place says of the tenant.
    async fn says(&self, place: usize, number: u64, capacity: &Value) -> Answer {
        self.says_of(self.tenant.id, place, number, capacity).await
    }

    async fn says_of(&self, account: u64, place: usize, number: u64, capacity: &Value) -> Answer {
        let (node, caller) = &self.nodes[place];
        let body = json!({ "account": account, "number": number, "capacity": capacity });
        let path = format!("/v2/nodes/{node}/usage");
        self.ledger.signed(Method::POST, &path, &caller.key, body.to_string()).await
    }

    async fn takes(&self, place: usize, number: u64, capacity: &Value) {
        let answer = self.says(place, number, capacity).await;
        let taken = json!({ "taken": true, "number": number, "capacity": capacity });
        assert_eq!(answer, (200, taken), "node {place}, number {number}");
    }

    /// The message of the refusal.
    async fn refuses(&self, place: usize, number: u64, capacity: &Value) -> String {
        let answer = self.says(place, number, capacity).await;
        assert_eq!(code(&answer), (403, "not_granted"), "node {place}, number {number}");
        answer.1["error"].as_str().unwrap().to_owned()
    }

    async fn usage(&self) -> Value {
        ok(self.ledger.get("/v2/farms/1/usage").await)
    }

    fn row(&self, place: usize, capacity: &Value) -> Value {
        json!({ "account": self.tenant.id, "node": self.nodes[place].0, "capacity": capacity })
    }
}

#[tokio::test]
async fn a_grant_of_the_farm_is_shared_by_its_nodes() {
    let farm = Farm::with_nodes(3).await;
    let refused = farm.refuses(0, 1, &each(1)).await;
    assert!(refused.contains("account 2 was granted 0 cpu"), "{refused}");
    farm.grant(None, &each(10), None).await;
    farm.takes(0, 1, &each(6)).await;
    let refused = farm.refuses(1, 1, &each(5)).await;
    assert!(
        refused.contains("granted 10 cpu, 10.0 GiB memory, 10.0 GiB disk of the whole farm"),
        "{refused}"
    );
    assert!(
        refused.contains("have 6 cpu, 6.0 GiB memory, 6.0 GiB disk of the farm's on other nodes"),
        "{refused}"
    );
    assert!(refused.contains("asked for 5 cpu"), "{refused}");
    assert_eq!(farm.usage().await, json!([farm.row(0, &each(6))]), "a refusal changes nothing");
    // Each dimension for itself.
    assert!(farm.refuses(1, 1, &amounts(1.0, 5, 1)).await.ends_with("not enough memory"));
    farm.takes(1, 1, &amounts(0.5, 4, 3)).await;
    farm.takes(2, 1, &amounts(3.5, 0, 1)).await;
    farm.refuses(2, 2, &amounts(3.501, 0, 1)).await;
    // What is given back on one node is free on another.
    farm.takes(0, 2, &each(2)).await;
    farm.takes(2, 2, &amounts(7.5, 4, 5)).await;
    farm.refuses(1, 2, &each(5)).await;
    let all = json!([
        farm.row(0, &each(2)),
        farm.row(1, &amounts(0.5, 4, 3)),
        farm.row(2, &amounts(7.5, 4, 5))
    ]);
    assert_eq!(farm.usage().await, all);
    let of = async |query: &str| ok(farm.ledger.get(&format!("/v2/farms/1/usage?{query}")).await);
    assert_eq!(of("account=3").await, json!([]));
    assert_eq!(of("account=2&page=2&size=2").await, json!([all[2]]));
    assert_eq!(code(&farm.ledger.get("/v2/farms/9/usage").await), (404, "not_found"));
    let entries = ok(farm.ledger.get("/v2/audit").await);
    let told = entries.as_array().unwrap().iter().filter(|e| e["action"] == "node.usage").count();
    assert_eq!(told, 5, "each one that was taken, and no other");
}

#[tokio::test]
async fn grants_of_a_node_come_before_those_of_the_farm() {
    let farm = Farm::with_nodes(2).await;
    farm.grant(None, &each(4), None).await;
    farm.grant(Some(farm.nodes[0].0), &each(10), None).await;
    farm.takes(0, 1, &each(10)).await;
    farm.takes(1, 1, &each(3)).await;
    farm.takes(0, 2, &each(11)).await;
    let refused = farm.refuses(0, 3, &each(12)).await;
    assert!(refused.contains("10.0 GiB disk of node 1 besides"), "{refused}");
    farm.refuses(1, 2, &each(4)).await;
    farm.takes(0, 3, &each(1)).await;
    farm.takes(1, 2, &each(4)).await;
    farm.refuses(1, 3, &each(5)).await;
    farm.takes(0, 4, &each(10)).await;
}

#[tokio::test]
async fn only_the_newest_counts() {
    let farm = Farm::with_nodes(1).await;
    farm.grant(None, &each(10), None).await;
    let held = |taken: bool, number: u64, n: u64| {
        (200, json!({ "taken": taken, "number": number, "capacity": each(n) }))
    };
    farm.takes(0, 5, &each(4)).await;
    assert_eq!(farm.says(0, 5, &each(4)).await, held(true, 5, 4), "it is said again");
    assert_eq!(farm.says(0, 5, &each(3)).await, held(false, 5, 4), "two things with one number");
    assert_eq!(farm.says(0, 4, &each(9)).await, held(false, 5, 4), "it is late");
    // A refusal uses no number up.
    farm.refuses(0, 6, &each(11)).await;
    farm.takes(0, 6, &each(10)).await;
    farm.takes(0, 7, &each(0)).await;
    assert_eq!(farm.usage().await, json!([]));
    assert_eq!(farm.says(0, 6, &each(10)).await, held(false, 7, 0), "what is over stays over");
    farm.takes(0, 8, &each(1)).await;
    // Nothing of a node that never had anything is a beginning as well.
    let other = farm.says_of(farm.owner.id, 0, 0, &each(0)).await;
    assert_eq!(other, held(true, 0, 0));
}

#[tokio::test]
async fn when_grants_end_nothing_is_added_and_all_can_go() {
    let farm = Farm::with_nodes(2).await;
    let taken_back = farm.grant(None, &each(4), None).await;
    farm.grant(None, &each(4), Some(now() + 2)).await;
    farm.takes(0, 1, &each(6)).await;
    farm.takes(1, 1, &each(2)).await;
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    farm.refuses(1, 2, &each(3)).await;
    farm.takes(0, 2, &each(5)).await;
    farm.takes(1, 2, &each(2)).await;
    farm.revoke(taken_back).await;
    let refused = farm.refuses(0, 3, &amounts(4.0, 6, 4)).await;
    assert!(
        refused.contains("granted 0 cpu") && refused.ends_with("not enough memory"),
        "{refused}"
    );
    farm.takes(0, 3, &amounts(5.0, 1, 5)).await;
    farm.takes(0, 4, &each(0)).await;
    farm.takes(1, 3, &each(0)).await;
    farm.refuses(1, 4, &each(1)).await;
    farm.grant(None, &each(1), None).await;
    farm.takes(1, 4, &each(1)).await;
}

#[tokio::test]
async fn the_owner_and_everybody_in_an_open_farm_have_what_is_free() {
    let farm = Farm::with_nodes(1).await;
    let owner = farm.says_of(farm.owner.id, 0, 1, &each(1000)).await;
    assert_eq!((owner.0, &owner.1["taken"]), (200, &json!(true)));
    farm.refuses(0, 1, &each(1)).await;
    farm.access("open").await;
    farm.takes(0, 1, &each(8)).await;
    farm.access("closed").await;
    farm.refuses(0, 2, &each(9)).await;
    farm.takes(0, 2, &each(8)).await;
    farm.grant(None, &each(9), None).await;
    farm.takes(0, 3, &each(9)).await;
}

#[tokio::test]
async fn a_node_speaks_for_itself_only() {
    let farm = Farm::with_nodes(2).await;
    farm.grant(None, &each(4), None).await;
    let path = format!("/v2/nodes/{}/usage", farm.nodes[0].0);
    let said = |account: u64, number: u64| {
        json!({ "account": account, "number": number, "capacity": each(1) }).to_string()
    };
    let tell = async |who: &Caller, body: String| {
        farm.ledger.signed(Method::POST, &path, &who.key, body).await
    };
    for stranger in [&farm.nodes[1].1, &farm.owner, &farm.tenant] {
        assert_eq!(code(&tell(stranger, said(2, 1)).await), (403, "unauthorised"));
    }
    let node = &farm.nodes[0].1;
    let unsigned = farm.ledger.call(Method::POST, &path, None, Some(said(2, 1))).await;
    assert_eq!(unsigned.0, 401, "{unsigned:?}");
    assert_eq!(code(&tell(node, said(999, 1)).await), (404, "not_found"));
    assert_eq!(code(&tell(node, said(u64::MAX, 1)).await), (404, "not_found"));
    assert_eq!(code(&tell(node, said(2, u64::MAX)).await), (400, "bad_request"));
    let huge = said(2, 1).replace("1073741824", "18446744073709551615");
    assert_eq!(code(&tell(node, huge).await), (400, "bad_request"));
    let more = said(2, 1).replace("\"account\"", "\"more\":1,\"account\"");
    assert_eq!(code(&tell(node, more).await), (400, "bad_request"));
    let nowhere =
        farm.ledger.signed(Method::POST, "/v2/nodes/99/usage", &node.key, said(2, 1)).await;
    assert_eq!(code(&nowhere), (404, "not_found"));
    assert_eq!(farm.usage().await, json!([]));
    // A request counts once, also where saying it again would do no harm.
    let headers = crate::harness::sign(&node.key, &Method::POST, &path, &said(2, 1));
    let send =
        async || farm.ledger.with_headers(Method::POST, &path, headers.clone(), said(2, 1)).await;
    assert_eq!(send().await.0, 200);
    assert_eq!(code(&send().await).1, "replayed");
}

#[tokio::test]
async fn nodes_count_where_they_are_and_where_they_are_wanted() {
    let farm = Farm::with_nodes(2).await;
    farm.grant(None, &each(4), None).await;
    farm.takes(0, 1, &each(4)).await;
    farm.refuses(1, 1, &each(1)).await;
    // Anybody can register a node in a farm; what it says is not counted for that.
    let (node, account) = (farm.nodes[0].0, &farm.nodes[0].1);
    farm.approve(node, false).await;
    assert_eq!(farm.usage().await, json!([]));
    let refused = farm.refuses(0, 2, &each(5)).await;
    assert!(refused.contains("has not approved of node 1"), "{refused}");
    farm.takes(1, 1, &each(1)).await;
    farm.takes(0, 2, &each(3)).await;
    farm.refuses(0, 3, &each(4)).await;
    farm.grant(Some(node), &each(4), None).await;
    farm.takes(0, 3, &each(4)).await;
    farm.approve(node, true).await;
    farm.takes(0, 4, &each(7)).await;
    farm.refuses(1, 2, &each(2)).await;
    // It goes to another farm, with what it has.
    let third = farm.ledger.account(3).await;
    let other = farm.ledger.farm(&third, "other").await;
    let moved = new_node(account.id, other);
    let path = format!("/v1/nodes/{node}");
    ok(farm.ledger.send(Method::PATCH, &path, Some(account), &moved).await);
    farm.takes(1, 2, &each(4)).await;
    assert_eq!(farm.usage().await, json!([farm.row(1, &each(4))]));
    farm.takes(0, 5, &each(9)).await;
    assert_eq!(ok(farm.ledger.get(&format!("/v2/farms/{other}/usage")).await), json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_ask_at_once_never_have_more_together_than_was_granted() {
    const NODES: u64 = 8;
    const GRANTED: u64 = 10;
    let farm = Arc::new(Farm::with_nodes(NODES as u8).await);
    farm.grant(None, &each(GRANTED), None).await;
    // Two ledgers on PostgreSQL, two on one file: who asks which must not matter.
    let (beside, stop) = farm.ledger.beside().await;
    let beside = Arc::new(beside);
    let mut asking = tokio::task::JoinSet::new();
    for place in 0..NODES as usize {
        let (farm, beside) = (farm.clone(), beside.clone());
        asking.spawn(async move {
            let (node, caller) = &farm.nodes[place];
            let path = format!("/v2/nodes/{node}/usage");
            let (mut has, mut refused) = (0u64, 0);
            for number in 1..=20 {
                let wanted = if refused > 1 { has / 2 } else { has + fastrand::u64(1..3) };
                let body = json!({ "account": 2, "number": number, "capacity": each(wanted) });
                let ledger = if number % 2 == 0 { &farm.ledger } else { &*beside };
                let told = ledger.signed(Method::POST, &path, &caller.key, body.to_string()).await;
                match told.0 {
                    200 => (has, refused) = (wanted, 0),
                    403 => refused += 1,
                    _ => panic!("{told:?}"),
                }
            }
            has
        });
    }
    // Meanwhile, whoever looks never sees more than was granted.
    let looking = tokio::spawn({
        let farm = farm.clone();
        async move {
            let mut most = 0;
            for _ in 0..50 {
                most = most.max(sum(&farm.usage().await));
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            most
        }
    });
    let has: u64 = asking.join_all().await.into_iter().sum();
    let most = looking.await.unwrap();
    assert!(most <= GRANTED && most > GRANTED / 2, "{most}: it was contended for");
    assert_eq!(sum(&farm.usage().await), has);
    stop.cancel();
}

fn sum(usage: &Value) -> u64 {
    usage.as_array().unwrap().iter().map(|row| row["capacity"]["cpu"].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn what_is_reserved_already_is_taken_as_it_is_and_counts() {
    let farm = Farm::with_nodes(2).await;
    farm.grant(None, &each(4), None).await;
    let has = async |number: u64, capacity: &Value| {
        let (node, caller) = &farm.nodes[0];
        let body = json!({ "account": farm.tenant.id, "number": number, "capacity": capacity,
            "reserved": true });
        let path = format!("/v2/nodes/{node}/usage");
        ok(farm.ledger.signed(Method::POST, &path, &caller.key, body.to_string()).await)
    };
    // From the time when the farm was open.
    assert_eq!(has(1, &each(9)).await["taken"], true);
    farm.refuses(0, 2, &each(10)).await;
    farm.refuses(1, 1, &each(1)).await;
    assert_eq!(has(1, &each(8)).await["taken"], false, "it is not newer");
    assert_eq!(has(2, &each(3)).await["taken"], true);
    farm.takes(1, 1, &each(1)).await;
    farm.refuses(1, 2, &each(2)).await;
}
