//! Several addresses of one ledger, as one client: who does not answer is passed over, who answered
//! last is asked first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, Method};
use rhizome_model::{Code, Failure};
use rhizome_service::Client;
use rhizome_service::client::{Response, Signer};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Clones share which address answered last.
#[derive(Debug, Clone)]
pub struct Ledgers {
    clients: Vec<Client>,
    current: Arc<AtomicUsize>,
}

/// Asks one after the other until somebody answers, whatever the answer is.
macro_rules! first_answer {
    ($self:ident, $client:ident => $call:expr) => {{
        let mut silent: Option<Failure> = None;
        let first = $self.current.load(Ordering::Relaxed);
        for step in 0..$self.clients.len() {
            let at = (first + step) % $self.clients.len();
            let $client = &$self.clients[at];
            match $call.await {
                Err(failure) if failure.code == Code::Unavailable => match &mut silent {
                    Some(all) => all.message = format!("{}; {}", all.message, failure.message),
                    None => silent = Some(failure),
                },
                answer => {
                    $self.current.store(at, Ordering::Relaxed);
                    return answer;
                }
            }
        }
        Err(silent.unwrap_or_else(|| Failure::new(Code::Unavailable, "no ledger is named")))
    }};
}

impl Ledgers {
    /// `urls` is one URL, or several with commas between.
    pub fn new(urls: &str) -> Result<Self, Failure> {
        let named = urls.split(',').map(str::trim).filter(|url| !url.is_empty());
        let clients: Vec<_> =
            named.map(|url| Client::new("ledger", url)).collect::<Result<_, _>>()?;
        if clients.is_empty() {
            return Err(Failure::new(Code::BadRequest, "no ledger is named: write a URL"));
        }
        Ok(Self { clients, current: Arc::default() })
    }

    pub fn signed(mut self, signer: &Signer) -> Self {
        self.clients = self.clients.into_iter().map(|c| c.signed(signer.clone())).collect();
        self
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        first_answer!(self, client => client.get(path))
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|e| Failure::new(Code::Internal, format!("cannot write the request: {e}")))?;
        first_answer!(self, client => client.post_bytes(path, body.clone()))
    }

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        headers: HeaderMap,
        timeout: Option<Duration>,
    ) -> Result<Response, Failure> {
        first_answer!(self, client =>
            client.call(method.clone(), path, body.clone(), headers.clone(), timeout))
    }
}
