//! What a script can do, and in which order the host sees it.

use std::collections::BTreeMap;

use rhizome_engine::Stop;
use rhizome_model::secret::generated_token;
use rhizome_model::{Code, Failure, WorkloadKind, resource_address};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Fake, NODE, failed, outputs, run, sandboxes, script, shown};

const DEMO: &str = include_str!("../../../scripts/demo.rhai");

#[tokio::test]
async fn the_demo_declares_waits_and_says() {
    let mut host = Fake::default();
    host.answers.insert("client", json!({ "exit_code": 0, "output": "Hello\n" }));
    let evaluation = run(&script(DEMO), &host).await.unwrap();
    assert_eq!(evaluation.outputs["fetched"], json!("Hello\n"));
    insta::assert_snapshot!(host.asked().join("\n"));

    let [data, web, client] = &evaluation.resources[..] else { panic!("{evaluation:?}") };
    assert_eq!((data.kind, data.spec["size"].as_u64()), (WorkloadKind::Volume, Some(16 << 20)));
    assert_eq!(web.spec["mounts"][0]["volume"], json!("data"));
    let command = client.spec["command"][2].as_str().unwrap();
    let web = resource_address(NODE.parse().unwrap(), &"1/demo/web".parse().unwrap());
    assert!(command.contains(&format!("http://[{web}]/")), "{command}");
    assert!(command.contains("$((tries + 1))"), "{command}");
}

#[tokio::test]
async fn a_demo_whose_client_fails_fails() {
    let mut host = Fake::default();
    host.answers.insert("client", json!({ "exit_code": 1, "output": "no route" }));
    let failure = failed(run(&script(DEMO), &host).await);
    assert_eq!(failure.code, Code::ScriptFailed);
    assert!(failure.message.contains("could not fetch the page: no route"), "{failure}");
    assert!(!host.asked().contains(&"finish".to_owned()));
}

#[tokio::test]
async fn the_other_examples_run() {
    let hello = outputs(include_str!("../../../scripts/hello.rhai")).await;
    assert_eq!(hello, json!({ "greeting": "Hello, world!" }));
    let fleet = outputs(include_str!("../../../scripts/fleet.rhai")).await;
    assert_eq!(fleet["addresses"].as_array().map(Vec::len), Some(3));
    let mut host = Fake::default();
    host.answers.insert("count", json!({ "exit_code": 0, "output": "1000\n" }));
    let job = run(&script(include_str!("../../../scripts/job.rhai")), &host).await.unwrap();
    assert_eq!(job.outputs["words"], json!(1000));
    let mut host = Fake::default();
    host.answers.insert("visit", json!({ "exit_code": 0, "output": "7\n" }));
    let visits = run(&script(include_str!("../../../scripts/herodb.rhai")), &host).await.unwrap();
    assert_eq!(visits.outputs["visits"], json!(7));
    assert!(visits.outputs["url"].as_str().unwrap().starts_with("redis://:***@["));
}

