//! coord, as the commands call it: one client, each call of the API one method.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Method, header};
use rhizome_identity::{UserKey, http_signature};
use rhizome_model::api::{
    AccountLimits, AccountView, DeploymentView, ExecRequest, JobAgain, JobView, NodeStatus,
    NodeView, OutputChunk, PlacementReply, PlacementRequest, PlanBase, PoolChange, PoolView,
    QueueView, Submitted,
};
use rhizome_model::{AccountId, Code, DeploymentId, Envelope, Event, Failure, JobId, Name, NodeId};
use rhizome_service::Client;
use serde::Serialize;

use crate::cli::Globals;
use crate::commands::key;
use crate::error::misuse;
use crate::profile::Profile;
use crate::refs::{DeploymentRef, ResourceRef};

/// A list of past events is answered within this.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A line of a stream of output: at most 64 KiB in base64, and what stands around it.
const MAX_CHUNK_LINE: usize = 1 << 20;
/// The name of the event that says that older ones are gone.
const TRIMMED: &str = "trimmed";

/// The key, and coord as the key's account sees it.
pub struct Session {
    pub profile: Profile,
    pub key: UserKey,
    pub coord: Coord,
}

impl Session {
    /// An envelope with the key's signature.
    pub fn sign(&self, payload_type: &str, payload: &[u8]) -> Result<Envelope, Failure> {
        self.key.sign_envelope(payload_type, payload).map_err(key::refuse)
    }

    pub fn open(globals: &Globals) -> Result<Self, Failure> {
        let profile = Profile::load(globals)?;
        let plain = Client::new("coord", profile.coord()?)?;
        let key = key::load(&profile.key)?;
        let signed = plain.clone().signed(http_signature::signer(key.clone()));
        Ok(Self { coord: Coord { plain, signed, key: key.clone() }, key, profile })
    }
}

#[derive(Clone)]
pub struct Coord {
    /// Shares its connections with the signed one.
    plain: Client,
    signed: Client,
    key: UserKey,
}

/// An event with the number that coord gave it: the place to go on from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NumberedEvent {
    pub id: u64,
    #[serde(flatten)]
    pub event: Event,
}

/// Hands an envelope over. coord takes envelopes from anybody: the envelope says whose it is.
pub async fn submit(coord: &Client, envelope: Vec<u8>) -> Result<Submitted, Failure> {
    coord.post_bytes("/v1/envelopes", envelope).await
}

/// The same for an operation.
pub async fn operate(coord: &Client, envelope: Vec<u8>) -> Result<JobView, Failure> {
    coord.post_bytes("/v1/envelopes", envelope).await
}

impl Coord {
    /// The account of the key.
    pub async fn account(&self) -> Result<AccountId, Failure> {
        let key = self.key.key_id();
        let account: Result<AccountView, _> = self.signed.get(&format!("/v1/accounts/{key}")).await;
        account.map(|account| account.id).map_err(|failure| match failure.code {
            Code::UnknownAccount | Code::NotFound => Failure::new(
                Code::UnknownAccount,
                format!("no account has the key {key}: run `rhizome account register` first"),
            ),
            _ => failure,
        })
    }

    pub async fn resolve(&self, wanted: &DeploymentRef) -> Result<DeploymentId, Failure> {
        let account = match wanted.account {
            Some(account) => account,
            None => self.account().await?,
        };
        Ok(DeploymentId { account, name: wanted.name.clone() })
    }

    pub async fn place_of(
        &self,
        wanted: ResourceRef,
        node: Option<NodeId>,
    ) -> Result<Place, Failure> {
        let deployment = self.resolve(&wanted.deployment).await?;
        Ok(Place { deployment, resource: wanted.resource, node })
    }

    pub async fn submit(&self, envelope: Vec<u8>) -> Result<Submitted, Failure> {
        submit(&self.plain, envelope).await
    }

    /// Hands an operation over: the job that its node makes of it.
    pub async fn operate(&self, envelope: Vec<u8>) -> Result<JobView, Failure> {
        operate(&self.plain, envelope).await
    }

    pub async fn deployments(&self, all: bool) -> Result<Vec<DeploymentView>, Failure> {
        let query = if all { "?all=true" } else { "" };
        self.signed.get(&format!("/v1/deployments{query}")).await
    }

