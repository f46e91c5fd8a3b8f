//! Exploration: the scenarios of re-entry with a stop at every micro-step and every pair of them; and with each protection off, a schedule that shows it, found and replayed.
//!
//! A stop here collects, moves every object and every operand stack, and poisons what it has left. The crate's own feature `explore` is on in this binary.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

mod faults;
mod fibers;
mod scenarios;
mod texts;

#[path = "../all/emulator.rs"]
mod emulator;
#[path = "../all/programs.rs"]
mod programs;
#[path = "../all/strand.rs"]
mod strand;
