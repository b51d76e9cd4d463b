//! A walk through registrar v4's routes, all of them, with the requests of its client in Go: status,
//! headers and the whole body of each answer, also of each refusal.
//!
//! Where an answer is not v4's on purpose, a comment says so. Of its routes only `GET /swagger/*any` is
//! not there: the description is at `/openapi.json`.

mod client;
mod nodes;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::{Registrar, TIME};
use http::Method;
use rhizome_identity::SigningKey;
use serde_json::{Value, json};

use crate::harness::{Caller, base64_of, new_account, now, stellar, x_auth};

#[tokio::test]
async fn every_route_as_v4s_client_takes_it() {
    walk("/v1").await;
}

#[tokio::test]
async fn every_route_under_the_other_prefix() {
    walk("/api/v1").await;
}

async fn walk(prefix: &'static str) {
    let registrar = Registrar::start(prefix).await;
    let (owner, other) = accounts(&registrar).await;
    owner_changes_account(&registrar, &owner, &other).await;
    farms(&registrar, &owner, &other).await;
    farms_are_refused(&registrar, &owner).await;
    farms_change(&registrar, &owner, &other).await;
    nodes::walk(&registrar, &owner, &other).await;
    zos_version(&registrar, &owner, &other).await;
    who_is_not_let_in(&registrar, &owner).await;
    browsers(&registrar).await;
    slashes(&registrar, &owner).await;
    registrar.every_route_was_walked().await;
}

/// The key of the mnemonic that the client's own tests use.
fn the_clients_key() -> SigningKey {
    let seed = "fac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e";
    let key = SigningKey::from_seed(hex::decode(seed).unwrap().try_into().unwrap());
    assert_eq!(base64_of(&key), "NFBx2lXl3M76qkQDOUFe+fJmMzijj32g3yG+WrTgVe8=");
    let known = "MTcwMDAwMDAwMDox:UxYW2XJN+aKDHKOX/FeFoAqmgGkGXVFB7RzU0qGXaj4qolofhYpaCdTJdHizFZ3dKyKWQvWkRmIf+315XHHrDg==";
    assert_eq!(x_auth(&key, 1, 1_700_000_000), known, "X-Auth is not built as the client does it");
    key
}

fn by_key(key: &SigningKey) -> String {
    let escaped = base64_of(key).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("/accounts?public_key={escaped}")
}

fn done(message: &str) -> Value {
    json!({ "message": message })
}

async fn accounts(registrar: &Registrar) -> (Caller, Caller) {
    let key = the_clients_key();
    // What the client asks when it is made.
    registrar.get(&by_key(&key)).await.is_refusal(404, "account not found");
    accounts_are_refused(registrar, &key).await;
    let post =
        async || registrar.ask(Method::POST, "/accounts", None, Some(&request_of(&key))).await;
    let account = json!({ "twin_id": 1, "relays": null, "rmb_enc_key": "", "created_at": TIME,
        "updated_at": TIME, "public_key": base64_of(&key) });
    post().await.is(201, &account);
    // v4 documents it and answers 500.
    let text = "account with this public key already exists";
    post().await.is_refusal(409, text);
    registrar.get("/accounts?twin_id=1").await.is(200, &account);
    registrar.get(&by_key(&key)).await.is(200, &account);
    // v4 has this one, too.
    registrar.get("/accounts/?twin_id=1").await.is(200, &account);
    for (query, status, text) in [
        ("", 400, "must provide either twin_id or public_key parameter"),
        ("?twin_id=1&public_key=AA", 400, "provide either twin_id or public_key, not both"),
        ("?twin_id=x", 400, "invalid twin ID"),
        ("?twin_id=-1", 400, "invalid twin ID"),
        ("?twin_id=99", 404, "account not found"),
        ("?public_key=AA", 404, "account not found"),
    ] {
        registrar.get(&format!("/accounts{query}")).await.is_refusal(status, text);
    }
    let other = registrar.account(SigningKey::from_seed([2; 32]), 2).await;
    (Caller { key, id: 1 }, other)
}