    pub async fn deployment(&self, id: &DeploymentId) -> Result<DeploymentView, Failure> {
        self.signed.get(&format!("/v1/deployments/{id}")).await
    }

    /// The events that are there now.
    pub async fn past_events(&self, id: &DeploymentId, after: u64) -> Result<Vec<Event>, Failure> {
        let path = format!("/v1/deployments/{id}/events?after={after}");
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let response =
            self.signed.call(Method::GET, &path, Vec::new(), headers, Some(TIMEOUT)).await?;
        let bytes = response.bytes().await.map_err(|e| stopped(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| not_understood(&e))
    }

    /// The events after one, and those to come.
    pub async fn events(
        &self,
        id: &DeploymentId,
        after: u64,
    ) -> Result<impl Stream<Item = Result<NumberedEvent, Failure>> + Send + use<>, Failure> {
        let path = format!("/v1/deployments/{id}/events?after={after}");
        let stream = self.signed.events(&path, Some(&after.to_string())).await?;
        Ok(stream.filter_map(async |message| match message {
            // Older events are kept no longer: what counts, the phase, is in those that are.
            Ok(message) if message.event == TRIMMED => None,
            Ok(message) => Some(numbered(&message)),
            Err(failure) => Some(Err(failure)),
        }))
    }

    pub async fn nodes(&self) -> Result<Vec<NodeView>, Failure> {
        self.signed.get("/v1/nodes").await
    }

    pub async fn node(&self, id: NodeId) -> Result<NodeView, Failure> {
        self.signed.get(&format!("/v1/nodes/{id}")).await
    }

    pub async fn node_status(&self, id: NodeId) -> Result<NodeStatus, Failure> {
        self.signed.get(&format!("/v1/nodes/{id}/status")).await
    }

    /// What a node has of a deployment, for a plan to be compared with.
    pub async fn plan_base(&self, node: NodeId, id: &DeploymentId) -> Result<PlanBase, Failure> {
        self.signed.get(&format!("/v1/nodes/{node}/tasks/{id}/base")).await
    }

    pub async fn node_queues(&self, id: NodeId) -> Result<Vec<QueueView>, Failure> {
        self.signed.get(&format!("/v1/nodes/{id}/queues")).await
    }

    pub async fn dead(&self, node: NodeId, queue: &str) -> Result<Vec<JobId>, Failure> {
        self.signed.get(&format!("/v1/nodes/{node}/queues/{}/dead", word(queue)?)).await
    }

    pub async fn job(&self, node: NodeId, id: JobId) -> Result<JobView, Failure> {
        self.signed.get(&format!("/v1/nodes/{node}/jobs/{id}")).await
    }

    pub async fn cancel_job(&self, node: NodeId, id: JobId) -> Result<JobView, Failure> {
        self.signed.post_bytes(&format!("/v1/nodes/{node}/jobs/{id}/cancel"), Vec::new()).await
    }

    pub async fn job_again(&self, node: NodeId, id: JobId) -> Result<JobAgain, Failure> {
        self.signed.post_bytes(&format!("/v1/nodes/{node}/jobs/{id}/again"), Vec::new()).await
    }

    pub async fn runners(&self, node: NodeId) -> Result<Vec<PoolView>, Failure> {
        self.signed.get(&format!("/v1/nodes/{node}/runners")).await
    }

    pub async fn change_runners(
        &self,
        node: NodeId,
        queue: &str,
        change: &PoolChange,
    ) -> Result<PoolView, Failure> {
        self.signed.post(&format!("/v1/nodes/{node}/runners/{}", word(queue)?), change).await
    }

    pub async fn limits(&self, node: NodeId) -> Result<BTreeMap<String, AccountLimits>, Failure> {
        self.signed.get(&format!("/v1/nodes/{node}/limits")).await
    }

    pub async fn set_limits(
        &self,
        node: NodeId,
        account: &str,
        limits: &AccountLimits,
    ) -> Result<AccountLimits, Failure> {
        self.signed.put(&format!("/v1/nodes/{node}/limits/{}", word(account)?), limits).await
    }

    pub async fn place(&self, count: usize) -> Result<PlacementReply, Failure> {
        self.signed.post("/v1/placements", &PlacementRequest { count }).await
    }

    /// What a resource printed: each piece is given to `each` as it comes.
    pub async fn logs(
        &self,
        at: &Place,
        tail: usize,
        follow: bool,
        each: impl FnMut(OutputChunk) -> Next,
    ) -> Result<(), Failure> {
        let node = at.node.map_or_else(String::new, |node| format!("&node={node}"));
        let path = format!("{}/logs?tail={tail}&follow={follow}{node}", at.path());
        self.chunks(Method::GET, &path, Vec::new(), each).await
    }

    pub async fn exec(
        &self,
        at: &Place,
        request: &ExecRequest,
        each: impl FnMut(OutputChunk) -> Next,
    ) -> Result<(), Failure> {
        let body = serde_json::to_vec(request).map_err(|e| not_understood(&e))?;
        let node = at.node.map_or_else(String::new, |node| format!("?node={node}"));
        let path = format!("{}/exec{node}", at.path());
        self.chunks(Method::POST, &path, body, each).await
    }

    async fn chunks(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        mut each: impl FnMut(OutputChunk) -> Next,
    ) -> Result<(), Failure> {
        let response = self.signed.call(method, path, body, HeaderMap::new(), None).await?;
        let mut stream = response.bytes_stream();
        let mut lines = Lines::default();
        while let Some(bytes) = stream.next().await {
            for line in lines.push(&bytes.map_err(|e| stopped(&e))?)? {
                let chunk = serde_json::from_slice(&line).map_err(|e| not_understood(&e))?;
                if each(chunk) == Next::Stop {
                    return Ok(());
                }
            }
        }
        Err(Failure::new(Code::Unavailable, "coord stopped sending before the end"))
    }
}

/// A resource, and where several nodes have one of that name, which of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub deployment: DeploymentId,
    pub resource: Name,
    pub node: Option<NodeId>,
}

