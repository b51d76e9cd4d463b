//! The engine of databases: the first of those that are installed here and fit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rhizome_model::Code;

use crate::error::{Result, SalError};
use crate::tool::{self, Tool};

/// By preference, each with the program that mends its log of changes.
const KNOWN: [(&str, Option<&str>); 3] = [
    ("herodb", None),
    ("valkey-server", Some("valkey-check-aof")),
    ("redis-server", Some("redis-check-aof")),
];
/// Says which one is wanted, by name or path.
const WISH: &str = "RHIZOME_HERODB";
/// Saying its version takes no engine longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before that an engine has no log of several files, nor all the settings that we give.
const OLDEST: u32 = 7;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Engine {
    pub name: String,
    pub version: String,
    pub program: PathBuf,
    pub mender: Option<PathBuf>,
}

impl Engine {
    pub fn find() -> Result<Self> {
        if let Some(wish) = std::env::var_os(WISH).filter(|wish| !wish.is_empty()) {
            return Self::wished(Path::new(&wish));
        }
        let mut passed_over = Vec::new();
        for (name, _) in KNOWN {
            let Ok(program) = tool::find(name.as_ref()) else { continue };
            match Self::of(&program) {
                Ok(engine) => return Ok(engine),
                Err(why) => passed_over.push(format!("{}: {why}", program.display())),
            }
        }
        let message = "no engine for databases is installed: install one with 'apt-get install \
                       redis-server' or 'apt-get install valkey-server'";
        let error = SalError::new(Code::MissingTool, message);
        Err(error.with_detail(passed_over.join("\n")))
    }

    fn wished(wish: &Path) -> Result<Self> {
        let program = tool::find(wish.as_os_str())?;
        Self::of(&program).map_err(|why| {
            let message = format!("{WISH} asks for {}, which does not fit: {why}", wish.display());
            SalError::new(Code::MissingTool, message)
        })
    }

    fn of(program: &Path) -> std::result::Result<Self, String> {
        let version = version(program)?;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mender = KNOWN.iter().find(|(known, _)| *known == name).and_then(|(_, mender)| *mender);
        let mender = mender.and_then(|m| tool::find(m.as_ref()).ok());
        Ok(Self { name, version, program: program.to_owned(), mender })
    }

    /// As a status names it.
    pub fn words(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

/// The version of a program that is started as Redis is: with a file of settings, in which there are
/// users and their passwords. One that is not would serve everybody.
fn version(program: &Path) -> std::result::Result<String, String> {
    let said = Tool::new(program).arg("--version").timeout(Some(PATIENCE)).run();
    let said = said.map_err(|e| e.to_string())?;
    let version = parse_version(&said)
        .ok_or("it does not say its version as Redis does, so it cannot be given a password")?;
    let major = version.split('.').next().and_then(|n| n.parse::<u32>().ok());
    match major {
        Some(major) if major >= OLDEST => Ok(version.to_owned()),
        _ => Err(format!("version {version} is too old: {OLDEST} is needed")),
    }
}

/// Of `Redis server v=7.0.15 sha=…`.
fn parse_version(said: &str) -> Option<&str> {
    let version = said.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
    (!version.is_empty() && version.len() < 40 && version.bytes().all(plain)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let redis = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64\n";
        assert_eq!(parse_version(redis), Some("7.0.15"));
        assert_eq!(parse_version("Valkey server v=8.0.1 sha=0"), Some("8.0.1"));
        for other in ["herodb 0.1.0", "", "v=", "v=$(x)"] {
            assert_eq!(parse_version(other), None, "{other}");
        }
    }
}
