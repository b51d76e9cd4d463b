//! Every request that we make, against Cloud Hypervisor's own description of its API.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::vm::config::{Driver, Ready};

const DESCRIPTION: &str = include_str!("../../../tests/cloud-hypervisor/openapi.json");

#[derive(Debug)]
struct Request {
    method: String,
    path: String,
    body: Option<Value>,
}

/// Takes one request per connection, and answers as the description says.
fn serve(dir: &Path) -> mpsc::Receiver<Request> {
    let listener = UnixListener::bind(dir.join(API)).unwrap();
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(request) = client.and_then(answer) else { return };
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    requests
}

fn answer(mut client: UnixStream) -> std::io::Result<Request> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    let (head, body) = loop {
        let read = client.read(&mut buffer)?;
        text.extend_from_slice(&buffer[..read]);
        let whole = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = whole.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok()
        });
        if body.len() >= length.unwrap_or(0) {
            break (head.to_owned(), body.to_owned());
        }
    };
    let mut words = head.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let said = match path.rsplit('/').next().unwrap_or_default() {
        "vmm.ping" => json!({ "version": "v53.0", "pid": 1 }),
        "vm.info" => json!({
            "state": "Paused",
            "config": {
                "payload": {}, "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
                "memory": { "size": 134_217_728 }, "disks": [{ "path": "/a" }],
                "platform": { "system_uuid": "u" },
            },
        }),
        "vm.counters" => json!({ "disk-a": { "read_bytes": 5, "write_latency_avg": u64::MAX } }),
        _ => Value::Null,
    };
    if said.is_null() {
        client.write_all(
            b"HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n",
        )?;
    } else {
        let said = said.to_string();
        let length = said.len();
        write!(
            client,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{said}"
        )?;
    }
    let body = (!body.is_empty()).then(|| serde_json::from_str(&body).unwrap());
    Ok(Request { method, path, body })
}

fn config(dir: &Path) -> VmConfig {
    let disk = Disk { path: dir.join("disk"), serial: "a".into(), readonly: true };
    VmConfig {
        name: "1/demo/vm".into(),
        uuid: crate::vm::uuid_of("1/demo/vm"),
        program: "cloud-hypervisor".into(),
        driver: Driver::CloudHypervisor,
        kernel: "/kernel".into(),
        initramfs: Some("/initramfs".into()),
        cmdline: "console=ttyS0".into(),
        vcpus: 2,
        memory: 128 << 20,
        disks: vec![disk],
        net: Some(Net { tap: "rz0".into(), mac: "02:00:00:00:00:01".into(), mtu: 1400 }),
        ready: Ready::Started,
        ready_ms: 0,
        disk_folders: vec!["/pool".into()],
        groups: Vec::new(),
    }
}

#[test]
fn every_request_is_one_that_the_description_knows() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let requests = serve(dir.path());
    let hypervisor = CloudHypervisor::new(dir.path(), &config);
    let soon = || Instant::now() + Duration::from_secs(5);

    hypervisor.ping(soon()).unwrap();
    hypervisor.create(soon()).unwrap();
    hypervisor.add_net(config.net.as_ref().unwrap(), soon()).unwrap();
    hypervisor.boot(soon()).unwrap();
    let info = hypervisor.info(soon()).unwrap();
    assert_eq!((info.state, info.vcpus, info.uuid.as_deref()), (VmState::Paused, 2, Some("u")));
    assert_eq!((info.memory, info.disks), (128 << 20, vec!["/a".into()]));
    let counters = hypervisor.counters(soon()).unwrap();
    assert_eq!(counters["disk-a"], BTreeMap::from([("read_bytes".to_owned(), 5)]));
    hypervisor.power_button(soon()).unwrap();
    hypervisor.pause(soon()).unwrap();
    hypervisor.resume(soon()).unwrap();
    assert_eq!(hypervisor.add_disk(&config.disks[0], soon()).unwrap(), "disk-a");
    hypervisor.remove_device("disk-a", soon()).unwrap();
    hypervisor.shutdown(soon()).unwrap();

    let description: Value = serde_json::from_str(DESCRIPTION).unwrap();
    let requests: Vec<_> = requests.try_iter().collect();
    let mut seen: Vec<_> = requests.iter().map(|r| r.path.rsplit('/').next().unwrap()).collect();
    requests.iter().for_each(|request| assert_known(&description, request));
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            "vm.add-disk",
            "vm.add-net",
            "vm.boot",
            "vm.counters",
            "vm.create",
            "vm.delete",
            "vm.info",
            "vm.pause",
            "vm.power-button",
            "vm.remove-device",
            "vm.resume",
            "vm.shutdown",
            "vmm.ping",
            "vmm.shutdown",
        ],
        "each call of the trait is looked at"
    );
}

