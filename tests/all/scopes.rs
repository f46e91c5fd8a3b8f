//! Scoped locals: they follow their objects through every safepoint, and end with their scope, however it ends.

use crate::plain::{Plain, message};
use crate::references::{assert_text, collect, collect_twice, fate, known_world, text, world};
use crate::witness::View;
use core::ffi::c_int;
use reentry::testkit::heap::Fate;
use reentry::testkit::{Ref, TestVm};
use reentry::{ArgumentError, ArgumentPlan, FenceStrategy, Mutator, UpcallClosure, World, upcall_fn};
use reentry_foreign::{
    foreign_call_back, foreign_call_back_and_land, foreign_call_back_last, foreign_leap,
    foreign_sum_through_slot,
};
use std::sync::Mutex;

/// What there is alive after a collection.
#[track_caller]
fn live(mutator: &mut Mutator<TestVm>) -> usize {
    TestVm::collect_in(mutator).unwrap().live
}

#[test]
fn a_local_follows_its_object_through_pauses_polls_and_foreign_calls() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    mutator.scope(|scope| {
        let object = text(&world, "local");
        let local = scope.root(object);
        collect(scope);
        let first = scope.get(local);
        assert_ne!(first, object);
        // SAFETY: the callback takes an `int` and gives one.
        scope.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
        let second = scope.get(local);
        assert_ne!(second, first);
        // Another thread's pause, met at a poll.
        let collector = std::thread::spawn({
            let world = world.clone();
            move || world.pause(|stopped| stopped.vm().collect(stopped)).unwrap().live
        });
        while !collector.is_finished() {
            let anchor = TestVm::idle_anchor(scope);
            scope.poll_at(anchor);
        }
        assert_eq!(collector.join().unwrap(), 1);
        assert_ne!(scope.get(local), second);
        assert_text(&world, scope.get(local), "local");
    });
    assert_eq!(live(&mut mutator), 0, "it ended with its scope");
}

#[test]
fn a_local_can_be_made_to_refer_to_another_object() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    mutator.scope(|scope| {
        let first = text(&world, "first");
        let local = scope.root(first);
        let second = text(&world, "second");
        scope.set(local, second).unwrap();
        collect(scope);
        assert_text(&world, scope.get(local), "second");
        assert_eq!(fate(&world, first), Some(Fate::Freed { collection: 1 }));
        let refused = Err(ArgumentError::NotOfThisWorld { reference: 1 });
        assert_eq!(scope.set(local, Ref::from_address(1)), refused);
        assert_text(&world, scope.get(local), "second");
    });
}

/// Go's handles are argued for by this: a value is a reference only as long as nothing moves, so what is handed on is read from the local at that moment.
#[test]
fn a_local_is_given_to_a_call_as_an_argument_that_c_reads() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let sum = mutator.scope(|scope| {
        let object = text(&world, "read by C");
        let offset = world.vm().heap().payload(object).unwrap().addr() - object.address();
        let local = scope.root(object);
        collect(scope);
        let current = scope.get(local);
        let mut call = scope.foreign_call();
        let root = call.root(current);
        let slot = root.slot().cast_const().cast();
        // SAFETY: the slot is the call's; its object's bytes stand `offset` behind the reference; the callback takes an `int` and gives one.
        let sum =
            call.run(|| unsafe { foreign_sum_through_slot(slot, offset, 9, Some(upcall_fn(collect_twice))) });
        drop(call);
        // The call's root and the local are two words of one object.
        assert_text(&world, scope.get(local), "read by C");
        sum
    });
    assert_eq!(sum, 2 * b"read by C".iter().map(|byte| u64::from(*byte)).sum::<u64>());
}

