//! Reading requests as the registrar does: the body whatever its content type says, query
//! parameters with the texts of its errors.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Query, Request};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponseParts, ResponseParts};
use serde::de::DeserializeOwned;

use crate::db::Page;
use crate::error::{LedgerError, Reply};

pub const TOTAL_COUNT: HeaderName = HeaderName::from_static("x-total-count");
const DEFAULT_PAGE_SIZE: u64 = 50;
/// A list in one reply is no longer than this; v4 had no limit.
const MAX_PAGE_SIZE: u64 = 1000;

/// What is looked for is no longer than what it is looked for in.
const MAX_WORDS: usize = 256;
/// A body comes within this time. Ours are of some kilobytes.
const PATIENCE: Duration = Duration::from_secs(10);

/// The bytes of a request.
pub struct Body(Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = LedgerError;

    async fn from_request(request: Request, state: &S) -> Result<Self, LedgerError> {
        let read = tokio::time::timeout(PATIENCE, Bytes::from_request(request, state));
        let read = read.await.map_err(|_| LedgerError::too_slow())?;
        read.map(Self).map_err(|e| {
            if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
                LedgerError::too_large(e.body_text())
            } else {
                LedgerError::bad_request(e.body_text())
            }
        })
    }
}

impl Body {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The JSON object in it; `Err` says what is wrong with it.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, String> {
        // serde would also take a list of the fields' values.
        if self.0.trim_ascii_start().first() != Some(&b'{') {
            return Err("a JSON object is expected".into());
        }
        serde_json::from_slice(&self.0).map_err(|e| e.to_string())
    }
}

/// How many there are of what a list shows a page of: the header `X-Total-Count`.
pub struct Total(pub u64);

impl IntoResponseParts for Total {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        parts.headers_mut().insert(TOTAL_COUNT, self.0.into());
        Ok(parts)
    }
}

/// The parameters of a query, by name.
pub struct Params {
    values: HashMap<String, String>,
    /// What v4's messages call the thing that they are read into.
    target: &'static str,
}

impl Params {
    pub fn new(Query(values): Query<HashMap<String, String>>, target: &'static str) -> Self {
        Self { values, target }
    }

    /// A text that is looked for.
    pub fn words(&self, name: &str) -> Reply<Option<&str>> {
        let text = self.text(name);
        text.map_or(Ok(()), |text| check_text(text, MAX_WORDS)).map_err(|e| self.unbound(&e))?;
        Ok(text)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    pub fn number(&self, name: &str) -> Reply<Option<u64>> {
        self.text(name).map(|text| parse_number(text).map_err(|e| self.unbound(&e))).transpose()
    }

    pub fn flag(&self, name: &str) -> Reply<Option<bool>> {
        // The forms that Go's strconv.ParseBool takes.
        let flag = |text: &str| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(self.unbound(&format!("strconv.ParseBool: parsing {text:?}: invalid syntax"))),
        };
        self.text(name).map(flag).transpose()
    }

    pub fn page(&self) -> Reply<Page> {
        let page = self.number("page")?.unwrap_or(1).max(1);
        let size = self.number("size")?.unwrap_or(DEFAULT_PAGE_SIZE).min(MAX_PAGE_SIZE);
        let offset = (page - 1).saturating_mul(size);
        Ok(Page {
            limit: i64::try_from(size).unwrap_or(i64::MAX),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
        })
    }

    fn unbound(&self, why: &str) -> LedgerError {
        LedgerError::bad_request(format!("failed to bind query params to {}: {why}", self.target))
    }
}

/// That a text from outside is short and can be shown: no store need take NUL, and no terminal the
/// others.
pub fn check_text(text: &str, max: usize) -> Result<(), String> {
    if text.len() > max {
        return Err(format!("no text may be longer than {max} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("a text has control characters: {text:?}"));
    }
    Ok(())
}

/// A number as Go's strconv.ParseUint reads it, with its text when it is none.
pub fn parse_number(text: &str) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let shown: String = text.chars().take(80).collect();
    match text.parse() {
        Ok(number) if digits => Ok(number),
        _ if digits => Err(format!("strconv.ParseUint: parsing {shown:?}: value out of range")),
        _ => Err(format!("strconv.ParseUint: parsing {shown:?}: invalid syntax")),
    }
}
