//! From the options of `deploy` to the document that is signed.
//!
//! ```text
//!   script ─▶ check in the sandbox ─┐
//!   account ─▶ newest version       ├─▶ document ─▶ sign ─▶ submit
//!   named nodes, or a placement ────┘      (secrets sealed to each node's key)
//! ```
//! What does not depend on each other is asked at the same time.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use rhizome_identity::UserKey;
use rhizome_model::{
    Code, DeploymentDocument, DeploymentId, Failure, KeyId, MAX_LIFETIME_SECS, Name, NodeId,
    OnFailure, Placement, Policy, Version,
};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::commands::{check, key};
use crate::coord::{Coord, Session};
use crate::error::{Error, internal, misuse};
use crate::refs::DeploymentRef;

const MAX_SECRET_NAME: usize = 64;

/// What shall be deployed, where, and by which rules.
#[derive(Debug, clap::Args)]
pub struct DocumentArgs {
    /// The script; - reads standard input.
    pub file: PathBuf,
    /// What the deployment is called: NAME, or ACCOUNT/NAME for another account's.
    #[arg(long, required = true)]
    pub name: Option<DeploymentRef>,
    /// A node that gets the deployment; can be repeated. Without it coord chooses.
    #[arg(long, value_name = "ID")]
    pub node: Vec<NodeId>,
    /// How many nodes coord shall choose.
    #[arg(long, value_name = "N", conflicts_with = "node", default_value_t = 1)]
    pub count: usize,
    /// A value that the script sees as params.K: JSON where it is JSON, else text.
    #[arg(long, value_name = "K=V")]
    pub param: Vec<Param>,
    /// A secret for the script's secret(K), sealed to the nodes: K=V, K=@file, or K=- for standard
    /// input. V on the command line can be seen by other users of this machine.
    #[arg(long, value_name = "K=V")]
    pub secret: Vec<SecretSource>,
    /// How long the signature can be used, such as 10m, 24h or 7d; at most 30d.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub expires: Lifetime,
    /// The version; without it the one after the newest.
    #[arg(long, value_name = "N")]
    pub version: Option<Version>,
    /// What becomes of a version that fails.
    #[arg(long, value_enum, default_value_t = OnFailureArg::Rollback)]
    pub on_failure: OnFailureArg,
    /// A volume whose data may go with it: without this, a version that deletes or replaces a volume
    /// with something in it is refused. Can be repeated.
    #[arg(long, value_name = "NAME")]
    pub allow_data_loss: Vec<Name>,
}

impl DocumentArgs {
    /// What it is called; where nobody has to say, as the file.
    pub fn reference(&self) -> Result<DeploymentRef, Failure> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let stem = self.file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        stem.parse().map_err(|_| misuse(format!("'{stem}' is no name: give one with --name")))
    }

    pub fn params(&self) -> BTreeMap<String, Value> {
        self.param.iter().map(|p| (p.key.clone(), p.value.clone())).collect()
    }

    pub fn policy(&self) -> Policy {
        Policy {
            on_failure: self.on_failure.into(),
            allow_data_loss: self.allow_data_loss.iter().cloned().collect(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailureArg {
    /// The node goes back to the version before; without one, nothing is left.
    Rollback,
    /// What works is kept.
    Keep,
}

impl From<OnFailureArg> for OnFailure {
    fn from(arg: OnFailureArg) -> Self {
        match arg {
            OnFailureArg::Rollback => Self::Rollback,
            OnFailureArg::Keep => Self::Keep,
        }
    }
}

/// `K=V`.
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    pub key: String,
    pub value: Value,
}

impl FromStr for Param {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (key, text) = s.split_once('=').ok_or("write K=V, for example replicas=2")?;
        if key.is_empty() {
            return Err("the name before '=' is missing".into());
        }
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        Ok(Self { key: key.to_owned(), value })
    }
}

/// Where a secret is read from.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretSource {
    pub name: String,
    from: Origin,
}

#[derive(Clone, PartialEq, Eq)]
enum Origin {
    Text(Zeroizing<String>),
    File(PathBuf),
    Stdin,
}

impl std::fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretSource").field("name", &self.name).finish_non_exhaustive()
    }
}