/// Words of inner scopes, of outer ones that go on after them, and of calls in between, over many chunks of the mutator's storage.
#[test]
fn scopes_and_calls_nest_to_any_depth_and_each_keeps_its_own() {
    fn descend(world: &World<TestVm>, mutator: &mut Mutator<TestVm>, depth: usize) {
        let label = |n: usize| format!("{depth}, {n}");
        mutator.scope(|scope| {
            let mut locals = Vec::new();
            for n in 0..40 {
                locals.push(scope.root(text(world, &label(n))));
                if n % 13 == 0 {
                    let other = text(world, "the call's");
                    let mut call = scope.foreign_call();
                    let root = call.root(other);
                    call.run(|| ());
                    assert_text(world, call.get(root), "the call's");
                }
                if n == 20 && depth > 0 {
                    descend(world, scope, depth - 1);
                }
            }
            collect(scope);
            for (n, local) in locals.iter().enumerate() {
                assert_text(world, scope.get(*local), &label(n));
            }
        });
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    descend(&world, &mut mutator, 12);
    assert_eq!(live(&mut mutator), 0);
}

/// A safepoint may come after each word, so a scope's words are reported from the moment they are there: seen from another thread, while this one is in C.
#[test]
fn every_local_is_reported_once_and_by_its_own_activation() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    mutator.scope(|scope| {
        let objects: Vec<Ref> = (0..50).map(|n| text(&world, &n.to_string())).collect();
        for (n, object) in objects.iter().enumerate() {
            scope.root(*object);
            let seen = scope
                .foreign_call()
                .run(|| world.pause(|stopped| View::of(stopped.vm(), &stopped.mutators().next().unwrap())));
            let expected: Vec<_> =
                objects[..=n].iter().rev().map(|object| (ArgumentPlan::Root, *object)).collect();
            assert_eq!(seen.chain[0].declared, expected);
        }
    });
}

#[test]
fn a_scope_that_panics_ends_its_locals() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    mutator.scope(|outer| {
        let kept = outer.root(text(&world, "kept"));
        let panicked = message(|| {
            outer.scope(|scope| {
                scope.root(text(&world, "gone"));
                panic!("in a scope");
            })
        });
        assert_eq!(panicked, "in a scope");
        assert_eq!(live(outer), 1);
        assert_text(&world, outer.get(kept), "kept");
        // And the outer scope goes on where it was.
        let next = outer.root(text(&world, "next"));
        assert_eq!(live(outer), 2);
        assert_text(&world, outer.get(next), "next");
    });
}

/// I9: a leaked call's words stand above the scope's; the scope goes on above them, and its end ends them.
#[test]
fn a_foreign_call_leaked_in_a_scope_stays_until_the_scope_ends_and_breaks_no_order() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    mutator.scope(|scope| {
        let mut locals = Vec::new();
        for n in 0..30 {
            locals.push((scope.root(text(&world, &format!("before {n}"))), format!("before {n}")));
            let leaked = text(&world, "leaked");
            let mut call = scope.foreign_call();
            call.root(leaked);
            call.run(|| ());
            leak(call);
            locals.push((scope.root(text(&world, &format!("after {n}"))), format!("after {n}")));
            // One that is leaked before it has run was never declared.
            let never = text(&world, "never declared");
            let mut call = scope.foreign_call();
            call.root(never);
            leak(call);
            assert_eq!(live(scope), 3 * (n + 1));
            for (local, string) in &locals {
                assert_text(&world, scope.get(*local), string);
            }
        }
    });
    assert_eq!(live(&mut mutator), 0);
}

