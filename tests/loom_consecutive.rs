//! I4 and I2 over more than one pause: each excludes the mutators anew and the pauses exclude each other, with roots that follow through both.
//!
//! Two pauses of one stopper, of two stoppers at once, and of a stopper and a mutator that pauses by itself. A mutator that waits out the first pause may meet the second
//! before it has touched anything.
#![cfg(loom)]
#![expect(clippy::missing_panics_doc, reason = "a model fails by panicking")]

#[path = "loom/mod.rs"]
mod model;

use model::{
    FrameKind, Intact, ModelVm, Protection, Seen, attach, call_with_root, check, collect, collect_in,
};

/// One stopper, two pauses in a row, and a mutator that goes out and comes back.
fn two_pauses_in_a_row<P: Protection>(seen: &Seen) {
    let seen = seen.clone();
    // 84 295 executions, 4.8 s.
    check(4, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || {
                collect(&world);
                collect(&world);
            }
        });
        call_with_root(&world, &mut mutator, 0, |_| ());
        mutator.vm().touch(0);
        mutator.poll();
        mutator.vm().touch(0);
        drop(mutator);
        collector.join().unwrap();
    });
}

/// Two stoppers at once, and a mutator that goes out and comes back.
fn two_stoppers<P: Protection>(seen: &Seen) {
    let seen = seen.clone();
    // 331 771 executions, 26 s.
    check(3, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let collectors = [0, 1].map(|_| {
            let world = world.clone();
            loom::thread::spawn(move || collect(&world))
        });
        call_with_root(&world, &mut mutator, 0, |_| ());
        mutator.vm().touch(0);
        drop(mutator);
        for collector in collectors {
            collector.join().unwrap();
        }
    });
}

/// A stopper, and a mutator that pauses the world itself: each must count as stopped for the other.
fn a_mutator_pauses_too<P: Protection>(seen: &Seen) {
    let seen = seen.clone();
    // 3 985 executions, 0.2 s.
    check(4, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        mutator.vm().touch(0);
        collect_in(&mut mutator);
        mutator.vm().touch(0);
        drop(mutator);
        collector.join().unwrap();
    });
}

/// Two mutators that pause the world at once.
fn two_mutators_pause<P: Protection>(seen: &Seen) {
    let seen = seen.clone();
    // 2 877 executions, 0.1 s.
    check(3, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let other = loom::thread::spawn({
            let world = world.clone();
            move || {
                let mut mutator = attach(&world);
                collect_in(&mut mutator);
                mutator.vm().touch(2);
            }
        });
        collect_in(&mut mutator);
        mutator.vm().touch(0);
        drop(mutator);
        other.join().unwrap();
    });
}

#[test]
fn a_second_pause_excludes_a_mutator_that_waited_out_the_first() {
    let seen = Seen::default();
    two_pauses_in_a_row::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::ForeignCall), (0, FrameKind::Safepoint)]);
}

#[test]
fn two_stoppers_take_turns() {
    let seen = Seen::default();
    two_stoppers::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::ForeignCall)]);
}

#[test]
fn a_mutator_that_waits_to_pause_counts_as_stopped() {
    let seen = Seen::default();
    a_mutator_pauses_too::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::Safepoint)]);
}

#[test]
fn two_mutators_that_pause_at_once_take_turns() {
    let seen = Seen::default();
    two_mutators_pause::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::Safepoint)]);
}

/// The mutator that has waited out the first pause becomes managed and looks again: without the fence it looks too early.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_light_fence_a_mutator_passes_the_second_pause() {
    two_pauses_in_a_row::<model::NoLightFence>(&Seen::default());
}

/// The pause ends while the mutator is foreign: the clear word alone must tell it what the collector did.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn with_a_relaxed_resumption_a_mutator_misses_what_two_stoppers_wrote() {
    two_stoppers::<model::RelaxedResume>(&Seen::default());
}

/// The stopper takes a mutator for stopped that has not come to wait for its own pause yet.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn a_stopper_that_does_not_wait_collects_before_the_other_has_stopped() {
    a_mutator_pauses_too::<model::NoWaitForMutators>(&Seen::default());
}
