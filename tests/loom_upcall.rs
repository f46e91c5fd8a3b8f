//! I2, no time warp: what a foreign call declares stays declared until the call is over, in and after every upcall of it. I4, exclusion, on the way into an upcall.
//!
//! A foreign call with a root is called back while another thread stops the world. Wherever the stop arrives, before the upcall, in it, on its way
//! out or after, the collector must find the call's activation in the chain and its root declared, once; and the root follows the object.
#![cfg(loom)]
#![expect(clippy::missing_panics_doc, reason = "a model fails by panicking")]

#[path = "loom/mod.rs"]
mod model;

use model::{
    FrameKind, Intact, ModelVm, Protection, Seen, attach, call_with_root, check, collect, collect_in,
};
use reentry::{Mutator, UpcallClosure, upcall_fn};

/// A root as an upcall of its call sees it: the slot that C has been given, read while managed, names the object.
fn the_root_is_current<P: Protection>(mutator: &Mutator<ModelVm<P>>, object: usize, slot: usize) {
    let slot = core::ptr::with_exposed_provenance::<usize>(slot);
    // SAFETY: the slot of a root of the foreign call that this upcall runs in; this thread is managed.
    let reference = unsafe { slot.read() };
    assert_eq!(reference, mutator.vm().address(object), "{}: the slot is stale in an upcall", model::WARP);
}

/// One upcall, a plain function.
fn an_upcall<P: Protection>(seen: &Seen) {
    fn body<P: Protection>(mutator: &mut Mutator<ModelVm<P>>, slot: usize) {
        mutator.vm().touch(0);
        the_root_is_current(mutator, 1, slot);
    }
    let seen = seen.clone();
    // 16 532 executions, 0.6 s.
    check(4, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        let upcall = upcall_fn(body::<P>);
        mutator.vm().touch(0);
        call_with_root(&world, &mut mutator, 1, |slot| upcall(slot));
        mutator.vm().touch(0);
        drop(mutator);
        collector.join().unwrap();
    });
}

/// An upcall that calls out again with a root of its own, and so makes a chain of two activations; then a second upcall of the first call.
fn a_nested_call<P: Protection>(seen: &Seen) {
    let seen = seen.clone();
    // 81 878 executions, 3.5 s.
    check(4, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        let body = |mutator: &mut Mutator<ModelVm<P>>, slot: usize| {
            the_root_is_current(mutator, 1, slot);
            call_with_root(&world, mutator, 2, |_| ());
            the_root_is_current(mutator, 1, slot);
        };
        let upcall = UpcallClosure::new(&world, body);
        let (function, data) = (upcall.data_first(), upcall.data());
        call_with_root(&world, &mut mutator, 1, |slot| {
            for _ in 0..2 {
                // SAFETY: the closure's own data, while the closure lives.
                unsafe { function(data, slot) };
            }
        });
        drop(upcall);
        drop(mutator);
        collector.join().unwrap();
    });
}

/// An upcall that itself collects, as an allocation would that finds the heap full, against another thread's pause.
fn an_upcall_that_collects<P: Protection>(seen: &Seen) {
    fn body<P: Protection>(mutator: &mut Mutator<ModelVm<P>>, slot: usize) {
        collect_in(mutator);
        the_root_is_current(mutator, 1, slot);
    }
    let seen = seen.clone();
    // 32 211 executions, 1.2 s.
    check(4, move || {
        let world = ModelVm::<P>::world(&seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        let upcall = upcall_fn(body::<P>);
        call_with_root(&world, &mut mutator, 1, |slot| upcall(slot));
        drop(mutator);
        collector.join().unwrap();
    });
}

#[test]
fn an_upcall_waits_for_the_pause_and_loses_no_root() {
    let seen = Seen::default();
    an_upcall::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::ForeignCall)]);
}

#[test]
fn the_chain_is_complete_wherever_the_stop_arrives() {
    let seen = Seen::default();
    a_nested_call::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::ForeignCall), (1, FrameKind::ForeignCall)]);
}

#[test]
fn a_collection_in_an_upcall_updates_the_roots_of_the_call_below() {
    let seen = Seen::default();
    an_upcall_that_collects::<Intact>(&seen);
    seen.must_have(&[(0, FrameKind::ForeignCall), (1, FrameKind::Safepoint)]);
}

/// As on a return: "managed" and the load of the poll word pass each other.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_light_fence_an_upcall_passes_a_pause() {
    an_upcall::<model::NoLightFence>(&Seen::default());
}

/// The upcall sees that it must wait, and goes on.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_wait_an_upcall_runs_into_a_pause() {
    an_upcall::<model::NoWaitOnUpcall>(&Seen::default());
}

/// The stop arrives between "foreign" and the record set aside: the stopper sees a mutator that can be walked and has no frames.
#[test]
#[should_panic(
    expected = "I1: a record is not complete: the foreign call of mutator 1 at depth 0 is not in its chain"
)]
fn with_foreign_before_the_record_the_collector_finds_no_frames() {
    an_upcall::<model::ForeignBeforeReinstate>(&Seen::default());
}

/// The stop arrives after the upcall has returned: the chain is whole, and the call below declares nothing any more.
#[test]
#[should_panic(
    expected = "I2: a declared root was lost: object 1 of the foreign call at depth 0 is not declared"
)]
fn with_roots_that_end_with_an_upcall_the_call_below_loses_its_own() {
    an_upcall::<model::RootsDroppedByUpcall>(&Seen::default());
}
