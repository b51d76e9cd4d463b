//! The key that a user signs with: one whose secret we hold, or one that an ssh-agent keeps.

use rhizome_model::{Envelope, KeyId, Signature};

use crate::agent::AgentKey;
use crate::sshsig::namespace;
use crate::{KeyError, SealingKey, SigningKey};

/// Signs for its user. How the signature looks depends on where the key is; whoever checks it takes
/// both forms ([`crate::sshsig::verify_either`]).
#[derive(Debug, Clone)]
pub enum UserKey {
    Held(SigningKey),
    Agent(AgentKey),
}

impl From<SigningKey> for UserKey {
    fn from(key: SigningKey) -> Self {
        Self::Held(key)
    }
}

impl From<AgentKey> for UserKey {
    fn from(key: AgentKey) -> Self {
        Self::Agent(key)
    }
}

impl UserKey {
    pub fn key_id(&self) -> KeyId {
        match self {
            Self::Held(key) => key.key_id(),
            Self::Agent(key) => key.key_id(),
        }
    }

    /// Signs bytes for one use: 64 raw bytes, or an SSHSIG where the key is on a token.
    pub fn sign(&self, namespace: &'static str, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match self {
            Self::Held(key) => Ok(key.sign(message).to_vec()),
            Self::Agent(key) => Ok(key.sign(namespace, message)?),
        }
    }

    /// What this user seals secrets by. Ed25519 signs the same bytes to the same signature; a
    /// token's signatures differ, so that each of its secrets looks like a new one.
    pub fn sealing_key(&self) -> Result<SealingKey, KeyError> {
        const MESSAGE: &[u8] = b"rhizome 2026 secrets are sealed by the key that follows from this";
        Ok(SealingKey::new(&self.sign(namespace::SEALING, MESSAGE)?))
    }

    pub fn sign_envelope(&self, payload_type: &str, payload: &[u8]) -> Result<Envelope, KeyError> {
        let mut envelope = Envelope {
            payload_type: payload_type.to_owned(),
            payload: payload.to_owned(),
            signatures: Vec::with_capacity(1),
        };
        self.add_signature(&mut envelope)?;
        Ok(envelope)
    }

    /// Adds this key's signature. One that it made before is replaced: a key signs once. An agent's
    /// is an SSHSIG: the namespace says to the agent's user, too, what it is for.
    pub fn add_signature(&self, envelope: &mut Envelope) -> Result<(), KeyError> {
        let sig = match self {
            Self::Held(key) => key.sign(&envelope.pae()).to_vec(),
            Self::Agent(key) => key.sign_sshsig(namespace::ENVELOPE, &envelope.pae())?,
        };
        let keyid = self.key_id().to_string();
        envelope.signatures.retain(|s| s.keyid != keyid);
        envelope.signatures.push(Signature { keyid, sig });
        Ok(())
    }
}
