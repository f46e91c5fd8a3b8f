//! I4, exclusion, for each of several mutators: one that is stopped says nothing of another that runs.
//!
//! Two mutators go out to foreign code and come back, each with objects of its own, while a third thread stops the world and collects. One of them is attached before the
//! pause can begin; the other attaches beside it.
#![cfg(loom)]
#![expect(clippy::missing_panics_doc, reason = "a model fails by panicking")]

#[path = "loom/mod.rs"]
mod model;

use model::{FrameKind, Intact, ModelVm, Protection, Seen, attach, call_with_root, check, collect};
use reentry::Mutator;

fn two_mutators<P: Protection>(seen: &Seen) {
    let seen = seen.clone();
    // 325 557 executions, 18 s.
    check(3, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        let other = loom::thread::spawn({
            let world = world.clone();
            move || {
                let mut mutator = attach(&world);
                call_with_root(&world, &mut mutator, 2, |_| ());
                mutator.vm().touch(2);
            }
        });
        call_with_root(&world, &mut mutator, 0, |_| ());
        mutator.vm().touch(0);
        drop(mutator);
        other.join().unwrap();
        collector.join().unwrap();
    });
}

/// One mutator is called back, the other polls.
fn an_upcall_and_a_poll<P: Protection>(seen: &Seen) {
    use reentry::upcall_fn;
    fn body<P: Protection>(mutator: &mut Mutator<ModelVm<P>>) {
        mutator.vm().touch(1);
    }
    let seen = seen.clone();
    // 228 113 executions, 18 s.
    check(3, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        let other = loom::thread::spawn({
            let world = world.clone();
            move || {
                let mut mutator = attach(&world);
                mutator.vm().touch(2);
                mutator.poll();
                mutator.vm().touch(2);
            }
        });
        let upcall = upcall_fn(body::<P>);
        call_with_root(&world, &mut mutator, 0, |_| upcall());
        drop(mutator);
        other.join().unwrap();
        collector.join().unwrap();
    });
}

#[test]
fn a_pause_excludes_both_of_two_mutators() {
    let seen = Seen::default();
    two_mutators::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::ForeignCall)]);
}

#[test]
fn a_pause_excludes_an_upcall_and_a_poll_at_once() {
    let seen = Seen::default();
    an_upcall_and_a_poll::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::ForeignCall), (0, FrameKind::Safepoint)]);
}

/// As with one mutator: "managed" and the load of the poll word pass each other.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_light_fence_one_of_two_mutators_passes_a_pause() {
    two_mutators::<model::NoLightFence>(&Seen::default());
}

/// One mutator sees that it must wait, and goes on.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_wait_one_of_two_mutators_runs_into_a_pause() {
    two_mutators::<model::NoWaitOnReturn>(&Seen::default());
}
