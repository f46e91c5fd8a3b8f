//! Closures with run-time signatures: managed callables that C has as plain function pointers, from the first call to those that come too late.

use crate::emulator::EMULATED;
use crate::plain::{Plain, Steps, for_each_strategy, message, number, panic_quietly};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use core::time::Duration;
use reentry::dynamic::{Closure, ClosureError, Function, Library, Signature, Types, Value};
use reentry::testkit::{Ref, TestVm, Trap};
use reentry::{ErrorPolicy, FenceStrategy, StackScanner, World};
use reentry_foreign::{
    Callback, foreign_call_back, foreign_call_back_elsewhere, foreign_call_back_many,
    foreign_call_back_twice, foreign_meet, foreign_threads,
};
use std::sync::{Arc, Mutex};
use std::thread;

/// The closure's code as C has it.
fn code<V: StackScanner>(closure: &Closure<V>) -> Callback {
    callback(closure.code())
}

/// # Panics
///
/// Unless it has the signature of [`Callback`]: it is asked for by name in each test.
fn callback(code: *const c_void) -> Callback {
    assert!(!code.is_null());
    // SAFETY: the code of a closure whose signature is `int (int)`, in this file.
    unsafe { core::mem::transmute::<*const c_void, Callback>(code) }
}

fn int_to_int() -> Signature {
    Signature::parse("int (int)").unwrap()
}

/// Calls `callback(x)` from C, in a foreign call.
fn call_back<V: StackScanner>(mutator: &mut reentry::Mutator<V>, callback: Callback, x: c_int) -> c_int {
    // SAFETY: calls the callback.
    mutator.foreign_call().run(|| unsafe { foreign_call_back(callback, x) })
}

/// Each collection moves so many objects, which takes its time in debug builds.
const VERY_MANY: usize = match (EMULATED, cfg!(debug_assertions)) {
    (true, _) => 3_000,
    (false, true) => 5_000,
    (false, false) => 20_000,
};
const MANY: usize = if EMULATED { 100 } else { 500 };

/// SCENARIO 12 with closures: C's sort, whose comparator is a closure without user data that allocates and collects.
#[test]
fn qsort_sorts_with_a_closure_that_collects_in_every_comparison() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let (name, signature) = Types::new()
        .prototype("void qsort(void*, size_t, size_t, int (*)(const void*, const void*));")
        .unwrap();
    let qsort = Library::this_process().function(&name, &signature).unwrap();
    let comparisons = Arc::new(AtomicUsize::new(0));
    for (count, every) in [(0_usize, 1), (1, 1), (2, 1), (3, 1), (MANY, 1), (VERY_MANY, VERY_MANY / 4)] {
        let counted = Arc::clone(&comparisons);
        let compare =
            Closure::new(&world, signature.parameters()[3].function().unwrap(), move |mutator, call| {
                if counted.fetch_add(1, Ordering::Relaxed).is_multiple_of(every) {
                    mutator.vm().heap().alloc(&[], b"garbage of a comparison");
                    TestVm::collect_in(mutator).unwrap();
                }
                let [a, b] = [0, 1].map(|index| {
                    let element = call.argument(index).as_pointer().unwrap().cast::<Ref>();
                    // SAFETY: `qsort` gives addresses of elements, which are references.
                    unsafe { element.read() }
                });
                call.returns(mutator.vm().heap().compare_bytes(a, b).unwrap() as c_int).unwrap();
                Ok(())
            })
            .unwrap();
        let scattered = |index: usize| index.wrapping_mul(0x9E37_79B9) % 1_000_003;
        let mut expected: Vec<String> = (0..count).map(|index| format!("{:07}", scattered(index))).collect();
        let references: Vec<Ref> =
            expected.iter().map(|string| world.vm().heap().alloc(&[], string.as_bytes())).collect();
        let mut guard = mutator.foreign_call();
        for reference in &references {
            guard.pin(*reference).unwrap();
        }
        let mut call = guard.dynamic(&qsort);
        let array = call.copy_slice(&references).unwrap();
        call.value(count).unwrap();
        call.value(size_of::<Ref>()).unwrap();
        call.closure(&compare).unwrap();
        // SAFETY: the array holds `count` references, and the comparator takes addresses of two of them.
        unsafe { call.run() }.unwrap();
        expected.sort();
        let sorted: Vec<Vec<u8>> =
            call.read_slice(array).iter().map(|sorted| world.vm().heap().bytes(*sorted).unwrap()).collect();
        assert!(sorted.iter().map(Vec::as_slice).eq(expected.iter().map(String::as_bytes)), "{count}");
    }
    assert!(comparisons.load(Ordering::Relaxed) > 20_000);
}

