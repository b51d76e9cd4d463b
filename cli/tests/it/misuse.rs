//! Exit codes, and errors as people and programs see them.

use crate::harness::User;

const NOWHERE: &str = "http://127.0.0.1:1";

#[test]
fn what_makes_no_sense_is_exit_code_2() {
    let user = User::with_key();
    user.write("a.rhai", "output(\"ok\", 1);");
    for args in [
        &["fly"][..],
        &[],
        &["deploy", "a.rhai"],
        &["deploy", "absent.rhai", "--name", "a", "--coord", NOWHERE],
        &["deploy", "a.rhai", "--name", "../x", "--coord", NOWHERE],
        &["deploy", "a.rhai", "--name", "a", "--node", "0", "--coord", NOWHERE],
        &["deploy", "a.rhai", "--name", "a", "--node", "1", "--count", "2", "--coord", NOWHERE],
        &["deploy", "a.rhai", "--name", "a", "--param", "x", "--coord", NOWHERE],
        &["deploy", "a.rhai", "--name", "a", "--expires", "31d", "--coord", NOWHERE],
        &[
            "deploy", "a.rhai", "--name", "a", "--secret", "k=-", "--secret", "l=-", "--coord",
            NOWHERE,
        ],
        &["exec", "demo/web"],
        &["logs", "demo"],
        &["list", "--coord", "127.0.0.1:1"],
        &["job"],
        &["job", "not-an-id"],
        &["job", "retry"],
        &["runners", "scale", "volume"],
        &["runners", "scale"],
        &["limits", "set", "somebody"],
        &["limits", "set", "7", "--burst", "3"],
        &["list", "--log", "a=b=c", "--coord", NOWHERE],
    ] {
        let (code, stdout, stderr) = user.run(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(!stderr.is_empty() && !stderr.contains("error: error:"), "{args:?}: {stderr}");
    }
}

#[test]
fn who_cannot_be_reached_is_exit_code_4() {
    let user = User::with_key();
    user.write("a.rhai", "output(\"ok\", 1);");
    user.write("e.json", "{}");
    for args in [
        &["list"][..],
        &["show", "demo"],
        &["events", "demo", "-f"],
        &["logs", "demo/web"],
        &["exec", "demo/web", "--", "true"],
        &["delete", "demo"],
        &["nodes"],
        &["node", "1"],
        &["queues"],
        &["queues", "--dead", "machine"],
        &["job", "0123456789abcdef0123456789abcdef"],
        &["job", "retry", "0123456789abcdef0123456789abcdef", "--node", "1"],
        &["runners"],
        &["runners", "scale", "volume=3", "--node", "1"],
        &["runners", "pause"],
        &["limits"],
        &["limits", "set", "default", "--rate", "0.5"],
        &["deploy", "a.rhai", "--name", "demo"],
        &["document", "a.rhai", "--name", "demo"],
        &["submit", "e.json"],
        &["submit", "e.json", "--detach"],
    ] {
        let (code, error) = user.json(&[&["--coord", NOWHERE], args].concat());
        assert_eq!((code, &error["code"]), (4, &"unavailable".into()), "{args:?}: {error}");
        let message = error["error"].as_str().unwrap();
        assert!(message.contains("cannot reach coord at http://127.0.0.1:1"), "{message}");
    }
    let (code, error) = user.json(&["account", "register", "--ledger", NOWHERE]);
    assert_eq!((code, &error["code"]), (4, &"unavailable".into()));
}

#[test]
fn a_bad_script_is_refused_before_anybody_is_asked() {
    let user = User::with_key();
    user.write("bad.rhai", "let x = ;\n");
    let (code, error) = user.json(&["deploy", "bad.rhai", "--name", "demo", "--coord", NOWHERE]);
    assert_eq!((code, &error["code"]), (3, &"script_syntax_error".into()), "{error}");
    assert!(error["detail"].as_str().unwrap().contains("let x = ;"));
}

#[test]
fn claps_own_errors_are_json_too() {
    let user = User::new();
    let (code, error) = user.json(&["deploy"]);
    assert_eq!((code, &error["code"]), (2, &"bad_request".into()));
}

#[test]
fn every_command_has_help() {
    let user = User::new();
    let (code, help, _) = user.run(&["--help"]);
    assert_eq!(code, 0);
    let commands = help.split_once("Commands:").unwrap().1.split_once("\n\n").unwrap().0;
    let names = commands.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    let names: Vec<_> = names.filter_map(|l| l.split_whitespace().next()).collect();
    assert!(names.len() >= 19, "{names:?}");
    for name in names.into_iter().filter(|n| *n != "help") {
        let (code, help, _) = user.run(&[name, "--help"]);
        assert!(code == 0 && help.contains("Example"), "{name}: {help}");
    }
}
