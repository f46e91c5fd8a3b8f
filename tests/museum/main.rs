//! The museum: faults that shipped in other runtimes, each built into a VM here, and the tool that catches it; and the same VM put right, on which the tool is silent.
//!
//! The table of it is `guide::museum`. Features `audit` and `explore` are on in this binary.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

mod frames;
mod rows;
