//! `rhizome sign`: exactly the bytes given become the payload of a DSSE envelope.

use std::path::PathBuf;
use std::process::ExitCode;

use rhizome_model::{Document, Envelope, Failure, MAX_ENVELOPE_BYTES, payload_type};
use serde_json::Value;

use super::{key, read_input};
use crate::cli::Globals;
use crate::error::{Error, misuse};
use crate::output;
use crate::profile::Profile;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rhizome sign document.json > envelope.json\n  \
    rhizome --key second.key sign --add envelope.json > both.json")]
pub struct Args {
    /// The document, or with --add the envelope; - reads standard input.
    pub document: PathBuf,
    /// The payload type: deployment, delete, operation, or any other in full. Without it the content
    /// decides.
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "add")]
    pub kind: Option<String>,
    /// Add a signature to an envelope.
    #[arg(long)]
    pub add: bool,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let bytes = read_input(&args.document, MAX_ENVELOPE_BYTES)?;
    let key = key::load(&Profile::load(globals)?.key)?;
    let envelope = if args.add {
        let mut envelope = Envelope::from_json(&bytes).map_err(|e| {
            misuse(format!("{}: {}", args.document.display(), super::verify::form(&e)))
        })?;
        key.add_signature(&mut envelope);
        envelope
    } else {
        let kind = match args.kind.as_deref() {
            Some(kind) => full_type(kind),
            None => type_of(&bytes)?,
        };
        key.sign_envelope(kind, &bytes)
    };
    if let Some(Err(reason)) = Document::from_payload(&envelope.payload_type, &envelope.payload) {
        output::note(format!("warning: this is signed but will be refused: {reason}"));
    }
    output::line(envelope.to_json());
    Ok(ExitCode::SUCCESS)
}

fn full_type(kind: &str) -> &str {
    match kind {
        "deployment" => payload_type::DEPLOYMENT,
        "delete" => payload_type::DELETE,
        "operation" => payload_type::OPERATION,
        other => other,
    }
}

/// What a document is, by what it says.
fn type_of(bytes: &[u8]) -> Result<&'static str, Failure> {
    let Ok(Value::Object(fields)) = serde_json::from_slice(bytes) else {
        return Err(misuse("this is not a JSON object: say with --type what it is"));
    };
    if fields.contains_key("payloadType") && fields.contains_key("signatures") {
        Err(misuse("this is an envelope already: --add adds a signature to it"))
    } else if fields.contains_key("script") {
        Ok(payload_type::DEPLOYMENT)
    } else if fields.contains_key("action") {
        Ok(payload_type::OPERATION)
    } else if fields.contains_key("version") {
        Ok(payload_type::DELETE)
    } else {
        let message = "this is no deployment, delete or operation: say with --type what it is";
        Err(misuse(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_decides() {
        let kind = |text: &str| type_of(text.as_bytes());
        assert_eq!(kind(r#"{"script":"","version":1}"#), Ok(payload_type::DEPLOYMENT));
        assert_eq!(kind(r#"{"version":1}"#), Ok(payload_type::DELETE));
        let operation = r#"{"version":1,"action":{"action":"stop"}}"#;
        assert_eq!(kind(operation), Ok(payload_type::OPERATION));
        for bad in ["{}", "[]", "", r#"{"payloadType":"t","payload":"","signatures":[]}"#] {
            assert!(kind(bad).is_err(), "{bad}");
        }
        assert_eq!(full_type("delete"), payload_type::DELETE);
        assert_eq!(full_type("application/x"), "application/x");
    }
}
