//! `rhizome check`: in the real sandbox.

use crate::harness::User;

#[test]
fn a_good_script() {
    let user = User::new();
    let file = user.write("good.rhai", "let data = volume(\"data\", #{ size: \"1GiB\" });\n");
    let (code, stdout, stderr) = user.run(&["check", file.to_str().unwrap()]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("good.rhai: no mistakes found"), "{stdout}");
}

#[test]
fn each_mistake_is_found_and_placed() {
    let user = User::new();
    for (script, code) in [
        ("let x = ;", "script_syntax_error"),
        ("volum(\"data\", #{ size: \"1GiB\" });", "script_invalid"),
        ("volume(\"data\", #{ size: \"1GiB\", colour: 1 });", "invalid_spec"),
        ("loop { }", "script_limit"),
    ] {
        user.write("bad.rhai", &format!("// first line\n{script}\n"));
        let (exit, report) = user.json(&["check", "bad.rhai"]);
        assert_eq!((exit, &report["ok"]), (1, &false.into()), "{script}");
        let finding = &report["files"][0]["findings"][0];
        assert_eq!(finding["code"], code, "{script}: {report}");
        assert!(finding["error"].as_str().unwrap().contains("bad.rhai"), "{finding}");

        let (exit, _, stderr) = user.run(&["check", "bad.rhai"]);
        assert_eq!(exit, 1);
        assert!(stderr.contains(&format!("code: {code}")), "{stderr}");
    }
}

#[test]
fn one_bad_file_of_several_fails_the_whole() {
    let user = User::new();
    user.write("good.rhai", "output(\"ok\", 1);");
    user.write("bad.rhai", "let");
    let (exit, report) = user.json(&["check", "good.rhai", "bad.rhai"]);
    assert_eq!(exit, 1);
    assert_eq!(report["files"][0]["findings"], serde_json::json!([]));
    assert_eq!(user.run(&["check", "good.rhai", "absent.rhai"]).0, 2);
    assert_eq!(user.run(&["check"]).0, 2);
}

#[test]
fn parameters_reach_the_script() {
    let user = User::new();
    user.write("p.rhai", "volume(params.name, #{ size: \"1GiB\" });");
    assert_eq!(user.run(&["check", "p.rhai", "--param", "name=data"]).0, 0);
    let (exit, report) = user.json(&["check", "p.rhai", "--param", "name=../x"]);
    assert_eq!(exit, 1, "{report}");
}

#[test]
fn the_api_for_editors_and_for_people() {
    let user = User::new();
    for command in ["definitions", "reference"] {
        let (code, stdout, _) = user.run(&[command]);
        assert_eq!(code, 0);
        for word in ["volume", "machine", "output"] {
            assert!(stdout.contains(word), "{command} does not speak of {word}");
        }
    }
}
