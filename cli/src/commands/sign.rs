//! `rhizome sign`: exactly the bytes given become the payload of a DSSE envelope.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rhizome_identity::sshsig::{self, SshSigError};
use rhizome_model::{
    Code, Document, Envelope, Failure, MAX_ENVELOPE_BYTES, Signature, payload_type,
};
use serde_json::Value;

use super::{key, read_input};
use crate::cli::Globals;
use crate::error::{Error, misuse};
use crate::output;
use crate::profile::Profile;

/// Armored, with room to spare.
const MAX_SSH_SIGNATURE: usize = 16 * 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rhizome sign document.json > envelope.json\n  \
    rhizome --key second.key sign --add envelope.json > both.json\n  \
    rhizome --key agent:me@home sign document.json > envelope.json\n  \
    rhizome sign --pae document.json > pae && ssh-keygen -Y sign -n envelope@rhizome -f KEY pae\n  \
    rhizome sign --ssh-signature pae.sig document.json > envelope.json")]
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
    /// Print the bytes that are to be signed, for `ssh-keygen -Y sign -n envelope@rhizome`.
    #[arg(long, conflicts_with = "ssh_signature")]
    pub pae: bool,
    /// Take this signature, which `ssh-keygen -Y sign` made of those bytes, instead of making one.
    #[arg(long, value_name = "FILE")]
    pub ssh_signature: Option<PathBuf>,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let bytes = read_input(&args.document, MAX_ENVELOPE_BYTES)?;
    let mut envelope = if args.add {
        Envelope::from_json(&bytes).map_err(|e| {
            misuse(format!("{}: {}", args.document.display(), super::verify::form(&e)))
        })?
    } else {
        let kind = match args.kind.as_deref() {
            Some(kind) => full_type(kind),
            None => type_of(&bytes)?,
        };
        Envelope { payload_type: kind.to_owned(), payload: bytes, signatures: Vec::new() }
    };
    if args.pae {
        output::stdout(&envelope.pae());
        return Ok(ExitCode::SUCCESS);
    }
    match &args.ssh_signature {
        Some(file) => add_ssh_signature(&mut envelope, file)?,
        None => {
            let key = key::load(&Profile::load(globals)?.key)?;
            key.add_signature(&mut envelope).map_err(key::refuse)?;
        }
    }
    if let Some(Err(reason)) = Document::from_payload(&envelope.payload_type, &envelope.payload) {
        output::note(format!("warning: this is signed but will be refused: {reason}"));
    }
    output::line(envelope.to_json());
    Ok(ExitCode::SUCCESS)
}

/// Puts a signature in that `ssh-keygen -Y sign` made of the envelope's bytes.
fn add_ssh_signature(envelope: &mut Envelope, file: &Path) -> Result<(), Failure> {
    let refuse = |e: SshSigError| {
        Failure::new(Code::BadSignature, format!("{} is refused: {e}", file.display()))
    };
    let text = read_input(file, MAX_SSH_SIGNATURE)?;
    let sig = sshsig::dearmor(&String::from_utf8_lossy(&text)).map_err(refuse)?;
    let key = sshsig::key_of_sshsig(&sig).map_err(refuse)?;
    sshsig::verify_sshsig(&key, sshsig::namespace::ENVELOPE, &envelope.pae(), &sig)
        .map_err(refuse)?;
    let keyid = key.to_string();
    envelope.signatures.retain(|s| s.keyid != keyid);
    envelope.signatures.push(Signature { keyid, sig });
    Ok(())
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
