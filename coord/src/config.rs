//! What coord has to be told.

use std::path::PathBuf;

use rhizome_identity::SigningKey;
use rhizome_model::{Code, Failure, KeyId};

pub struct CoordConfig {
    /// The SQLite file; it is made when it is not there.
    pub database: PathBuf,
    /// The ledger's URL, such as `http://127.0.0.1:8080`.
    pub ledger: String,
    /// The ledger's key; without it, the one that it shows first.
    pub ledger_key: Option<KeyId>,
    /// The folder in which what the ledger signed is kept.
    pub statements: PathBuf,
    /// The network that envelopes must be signed for: `dev`, `test` or `main`.
    pub network: String,
    /// Signs our calls to the supervisors.
    pub key: SigningKey,
}

impl CoordConfig {
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let refuse = |message: String| Err(Failure::new(Code::BadRequest, message));
        if !self.ledger.starts_with("http://") && !self.ledger.starts_with("https://") {
            return refuse(format!(
                "the ledger's URL {:?} must begin with http:// or https://",
                self.ledger
            ));
        }
        if self.network.is_empty() {
            return refuse("name the network: dev, test or main".into());
        }
        Ok(())
    }
}