impl FromStr for SecretSource {
    type Err = &'static str;
    // The messages do not repeat the text: it may be the secret.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (name, source) = s.split_once('=').ok_or("write K=V, K=@file or K=-")?;
        let letters =
            name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if name.is_empty() || name.len() > MAX_SECRET_NAME || !letters {
            return Err("a secret's name has 1 to 64 letters, digits, '_', '-' and '.'");
        }
        let from = match (source, source.strip_prefix('@')) {
            ("-", _) => Origin::Stdin,
            (_, Some("")) => return Err("the file's name behind '@' is missing"),
            (_, Some(file)) => Origin::File(file.into()),
            (text, None) => Origin::Text(Zeroizing::new(text.to_owned())),
        };
        Ok(Self { name: name.to_owned(), from })
    }
}

impl SecretSource {
    fn read(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let fail =
            |e: std::io::Error| internal(&format!("cannot read the secret {}", self.name), &e);
        match &self.from {
            Origin::Text(text) => Ok(Zeroizing::new(text.as_bytes().to_vec())),
            Origin::File(path) => std::fs::read(path).map(Zeroizing::new).map_err(fail),
            Origin::Stdin => {
                let mut bytes = Zeroizing::new(Vec::new());
                std::io::stdin().read_to_end(&mut bytes).map_err(fail)?;
                Ok(bytes)
            }
        }
    }
}

/// How long a signature can be used, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime(pub i64);

impl FromStr for Lifetime {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let days = jiff::SpanRelativeTo::days_are_24_hours();
        let span: jiff::Span = s.parse().map_err(|_| "write a time such as 10m, 24h or 7d")?;
        let secs = span.to_duration(days).map_err(|e| e.to_string())?.as_secs();
        if (1..=MAX_LIFETIME_SECS).contains(&secs) {
            Ok(Self(secs))
        } else {
            Err(format!("from 1s to {}d", MAX_LIFETIME_SECS / (24 * 3600)))
        }
    }
}

/// A node, and the key that secrets for it are sealed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    id: NodeId,
    /// None where nothing is sealed.
    key: Option<KeyId>,
}

/// Checks the script and asks coord what the document must say.
pub async fn prepare(args: &DocumentArgs, session: &Session) -> Result<DeploymentDocument, Error> {
    let script = read_script(&args.file)?;
    let secrets = read_secrets(args)?;
    let params = args.params();
    let file = args.file.display().to_string();
    let coord = &session.coord;
    let (checked, asked, targets) = tokio::join!(
        check::refuse_findings(&file, &script, &params),
        identity(args, coord),
        targets(args, coord),
    );
    // The script's own mistakes first: they stay, whoever can be reached.
    checked?;
    let ((id, version), targets) = (asked?, targets?);
    let now = rhizome_service::clock::now_secs();
    Ok(DeploymentDocument {
        secrets: seal_all(&id, &session.key, &secrets, &targets)?,
        account: id.account,
        name: id.name,
        version,
        network: session.profile.network.clone(),
        script,
        params,
        placement: Placement { nodes: targets.iter().map(|t| t.id).collect() },
        policy: args.policy(),
        not_before: None,
        expires: now + args.expires.0,
        nonce: nonce(),
        cosigners: Vec::new(),
        required_weight: 1,
    })
}

pub fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

pub fn read_script(path: &std::path::Path) -> Result<String, Failure> {
    let result = if path.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    result.map_err(|e| misuse(format!("cannot read the script {}: {e}", path.display())))
}

fn read_secrets(args: &DocumentArgs) -> Result<BTreeMap<String, Zeroizing<Vec<u8>>>, Failure> {
    let from_stdin = args.secret.iter().filter(|s| s.from == Origin::Stdin).count();
    if from_stdin + usize::from(args.file.as_os_str() == "-") > 1 {
        return Err(misuse("standard input can be read for one thing only"));
    }
    let mut read = BTreeMap::new();
    for secret in &args.secret {
        if read.insert(secret.name.clone(), secret.read()?).is_some() {
            return Err(misuse(format!("the secret {} is given twice", secret.name)));
        }
    }
    Ok(read)
}

/// Whose it is, and which version it becomes.
async fn identity(args: &DocumentArgs, coord: &Coord) -> Result<(DeploymentId, Version), Error> {
    let id = coord.resolve(&args.reference()?).await?;
    if let Some(version) = args.version {
        return Ok((id, version));
    }
    let version = match coord.deployment(&id).await {
        // Also after a deleted one: versions of a name never come again.
        Ok(newest) => Version(newest.version.0 + 1),
        Err(failure) if failure.code == Code::NotFound => Version(1),
        Err(failure) => return Err(failure.into()),
    };
    Ok((id, version))
}

