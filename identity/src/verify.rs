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
use rhizome_model::api::AccountView;
use rhizome_model::{
    AccountId, Code, Document, Envelope, EnvelopeError, Failure, KeyId, WindowError,
};

use crate::envelope::{digest, verify_signatures};

/// Where accounts are looked up.
#[async_trait]
pub trait Accounts: Send + Sync {
    async fn by_key(&self, key: &KeyId) -> Result<Option<AccountView>, Failure>;
    async fn by_id(&self, id: AccountId) -> Result<Option<AccountView>, Failure>;
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
    pub account: AccountView,
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

/// The account's own key must have signed, and every required co-signer; together the signers must
/// reach the weight that the document asks for. Signatures of keys that the document does not name
/// count nothing.
fn authorise(document: &Document, account: &AccountView, signers: &[KeyId]) -> Result<(), Failure> {
    let refuse = |message| Err(Failure::new(Code::Unauthorised, message));
    if !signers.contains(&account.key) {
        return refuse(format!(
            "account {} has not signed: its key is {}",
            account.id, account.key
        ));
    }
    let (cosigners, required) = document.cosigners();
    if let Some(missing) = cosigners.iter().find(|c| c.required && !signers.contains(&c.key)) {
        return refuse(format!(
            "the signature of the required co-signer {} is missing",
            missing.key
        ));
    }
    // Over the signers, not the co-signers: a key that is listed twice still weighs once.
    let weight_of = |key: &KeyId| {
        let named = cosigners.iter().find(|c| c.key == *key).map_or(0, |c| c.weight);
        if *key == account.key { 1 } else { named }
    };
    let weight = signers.iter().map(weight_of).fold(0, u32::saturating_add);
    if weight < required {
        return refuse(format!("the signatures weigh {weight}; the document asks for {required}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
