//! What must not compile. The expected messages are those of one compiler, which the gate has. With another, nothing
//! is compared.
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

/// The compiler that the expected messages were written by.
const WRITTEN_BY: &str = "rustc 1.95.";

/// Set in the gate: see `tests/foreign/build.rs`.
const LEAVE_NOTHING_OUT: &str = "REENTRY_LEAVE_NOTHING_OUT";

/// Whether the compiler is the one the expected messages were written by.
fn messages_are_comparable() -> bool {
    let version =
        Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("--version").output();
    let version = String::from_utf8(version.expect("there is a compiler").stdout).unwrap();
    version.starts_with(WRITTEN_BY)
}

#[test]
fn mistakes_that_would_break_the_protocol_do_not_compile() {
    if !messages_are_comparable() {
        assert!(std::env::var_os(LEAVE_NOTHING_OUT).is_none(), "the messages are those of {WRITTEN_BY}…");
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
