//! Ids. Each is parsed once, at the edge; a value of these types is always well formed.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error(
        "'{0}' is not a name: use 1 to 40 of a-z, 0-9 and '-', beginning with a letter and not ending with '-'"
    )]
    Name(String),
    #[error("'{0}' is not a resource id: use ACCOUNT/DEPLOYMENT/NAME, for example 1/demo/web")]
    Resource(String),
    #[error("'{0}' is not a deployment id: use ACCOUNT/DEPLOYMENT, for example 1/demo")]
    Deployment(String),
    #[error("'{0}' is not a key id: use 64 lower-case hexadecimal digits")]
    Key(String),
    #[error("'{0}' is not a job id: use 32 lower-case hexadecimal digits")]
    Job(String),
    #[error("'{0}' is not a trace id: use 32 lower-case hexadecimal digits")]
    Trace(String),
    #[error("'{0}' is not a number from 1 upwards")]
    Number(String),
}

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            JsonSchema, utoipa::ToSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                match s.parse::<u64>() {
                    Ok(n) if n > 0 => Ok(Self(n)),
                    _ => Err(IdError::Number(shown(s))),
                }
            }
        }
    };
}

numeric_id!(/// An account of the ledger: a key with an id (upstream's twin).
    AccountId);
numeric_id!(/// A farm of the ledger.
    FarmId);
numeric_id!(/// A node of the ledger.
    NodeId);
numeric_id!(/// The version of a deployment; on a node it is the task's generation.
    Version);

/// Makes a refused text safe to print: no control characters, not endless.
fn shown(s: &str) -> String {
    s.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::Object::with_type(utoipa::openapi::schema::Type::String).into()
            }
        }
        impl utoipa::ToSchema for $name {}
    };
}

/// The name of a deployment or of a resource in it: a DNS label of 1 to 40 characters, so that it
/// can be a host name, a file name and part of a URL as it stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(transparent)]
pub struct Name(#[schemars(regex(pattern = r"^[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?$"))] String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let bytes = s.as_bytes();
        let letters = bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        let ends = bytes.first().is_some_and(u8::is_ascii_lowercase) && bytes.last() != Some(&b'-');
        if letters && ends && bytes.len() <= 40 {
            Ok(Self(s.to_owned()))
        } else {
            Err(IdError::Name(shown(s)))
        }
    }
}
serde_as_text!(Name);

/// One deployment of one account: `ACCOUNT/DEPLOYMENT`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeploymentId {
    pub account: AccountId,
    pub name: Name,
}

impl DeploymentId {
    pub fn resource(&self, name: Name) -> ResourceId {
        ResourceId { account: self.account, deployment: self.name.clone(), name }
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.account, self.name)
    }
}

impl FromStr for DeploymentId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let bad = || IdError::Deployment(shown(s));
        let (account, name) = s.split_once('/').ok_or_else(bad)?;
        Ok(Self {
            account: account.parse().map_err(|_| bad())?,
            name: name.parse().map_err(|_| bad())?,
        })
    }
}
serde_as_text!(DeploymentId);

/// One resource of one deployment: `ACCOUNT/DEPLOYMENT/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId {
    pub account: AccountId,
    pub deployment: Name,
    pub name: Name,
}

impl ResourceId {
    pub fn deployment_id(&self) -> DeploymentId {
        DeploymentId { account: self.account, name: self.deployment.clone() }
    }

    /// The id as one path segment: `ACCOUNT.DEPLOYMENT.NAME`. Names have no dots, so it reads back.
    pub fn file_name(&self) -> String {
        format!("{}.{}.{}", self.account, self.deployment, self.name)
    }

    pub fn from_file_name(s: &str) -> Result<Self, IdError> {
        s.replace('.', "/").parse()
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.account, self.deployment, self.name)
    }
}

impl FromStr for ResourceId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let bad = || IdError::Resource(shown(s));
        let (deployment, name) = s.rsplit_once('/').ok_or_else(bad)?;
        let deployment: DeploymentId = deployment.parse().map_err(|_| bad())?;
        Ok(deployment.resource(name.parse().map_err(|_| bad())?))
    }
}
serde_as_text!(ResourceId);

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $error:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut digits = [0; 2 * $len];
                // It fails only for another length, and hexadecimal digits are text.
                let _ = hex::encode_to_slice(self.0, &mut digits);
                f.write_str(std::str::from_utf8(&digits).unwrap_or_default())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $len];
                let lower = !s.bytes().any(|b| b.is_ascii_uppercase());
                if lower && hex::decode_to_slice(s, &mut bytes).is_ok() {
                    Ok(Self(bytes))
                } else {
                    Err(IdError::$error(shown(s)))
                }
            }
        }
        serde_as_text!($name);
    };
}

hex_id!(/// An Ed25519 public key; in text, 64 lower-case hexadecimal digits. As a DSSE `keyid` it
    /// is a hint that finds the key, never trusted by itself.
    KeyId, 32, Key);
hex_id!(/// A job. Ids of jobs that a deployment causes are derived, so that asking again is the same job.
    JobId, 16, Job);

hex_id!(/// What ties together everything that one envelope led to, on all nodes: the trace id of W3C
    /// Trace Context. Whoever has the envelope can compute it.
    TraceId, 16, Trace);

impl TraceId {
    /// Of the payload that was signed.
    pub fn of_payload(payload: &[u8]) -> Self {
        Self(derived("rhizome 2026 trace id v1", payload))
    }
}

/// What is hashed for one purpose can never be mistaken for another's.
fn derived(purpose: &str, what: &[u8]) -> [u8; 16] {
    let mut hash = blake3::Hasher::new_derive_key(purpose);
    hash.update(what);
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    id
}

impl JobId {
    /// The job that does again what another was to do.
    pub fn again(of: Self) -> Self {
        Self(derived("rhizome 2026 job id again v1", &of.0))
    }

    /// The job that evaluates the script of one version of a deployment.
    pub fn script(deployment: &DeploymentId, version: Version) -> Self {
        Self::derived(deployment, version, "script")
    }

    /// The id of the job that does `what` for one version of a deployment: the same words, the
    /// same id, on whatever attempt.
    pub fn derived(deployment: &DeploymentId, version: Version, what: &str) -> Self {
        let what = format!("{deployment}\n{version}\n{what}");
        Self(derived("rhizome 2026 job id v1", what.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_could_escape_are_refused() {
        for bad in ["", "../x", "a/b", "a.b", "A", "-a", "a-", "1a", "a\n", "é", &"a".repeat(41)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        let shown = "a\u{1b}[2J".parse::<Name>().unwrap_err().to_string();
        assert!(!shown.contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn resource_ids_read_back(account in 1u64.., d in "[a-z][a-z0-9]{0,9}", n in "[a-z]([a-z0-9-]{0,8}[a-z0-9])?") {
            let id: ResourceId = format!("{account}/{d}/{n}").parse().unwrap();
            prop_assert_eq!(&id.to_string().parse::<ResourceId>().unwrap(), &id);
            prop_assert_eq!(&ResourceId::from_file_name(&id.file_name()).unwrap(), &id);
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<ResourceId>(&json).unwrap(), id);
        }

        #[test]
        fn no_text_makes_an_id_panic(s in "\\PC*") {
            let _ = s.parse::<ResourceId>();
            let _ = s.parse::<KeyId>();
            let _ = ResourceId::from_file_name(&s);
        }
    }
}
