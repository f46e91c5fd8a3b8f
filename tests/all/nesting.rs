//! The founding case nested in itself, and with a collector that arrives at the very moment of re-instatement.

use crate::founding::{SOUND, TEXT, TURN};
use crate::programs::recursion;
use crate::witness::View;
use core::ffi::c_int;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use reentry::testkit::bytecode::{Function, Program};
use reentry::testkit::{Guard, NativeArgument, NativeResult, TestVm, Value, Walk};
use reentry::{FrameKind, Mutator, UpcallClosure, World, upcall_fn};
use reentry_foreign::{foreign_advance, foreign_call_back, foreign_call_back_last, foreign_sum_twice};
use std::panic::catch_unwind;
use std::sync::{Arc, PoisonError};

/// A world whose program nests: `nest(n, text)` calls C with `text`, which it does not use afterwards; C calls back; the callback
/// collects, makes a text of its own, runs `nest(n - 1, text)`, and collects again; and when C is done, another collection
/// comes while it is still foreign.
fn nesting_world(guard: Guard, walk: Walk) -> World<TestVm> {
    let mut nest = Function::builder("nest");
    let n = nest.integer_parameter();
    let text = nest.reference_parameter();
    let total = nest.integer_slot();
    nest.foreign(Some(total), 0, &[n, text]);
    nest.give_back(total);
    let program = Program::new(vec![nest.finish()]).unwrap();
    TestVm::builder(program)
        .guard(guard)
        .walk(walk)
        .stack_words(16)
        .native(|vm: &TestVm, arguments| {
            let n = c_int::try_from(arguments.integer(0)).unwrap();
            let callback: extern "C" fn(c_int) -> c_int = upcall_fn(descend);
            // SAFETY: the callback takes an `int` and gives one.
            let below = unsafe { foreign_call_back(callback, n) };
            let world = vm.world().unwrap();
            if let Err(undead) = world.pause(|stopped| vm.collect(stopped)) {
                return undead.into();
            }
            let NativeArgument::Object { bytes, .. } = arguments.get(1) else { panic!("a text was passed") };
            let expected = text_of(n);
            if matches!(vm.guard(), Guard::Pins | Guard::TransitivePins) {
                // SAFETY: pinned: the bytes are where they were.
                let sum = unsafe { foreign_sum_twice(bytes, expected.len(), None) };
                assert_eq!(sum, 2 * expected.bytes().map(u64::from).sum::<u64>());
            }
            NativeResult::Integer(i64::from(below) + 1)
        })
        .build_world()
}

fn text_of(n: c_int) -> String {
    format!("the text of level {n}")
}

fn descend(mutator: &mut Mutator<TestVm>, n: c_int) -> c_int {
    let mut below = 0;
    TestVm::collect_in(mutator).unwrap();
    if n > 0 {
        let text = mutator.vm().heap().alloc(&[], text_of(n - 1).as_bytes());
        let arguments = [Value::Integer(i64::from(n - 1)), Value::Reference(text)];
        match TestVm::call(mutator, "nest", &arguments) {
            Ok(Some(Value::Integer(levels))) => below = c_int::try_from(levels).unwrap(),
            Ok(other) => panic!("{other:?}"),
            Err(trap) => panic!("{trap}"),
        }
    }
    let depth = mutator.depth();
    let anchor = TestVm::idle_anchor(mutator);
    mutator.pause_at(anchor, |stopped| {
        stopped.vm().collect(stopped).unwrap();
        let view = View::of(stopped.vm(), &stopped.mutators().next().unwrap());
        assert_eq!(view.chain.len(), depth + 1);
        // Every older level's text is reported, at whatever address it has now.
        let guarded = stopped.vm().guard() != Guard::Nothing;
        for level in (n..n + c_int::try_from(depth).unwrap()).take_while(|_| guarded) {
            assert!(view.find(text_of(level).as_bytes()).is_some(), "level {level} of {depth}");
        }
    });
    below
}

/// Nests `depth` calls, and gives back how many there were.
///
/// # Errors
///
/// The undead root's description.
fn nest(world: &World<TestVm>, depth: c_int) -> Result<Option<Value>, String> {
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], text_of(depth - 1).as_bytes());
    let arguments = [Value::Integer(i64::from(depth - 1)), Value::Reference(text)];
    let outcome = catch_unwind(AssertUnwindSafe(|| TestVm::call(&mut mutator, "nest", &arguments)));
    match outcome {
        Ok(outcome) => outcome.map_err(|trap| trap.to_string()),
        Err(panic) => Err(panic.downcast_ref::<String>().map_or_else(String::new, String::clone)),
    }
}

