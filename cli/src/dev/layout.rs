//! The state folder of `rhizome dev`.
//!
//! ```text
//!   <state>/client.json    where the command line finds coord, ledger and key, while we run
//!   <state>/deployer.key   an account to deploy with
//!   <state>/ledger, coord  their databases
//!   <state>/node-1 …       pool, Redis, identity of each node
//!   <state>/logs           one file per process
//! ```

use std::fs::File;
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use rhizome_model::{Code, Failure};

use crate::profile::ClientFile;
use crate::services::state_folder;

pub struct Layout {
    pub state: PathBuf,
}

impl Layout {
    /// Makes every folder that a run needs.
    pub fn prepare(state: PathBuf, nodes: u16) -> Result<Self, Failure> {
        let this = Self { state };
        let mut folders = vec![this.ledger(), this.coord(), this.logs()];
        folders.extend((1..=nodes).map(|n| this.node(n)));
        for folder in folders {
            state_folder(&folder)?;
        }
        Ok(this)
    }

    /// Two at once on one folder would share every file in it.
    pub fn lock(&self) -> Result<Flock<File>, Failure> {
        let path = self.state.join("lock");
        let file = File::create(&path).map_err(|e| {
            Failure::new(Code::StateNotWritable, format!("cannot write {}: {e}", path.display()))
        })?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            let message = format!(
                "another `rhizome dev` runs on {}: stop it, or choose another folder with --state",
                self.state.display()
            );
            Failure::new(Code::Conflict, message)
        })
    }

    pub fn ledger(&self) -> PathBuf {
        self.state.join("ledger")
    }

    pub fn coord(&self) -> PathBuf {
        self.state.join("coord")
    }

    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    pub fn node(&self, n: u16) -> PathBuf {
        self.state.join(format!("node-{n}"))
    }

    /// The folders of all nodes that ever ran here, also those of a larger run before.
    pub fn nodes(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.state).into_iter().flatten().flatten();
        let nodes = entries.filter(|e| e.file_name().to_string_lossy().starts_with("node-"));
        nodes.map(|e| e.path()).collect()
    }

    /// Tells the command line where we are.
    pub fn publish(&self, client: &ClientFile) -> Result<(), Failure> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.state.join(ClientFile::NAME);
        let new = path.with_extension("new");
        let text = serde_json::to_vec_pretty(client)
            .map_err(|e| Failure::new(Code::Internal, format!("{}: {e}", path.display())))?;
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let write = options.open(&new).and_then(|mut f| f.write_all(&text));
        write.and_then(|()| std::fs::rename(&new, &path)).map_err(|e| {
            Failure::new(Code::StateNotWritable, format!("cannot write {}: {e}", path.display()))
        })
    }

    pub fn unpublish(&self) {
        // Gone already when we never became ready.
        let _ = std::fs::remove_file(self.state.join(ClientFile::NAME));
    }
}
