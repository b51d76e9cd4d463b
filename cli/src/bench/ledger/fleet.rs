//! Nodes that do not exist: their keys, and what they send.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::try_join_all;
use rhizome_identity::SigningKey;
use rhizome_model::AccountId;
use rhizome_model::Failure;
use rhizome_model::registrar::{account_challenge, auth_challenge};
use rhizome_service::clock;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::wire::Wire;
use crate::error::internal;

/// Requests under way at a time.
pub const LANES: usize = 128;
/// A farm of the fleet has so many nodes.
pub const NODES_PER_FARM: usize = 1000;

pub struct Member {
    key: SigningKey,
    account: u64,
    node: u64,
}

pub struct Fleet {
    host: String,
    members: Vec<Member>,
}

impl Fleet {
    /// Registers accounts, farms and nodes with an empty ledger, as any client does.
    pub async fn register(host: &str, nodes: usize) -> Result<Self, Failure> {
        let mut wire = Wire::connect(host).await?;
        let owner = member(&mut wire, u64::MAX).await?;
        for farm in 0..nodes.div_ceil(NODES_PER_FARM) {
            let farm = json!({ "farm_name": format!("bench{farm}"), "twin_id": owner.account });
            wire.must("POST", "/v1/farms", Some(&owner.auth()), &farm.to_string()).await?;
        }
        let next = AtomicUsize::new(0);
        let lane = async || {
            let mut wire = Wire::connect(host).await?;
            let mut made = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= nodes {
                    return Ok::<_, Failure>(made);
                }
                let mut member = member(&mut wire, n as u64).await?;
                let body = registration(member.account, n).to_string();
                let reply = wire.must("POST", "/v1/nodes", Some(&member.auth()), &body).await?;
                member.node = field(&reply, "node_id")?;
                made.push(member);
            }
        };
        let made = try_join_all((0..LANES).map(|_| lane())).await?;
        let mut members: Vec<_> = made.into_iter().flatten().collect();
        members.sort_by_key(|member| member.node);
        Ok(Self { host: host.to_owned(), members })
    }

    /// The first report of each node, as fast as they are answered: how many per second.
    pub async fn first_reports_per_s(&self) -> Result<f64, Failure> {
        self.reports_while(|n| n < self.members.len()).await
    }

    /// Reports as fast as they are answered, node after node: how many per second.
    pub async fn reports_per_s(&self, time: Duration) -> Result<f64, Failure> {
        let begun = Instant::now();
        self.reports_while(|_| begun.elapsed() < time).await
    }

    async fn reports_while(&self, goes_on: impl Fn(usize) -> bool) -> Result<f64, Failure> {
        let (next, sent) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let begun = Instant::now();
        let lane = async || {
            let mut wire = Wire::connect(&self.host).await?;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if !goes_on(n) {
                    return Ok::<_, Failure>(());
                }
                self.members[n % self.members.len()].report(&mut wire).await?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
        };
        try_join_all((0..LANES).map(|_| lane())).await?;
        Ok(sent.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
    }

    /// Reports at a rate; each one's time from when it should have been sent to its answer, in order
    /// of size.
    pub async fn latencies(&self, per_s: f64, time: Duration) -> Result<Vec<Duration>, Failure> {
        let next = AtomicUsize::new(0);
        let count = (per_s * time.as_secs_f64()) as usize;
        let begun = Instant::now();
        let lane = async || {
            let mut wire = Wire::connect(&self.host).await?;
            let mut times = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return Ok::<_, Failure>(times);
                }
                let due = begun + Duration::from_secs_f64(n as f64 / per_s);
                tokio::time::sleep_until(due).await;
                self.members[n % self.members.len()].report(&mut wire).await?;
                times.push(due.elapsed());
            }
        };
        let mut times = try_join_all((0..LANES).map(|_| lane())).await?.concat();
        times.sort_unstable();
        Ok(times)
    }

    /// Lists with filters, one at a time; each one's time, in order of size.
    pub async fn lists(&self, count: usize) -> Result<Vec<Duration>, Failure> {
        let mut wire = Wire::connect(&self.host).await?;
        let (nodes, farms) = (self.members.len(), self.members.len().div_ceil(NODES_PER_FARM));
        let mut times = Vec::with_capacity(count);
        for n in 0..count {
            let place = n * 7919;
            let (farm, last) = (place % farms + 1, nodes.div_ceil(50));
            let query = match n % 8 {
                0 => format!("farm_id={farm}"),
                1 => format!("farm_id={farm}&online=true&page=3"),
                2 => "online=true".to_owned(),
                3 => "online=false".to_owned(),
                4 => format!("online=true&page={last}"),
                5 => format!("twin_id={}", place % nodes + 2),
                6 => format!("last_seen=5&farm_id={farm}"),
                _ => format!("page={}", place % last + 1),
            };
            let begun = Instant::now();
            wire.must("GET", &format!("/v1/nodes?{query}"), None, "").await?;
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        Ok(times)
    }
}

impl Member {
    fn auth(&self) -> String {
        let challenge = auth_challenge(clock::now_secs(), AccountId(self.account));
        let signature = STANDARD.encode(self.key.sign(challenge.as_bytes()));
        format!("{}:{signature}", STANDARD.encode(challenge))
    }

    async fn report(&self, wire: &mut Wire) -> Result<(), Failure> {
        let now = clock::now_secs();
        // All of them have started when this was released.
        let body = format!(r#"{{"uptime":{},"timestamp":{now}}}"#, now - 1_790_000_000);
        let path = format!("/v1/nodes/{}/uptime", self.node);
        wire.must("POST", &path, Some(&self.auth()), &body).await.map(drop)
    }
}

async fn member(wire: &mut Wire, n: u64) -> Result<Member, Failure> {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    let key = SigningKey::from_seed(seed);
    let public_key = STANDARD.encode(key.key_id().0);
    let timestamp = clock::now_secs();
    let signature = STANDARD.encode(key.sign(account_challenge(timestamp, &public_key).as_bytes()));
    let body = json!({ "timestamp": timestamp, "public_key": public_key, "signature": signature });
    let reply = wire.must("POST", "/v1/accounts", None, &body.to_string()).await?;
    Ok(Member { key, account: field(&reply, "twin_id")?, node: 0 })
}

fn registration(account: u64, n: usize) -> Value {
    json!({
        "twin_id": account, "farm_id": n / NODES_PER_FARM + 1,
        "serial_number": format!("BENCH-{n}"),
        "location": { "country": "Belgium", "city": "Ghent", "longitude": "3.7", "latitude": "51.0" },
        "resources": { "hru": 4_u64 << 40, "sru": 1_u64 << 40, "cru": 32, "mru": 128_u64 << 30 },
        "interfaces": [{ "name": "eth0", "mac": "52:54:00:12:34:56", "ips": ["10.0.0.2/24"] }],
        "secure_boot": false, "virtualized": false,
        "supervisor_url": "http://[5d3:1:2:3:4:5:6:7]:8600",
    })
}

fn field(json: &[u8], name: &str) -> Result<u64, Failure> {
    let value: Value =
        serde_json::from_slice(json).map_err(|e| internal("the ledger's answer is no JSON", &e))?;
    value[name].as_u64().ok_or_else(|| {
        Failure::new(rhizome_model::Code::Internal, format!("no {name} in the ledger's answer"))
    })
}
