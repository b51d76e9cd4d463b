//! A user with an empty home, and the binary.

use std::path::PathBuf;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// The words of the registrar's own test client, and the key that they are.
pub const WORDS: &str = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
pub const WORDS_KEY: &str = "345071da55e5dccefaaa440339415ef9f2663338a38f7da0df21be5ab4e055ef";

pub struct User {
    pub home: TempDir,
}

impl User {
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    /// One whose key is made of [`WORDS`].
    pub fn with_key() -> Self {
        let user = Self::new();
        user.rhizome(&["key", "import", "--words"]).write_stdin(WORDS).assert().success();
        user
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The binary with nothing of ours in its environment.
    pub fn rhizome(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome"));
        command
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .current_dir(self.home.path())
            .timeout(std::time::Duration::from_secs(60))
            .args(args);
        command
    }

    /// Runs it and gives exit code, standard output, standard error.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        outcome(&mut self.rhizome(args))
    }

    /// Runs it with `--json`: exactly one JSON value, and nothing else, is on standard output.
    pub fn json(&self, args: &[&str]) -> (i32, Value) {
        let (code, stdout, _) = outcome(&mut self.rhizome(&[&["--json"], args].concat()));
        let value = serde_json::from_str(&stdout)
            .unwrap_or_else(|e| panic!("not one JSON value ({e}): {stdout}"));
        (code, value)
    }
}

pub fn outcome(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
