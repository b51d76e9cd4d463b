//! rhizome.toml < RHIZOME_* < flags.
//!
//! The file is applied before clap reads anything: each of its keys becomes the RHIZOME_* variable of
//! the option with that name, unless the variable is set. So clap knows two sources only, and every
//! option that has a variable can stand in the file, also options of commands that come later.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::CommandFactory;

use crate::cli::Cli;
use crate::error::{Error, internal, misuse};

const FILE_NAME: &str = "rhizome.toml";

/// Reads ./rhizome.toml, else ~/.config/rhizome/rhizome.toml, where there is one.
pub fn apply() -> Result<(), Error> {
    let mut places = vec![PathBuf::from(FILE_NAME)];
    let home = std::env::var_os("HOME").map(PathBuf::from);
    places.extend(home.as_ref().map(|home| home.join(".config/rhizome").join(FILE_NAME)));
    for path in places {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(internal(&format!("cannot read {}", path.display()), &e).into()),
        };
        let settings = settings(&text, &known_keys(&Cli::command()))
            .map_err(|e| misuse(format!("{}: {e}", path.display())))?;
        for (variable, value) in settings {
            if std::env::var_os(&variable).is_none() {
                let value = match (value.strip_prefix("~/"), &home) {
                    (Some(rest), Some(home)) => home.join(rest).into_os_string(),
                    _ => value.into(),
                };
                // SAFETY: `main` calls this before it starts the first thread, so nobody reads the
                // environment meanwhile.
                unsafe { std::env::set_var(variable, value) };
            }
        }
        break;
    }
    Ok(())
}

/// Option name → variable, of all options that have a variable.
fn known_keys(command: &clap::Command) -> BTreeMap<String, String> {
    let options = command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_long()?.to_owned(), arg.get_env()?.to_str()?.to_owned())));
    let below = command.get_subcommands().flat_map(known_keys);
    options.chain(below).collect()
}

/// The variables that a file sets.
fn settings(text: &str, known: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, String> {
    let table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
    table
        .into_iter()
        .map(|(key, value)| {
            let variable = known.get(&key).ok_or_else(|| {
                let names: Vec<_> = known.keys().map(String::as_str).collect();
                format!("'{key}' is not a setting; known are {}", names.join(", "))
            })?;
            Ok((variable.clone(), value_text(&key, value)?))
        })
        .collect()
}

/// A value as it would stand behind the option.
fn value_text(key: &str, value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(n) => Ok(n.to_string()),
        toml::Value::Float(n) => Ok(n.to_string()),
        toml::Value::Boolean(b) => Ok(b.to_string()),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
            Err(format!("'{key}': write a text, a number, true or false"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeMap<String, String> {
        known_keys(&Cli::command())
    }

    #[test]
    fn every_global_option_can_stand_in_the_file() {
        let known = known();
        for key in ["coord", "ledger", "key", "state", "network", "log"] {
            assert_eq!(known[key], format!("RHIZOME_{}", key.to_uppercase()));
        }
    }

    #[test]
    fn keys_become_variables() {
        let set = settings("coord = \"http://h:1\"\nlog = \"info\"", &known()).unwrap();
        let expected = [("RHIZOME_COORD", "http://h:1"), ("RHIZOME_LOG", "info")];
        assert_eq!(set, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn what_is_not_a_setting_is_refused_with_those_that_are() {
        let error = settings("cord = \"x\"", &known()).unwrap_err();
        assert!(error.contains("'cord'") && error.contains("coord, "), "{error}");
        assert!(settings("coord = [1]", &known()).unwrap_err().contains("'coord'"));
        assert!(settings("coord =", &known()).unwrap_err().contains("line 1"));
    }
}
