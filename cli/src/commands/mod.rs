//! One file per command: its arguments, and what it does.

pub mod account;
pub mod account_keys;
pub mod address;
pub mod check;
pub mod coordinators;
pub mod definitions;
pub mod delete;
pub mod deploy;
pub mod document;
pub mod events;
pub mod exec;
pub mod farm;
pub mod grant;
pub mod identity;
pub mod image;
pub mod job;
pub mod key;
pub mod limits;
pub mod list;
pub mod logs;
pub mod node;
pub mod nodes;
pub mod plan;
pub mod power;
pub mod queues;
pub mod reference;
pub mod resize;
pub mod restore;
pub mod runners;
pub mod show;
pub mod sign;
pub mod snapshot;
pub mod submit;
pub mod verify;

use std::io::Read;
use std::path::Path;

use rhizome_model::{Code, Failure};

use crate::error::misuse;

/// Reads a file, or standard input for `-`.
fn read_input(path: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    let open = || -> std::io::Result<Box<dyn Read>> {
        if path.as_os_str() == "-" {
            Ok(Box::new(std::io::stdin()))
        } else {
            Ok(Box::new(std::fs::File::open(path)?))
        }
    };
    let mut bytes = Vec::new();
    open()
        .and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes))
        .map_err(|e| misuse(format!("cannot read {}: {e}", path.display())))?;
    if bytes.len() > limit {
        return Err(Failure::new(
            Code::TooLarge,
            format!("{} has more than {limit} bytes", path.display()),
        ));
    }
    Ok(bytes)
}
