//! `plan` says what `deploy` then does, and data goes only where a policy gives it up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rhizome_guest::linux;
use rhizome_tests::{Answer, System};
use serde_json::{Value, json};

use crate::image::busybox;

const CHANGES: i32 = 10;
/// The example with a machine that is told the version, and so is another one each time.
const TOLD_THE_VERSION: &str = "herodb";

/// What becomes of each resource, in the words of a plan.
type Actions = BTreeMap<String, String>;

fn with<'a>(command: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    [&[command], options].concat()
}

fn rows(plan: &Value) -> &Vec<Value> {
    assert_eq!(plan["nodes"].as_array().map(Vec::len), Some(1), "{plan}");
    plan["nodes"][0]["resources"].as_array().unwrap()
}

fn foretold(plan: &Value) -> Actions {
    let text = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
    rows(plan).iter().map(|row| (text(row, "name"), text(row, "action"))).collect()
}

/// The same, from what the events of the newest version say was done.
fn done(system: &System, name: &str, version: &Value) -> Actions {
    let events = system.rhizome(&["events", name]).ok().stdout;
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ours = events.filter(|e| e["version"] == *version);
    // After that the reconciler goes on.
    let ours = ours.take_while(|e| !(e["event"] == "phase" && e["phase"] == "ready"));
    let (mut made, mut gone) = (Actions::new(), BTreeSet::new());
    for event in ours {
        let Some(resource) = event["resource"].as_str().map(str::to_owned) else { continue };
        match (event["event"].as_str(), event["done"].as_str()) {
            (Some("ready"), done) => {
                let action = match done {
                    Some("created") => "create",
                    Some("updated") => "update",
                    Some("replaced") => "replace",
                    Some("unchanged") => "unchanged",
                    other => panic!("{resource}: {other:?}"),
                };
                assert_eq!(made.insert(resource, action.into()), None, "made twice");
            }
            (Some("resource_deleted"), _) => drop(gone.insert(resource)),
            _ => {}
        }
    }
    for resource in gone {
        // One of another kind is deleted before the new one is made.
        let action = if made.contains_key(&resource) { "replace" } else { "delete" };
        made.insert(resource, action.into());
    }
    made
}

/// Plans, deploys, and compares what was said with what was done.
#[track_caller]
fn step(system: &System, name: &str, options: &[&str]) -> Actions {
    let before = system.kernel();
    let answer = system.rhizome(&with("plan", options));
    let plan = answer.json();
    assert_eq!(before, system.kernel(), "a plan changes nothing");
    let deployed = system.rhizome(&with("deploy", options)).ok().json();
    assert_eq!(plan["version"], deployed["version"]);
    let done = done(system, name, &deployed["version"]);
    let mut said = foretold(&plan);
    let complete = plan["nodes"][0]["complete"] == true;
    if !complete {
        let known: BTreeSet<_> = said.keys().cloned().collect();
        said.extend(
            done.iter().filter(|(n, _)| !known.contains(*n)).map(|(n, a)| (n.clone(), a.clone())),
        );
    }
    assert_eq!(said, done, "{plan:#}\n{}", system.plain(&["events", name]).stdout);
    let changes = !complete || said.values().any(|action| action != "unchanged");
    assert_eq!(answer.code, if changes { CHANGES } else { 0 }, "{plan:#}");
    addresses(&plan, &deployed);
    said
}

/// What was foretold of addresses is where the machines are.
#[track_caller]
fn addresses(plan: &Value, deployed: &Value) {
    let stays = |row: &&Value| {
        row["action"] != "delete" && row["was"].as_str().is_none_or(|was| row["kind"] == was)
    };
    for row in rows(plan).iter().filter(stays) {
        let resources = deployed["resources"].as_array().unwrap();
        let made = resources.iter().find(|r| r["name"] == row["name"]).unwrap();
        assert_eq!(row.get("address"), made["status"].get("address"), "{row}\n{made}");
    }
}

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e == "rhai")).collect();
    scripts.sort();
    assert!(scripts.len() >= 4);
    scripts
}

