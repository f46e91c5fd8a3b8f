//! What tests must know of the emulator that runs them, if one does. A file of its own since most test binaries have tests that run themselves again, in a process of their own.

#![allow(dead_code, reason = "no test binary but the suite uses all of it")]

use std::process::Command;

/// Names the emulator that this binary runs under, with its arguments: a child has to be run under it too.
const EMULATOR: &str = "REENTRY_EMULATOR";

/// Whether this binary was compiled to be run by an emulator, which takes twenty times as long: the tests that only repeat themselves do so less often. What they do is the same.
pub(crate) const EMULATED: bool = option_env!("REENTRY_EMULATOR").is_some();

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
