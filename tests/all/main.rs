//! The suite: one binary, a module for each topic.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

mod anchors;
mod checked;
mod early_release;
mod errors;
mod exceptions;
mod founding;
mod handles;
mod hostile;
mod hostile_errors;
mod hosts;
mod jumps;
mod layout;
mod leaf;
mod leaks;
mod leaving;
mod lua;
mod machine;
mod misuse;
mod nesting;
mod pins;
mod plain;
mod programs;
mod qsort;
mod raising;
mod reentry;
mod references;
mod refusals;
mod relocation;
mod scopes;
mod threads;
mod walker;
mod witness;
