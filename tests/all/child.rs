//! Tests that need a process of their own: they run themselves again in one.

use crate::emulator::this_binary;
use std::process::Output;

const CHILD: &str = "REENTRY_CHILD_TEST";

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
