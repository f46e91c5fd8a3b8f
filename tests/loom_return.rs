//! I4, exclusion: between "the world is stopped" and "resumed" no mutator touches the heap, and a thread that comes back from foreign code waits.
//!
//! One mutator goes out to foreign code and comes back while another thread stops the world and collects. The mutator touches the heap before it
//! leaves, after it has come back, and after a poll.
#![cfg(loom)]
#![expect(clippy::missing_panics_doc, reason = "a model fails by panicking")]

#[path = "loom/mod.rs"]
mod model;

use model::{FrameKind, Intact, ModelVm, Protection, Seen, attach, call_with_root, check, collect};

/// A foreign call with a root, against one pause.
fn a_return<P: Protection>(seen: &Seen) {
    let seen = seen.clone();
    // 5 030 executions, 0.2 s.
    check(4, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        mutator.vm().touch(0);
        call_with_root(&world, &mut mutator, 1, |_| ());
        mutator.vm().touch(0);
        drop(mutator);
        collector.join().unwrap();
    });
}

/// Two polls, against one pause.
fn a_poll<P: Protection>(seen: &Seen) {
    let seen = seen.clone();
    // 1 964 executions, 0.1 s.
    check(4, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        for _ in 0..2 {
            mutator.vm().touch(0);
            mutator.poll();
        }
        mutator.vm().touch(0);
        drop(mutator);
        collector.join().unwrap();
    });
}

#[test]
fn a_mutator_back_from_foreign_code_waits_for_the_pause_to_end() {
    let seen = Seen::default();
    a_return::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::ForeignCall)]);
}

#[test]
fn a_mutator_that_polls_waits_for_the_pause_to_end() {
    let seen = Seen::default();
    a_poll::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::Safepoint)]);
}

/// The store of "managed" and the load of the poll word pass each other: the stopper sees the record, the mutator a clear word.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_light_fence_a_return_passes_a_pause() {
    a_return::<model::NoLightFence>(&Seen::default());
}

/// The mutator sees that it must wait, and goes on.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_wait_a_return_runs_into_a_pause() {
    a_return::<model::NoWaitOnReturn>(&Seen::default());
}

/// The stopper takes a mutator for stopped that is managed.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn a_stopper_that_does_not_wait_collects_beside_a_managed_mutator() {
    a_return::<model::NoWaitForMutators>(&Seen::default());
}

/// The stopper sees the record and not what the mutator had done before it published it: no pause overlaps managed code in time, but the
/// mutator's last touch of the heap is not ordered before the collector's. Nor is what it wrote into the record when it attached, and that the
/// collector reads first.
#[test]
#[should_panic(expected = "Causality violation: Concurrent read and write accesses")]
fn with_a_relaxed_publication_the_collector_misses_what_the_mutator_wrote() {
    a_return::<model::RelaxedPublish>(&Seen::default());
}

/// The pause ends while the mutator is foreign. It comes back, finds the poll word clear, and never meets the lock: the clear word alone must
/// tell it what the collector did.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn with_a_relaxed_resumption_a_return_misses_what_the_collector_wrote() {
    a_return::<model::RelaxedResume>(&Seen::default());
}
