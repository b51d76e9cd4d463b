//! `herodb`: a database that speaks the protocol of Redis.

use std::net::Ipv6Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Health, Kind, MachineState};
use crate::secret::{generated_token, has_secret, is_token};
use crate::{Bytes, Capacity, Cpu, ResourceId};

/// A database with an address, a password and data of its own.
pub struct Herodb;

// Not `Debug` as derived: a password appears in no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HerodbSpec {
    /// The most that it can take on disk, for example "1GiB". Data can have a quarter of what is above
    /// 32 MiB: the rest is for the log of changes.
    pub size: Bytes,
    /// Memory of the engine; data can have three quarters of it.
    #[serde(default = "default_memory")]
    pub memory: Bytes,
    /// Processors; fractions are allowed.
    #[serde(default = "default_cpu")]
    pub cpu: Cpu,
    /// The password: `secret("name")`. Without it the node generates one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

impl std::fmt::Debug for HerodbSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { size, memory, cpu, .. } = self;
        write!(f, "HerodbSpec {{ size: {size}, memory: {memory}, cpu: {cpu}, password: … }}")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HerodbStatus {
    pub state: MachineState,
    /// Whether it answers and takes writes, with the reason where it does not.
    pub health: Health,
    /// Its IPv6 address.
    pub address: Ipv6Addr,
    pub port: u16,
    /// Where clients connect, with the password: `redis://:PASSWORD@[ADDRESS]:6379`.
    pub url: String,
    /// The password. Where it is put into a spec, the machine gets it; nobody else sees it.
    pub password: String,
    /// The engine and its version, for example "redis-server 7.0.15".
    pub driver: String,
    /// How many keys it holds, while it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// What data takes in memory, while it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_used: Option<Bytes>,
    /// The most that it can take on disk, in bytes.
    pub size: Bytes,
    /// What it takes on disk, in bytes.
    pub used: Bytes,
    /// How often the engine was started again.
    #[serde(default)]
    pub restarts: u32,
    /// Why the engine ended the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// While it backs off, when it is started again: Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_at: Option<i64>,
    /// Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
}

fn default_memory() -> Bytes {
    Bytes::mib(256)
}
fn default_cpu() -> Cpu {
    Cpu::from_millis(500)
}

/// With less an engine has no room for its own log beside the smallest data.
const MIN_SIZE: Bytes = Bytes::mib(64);
/// With less an engine cannot work.
const MIN_MEMORY: Bytes = Bytes::mib(32);
/// Below this a password is guessed by asking.
const MIN_PASSWORD: usize = 12;
const MAX_PASSWORD: usize = 128;

/// Of its memory the engine gives data this much: the rest is for its clients and for the copies
/// that rewriting its log takes.
const DATA_OF_MEMORY: (u64, u64) = (3, 4);
/// Of its size: at the worst, the log, the log before it and the one that is being written are there
/// at a time, and the newest grows meanwhile, by so much even where there is little data.
const DATA_OF_SIZE: (u64, u64) = (1, 4);
const BURST: Bytes = Bytes::mib(32);

impl Herodb {
    /// The most that data can have in memory.
    pub fn data_memory(spec: &HerodbSpec) -> Bytes {
        let part = |whole: Bytes, (of, parts): (u64, u64)| whole.0 / parts * of;
        let size = Bytes(spec.size.0.saturating_sub(BURST.0));
        Bytes(part(spec.memory, DATA_OF_MEMORY).min(part(size, DATA_OF_SIZE)))
    }

    /// Where every database listens, on its own address.
    pub const PORT: u16 = 6379;

    /// Where clients connect.
    pub fn url(address: Ipv6Addr, password: &str) -> String {
        format!("redis://:{password}@[{address}]:{}", Self::PORT)
    }
}

impl Kind for Herodb {
    type Spec = HerodbSpec;
    type Status = HerodbStatus;

    const SUMMARY: &'static str = "A database that speaks the protocol of Redis.";

    const KEEPS_DATA: bool = true;

