//! `rhizome key`.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::harness::{User, WORDS, WORDS_KEY, outcome};

#[test]
fn a_new_key_is_private_and_never_replaced() {
    let user = User::new();
    let (code, made) = user.json(&["key", "new"]);
    assert_eq!(code, 0);
    let file = user.path(".config/rhizome/key");
    assert_eq!(made["path"], file.to_str().unwrap());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let folder = std::fs::metadata(file.parent().unwrap()).unwrap();
    assert_eq!(folder.permissions().mode() & 0o077, 0);

    let secret = std::fs::read_to_string(&file).unwrap();
    let (code, stdout, stderr) = user.run(&["key", "new"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("exists and is not replaced"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), secret);
    assert!(!stdout.contains(secret.trim()) && !made.to_string().contains(secret.trim()));

    let (code, shown) = user.json(&["key", "show"]);
    assert_eq!((code, &shown), (0, &made));
}

#[test]
fn words_are_shown_once_and_bring_the_key_back() {
    let user = User::new();
    let (code, stdout, stderr) = user.run(&["key", "new", "--words"]);
    assert_eq!(code, 0);
    let words = stderr.lines().last().unwrap();
    assert_eq!(words.split(' ').count(), 24);
    assert!(!stdout.contains(words));
    let (_, made) = user.json(&["key", "show"]);

    let other = User::new();
    other.rhizome(&["key", "import", "--words"]).write_stdin(words).assert().success();
    assert_eq!(other.json(&["key", "show"]).1["key"], made["key"]);
}

#[test]
fn words_of_the_registrars_client() {
    let user = User::with_key();
    let (_, shown) = user.json(&["key", "show"]);
    assert_eq!(shown["key"], WORDS_KEY);
    assert_eq!(shown["mycelium_address"], "565:9683:6688:38f:1e8d:8639:bd7e:f416");
}

#[test]
fn words_that_are_none_are_refused_and_not_repeated() {
    let user = User::new();
    let wrong = WORDS.replace("walk", "wolk");
    let (code, stdout, stderr) =
        outcome(user.rhizome(&["key", "import", "--words"]).write_stdin(wrong));
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("word 12") && !stderr.contains("curtain"), "{stderr}");
    assert!(!user.path(".config/rhizome/key").exists());
}

#[test]
fn openssh_keys_plain_and_encrypted() {
    for passphrase in ["", "open sesame"] {
        let user = User::new();
        let file = user.path("id_ed25519");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-a", "1", "-C", "us", "-N", passphrase, "-f"])
            .arg(&file)
            .status();
        match made {
            Ok(status) => assert!(status.success()),
            Err(e) => {
                // The fixed key below runs everywhere.
                println!("skipped: ssh-keygen is not here ({e})");
                return;
            }
        }
        let mut import = user.rhizome(&["key", "import", file.to_str().unwrap()]);
        let (code, stdout, stderr) = outcome(import.env("RHIZOME_PASSPHRASE", passphrase));
        assert_eq!(code, 0, "{stderr}");
        let public = std::fs::read_to_string(file.with_extension("pub")).unwrap();
        let public = public.rsplit_once(' ').unwrap().0;
        assert!(stdout.contains(public), "{stdout}\n{public}");
    }
}

/// Made by `ssh-keygen -t ed25519`; a key of tests, used for nothing else.
const OPENSSH: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
    b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
    QyNTUxOQAAACBUTbB83EFy9kBnl4Xij+ip3cZIbo85NkJNfAty3pD1TgAAAIiID5buiA+W\n\
    7gAAAAtzc2gtZWQyNTUxOQAAACBUTbB83EFy9kBnl4Xij+ip3cZIbo85NkJNfAty3pD1Tg\n\
    AAAEAm/YGy2zVyBD93Qq/tYdGresI1eEZ3zCQuRPsRHdqGXVRNsHzcQXL2QGeXheKP6Knd\n\
    xkhujzk2Qk18C3LekPVOAAAABHRlc3QB\n\
    -----END OPENSSH PRIVATE KEY-----\n";
const OPENSSH_KEY: &str = "544db07cdc4172f640679785e28fe8a9ddc6486e8f3936424d7c0b72de90f54e";

#[test]
fn an_openssh_key_from_standard_input() {
    let user = User::new();
    let mut import = user.rhizome(&["key", "import", "-"]);
    let (code, stdout, stderr) = outcome(import.write_stdin(OPENSSH));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains(OPENSSH_KEY));
}

#[test]
fn what_is_no_key_is_refused() {
    let user = User::new();
    let file = user.write("no-key", "hello");
    let (code, _, stderr) = user.run(&["key", "import", file.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(stderr.contains("not an OpenSSH private key"), "{stderr}");
    assert_eq!(user.run(&["key", "import"]).0, 2);
    let (code, _, stderr) = user.run(&["key", "show"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("rhizome key new"), "{stderr}");
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let user = User::with_key();
    let file = user.path(".config/rhizome/key");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, _, stderr) = user.run(&["key", "show"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("chmod 600"), "{stderr}");
}
