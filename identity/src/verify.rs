//! The verification pipeline: from bytes that came from anywhere to a document that may be acted on.
//!
//! ```text
//!   size ▶ form ▶ payload type ▶ signatures ▶ document ▶ network ▶ window ▶ account ▶ authorisation
//! ```
//!
//! Cheap checks come first, and nothing that the payload says is believed before its signatures are
//! checked. Each refusal has its own code. The script is never looked at. Whether the nonce was used
//! before is the caller's to check, together with remembering it.

use async_trait::async_trait;
use rhizome_model::statement::{Account, KeyEnding};
use rhizome_model::{
    AccountId, Code, Document, Envelope, EnvelopeError, Failure, KeyId, WindowError,
};

use crate::envelope::{digest, verify_signatures};

/// Where accounts are looked up.
#[async_trait]
pub trait Accounts: Send + Sync {
    /// The account that has this key, or had it.
    async fn by_key(&self, key: &KeyId) -> Result<Option<Account>, Failure>;
    async fn by_id(&self, id: AccountId) -> Result<Option<Account>, Failure>;
}

/// What passed every check.
#[derive(Debug, Clone)]
pub struct Verified {
    pub envelope: Envelope,
    pub document: Document,
    /// Names the signed content: 64 hexadecimal digits.
    pub digest: String,
    pub signers: Vec<KeyId>,
    /// Whose document it is.
    pub account: Account,
}

/// Checks an envelope as it came. `now` is in Unix seconds.
pub async fn verify(
    bytes: &[u8],
    accounts: &dyn Accounts,
    network: &str,
    now: i64,
) -> Result<Verified, Failure> {
    let envelope = Envelope::from_json(bytes).map_err(refuse_form)?;
    // Whether the type is ours is asked before its signatures cost us anything.
    if Document::from_payload(&envelope.payload_type, b"").is_none() {
        let kind: String = envelope.payload_type.chars().take(100).collect();
        return Err(Failure::new(
            Code::UnknownPayloadType,
            format!("the payload type {kind:?} is not one that we take"),
        ));
    }
    let signers = verify_signatures(&envelope)
        .map_err(|e| Failure::new(Code::BadSignature, format!("{e}; sign the document again")))?;
    let document = Document::from_payload(&envelope.payload_type, &envelope.payload)
        .expect("the type was known a moment ago")
        .map_err(|e| {
            Failure::new(Code::InvalidDocument, format!("the document is not valid: {e}"))
        })?;
    check_network(&document, network)?;
    check_window(&document, now)?;
    let account = accounts.by_id(document.account()).await?.ok_or_else(|| {
        Failure::new(
            Code::UnknownAccount,
            format!("the ledger has no account {}; register its key first", document.account()),
        )
    })?;
    authorise(&document, &account, &signers)?;
    let digest = digest(&envelope);
    Ok(Verified { envelope, document, digest, signers, account })
}

fn refuse_form(error: EnvelopeError) -> Failure {
    match error {
        EnvelopeError::TooLarge(_) => Failure::new(Code::TooLarge, error.to_string()),
        EnvelopeError::Json(source) => {
            Failure::new(Code::BadEnvelope, format!("not a DSSE envelope: {source}"))
        }
        EnvelopeError::Base64(_) | EnvelopeError::Unsigned | EnvelopeError::TooManySignatures => {
            Failure::new(Code::BadEnvelope, error.to_string())
        }
    }
}

fn check_network(document: &Document, network: &str) -> Result<(), Failure> {
    if document.network() == network {
        return Ok(());
    }
    let theirs: String = document.network().chars().take(40).collect();
    Err(Failure::new(
        Code::WrongNetwork,
        format!("the document was signed for the network {theirs:?}; this is {network:?}"),
    ))
}

fn check_window(document: &Document, now: i64) -> Result<(), Failure> {
    let window = document.window();
    window.check(now).map_err(|error| match error {
        WindowError::Expired => Failure::new(
            Code::Expired,
            format!(
                "the document expired {} s ago; sign it again with a later expiry",
                now.saturating_sub(window.expires)
            ),
        ),
        WindowError::NotYetValid => Failure::new(
            Code::NotYetValid,
            format!(
                "the document is valid in {} s only; submit it then",
                window.not_before.unwrap_or(now).saturating_sub(now)
            ),
        ),
        WindowError::TooLong => Failure::new(
            Code::InvalidDocument,
            format!(
                "expires: at most {} days ahead",
                rhizome_model::MAX_LIFETIME_SECS / (24 * 3600)
            ),
        ),
    })
}

/// The account in whose name a key may act: one that has it, and not one that had it.
pub async fn active_account(accounts: &dyn Accounts, key: &KeyId) -> Result<Account, Failure> {
    let account = accounts.by_key(key).await?.ok_or_else(|| {
        Failure::new(
            Code::UnknownAccount,
            format!("no account of the ledger has the key {key}; register it first"),
        )
    })?;
    if account.is_active(key) { Ok(account) } else { Err(ended(&account, key)) }
}

/// A key of the account must have signed, and every required co-signer; together the signers must
/// reach the weight that the document asks for. Signatures of keys that the document does not name
/// count nothing, and those of keys that have ended neither.
fn authorise(document: &Document, account: &Account, signers: &[KeyId]) -> Result<(), Failure> {
    let refuse = |message| Err(Failure::new(Code::Unauthorised, message));
    if !signers.iter().any(|key| account.is_active(key)) {
        let had = signers.iter().find(|key| account.key(key).is_some());
        return match (had, account.main_key()) {
            (Some(key), _) => Err(ended(account, key)),
            (None, Some(own)) => {
                refuse(format!("account {} has not signed: its key is {own}", account.id))
            }
            (None, None) => Err(revoked(account)),
        };
    }
    let (cosigners, required) = document.cosigners();
    if let Some(missing) = cosigners.iter().find(|c| c.required && !signers.contains(&c.key)) {
        return refuse(format!(
            "the signature of the required co-signer {} is missing",
            missing.key
        ));
    }
    // Over the signers, not the co-signers: a key that is listed twice still weighs once. The account
    // weighs one, whichever of its keys have signed; what those weigh is for changing its keys.
    let weight_of = |key: &KeyId| cosigners.iter().find(|c| c.key == *key).map_or(0, |c| c.weight);
    let others = signers.iter().filter(|key| account.key(key).is_none());
    let weight = others.map(weight_of).fold(1, u32::saturating_add);
    if weight < required {
        return refuse(format!("the signatures weigh {weight}; the document asks for {required}"));
    }
    Ok(())
}

fn ended(account: &Account, key: &KeyId) -> Failure {
    if account.main_key().is_none() {
        return revoked(account);
    }
    let how = account.key(key).and_then(|k| k.ended).map(|end| end.how);
    let what = match how {
        Some(KeyEnding::Rotated) => "was replaced by another; sign with that",
        Some(KeyEnding::Revoked) | None => "was revoked; sign with another key of the account",
    };
    Failure::new(Code::RevokedKey, format!("the key {key} of account {} {what}", account.id))
}

fn revoked(account: &Account) -> Failure {
    let message = format!("account {} is revoked: all its keys are", account.id);
    Failure::new(Code::RevokedAccount, message)
}

#[cfg(test)]
mod tests;
