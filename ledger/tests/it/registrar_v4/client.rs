//! Requests as the registrar's own client in Go makes them, and answers compared as a whole.

use std::cell::RefCell;
use std::collections::BTreeSet;

use http::{HeaderMap, Method, header};
use rhizome_identity::SigningKey;
use serde_json::{Value, json};

use crate::harness::{Caller, DEADLINE, Ledger, new_account, now, x_auth};

/// In a body that is wanted: the time of now, as RFC 3339 or in Unix seconds.
pub const TIME: &str = "<time>";

/// In a body that is wanted, at the end of a text: and something more.
const MORE: char = '…';

/// Refusals that tell a clock's owner what time it is.
const OF_CLOCKS: [&str; 4] = [
    "timestamp outside acceptable window",
    "invalid timestamp hint",
    "Expired challenge",
    "Challenge from the future",
];

/// A ledger under one of the two prefixes.
pub struct Registrar {
    ledger: Ledger,
    prefix: &'static str,
    http: reqwest::Client,
    /// What has answered with success.
    walked: RefCell<BTreeSet<(String, String)>>,
}

pub struct Answer {
    asked: String,
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Registrar {
    pub async fn start(prefix: &'static str) -> Self {
        let http = reqwest::Client::builder().no_proxy().user_agent("Go-http-client/1.1");
        let http = http.timeout(DEADLINE).build().unwrap();
        Self { ledger: Ledger::start().await, prefix, http, walked: RefCell::default() }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, None, None).await
    }

    /// A change, signed by the caller just now.
    pub async fn send(&self, method: Method, path: &str, who: &Caller, body: &Value) -> Answer {
        let auth = x_auth(&who.key, who.id, now());
        self.ask(method, path, Some(&auth), Some(body)).await
    }

    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        auth: Option<&str>,
        body: Option<&Value>,
    ) -> Answer {
        let url = format!("{}{}{path}", self.ledger.base(), self.prefix);
        let mut request =
            self.http.request(method.clone(), url).header(header::ACCEPT_ENCODING, "gzip");
        if let Some(auth) = auth {
            request = request.header("X-Auth", auth);
        }
        if let Some(body) = body {
            // Go's encoder ends what it writes with a line feed.
            request = request.header(header::CONTENT_TYPE, "application/json");
            request = request.body(format!("{body}\n"));
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        if status.is_success() {
            let route = path.split('?').next().unwrap_or_default();
            self.walked.borrow_mut().insert((method.to_string(), route.to_owned()));
        }
        Answer {
            asked: format!("{method} {path} {auth:?}"),
            status: status.as_u16(),
            headers,
            body,
        }
    }

    /// What a browser asks before it lets a page make a request.
    pub async fn preflight(&self, method: &Method, path: &str) -> (u16, HeaderMap) {
        let url = format!("{}{}{path}", self.ledger.base(), self.prefix);
        let request = self.http.request(Method::OPTIONS, url);
        let response = request
            .header(header::ORIGIN, "https://dashboard.example")
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, method.as_str())
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "x-auth,content-type")
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.headers().clone())
    }

    /// An account of the key, which must get this id.
    pub async fn account(&self, key: SigningKey, id: u64) -> Caller {
        let made = self.ask(Method::POST, "/accounts", None, Some(&new_account(&key, now()))).await;
        assert_eq!((made.status, &made.body["twin_id"]), (201, &json!(id)), "{}", made.body);
        Caller { key, id }
    }

    /// That each route that is described has answered with success.
    pub async fn every_route_was_walked(&self) {
        let (_, api) = self.ledger.get("/openapi.json").await;
        let walked = self.walked.borrow();
        let mut routes = 0;
        for (template, methods) in api["paths"].as_object().unwrap() {
            let Some(template) = template.strip_prefix("/v1") else { continue };
            for method in methods.as_object().unwrap().keys() {
                routes += 1;
                let was = |(m, path): &(String, String)| {
                    m.eq_ignore_ascii_case(method) && fits(template, path)
                };
                assert!(walked.iter().any(was), "{method} {template} was left out");
            }
        }
        assert_eq!(routes, 14, "v4 has so many, besides its /swagger");
    }
}