/// Go's TestCallbackGC and nested cgo calls: each level's record is set aside and re-instated once on the way back.
#[test]
fn arguments_are_right_at_every_level_of_calls_nested_3_and_100_deep() {
    let shallow = SOUND.iter().map(|how| (*how, 3));
    let deep = [
        (Guard::Pins, Walk::Legacy),
        (Guard::RootsInPlace, Walk::Legacy),
        (Guard::RootsByValue, Walk::Record),
    ];
    for ((guard, walk), depth) in shallow.chain(deep.into_iter().map(|how| (how, 100))) {
        let outcome = nest(&nesting_world(guard, walk), depth);
        assert_eq!(outcome, Ok(Some(Value::Integer(i64::from(depth)))), "{guard:?} {walk:?}");
    }
}

/// The same with neither half of the fix: the innermost level that had a callback below it is the first to be undead.
#[test]
fn with_neither_guard_nor_record_walk_nested_calls_end_in_an_undead_root() {
    for depth in [1, 3, 100] {
        let error = nest(&nesting_world(Guard::Nothing, Walk::Legacy), depth).unwrap_err();
        assert!(error.contains("undead root: slot 1 of frame `nest`"), "{error}");
        assert!(error.contains("and was dead at pc 1 in collection"), "{error}");
    }
}

/// A collector that has waited for the callback to become foreign is let go by the very store that re-instates the caller's record:
/// it must find that record whole (JDK-8331735: it found none), and the callback over.
#[test]
fn a_pause_that_waits_for_a_callback_to_return_finds_the_callers_record() {
    const ROUNDS: usize = 20;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for (guard, walk) in SOUND {
        let word = Arc::new(AtomicU32::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let mut main = Function::builder("main");
        let text = main.reference_parameter();
        let call_site = main.foreign(None, 0, &[text]);
        main.leave();
        let native = {
            let (word, over) = (Arc::clone(&word), Arc::clone(&over));
            move |vm: &TestVm, _: &reentry::testkit::NativeArguments<'_>| {
                let callback = |mutator: &mut Mutator<TestVm>, _: c_int| {
                    TestVm::call(mutator, "recurse", &[Value::Integer(8)]).unwrap();
                    // SAFETY: the word outlives the call.
                    unsafe { foreign_advance(&raw const *word, 1, 2) };
                    // The collector is about to stop the world. This thread is managed and does not poll: the collector has to wait.
                    std::thread::sleep(core::time::Duration::from_micros(300));
                    over.store(true, Ordering::Relaxed);
                    0
                };
                let callback = UpcallClosure::new(&vm.world().unwrap(), callback);
                // SAFETY: the data is the closure's, which lives.
                unsafe { foreign_call_back_last(callback.data_last(), 0, callback.data()) };
                // SAFETY: the word outlives the call. C spins until the pause is over, so the pause sees this call and no other.
                unsafe { foreign_advance(&raw const *word, 3, 4) };
                NativeResult::Nothing
            }
        };
        let world = TestVm::builder(Program::new(vec![recursion(0), main.finish()]).unwrap())
            .guard(guard)
            .walk(walk)
            .native(native)
            .build_world();
        std::thread::scope(|scope| {
            let mutator = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                for _ in 0..ROUNDS {
                    let text = world.vm().heap().alloc(&[], TEXT);
                    TestVm::call(&mut mutator, "main", &[Value::Reference(text)]).unwrap();
                }
            });
            // Another mutator runs managed code meanwhile, so that the pause has somebody else to wait for.
            let other = scope.spawn(|| {
                let mut other = world.attach().unwrap();
                while word.load(Ordering::Relaxed) != u32::MAX {
                    let anchor = TestVm::idle_anchor(&other);
                    other.poll_at(anchor);
                    std::thread::yield_now();
                }
            });
            let mut found = Vec::new();
            loop {
                match word.load(Ordering::Acquire) {
                    1 => {
                        word.store(2, Ordering::Release);
                        found.push(catch_unwind(AssertUnwindSafe(|| {
                            world.pause(|stopped| {
                                let over = over.swap(false, Ordering::Relaxed);
                                stopped.vm().collect(stopped).unwrap();
                                let main = stopped.mutators().find(|mutator| {
                                    mutator.activations().next().unwrap().kind() == FrameKind::ForeignCall
                                });
                                (over, View::of(stopped.vm(), &main.unwrap()))
                            })
                        })));
                    }
                    3 => word.store(4, Ordering::Release),
                    _ if mutator.is_finished() => break,
                    _ => std::thread::yield_now(),
                }
            }
            let ended = mutator.join();
            word.store(u32::MAX, Ordering::Relaxed);
            other.join().unwrap();
            ended.unwrap();
            assert_eq!(found.len(), ROUNDS);
            for view in found {
                let (over, view) = view.unwrap();
                assert!(over, "{guard:?} {walk:?}: the pause did not wait for the callback");
                let caller = (0, FrameKind::ForeignCall, "main", call_site);
                assert_eq!(view.summary(), [caller], "{guard:?} {walk:?}");
                assert!(view.find(TEXT).is_some());
            }
        });
    }
}
