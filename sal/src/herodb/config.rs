//! What an engine is told: its settings, its users, and how it is started.
//!
//! ```text
//!   <run folder>/conf/redis.conf   settings
//!                     users.acl    the default user with its password (as a hash), and ours
//!                     start        runs in the container: mends what a full volume has left, then
//!                                  becomes the engine
//!   <run folder>/admin             our own password, which only root reads
//! ```

use std::fs;
use std::io::Read;
use std::net::Ipv6Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rhizome_model::kind::{Herodb, HerodbSpec};
use sha2::{Digest, Sha256};

use super::client;
use super::engine::Engine;
use crate::error::{During, Result, shown};
use crate::files;

/// Where the container has these files, and the data.
pub(super) const CONF: &str = "/etc/herodb";
pub(super) const DATA: &str = "/data";
/// The engine's user and group: nobody else of the node is this one.
pub(super) const USER: u32 = 65_533;

/// A log that is smaller is not worth to be written anew.
const REWRITE_FROM: u64 = 16;

/// What an administrator does, tenants do not; but they may look.
const TENANT: &str = "~* &* +@all -@admin +client +config|get +latency +monitor +slowlog";
/// Nothing of a tenant's data.
const OURS: &str = "resetkeys resetchannels -@all +ping +info +config|set +acl|load +client|kill";

/// A password as an engine keeps it.
pub(super) fn hash(password: &str) -> String {
    hex::encode(Sha256::digest(password.as_bytes()))
}

/// Settings that follow from the spec, and that a running engine takes over too.
pub(super) fn settings(spec: &HerodbSpec) -> [(&'static str, String); 2] {
    [
        ("maxmemory", Herodb::data_memory(spec).0.to_string()),
        ("auto-aof-rewrite-min-size", (spec.size.0 / REWRITE_FROM).to_string()),
    ]
}

fn redis_conf(spec: &HerodbSpec, address: Ipv6Addr) -> String {
    let mut text = format!(
        "bind {address} ::1\nport {port}\nprotected-mode yes\naclfile {CONF}/users.acl\n\
         enable-debug-command no\nenable-module-command no\n\
         daemonize no\nset-proc-title no\nlogfile \"\"\nalways-show-logo no\noom-score-adj yes\n\
         dir {DATA}\nsave \"\"\nappendonly yes\nappendfsync always\naof-load-truncated yes\n\
         auto-aof-rewrite-percentage 100\nmaxmemory-policy noeviction\n",
        port = Herodb::PORT,
    );
    for (name, value) in settings(spec) {
        text.push_str(&format!("{name} {value}\n"));
    }
    text
}

fn users(hash: &str, ours: &str) -> String {
    let (admin, ours) = (client::USER, self::hash(ours));
    format!("user default on #{hash} {TENANT}\nuser {admin} on #{ours} {OURS}\n")
}

/// Without room for its log an engine that promises to keep what it has acknowledged cannot but
/// end. So it is started only to be read from then; and a command that did not fit into the log,
/// which nobody was promised, is cut off.
fn start(engine: &Engine, program: &str) -> String {
    let mend = match &engine.mender {
        Some(mender) => format!("yes | {} --fix \"$manifest\"", mender.display()),
        None => "true".to_owned(),
    };
    format!(
        r#"cd {DATA} || exit 1
has_room() {{
    dd if=/dev/zero of=.probe bs=256k count=1 conv=fsync 2>/dev/null
    probed=$?
    rm -f .probe
    return $probed
}}
rm -f temp-*
closed=
if ! has_room; then
    sync -f .
    if ! has_room; then
        echo "the volume is full: nothing can be written until it grows"
        rm -f .reserve
        sync -f .
        closed="--min-replicas-to-write 1"
    fi
fi
if [ -z "$closed" ] && [ ! -s .reserve ]; then
    dd if=/dev/zero of=.reserve bs=1M count=1 conv=fsync 2>/dev/null || rm -f .reserve
fi
manifest=$(echo appendonlydir/*.manifest)
newest=$(ls -t appendonlydir/*.incr.aof 2>/dev/null | head -n 1)
if [ -s "$newest" ] && [ "$(tail -c 1 "$newest" | od -An -tx1)" != " 0a" ]; then
    echo "the log of changes does not end with a whole command: mends it"
    {mend}
fi
exec "{program}" {CONF}/redis.conf $closed
"#
    )
}

/// Writes all of it; a running engine reads users and settings on request.
pub(super) fn write(
    dir: &Path,
    spec: &HerodbSpec,
    hash: &str,
    address: Ipv6Addr,
    (engine, program): (&Engine, &str),
) -> Result<()> {
    let conf = conf(dir);
    files::make_folder(&conf)?;
    let ours = match admin(dir) {
        Some(ours) => ours,
        None => make_admin(dir)?,
    };
    for (name, text) in [
        ("redis.conf", redis_conf(spec, address)),
        ("users.acl", users(hash, &ours)),
        ("start", start(engine, program)),
    ] {
        replace(&conf.join(name), &text, 0o400, USER)?;
    }
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o500))
        .and_then(|()| chown(&conf, Some(USER), Some(USER)))
        .during(format_args!("hand over {}", shown(&conf)))
}

pub(super) fn conf(dir: &Path) -> PathBuf {
    dir.join("conf")
}

/// Our own password.
pub(super) fn admin(dir: &Path) -> Option<String> {
    fs::read_to_string(dir.join("admin")).ok().filter(|text| text.len() == 64)
}

fn make_admin(dir: &Path) -> Result<String> {
    let mut bytes = [0; 32];
    fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .during("read random numbers")?;
    let text = hex::encode(bytes);
    replace(&dir.join("admin"), &text, 0o400, 0)?;
    Ok(text)
}

/// Nobody else can read it at any time.
fn replace(path: &Path, text: &str, mode: u32, owner: u32) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let new = files::with_suffix(path, ".new");
    files::remove(&new)?;
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        chown(&new, Some(owner), Some(owner))?;
        fs::rename(&new, path)
    };
    write().during(format_args!("write {}", shown(path)))
}

#[cfg(test)]
mod tests {
    use rhizome_model::{Bytes, Cpu};

    use super::*;

    fn spec(memory: u64, size: u64) -> HerodbSpec {
        let (memory, size) = (Bytes::mib(memory), Bytes::mib(size));
        HerodbSpec { size, memory, cpu: Cpu::cores(1), password: None }
    }

    #[test]
    fn data_leaves_room_in_memory_and_on_disk() {
        assert_eq!(Herodb::data_memory(&spec(256, 1024)), Bytes::mib(192));
        assert_eq!(Herodb::data_memory(&spec(256, 64)), Bytes::mib(8));
        let conf = redis_conf(&spec(256, 64), "5d3::7".parse().unwrap());
        for line in ["bind 5d3::7 ::1", "appendfsync always", "maxmemory 8388608"] {
            assert!(conf.lines().any(|l| l == line), "{conf}");
        }
    }

    #[test]
    fn no_password_is_written() {
        let text = users(&hash("a password of theirs"), "a password of ours");
        assert!(!text.contains("a password"), "{text}");
        assert!(text.starts_with("user default on #") && text.contains("user rhizome on #"));
        assert_eq!(hash("").get(..8), Some("e3b0c442"));
    }
}
