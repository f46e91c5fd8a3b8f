//! Any bytes, read as a program of nestings: foreign calls, upcalls, roots, collections, moves, jumps, threads and fibers. What a collector finds after each operation is what a model says that
//! shares no code with the crate: `tests/model`.
//!
//! Four bytes are an operation; one byte more, and the world has asymmetric fences.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use nestings::{machine, program};
use reentry::FenceStrategy;
use reentry::testkit::Correct;

#[path = "../../tests/model/mod.rs"]
mod nestings;
#[path = "../../tests/all/strand.rs"]
#[allow(dead_code, reason = "the suite uses more of it")]
mod strand;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if bytes.len() > 4 * 200 {
        return Corpus::Reject;
    }
    let ops = program::decode(bytes);
    let fence = if bytes.len() % 4 == 1 { FenceStrategy::Asymmetric } else { FenceStrategy::Symmetric };
    if let Err(why) = machine::run::<Correct>(ops.clone(), fence) {
        panic!("{why}\n{ops:#?}");
    }
    Corpus::Keep
});
