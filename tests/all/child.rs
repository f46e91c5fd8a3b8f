//! Tests that need a process of their own: they run themselves again in one.

use std::process::{Command, Output};

const CHILD: &str = "REENTRY_CHILD_TEST";

/// Names the emulator that this binary runs under, with its arguments: a child has to be run under it too.
const EMULATOR: &str = "REENTRY_EMULATOR";

/// This binary, to be run again.
pub(crate) fn this_binary() -> Command {
    let binary = std::env::current_exe().unwrap();
    let emulator = std::env::var(EMULATOR).unwrap_or_default();
    let mut words = emulator.split_whitespace();
    let Some(program) = words.next() else { return Command::new(binary) };
    let mut command = Command::new(program);
    command.args(words).arg(binary);
    command
}

/// Runs `body` in a process of its own, the test `name` of this binary, and returns how that ended. In the child it does not return: the process exits with 0, by `exit`, when `body` has returned.
#[track_caller]
pub(crate) fn run(name: &str, body: impl FnOnce()) -> Output {
    if std::env::var_os(CHILD).is_some_and(|child| child == name) {
        body();
        std::process::exit(0);
    }
    let mut child = this_binary();
    child.args([name, "--exact", "--nocapture", "--include-ignored"]).env(CHILD, name).output().unwrap()
}

/// [`run`], for a child that must succeed. Returns what it wrote to standard output.
#[track_caller]
pub(crate) fn succeeds(name: &str, body: impl FnOnce()) -> String {
    let output = run(name, body);
    let said = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {stdout}{said}", output.status);
    stdout
}