fn fits(template: &str, path: &str) -> bool {
    let (names, parts) = (template.split('/'), path.split('/'));
    names.clone().count() == parts.clone().count()
        && names
            .zip(parts)
            .all(|(name, part)| name == part || name.starts_with('{') && !part.is_empty())
}

impl Answer {
    /// The status, the headers that every answer has, and the body with each of its fields.
    pub fn is(&self, status: u16, body: &Value) {
        let Self { asked, .. } = self;
        assert!(same(&self.body, body), "{asked}:\n{}\nand not\n{body}", self.body);
        assert_eq!(self.status, status, "{asked}: {}", self.body);
        // gin adds "; charset=utf-8", which JSON has not and clients do not look at.
        let kind = (!body.is_null()).then_some("application/json");
        assert_eq!(self.header("content-type"), kind, "{asked}");
        assert_eq!(self.header("access-control-allow-origin"), Some("*"), "{asked}");
        assert_eq!(self.header("access-control-expose-headers"), Some("x-total-count"), "{asked}");
    }

    /// v4's refusal is `{"error": text}`; the code is ours.
    pub fn is_refusal(&self, status: u16, text: &str) {
        let code = match status {
            400 => "bad_request",
            401 if text == "not authorized" => "unauthorised",
            401 => "unauthenticated",
            404 => "not_found",
            409 => "conflict",
            _ => panic!("{status} is not among v4's refusals"),
        };
        let mut body = json!({ "error": text, "code": code });
        if OF_CLOCKS.iter().any(|begin| text.starts_with(begin)) {
            // v4 tells its time where an account is made; ours, wherever a clock is the problem.
            body["detail"] = json!("the ledger's clock says …");
            body["server_time"] = json!(TIME);
        }
        self.is(status, &body);
    }

    /// A page of a list, and how many there are: v4 does not say that.
    pub fn is_page(&self, total: u64, items: &Value) {
        self.is(200, items);
        assert_eq!(self.header("x-total-count"), Some(&*total.to_string()), "{}", self.asked);
    }

    /// The same, of which only the ids are compared.
    pub fn has_ids(&self, field: &str, total: u64, ids: &[u64]) {
        let items = self.body.as_array().unwrap();
        let found: Vec<_> = items.iter().map(|item| item[field].as_u64().unwrap()).collect();
        assert_eq!(found, ids, "{}", self.asked);
        self.is_page(total, &self.body);
    }

    pub fn body(&self) -> &Value {
        &self.body
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

fn same(seen: &Value, wanted: &Value) -> bool {
    match (seen, wanted) {
        (Value::Object(seen), Value::Object(wanted)) => {
            let field = |(name, wanted)| seen.get(name).is_some_and(|seen| same(seen, wanted));
            seen.len() == wanted.len() && wanted.iter().all(field)
        }
        (Value::Array(seen), Value::Array(wanted)) => {
            seen.len() == wanted.len() && seen.iter().zip(wanted).all(|(s, w)| same(s, w))
        }
        (Value::Number(seen), Value::String(wanted)) if wanted == TIME => {
            seen.as_i64().is_some_and(|seen| seen.abs_diff(now()) < 10)
        }
        (Value::String(seen), Value::String(wanted)) => match wanted.strip_suffix(MORE) {
            Some(begin) => seen.strip_prefix(begin).is_some_and(|more| !more.is_empty()),
            None => seen == wanted || wanted == TIME && is_now(seen),
        },
        _ => seen == wanted,
    }
}

/// RFC 3339 in UTC, which Go reads.
fn is_now(text: &str) -> bool {
    let time = text.parse::<jiff::Timestamp>();
    text.ends_with('Z') && time.is_ok_and(|time| time.as_second().abs_diff(now()) < 120)
}