/// As the client sends it.
fn request_of(key: &SigningKey) -> Value {
    let mut request = new_account(key, now());
    (request["relays"], request["rmb_enc_key"]) = (json!(null), json!(""));
    request
}

async fn accounts_are_refused(registrar: &Registrar, key: &SigningKey) {
    let with = |field: &str, value: &str| {
        let mut request = request_of(key);
        request[field] = json!(value);
        request
    };
    let post =
        async |body: &Value| registrar.ask(Method::POST, "/accounts", None, Some(body)).await;
    for (wrong, status, text) in [
        (json!({}), 400, "missing field…"),
        (json!([]), 400, "a JSON object is expected"),
        (with("public_key", "AAAA"), 400, "invalid public key format"),
        (new_account(key, now() + 5), 400, "timestamp outside acceptable window"),
        (new_account(key, now() - 5), 400, "timestamp outside acceptable window"),
        (with("signature", "!"), 400, "invalid signature format: …"),
        (
            with("signature", &STANDARD.encode(key.sign(b"else"))),
            401,
            "signature verification error: …",
        ),
    ] {
        post(&wrong).await.is_refusal(status, text);
    }
}

async fn owner_changes_account(registrar: &Registrar, owner: &Caller, other: &Caller) {
    let patch = async |path: &str, who, body| registrar.send(Method::PATCH, path, who, &body).await;
    let update = json!({ "relays": ["wss://relay"], "rmb_enc_key": "abc" });
    let changed = done("account updated successfully");
    patch("/accounts/1", owner, update.clone()).await.is(200, &changed);
    let mut account = json!({ "twin_id": 1, "relays": ["wss://relay"], "rmb_enc_key": "abc",
        "created_at": TIME, "updated_at": TIME, "public_key": base64_of(&owner.key) });
    registrar.get("/accounts?twin_id=1").await.is(200, &account);
    // As v4: what is not sent is emptied.
    patch("/accounts/1", owner, json!({})).await.is(200, &changed);
    (account["relays"], account["rmb_enc_key"]) = (json!(null), json!(""));
    registrar.get("/accounts?twin_id=1").await.is(200, &account);

    patch("/accounts/x", owner, update.clone()).await.is_refusal(400, "invalid twin ID");
    // v4 does not say what is wrong with it.
    patch("/accounts/1", owner, json!([])).await.is_refusal(400, "invalid request body: …");
    patch("/accounts/1", other, update.clone()).await.is_refusal(401, "not authorized");
    patch("/accounts/99", owner, update).await.is_refusal(401, "not authorized");
    registrar.get("/accounts?twin_id=1").await.is(200, &account);
}

/// As the client sends it, with every field of its type.
fn new_farm(twin: u64, name: &str, dedicated: bool) -> Value {
    json!({ "farm_id": 0, "farm_name": name, "twin_id": twin, "dedicated": dedicated,
        "stellar_address": stellar() })
}

