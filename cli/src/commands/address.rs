//! `rhizome address`: where a resource will be reached, known before anything exists.

use std::net::Ipv6Addr;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_identity::mycelium_address;
use rhizome_model::{Failure, KeyId, ResourceId, gateway_address, node_prefix, resource_address};
use serde_json::json;

use crate::cli::Globals;
use crate::error::{Error, misuse};
use crate::output;

/// What stands before the key in what OpenSSH encodes: the lengths, and what kind it is.
const SSH_HEAD: &[u8] = b"\0\0\0\x0bssh-ed25519\0\0\0\x20";

/// Print the address of a resource on a node, without asking anybody.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rhizome address 565:9683:6688:38f:1e8d:8639:bd7e:f416 1/demo/web"
)]
pub struct Args {
    /// The node's Mycelium address, or its public key: 64 hexadecimal digits, or as OpenSSH writes it.
    node: String,
    /// The resource.
    #[arg(value_name = "ACCOUNT/DEPLOYMENT/NAME")]
    resource: String,
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, Error> {
    let node = node_address(&args.node)?;
    let resource: ResourceId =
        args.resource.parse().map_err(|e: rhizome_model::IdError| misuse(e.to_string()))?;
    let address = resource_address(node, &resource);
    if globals.json {
        output::json(&json!({
            "resource": resource,
            "address": address,
            "node": node,
            "prefix": format!("{}/64", node_prefix(node)),
            "gateway": gateway_address(node),
        }));
    } else {
        output::line(address);
    }
    Ok(ExitCode::SUCCESS)
}

fn node_address(text: &str) -> Result<Ipv6Addr, Failure> {
    let text = text.trim();
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return if address.octets()[0] & 0xfe == 0x04 {
            Ok(address)
        } else {
            Err(misuse(format!("{address} is no Mycelium address: those are in 400::/7")))
        };
    }
    let key = match text.strip_prefix("ssh-ed25519 ") {
        Some(rest) => ssh_key(rest),
        None => text.parse().ok(),
    };
    let key: KeyId = key.ok_or_else(|| {
        misuse(format!(
            "'{text}' is no node: write its Mycelium address, or its public key as 64 hexadecimal \
             digits or as 'ssh-ed25519 AAAA…'"
        ))
    })?;
    mycelium_address(&key).ok_or_else(|| misuse(format!("{key} is no usable Ed25519 key")))
}

/// Of `AAAA… comment`.
fn ssh_key(text: &str) -> Option<KeyId> {
    let blob = STANDARD.decode(text.split_whitespace().next()?).ok()?;
    Some(KeyId(blob.strip_prefix(SSH_HEAD)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_by_its_address_or_its_key() {
        let address = "565:9683:6688:38f:1e8d:8639:bd7e:f416".parse::<Ipv6Addr>().unwrap();
        for text in [
            "565:9683:6688:38f:1e8d:8639:bd7e:f416",
            "345071da55e5dccefaaa440339415ef9f2663338a38f7da0df21be5ab4e055ef",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDRQcdpV5dzO+qpEAzlBXvnyZjM4o499oN8hvlq04FXv me@here",
        ] {
            assert_eq!(node_address(text).unwrap(), address, "{text}");
        }
        for text in [
            "",
            "1",
            "2001:db8::1",
            "600::1",
            "345071da",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIDRQcdpV5dzO+qpEAzlBXvnyZjM4o499oN8hvlq04FXv",
            // The neutral element of the curve is nobody's key.
            "0100000000000000000000000000000000000000000000000000000000000000",
        ] {
            let failure = node_address(text).unwrap_err();
            assert_eq!(failure.code, rhizome_model::Code::BadRequest, "{text}");
        }
    }
}