#[test]
fn a_closure_calls_itself_through_c_and_others_inside_it() {
    let world = World::new(TestVm::new());
    let inner = Closure::new(&world, &int_to_int(), |mutator, call| {
        TestVm::collect_in(mutator).unwrap();
        let Value::I32(x) = call.argument(0) else { panic!("an `int`") };
        call.returns(x * x).unwrap();
        Ok(())
    })
    .unwrap();
    let own: Arc<Mutex<Option<Callback>>> = Arc::default();
    let (inner_code, own_code) = (code(&inner), Arc::clone(&own));
    let outer = Closure::new(&world, &int_to_int(), move |mutator, call| {
        let Value::I32(x) = call.argument(0) else { panic!("an `int`") };
        let own = own_code.lock().unwrap().unwrap();
        let rest = if x == 0 { 0 } else { call_back(mutator, own, x - 1) };
        call.returns(rest + call_back(mutator, inner_code, x)).unwrap();
        Ok(())
    })
    .unwrap();
    *own.lock().unwrap() = Some(code(&outer));
    let mut mutator = world.attach().unwrap();
    assert_eq!(call_back(&mut mutator, code(&outer), 60), (0..=60).map(|x| x * x).sum::<c_int>());
    assert_eq!(mutator.depth(), 0);
}

#[test]
fn foreign_threads_call_closures_and_are_attached_and_detached() {
    for_each_strategy(|fence| {
        let world = Plain::<91>::world(fence);
        let sum = Closure::new(&world, &int_to_int(), |mutator, call| {
            mutator.poll();
            call.returns(call.argument(0)).unwrap();
            Ok(())
        })
        .unwrap();
        thread::scope(|scope| {
            let pauses = scope.spawn(|| (0..50).for_each(|_| world.pause(|_| thread::yield_now())));
            // SAFETY: the callback is a closure, which knows its world.
            assert_eq!(unsafe { foreign_threads(8, 500, code(&sum)) }, 8 * 124_750);
            pauses.join().unwrap();
        });
        assert_eq!((world.attached(), world.vm().take_reports()), (0, vec![]));
    });
}

#[test]
fn two_worlds_on_one_thread_each_get_the_calls_of_their_own_closures() {
    let worlds = [Plain::<92>::world(FenceStrategy::probe()), Plain::<92>::world(FenceStrategy::Symmetric)];
    let mut mutators = worlds.each_ref().map(|world| world.attach().unwrap());
    let ids = mutators.each_ref().map(|mutator| mutator.id());
    assert_eq!(worlds[0].attached(), 1);
    let closures = worlds.each_ref().map(|world| {
        Closure::new(world, &int_to_int(), |mutator, call| {
            call.returns(i32::try_from(mutator.depth()).unwrap()).unwrap();
            Ok(())
        })
        .unwrap()
    });
    let [first, second] = &mut mutators;
    let [a, b] = closures.each_ref().map(code);
    let both = first.foreign_call().run(|| {
        // SAFETY: calls the callback.
        let inner =
            second.foreign_call().run(|| unsafe { [foreign_call_back(a, 0), foreign_call_back(b, 0)] });
        // SAFETY: as above.
        (inner, unsafe { foreign_call_back(a, 0) })
    });
    assert_eq!(both, ([1, 1], 1));
    assert_ne!(ids[0].max(ids[1]), u64::MAX);
}

