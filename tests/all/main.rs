//! The suite: one binary, a module for each topic.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

mod anchors;
mod checked;
mod early_release;
mod founding;
mod handles;
mod hostile;
mod hosts;
mod layout;
mod leaf;
mod leaks;
mod leaving;
mod misuse;
mod nesting;
mod pins;
mod plain;
mod programs;
mod qsort;
mod reentry;
mod references;
mod relocation;
mod scopes;
mod threads;
mod walker;
mod witness;
