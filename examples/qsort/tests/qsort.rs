//! The program sorts, and says what it does not know.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qsort"));
    let Output { status, stdout, stderr } = command.args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

#[test]
fn strings_are_sorted_while_they_move() {
    let (code, said) = run(&["--count", "2000", "--collect-every", "500"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.starts_with("sorted 2000 managed strings with libc's qsort; Rust's sort agrees\n"),
        "{said}"
    );
}

#[test]
fn a_bad_number_ends_with_two() {
    let (code, said) = run(&["--count", "0"]);
    assert_eq!((code, &*said), (Some(2), "qsort: --count takes a number from 1 to 4294967295, not `0`\n"));
}