#[test]
fn errors_of_closures_go_the_way_of_every_upcalls() {
    let world = World::new(TestVm::new());
    let fails = Closure::builder(&world, &int_to_int()).name("fails").fallback(-1_i64).build(|_, call| {
        match call.argument(0) {
            Value::I32(0) => Err(Trap::NoSuchNative(5)),
            Value::I32(1) => panic_quietly(17),
            Value::I32(2) => Ok(()), // and returns nothing
            other => {
                call.returns(other).unwrap();
                Ok(())
            }
        }
    });
    let fails = fails.unwrap();
    let mut mutator = world.attach().unwrap();
    let mut seen = 0;
    // SAFETY: calls the callback.
    let mut try_call = |x| {
        mutator.foreign_call().try_run(|| {
            // SAFETY: calls the callback.
            seen = unsafe { foreign_call_back(code(&fails), x) };
            seen
        })
    };
    assert_eq!(try_call(0), Err(Trap::NoSuchNative(5)));
    assert_eq!(number(|| try_call(1)), 17);
    let said = message(|| try_call(2));
    assert!(
        said.starts_with("reentry: the closure `fails`, made at ") && said.contains("closures.rs:"),
        "{said}"
    );
    assert!(said.ends_with("returned nothing, and its signature is `int (int)`; call `Invocation::returns`, or return an exception"), "{said}");
    assert_eq!(try_call(3), Ok(3));
    assert_eq!(seen, 3);
    // C's clean-up runs, and sees the fallback value.
    let mut cleaned_up = 0;
    let panicked = number(|| {
        mutator.foreign_call().upcalls_after_error().run(|| {
            // SAFETY: calls the callback twice, with 1 and 2.
            seen = unsafe { foreign_call_back_twice(code(&fails), &raw mut cleaned_up) };
        });
    });
    assert_eq!((panicked, seen, cleaned_up), (17, -2, 2), "the first error goes on");
    assert!(world.vm().take_reports()[0].contains("returned nothing"), "the second is reported");
}

#[test]
fn a_hundred_thousand_errors_in_a_row_leave_nothing_behind() {
    let world = World::new(TestVm::new());
    let fails = Closure::new(&world, &int_to_int(), |_, _| Err(Trap::NoSuchNative(1))).unwrap();
    let mut mutator = world.attach().unwrap();
    for _ in 0..if EMULATED { 10_000 } else { 100_000 } {
        // SAFETY: calls the callback.
        let outcome = mutator.foreign_call().try_run(|| unsafe { foreign_call_back(code(&fails), 1) });
        assert_eq!(outcome, Err(Trap::NoSuchNative(1)));
    }
    assert_eq!(mutator.depth(), 0);
}

#[test]
fn a_closures_own_policy_wins_over_the_calls() {
    let world = World::new(TestVm::new());
    let build = |policy: Option<ErrorPolicy>| {
        let mut builder =
            Closure::builder(&world, &Signature::parse("int (int)").unwrap()).fallback(9).name("stubborn");
        if let Some(policy) = policy {
            builder = builder.on_error(policy);
        }
        builder.build(|_, _| Err(Trap::NoSuchNative(2))).unwrap()
    };
    let (ignored, carried, plain) =
        (build(Some(ErrorPolicy::Fallback)), build(Some(ErrorPolicy::Carry)), build(None));
    let mut mutator = world.attach().unwrap();
    let mut outcome = |closure: &Closure<TestVm>, policy| {
        let call = mutator.foreign_call().on_error(policy);
        // SAFETY: calls the callback.
        { call }.try_run(|| unsafe { foreign_call_back(code(closure), 1) })
    };
    assert_eq!(outcome(&ignored, ErrorPolicy::Carry), Ok(9));
    assert_eq!(outcome(&carried, ErrorPolicy::Fallback), Err(Trap::NoSuchNative(2)));
    assert_eq!(outcome(&plain, ErrorPolicy::Fallback), Ok(9));
    assert_eq!(outcome(&plain, ErrorPolicy::Carry), Err(Trap::NoSuchNative(2)));
    assert_eq!(world.vm().take_reports().len(), 2);
}

