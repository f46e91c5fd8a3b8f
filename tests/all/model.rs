//! Random programs of nestings, run on the crate and on a model of it: `tests/model` says how.

#[path = "../model/mod.rs"]
mod nestings;

use crate::emulator::EMULATED;
use nestings::machine::{self, Tally};
use nestings::program::{self, Foreign, Op, Pick, Plan};
use proptest::prelude::{Strategy, any};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use reentry::FenceStrategy;
use reentry::faults::Faults;
use reentry::testkit::{Correct, FaultSet};
use std::sync::Mutex;

/// How many programs, and from which seed, unless `MODEL_CASES` and `MODEL_SEED` say otherwise.
const CASES: u64 = match (EMULATED, cfg!(debug_assertions)) {
    (true, _) => 100,
    (false, true) => 500,
    (false, false) => 3000,
};
const SEED: u64 = 17785;

/// What programs are to be made of, as the machine counts it.
const EACH: [&str; 18] = [
    "collection",
    "early release",
    "fiber refused",
    "fiber resumed",
    "hand-over",
    "jump",
    "jump on a fiber",
    "jump over several upcalls",
    "leaked call",
    "move refused",
    "panic",
    "release refused",
    "scope",
    "second panic",
    "stack moved",
    "switch of threads",
    "upcall",
    "upcall on a fiber",
];

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// Runs random programs, changed by `change`, on worlds without the protections that `F` takes away. Gives what happened in all of them.
///
/// # Errors
///
/// The first disagreement, and the smallest program that shows it.
fn explore<F: FaultSet>(cases: u64, change: fn(Op) -> Op) -> Result<Tally, String> {
    let seed = number("MODEL_SEED", SEED);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { failure_persistence: None, ..Config::with_cases(u32::try_from(cases).unwrap()) };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let op = any::<[u8; 4]>().prop_map(move |bytes| change(Op::decode(bytes)));
    let programs = (proptest::collection::vec(op, 0..80), any::<bool>());
    let total = Mutex::new(Tally::new());
    let outcome = runner.run(&programs, |(ops, asymmetric)| {
        let fence = if asymmetric { FenceStrategy::Asymmetric } else { FenceStrategy::Symmetric };
        let tally = machine::run::<F>(ops, fence).map_err(TestCaseError::fail)?;
        let mut total = total.lock().unwrap();
        tally.into_iter().for_each(|(what, count)| *total.entry(what).or_default() += count);
        Ok(())
    });
    outcome.map_err(|error| format!("seed {seed}: {error}"))?;
    Ok(total.into_inner().unwrap())
}

#[test]
fn a_collector_finds_what_the_model_says_whatever_is_nested_in_what() {
    let cases = number("MODEL_CASES", CASES);
    let tally = explore::<Correct>(cases, |op| op).unwrap_or_else(|error| panic!("{error}"));
    // The programs are about something.
    for what in EACH {
        assert!(tally.get(what).is_some_and(|&count| count as u64 * 100 >= cases), "{what}: {tally:?}");
    }
}

/// The fuzzer begins with these, and they have a bit of everything.
#[test]
fn the_seeds_of_the_fuzzer_agree_with_the_model() {
    let mut tally = Tally::new();
    let mut seeds = 0;
    for entry in std::fs::read_dir("fuzz/corpus/nestings").unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("seed-") {
            let ops = program::decode(&std::fs::read(&path).unwrap());
            let outcome = machine::run::<Correct>(ops, FenceStrategy::Symmetric);
            let happened = outcome.unwrap_or_else(|why| panic!("{}: {why}", path.display()));
            happened.into_iter().for_each(|(what, count)| *tally.entry(what).or_default() += count);
            seeds += 1;
        }
    }
    assert!(seeds >= 8 && EACH.iter().all(|what| tally.contains_key(what)), "{seeds} seeds: {tally:?}");
}

/// The disagreement that a world without a protection leads to.
#[track_caller]
fn disagreement<F: FaultSet>(change: fn(Op) -> Op) -> String {
    match explore::<F>(CASES, change) {
        Ok(tally) => panic!("nobody has noticed: {tally:?}"),
        Err(error) => error,
    }
}

/// What foreign code skipped is not released.
enum NoRepair {}
// SAFETY: for a test that expects roots that should be gone, and uses no reference the heap has not checked.
unsafe impl FaultSet for NoRepair {
    const FAULTS: Faults = Faults::NO_REPAIR;
}

/// Saved anchors stay behind when their stack moves.
enum NoRelocation {}
// SAFETY: for a test whose stacks move within memory that stays readable; a disagreement ends the program before a collection.
unsafe impl FaultSet for NoRelocation {
    const FAULTS: Faults = Faults::NO_RELOCATION;
}

/// What a call declares ends with its first upcall.
enum RootsDropped {}
// SAFETY: as for `NoRepair`.
unsafe impl FaultSet for RootsDropped {
    const FAULTS: Faults = Faults::ROOTS_DROPPED_BY_UPCALL;
}

#[test]
fn without_the_repair_the_model_and_the_crate_disagree_about_reports() {
    // Out of a foreign call only: in a leaf call that nobody ends, the crate refuses what comes next.
    let error = disagreement::<NoRepair>(|op| match op {
        Op::Jump { to, .. } => Op::Jump { to, in_call: true },
        op => op,
    });
    assert!(error.contains("the reports: [], not [Skipped { activations: 1,"), "{error}");
}

#[test]
fn without_relocation_the_model_and_the_crate_disagree_about_saved_words() {
    let error = disagreement::<NoRelocation>(|op| op);
    assert!(error.contains("a stack moved"), "{error}");
}

#[test]
fn without_what_keeps_a_calls_roots_in_its_upcalls_the_model_and_the_crate_disagree_about_them() {
    // Nothing is leaked, so what is missing was declared by a call in progress.
    let error = disagreement::<RootsDropped>(|op| match op {
        Op::Call { foreign, at, catches, .. } => Op::Call { foreign, at, catches, leaks: false },
        op => op,
    });
    assert!(error.contains("declared: [], not ["), "{error}");
}

/// The founding shape, by hand: what the machine does is what its operations say.
#[test]
fn a_program_by_hand_does_what_it_says() {
    let call = Op::Call { foreign: Foreign::LandTwice, at: Some((3, 4)), catches: true, leaks: false };
    let program = [
        Op::Declare { plan: Plan::InPlace, object: Pick::New, times: 17 },
        Op::Declare { plan: Plan::TransitivePin, object: Pick::NewReferringTo(0), times: 1 },
        call,
        Op::Move { start: 60, words: 35, high: true },
        Op::Collect { at: Some((0, 9)) },
        call,
        Op::Jump { to: 0, in_call: true },
        Op::Collect { at: None },
        Op::Panic,
    ];
    let tally = machine::run::<Correct>(program.to_vec(), FenceStrategy::Symmetric).unwrap();
    let of = |what| tally.get(what).copied().unwrap_or(0);
    assert_eq!(
        ["upcall", "stack moved", "jump", "jump over several upcalls", "panic"].map(of),
        [3, 1, 1, 1, 1],
        "{tally:?}"
    );
}
