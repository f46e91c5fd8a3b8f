//! Handles: what a collector is told of them stands still within a pause (I2 for roots that are no call's), and a value is never written while it is read (H2).
//!
//! Handles are released by threads in any state while another stops the world and asks for its roots twice, moving every object in between; and raw handles are looked up while
//! another thread releases them and makes new ones in their place.
#![cfg(loom)]
#![expect(clippy::missing_panics_doc, reason = "a model fails by panicking")]

#[path = "loom/mod.rs"]
mod model;

use model::{
    HandleReleasedAtOnce, Intact, LookupUncounted, ModelVm, Protection, Seen, UnlessPanicking, attach, check,
    pause,
};
use reentry::{Handle, HandleError, RootVisitor, Slot, World};

/// The set of handles changed within a pause.
const UNSTEADY: &str = "the handles changed within a pause";

type ModelWorld<P> = World<ModelVm<P>>;

/// Notes every handle, strong and weak, and moves its object.
#[derive(Default)]
struct Handles {
    slots: Vec<(usize, usize)>,
    weak: usize,
}

impl RootVisitor<usize> for Handles {
    fn slot(&mut self, mut slot: Slot<'_, usize>) {
        self.slots.push((slot.address(), slot.load() % 1000));
        slot.store(slot.load() + 1000);
    }

    fn pinned(&mut self, _: usize) {}

    fn transitively_pinned(&mut self, _: usize) {}

    fn weak(&mut self, _: Slot<'_, usize>) {
        self.weak += 1;
    }
}

/// Stops the world and asks for the handles twice. Returns how many there are.
fn count<P: Protection>(world: &ModelWorld<P>) -> usize {
    pause(world, |stopped| {
        let [mut first, mut second] = [Handles::default(), Handles::default()];
        stopped.enumerate(&mut first);
        stopped.enumerate(&mut second);
        assert_eq!((&first.slots, first.weak), (&second.slots, second.weak), "{UNSTEADY}");
        first.slots.len()
    })
}

fn handle<P: Protection>(
    mutator: &mut reentry::Mutator<ModelVm<P>>,
    value: usize,
) -> UnlessPanicking<Handle<usize>> {
    UnlessPanicking::new(mutator.handle(value))
}

/// A foreign mutator releases one handle and a thread that is no mutator another, beside a pause that asks twice.
fn releases<P: Protection>() {
    // 60 107 executions, 6 s.
    check(3, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let (ours, theirs) = (handle(&mut mutator, 1), handle(&mut mutator, 2));
        let kept = handle(&mut mutator, 3);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || count(&world)
        });
        let outsider = loom::thread::spawn(move || drop(theirs));
        mutator.foreign_call().run(move || drop(ours));
        assert_eq!(mutator.load(&kept) % 1000, 3);
        outsider.join().unwrap();
        let again = mutator.foreign_call().run(move || {
            let seen = collector.join().unwrap();
            assert!((1..=3).contains(&seen));
            count(&world)
        });
        assert_eq!(again, 1, "what was released before a pause is not a root in it");
        assert_eq!(mutator.load(&kept), 3 + 4 * 1000, "the handle followed its object");
    });
}

/// One thread looks a raw handle up while another releases it and makes handles where it was.
fn lookup_and_reuse<P: Protection>() {
    // 1 201 executions, 0.1 s.
    check(4, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let (object, filler) = (handle(&mut mutator, 1), handle(&mut mutator, 2));
        let raw = object.into_inner().into_raw();
        let reader = loom::thread::spawn({
            let world = world.clone();
            move || {
                let mutator = attach(&world);
                let stale = HandleError::Stale { word: raw.get().get() };
                for _ in 0..2 {
                    let found = mutator.lookup(raw);
                    assert!(found == Ok(1) || found == Err(stale), "{found:?} is another handle's");
                }
            }
        });
        world.release(raw).unwrap();
        // Every slot made so far is in use but the one released: the next handle is made in it, unless it is being read.
        let next = handle(&mut mutator, 3);
        assert_eq!((mutator.load(&next), mutator.load(&filler)), (3, 2));
        assert!(world.release(raw).is_err(), "it has been released, whatever was made in its place");
        drop((next, filler));
        drop(mutator);
        reader.join().unwrap();
    });
}

#[test]
fn handles_released_during_a_pause_are_roots_until_it_ends() {
    releases::<Intact>();
}

/// A release that takes effect in the middle of a pause: the collector has seen the handle, and asks again.
#[test]
#[should_panic(expected = "the handles changed within a pause")]
fn a_handle_released_at_once_is_missing_when_a_collector_asks_again() {
    releases::<HandleReleasedAtOnce>();
}

#[test]
fn a_raw_handle_is_looked_up_beside_its_release_and_the_reuse_of_its_slot() {
    lookup_and_reuse::<Intact>();
}

/// The reader has checked the word, and the slot is another handle's before it reads the value.
#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_count_of_readers_a_value_is_written_while_it_is_read() {
    lookup_and_reuse::<LookupUncounted>();
}

/// A thread drops a weak handle while a pause clears it: the slot is released once, and used again.
#[test]
fn a_weak_handle_is_released_beside_a_pause_that_clears_it() {
    // 10 executions.
    check(4, || {
        let world = ModelVm::<Intact>::world(&Seen::default());
        let mut mutator = attach(&world);
        let weak = mutator.weak_handle(1);
        let strong = handle(&mut mutator, 2);
        let outsider = loom::thread::spawn(move || drop(weak));
        mutator.pause(|stopped| stopped.update_weak(|_| None));
        outsider.join().unwrap();
        let next = handle(&mut mutator, 3);
        assert_eq!((mutator.load(&next), mutator.load(&strong)), (3, 2));
        assert!(world.leaks().weak_handles().is_empty());
    });
}

/// Several threads take the same word back and release it: one of them does.
#[test]
fn a_raw_handle_is_released_or_taken_back_once() {
    // 9 executions.
    check(4, || {
        let world = ModelVm::<Intact>::world(&Seen::default());
        let raw = attach(&world).handle(1).into_raw();
        let taker = loom::thread::spawn({
            let world = world.clone();
            move || world.handle_from_raw(raw).map(drop).is_ok()
        });
        let released = world.release(raw).is_ok();
        assert_ne!(released, taker.join().unwrap(), "either, and not both");
        assert!(world.leaks().is_empty());
    });
}

/// The world ends while a thread that is no mutator drops handles: the last of them frees the table. (That it is freed once and not too soon is for a memory
/// checker to see; loom sees that the count comes out, since the last one reads what all have written.)
#[test]
fn handles_outlive_their_world() {
    // 106 executions, under 0.1 s.
    check(4, || {
        let world = ModelVm::<Intact>::world(&Seen::default());
        let mut mutator = attach(&world);
        let (one, other) = (mutator.handle(1), mutator.handle(2));
        drop(mutator);
        let outsider = loom::thread::spawn(move || drop(one));
        drop(world);
        drop(other);
        outsider.join().unwrap();
    });
}