async fn farms(registrar: &Registrar, owner: &Caller, other: &Caller) {
    registrar.get("/farms?page=1&size=50").await.is_page(0, &json!([]));
    let mut first = new_farm(1, "Alpha1", true);
    // v4 takes both from the client; that is a fault of it.
    (first["farm_id"], first["created_at"]) = (json!(77), json!("2000-01-01T00:00:00Z"));
    let post = async |who, body: &Value| registrar.send(Method::POST, "/farms", who, body).await;
    post(owner, &first).await.is(201, &json!({ "farm_id": 1 }));
    post(other, &new_farm(2, "alphabet", false)).await.is(201, &json!({ "farm_id": 2 }));
    let slash = registrar.send(Method::POST, "/farms/", owner, &new_farm(1, "beta", false)).await;
    slash.is(201, &json!({ "farm_id": 3 }));
    let farm = |id: u64, name: &str, twin: u64, dedicated: bool| {
        json!({ "farm_id": id, "farm_name": name, "twin_id": twin, "dedicated": dedicated,
            "stellar_address": stellar(), "created_at": TIME, "updated_at": TIME })
    };
    let all =
        [farm(1, "Alpha1", 1, true), farm(2, "alphabet", 2, false), farm(3, "beta", 1, false)];
    registrar.get("/farms/1").await.is(200, &all[0]);
    registrar.get("/farms").await.is_page(3, &json!(all));
    for (query, total, ids) in [
        ("page=1&size=50", 3, &[1, 2, 3][..]),
        ("farm_name=ALPHA&page=1&size=50", 2, &[1, 2]),
        ("farm_name=%25", 0, &[]),
        ("farm_id=2", 1, &[2]),
        ("farm_id=9", 0, &[]),
        ("twin_id=1", 2, &[1, 3]),
        ("twin_id=1&farm_name=bet", 1, &[3]),
        // v4 ignores it.
        ("dedicated=true&page=1&size=50", 1, &[1]),
        ("page=1&size=2", 3, &[1, 2]),
        ("page=2&size=2", 3, &[3]),
        ("page=0&size=2", 3, &[1, 2]),
        ("size=0", 3, &[]),
        ("page=9", 3, &[]),
    ] {
        registrar.get(&format!("/farms?{query}")).await.has_ids("farm_id", total, ids);
    }
    for n in 4..=51 {
        post(owner, &new_farm(1, &format!("more{n}"), false))
            .await
            .is(201, &json!({ "farm_id": n }));
    }
    let ids: Vec<u64> = (1..=51).collect();
    registrar.get("/farms").await.has_ids("farm_id", 51, &ids[..50]);
    registrar.get("/farms?page=2").await.has_ids("farm_id", 51, &ids[50..]);
    // More than a page may have; `long_lists_come_whole` meets the limit, which v4 has not.
    registrar.get("/farms?size=4294967295").await.has_ids("farm_id", 51, &ids);
}

async fn farms_are_refused(registrar: &Registrar, owner: &Caller) {
    let name = "failed to parse farm info: farm_name must be …";
    let address = "failed to parse farm info: stellar_address must be …";
    let with = |field: &str, value: Value| {
        let mut body = new_farm(1, "fine", false);
        body[field] = value;
        body
    };
    for (body, status, text) in [
        (json!([]), 400, "failed to parse farm info: …"),
        (json!({ "twin_id": 1 }), 400, "failed to parse farm info: missing field…"),
        (with("farm_name", json!("")), 400, name),
        (with("farm_name", json!("a-b")), 400, name),
        (with("farm_name", json!("a_b")), 400, name),
        (with("farm_name", json!("a".repeat(41))), 400, name),
        (with("stellar_address", json!("")), 400, address),
        (with("stellar_address", json!("GABC")), 400, address),
        (with("stellar_address", json!(stellar().to_lowercase())), 400, address),
        (with("stellar_address", json!(stellar().replacen('G', "X", 1))), 400, address),
        (with("twin_id", json!(0)), 400, "failed to parse farm info: twin_id must be …"),
        (with("twin_id", json!(2)), 401, "not authorized"),
        (with("farm_name", json!("beta")), 409, "record already exists"),
    ] {
        registrar.send(Method::POST, "/farms", owner, &body).await.is_refusal(status, text);
    }
    let number = |id: &str| format!("strconv.ParseUint: parsing \"{id}\": invalid syntax");
    for (path, status, text) in [
        ("/farms/99", 404, "could not find any records".to_owned()),
        ("/farms/x", 400, format!("Invalid farm_id: {}", number("x"))),
        ("/farms/-1", 400, format!("Invalid farm_id: {}", number("-1"))),
        (
            "/farms?farm_id=x",
            400,
            format!("failed to bind query params to *db.FarmFilter: {}", number("x")),
        ),
        (
            "/farms?page=-1",
            400,
            format!("failed to bind query params to *db.FarmFilter: {}", number("-1")),
        ),
    ] {
        registrar.get(path).await.is_refusal(status, &text);
    }
    // None was made.
    registrar.get("/farms?page=3&size=25").await.has_ids("farm_id", 51, &[51]);
    // Not v4's: a farm that is paid nowhere. There are no payments here, and every farm that v4 takes
    // is taken. An address that is there is checked as v4 does.
    let mut unpaid = new_farm(1, "unpaid", false);
    unpaid.as_object_mut().unwrap().remove("stellar_address");
    let made = registrar.send(Method::POST, "/farms", owner, &unpaid).await;
    made.is(201, &json!({ "farm_id": 52 }));
    assert_eq!(registrar.get("/farms/52").await.body()["stellar_address"], "");
}