#[test]
fn what_cannot_be_a_closure_is_refused() {
    let world = World::new(TestVm::new());
    let variadic = Signature::parse("int (int, ...)").unwrap();
    let error = Closure::new(&world, &variadic, |_, _| Ok(())).unwrap_err();
    assert_eq!(error, ClosureError::Variadic(variadic));
    assert_eq!(
        error.to_string(),
        "a closure cannot take `...`: nothing says what C has passed; declare `int (int, ...)` without it"
    );
    let error = Closure::builder(&world, &int_to_int()).fallback(0.5).build(|_, _| Ok(())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the fallback value is of the wrong type: `int` was expected, and the `double` 0.5 came"
    );
    let closure = Closure::new(&world, &int_to_int(), |_, call| {
        let error = call.returns(0.5).unwrap_err();
        assert_eq!(error.to_string(), "`int` was expected, and the `double` 0.5 came");
        call.returns(i64::from(u32::MAX)).unwrap_err();
        call.returns(1).unwrap();
        call.returns(2_u8).unwrap(); // the last counts
        Ok(())
    })
    .unwrap();
    let mut mutator = world.attach().unwrap();
    assert_eq!(call_back(&mut mutator, code(&closure), 0), 2);
}

/// SCENARIO 39: after its owner has dropped it, and after a collection.
#[test]
fn a_closure_called_after_it_was_dropped_is_reported_by_name_and_place_and_c_gets_the_fallback_value() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let object = world.vm().heap().alloc(&[], b"held by the closure");
    let handle = mutator.handle(object);
    let closure =
        Closure::builder(&world, &int_to_int()).name("on_event").fallback(-7).build(move |mutator, call| {
            call.returns(mutator.vm().heap().bytes(mutator.load(&handle)).unwrap()[0]).unwrap();
            Ok(())
        });
    let closure = closure.unwrap();
    let site = format!("{}", closure.made_at());
    let code = code(&closure);
    TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!(call_back(&mut mutator, code, 0), i32::from(b'h'));
    drop(closure);
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().freed, 1, "the body went, and its handle");
    for _ in 0..3 {
        assert_eq!(call_back(&mut mutator, code, 0), -7);
    }
    // SAFETY: calls the callback.
    assert_eq!(unsafe { foreign_call_back_elsewhere(code, 0) }, -7, "from an unknown thread too");
    let reports = world.vm().take_reports();
    let expected = format!(
        "foreign code called the closure `on_event`, made at {site}, after it had been dropped; C got the fallback value. Keep the closure until C has forgotten it"
    );
    assert_eq!(reports, [expected.as_str(); 4]);
    assert!(site.contains("closures.rs:"));
    assert_eq!(world.attached(), 1, "a call that is too late attaches nobody");
    // And when the world is gone.
    drop(mutator);
    drop(world);
    assert_eq!(code(0), -7);
}

#[test]
fn a_struct_result_has_a_fallback_too() {
    let world = World::new(TestVm::new());
    let signature = Signature::parse("struct pair { int64_t a, b; } (void)").unwrap();
    let bytes: Vec<u8> = [5_i64, 6].into_iter().flat_map(i64::to_ne_bytes).collect();
    let closure = Closure::builder(&world, &signature)
        .fallback(Value::Bytes(&bytes))
        .build(|_, _| Err(Trap::NoSuchNative(1)))
        .unwrap();
    let function = Function::new(closure.code(), "pair", &signature).unwrap();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().on_error(ErrorPolicy::Fallback).dynamic(&function);
    for dropped in [false, true] {
        // SAFETY: the closure has this signature.
        unsafe { call.run() }.unwrap();
        assert_eq!(call.result(), Value::Bytes(&bytes), "{dropped}");
    }
    drop(closure);
    // SAFETY: as above; in quarantine.
    unsafe { call.run() }.unwrap();
    assert_eq!(call.result(), Value::Bytes(&bytes));
}

