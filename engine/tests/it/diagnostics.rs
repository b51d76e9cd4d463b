//! What a deployer reads when something is wrong.

use rhizome_model::Code;

use crate::support::{failure, script, shown};

async fn diagnosed(source: &str) -> String {
    shown(&failure(&script(source)).await)
}

#[tokio::test]
async fn mistakes_and_what_is_said_of_them() {
    let mut all = Vec::new();
    for source in [
        "let a = 1;\nlet b = (1 + ;",
        "let s = \"open",
        "let web = machin(\"web\", #{ image: params.image });",
        "volume(\"data\");",
        "volume(\"data\", #{ size: \"1GiB\" });\nvolumee(\"x\", #{});\nlet n = nod.id;",
        "let counter = 1;\nlog(`${countr}`);",
        "machine(\"web\", #{\n    image: params.image,\n    memroy: \"1GiB\",\n});",
        "machine(\"web\", #{ image: params.image, mounts: [#{ volume: \"a\" }] });",
        "machine(\"web\", #{ image: params.image, restart: \"alway\" });",
        "machine(\"web\", #{\n    image: params.image,\n    memory: \"a lot\",\n});",
        "machine(\"web\", #{\n    image: params.image,\n    memory: \"1KiB\",\n});",
        "machine(\"web\", #{ image: params.imgae });",
        "let spec = #{ image: params.image, cpus: 1 };\nmachine(\"web\", spec);",
        "volume(\"../etc\", #{ size: \"1GiB\" });",
        "let n = \"Web\"; volume(n, #{ size: \"1GiB\" });",
        "volume(\"data\", #{ size: \"1GiB\" });\n\nvolume(\"data\", #{ size: \"1GiB\" });",
        "volume(\"data\", #{ size: \"1GiB\" });\nmachine(\"web\", #{\n    image: params.image,\n    \
         mounts: [#{ volume: \"dta\", path: \"/d\" }],\n});",
        "machine(\"a\", #{ image: params.image });\nmachine(\"b\", #{ image: params.image, \
         mounts: [#{ volume: \"a\", path: \"/d\" }] });",
        "machine(\"b\", #{ image: params.image, mounts: [#{ volume: \"data\", path: \"/d\" }] });",
        "let d = volume(\"data\", #{ size: \"1GiB\" });\nlog(`${d.adress}`);",
        "let w = machine(\"w\", #{ image: params.image });\nlog(w.adress);",
        "volume(\"data\", #{ size: || 1 });",
        "volume(\"data\", 5);",
        "fn check(n) {\n    if n > 2 { fail(\"too many\"); }\n}\ncheck(3);",
        "let a = [1, 2];\n\ta[7];",
        "fn f(a) {\n    a / 0\n}\nlog(f(1));",
        "throw \"own words\";",
        "let a = #{} + 1;",
        "sleep(5);",
        "import \"x\" as x;",
        "let match = 1;",
    ] {
        all.push(format!("{source}\n---\n{}", diagnosed(source).await));
    }
    insta::assert_snapshot!(all.join("\n=====\n"));
}

#[tokio::test]
async fn all_static_findings_are_in_the_detail() {
    let failure = failure(&script("foo();\nbar();\nif false { baz() }")).await;
    assert_eq!(failure.code, Code::ScriptInvalid);
    let detail = failure.detail.unwrap();
    for name in ["foo", "bar", "baz"] {
        assert!(detail.contains(&format!("there is no function `{name}`")), "{detail}");
    }
}

#[tokio::test]
async fn functions_that_are_there_are_not_refused() {
    let source = r#"
        fn twice(n) { n * 2 }
        fn shout() { this.to_upper() }
        let tools = #{ add: |a, b| a + b };
        let word = "a";
        word.shout();
        output("a", [twice(2), tools.add(1, 2), 5.twice(), Fn("twice").call(4)]);
        output("b", [3, 1].sort() == () && "x".contains("x") && type_of(1) == "i64");
        output("c", [1, 2, 3].filter(|n| n > 1).reduce(|a, b| (a ?? 0) + b));
        switch 3 { 1 => log("one"), _ if is_def_fn("twice", 1) => log("other") }
    "#;
    let ended = crate::support::run(&script(source), &crate::support::Fake::default()).await;
    let message = format!("{ended:?}");
    assert!(!message.contains("there is no function"), "{message}");
}
