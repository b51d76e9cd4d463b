//! A TPM 2.0 that keeps a small secret, through Debian's tpm2-tools: nothing is linked into our
//! program that most machines do not have.
//!
//! ```text
//!   owner's primary key, derived anew each time (ECC, nothing is stored in the TPM)
//!     └─ sealed object: its public and private halves are the blob; only this TPM loads them
//! ```
//!
//! The secret is bound to the TPM, not to what was booted: a new kernel must open it. What goes
//! through the folder of a run is public, or encrypted by the TPM.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rhizome_model::Code;
use serde::{Deserialize, Serialize};

use crate::error::{During, Result, SalError};
use crate::tool::Tool;

/// The kernel's own resource manager.
const DEVICE: &str = "/dev/tpmrm0";
/// What a TPM seals at most.
pub const MAX_SECRET_BYTES: usize = 128;
/// A blob of ours has two halves of some hundred bytes.
const MAX_BLOB_BYTES: usize = 4096;

/// A TPM 2.0.
#[derive(Debug)]
pub struct Tpm {
    /// How tpm2-tools reach it, such as `device:/dev/tpmrm0`.
    tcti: String,
    /// A TPM has few slots: one at a time.
    turn: Mutex<()>,
}

/// The two halves of a sealed object, in hexadecimal digits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Blob {
    public: String,
    private: String,
}

impl Tpm {
    /// This machine's TPM 2.0, where the kernel shows one.
    pub fn find() -> Option<Self> {
        Path::new(DEVICE).exists().then(|| Self::at(&format!("device:{DEVICE}")))
    }

    /// The TPM that tpm2-tools call this, such as `swtpm:path=/run/swtpm`.
    pub fn at(tcti: &str) -> Self {
        Self { tcti: tcti.to_owned(), turn: Mutex::new(()) }
    }

    /// Seals text of at most [`MAX_SECRET_BYTES`].
    pub fn seal(&self, secret: &str) -> Result<Vec<u8>> {
        if secret.is_empty() || secret.len() > MAX_SECRET_BYTES {
            let message = format!("a TPM seals 1 to {MAX_SECRET_BYTES} bytes");
            return Err(SalError::new(Code::BadRequest, message));
        }
        let run = self.begin()?;
        run.tool("tpm2_create")
            .args([
                "-Q", "-C", "primary", "-g", "sha256", "-i", "-", "-u", "public", "-r", "private",
            ])
            .stdin(secret)
            .run()?;
        let blob = Blob { public: run.read("public")?, private: run.read("private")? };
        serde_json::to_vec(&blob)
            .map_err(|e| SalError::new(Code::Internal, format!("cannot write the blob: {e}")))
    }

    /// What was sealed by this very TPM.
    pub fn open(&self, blob: &[u8]) -> Result<String> {
        let damaged =
            || SalError::new(Code::IdentityLost, "what is sealed is damaged, or of another form");
        if blob.len() > MAX_BLOB_BYTES {
            return Err(damaged());
        }
        let blob: Blob = serde_json::from_slice(blob).map_err(|_| damaged())?;
        let [public, private] =
            [&blob.public, &blob.private].map(|half| from_hex(half).ok_or_else(damaged));
        let (public, private) = (public?, private?);
        let run = self.begin()?;
        run.write("public", &public)?;
        run.write("private", &private)?;
        // The TPM itself is there: the primary was made a moment ago. So this is about the blob.
        run.tool("tpm2_load")
            .args(["-Q", "-C", "primary", "-u", "public", "-r", "private", "-c", "object"])
            .run()
            .map_err(|error| {
                let why = "this machine's TPM does not open it: it was sealed by another one, or the TPM was cleared";
                let detail = error.detail().unwrap_or_default().to_owned();
                SalError::new(Code::IdentityLost, why).with_detail(detail)
            })?;
        run.flush()?;
        run.tool("tpm2_unseal").args(["-c", "object"]).run()
    }

    fn begin(&self) -> Result<Run<'_>> {
        // Nothing is left half done by whoever panicked: each run has a folder of its own.
        let turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let template = std::env::temp_dir().join("rhizome-tpm-XXXXXX");
        let folder = nix::unistd::mkdtemp(&template)
            .map_err(std::io::Error::from)
            .during(format!("make {}", template.display()))?;
        let run = Run { tcti: &self.tcti, folder, _turn: turn };
        run.flush()?;
        run.tool("tpm2_createprimary")
            .args(["-Q", "-C", "o", "-g", "sha256", "-G", "ecc", "-c", "primary"])
            .run()?;
        run.flush()?;
        Ok(run)
    }
}

/// One use of the TPM. Its folder goes with it.
struct Run<'a> {
    tcti: &'a str,
    folder: PathBuf,
    _turn: std::sync::MutexGuard<'a, ()>,
}

impl Run<'_> {
    fn tool(&self, name: &str) -> Tool {
        Tool::new(name).folder(&self.folder).args(["-T", self.tcti])
    }

    /// Without a resource manager what was loaded stays until it is told to go.
    fn flush(&self) -> Result<()> {
        if self.tcti.contains(DEVICE) {
            return Ok(());
        }
        self.tool("tpm2_flushcontext").arg("-t").run().map(|_| ())
    }

    fn read(&self, name: &str) -> Result<String> {
        let bytes = std::fs::read(self.folder.join(name)).during("read what the TPM sealed")?;
        Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        std::fs::write(self.folder.join(name), bytes).during("write what the TPM shall open")
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // What stays is public or encrypted by the TPM.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