/// Counts drops.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The body's own call goes on to its end; what it holds goes when that is over, and not before.
#[test]
fn a_closure_that_drops_itself_runs_to_its_end() {
    for_each_strategy(|fence| {
        let world = Plain::<93>::world(fence);
        let (slot, drops): (Arc<Mutex<Option<Closure<_>>>>, _) =
            (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let (own, held) = (Arc::clone(&slot), Dropped(Arc::clone(&drops)));
        let closure = Closure::new(&world, &int_to_int(), move |mutator, call| {
            let Value::I32(x) = call.argument(0) else { panic!("an `int`") };
            if x > 0 {
                let again = own.lock().unwrap().as_ref().map(code).unwrap();
                call.returns(call_back(mutator, again, x - 1)).unwrap();
                // The owner is gone since the innermost call; this one is in the body still.
                assert_eq!(held.0.load(Ordering::Relaxed), 0);
                return Ok(());
            }
            drop(own.lock().unwrap().take());
            assert_eq!(held.0.load(Ordering::Relaxed), 0);
            call.returns(33).unwrap();
            Ok(())
        });
        let code = code(slot.lock().unwrap().insert(closure.unwrap()));
        let mut mutator = world.attach().unwrap();
        // Its guard is taken out by the innermost call, so the outer ones ask for nothing.
        assert_eq!(call_back(&mut mutator, code, 0), 33);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert_eq!(call_back(&mut mutator, code, 0), 0, "too late");
        assert_eq!(world.vm().take_reports().len(), 1);
    });
}

/// One thread is in the closure, another drops it: the drop waits for nobody, and the body goes with the last one out.
#[test]
fn a_closure_dropped_while_other_threads_are_in_it_ends_with_the_last_of_them() {
    for_each_strategy(|fence| {
        let world = Plain::<94>::world(fence);
        let (steps, drops) = (Arc::new(Steps::new()), Arc::new(AtomicUsize::new(0)));
        let (inside, held) = (Arc::clone(&steps), Dropped(Arc::clone(&drops)));
        let mut mutator = world.attach().unwrap();
        let closure = Closure::new(&world, &int_to_int(), move |mutator, call| {
            // SAFETY: C touches the word alone, which lives.
            mutator.foreign_call().run(|| unsafe { foreign_meet(inside.word(), 1, 2) });
            assert_eq!(held.0.load(Ordering::Relaxed), 0);
            call.returns(call.argument(0)).unwrap();
            Ok(())
        });
        let closure = closure.unwrap();
        let code = code(&closure);
        thread::scope(|scope| {
            // SAFETY: calls the callback.
            let foreign = scope.spawn(move || unsafe { foreign_call_back(code, 8) });
            steps.wait(1);
            drop(closure);
            assert_eq!(drops.load(Ordering::Relaxed), 0, "somebody is inside");
            assert_eq!(call_back(&mut mutator, code, 1), 0, "who comes now is too late");
            steps.reach(2);
            assert_eq!(foreign.join().unwrap(), 8);
        });
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert_eq!(world.vm().take_reports().len(), 1);
    });
}

/// The same by chance, many times: threads call without a break, and the closure is dropped under them. Every call gets the result or the fallback value, and every body is dropped once.
#[test]
fn closures_dropped_under_callers_answer_each_of_them() {
    let world = Plain::<95>::world(FenceStrategy::probe());
    let (drops, rounds) = (Arc::new(AtomicUsize::new(0)), 300);
    let mut mutator = world.attach().unwrap();
    for _ in 0..rounds {
        let held = Dropped(Arc::clone(&drops));
        let closure = Closure::builder(&world, &int_to_int()).fallback(-1).build(move |_, call| {
            assert!(held.0.load(Ordering::Relaxed) < rounds);
            call.returns(call.argument(0)).unwrap();
            Ok(())
        });
        let closure = closure.unwrap();
        let (code, late) = (code(&closure), AtomicU32::new(0));
        mutator.foreign_call().run(|| {
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        // Until two calls have come too late.
                        while late.load(Ordering::Relaxed) < 2 {
                            // SAFETY: calls the callback.
                            match unsafe { foreign_call_back(code, 4) } {
                                4 => {}
                                -1 => drop(late.fetch_add(1, Ordering::Relaxed)),
                                other => panic!("{other}"),
                            }
                        }
                    });
                }
                // SAFETY: calls the callback.
                assert_eq!(unsafe { foreign_call_back_many(code, 10) }, 45);
                drop(closure);
            });
        });
    }
    assert_eq!(drops.load(Ordering::Relaxed), rounds);
    assert!(world.vm().take_reports().len() >= 2 * rounds);
}