#[test]
fn every_example_does_what_its_plan_says() {
    let system = System::start();
    let image = format!("image={}", busybox(&system.state));
    let guest = linux(&system.state);
    let boots = guest.as_ref().map(|guest| {
        let url = |name: &str, path: &Path| format!("{name}=file://{}", path.display());
        [url("kernel", &guest.kernel), url("initramfs", &guest.initramfs)]
    });
    // Steps of those that change with their parameters; what fails is tried in `lifecycle`.
    let steps: BTreeMap<&str, Vec<&str>> = [
        ("fleet", vec!["replicas=2", "replicas=3", "replicas=1"]),
        (
            "plan",
            vec![
                "size=16MiB",
                "size=32MiB memory=64MiB",
                "size=32MiB greeting=Servus",
                "size=32MiB greeting=Servus archive=false",
            ],
        ),
    ]
    .into();
    for script in scripts() {
        let name = script.file_stem().unwrap().to_str().unwrap();
        let path = script.to_str().unwrap();
        let mut base =
            vec![path, "--name", name, "--param", &image, "--allow-data-loss", "archive"];
        match &boots {
            Some(boots) => base.extend(boots.iter().flat_map(|param| ["--param", param])),
            None if name == "vm" => continue,
            None => {}
        }
        for params in steps.get(name).cloned().unwrap_or_else(|| vec![""]) {
            let mut options = base.clone();
            options.extend(params.split_whitespace().flat_map(|p| ["--param", p]));
            // Twice: the second time nothing is to be done.
            step(&system, name, &options);
            let again = step(&system, name, &options);
            let rests = again.values().all(|action| action == "unchanged");
            assert!(rests || name == TOLD_THE_VERSION, "{name}: {again:?}");
        }
        system.rhizome(&["delete", name]).ok();
    }
    assert!(system.kernel().machines().is_empty());
}

