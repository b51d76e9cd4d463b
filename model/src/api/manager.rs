//! What the identity manager takes and answers on its unix socket.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::{AccountId, FarmId, KeyId, NodeId, ResourceId};

/// Who a node is, as its identity manager says it on its unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeIdentity {
    pub key: KeyId,
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// None until the ledger knows the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<Registered>,
    /// Why it is not registered, or could not report lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether the key is sealed to a TPM.
    #[serde(default)]
    pub sealed: bool,
    /// The copies of the identity, the state folder's first; none before there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<IdentityCopy>,
    /// Uptime reports that the ledger has not taken yet.
    #[serde(default)]
    pub waiting_reports: u64,
}

/// A copy of a node's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct IdentityCopy {
    pub path: String,
    /// What is wrong with it; none where it is as new as any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Bytes that a node's own processes have signed, encrypted or opened by its identity manager, for
/// one purpose: `POST /v1/sign`, `/v1/encrypt`, `/v1/decrypt` on its unix socket.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurposeRequest {
    /// Lower-case letters, digits, `-` and `.`; what was made for one is nothing for another.
    pub purpose: String,
    /// Base64.
    pub data: String,
    /// The other side: whom to encrypt to or who encrypted, both with their long-term keys (ECDH).
    /// Without it, the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<KeyId>,
}

impl std::fmt::Debug for PurposeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PurposeRequest").field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

/// What became of it, in base64.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PurposeReply {
    pub data: String,
}

impl std::fmt::Debug for PurposeReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PurposeReply").finish_non_exhaustive()
    }
}

/// Asks whether a signature for a purpose is good: `POST /v1/verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    pub purpose: String,
    /// Base64.
    pub data: String,
    /// Base64.
    pub signature: String,
    /// Who signed.
    pub key: KeyId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VerifyReply {
    pub good: bool,
}

/// A node's ids in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Registered {
    pub account: AccountId,
    pub farm: FarmId,
    pub node: NodeId,
}

/// Asks a node's identity manager to open a secret (`POST /v1/unseal` on its unix socket).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnsealRequest {
    /// What the secret is for: `ACCOUNT/DEPLOYMENT/NAME`.
    pub context: String,
    pub sealed: String,
}

/// Asks a node's identity manager for the secret that it derives for a resource
/// (`POST /v1/generate` on its unix socket).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    #[schema(value_type = String)]
    pub resource: ResourceId,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UnsealReply {
    /// Base64.
    pub secret: String,
}

// Not derived: a secret appears in no log.
impl std::fmt::Debug for UnsealReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UnsealReply { secret: … }")
    }
}