#[test]
fn a_closure_left_to_c_lasts_until_its_function_pointer_comes_back() {
    let (world, other) = (World::new(TestVm::new()), World::new(TestVm::new()));
    let drops = Arc::new(AtomicUsize::new(0));
    let held = Dropped(Arc::clone(&drops));
    let closure = Closure::builder(&world, &int_to_int()).name("left to C").build(move |_, call| {
        call.returns(i32::try_from(held.0.load(Ordering::Relaxed)).unwrap() + 3).unwrap();
        Ok(())
    });
    let raw = closure.unwrap().into_raw();
    let mut mutator = world.attach().unwrap();
    assert_eq!(call_back(&mut mutator, callback(raw), 0), 3);
    let error = other.release_closure(raw).unwrap_err();
    assert_eq!(error.address, raw.addr());
    assert!(
        error
            .to_string()
            .contains("is not the function pointer of a closure of this world that was left to C")
    );
    assert_eq!(world.release_closure(core::ptr::null()).unwrap_err().address, 0);
    // Taken back, it is an owner again.
    let closure = world.closure_from_raw(raw).unwrap();
    assert_eq!(closure.name(), "left to C");
    assert_eq!(world.release_closure(raw).unwrap_err().address, raw.addr(), "it has come back");
    assert_eq!(closure.into_raw(), raw);
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    world.release_closure(raw).unwrap();
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    assert!(world.release_closure(raw).is_err());
    assert_eq!(call_back(&mut mutator, callback(raw), 0), 0, "too late");
}

#[test]
fn a_closure_does_not_keep_its_world() {
    let world = World::new(TestVm::new());
    let held = Arc::new(());
    let in_body = Arc::clone(&held);
    let closure = Closure::new(&world, &int_to_int(), move |_, _| {
        let _ = &in_body;
        Ok(())
    });
    let closure = closure.unwrap();
    let weak = {
        let totals = world.vm().totals();
        drop(world);
        totals
    };
    assert_eq!(weak, (0, 0));
    // The world is gone: there is nobody to run the body.
    assert_eq!(code(&closure)(1), 0);
    assert_eq!(Arc::strong_count(&held), 2);
    drop(closure);
    assert_eq!(Arc::strong_count(&held), 1);
}

/// Memory that can be executed cannot be written at the same time.
#[cfg(target_os = "linux")]
#[test]
fn no_memory_of_closures_can_be_written_and_executed_at_once() {
    let world = World::new(TestVm::new());
    let closures: Vec<_> = (0..500)
        .map(|x| {
            Closure::new(&world, &int_to_int(), move |_, call| {
                call.returns(x).unwrap();
                Ok(())
            })
            .unwrap()
        })
        .collect();
    let mut mutator = world.attach().unwrap();
    for (x, closure) in (0..).zip(&closures) {
        assert_eq!(call_back(&mut mutator, code(closure), 0), x);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut executable = 0;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (range, permissions) = (words.next().unwrap(), words.next().unwrap());
        assert!(!(permissions.contains('w') && permissions.contains('x')), "{line}");
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16).unwrap());
        if closures.iter().any(|closure| (start..end).contains(&closure.code().addr())) {
            assert!(permissions.contains('x'), "{line}");
            executable += 1;
        }
    }
    assert!(executable > 0);
}

#[test]
fn a_world_that_is_shut_down_gives_late_foreign_threads_the_fallback_value() {
    let world = Plain::<96>::world(FenceStrategy::probe());
    let closure = Closure::builder(&world, &int_to_int())
        .fallback(-3)
        .build(|_, call| {
            call.returns(call.argument(0)).unwrap();
            Ok(())
        })
        .unwrap();
    world.shutdown();
    // SAFETY: calls the callback.
    assert_eq!(unsafe { foreign_call_back_elsewhere(code(&closure), 0) }, -3);
    let reports = world.vm().take_reports();
    let [report] = &reports[..] else { panic!("{reports:?}") };
    let said = "a foreign thread called in after shutdown; C got the fallback value\n  which: `";
    assert!(report.starts_with(said), "{report}");
    thread::sleep(Duration::ZERO);
}
