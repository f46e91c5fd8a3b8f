//! Closures: the body of one is dropped once, and when nobody is in it; its memory goes when nobody is on the way out of it (C1, C2, C3 of `src/occupancy.rs`).
//!
//! A closure is called on the thread that made it and on another, while its owner drops it. The body looks at a loom cell, and its drop writes it: loom refuses a drop that no
//! synchronisation orders after every look. libffi's code runs as it is; loom watches what it leads to.
#![cfg(loom)]
#![expect(clippy::missing_panics_doc, reason = "a model fails by panicking")]

#[path = "loom/mod.rs"]
mod model;

use core::ffi::c_int;
use loom::cell::UnsafeCell;
use model::{
    ClosureEndedAtOnce, Faults, HeapCell, Intact, ModelVm, NoLightFence, Protection, Seen, UnlessPanicking,
    attach, check,
};
use reentry::World;
use reentry::dynamic::{Closure, Quarantine, Signature};
use reentry::testkit::model::Visited;
use std::sync::Arc;

/// What a body holds: there until it is dropped.
struct Held(UnsafeCell<bool>);

// SAFETY: loom checks that looks and the drop do not meet.
unsafe impl Sync for Held {}

impl Held {
    fn look(&self) {
        // SAFETY: loom has checked that nothing writes it.
        assert!(self.0.with(|there| unsafe { *there }), "the body is gone");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: loom has checked that nothing reads it.
        self.0.with_mut(|there| unsafe { *there = false });
    }
}

type Code = extern "C" fn(c_int) -> c_int;

/// A closure that gives its argument back, and -1 when it comes too late.
fn closure<P: Protection>(world: &World<ModelVm<P>>) -> (UnlessPanicking<Closure<ModelVm<P>>>, Code) {
    // What loom knows of an execution must not be looked at in another: nothing leaves the quarantine.
    Quarantine::forever().install();
    let held = Held(UnsafeCell::new(true));
    let signature = Signature::parse("int (int)").unwrap();
    let closure = Closure::builder(world, &signature).fallback(-1).build(move |_, call| {
        held.look();
        call.returns(call.argument(0)).unwrap();
        held.look();
        Ok(())
    });
    let closure = closure.unwrap();
    // SAFETY: code of a function of this type.
    let code = unsafe { core::mem::transmute::<*const core::ffi::c_void, Code>(closure.code()) };
    (UnlessPanicking::new(closure), code)
}

/// The thread that made it calls, twice; another drops it.
fn dropped_under_its_owner<P: Protection>() {
    // 502 executions, 0.1 s.
    check(4, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let (closure, code) = closure(&world);
        let dropper = loom::thread::spawn(move || drop(closure));
        let results = mutator.foreign_call().run(|| [code(1), code(2)]);
        assert!(matches!(results, [1, 2] | [1, -1] | [-1, -1]), "{results:?}");
        dropper.join().unwrap();
        assert_eq!(mutator.foreign_call().run(|| code(3)), -1);
        drop(mutator);
    });
}

/// Two threads call, the one that made it and one that made it not; the first drops it when its own call is over.
fn dropped_under_another_thread<P: Protection>() {
    check(4, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let (closure, code) = closure(&world);
        let other = loom::thread::spawn({
            let world = world.clone();
            move || {
                let mut mutator = attach(&world);
                let result = mutator.foreign_call().run(|| code(5));
                assert!(matches!(result, 5 | -1), "{result}");
                drop(mutator);
            }
        });
        assert_eq!(mutator.foreign_call().run(|| code(1)), 1);
        drop(closure);
        other.join().unwrap();
        drop(mutator);
    });
}

/// The closer and the two callers are three threads: each pair of counts is read by the third.
fn dropped_under_two_threads<P: Protection>() {
    check(3, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let (closure, code) = closure(&world);
        let dropper = loom::thread::spawn(move || drop(closure));
        let other = loom::thread::spawn({
            let world = world.clone();
            move || {
                let mut mutator = attach(&world);
                let result = mutator.foreign_call().run(|| code(5));
                assert!(matches!(result, 5 | -1), "{result}");
                drop(mutator);
            }
        });
        let result = mutator.foreign_call().run(|| code(1));
        assert!(matches!(result, 1 | -1), "{result}");
        dropper.join().unwrap();
        other.join().unwrap();
        drop(mutator);
    });
}

/// The owner and another are inside when a third thread closes it. What C3 says of the memory, loom sees in a cell that `leave` looks at last, and `is_deserted` writes when it says so. (The quarantine asks it
/// under a lock of `std`, which loom must not switch under; and a failure on the way out of a closure's code would unwind through foreign frames.)
fn memory_goes(faults: Faults) {
    // 5 040 executions, 0.3 s.
    check(3, move || {
        let visited = Arc::new(Visited::new(faults));
        let body = Arc::new(HeapCell::new("the body", 0));
        assert!(visited.enter_as_owner() && visited.enter_as_other());
        let end = {
            let body = Arc::clone(&body);
            move || body.write(|ended| *ended += 1)
        };
        let other = loom::thread::spawn({
            let (visited, body, end) = (Arc::clone(&visited), Arc::clone(&body), end.clone());
            move || {
                body.read(|ended| assert_eq!(*ended, 0, "the body is gone"));
                visited.leave_as_other(end);
            }
        });
        let closer = loom::thread::spawn({
            let (visited, end) = (Arc::clone(&visited), end.clone());
            move || {
                if visited.close() {
                    end();
                }
                let _ = visited.is_deserted();
            }
        });
        body.read(|ended| assert_eq!(*ended, 0, "the body is gone"));
        visited.leave_as_owner(end);
        other.join().unwrap();
        closer.join().unwrap();
        assert_eq!(body.read(|ended| *ended), 1, "the body is ended once");
        assert!(visited.is_deserted());
    });
}

#[test]
fn the_memory_goes_when_nobody_is_on_the_way_out() {
    memory_goes(Faults::NONE);
}

/// The last one out has told so, and looks at the state after that.
#[test]
#[should_panic(expected = "Causality violation")]
fn memory_that_goes_when_the_body_has_ended_is_looked_at_when_it_is_gone() {
    memory_goes(Faults::DESERTED_WHEN_ENDED);
}

/// The last one out sees "open" from before, and the closer a count from before: each leaves the end to the other.
#[test]
#[should_panic(expected = "the body is ended once")]
fn without_the_light_fence_nobody_ends_what_was_closed() {
    memory_goes(Faults::NO_LIGHT_FENCE);
}

#[test]
fn the_body_ends_after_its_owners_last_look() {
    dropped_under_its_owner::<Intact>();
}

#[test]
fn the_body_ends_after_another_threads_last_look() {
    dropped_under_another_thread::<Intact>();
}

#[test]
fn the_body_ends_after_the_last_look_of_either_thread() {
    dropped_under_two_threads::<Intact>();
}

/// The drop does not look who is inside.
#[test]
#[should_panic(expected = "Causality violation")]
fn a_body_that_ends_at_once_is_looked_at_when_it_is_gone() {
    dropped_under_its_owner::<ClosureEndedAtOnce>();
}

/// The same, with a caller on another thread.
#[test]
#[should_panic(expected = "Causality violation")]
fn a_body_that_ends_at_once_is_looked_at_by_another_thread_when_it_is_gone() {
    dropped_under_another_thread::<ClosureEndedAtOnce>();
}

/// A caller may see "open" from before, and the drop a count from before: both think that they are alone.
#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_light_fence_a_caller_and_the_drop_miss_each_other() {
    dropped_under_its_owner::<NoLightFence>();
}
