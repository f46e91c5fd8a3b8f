//! Pins one at a time: each is named by an id of its own, and ends once.

use crate::references::{assert_text, collect, fate, text, world};
use core::cell::RefCell;
use reentry::testkit::heap::Fate;
use reentry::testkit::{Ref, TestVm};
use reentry::{ArgumentError, RootVisitor, Slot, UnpinError};

#[test]
fn an_object_pinned_several_times_stays_until_its_last_pin_is_ended_by_its_id() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let (mut one, mut other) = (world.pinner(), world.pinner());
    let object = text(&world, "counted");
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(mutator.pin_with(&mut one, object).unwrap());
    }
    let last = mutator.pin_with(&mut other, object).unwrap();
    for (ended, id) in ids.iter().enumerate() {
        assert_eq!(one.len(), 50 - ended);
        assert_eq!(one.unpin(*id), Ok(()));
        assert_eq!(one.unpin(*id), Err(UnpinError), "once");
    }
    assert!(one.is_empty());
    for _ in 0..2 {
        collect(&mut mutator);
        assert_text(&world, object, "counted");
    }
    other.unpin(last).unwrap();
    collect(&mut mutator);
    assert_eq!(fate(&world, object), Some(Fate::Freed { collection: 3 }));
}

/// The place of a pin is used again; its id is not.
#[test]
fn an_id_names_its_pin_for_ever_and_no_other() {
    let world = world();
    let stranger = self::world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    let (first, second) = (text(&world, "first"), text(&world, "second"));
    let old = mutator.pin_with(&mut pinner, first).unwrap();
    pinner.unpin(old).unwrap();
    let new = mutator.pin_with(&mut pinner, second).unwrap();
    assert_ne!(old, new);
    assert_eq!(pinner.unpin(old), Err(UnpinError));
    // Not after `unpin_all` either, nor through another owner, nor in another world.
    let mut other = world.pinner();
    mutator.pin_with(&mut other, second).unwrap();
    assert_eq!(other.unpin(new), Err(UnpinError));
    let mut theirs = stranger.attach().unwrap();
    let mut elsewhere = stranger.pinner();
    theirs.pin_with(&mut elsewhere, text(&stranger, "theirs")).unwrap();
    theirs.pin_with(&mut elsewhere, text(&stranger, "theirs too")).unwrap();
    assert_eq!(elsewhere.unpin(new), Err(UnpinError));
    assert_eq!(elsewhere.len(), 2);
    pinner.unpin_all();
    let again = mutator.pin_with(&mut pinner, first).unwrap();
    assert_eq!((pinner.unpin(new), pinner.unpin(old)), (Err(UnpinError), Err(UnpinError)));
    assert_eq!(pinner.unpin(again), Ok(()));
    let message = UnpinError.to_string();
    assert!(message.contains("end each pin once"), "{message}");
}

/// As for a call's transitive pin: at each collection, also what was stored there since.
#[test]
fn an_owner_pins_what_is_reachable_if_it_is_asked_to() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    let leaf = text(&world, "leaf");
    let top = world.vm().heap().alloc(&[leaf, Ref::NULL], b"top");
    let id = mutator.pin_transitively_with(&mut pinner, top).unwrap();
    collect(&mut mutator);
    assert_text(&world, leaf, "leaf");
    let late = text(&world, "late");
    world.vm().heap().set_field(top, 1, late).unwrap();
    collect(&mut mutator);
    assert_text(&world, late, "late");
    // Beside a plain pin the objects below are free to move.
    mutator.pin_with(&mut pinner, top).unwrap();
    pinner.unpin(id).unwrap();
    collect(&mut mutator);
    assert_text(&world, top, "top");
    assert!(matches!(fate(&world, leaf), Some(Fate::Moved { .. })));
    drop(pinner);
    collect(&mut mutator);
    assert_eq!(world.vm().heap().live_objects(), 0);
}

#[test]
fn null_is_refused_and_an_empty_object_stays() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    let refused = Err(ArgumentError::NotAnObject { reference: 0 });
    assert_eq!(mutator.pin_with(&mut pinner, Ref::NULL), refused);
    assert_eq!(mutator.pin_transitively_with(&mut pinner, Ref::NULL), refused);
    assert!(pinner.is_empty());
    let empty = world.vm().heap().alloc(&[], b"");
    mutator.pin_transitively_with(&mut pinner, empty).unwrap();
    for _ in 0..2 {
        collect(&mut mutator);
        assert_eq!(world.vm().heap().byte_count(empty), Ok(0));
    }
}

/// The pins of a pause are those it began with: one that is ended meanwhile, alone or with all others, is reported again, and not in the next.
#[test]
fn a_pin_ended_during_a_pause_is_reported_until_the_pause_ends() {
    #[derive(Default)]
    struct Pins(Vec<Ref>);
    impl RootVisitor<Ref> for Pins {
        fn slot(&mut self, _: Slot<'_, Ref>) {}
        fn pinned(&mut self, reference: Ref) {
            self.0.push(reference);
        }
        fn transitively_pinned(&mut self, reference: Ref) {
            self.0.push(reference);
        }
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    let objects = [text(&world, "one"), text(&world, "two"), text(&world, "three")];
    let one = mutator.pin_with(&mut pinner, objects[0]).unwrap();
    mutator.pin_transitively_with(&mut pinner, objects[1]).unwrap();
    mutator.pin_with(&mut pinner, objects[2]).unwrap();
    let pinner = RefCell::new(pinner);
    let count = |pins: &[Ref]| objects.map(|object| pins.iter().filter(|pin| **pin == object).count());
    mutator.pause(|stopped| {
        let pins = || {
            let mut pins = Pins::default();
            stopped.enumerate(&mut pins);
            count(&pins.0)
        };
        assert_eq!(pins(), [1, 1, 1]);
        pinner.borrow_mut().unpin(one).unwrap();
        assert_eq!(pins(), [1, 1, 1]);
        pinner.borrow_mut().unpin_all();
        assert_eq!(pins(), [1, 1, 1]);
        assert!(pinner.borrow().is_empty());
    });
    let summary = TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!((summary.pinned, summary.freed), (0, 3));
}
