//! The program ends well with each guard, and finds the undead argument without one.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undead_arguments"));
    let Output { status, stdout, stderr } = command.args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

#[test]
fn each_guard_keeps_every_argument_alive() {
    for guard in ["pins", "in-place", "by-value"] {
        let (code, said) = run(&["--guard", guard]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("EVERY ARGUMENT STAYED ALIVE, AND ONLY AS LONG AS THE CALL"), "{said}");
    }
}

#[test]
fn without_a_guard_the_undead_argument_is_caught_at_check_3() {
    let (code, said) = run(&["--fix-off"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("UNDEAD ARGUMENT, CAUGHT AT CHECK 3"), "{said}");
}

#[test]
fn an_unknown_argument_ends_with_two() {
    let (code, said) = run(&["--nonsense"]);
    assert_eq!(
        (code, &*said),
        (Some(2), "undead_arguments: unknown argument `--nonsense`; --help lists those there are\n")
    );
}
