//! `rhizome verify`: whether every signature of an envelope is good, whose they are, and, apart from
//! that, whether the payload is a document that Rhizome can read.

use std::path::PathBuf;
use std::process::ExitCode;

use rhizome_identity::verify_signatures;
use rhizome_model::{
    Class, Code, Document, Envelope, EnvelopeError, Failure, KeyId, MAX_ENVELOPE_BYTES,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::read_input;
use crate::cli::Globals;
use crate::error::Error;
use crate::output;
use crate::render::clean;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome verify envelope.json && echo good")]
pub struct Args {
    /// The envelope; - reads standard input.
    pub envelope: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    good: bool,
    signers: Vec<KeyId>,
    payload_type: String,
    document: Value,
    #[serde(flatten)]
    failure: Option<Failure>,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let bytes = read_input(&args.envelope, MAX_ENVELOPE_BYTES)?;
    let envelope =
        Envelope::from_json(&bytes).map_err(|e| Failure::new(Code::BadEnvelope, form(&e)))?;
    let report = report(&envelope);
    if globals.json {
        output::json(&report);
    } else {
        show(&report);
    }
    let exit = if report.good { 0 } else { Class::Refused.exit_code() };
    Ok(ExitCode::from(exit))
}

/// What is wrong with the form of an envelope, with its cause.
pub fn form(error: &EnvelopeError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn report(envelope: &Envelope) -> Report {
    let (signers, failure) = match verify_signatures(envelope) {
        Ok(signers) => (signers, None),
        Err(e) => (Vec::new(), Some(Failure::new(Code::BadSignature, e.to_string()))),
    };
    let document = match Document::from_payload(&envelope.payload_type, &envelope.payload) {
        None => Value::Null,
        Some(Err(reason)) => json!({ "valid": false, "reason": reason }),
        Some(Ok(document)) => json!({
            "valid": true,
            "deployment": document.deployment_id(),
            "version": document.version(),
            "network": document.network(),
            "expires": document.window().expires,
        }),
    };
    let payload_type = envelope.payload_type.clone();
    Report { good: failure.is_none(), signers, payload_type, document, failure }
}

fn show(report: &Report) {
    for signer in &report.signers {
        output::line(format!("good signature by {signer}"));
    }
    let kind = clean(&report.payload_type);
    output::line(match &report.document {
        Value::Null => format!("payload of type {kind}: not a document of Rhizome"),
        document if document["valid"] == true => format!(
            "payload of type {kind}: a valid document of {} version {} for the network {}",
            crate::render::value(&document["deployment"]),
            document["version"],
            crate::render::value(&document["network"]),
        ),
        document => format!(
            "payload of type {kind}: not a valid document: {}",
            crate::render::value(&document["reason"])
        ),
    });
    if let Some(failure) = &report.failure {
        output::note(output::failure_text(failure));
    }
}

#[cfg(test)]
mod tests {
    use rhizome_identity::SigningKey;
    use rhizome_model::payload_type;

    use super::*;

    #[test]
    fn signatures_and_document_are_judged_apart() {
        let key = SigningKey::generate().unwrap();
        let foreign = report(&key.sign_envelope("application/x", b"anything"));
        assert!(foreign.good && foreign.signers == [key.key_id()] && foreign.document.is_null());

        let mut wrong = key.sign_envelope(payload_type::DELETE, b"{}");
        let signed_nonsense = report(&wrong);
        assert!(signed_nonsense.good && signed_nonsense.document["valid"] == false);

        wrong.payload.push(b' ');
        let tampered = report(&wrong);
        assert!(!tampered.good && tampered.signers.is_empty());
        assert_eq!(tampered.failure.map(|f| f.code), Some(Code::BadSignature));
    }
}
