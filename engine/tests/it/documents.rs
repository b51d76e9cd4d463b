//! What editors and people are shown is made from the engine, so a change of it is seen here.

use rhizome_engine::{definitions, reference};

#[test]
fn the_reference() {
    insta::assert_snapshot!(reference());
}

#[test]
fn the_definitions() {
    let text = definitions();
    for ours in
        ["fn volume(name: string, spec: map) -> Handle;", "fn machine(", "fn output(", "fn push("]
    {
        assert!(text.contains(ours), "{ours}");
    }
    for refused in ["fn sleep(", "fn eval(", "fn timestamp("] {
        assert!(!text.contains(refused), "{refused}");
    }
    let ours: Vec<_> = text
        .split("\n\n")
        .filter(|block| {
            ["fn machine(", "fn wait(", "fn get address("].iter().any(|f| block.contains(f))
        })
        .collect();
    insta::assert_snapshot!(ours.join("\n\n"));
}
