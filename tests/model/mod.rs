//! Random nestings, run on the crate and on a model of it that is too simple to be wrong in the same way.
//!
//! A program ([`program`]) is a list of operations: foreign calls, upcalls, roots and pins, collections, stacks that move, panics, `longjmp`, threads and fibers. The machine ([`machine`]) runs
//! it on a real world, through real C, and tells the model ([`model`]) of each event; after each operation it stops the world and compares what a collector finds with what the model says (`look.rs`).
//! The first disagreement ends the program.
//!
//! Used by `tests/all/model.rs` and by the fuzz target `nestings`. Who includes it includes `tests/all/strand.rs` as well, as `strand`.

mod look;
pub(crate) mod machine;
mod model;
pub(crate) mod program;
