//! Keys that an ssh-agent keeps: listing them, and having it sign (draft-miller-ssh-agent).
//!
//! The agent is asked over its unix socket, one question per connection. A key on a hardware token is
//! the same, but it signs SSHSIGs only and its user has to touch it each time.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rhizome_model::KeyId;
use ssh_encoding::{Decode, Encode};
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, Fingerprint, HashAlg, Signature};

use crate::sshsig;

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const FAILURE: u8 = 5;
/// OpenSSH's own limit of a message.
const MAX_MESSAGE: usize = 256 * 1024;
const TIMEOUT: Duration = Duration::from_secs(10);
/// People have to find their token, or to confirm in a window.
const SIGN_TIMEOUT: Duration = Duration::from_secs(120);

/// Why the agent did not sign.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(
        "SSH_AUTH_SOCK is not set: start an agent with `eval $(ssh-agent)` and add the key with ssh-add"
    )]
    NotNamed,
    #[error("cannot reach the ssh-agent at {}: {source}; is it running?", path.display())]
    Away { path: PathBuf, source: io::Error },
    #[error("what the ssh-agent answered is not understood")]
    Answer,
    #[error("the ssh-agent has no Ed25519 key '{wanted}'; it has {found}; add yours with ssh-add")]
    NoSuchKey { wanted: String, found: String },
    #[error(
        "the ssh-agent has several Ed25519 keys '{wanted}': give a fingerprint as `ssh-add -l` shows it, agent:SHA256:…"
    )]
    Ambiguous { wanted: String },
    #[error(
        "the ssh-agent refused to sign with '{comment}': was it not confirmed, or is it locked?"
    )]
    Refused { comment: String },
    #[error("the ssh-agent's signature with '{comment}' is not good")]
    BadSignature { comment: String },
}

/// A key that an agent keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentKey {
    socket: PathBuf,
    data: KeyData,
    key: KeyId,
    comment: String,
}

impl AgentKey {
    /// The key of the agent at SSH_AUTH_SOCK that has this comment or this fingerprint
    /// (`SHA256:…`); its only Ed25519 key where `wanted` is empty.
    pub fn find(wanted: &str) -> Result<Self, AgentError> {
        let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|s| !s.is_empty());
        Self::find_at(Path::new(&socket.ok_or(AgentError::NotNamed)?), wanted)
    }

    pub fn find_at(socket: &Path, wanted: &str) -> Result<Self, AgentError> {
        let keys = list(socket)?;
        let names = |key: &Self| {
            wanted.is_empty() || key.comment == wanted || key.fingerprint().to_string() == wanted
        };
        let mut fitting = keys.iter().filter(|key| names(key));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key.clone()),
            (Some(_), Some(_)) => Err(AgentError::Ambiguous { wanted: wanted.to_owned() }),
            (None, _) => {
                let found: Vec<_> = keys.iter().map(|key| format!("'{}'", key.comment)).collect();
                let found = if found.is_empty() { "none".into() } else { found.join(", ") };
                Err(AgentError::NoSuchKey { wanted: wanted.to_owned(), found })
            }
        }
    }

    pub fn key_id(&self) -> KeyId {
        self.key
    }

    pub fn comment(&self) -> &str {
        &self.comment
    }

    fn fingerprint(&self) -> Fingerprint {
        self.data.fingerprint(HashAlg::Sha256)
    }

    /// Whether it is on a token, which signs nothing as it stands.
    pub fn is_on_token(&self) -> bool {
        matches!(self.data, KeyData::SkEd25519(_))
    }

    /// A raw Ed25519 signature; an SSHSIG where the key is on a token.
    pub fn sign(&self, namespace: &'static str, message: &[u8]) -> Result<Vec<u8>, AgentError> {
        if self.is_on_token() {
            return self.sign_sshsig(namespace, message);
        }
        let signature = self.ask(message)?;
        let raw = signature.as_bytes().to_vec();
        // An agent that answers nonsense is noticed here, not at the other end of the world.
        crate::verify_bytes(&self.key, message, &raw).map_err(|_| self.bad())?;
        Ok(raw)
    }

    /// An SSHSIG, as `ssh-keygen -Y sign` makes it.
    pub fn sign_sshsig(
        &self,
        namespace: &'static str,
        message: &[u8],
    ) -> Result<Vec<u8>, AgentError> {
        let signature = self.ask(&sshsig::to_be_signed(namespace, message))?;
        let made = sshsig::assemble(self.data.clone(), namespace, signature);
        let made = made.map_err(|_| AgentError::Answer)?;
        sshsig::verify_sshsig(&self.key, namespace, message, &made).map_err(|_| self.bad())?;
        Ok(made)
    }

    fn ask(&self, data: &[u8]) -> Result<Signature, AgentError> {
        let mut request = vec![SIGN_REQUEST];
        let mut blob = Vec::new();
        self.data.encode(&mut blob).map_err(|_| AgentError::Answer)?;
        put(&mut request, &blob);
        put(&mut request, data);
        request.extend_from_slice(&0u32.to_be_bytes());
        let reply = call(&self.socket, &request, SIGN_TIMEOUT)?;
        match reply.split_first() {
            Some((&SIGN_RESPONSE, mut body)) => {
                let bytes = take(&mut body)?;
                let signature = Signature::try_from(bytes).map_err(|_| AgentError::Answer)?;
                let fits = signature.algorithm() == self.data.algorithm();
                if fits { Ok(signature) } else { Err(AgentError::Answer) }
            }
            Some((&FAILURE, _)) => Err(AgentError::Refused { comment: self.comment.clone() }),
            _ => Err(AgentError::Answer),
        }
    }

    fn bad(&self) -> AgentError {
        AgentError::BadSignature { comment: self.comment.clone() }
    }
}

