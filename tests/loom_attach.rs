//! The gate: the set of mutators does not change while a pause is in force, and a thread that has just been let in is excluded by the next pause (I4).
//!
//! A thread attaches, touches the heap and detaches while another stops the world. The stopper counts the mutators of its pause against those of the world, again and again.
#![cfg(loom)]
#![expect(clippy::missing_panics_doc, reason = "a model fails by panicking")]

#[path = "loom/mod.rs"]
mod model;

use model::{FrameKind, Intact, MEMBERSHIP, ModelVm, Protection, Seen, attach, check, collect, pause};
use reentry::{Mutator, UpcallClosure, World};

/// A pause that does nothing but look at who is in it.
fn count<P: Protection>(world: &World<ModelVm<P>>) {
    pause(world, |stopped| {
        let stopped = stopped.mutators().count();
        for _ in 0..2 {
            assert_eq!(world.attached(), stopped, "{MEMBERSHIP}");
        }
    });
}

/// A thread comes and goes beside a pause that counts.
fn attach_and_detach<P: Protection>() {
    // 136 executions, under 0.1 s.
    check(4, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let stopper = loom::thread::spawn({
            let world = world.clone();
            move || count(&world)
        });
        drop(attach(&world));
        stopper.join().unwrap();
        assert_eq!(world.attached(), 0);
    });
}

/// A thread that was in before goes, beside a pause that counts.
fn detach<P: Protection>() {
    // 66 executions, under 0.1 s.
    check(4, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mutator = attach(&world);
        let stopper = loom::thread::spawn({
            let world = world.clone();
            move || count(&world)
        });
        drop(mutator);
        stopper.join().unwrap();
        assert_eq!(world.attached(), 0);
    });
}

/// A thread comes, touches the heap, goes, and comes again on the same record, beside a pause that collects.
fn attach_and_touch<P: Protection>(seen: &Seen) {
    let seen = seen.clone();
    // 295 executions, under 0.1 s.
    check(4, move || {
        let world = ModelVm::<P>::world(&seen);
        let stopper = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        for _ in 0..2 {
            let mutator = attach(&world);
            mutator.vm().touch(0);
        }
        stopper.join().unwrap();
    });
}

/// A thread that the VM has never seen calls in, which attaches it, beside a pause that collects. (It detaches itself: loom destroys all of a thread's locals
/// before it runs their destructors, so the exit hook cannot be explored.)
fn a_foreign_thread_calls_in<P: Protection>(seen: &Seen) {
    let seen = seen.clone();
    // 13 170 executions, 0.6 s.
    check(4, move || {
        let world = ModelVm::<P>::world(&seen);
        let stopper = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        let body = |mutator: &mut Mutator<ModelVm<P>>| mutator.vm().touch(0);
        let upcall = UpcallClosure::new(&world, body);
        let (function, data) = (upcall.data_first(), upcall.data());
        for _ in 0..2 {
            // SAFETY: the closure's own data, while the closure lives.
            unsafe { function(data) };
            world.vm().claim();
        }
        world.detach_foreign_thread().unwrap();
        drop(upcall);
        stopper.join().unwrap();
        assert_eq!(world.attached(), 0);
    });
}

#[test]
fn nobody_is_let_in_or_out_during_a_pause() {
    attach_and_detach::<Intact>();
}

#[test]
fn a_mutator_that_leaves_waits_for_the_pause_to_end() {
    detach::<Intact>();
}

#[test]
fn a_thread_that_attaches_is_excluded_by_a_pause() {
    attach_and_touch::<Intact>(&Seen::default());
}

#[test]
fn a_foreign_thread_that_calls_in_is_excluded_by_a_pause() {
    let seen = Seen::default();
    a_foreign_thread_calls_in::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::ForeignThread)]);
}

/// The thread is let in after the stopper has taken the list: the world has a mutator that the pause has not.
#[test]
#[should_panic(expected = "the set of mutators changed within a pause")]
fn without_the_gate_a_thread_is_let_in_during_a_pause() {
    attach_and_detach::<model::UngatedAttach>();
}

/// The same thread goes on to touch the heap: nobody has set its poll word.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_gate_a_thread_that_attaches_touches_the_heap_in_a_pause() {
    attach_and_touch::<model::UngatedAttach>(&Seen::default());
}

/// The same by an upcall.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_gate_a_foreign_thread_touches_the_heap_in_a_pause() {
    a_foreign_thread_calls_in::<model::UngatedAttach>(&Seen::default());
}

/// The mutator is let out while the stopper has it on its list.
#[test]
#[should_panic(expected = "the set of mutators changed within a pause")]
fn without_the_gate_a_mutator_leaves_during_a_pause() {
    detach::<model::UngatedDetach>();
}
