//! The suite: one binary, a module for each topic.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

mod anchors;
mod fibers;
mod founding;
mod hostile;
mod hosts;
mod layout;
mod leaks;
mod leaving;
mod misuse;
mod nesting;
mod plain;
mod programs;
mod qsort;
mod reentry;
mod references;
mod relocation;
mod shadow;
mod stacks;
mod strand;
mod threads;
mod two_worlds;
mod walker;
mod witness;