/// A stream of numbers that a seed repeats (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// A version: each name is there or not, `x` as a volume or as a machine.
fn generated(numbers: &mut Numbers, image: &str) -> String {
    let mut source = String::new();
    let mut volumes = Vec::new();
    for name in ["v0", "v1", "v2", "x"] {
        if numbers.below(3) > 0 && (name != "x" || numbers.below(2) == 0) {
            let size = numbers.pick(&["8MiB", "16MiB", "24MiB"]);
            source
                .push_str(&format!("let {name} = volume(\"{name}\", #{{ size: \"{size}\" }});\n"));
            volumes.push(name);
        }
    }
    for name in ["m0", "m1", "x"] {
        if volumes.contains(&name) || numbers.below(3) == 0 {
            continue;
        }
        let mounts: Vec<_> = volumes
            .iter()
            .filter(|_| numbers.below(4) == 0)
            .map(|v| format!("#{{ volume: {v}, path: \"/{v}\" }}"))
            .collect();
        source.push_str(&format!(
            "machine(\"{name}\", #{{ image: \"{image}\", cpu: 0.05, disk: \"8MiB\",
                memory: \"{}\", pids: {}, restart: \"{}\", env: #{{ A: \"{}\" }}, mounts: [{}],
                command: [\"/bin/sleep\", \"100000\"] }});\n",
            numbers.pick(&["16MiB", "24MiB"]),
            numbers.pick(&["32", "64"]),
            numbers.pick(&["always", "on_failure"]),
            numbers.pick(&["a", "a", "a", "b"]),
            mounts.join(", "),
        ));
    }
    source
}

#[test]
fn generated_versions_do_what_their_plans_say() {
    let seed = std::env::var("RHIZOME_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("RHIZOME_SEED={seed}");
    let mut numbers = Numbers(seed);
    let system = System::start();
    let image = busybox(&system.state);
    let mut seen = BTreeSet::new();
    let mut current: Option<String> = None;
    for version in 0..12 {
        if let (0, Some(current)) = (numbers.below(3), &current) {
            // One that fails is as if it had never been.
            let bad = "machine(\"bad\", #{ image: \"file:///nowhere.tar\" });";
            let source = format!("{}{bad}", generated(&mut numbers, &image));
            let script = system.script(&format!("bad{version}.rhai"), &source);
            system.rhizome(&["deploy", &script, "--name", "app"]).refused(1, "image_not_found");
            let back = system.rhizome(&["plan", current, "--name", "app"]);
            assert_eq!(back.code, 0, "{}", back.stdout);
        }
        let source = generated(&mut numbers, &image);
        let script = system.script(&format!("v{version}.rhai"), &source);
        let options = [script.as_str(), "--name", "app"];
        seen.extend(step(&system, "app", &options).into_values());
        let again = system.rhizome(&with("plan", &options));
        assert_eq!((again.code, &again.json()["changes"]), (0, &json!(false)), "{}", again.stdout);
        current = Some(script);
    }
    println!("seen: {seen:?}");
    assert!(seen.len() >= 4, "{seen:?}");
}

#[test]
fn data_goes_only_where_the_policy_gives_it_up() {
    let system = System::start();
    let image = busybox(&system.state);
    let writes = |volumes: &[&str]| -> String {
        let declare = |v: &&str| {
            format!(
                "let v = volume(\"{v}\", #{{ size: \"8MiB\" }});
                 machine(\"{v}-writer\", #{{ image: \"{image}\", memory: \"16MiB\", cpu: 0.05,
                    restart: \"never\", mounts: [#{{ volume: v, path: \"/v\" }}],
                    command: [\"/bin/sh\", \"-c\", \"echo precious > /v/file\"] }}).wait();\n"
            )
        };
        volumes.iter().map(declare).collect()
    };
    let empty = "volume(\"empty\", #{ size: \"8MiB\" });\n";
    let first = system.script("1.rhai", &format!("{empty}{}", writes(&["a", "b"])));
    system.rhizome(&["deploy", &first, "--name", "app"]).ok();
    let before = system.kernel();

    // Without `a` and `empty`, and with a machine called `b`: two would lose what they hold.
    let b = format!(
        "machine(\"b\", #{{ image: \"{image}\", memory: \"16MiB\", cpu: 0.05,
            command: [\"/bin/sleep\", \"100000\"] }});"
    );
    let next = system.script("2.rhai", &b);
    let base = [next.as_str(), "--name", "app"];
    let plan = system.rhizome(&with("plan", &base)).refused(1, "data_loss");
    let said = foretold(&plan.json());
    assert_eq!((said["b"].as_str(), said["empty"].as_str()), ("replace", "delete"), "{said:?}");
    let refused = system.rhizome(&with("deploy", &base)).refused(3, "data_loss").json();
    let message = refused["error"].as_str().unwrap();
    for word in ["a, b", "\"allow_data_loss\": [\"a\", \"b\"]", "--allow-data-loss a"] {
        assert!(message.contains(word), "{message}");
    }
    let one = [&base[..], &["--allow-data-loss", "a"]].concat();
    let refused = system.rhizome(&with("deploy", &one)).refused(3, "data_loss").json();
    assert!(!refused["error"].as_str().unwrap().contains("a, b"), "{refused}");
    assert_eq!(system.kernel(), before, "a refusal changes nothing");

    // What cannot be found out in time counts as data.
    let keeps = system.script("keeps.rhai", &writes(&["a", "b"]));
    let keeps = ["--name", "app", &keeps];
    assert_eq!(system.rhizome(&with("plan", &keeps)).code, CHANGES);
    system.rhizome(&["runners", "pause", "volume"]).ok();
    let unknown = system.rhizome(&with("plan", &keeps)).refused(1, "data_loss").json();
    assert!(unknown["error"].as_str().unwrap().contains("\"empty\""), "{unknown}");
    system.rhizome(&["runners", "resume", "volume"]).ok();

    // Nor does it go where no plan can foresee that: the version fails, and nothing is lost.
    let unseen = system.script("unseen.rhai", &format!("{empty}{}{b}", writes(&["a"])));
    let unseen = ["--name", "app", &unseen];
    assert_eq!(system.rhizome(&with("plan", &unseen)).code, CHANGES);
    assert_ne!(system.rhizome(&with("deploy", &unseen)).code, 0);
    let events = system.plain(&["events", "app"]).ok().stdout;
    assert!(events.contains("(data_loss)"), "{events}");
    assert_eq!(system.kernel().volumes, before.volumes);
    assert_eq!(system.kernel().machines(), before.machines());

    let both = [&one[..], &["--allow-data-loss", "b"]].concat();
    step(&system, "app", &both);
    assert!(system.kernel().volumes.is_empty(), "{:?}", system.kernel().volumes);

    // What a version made itself goes when it fails, and a delete is a delete.
    let fails = system.script("3.rhai", &format!("{b}{}fail(\"no\");", writes(&["c"])));
    system.rhizome(&["deploy", &fails, "--name", "app"]).refused(1, "script_failed");
    assert!(system.kernel().volumes.is_empty(), "{:?}", system.kernel().volumes);
    let last = system.script("4.rhai", &format!("{b}{}", writes(&["d"])));
    system.rhizome(&["deploy", &last, "--name", "app"]).ok();
    system.rhizome(&["delete", "app"]).ok();
    let kernel = system.kernel();
    assert!(kernel.volumes.is_empty() && kernel.machines().is_empty(), "{kernel:#?}");
}

#[test]
fn nothing_shrinks_below_what_it_holds_and_the_plan_says_so() {
    let system = System::start();
    let image = busybox(&system.state);
    let sized = |volume: u32, disk: u32, database: u32| {
        let source = format!(
            "let v = volume(\"v\", #{{ size: \"{volume}MiB\" }});
            machine(\"m\", #{{ image: \"{image}\", memory: \"32MiB\", cpu: 0.05, disk: \"{disk}MiB\",
                mounts: [#{{ volume: v, path: \"/v\" }}], command: [\"/bin/sleep\", \"100000\"] }});
            herodb(\"db\", #{{ size: \"{database}MiB\", memory: \"64MiB\" }});"
        );
        system.script(&format!("{volume}-{disk}-{database}.rhai"), &source)
    };
    let fills = |files: &str| {
        let write = format!("for f in {files}; do dd if=/dev/urandom of=$f bs=1M count=12; done");
        system.rhizome(&["exec", "app/m", "--", "/bin/sh", "-c", &write]).ok();
    };
    step(&system, "app", &[&sized(64, 64, 512), "--name", "app"]);
    fills("/v/file /file");

    // Each at once after it was written: what is not yet on disk counts, too.
    let before = system.kernel();
    for (script, what) in [
        (sized(8, 64, 512), "'v': the volume holds 12"),
        (sized(64, 8, 512), "'m': the machine's disk holds 12"),
    ] {
        let plan = system.rhizome(&["plan", &script, "--name", "app"]).refused(1, "below_use");
        assert!(plan.json()["error"].as_str().unwrap().contains(what), "{}", plan.stdout);
        let deploy = system.rhizome(&["deploy", &script, "--name", "app"]);
        let said = deploy.refused(3, "below_use").json();
        assert!(said["error"].as_str().unwrap().contains(what), "{said}");
    }
    assert_eq!(system.kernel(), before, "a refusal changes nothing");

    system.rhizome(&["exec", "app/m", "--", "/bin/rm", "/v/file", "/file"]).ok();
    let smaller = sized(8, 8, 256);
    assert_eq!(system.rhizome(&["plan", &smaller, "--name", "app"]).code, CHANGES);
    step(&system, "app", &[&smaller, "--name", "app"]);
    system.rhizome(&["delete", "app"]).ok();
}

#[test]
fn a_plan_names_fields_refusals_and_no_secret() {
    let system = System::start();
    let image = busybox(&system.state);
    let source = format!(
        "machine(\"m\", #{{ image: \"{image}\", memory: params.memory, cpu: 0.05,
            env: #{{ P: `<${{secret(params.which)}}>` }}, command: [\"/bin/sleep\", \"100000\"] }});
         output(\"token\", secret(params.which));"
    );
    let script = system.script("s.rhai", &source);
    let options = |memory: &str, which: &str| -> Vec<String> {
        let memory = format!("memory={memory}");
        let which = format!("which={which}");
        let all = [
            &script,
            "--name",
            "app",
            "--param",
            &memory,
            "--param",
            &which,
            "--secret",
            "one=tr0ub4dor",
            "--secret",
            "two=c0rrect",
        ];
        all.map(str::to_owned).to_vec()
    };
    let run = |command: &str, memory: &str, which: &str| -> Answer {
        let options = options(memory, which);
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let answer = system.rhizome(&with(command, &options));
        assert!(
            !answer.stdout.contains("tr0ub4dor") && !answer.stdout.contains("sealed"),
            "{}",
            answer.stdout
        );
        answer
    };
    let first = run("plan", "16MiB", "one");
    assert_eq!(first.code, CHANGES);
    assert_eq!(first.json()["nodes"][0]["outputs"]["token"], "***");
    system
        .rhizome(&with(
            "deploy",
            &options("16MiB", "one").iter().map(String::as_str).collect::<Vec<_>>(),
        ))
        .ok();
    assert_eq!(run("plan", "16MiB", "one").code, 0, "sealed anew is not changed");

    let grown = run("plan", "24MiB", "one");
    assert_eq!(
        rows(&grown.json())[0]["fields"],
        json!([{ "path": "memory", "old": 16 << 20, "new": 24 << 20 }])
    );
    let other = run("plan", "16MiB", "two").json();
    let row = &rows(&other)[0];
    assert_eq!(
        (&row["action"], &row["reason"]),
        (&json!("replace"), &json!("env cannot change in place"))
    );
    assert_eq!(
        row["fields"],
        json!([{ "path": "env.P", "old": "<(secret one)>", "new": "<(secret two)>" }])
    );
    let refused = run("plan", "1000GiB", "one").refused(1, "insufficient_capacity");
    assert_eq!(refused.json()["nodes"][0]["code"], "insufficient_capacity");

    let shown = system.plain(&[
        "plan",
        &script,
        "--name",
        "app",
        "--param",
        "memory=24MiB",
        "--param",
        "which=one",
        "--secret",
        "one=tr0ub4dor",
    ]);
    assert!(shown.stdout.contains("memory: 16.0 MiB → 24.0 MiB"), "{}", shown.stdout);
}

#[test]
fn a_secret_that_changes_is_a_change() {
    let system = System::start();
    let image = busybox(&system.state);
    let source = format!(
        "machine(\"m\", #{{ image: \"{image}\", memory: \"16MiB\", cpu: 0.05,
            env: #{{ P: secret(\"one\") }}, command: [\"/bin/sleep\", \"100000\"] }});"
    );
    let script = system.script("s.rhai", &source);
    let steps = [("first", "create"), ("first", "unchanged"), ("second", "replace")];
    for (secret, action) in steps {
        let secret = format!("one={secret}");
        let options = [script.as_str(), "--name", "app", "--secret", &secret];
        assert_eq!(step(&system, "app", &options), Actions::from([("m".into(), action.into())]));
    }
    let plan = ["plan", &script, "--name", "app", "--secret", "one=third"];
    let plan = system.rhizome(&plan).json();
    assert_eq!(
        rows(&plan)[0]["fields"],
        json!([{ "path": "env.P", "old": "(secret one)", "new": "(secret one, changed)" }])
    );
}

#[test]
fn each_node_has_a_plan_of_its_own() {
    let system = System::start_with(&["--nodes", "2"]);
    let image = busybox(&system.state);
    let source = format!(
        "let env = #{{}};
         for peer in peers {{ env[`PEER_${{peer.node}}`] = `${{peer.address}}`; }}
         machine(`on-${{node.id}}`, #{{ image: \"{image}\", memory: \"16MiB\", cpu: 0.05, env: env,
            command: [\"/bin/sleep\", \"100000\"] }});"
    );
    let script = system.script("two.rhai", &source);
    let options = [script.as_str(), "--name", "app", "--node", "1", "--node", "2"];
    let first = system.rhizome(&with("plan", &options));
    assert_eq!(first.code, CHANGES, "{}", first.stdout);
    let nodes = first.json()["nodes"].as_array().unwrap().clone();
    let names: Vec<_> = nodes.iter().map(|n| n["resources"][0]["name"].clone()).collect();
    assert_eq!(names, ["on-1", "on-2"]);
    system.rhizome(&with("deploy", &options)).ok();
    // The peers' addresses are those that the nodes themselves found.
    let again = system.rhizome(&with("plan", &options));
    assert_eq!(again.code, 0, "{}", again.stdout);
}

#[test]
fn without_a_server_it_is_planned_from_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |args: &[&str]| -> Answer {
        let output = rhizome_tests::command()
            .args(["--json", "--state"])
            .arg(folder.path())
            .arg("plan")
            .args(args)
            .output()
            .unwrap();
        output.into()
    };
    for script in scripts() {
        let path = script.to_str().unwrap();
        let files = ["image=file:///i", "kernel=file:///k", "initramfs=file:///r"];
        let params: Vec<_> = files.iter().flat_map(|file| ["--param", file]).collect();
        let answer = plan(&[&[path], &params[..]].concat());
        let rows = rows(&answer.json()).clone();
        assert!(rows.iter().all(|row| row["action"] == "create"), "{}", answer.stdout);
        let complete = answer.json()["nodes"][0]["complete"] == true;
        let nothing = rows.is_empty() && complete;
        assert_eq!(answer.code, if nothing { 0 } else { CHANGES }, "{}", answer.stdout);
        plan(&[path, "--node", "1"]).refused(1, "unavailable");
    }
    let key = folder.path().join("key");
    let key = key.to_str().unwrap();
    let made = rhizome_tests::command().args(["--key", key, "key", "new"]).output().unwrap();
    Answer::from(made).ok();
    let hello = scripts().into_iter().find(|s| s.ends_with("hello.rhai")).unwrap();
    let away = ["--key", key, "--coord", "http://127.0.0.1:1", hello.to_str().unwrap()];
    assert_eq!(plan(&away).code, 0);
    plan(&[&away[..], &["--node", "1"]].concat()).refused(1, "unavailable");
    let broken = folder.path().join("broken.rhai");
    std::fs::write(&broken, "let = 1;").unwrap();
    plan(&[broken.to_str().unwrap()]).refused(1, "script_syntax_error");
    plan(&["/nowhere.rhai"]).refused(2, "bad_request");
}