    const AFTER_READY: &'static [&'static str] = &["url", "password"];

    fn check(spec: &HerodbSpec) -> Result<(), String> {
        if spec.size < MIN_SIZE {
            return Err(format!("size: at least {MIN_SIZE}, not {}", spec.size));
        }
        if spec.memory < MIN_MEMORY {
            return Err(format!("memory: at least {MIN_MEMORY}, not {}", spec.memory));
        }
        if spec.cpu.millis() == 0 {
            return Err("cpu: more than 0".into());
        }
        match &spec.password {
            Some(password) if !has_secret(password) => check_password(password),
            Some(_) | None => Ok(()),
        }
    }

    fn check_written(spec: &HerodbSpec) -> Result<(), String> {
        match &spec.password {
            Some(password) if !is_token(password) => {
                Err("password: everybody who reads the script \
                would know it: give it as secret(\"name\"), or leave it out and have one generated"
                    .into())
            }
            Some(_) | None => Ok(()),
        }
    }

    fn complete(spec: HerodbSpec, id: &ResourceId) -> HerodbSpec {
        let password = spec.password.unwrap_or_else(|| generated_token(id));
        HerodbSpec { password: Some(password), ..spec }
    }

    fn demand(spec: &HerodbSpec) -> Capacity {
        Capacity { cpu: spec.cpu, memory: spec.memory, disk: spec.size }
    }

    /// Everything changes in place: it is never made anew.
    fn fixed(_: &HerodbSpec) -> HerodbSpec {
        let (size, memory, cpu) = (Bytes::default(), Bytes::default(), Cpu::default());
        HerodbSpec { size, memory, cpu, password: None }
    }

    /// One that does not answer may hold anything.
    fn holds_data(status: &HerodbStatus) -> bool {
        status.keys != Some(0)
    }

    fn shrinks(old: &HerodbSpec, new: &HerodbSpec) -> bool {
        new.size < old.size || Self::data_memory(new) < Self::data_memory(old)
    }

    fn fits(old: &HerodbSpec, new: &HerodbSpec, status: &HerodbStatus) -> Result<(), String> {
        let refuse = |holds: Bytes, what: &str, most: Bytes| {
            Err(format!(
                "the database holds {holds} {what}, and with {most} there would be no room for it: remove keys first"
            ))
        };
        if new.size < old.size && status.used > new.size {
            return refuse(status.used, "on disk", new.size);
        }
        let most = Self::data_memory(new);
        match status.memory_used {
            Some(held) if most < Self::data_memory(old) && held > most => {
                refuse(held, "in memory", most)
            }
            _ => Ok(()),
        }
    }

    fn predict(spec: &HerodbSpec, address: Ipv6Addr) -> serde_json::Value {
        let mut known = serde_json::json!({
            "address": address,
            "port": Self::PORT,
            "size": spec.size,
        });
        if let Some(password) = &spec.password {
            known["url"] = Self::url(address, password).into();
            known["password"] = password.as_str().into();
        }
        known
    }
}

/// It becomes part of a URL as it stands. What it is must not be said.
fn check_password(password: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    if !password.bytes().all(plain) {
        return Err(
            "password: only letters, digits and - . _ ~ can be in it: it becomes part of a URL"
                .into(),
        );
    }
    if !(MIN_PASSWORD..=MAX_PASSWORD).contains(&password.len()) {
        return Err(format!("password: {MIN_PASSWORD} to {MAX_PASSWORD} characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::WorkloadKind;
    use crate::kind::Change;
    use crate::secret::{mask, secret_token};

    const KIND: WorkloadKind = WorkloadKind::Herodb;

    #[test]
    fn a_password_is_a_secret_or_generated() {
        let id: ResourceId = "1/demo/db".parse().unwrap();
        let spec = KIND.parse_spec(json!({ "size": "1GiB" })).unwrap();
        let whole = KIND.complete(&spec, &id).unwrap();
        assert_eq!(whole["password"], generated_token(&id));
        let given = json!({ "size": "1GiB", "password": secret_token("1/demo/pw", "c2VhbGVk") });
        let spec = KIND.parse_spec(given.clone()).unwrap();
        assert_eq!(KIND.complete(&spec, &id).unwrap()["password"], given["password"]);
        for clear in ["hunter2hunter2", "", &format!("a{}", generated_token(&id))] {
            let failure =
                KIND.parse_spec(json!({ "size": "1GiB", "password": clear })).unwrap_err();
            assert!(failure.message.contains("secret(\"name\")"), "{}", failure.message);
            assert!(clear.is_empty() || !failure.message.contains(clear));
        }
    }

    #[test]
    fn where_it_is_opened_it_must_fit_into_a_url() {
        let spec = |password: &str| {
            let (size, memory) = (Bytes::gib(1), default_memory());
            HerodbSpec { size, memory, cpu: default_cpu(), password: Some(password.into()) }
        };
        assert_eq!(Herodb::check(&spec("0123456789-._~Az")), Ok(()));
        for wrong in ["short", "with a space in it", "at@sign:colon/slash", "pässwörter-lang"] {
            let said = Herodb::check(&spec(wrong)).unwrap_err();
            assert!(said.starts_with("password: ") && !said.contains(wrong), "{said}");
        }
        assert!(Herodb::check(&spec(&"a".repeat(MAX_PASSWORD + 1))).is_err());
        assert!(!format!("{:?}", spec("0123456789abcdef")).contains("0123456789abcdef"));
    }

    #[test]
    fn what_is_known_beforehand_holds_no_secret() {
        let id: ResourceId = "1/demo/db".parse().unwrap();
        let spec = KIND.parse_spec(json!({ "size": "1GiB" })).unwrap();
        let spec = KIND.complete(&spec, &id).unwrap();
        let known = mask(&KIND.predict(&spec, "5d3::7".parse().unwrap()).unwrap());
        assert_eq!(known["url"], "redis://:(secret of db)@[5d3::7]:6379");
        assert_eq!((&known["address"], &known["port"]), (&json!("5d3::7"), &json!(6379)));
        assert!(KIND.waits_for("url") && KIND.waits_for("password") && !KIND.waits_for("address"));
    }

    #[test]
    fn everything_changes_in_place() {
        let old = json!({ "size": 1u64 << 30, "memory": 1u64 << 28, "cpu": 0.5, "password": "a" });
        let new = json!({ "size": 1u64 << 31, "memory": 1u64 << 29, "cpu": 1, "password": "b" });
        let Change::Update(fields) = KIND.change(&old, &new).unwrap() else { panic!() };
        assert_eq!(fields.len(), 4);
    }
}