#[tokio::test]
async fn the_script_of_the_design() {
    let source = r#"
        let data = volume("data", #{ size: "10GiB" });
        let cache = herodb("cache", #{ size: "1GiB" });
        for i in 0..params.replicas {
            machine(`web-${i}`, #{
                image: "file:///srv/images/web.tar", cpu: 2, memory: "1GiB",
                mounts: [ #{ volume: data, path: "/data" } ],
                env: #{ CACHE_URL: cache.url },
                restart: "always",
            });
        }
        output("cache", cache.address);
    "#;
    let evaluation = run(&script(source), &Fake::default()).await.unwrap();
    let cache = "1/demo/cache".parse().unwrap();
    let address = resource_address(NODE.parse().unwrap(), &cache);
    assert_eq!(evaluation.outputs["cache"], json!(address));
    let web = &evaluation.resources[4];
    assert_eq!((web.name.as_str(), web.line), ("web-2", 5));
    let url = format!("redis://:{}@[{address}]:6379", generated_token(&cache));
    assert_eq!(web.spec["env"], json!({ "CACHE_URL": url }));
    assert_eq!(web.spec["cpu"], json!(2));
}

#[tokio::test]
async fn the_script_sees_its_context_in_functions_too() {
    let seen = outputs(
        r#"
        fn image() { params.image }
        output("image", image());
        output("missing", params.missing);
        output("default", params.missing ?? 5);
        output("node", node);
        output("deployment", deployment);
        output("peers", peers);
        output("closure", [1, 2].map(|n| n + params.replicas));
        fn inner() { [1].map(|n| n + node.id) }
        output("in both", inner());
        { let peers = 5; output("own", peers); }
    "#,
    )
    .await;
    insta::assert_json_snapshot!(seen);
}

#[tokio::test]
async fn the_context_cannot_be_changed() {
    for change in ["params.image = 1;", "node.id = 5;", "params = 1;", "peers.clear();"] {
        let ended = run(&script(change), &Fake::default()).await;
        assert!(matches!(&ended, Err(Stop::Failed(_))), "{change}: {ended:?}");
    }
}

#[tokio::test]
async fn known_properties_do_not_wait_and_others_wait_once() {
    let mut host = Fake::default();
    host.statuses.insert("data", json!({ "size": 1, "used": 42 }));
    let source = r#"
        const data = volume("data", #{ size: "1MiB" });
        output("size", data.size);
        output("used", data.used + data["used"]);
        output("name", `${data} ${data.name} ${data.kind}`);
        output("handle", #{ inside: [data] });
    "#;
    let evaluation = run(&script(source), &host).await.unwrap();
    let expected = json!({
        "size": 1 << 20, "used": 84, "name": "data data volume", "handle": { "inside": ["data"] },
    });
    assert_eq!(json!(evaluation.outputs), expected);
    let asked = host.asked();
    assert_eq!(asked.iter().filter(|a| a.starts_with("read")).count(), 1, "{asked:?}");
}

#[tokio::test]
async fn actions_are_numbered_with_declarations() {
    let host = Fake::default();
    let source = r#"
        let web = machine("web", #{ image: params.image });
        let first = web.exec(["/bin/true", "x"]);
        volume("data", #{ size: "1MiB" });
        web.wait();
        output("code", first.exit_code);
        print("printed"); debug(1);
    "#;
    run(&script(source), &host).await.unwrap();
    insta::assert_snapshot!(host.asked().join("\n"));
}

#[tokio::test]
async fn every_action_of_a_handle_reaches_the_host_as_it_is_meant() {
    let host = Fake::default();
    let source = r#"
        let data = volume("data", #{ size: "1MiB" });
        let web = machine("web", #{ image: params.image });
        web.stop(); web.start(); web.restart();
        data.snapshot("monday"); data.restore("monday"); data.drop_snapshot("monday");
        data.resize(#{ size: "2MiB" });
    "#;
    run(&script(source), &host).await.unwrap();
    let acts: Vec<_> = host.asked().into_iter().filter(|a| a.contains(" act ")).collect();
    assert_eq!(
        acts,
        [
            r#"2 act web {"action":"stop"}"#,
            r#"3 act web {"action":"start"}"#,
            r#"4 act web {"action":"restart"}"#,
            r#"5 act data {"action":"snapshot","name":"monday"}"#,
            r#"6 act data {"action":"restore","name":"monday"}"#,
            r#"7 act data {"action":"drop_snapshot","name":"monday"}"#,
            r#"8 act data {"action":"resize","to":{"size":"2MiB"}}"#,
        ]
    );
    for (call, says) in
        [(r#"data.snapshot("../x")"#, "is not a name"), ("data.resize(#{})", "which field")]
    {
        let source = format!("let data = volume(\"data\", #{{ size: \"1MiB\" }}); {call};");
        let Err(Stop::Failed(failure)) = run(&script(&source), &Fake::default()).await else {
            panic!("{call} was taken")
        };
        assert_eq!(failure.code, Code::ScriptInvalid);
        assert!(failure.message.contains(says), "{failure}");
    }
}

fn broken() -> Fake {
    let failure = Failure::new(Code::ImageNotFound, "no image at /x").with_detail("ls says so");
    Fake { failing: BTreeMap::from([("web", failure)]), ..Fake::default() }
}

#[tokio::test]
async fn a_failure_of_the_host_keeps_its_code_and_gets_a_place() {
    let source = "let web = machine(\"web\", #{ image: params.image });\nlog(`${web.pid}`);\n";
    let failure = failed(run(&script(source), &broken()).await);
    insta::assert_snapshot!(shown(&failure));
}

#[tokio::test]
async fn a_script_can_catch_a_failure_of_the_host() {
    let source = r#"
        let web = machine("web", #{ image: params.image });
        try { web.pid } catch (e) { output("caught", `${e.code}: ${e.message}`); }
    "#;
    let evaluation = run(&script(source), &broken()).await.unwrap();
    assert_eq!(evaluation.outputs["caught"], json!("image_not_found: no image at /x"));
}

#[tokio::test]
async fn nothing_else_is_caught() {
    for source in [
        r#"try { fail("x") } catch { } output("after", 1);"#,
        r#"fn f() { fail("x") } try { f() } catch { } loop { try { f() } catch { } }"#,
        r#"try { volume("data", #{ size: params.missing }) } catch { } output("after", 1);"#,
        r#"try { loop { } } catch { } output("after", 1);"#,
    ] {
        let host = Fake::default();
        failed(run(&script(source), &host).await);
        assert_eq!(host.asked(), Vec::<String>::new(), "{source}");
    }
}

#[tokio::test]
async fn secrets_are_kept_out_of_what_is_said() {
    let host = Fake { secrets: BTreeMap::from([("db", "s3cr3t-word")]), ..Fake::default() };
    let source = r#"
        let word = secret("db");
        machine("web", #{ image: params.image, env: #{ PASSWORD: word } });
        log(`the word is ${word}`);
        output("word", #{ a: [word] });
        throw `bad ${word}`;
    "#;
    let failure = failed(run(&script(source), &host).await);
    let said = format!("{:?} {}", host.asked(), shown(&failure));
    assert!(said.contains("***") && !said.contains("s3cr3t-word"), "{said}");

    let source = r#"machine("web", #{ image: params.image, env: #{ P: secret("db") } });"#;
    let evaluation = run(&script(source), &host).await.unwrap();
    assert_eq!(evaluation.resources[0].spec["env"]["P"], json!("s3cr3t-word"));
}

#[tokio::test]
async fn a_database_is_waited_for_and_its_password_is_a_token() {
    let source = r#"
        let db = herodb("db", #{ size: "64MiB" });
        let at = `${db.address} ${db.port}`;
        machine("early", #{ image: params.image, env: #{ AT: at } });
        machine("late", #{ image: params.image, env: #{ URL: db.url, P: db.password } });
        log(db.url);
        output("url", db.url);
        output("keys", db.keys);
    "#;
    let host = Fake { statuses: BTreeMap::from([("db", json!({ "keys": 3 }))]), ..Fake::default() };
    let evaluation = run(&script(source), &host).await.unwrap();
    let asked: Vec<_> = host.asked().into_iter().map(|a| a.replace("***", "*")).collect();
    let order: Vec<_> =
        asked.iter().map(|a| a.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        order[..4],
        ["0 declare herodb", "1 declare machine", "read db", "2 declare machine"]
    );
    assert_eq!(order.iter().filter(|a| *a == "read db").count(), 1);

    let token = generated_token(&"1/demo/db".parse().unwrap());
    assert_eq!(evaluation.resources[0].spec["password"], json!(token));
    let env = &evaluation.resources[2].spec["env"];
    let address = resource_address(NODE.parse().unwrap(), &"1/demo/db".parse().unwrap());
    assert_eq!(env["P"], json!(token));
    assert_eq!(env["URL"], json!(format!("redis://:{token}@[{address}]:6379")));
    assert_eq!(evaluation.outputs["url"], json!(format!("redis://:***@[{address}]:6379")));
    assert_eq!(evaluation.outputs["keys"], json!(3));
    assert!(!asked.iter().any(|a| a.contains("log") && a.contains("generated:")), "{asked:?}");

    let clear = r#"let db = herodb("db", #{ size: "64MiB", password: "correct-horse-battery" });"#;
    let failure = failed(run(&script(clear), &Fake::default()).await);
    assert_eq!(failure.code, Code::InvalidSpec);
    assert!(failure.message.contains("secret(\"name\")"), "{failure:?}");
    assert!(!failure.message.contains("correct-horse"));
}

#[tokio::test]
async fn the_host_can_abort_and_finish_can_fail() {
    let declares = script(r#"volume("data", #{ size: "1MiB" }); output("x", 1);"#);
    let aborting = Fake { aborts: true, ..Fake::default() };
    assert!(matches!(run(&declares, &aborting).await, Err(Stop::Aborted)));
    let failing =
        Fake { finish: Some(Failure::new(Code::PoolFull, "the pool is full")), ..Fake::default() };
    assert_eq!(failed(run(&declares, &failing).await).code, Code::PoolFull);
}

#[tokio::test]
async fn cancelling_kills_the_child() {
    let host = Fake { stuck: ["web"].into(), ..Fake::default() };
    let sandboxes = sandboxes();
    let cancel = CancellationToken::new();
    let stuck = script(r#"let w = machine("web", #{ image: params.image }); w.pid"#);
    let evaluate = sandboxes.evaluate(&stuck, &host, cancel.clone());
    let watch = async {
        while !host.asked().contains(&"read web".to_owned()) {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(evaluate, watch);
    assert!(matches!(ended, Err(Stop::Aborted)));
    sandboxes.close().await;
}

#[tokio::test]
async fn the_same_script_asks_the_same() {
    let (first, second) = (Fake::default(), Fake::default());
    let source = include_str!("../../../scripts/fleet.rhai");
    let one = run(&script(source), &first).await.unwrap();
    assert_eq!(one, run(&script(source), &second).await.unwrap());
    assert_eq!(first.asked(), second.asked());
}