impl Place {
    fn path(&self) -> String {
        format!("/v1/deployments/{}/resources/{}", self.deployment, self.resource)
    }
}

/// Whether there can be more after a piece of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    More,
    Stop,
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// The lines that are complete now, without the empty ones that keep a connection open.
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
        let mut complete = Vec::new();
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            self.begun.extend_from_slice(part);
            if self.begun.len() > MAX_CHUNK_LINE {
                return Err(Failure::new(Code::Internal, "coord sent a line without an end"));
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.begun);
                if !line.trim_ascii().is_empty() {
                    complete.push(line);
                }
            }
        }
        Ok(complete)
    }
}

/// A part of a path, which is signed as it is sent.
fn word(text: &str) -> Result<&str, Failure> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !text.is_empty() && text.bytes().all(plain) {
        return Ok(text);
    }
    Err(misuse(format!("'{text}' is no name of a queue: letters, digits and '-'")))
}

fn numbered(message: &eventsource_stream::Event) -> Result<NumberedEvent, Failure> {
    let event = serde_json::from_str(&message.data).map_err(|e| not_understood(&e))?;
    let id = message.id.parse().map_err(|_| {
        Failure::new(Code::Internal, format!("coord sent an event with the id '{}'", message.id))
    })?;
    Ok(NumberedEvent { id, event })
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::new(Code::Internal, format!("coord sent what we do not understand: {error}"))
}

fn stopped(error: &dyn std::error::Error) -> Failure {
    Failure::new(Code::Unavailable, format!("coord stopped sending: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn however_the_bytes_are_cut_the_lines_are_the_same(
            lines in proptest::collection::vec("[a-z]{1,9}", 0..9), cut in 1..7usize,
        ) {
            let bytes: Vec<u8> = lines.iter().flat_map(|l| format!("{l}\n\n").into_bytes()).collect();
            let mut cutter = Lines::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                seen.extend(cutter.push(piece).unwrap());
            }
            let seen: Vec<_> =
                seen.iter().map(|l| String::from_utf8_lossy(l).trim().to_owned()).collect();
            prop_assert_eq!(seen, lines);
        }
    }

    #[test]
    fn a_line_without_an_end_is_not_kept_forever() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; 1 << 18];
        assert!((0..5).any(|_| lines.push(&piece).is_err()));
    }
}