async fn targets(args: &DocumentArgs, coord: &Coord) -> Result<Vec<Target>, Error> {
    if args.node.is_empty() {
        let reply = coord.place(args.count).await?;
        return Ok(reply.nodes.iter().map(|n| Target { id: n.id, key: Some(n.key) }).collect());
    }
    if args.secret.is_empty() {
        return Ok(args.node.iter().map(|id| Target { id: *id, key: None }).collect());
    }
    let nodes = futures_util::future::try_join_all(args.node.iter().map(|id| coord.node(*id)));
    Ok(nodes.await?.iter().map(|n| Target { id: n.id, key: Some(n.key) }).collect())
}

fn seal_all(
    id: &DeploymentId,
    by: &UserKey,
    secrets: &BTreeMap<String, Zeroizing<Vec<u8>>>,
    targets: &[Target],
) -> Result<BTreeMap<String, BTreeMap<NodeId, String>>, Failure> {
    let mut sealed: BTreeMap<String, BTreeMap<NodeId, String>> = BTreeMap::new();
    if secrets.is_empty() {
        return Ok(sealed);
    }
    let by = by.sealing_key().map_err(key::refuse)?;
    for (name, secret) in secrets {
        let context = format!("{id}/{name}");
        for target in targets {
            let key = target.key.as_ref().expect("targets of a document with secrets have keys");
            let text = by
                .seal(key, &context, secret)
                .map_err(|e| misuse(format!("cannot seal the secret {name}: {e}")))?;
            sealed.entry(name.clone()).or_default().insert(target.id, text);
        }
    }
    Ok(sealed)
}

#[cfg(test)]
mod tests {
    use rhizome_identity::SigningKey;
    use serde_json::json;

    use super::*;

    #[test]
    fn params_are_json_where_they_are_json() {
        for (text, value) in [
            ("n=2", json!(2)),
            ("on=true", json!(true)),
            ("list=[1,\"a\"]", json!([1, "a"])),
            ("name=web", json!("web")),
            ("url=http://h/?a=b", json!("http://h/?a=b")),
            ("quoted=\"2\"", json!("2")),
            ("empty=", json!("")),
        ] {
            assert_eq!(text.parse::<Param>().unwrap().value, value, "{text}");
        }
        assert!("n".parse::<Param>().is_err() && "=2".parse::<Param>().is_err());
    }

    #[test]
    fn secrets_come_from_three_places_and_are_never_shown() {
        let text: SecretSource = "db=hunter2".parse().unwrap();
        assert_eq!(text.read().unwrap().as_slice(), b"hunter2");
        assert!(!format!("{text:?}").contains("hunter2"));
        assert!(
            "db=@/etc/x".parse::<SecretSource>().unwrap().from == Origin::File("/etc/x".into())
        );
        assert!("db=-".parse::<SecretSource>().unwrap().from == Origin::Stdin);
        for bad in ["hunter2", "=hunter2", "a b=hunter2", "a=@"] {
            let error = bad.parse::<SecretSource>().unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn lifetimes() {
        for (text, secs) in [("90s", 90), ("10m", 600), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(text.parse(), Ok(Lifetime(secs)), "{text}");
        }
        for bad in ["", "0s", "-1h", "31d", "24", "soon"] {
            assert!(bad.parse::<Lifetime>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_node_gets_its_own_sealed_copy() {
        let id: DeploymentId = "1/demo".parse().unwrap();
        let keys = [SigningKey::generate().unwrap(), SigningKey::generate().unwrap()];
        let targets: Vec<_> = (1..)
            .zip(&keys)
            .map(|(n, key)| Target { id: NodeId(n), key: Some(key.key_id()) })
            .collect();
        let secrets = BTreeMap::from([("db".to_owned(), Zeroizing::new(b"hunter2".to_vec()))]);
        let by = SigningKey::from_seed([9; 32]).into();
        let sealed = seal_all(&id, &by, &secrets, &targets).unwrap();
        for (n, key) in (1..).zip(&keys) {
            let opened = key.unseal("1/demo/db", &sealed["db"][&NodeId(n)]).unwrap();
            assert_eq!(opened.as_slice(), b"hunter2");
            assert!(key.unseal("1/other/db", &sealed["db"][&NodeId(n)]).is_err());
        }
        assert!(keys[0].unseal("1/demo/db", &sealed["db"][&NodeId(2)]).is_err());
    }

    #[test]
    fn a_nonce_is_one_that_documents_take() {
        let (a, b) = (nonce(), nonce());
        assert!(a != b && a.len() == 32 && a.bytes().all(|c| c.is_ascii_alphanumeric()));
    }
}
