//! Where a node's identity is kept, and what the farmer knows better than the machine: what `node` and
//! `node identity` are told alike.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rhizome_identity::manager::{DiskKind, Facts, FactsSource, Overrides, Sealer, Store};
use rhizome_sal::Tpm;
use zeroize::Zeroizing;

/// Where the identity is kept.
#[derive(Debug, Clone, clap::Args)]
pub struct IdentityPlaces {
    /// A mounted file system that holds a copy of the node's identity; can be repeated. The state
    /// folder holds one in any case.
    #[arg(
        long = "state-pool",
        env = "RHIZOME_STATE_POOLS",
        value_delimiter = ',',
        value_name = "DIR"
    )]
    pub state_pools: Vec<PathBuf>,
    /// The TPM 2.0 that the node's key is sealed to: auto takes the machine's where it has one
    /// that works, off takes none; else one that must work, as tpm2-tools call it, such as
    /// `device:/dev/tpmrm0`.
    #[arg(long, env = "RHIZOME_TPM", value_name = "TPM", default_value = "auto")]
    pub tpm: TpmChoice,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TpmChoice {
    Auto,
    Off,
    At(String),
}

impl FromStr for TpmChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            other if other.contains(':') => Ok(Self::At(other.to_owned())),
            _ => Err("write auto, off, or a TPM as tpm2-tools call it, such as device:/dev/tpmrm0"),
        }
    }
}

impl IdentityPlaces {
    pub fn store(&self, state: &Path) -> Store {
        Store::new(state, &self.state_pools, self.sealer())
    }

    pub fn sealer(&self) -> Option<Arc<dyn Sealer>> {
        let (tpm, required) = match &self.tpm {
            TpmChoice::Auto => (Tpm::find()?, false),
            TpmChoice::Off => return None,
            TpmChoice::At(tcti) => (Tpm::at(tcti), true),
        };
        Some(Arc::new(Sealing { tpm, required }))
    }
}

/// The SAL's TPM as the identity manager wants it.
struct Sealing {
    tpm: Tpm,
    required: bool,
}

impl Sealer for Sealing {
    fn seal(&self, secret: &[u8]) -> Result<Vec<u8>, String> {
        let text = std::str::from_utf8(secret).map_err(|e| e.to_string())?;
        self.tpm.seal(text).map_err(|e| e.to_string())
    }

    fn open(&self, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
        let text = self.tpm.open(blob).map_err(|e| e.to_string())?;
        Ok(Zeroizing::new(text.into_bytes()))
    }

    fn is_required(&self) -> bool {
        self.required
    }
}

/// What the farmer knows better.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct MachineFacts {
    /// The machine's serial number, where its firmware has none or several nodes share a machine.
    #[arg(long, env = "RHIZOME_SERIAL_NUMBER", value_name = "TEXT")]
    pub serial_number: Option<String>,
    /// Whether a disk is an ssd or an hdd, where the kernel is wrong about it: by the disk's serial
    /// number, or its name where it has none. Can be repeated.
    #[arg(long = "disk", env = "RHIZOME_DISKS", value_delimiter = ',', value_name = "SERIAL=KIND")]
    pub disks: Vec<KnownDisk>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDisk(String, DiskKind);

impl FromStr for KnownDisk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (serial, kind) = text.rsplit_once('=').ok_or("write SERIAL=ssd or SERIAL=hdd")?;
        Ok(Self(serial.to_owned(), kind.parse()?))
    }
}

impl MachineFacts {
    pub fn source(self) -> FactsSource {
        let disks = self.disks.into_iter().map(|KnownDisk(serial, kind)| (serial, kind)).collect();
        let overrides = Overrides { serial_number: self.serial_number, disks };
        Arc::new(move || Facts::gather(&overrides))
    }
}
