//! Databases that are full, or nearly.

use std::fs;
use std::io::Write;
use std::process::Command;

use serde_json::json;

use super::client::{
    Client, PASSWORD, assert_gone, databases, ensure, is_good, spec, status, until,
};
use crate::world::{World, id};

#[tokio::test]
async fn a_full_one_refuses_writes_says_so_and_takes_them_again_when_it_grows() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    let mut client = Client::with(&made, PASSWORD);
    let value = "x".repeat(100 << 10);
    let mut written = 0;
    let refusal = loop {
        match client.ask(&["SET", &format!("key-{written}"), &value]).as_str() {
            "+OK" => written += 1,
            other => break other.to_owned(),
        }
        assert!(written < 1000);
    };
    assert!(refusal.starts_with("-OOM"), "{refusal}");
    let full = status(&world, &id).await;
    assert!(full["health"]["reason"].as_str().unwrap().contains("refuses writes"), "{full}");
    assert_eq!(client.ask(&["GET", "key-0"]), value, "it can be read");
    let grown = ensure(&world, &id, &spec("128MiB")).await.unwrap().status;
    assert!(is_good(&grown), "{grown}");
    assert_eq!(client.ask(&["SET", "more", &value]), "+OK", "the same client goes on");
    assert_eq!(grown["restarts"], 0);
}

#[tokio::test]
async fn one_whose_volume_was_filled_by_others_loses_nothing_and_heals() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    let mut client = Client::with(&made, PASSWORD);
    for n in 0..100 {
        assert_eq!(client.ask(&["SET", &format!("key-{n}"), "value"]), "+OK");
    }
    // What the engine cannot foresee: there is less room than its limit says.
    let junk = world.pool().join("herodbs").join(id.file_name()).join("junk");
    let mut file = fs::File::create(&junk).unwrap();
    for piece in [4 << 20, 64 << 10] {
        while file.write_all(&vec![7; piece]).and_then(|()| file.sync_data()).is_ok() {}
    }
    drop(file);
    let value = "y".repeat(300 << 10);
    let mut acknowledged = 0;
    while client.ask(&["SET", &format!("late-{acknowledged}"), &value]) == "+OK" {
        acknowledged += 1;
        assert!(acknowledged < 200);
    }
    let closed = until(&world, &id, |s| s["state"] == "running" && s["keys"].is_u64()).await;
    let reason = closed["health"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("its volume is full"), "{closed}");
    let mut client = Client::with(&closed, PASSWORD);
    assert_eq!(closed["keys"], json!(100 + acknowledged));
    assert_eq!(client.ask(&["GET", "key-99"]), "value");
    let refusal = client.ask(&["SET", "a", "1"]);
    assert!(refusal.starts_with("-NOREPLICAS"), "{refusal}");

    let grown = ensure(&world, &id, &spec("128MiB")).await.unwrap().status;
    assert!(is_good(&grown), "{grown}");
    assert_eq!(client.ask(&["SET", "a", "1"]), "+OK");
    let kept = databases(&world).keep(&id, &spec("128MiB")).await.unwrap();
    assert!(kept.drifted.is_empty(), "{kept:?}");
    databases(&world).delete(&id).await.unwrap();
    assert_gone(&world);
}

#[tokio::test]
async fn a_small_one_is_written_over_and_over_and_never_fills_its_volume() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    // More than its size goes through its log, which is written anew again and again.
    let run = Command::new("timeout")
        .args(["60", "redis-benchmark", "-h", made["address"].as_str().unwrap(), "-p", "6379"])
        .args(["-a", PASSWORD, "-q", "-t", "set", "-n", "18000", "-r", "1200", "-d", "4000"])
        .args(["-c", "4", "-P", "8"])
        .output()
        .unwrap();
    let (said, wrong) =
        (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let after = status(&world, &id).await;
    println!("{after}");
    assert!(run.status.success(), "{said}\n{wrong}\n{after}");
    assert!(is_good(&after), "{after}");
    assert_eq!((&after["restarts"], &after["keys"]), (&json!(0), &json!(1200)));
    assert!(after["used"].as_u64().unwrap() <= 64 << 20, "{after}");
}
