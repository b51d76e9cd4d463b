//! Where coord and the ledger are, with which key, on which network: from the options, else from the
//! `rhizome dev` that runs on the state folder.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use rhizome_model::{Code, Failure};
use serde::{Deserialize, Serialize};

use crate::cli::Globals;
use crate::error::{internal, misuse};

/// Without `rhizome dev` and without `--network`, signatures count on the real thing.
const DEFAULT_NETWORK: &str = "main";

/// What `rhizome dev` leaves in its state folder while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFile {
    pub coord: String,
    pub ledger: String,
    pub key: PathBuf,
    pub network: String,
}

impl ClientFile {
    pub const NAME: &str = "client.json";
}

/// Which key signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyChoice {
    /// A key file.
    File(PathBuf),
    /// One that the ssh-agent keeps: its comment or its fingerprint, or nothing where there is one.
    Agent(String),
    /// The identity of the node with this state folder.
    Node(PathBuf),
}

impl FromStr for KeyChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once(':') {
            Some(("agent", wanted)) => Self::Agent(wanted.to_owned()),
            Some(("node", state)) => Self::Node(state.into()),
            _ => Self::File(text.into()),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    coord: Option<String>,
    ledger: Option<String>,
    pub key: KeyChoice,
    pub network: String,
}

impl Profile {
    pub fn load(globals: &Globals) -> Result<Self, Failure> {
        let dev = read_client_file(&state_folder(globals)?.join(ClientFile::NAME))?;
        Self::resolve(globals, dev, default_key)
    }

    fn resolve(
        globals: &Globals,
        dev: Option<ClientFile>,
        default_key: impl FnOnce() -> Result<PathBuf, Failure>,
    ) -> Result<Self, Failure> {
        // The key of a `dev` means nothing to another coord.
        let same = |dev: &ClientFile| globals.coord.as_ref().is_none_or(|c| c == &dev.coord);
        let dev = dev.filter(same);
        let of_dev = |field: fn(&ClientFile) -> String| dev.as_ref().map(field);
        let of_key = |dev: &ClientFile| KeyChoice::File(dev.key.clone());
        let key = match globals.key.clone().or_else(|| dev.as_ref().map(of_key)) {
            Some(key) => key,
            None => KeyChoice::File(default_key()?),
        };
        Ok(Self {
            coord: globals.coord.clone().or_else(|| of_dev(|d| d.coord.clone())),
            ledger: globals.ledger.clone().or_else(|| of_dev(|d| d.ledger.clone())),
            key,
            network: globals
                .network
                .clone()
                .or_else(|| of_dev(|d| d.network.clone()))
                .unwrap_or_else(|| DEFAULT_NETWORK.to_owned()),
        })
    }

    pub fn coord(&self) -> Result<&str, Failure> {
        required(self.coord.as_deref(), "coordinator", "--coord")
    }

    pub fn ledger(&self) -> Result<&str, Failure> {
        required(self.ledger.as_deref(), "ledger", "--ledger")
    }
}

fn required<'a>(url: Option<&'a str>, what: &str, option: &str) -> Result<&'a str, Failure> {
    let url = url.ok_or_else(|| {
        Failure::new(
            Code::Unavailable,
            format!("no {what}: start `rhizome dev`, or give {option} URL"),
        )
    })?;
    if url.starts_with("http://") || url.starts_with("https://") {
        Ok(url)
    } else {
        Err(misuse(format!("{option} {url}: write a URL such as http://127.0.0.1:8080")))
    }
}

/// Where a key is written to and read from when nobody says otherwise.
pub fn default_key() -> Result<PathBuf, Failure> {
    Ok(home("--key")?.join(".config/rhizome/key"))
}

/// The state folder of the `rhizome dev` that is meant.
pub fn state_folder(globals: &Globals) -> Result<PathBuf, Failure> {
    match &globals.state {
        Some(state) => Ok(state.clone()),
        None => Ok(home("--state")?.join(".local/share/rhizome/dev")),
    }
}

fn home(option: &str) -> Result<PathBuf, Failure> {
    std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
        .ok_or_else(|| misuse(format!("HOME is not set: set it, or give {option}")))
}

fn read_client_file(path: &Path) -> Result<Option<ClientFile>, Failure> {
    let say = |e: &dyn std::error::Error| internal(&format!("cannot read {}", path.display()), e);
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| say(&e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(say(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev() -> ClientFile {
        ClientFile {
            coord: "http://127.0.0.1:7001".into(),
            ledger: "http://127.0.0.1:7002".into(),
            key: "/dev/key".into(),
            network: "dev".into(),
        }
    }

    fn file(path: &str) -> KeyChoice {
        KeyChoice::File(path.into())
    }

    #[test]
    fn keys_are_files_or_an_agents_or_a_nodes() {
        for (text, choice) in [
            ("/home/key", file("/home/key")),
            ("agent:me@home", KeyChoice::Agent("me@home".into())),
            ("agent:SHA256:abc", KeyChoice::Agent("SHA256:abc".into())),
            ("agent:", KeyChoice::Agent(String::new())),
            ("node:/var/lib/rhizome/node", KeyChoice::Node("/var/lib/rhizome/node".into())),
        ] {
            assert_eq!(text.parse(), Ok(choice), "{text}");
        }
    }

    fn resolve(globals: &Globals, dev: Option<ClientFile>) -> Profile {
        Profile::resolve(globals, dev, || Ok("/home/key".into())).unwrap()
    }

    #[test]
    fn a_running_dev_answers_what_was_not_said() {
        let profile = resolve(&Globals::default(), Some(dev()));
        assert_eq!(profile.coord(), Ok("http://127.0.0.1:7001"));
        assert_eq!((profile.key, profile.network.as_str()), (file("/dev/key"), "dev"));
    }

    #[test]
    fn options_win() {
        let globals = Globals {
            key: Some(file("/mine")),
            network: Some("test".into()),
            ..Globals::default()
        };
        let profile = resolve(&globals, Some(dev()));
        assert_eq!(profile.coord(), Ok("http://127.0.0.1:7001"));
        assert_eq!((profile.key, profile.network.as_str()), (file("/mine"), "test"));
    }

    #[test]
    fn the_key_of_a_dev_is_not_shown_to_another_coord() {
        let globals = Globals { coord: Some("http://far:1".into()), ..Globals::default() };
        let profile = resolve(&globals, Some(dev()));
        assert_eq!((profile.key.clone(), profile.network.as_str()), (file("/home/key"), "main"));
        assert!(profile.ledger().is_err());
    }

    #[test]
    fn nobody_to_talk_to() {
        let failure = resolve(&Globals::default(), None).coord().unwrap_err();
        assert_eq!(failure.message, "no coordinator: start `rhizome dev`, or give --coord URL");
        assert_eq!(failure.code, Code::Unavailable);
        let globals = Globals { coord: Some("127.0.0.1:1".into()), ..Globals::default() };
        assert_eq!(resolve(&globals, None).coord().unwrap_err().code, Code::BadRequest);
    }
}
