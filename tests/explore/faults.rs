//! With a protection off, the explorer finds a schedule that shows it, and the schedule's text replays it, every time.
//!
//! A fence or an order that is missing it cannot find: each of its steps orders everything. Those switches are the loom models'.

use crate::scenarios::{Scenario, coming_and_going, founding, nested_3, run_founding};
use reentry::World;
use reentry::explore::{Explorer, Schedule, ScheduleFailed};
use reentry::faults::Faults;
use reentry::testkit::{Correct, FaultSet, Guard, TestVm, Walk};

macro_rules! without {
    ($($name:ident = $fault:ident;)*) => {
        $(
            enum $name {}
            // SAFETY: for the test of the protection. The heap checks every reference before it is used.
            unsafe impl FaultSet for $name {
                const FAULTS: Faults = Faults::$fault;
            }
        )*
    };
}

without! {
    NoWaitOnReturn = NO_WAIT_ON_RETURN;
    NoWaitOnUpcall = NO_WAIT_ON_UPCALL;
    NoWaitForMutators = NO_WAIT_FOR_MUTATORS;
    ForeignBeforeReinstate = FOREIGN_BEFORE_REINSTATE;
    RootsDroppedByUpcall = ROOTS_DROPPED_BY_UPCALL;
    NoRelocation = NO_RELOCATION;
    UngatedAttach = UNGATED_ATTACH;
    UngatedDetach = UNGATED_DETACH;
    UngatedStop = UNGATED_STOP;
}

/// How often a schedule that failed is replayed: the issue of a text that works by chance is no text.
const REPLAYS: usize = 100;

/// Explores `scenario`, which must fail with `what`; and replays the schedule it printed.
#[track_caller]
fn fails<F: FaultSet>(scenario: &Scenario<F>, explorer: &Explorer<'_, TestVm<F>>, what: &str) {
    // The scenario goes wrong with a panic: a hundred messages are no news.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = explorer.explore(scenario.run);
    let replayed: Vec<Option<ScheduleFailed>> = found.as_ref().err().map_or_else(Vec::new, |failed| {
        let schedule: Schedule = failed.schedule.to_string().parse().unwrap();
        (0..REPLAYS).map(|_| explorer.replay(&schedule, scenario.run).err()).collect()
    });
    std::panic::set_hook(hook);
    let failed = found.expect_err("a schedule shows what is missing");
    eprintln!("{failed}");
    assert!(failed.what.contains(what), "{failed}");
    assert_eq!(replayed.len(), REPLAYS);
    for again in replayed {
        let again = again.unwrap_or_else(|| panic!("{} does not fail again", failed.schedule));
        assert!(again.what.contains(what), "{again}");
    }
}

fn recursive<F: FaultSet>() -> World<TestVm<F>> {
    use reentry::testkit::bytecode::Program;
    TestVm::<F>::builder_without(Program::new(vec![crate::programs::recursion(0)]).unwrap())
        .stack_words(64)
        .build_world()
}

#[test]
fn without_the_wait_on_return_managed_code_goes_on_in_a_pause() {
    let scenario = Scenario::<NoWaitOnReturn> { name: "a", world: Box::new(recursive), run: nested_3 };
    fails(&scenario, &scenario.stopping(), "I4: the explored thread goes on at step");
}

#[test]
fn without_the_wait_on_the_way_in_an_upcall_runs_in_a_pause() {
    let scenario = Scenario::<NoWaitOnUpcall> { name: "b", world: Box::new(recursive), run: nested_3 };
    fails(&scenario, &scenario.stopping(), "I4: the explored thread goes on at step");
}

#[test]
fn without_the_stoppers_wait_the_world_counts_as_stopped_while_a_thread_is_managed() {
    let scenario = Scenario::<NoWaitForMutators> { name: "c", world: Box::new(recursive), run: nested_3 };
    fails(
        &scenario,
        &scenario.stopping(),
        "I4: the world counts as stopped while the explored thread is managed",
    );
}

#[test]
fn a_record_published_before_it_is_reinstated_loses_the_frames_below() {
    let scenario = Scenario::<ForeignBeforeReinstate> {
        name: "d",
        world: Box::new(|| founding(Guard::RootsInPlace, Walk::Record, 1).build_world()),
        run: run_founding,
    };
    fails(&scenario, &scenario.stopping(), "");
}

#[test]
fn roots_that_an_upcall_drops_are_missing_after_it() {
    let scenario = Scenario::<RootsDroppedByUpcall> { name: "e", world: Box::new(recursive), run: nested_3 };
    fails(&scenario, &scenario.stopping(), "StaleReference");
}

#[test]
fn without_relocation_a_saved_anchor_is_of_a_stack_that_was_left() {
    let scenario = Scenario::<NoRelocation> {
        name: "f",
        world: Box::new(|| founding(Guard::Pins, Walk::Record, 1).build_world()),
        run: run_founding,
    };
    fails(&scenario, &scenario.stopping(), "undead anchor");
}

#[test]
fn without_the_gate_a_thread_attaches_in_a_pause() {
    let scenario = Scenario::<UngatedAttach> { name: "g", world: Box::new(recursive), run: coming_and_going };
    fails(&scenario, &scenario.stopping(), ", attached, while a pause is in force");
}

#[test]
fn without_the_gate_a_thread_detaches_in_a_pause() {
    let scenario = Scenario::<UngatedDetach> { name: "h", world: Box::new(recursive), run: coming_and_going };
    fails(&scenario, &scenario.stopping(), "the set of mutators changed while a pause was in force");
}

#[test]
fn without_the_gate_two_pauses_are_in_force() {
    let scenario = Scenario::<UngatedStop> { name: "i", world: Box::new(recursive), run: nested_3 };
    fails(&scenario, &scenario.stopping(), "two stops of the world are in force");
}

/// The founding fault itself: not one of the crate's protections is off, the VM declares nothing and walks its frames at another pc while a callback runs.
#[test]
fn the_founding_fault_is_found_at_the_step_where_the_record_is_reinstated() {
    let scenario = Scenario::<Correct> {
        name: "founding fault",
        world: Box::new(|| founding(Guard::Nothing, Walk::Legacy, 1).build_world()),
        run: run_founding,
    };
    fails(&scenario, &scenario.stopping(), "undead root");
}
