//! Against the real ledger and the real coord, without a node: accounts, signed calls, refusals.

use rhizome_coord::CoordConfig;
use rhizome_identity::SigningKey;
use rhizome_ledger::{DatabaseUrl, LedgerConfig};
use rhizome_service::Shutdown;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::harness::{User, outcome};

struct Grid {
    user: User,
    shutdown: Shutdown,
    runtime: Runtime,
}

impl Grid {
    fn start() -> Self {
        let user = User::with_key();
        let runtime = Runtime::new().unwrap();
        let shutdown = Shutdown::new();
        let bind = || runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (for_ledger, for_coord) = (bind(), bind());
        let url = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let (ledger, coord) = (url(&for_ledger), url(&for_coord));
        user.write(
            "rhizome.toml",
            &format!("coord = \"{coord}\"\nledger = \"{ledger}\"\nnetwork = \"dev\"\n"),
        );
        let database = DatabaseUrl::sqlite(user.path("ledger.db"));
        let config = LedgerConfig {
            database,
            network: "dev".into(),
            admin: rhizome_ledger::ADMIN,
            signing_key: user.path("ledger.key"),
            statement_lifetime: rhizome_ledger::STATEMENT_LIFETIME,
        };
        runtime.spawn(rhizome_ledger::run(config, for_ledger, shutdown.token.clone()));
        let config = CoordConfig {
            database: user.path("coord.db"),
            ledger,
            ledger_key: None,
            statements: user.path("statements"),
            network: "dev".into(),
            key: SigningKey::generate().unwrap(),
        };
        runtime.spawn(rhizome_coord::run(config, for_coord, shutdown.clone()));
        Self { user, shutdown, runtime }
    }

    fn submit(&self, document: &Value) -> (i32, Value) {
        let sign = outcome(self.user.rhizome(&["sign", "-"]).write_stdin(document.to_string()));
        self.user.write("envelope.json", &sign.1);
        self.user.json(&["submit", "envelope.json", "--detach"])
    }
}

impl Drop for Grid {
    fn drop(&mut self) {
        self.runtime.block_on(self.shutdown.finish(std::time::Duration::from_secs(5)));
    }
}

#[test]
fn an_account_before_anything_else() {
    let grid = Grid::start();
    let user = &grid.user;
    user.write("a.rhai", "output(\"ok\", 1);");
    let (code, error) = user.json(&["deploy", "a.rhai", "--name", "demo"]);
    assert_eq!((code, &error["code"]), (3, &json!("unknown_account")), "{error}");
    assert_eq!(user.json(&["account", "show"]).1["code"], "unknown_account");

    let (code, account) = user.json(&["account", "register"]);
    assert_eq!(code, 0, "{account}");
    assert_eq!(user.json(&["account", "register"]), (0, account.clone()), "again is the same");
    assert_eq!(user.json(&["account", "show"]), (0, account));

    assert_eq!(user.json(&["list"]), (0, json!([])));
    assert_eq!(user.json(&["list", "--all"]), (0, json!([])));
    assert_eq!(user.json(&["nodes"]), (0, json!([])));
    assert_eq!(user.json(&["queues"]), (0, json!({ "queues": [], "missing": [] })));
    for absent in [&["show", "demo"][..], &["events", "demo"], &["delete", "demo"], &["node", "9"]]
    {
        let (code, error) = user.json(absent);
        assert_eq!((code, &error["code"]), (1, &json!("not_found")), "{absent:?}: {error}");
    }
    let (code, error) = user.json(&["deploy", "a.rhai", "--name", "demo"]);
    assert_eq!(code, 3, "there is no node: {error}");
}

#[test]
fn refusals_of_envelopes() {
    let grid = Grid::start();
    let (_, account) = grid.user.json(&["account", "register"]);
    let now = rhizome_service::clock::now_secs();
    let good = json!({
        "account": account["id"], "name": "demo", "version": 1, "network": "dev", "script": "",
        "placement": { "nodes": [1] }, "expires": now + 600, "nonce": "0123456789abcdef",
    });
    for (field, value, code) in [
        ("network", json!("main"), "wrong_network"),
        ("expires", json!(now - 1), "expired"),
        ("not_before", json!(now + 300), "not_yet_valid"),
        ("account", json!(999), "unknown_account"),
        ("name", json!("../x"), "invalid_document"),
        ("placement", json!({ "nodes": [77] }), "wrong_node"),
    ] {
        let mut document = good.clone();
        document[field] = value;
        let (exit, error) = grid.submit(&document);
        assert_eq!((exit, &error["code"]), (3, &json!(code)), "{field}: {error}");
    }
    grid.user.write("no-envelope", "{}");
    let (exit, error) = grid.user.json(&["submit", "no-envelope", "--detach"]);
    assert_eq!((exit, &error["code"]), (3, &json!("bad_envelope")));
    grid.user.write("large", &"x".repeat(600 << 10));
    let (exit, error) = grid.user.json(&["submit", "large", "--detach"]);
    assert_eq!((exit, &error["code"]), (3, &json!("too_large")));
    assert_eq!(grid.user.json(&["list"]).1, json!([]), "nothing was kept");
}
