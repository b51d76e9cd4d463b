//! What a guest is told at its first start: cloud-init's NoCloud documents.
//!
//! They are JSON, which is YAML, so nothing has to be quoted twice. What people wrote (env) goes in
//! base64: no reader of whatever YAML stumbles over it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::Code;
use serde_json::{Value, json};

use crate::error::{Result, SalError};

/// Where a guest without cloud-init finds the environment: lines that a shell can read.
const ENV_FILE: &str = "/etc/rhizome/env";
/// What every program gets that logs in.
const ENVIRONMENT: &str = "/etc/environment";

const EVERYWHERE: &str = "::/0";
/// cloud-init 22.4, which is Debian 12's, takes a prefix of 0 for 64: it is told of two halves.
const HALVES: [&str; 2] = ["::/1", "8000::/1"];

/// What a guest is told.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed {
    /// A guest that knows this name already does not set itself up again.
    pub instance_id: String,
    pub hostname: String,
    pub ssh_keys: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub network: Option<SeedNet>,
    pub mounts: Vec<SeedMount>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedNet {
    /// The card is known by it.
    pub mac: String,
    pub address: Ipv6Addr,
    pub prefix: u8,
    pub gateway: Ipv6Addr,
    /// What goes through the gateway, such as "::/0".
    pub routes: Vec<String>,
    pub nameservers: Vec<IpAddr>,
    pub mtu: u16,
}

/// A disk that is mounted; an empty one gets its file system first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedMount {
    pub serial: String,
    pub path: String,
    pub readonly: bool,
    pub filesystem: String,
}

impl Seed {
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(SalError::new(Code::InvalidSpec, message));
        if let Some(name) = self.env.keys().find(|name| !is_variable(name)) {
            return refuse(format!(
                "env: '{name}' is no variable of a virtual machine: letters, digits and '_', no digit first"
            ));
        }
        let is_path = |path: &str| {
            path.starts_with('/') && !path.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        match self.mounts.iter().find(|mount| !is_path(&mount.path)) {
            Some(mount) => refuse(format!(
                "a virtual machine cannot mount on '{}': an absolute path without blanks",
                mount.path
            )),
            None => Ok(()),
        }
    }

    /// The files of the disk.
    pub(super) fn files(&self) -> [(&'static str, String); 3] {
        let pretty = |value: &Value| format!("{value:#}\n");
        let user = format!("#cloud-config\n{}", pretty(&self.user_data()));
        let network = self.network.as_ref().map_or_else(no_network, SeedNet::config);
        [
            ("meta-data", pretty(&self.meta_data())),
            ("user-data", user),
            ("network-config", pretty(&network)),
        ]
    }

    fn meta_data(&self) -> Value {
        json!({ "instance-id": self.instance_id, "local-hostname": self.hostname })
    }

    fn user_data(&self) -> Value {
        json!({
            "hostname": self.hostname,
            "preserve_hostname": false,
            "ssh_authorized_keys": self.ssh_keys,
            "write_files": [
                {
                    "path": ENVIRONMENT, "append": true, "encoding": "b64",
                    "content": STANDARD.encode(self.environment()),
                },
                {
                    "path": ENV_FILE, "permissions": "0600", "encoding": "b64",
                    "content": STANDARD.encode(self.shell_env()),
                },
            ],
            "fs_setup": self.mounts.iter().filter(|m| !m.readonly).map(SeedMount::file_system).collect::<Vec<_>>(),
            "mounts": self.mounts.iter().map(SeedMount::line).collect::<Vec<_>>(),
        })
    }

    /// One line per variable; a value of several lines cannot be told there.
    fn environment(&self) -> String {
        let lines = self.env.iter().filter(|(_, value)| !value.contains('\n'));
        lines.map(|(name, value)| format!("{name}=\"{value}\"\n")).collect()
    }

    fn shell_env(&self) -> String {
        let quoted = |value: &str| value.replace('\'', r"'\''");
        self.env.iter().map(|(name, value)| format!("{name}='{}'\n", quoted(value))).collect()
    }
}

impl SeedNet {
    fn config(&self) -> Value {
        let to = self.routes.iter().flat_map(|to| match to.as_str() {
            EVERYWHERE => HALVES.to_vec(),
            to => vec![to],
        });
        let routes: Vec<Value> = to.map(|to| json!({ "to": to, "via": self.gateway })).collect();
        json!({
            "version": 2,
            "ethernets": {
                "net0": {
                    "match": { "macaddress": self.mac },
                    "dhcp4": false,
                    "dhcp6": false,
                    "accept-ra": false,
                    "addresses": [format!("{}/{}", self.address, self.prefix)],
                    "routes": routes,
                    "nameservers": { "addresses": self.nameservers },
                    "mtu": self.mtu,
                },
            },
        })
    }
}

fn no_network() -> Value {
    json!({ "version": 2, "ethernets": {} })
}

impl SeedMount {
    fn device(&self) -> String {
        format!("/dev/disk/by-id/virtio-{}", self.serial)
    }