async fn farms_change(registrar: &Registrar, owner: &Caller, other: &Caller) {
    let patch = async |path: &str, who, body| registrar.send(Method::PATCH, path, who, &body).await;
    let changed = done("Farm was updated successfully");
    let mut farm = registrar.get("/farms/1").await.body().clone();
    farm["updated_at"] = json!(TIME);
    let address = stellar().replace('2', "3");
    for (body, field, value) in [
        // v4 refuses a name without an address, and ignores `dedicated`.
        (json!({ "farm_name": "Alpha2" }), "farm_name", json!("Alpha2")),
        (json!({ "stellar_address": address }), "stellar_address", json!(address)),
        (json!({ "dedicated": false }), "dedicated", json!(false)),
        (json!({}), "farm_name", json!("Alpha2")),
        (json!({ "farm_name": "", "stellar_address": "" }), "farm_name", json!("Alpha2")),
    ] {
        patch("/farms/1", owner, body).await.is(200, &changed);
        farm[field] = value;
        registrar.get("/farms/1").await.is(200, &farm);
    }
    let unparsed = "failed to parse farm info: …";
    for (path, who, body, status, text) in [
        ("/farms/x", owner, json!({}), 400, "Invalid farm_id: strconv.ParseUint: …"),
        ("/farms/1", owner, json!([]), 400, unparsed),
        // v4 takes this name here, and only here.
        ("/farms/1", owner, json!({ "farm_name": "a-b" }), 400, unparsed),
        ("/farms/1", owner, json!({ "stellar_address": "GABC" }), 400, unparsed),
        ("/farms/99", owner, json!({}), 404, "Farm not found"),
        ("/farms/1", other, json!({ "farm_name": "mine" }), 401, "not authorized"),
        // v4 answers 500.
        ("/farms/1", owner, json!({ "farm_name": "beta" }), 409, "record already exists"),
    ] {
        patch(path, who, body).await.is_refusal(status, text);
        registrar.get("/farms/1").await.is(200, &farm);
    }
}