/// The Ed25519 keys of an agent; those of other kinds are not for us.
fn list(socket: &Path) -> Result<Vec<AgentKey>, AgentError> {
    let reply = call(socket, &[REQUEST_IDENTITIES], TIMEOUT)?;
    let Some((&IDENTITIES_ANSWER, mut body)) = reply.split_first() else {
        return Err(AgentError::Answer);
    };
    let count = number(&mut body)?;
    let mut keys = Vec::new();
    for _ in 0..count {
        let mut blob = take(&mut body)?;
        let comment = String::from_utf8_lossy(take(&mut body)?);
        let comment: String = comment.chars().filter(|c| !c.is_control()).collect();
        // A kind that the crate does not know is no reason to hide the others.
        let Ok(data) = KeyData::decode(&mut blob) else { continue };
        let key = match (&data, data.algorithm()) {
            (KeyData::Ed25519(key), Algorithm::Ed25519) => KeyId(key.0),
            (KeyData::SkEd25519(token), _) => KeyId(token.public_key().0),
            _ => continue,
        };
        keys.push(AgentKey { socket: socket.to_owned(), data, key, comment });
    }
    Ok(keys)
}

fn call(socket: &Path, request: &[u8], timeout: Duration) -> Result<Vec<u8>, AgentError> {
    let away = |source| AgentError::Away { path: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(away)?;
    let mut exchange = || -> io::Result<Option<Vec<u8>>> {
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut framed = Vec::with_capacity(request.len() + 4);
        put(&mut framed, request);
        stream.write_all(&framed)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_MESSAGE {
            return Ok(None);
        }
        let mut reply = vec![0; length];
        stream.read_exact(&mut reply)?;
        Ok(Some(reply))
    };
    exchange().map_err(away)?.ok_or(AgentError::Answer)
}

fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("what we sign is below an envelope's limit");
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(bytes);
}

fn number(from: &mut &[u8]) -> Result<usize, AgentError> {
    let (head, rest) = from.split_first_chunk::<4>().ok_or(AgentError::Answer)?;
    *from = rest;
    Ok(u32::from_be_bytes(*head) as usize)
}

fn take<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], AgentError> {
    let length = number(from)?;
    let (bytes, rest) = from.split_at_checked(length).ok_or(AgentError::Answer)?;
    *from = rest;
    Ok(bytes)
}
