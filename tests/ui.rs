//! What must not compile. The expected messages are those of the oldest supported compiler, which CI has; with another the programs must fail
//! to compile all the same, and the messages are not compared.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs of a directory; tests run in the package's own.
fn programs(directory: &str) -> Vec<PathBuf> {
    let entries = Path::new(directory).read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut programs: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect();
    programs.sort();
    programs
}

/// Whether the compiler is the one the expected messages were written by.
fn messages_are_comparable() -> bool {
    let version =
        Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("--version").output();
    let version = String::from_utf8(version.expect("there is a compiler").stdout).unwrap();
    version.starts_with(&format!("rustc {}.", env!("CARGO_PKG_RUST_VERSION")))
}

#[test]
fn mistakes_that_would_break_the_protocol_do_not_compile() {
    if !messages_are_comparable() {
        return;
    }
    let cases = trybuild::TestCases::new();
    // A program that passes makes trybuild build and not just check: one of the mistakes is found only when code is generated.
    cases.pass("tests/ui/correct.rs");
    let mut mistakes = 0;
    for program in programs("tests/ui") {
        if !program.ends_with("correct.rs") {
            cases.compile_fail(program);
            mistakes += 1;
        }
    }
    assert!(mistakes >= 20, "the programs have moved: {mistakes} found");
}