/// Row C6: an upcall has a scope of its own, which ends with it, also when a call in it is leaked; the outer scope's locals are untouched.
#[test]
fn what_an_upcalls_scope_held_is_gone_when_the_upcall_ends() {
    let world = known_world();
    let mut mutator = world.attach().unwrap();
    let upcall = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, leaks: c_int| {
        let world = mutator.vm().world().unwrap();
        mutator.scope(|scope| {
            let local = scope.root(text(&world, "the upcall's"));
            if leaks != 0 {
                let mut call = scope.foreign_call();
                call.root(text(&world, "leaked in the upcall"));
                call.run(|| ());
                leak(call);
            }
            let found = live(scope) as c_int;
            assert_text(&world, scope.get(local), "the upcall's");
            found
        })
    });
    mutator.scope(|scope| {
        let outer = scope.root(text(&world, "outer"));
        for leaks in [0, 1] {
            // SAFETY: the data is the closure's, which lives.
            let found = scope
                .foreign_call()
                .run(|| unsafe { foreign_call_back_last(upcall.data_last(), leaks, upcall.data()) });
            assert_eq!(found, 2 + leaks);
            assert_eq!(live(scope), 1);
            assert_text(&world, scope.get(outer), "outer");
        }
    });
}

/// I5: foreign code goes past the upcall and its scope with `longjmp`. The scope never ends, and what it held is released all the same.
#[test]
fn what_a_skipped_upcalls_scope_held_is_gone_when_the_call_returns() {
    static WORLD: Mutex<Option<World<TestVm>>> = Mutex::new(None);
    fn leap(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        mutator.scope(|scope| {
            for n in 0..100 {
                let object = scope.vm().heap().alloc(&[], &[n]);
                scope.root(object);
            }
            // SAFETY: `land` is on this thread's stack below, and none of the frames in between has anything to clean up that the crate does not see to.
            scope.foreign_call().run(|| unsafe { foreign_leap() });
        });
        unreachable!("C has gone past this frame")
    }
    let world = known_world();
    *WORLD.lock().unwrap() = Some(world.clone());
    let mut mutator = world.attach().unwrap();
    mutator.scope(|scope| {
        let outer = scope.root(text(&world, "outer"));
        for round in 0..3 {
            // SAFETY: the callback takes an `int` and gives one.
            let landed =
                scope.foreign_call().run(|| unsafe { foreign_call_back_and_land(upcall_fn(leap), 0, 17) });
            assert_eq!(landed, 17, "round {round}");
            assert_eq!(live(scope), 1);
            assert_text(&world, scope.get(outer), "outer");
            let next = scope.root(text(&world, "next"));
            assert_text(&world, scope.get(next), "next");
            scope.set(next, Ref::NULL).unwrap();
        }
    });
    assert_eq!(live(&mut mutator), 0);
    WORLD.lock().unwrap().take();
}

#[test]
fn a_local_of_another_mutator_is_refused_with_the_line_that_used_it() {
    let (one, other) =
        (Plain::<410>::world(FenceStrategy::probe()), Plain::<410>::world(FenceStrategy::probe()));
    let (mut ours, mut theirs) = (one.attach().unwrap(), other.attach().unwrap());
    ours.scope(|ours| {
        let local = ours.root(1);
        theirs.scope(|theirs| {
            let theirs_too = theirs.root(2);
            for message in [
                message(|| theirs.get(local)),
                message(|| ours.get(theirs_too)),
                message(|| theirs.set(local, 3).unwrap()),
            ] {
                assert!(message.contains(file!()) && message.contains("another mutator"), "{message}");
            }
            assert_eq!((ours.get(local), theirs.get(theirs_too)), (1, 2));
        });
    });
}

#[test]
fn a_scope_refuses_what_the_vm_refuses_and_names_the_line() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    mutator.scope(|scope| {
        let error = ArgumentError::NotOfThisWorld { reference: 1 };
        assert_eq!(scope.try_root(Ref::from_address(1)).map(drop), Err(error));
        let message = message(|| scope.root(Ref::from_address(1)));
        assert!(message.contains(file!()) && message.ends_with(&error.to_string()), "{message}");
        let null = scope.root(Ref::NULL);
        collect(scope);
        assert_eq!(scope.get(null), Ref::NULL);
    });
}

#[expect(clippy::mem_forget, reason = "these tests are about leaks")]
fn leak<T>(value: T) {
    core::mem::forget(value);
}
