//! The suite: one binary, a module for each topic.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

mod anchors;
mod exceptions;
mod founding;
mod hostile;
mod hosts;
mod jumps;
mod layout;
mod leaks;
mod leaving;
mod lua;
mod misuse;
mod nesting;
mod plain;
mod programs;
mod qsort;
mod reentry;
mod references;
mod relocation;
mod threads;
mod walker;
mod witness;
