//! The suite: one binary, a module for each topic.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

mod anchors;
mod child;
mod foreign_threads;
mod founding;
mod handshakes;
mod hostile;
mod hosts;
mod interrupts;
mod layout;
mod leaks;
mod leaving;
mod misuse;
mod nesting;
mod plain;
mod posting;
mod programs;
mod qsort;
mod reentry;
mod references;
mod relocation;
mod reports;
mod sampling;
mod shutdown;
mod threads;
mod walker;
mod witness;