async fn zos_version(registrar: &Registrar, admin: &Caller, other: &Caller) {
    let path = "/zos/version";
    let put = async |who, body| registrar.send(Method::PUT, path, who, &body).await;
    registrar.get(path).await.is_refusal(404, "zos version not set");
    let version = json!(STANDARD.encode(r#"{"version":"v0.1.2","safe_to_upgrade":true}"#));
    let body = json!({ "version": version });
    put(other, body.clone()).await.is_refusal(401, "not authorized");
    put(admin, json!({})).await.is_refusal(400, "missing field…");
    // v4 keeps what no client can read.
    put(admin, json!({ "version": "no base64" })).await.is_refusal(400, "version must be …");
    registrar.get(path).await.is_refusal(404, "zos version not set");
    put(admin, body.clone()).await.is(200, &Value::Null);
    put(admin, body).await.is_refusal(409, "version already set");
    registrar.get(path).await.is(200, &version);
}

/// Every route that changes something asks first who calls, in v4's order and words.
async fn who_is_not_let_in(registrar: &Registrar, owner: &Caller) {
    let signed = |text: &str| {
        format!("{}:{}", STANDARD.encode(text), STANDARD.encode(owner.key.sign(text.as_bytes())))
    };
    for (method, path) in [
        (Method::PATCH, "/accounts/1"),
        (Method::POST, "/farms"),
        (Method::PATCH, "/farms/1"),
        (Method::POST, "/nodes"),
        (Method::PATCH, "/nodes/1"),
        (Method::POST, "/nodes/1/uptime"),
        (Method::PUT, "/zos/version"),
    ] {
        let good = x_auth(&owner.key, owner.id, now());
        let (challenge, signature) = good.split_once(':').unwrap();
        let foreign = x_auth(&SigningKey::from_seed([2; 32]), owner.id, now());
        let failed = "Signature verification failed: signature verification failed";
        for (header, status, text) in [
            (None, 401, "Authorization header required"),
            (Some("abc".into()), 400, "Invalid header format. Use 'Challenge:Signature'"),
            (Some("a:b:c".into()), 400, "Invalid header format. Use 'Challenge:Signature'"),
            (Some(format!("!:{signature}")), 400, "Invalid challenge encoding"),
            (Some(signed("1:2:3")), 400, "Invalid challenge format"),
            (Some(signed("x:1")), 400, "Invalid timestamp"),
            (Some(signed(&format!("{}:1", now() - 65))), 401, "Expired challenge"),
            // v4 takes it, until then.
            (Some(signed("4102444800:1")), 401, "Challenge from the future"),
            (Some(signed(&format!("{}:x", now()))), 400, "Invalid twin ID format"),
            (Some(signed(&format!("{}:99", now()))), 404, "Account not found"),
            (Some(format!("{challenge}:!")), 400, "Invalid signature encoding"),
            (Some(foreign), 401, failed),
        ] {
            let body = json!("junk");
            let asked = registrar.ask(method.clone(), path, header.as_deref(), Some(&body)).await;
            asked.is_refusal(status, text);
        }
    }
}

/// v4 lets no browser PATCH.
async fn browsers(registrar: &Registrar) {
    for (method, path) in [
        (Method::POST, "/accounts"),
        (Method::PATCH, "/accounts/1"),
        (Method::GET, "/farms"),
        (Method::PATCH, "/farms/1"),
        (Method::PATCH, "/nodes/1"),
        (Method::POST, "/nodes/1/uptime"),
        (Method::PUT, "/zos/version"),
    ] {
        let (status, headers) = registrar.preflight(&method, path).await;
        let header = |name: &str| headers[name].to_str().unwrap().to_lowercase();
        assert!(status == 200 || status == 204, "{path}: {status}");
        assert_eq!(header("access-control-allow-origin"), "*");
        for allowed in ["get", "post", "patch", "put", "delete"] {
            let methods = header("access-control-allow-methods");
            assert!(methods.split(',').any(|m| m.trim() == allowed), "{allowed}: {methods}");
        }
        for allowed in ["x-auth", "content-type"] {
            assert!(header("access-control-allow-headers").contains(allowed));
        }
    }
}

/// v4 serves some of these and redirects the others.
async fn slashes(registrar: &Registrar, owner: &Caller) {
    for path in ["/accounts?twin_id=1", "/farms", "/farms/1", "/nodes", "/nodes/1", "/zos/version"]
    {
        let plain = registrar.get(path).await;
        let (route, query) = path.split_once('?').unwrap_or((path, ""));
        registrar.get(&format!("{route}/?{query}")).await.is(200, plain.body());
    }
    let nothing = json!({});
    for (method, path, text) in [
        (Method::POST, "/accounts/", "missing field…"),
        (Method::PATCH, "/accounts/x/", "invalid twin ID"),
        (Method::POST, "/farms/", "failed to parse farm info: missing field…"),
        (Method::PATCH, "/farms/x/", "Invalid farm_id: …"),
        (Method::POST, "/nodes/", "missing field…"),
        (Method::PATCH, "/nodes/x/", "invalid node ID"),
        (Method::POST, "/nodes/x/uptime/", "Invalid node id"),
        (Method::PUT, "/zos/version/", "missing field…"),
    ] {
        registrar.send(method, path, owner, &nothing).await.is_refusal(400, text);
    }
}