fn assert_known(description: &Value, request: &Request) {
    let path = request.path.strip_prefix("/api/v1").unwrap();
    let operation = &description["paths"][path][request.method.to_lowercase()];
    assert!(operation.is_object(), "no {} {path}", request.method);
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    match (&request.body, schema.is_object()) {
        (Some(body), true) => {
            let faults = faults(description, schema, body, path);
            assert!(faults.is_empty(), "{faults:#?}");
        }
        (None, false) => {}
        (body, takes) => panic!("{path} takes a body: {takes}, and got {body:?}"),
    }
}

/// What of a value is not as its schema says. Fields that the schema does not know are faults: the
/// real one passes over them without a word.
fn faults(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let target = root.pointer(name.trim_start_matches('#')).expect("a reference that leads on");
        return faults(root, target, value, at);
    }
    let fault = |what: &str| vec![format!("{at}: {what}: {value}")];
    match schema["type"].as_str() {
        Some("object") => object_faults(root, schema, value, at),
        Some("array") => {
            let Some(items) = value.as_array() else { return fault("not an array") };
            let each = items.iter().enumerate();
            each.flat_map(|(n, item)| faults(root, &schema["items"], item, &format!("{at}[{n}]")))
                .collect()
        }
        Some("string") => {
            let Some(text) = value.as_str() else { return fault("not a string") };
            let is_one = |all: &Vec<Value>| all.iter().any(|one| one == text);
            if schema["enum"].as_array().is_none_or(is_one) {
                vec![]
            } else {
                fault("none of the enum")
            }
        }
        Some("integer") => {
            let least = schema["minimum"].as_i64().unwrap_or(i64::MIN);
            if value.as_i64().is_some_and(|n| n >= least) {
                vec![]
            } else {
                fault("not such an integer")
            }
        }
        Some("boolean") if value.is_boolean() => vec![],
        Some("boolean") => fault("not a boolean"),
        other => fault(&format!("a schema of type {other:?}")),
    }
}

fn object_faults(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let Some(fields) = value.as_object() else {
        return vec![format!("{at}: not an object: {value}")];
    };
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut found: Vec<String> = required
        .filter(|name| !fields.contains_key(*name))
        .map(|name| format!("{at}: without {name}"))
        .collect();
    for (name, field) in fields {
        let at = format!("{at}.{name}");
        match schema["properties"].get(name) {
            Some(known) => found.extend(faults(root, known, field, &at)),
            None => found.push(format!("{at}: there is no such field")),
        }
    }
    found
}

#[test]
fn a_slip_of_the_pen_is_seen() {
    let description: Value = serde_json::from_str(DESCRIPTION).unwrap();
    let schema = json!({ "$ref": "#/components/schemas/VmConfig" });
    let faults = |value: Value| faults(&description, &schema, &value, "vm").len();
    assert_eq!(faults(json!({ "payload": {} })), 0);
    assert_eq!(faults(json!({})), 1, "a field that must be there");
    assert_eq!(faults(json!({ "payload": { "kernal": "/k" } })), 1, "an unknown field");
    assert_eq!(faults(json!({ "payload": {}, "serial": { "mode": "Sockets" } })), 1);
    assert_eq!(faults(json!({ "payload": {}, "cpus": { "boot_vcpus": 0, "max_vcpus": "1" } })), 2);
    assert_eq!(faults(json!({ "payload": {}, "disks": [{ "readonly": "yes" }] })), 1);
}