    fn file_system(&self) -> Value {
        json!({
            "device": self.device(), "partition": "none", "filesystem": self.filesystem,
            "label": "data", "overwrite": false,
        })
    }

    fn line(&self) -> Value {
        let options = if self.readonly { "ro,nofail" } else { "rw,nofail" };
        json!([self.device(), self.path, self.filesystem, options, "0", "2"])
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn seed() -> Seed {
        Seed {
            instance_id: "i-1".into(),
            hostname: "web".into(),
            ssh_keys: vec!["ssh-ed25519 AAAA me@there".into()],
            env: [("PLAIN", "a b"), ("QUOTED", "it's \"so\""), ("LINES", "a\nb")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            network: Some(SeedNet {
                mac: "02:00:00:00:00:01".into(),
                address: "400::5".parse().unwrap(),
                prefix: 64,
                gateway: "400::1".parse().unwrap(),
                routes: vec!["400::/7".into()],
                nameservers: vec!["400::53".parse().unwrap()],
                mtu: 1400,
            }),
            mounts: vec![SeedMount {
                serial: "vol-1".into(),
                path: "/data".into(),
                readonly: false,
                filesystem: "ext4".into(),
            }],
        }
    }

    #[test]
    fn the_environment_is_told_to_programs_and_to_shells() {
        let seed = seed();
        assert_eq!(seed.environment(), "PLAIN=\"a b\"\nQUOTED=\"it's \"so\"\"\n");
        assert_eq!(seed.shell_env(), "LINES='a\nb'\nPLAIN='a b'\nQUOTED='it'\\''s \"so\"'\n");
    }

    #[test]
    fn the_documents_say_what_cloud_init_reads() {
        let [(_, meta), (_, user), (_, network)] = seed().files();
        let meta: Value = serde_json::from_str(&meta).unwrap();
        assert_eq!(meta, json!({ "instance-id": "i-1", "local-hostname": "web" }));
        let user: Value =
            serde_json::from_str(user.strip_prefix("#cloud-config\n").unwrap()).unwrap();
        assert_eq!(user["mounts"][0][0], "/dev/disk/by-id/virtio-vol-1");
        assert_eq!(user["fs_setup"][0]["overwrite"], false);
        assert_eq!(user["write_files"][1]["permissions"], "0600");
        let network: Value = serde_json::from_str(&network).unwrap();
        let card = &network["ethernets"]["net0"];
        assert_eq!(card["addresses"], json!(["400::5/64"]));
        assert_eq!(card["routes"], json!([{ "to": "400::/7", "via": "400::1" }]));
        assert_eq!(card["mtu"], 1400);

        let mut everywhere = seed().network.unwrap();
        everywhere.routes = vec!["::/0".into()];
        let told = everywhere.config()["ethernets"]["net0"]["routes"].clone();
        let half = |to: &str| json!({ "to": to, "via": "400::1" });
        assert_eq!(told, json!([half("::/1"), half("8000::/1")]));
    }

    #[test]
    fn what_a_guest_could_misread_is_refused() {
        seed().check().unwrap();
        for name in ["", "1A", "A-B", "A B", "A;reboot"] {
            let mut seed = seed();
            seed.env.insert(name.into(), "x".into());
            assert_eq!(seed.check().unwrap_err().code(), Code::InvalidSpec, "{name}");
        }
        for path in ["data", "/a b", "/a\nb", ""] {
            let mut seed = seed();
            seed.mounts[0].path = path.into();
            assert_eq!(seed.check().unwrap_err().code(), Code::InvalidSpec, "{path}");
        }
    }
}
