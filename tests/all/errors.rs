//! I7: an error of an upcall stops at the boundary, C gets a fallback value and cleans up, and the error goes on in the managed caller, or ends where its policy says.
//!
//! Origins: Go's TestCallbackPanic, TestCallbackPanicLoop, TestCthread, ExternalThreadPanic.

use crate::plain::{caught, message, number, panic_quietly};
use crate::raising::{Counted, Holdings, Oops, Raising, Told};
use core::cell::Cell;
use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};
use reentry::{
    Aborting, ErrorPolicy, FallbackOnly, Mutator, Throwing, Thrown, UpcallClosure, World, upcall_fn_or,
};
use reentry_foreign::{
    Callback, foreign_call_back, foreign_call_back_and_clean_up, foreign_call_back_holding,
    foreign_call_back_last, foreign_call_back_twice, foreign_threads,
};

type Vm = Raising<500>;

/// How an upcall fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// It panics.
    Panic,
    /// Its body, which is `Throwing`, returns the exception.
    Return,
    /// It makes the exception the outcome, and returns to C what it likes.
    Throw,
}

const EVERY_WAY: [How; 3] = [How::Panic, How::Return, How::Throw];

/// What C gets from an upcall that failed.
const FALLBACK: c_int = -7;

thread_local! {
    static HOW: Cell<How> = const { Cell::new(How::Panic) };
    /// Whether calls between the innermost and the outermost use `try_run`.
    static CATCH_BETWEEN: Cell<bool> = const { Cell::new(false) };
    static HOLDINGS: Cell<Holdings> = const { Cell::new(Holdings { held: 0, cleaned_up: 0 }) };
    /// What C got, innermost first, in decimal digits: a fallback is a 7.
    static GOT: Cell<u64> = const { Cell::new(0) };
}

/// # Errors
///
/// Unless it panics, or throws by hand.
fn fail(mutator: &mut Mutator<Vm>) -> Result<c_int, Oops> {
    match HOW.get() {
        How::Panic => panic_quietly(5),
        How::Return => Err(Oops::Number(5)),
        How::Throw => {
            mutator.throw(Oops::Number(5));
            Ok(FALLBACK)
        }
    }
}

/// C that holds a block of memory across a callback; what it got, and holds, is noted.
fn hold(callback: Callback, x: c_int) -> c_int {
    let mut holdings = HOLDINGS.get();
    // SAFETY: C writes the two counts.
    let got = unsafe {
        foreign_call_back_holding(callback, x, &raw mut holdings.held, &raw mut holdings.cleaned_up)
    };
    let inner = HOLDINGS.get();
    HOLDINGS.set(Holdings { held: holdings.held, cleaned_up: inner.cleaned_up + holdings.cleaned_up });
    GOT.set(10 * GOT.get() + u64::from(got.unsigned_abs()));
    got
}

/// `levels` foreign calls further in, an upcall fails.
///
/// # Errors
///
/// What the innermost fails with, if it is no panic.
fn descend(mutator: &mut Mutator<Vm>, levels: c_int) -> Result<c_int, Oops> {
    if levels == 0 {
        return fail(mutator);
    }
    let mut call = mutator.foreign_call();
    let callback = descending();
    // Each level counts its own block, so that a level that C did not clean up shows.
    let outside = HOLDINGS.replace(Holdings::default());
    let restore = scopeguard::guard(outside, |outside| {
        let own = HOLDINGS.get();
        HOLDINGS
            .set(Holdings { held: outside.held + own.held, cleaned_up: outside.cleaned_up + own.cleaned_up });
    });
    let result = if CATCH_BETWEEN.get() {
        call.try_run(|| hold(callback, levels - 1))?
    } else {
        call.run(|| hold(callback, levels - 1))
    };
    drop(restore);
    Ok(result)
}

fn descending() -> Callback {
    upcall_fn_or(Throwing(descend), || FALLBACK)
}

/// Fails `depth` levels in and returns the exception; a panic must be a quiet one, and becomes its number.
fn fail_at(mutator: &mut Mutator<Vm>, depth: c_int) -> u32 {
    HOLDINGS.set(Holdings::default());
    GOT.set(0);
    let mut call = mutator.foreign_call();
    if HOW.get() == How::Panic {
        return number(|| call.run(|| hold(descending(), depth - 1)));
    }
    call.try_run(|| hold(descending(), depth - 1)).expect_err("it fails").number()
}

/// Go's TestCallbackPanic: at the outermost level, three deep and ten deep, each level with a foreign call of its own.
#[test]
fn an_error_gives_c_its_fallback_at_each_level_c_cleans_up_and_the_managed_caller_has_the_error() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    for how in EVERY_WAY {
        for catch_between in [false, true] {
            for depth in [1, 3, 10] {
                HOW.set(how);
                CATCH_BETWEEN.set(catch_between);
                assert_eq!(fail_at(&mut mutator, depth), 5, "{how:?} {catch_between} {depth}");
                assert_eq!(HOLDINGS.get(), Holdings { held: 0, cleaned_up: depth }, "{how:?} {depth}");
                assert_eq!(GOT.get(), (0..depth).fold(0, |got, _| 10 * got + 7), "{how:?} {depth}");
                assert_eq!((mutator.depth(), world.vm().take_reports()), (0, vec![]));
            }
        }
    }
}

/// An exception that passes managed frames which did not ask for it is a panic there, with the exception as its payload.
#[test]
fn an_exception_passes_run_as_a_panic_that_carries_it_and_try_run_gives_it_back() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    HOW.set(How::Return);
    CATCH_BETWEEN.set(false);
    let payload = caught(|| mutator.foreign_call().run(|| hold(descending(), 2)));
    let Thrown(exception) = *payload.downcast::<Thrown<Oops>>().expect("it carries the exception");
    assert_eq!(exception.number(), 5);
    // And an exception caught in an upcall is over: C goes on with the upcall's own result.
    let recover = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, x: c_int| {
        let outcome = mutator.foreign_call().try_run(|| hold(descending(), 0));
        assert_eq!(outcome.expect_err("thrown").number(), 5);
        x
    });
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let run = || unsafe { foreign_call_back_last(recover.data_last(), 3, recover.data()) };
    assert_eq!(mutator.foreign_call().run(run), 3);
    assert_eq!(world.vm().take_reports(), []);
}

/// A call that did not fail gives its result, by either way of running it, and so does the next one after a failure.
#[test]
fn a_call_after_a_failed_one_is_none_the_worse() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let half: Callback = upcall_fn_or(
        Throwing(
            |_: &mut Mutator<Vm>, x: c_int| if x % 2 == 0 { Ok(x / 2) } else { Err(Oops::Number(x as u32)) },
        ),
        || FALLBACK,
    );
    let mut call = mutator.foreign_call();
    for x in 0..100 {
        // SAFETY: the callback takes an `int` and gives one.
        match call.try_run(|| unsafe { foreign_call_back(half, x) }) {
            Ok(result) => assert_eq!(2 * result, x),
            Err(exception) => assert_eq!(exception.number(), x as u32),
        }
    }
    // SAFETY: as above.
    assert_eq!(call.run(|| unsafe { foreign_call_back(half, 8) }), 4);
}

/// Two upcalls of one call fail. The first error is carried; the second is reported, and ends.
#[test]
fn the_first_of_two_errors_is_carried_and_the_second_is_reported() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let fail = |first: How, second: How| {
        Throwing(move |mutator: &mut Mutator<Vm>, x: c_int| {
            HOW.set(if x == 1 { first } else { second });
            match HOW.get() {
                How::Panic => panic_quietly(x as u32),
                How::Return => Err(Oops::Number(x as u32)),
                How::Throw => {
                    mutator.throw(Oops::Number(x as u32));
                    Ok(FALLBACK)
                }
            }
        })
    };
    for first in EVERY_WAY {
        for second in EVERY_WAY {
            let closure = UpcallClosure::with_fallback(&world, fail(first, second), FALLBACK);
            let (function, data) = (closure.data_last(), closure.data());
            let mut call = mutator.foreign_call().upcalls_after_error();
            let mut got = (0, 0);
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            let mut run = || got = unsafe { (function(1, data), function(2, data)) };
            let carried = if first == How::Panic {
                number(|| call.run(&mut run))
            } else {
                call.try_run(&mut run).expect_err("thrown").number()
            };
            assert_eq!(carried, 1, "{first:?} {second:?}");
            assert_eq!(got, (FALLBACK, FALLBACK));
            let superseded = if second == How::Panic { "panic 2" } else { "Number(2)" };
            assert_eq!(world.vm().take_reports(), [Told::Superseded(superseded.to_owned())]);
        }
    }
    // One upcall can fail twice by itself.
    let twice = Throwing(|mutator: &mut Mutator<Vm>, _: c_int| -> Result<c_int, Oops> {
        mutator.throw(Oops::Number(1));
        mutator.throw(Oops::Number(2));
        Err(Oops::Number(3))
    });
    let closure = UpcallClosure::with_fallback(&world, twice, FALLBACK);
    // SAFETY: as above.
    let run = || unsafe { foreign_call_back_last(closure.data_last(), 0, closure.data()) };
    assert_eq!(mutator.foreign_call().try_run(run).expect_err("thrown").number(), 1);
    let superseded = ["Number(2)", "Number(3)"].map(|oops| Told::Superseded(oops.to_owned()));
    assert_eq!(world.vm().take_reports(), superseded);
}

/// Each of C's two callbacks fails; C cleans up after each.
#[test]
fn c_goes_on_after_an_error_and_calls_back_again() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let callback =
        upcall_fn_or(Throwing(|_: &mut Mutator<Vm>, x: c_int| Err(Oops::Number(x as u32))), || FALLBACK);
    let mut cleaned_up = 0;
    let mut got = 0;
    let outcome = mutator.foreign_call().upcalls_after_error().try_run(|| {
        // SAFETY: C writes the count.
        got = unsafe { foreign_call_back_twice(callback, &raw mut cleaned_up) };
    });
    assert_eq!(outcome.expect_err("thrown").number(), 1);
    assert_eq!((got, cleaned_up), (2 * FALLBACK, 2));
    assert_eq!(world.vm().take_reports(), [Told::Superseded("Number(2)".to_owned())]);
}

/// Whatever becomes of an exception, it is dropped once, and not before its end.
#[test]
fn an_exception_is_dropped_exactly_once_in_every_outcome() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let throwing = |times: u32| {
        let counters: std::sync::Mutex<Vec<_>> = std::sync::Mutex::new(Vec::new());
        let counters = std::sync::Arc::new(counters);
        let kept = std::sync::Arc::clone(&counters);
        let closure = UpcallClosure::new(
            &world,
            Throwing(move |mutator: &mut Mutator<Vm>, _: c_int| -> Result<c_int, Oops> {
                for last in (0..times).rev() {
                    let (exception, counter) = Counted::new();
                    kept.lock().unwrap().push(counter);
                    if last == 0 {
                        return Err(Oops::Counted(exception));
                    }
                    mutator.throw(Oops::Counted(exception));
                }
                Ok(0)
            }),
        );
        let dropped = move || {
            let counters = counters.lock().unwrap();
            counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect::<Vec<_>>()
        };
        (closure, dropped)
    };
    macro_rules! call {
        ($closure:ident) => {
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            || unsafe { foreign_call_back_last($closure.data_last(), 0, $closure.data()) }
        };
    }

    let (upcall, dropped) = throwing(1);
    let outcome = mutator.foreign_call().try_run(call!(upcall));
    assert_eq!(dropped(), [0], "the caller has it");
    drop(outcome);
    assert_eq!(dropped(), [1]);

    let (upcall, dropped) = throwing(1);
    let payload = caught(|| mutator.foreign_call().run(call!(upcall)));
    assert_eq!(dropped(), [0], "the panic has it");
    drop(payload);
    assert_eq!(dropped(), [1]);

    let (upcall, dropped) = throwing(3);
    let outcome = mutator.foreign_call().try_run(call!(upcall));
    assert_eq!(dropped(), [0, 1, 1], "two are superseded");
    drop(outcome);
    assert_eq!(dropped(), [1, 1, 1]);

    let (upcall, dropped) = throwing(2);
    mutator.foreign_call().on_error(ErrorPolicy::Fallback).run(call!(upcall));
    assert_eq!(dropped(), [1, 1], "ignored");

    let (upcall, dropped) = throwing(1);
    let overtaking = number(|| {
        mutator.foreign_call().run(|| {
            call!(upcall)();
            assert_eq!(dropped(), [0]);
            panic_quietly(9)
        })
    });
    assert_eq!((overtaking, dropped()), (9, vec![1]), "overtaken");

    let (upcall, dropped) = throwing(1);
    // SAFETY: as above; the thread is one the VM has never seen.
    std::thread::scope(|scope| _ = scope.spawn(|| call!(upcall)()).join().unwrap());
    assert_eq!(dropped(), [1], "nobody's");
}

/// What a foreign call and an upcall function may say about errors, and which of them wins: the function.
#[test]
fn an_upcall_functions_policy_wins_over_the_calls() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let plain =
        UpcallClosure::with_fallback(&world, Throwing(|m: &mut Mutator<Vm>, _: c_int| fail(m)), FALLBACK);
    let reporting = UpcallClosure::with_fallback(
        &world,
        FallbackOnly(Throwing(|m: &mut Mutator<Vm>, _: c_int| fail(m))),
        FALLBACK,
    );
    // The outer of two wrappers is the one that counts. (`Aborting` alone: see tests/aborts.rs.)
    let both = UpcallClosure::with_fallback(
        &world,
        FallbackOnly(Aborting(Throwing(|m: &mut Mutator<Vm>, _: c_int| fail(m)))),
        FALLBACK,
    );
    let plain_item: Callback = upcall_fn_or(Throwing(|m: &mut Mutator<Vm>, _: c_int| fail(m)), || FALLBACK);
    let reporting_item: Callback =
        upcall_fn_or(FallbackOnly(Throwing(|m: &mut Mutator<Vm>, _: c_int| fail(m))), || FALLBACK);
    macro_rules! call {
        ($closure:ident) => {
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            &|| unsafe { foreign_call_back_last($closure.data_last(), 0, $closure.data()) }
        };
    }
    let calls: [(bool, &dyn Fn() -> c_int); 5] = [
        (false, call!(plain)),
        (true, call!(reporting)),
        (true, call!(both)),
        // SAFETY: the callback takes an `int` and gives one.
        (false, &|| unsafe { foreign_call_back(plain_item, 0) }),
        // SAFETY: as above.
        (true, &|| unsafe { foreign_call_back(reporting_item, 0) }),
    ];
    for how in EVERY_WAY {
        HOW.set(how);
        let told = if how == How::Panic { "panic 5" } else { "Number(5)" };
        for (index, (own, upcall)) in calls.iter().enumerate() {
            for policy in [None, Some(ErrorPolicy::Carry), Some(ErrorPolicy::Fallback)] {
                let mut got = 0;
                let call = mutator.foreign_call();
                let mut call = match policy {
                    Some(policy) => call.on_error(policy),
                    None => call,
                };
                let ignored = *own || policy == Some(ErrorPolicy::Fallback);
                let what = format!("{how:?}, upcall {index}, {policy:?}");
                if ignored {
                    call.run(|| got = upcall());
                    drop(call);
                    assert_eq!(world.vm().take_reports(), [Told::Ignored(told.to_owned())], "{what}");
                } else {
                    let carried = match how {
                        How::Panic => number(|| call.run(|| got = upcall())),
                        _ => call.try_run(|| got = upcall()).expect_err(&what).number(),
                    };
                    drop(call);
                    assert_eq!((carried, world.vm().take_reports()), (5, vec![]), "{what}");
                }
                assert_eq!(got, FALLBACK, "{what}");
            }
        }
    }
}

/// A policy is of the upcall it was given to: an upcall further in has its own, or none.
#[test]
fn a_functions_policy_does_not_reach_the_upcalls_of_its_own_foreign_calls() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let inner = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, x: c_int| {
        mutator.throw(Oops::Number(2));
        x
    });
    let outer = FallbackOnly(|mutator: &mut Mutator<Vm>, x: c_int| {
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        let run = || unsafe { foreign_call_back_last(inner.data_last(), 0, inner.data()) };
        assert_eq!(mutator.foreign_call().try_run(run).expect_err("carried").number(), 2);
        mutator.throw(Oops::Number(3));
        x
    });
    let outer = UpcallClosure::new(&world, outer);
    // SAFETY: as above.
    let run = || unsafe { foreign_call_back_last(outer.data_last(), 4, outer.data()) };
    assert_eq!(mutator.foreign_call().run(run), 4);
    assert_eq!(world.vm().take_reports(), [Told::Ignored("Number(3)".to_owned())]);
    // And it ends with the upcall: the next, in the same activation, carries its exception.
    // SAFETY: as above.
    let run = || unsafe { foreign_call_back_last(inner.data_last(), 4, inner.data()) };
    assert_eq!(mutator.foreign_call().try_run(run).expect_err("carried").number(), 2);
    // Also after a panic.
    let panics = UpcallClosure::new(
        &world,
        FallbackOnly(|_: &mut Mutator<Vm>, _: c_int| -> c_int { panic_quietly(1) }),
    );
    // SAFETY: as above.
    mutator.foreign_call().run(|| unsafe { foreign_call_back_last(panics.data_last(), 4, panics.data()) });
    assert_eq!(mutator.foreign_call().try_run(run).expect_err("carried").number(), 2);
    assert_eq!(world.vm().take_reports(), [Told::Ignored("panic 1".to_owned())]);
}

/// What is written names the foreign call and what happened.
#[test]
fn a_report_of_an_ignored_error_names_the_call_and_the_error() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let closure = UpcallClosure::new(&world, |m: &mut Mutator<Vm>, x: c_int| {
        m.throw(Oops::Number(6));
        x
    });
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let upcall = || unsafe { foreign_call_back_last(closure.data_last(), 4, closure.data()) };
    let line = line!() + 1;
    mutator.foreign_call().on_error(ErrorPolicy::Fallback).run(upcall);
    let texts = world.vm().take_texts();
    let [text] = &texts[..] else { panic!("{texts:?}") };
    assert!(text.contains(&format!("{}:{line}", file!())), "{text}");
    assert!(text.contains("threw Number(6)"), "{text}");
    assert!(message(|| mutator.throw(Oops::Number(1))).contains("it is in no upcall"));
}

/// Go's TestCthread and ExternalThreadPanic: raw threads call in, and no managed caller is below them.
#[test]
fn an_error_on_a_foreign_thread_is_reported_and_the_threads_later_upcalls_work() {
    type Vm = Raising<501>;
    static RECOVERED: AtomicU32 = AtomicU32::new(0);
    /// # Errors
    ///
    /// Always.
    fn throw(_: &mut Mutator<Vm>, x: c_int) -> Result<c_int, Oops> {
        Err(Oops::Number(x as u32))
    }
    /// Odd upcalls fail, each in its way; each recovers from an error of its own first.
    ///
    /// # Errors
    ///
    /// For one `x`.
    fn upcall(mutator: &mut Mutator<Vm>, x: c_int) -> Result<c_int, Oops> {
        let inner = upcall_fn_or(Throwing(throw), || FALLBACK);
        let mut cleaned_up = 0;
        let outcome = mutator.foreign_call().try_run(|| {
            // SAFETY: C writes the count.
            unsafe { foreign_call_back_and_clean_up(inner, x, &raw mut cleaned_up) }
        });
        assert_eq!((outcome.expect_err("thrown").number(), cleaned_up), (x as u32, 1));
        RECOVERED.fetch_add(1, Ordering::Relaxed);
        match x {
            1 => panic_quietly(1),
            3 => Err(Oops::Number(3)),
            5 => {
                mutator.throw(Oops::Number(5));
                Ok(FALLBACK)
            }
            _ => Ok(x),
        }
    }
    let world = Vm::world();
    world.adopt_foreign_threads();
    let mut mutator = world.attach().unwrap();
    let callback = upcall_fn_or(Throwing(upcall), || FALLBACK);
    // SAFETY: the callback takes an `int` and gives one; it may be called from any thread.
    let sum = mutator.foreign_call().run(|| unsafe { foreign_threads(6, 10, callback) });
    assert_eq!(
        sum,
        6 * i64::from((0..10).map(|x| if matches!(x, 1 | 3 | 5) { FALLBACK } else { x }).sum::<c_int>())
    );
    assert_eq!(RECOVERED.load(Ordering::Relaxed), 60);
    let mut reports = world.vm().take_reports();
    reports.sort_by_key(|told| format!("{told:?}"));
    let expected =
        ["Number(3)", "Number(5)", "panic 1"].map(|error| vec![Told::Unclaimed(error.to_owned()); 6]);
    assert_eq!(reports, expected.concat());
    assert_eq!(world.attached(), 1);
}

/// A policy holds on foreign threads too: what is asked to be reported is.
#[test]
fn a_functions_policy_holds_on_a_foreign_thread() {
    let world = Vm::world();
    let closure = UpcallClosure::with_fallback(
        &world,
        FallbackOnly(|_: &mut Mutator<Vm>, _: c_int| -> c_int { panic_quietly(4) }),
        FALLBACK,
    );
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let upcall = || unsafe { foreign_call_back_last(closure.data_last(), 4, closure.data()) };
    std::thread::scope(|scope| assert_eq!(scope.spawn(upcall).join().unwrap(), FALLBACK));
    assert_eq!(world.vm().take_reports(), [Told::Ignored("panic 4".to_owned())]);
}

/// A destructor that runs during a panic makes a foreign call, whose upcall fails: a panic that left the destructor would end the process.
#[test]
fn an_error_in_a_foreign_call_made_while_unwinding_is_reported_and_not_resumed() {
    struct Closing<'m> {
        mutator: &'m mut Mutator<Vm>,
        world: &'m World<Vm>,
    }
    impl Drop for Closing<'_> {
        fn drop(&mut self) {
            assert!(std::thread::panicking());
            // A body that works works as ever.
            let fine = UpcallClosure::new(self.world, |_: &mut Mutator<Vm>, x: c_int| 2 * x);
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            let run = || unsafe { foreign_call_back_last(fine.data_last(), 4, fine.data()) };
            assert_eq!(self.mutator.foreign_call().run(run), 8);
            for how in EVERY_WAY {
                HOW.set(how);
                let upcall = Throwing(|mutator: &mut Mutator<Vm>, _: c_int| fail(mutator));
                let upcall = UpcallClosure::with_fallback(self.world, upcall, FALLBACK);
                // SAFETY: as above.
                let run = || unsafe { foreign_call_back_last(upcall.data_last(), 4, upcall.data()) };
                assert_eq!(self.mutator.foreign_call().run(run), FALLBACK, "C's result");
                let told = if how == How::Panic { "panic 5" } else { "Number(5)" };
                assert_eq!(self.world.vm().take_reports(), [Told::Superseded(told.to_owned())]);
                // The other two ways to make a call.
                let mut call = self.mutator.foreign_call();
                // SAFETY: the guard is dropped before the mutator is used again.
                let foreign = unsafe { call.enter() };
                assert_eq!(run(), FALLBACK);
                drop(foreign);
                assert_eq!(self.world.vm().take_reports(), [Told::Superseded(told.to_owned())]);
                // An exception that is asked for is no panic, and is given.
                if how != How::Panic {
                    assert_eq!(call.try_run(run).expect_err("thrown").number(), 5);
                }
            }
        }
    }
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let unwound = number(|| {
        let _closing = Closing { mutator: &mut mutator, world: &world };
        panic_quietly(1)
    });
    assert_eq!((unwound, world.vm().take_reports()), (1, vec![]));
    HOW.set(How::Return);
    assert_eq!(fail_at(&mut mutator, 3), 5);
}

/// The guard form: dropped, it panics with the error; left, it gives the exception.
#[test]
fn the_guard_form_gives_an_exception_when_left_and_panics_when_dropped() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let upcall =
        UpcallClosure::with_fallback(&world, Throwing(|m: &mut Mutator<Vm>, _: c_int| fail(m)), FALLBACK);
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let upcall = || unsafe { foreign_call_back_last(upcall.data_last(), 4, upcall.data()) };
    let mut call = mutator.foreign_call();
    for how in EVERY_WAY {
        HOW.set(how);
        // SAFETY: each guard is dropped or left before the mutator is used again.
        let foreign = unsafe { call.enter() };
        assert_eq!(upcall(), FALLBACK);
        if how == How::Panic {
            assert_eq!(number(|| foreign.leave()), 5);
        } else {
            assert_eq!(foreign.leave().expect_err("thrown").number(), 5);
        }
        // SAFETY: as above.
        let foreign = unsafe { call.enter() };
        upcall();
        let payload = caught(|| drop(foreign));
        match how {
            How::Panic => assert_eq!(payload.downcast_ref::<u32>(), Some(&5)),
            _ => assert!(payload.downcast_ref::<Thrown<Oops>>().is_some()),
        }
        // SAFETY: as above.
        let foreign = unsafe { call.enter() };
        assert!(foreign.leave().is_ok(), "nothing is left of it");
    }
    // Managed code between `enter` and the drop panics: that is the panic that goes on.
    let unwound = number(|| {
        // SAFETY: dropped while unwinding.
        let _foreign = unsafe { call.enter() };
        upcall();
        panic_quietly(8)
    });
    assert_eq!((unwound, world.vm().take_reports()), (8, vec![Told::Superseded("Number(5)".to_owned())]));
    drop(call);
    assert_eq!((mutator.depth(), fail_at(&mut mutator, 2)), (0, 5));
}

/// The other forms of running a call are `run` underneath.
#[test]
fn every_form_of_a_foreign_call_carries_an_error() {
    type Function = unsafe extern "C" fn(Callback, c_int) -> c_int;
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let upcall: Callback = upcall_fn_or(Throwing(|m: &mut Mutator<Vm>, _: c_int| fail(m)), || FALLBACK);
    HOW.set(How::Panic);
    let mut call = mutator.foreign_call();
    // SAFETY: C calls back.
    assert_eq!(number(|| call.run_with_errno(|| unsafe { foreign_call_back(upcall, 1) })), 5);
    let function: Function = foreign_call_back;
    // SAFETY: it takes a callback and an `int`.
    assert_eq!(number(|| unsafe { call.invoke(function, (upcall, 1)) }), 5);
    HOW.set(How::Return);
    // SAFETY: as above.
    let payload = caught(|| unsafe { call.invoke(function, (upcall, 1)) });
    assert_eq!(payload.downcast::<Thrown<Oops>>().expect("thrown").0.number(), 5);
    // SAFETY: as above.
    let payload = caught(|| call.run_with_errno(|| unsafe { foreign_call_back(upcall, 1) }));
    assert_eq!(payload.downcast::<Thrown<Oops>>().expect("thrown").0.number(), 5);
    assert_eq!(world.vm().take_reports(), []);
}

/// The closure given to `run` panics while an upcall's error waits: the closure's panic goes on, the other is reported and does not come back.
#[test]
fn a_panic_of_the_closure_overtakes_an_upcalls_error() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let upcall: Callback = upcall_fn_or(Throwing(|m: &mut Mutator<Vm>, _: c_int| fail(m)), || FALLBACK);
    // SAFETY: C calls back.
    let upcall = || unsafe { foreign_call_back(upcall, 1) };
    let mut call = mutator.foreign_call();
    for how in EVERY_WAY {
        HOW.set(how);
        let fail = || {
            assert_eq!(upcall(), FALLBACK);
            panic_quietly(2)
        };
        let told = Told::Superseded(if how == How::Panic { "panic 5" } else { "Number(5)" }.to_owned());
        assert_eq!(number(|| call.run(fail)), 2);
        assert_eq!(world.vm().take_reports(), core::slice::from_ref(&told));
        assert_eq!(number(|| call.try_run(fail)), 2);
        assert_eq!(world.vm().take_reports(), [told]);
        assert_eq!(call.run(|| 7), 7);
    }
}

/// C gets one value, so the fallback is asked for once, whichever way the body failed, and not at all if it did not.
#[test]
fn a_fallback_is_called_once_for_a_failure_and_never_otherwise() {
    static CALLED: AtomicU32 = AtomicU32::new(0);
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let upcall: Callback =
        upcall_fn_or(Throwing(|m: &mut Mutator<Vm>, x: c_int| if x == 0 { Ok(1) } else { fail(m) }), || {
            CALLED.fetch_add(1, Ordering::Relaxed);
            FALLBACK
        });
    for (how, x, times) in [(How::Panic, 0, 0), (How::Panic, 1, 1), (How::Return, 1, 1), (How::Throw, 1, 0)] {
        HOW.set(how);
        let mut got = 0;
        let mut call = mutator.foreign_call().on_error(ErrorPolicy::Fallback);
        // SAFETY: C calls back.
        call.run(|| got = unsafe { foreign_call_back(upcall, x) });
        assert_eq!(got, if x == 0 { 1 } else { FALLBACK });
        assert_eq!(CALLED.swap(0, Ordering::Relaxed), times, "{how:?} {x}");
    }
    // A refused upcall as well.
    let refused = message(|| {
        // SAFETY: C calls back.
        mutator.foreign_call().without_upcalls().run(|| unsafe { foreign_call_back(upcall, 0) })
    });
    assert!(refused.contains("was declared to make no upcall"), "{refused}");
    assert_eq!(CALLED.swap(0, Ordering::Relaxed), 1);
}

/// Two worlds on one thread: an error goes to the call of its own world, past the other's, which goes on.
#[test]
fn an_error_goes_to_the_call_of_its_own_world() {
    let (a, b) = (Vm::world(), Vm::world());
    let (mut in_a, mut in_b) = (a.attach().unwrap(), b.attach().unwrap());
    let fails = UpcallClosure::with_fallback(
        &a,
        Throwing(|_: &mut Mutator<Vm>, _: c_int| -> Result<c_int, Oops> { Err(Oops::Number(1)) }),
        FALLBACK,
    );
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let fails = || unsafe { foreign_call_back_last(fails.data_last(), 0, fails.data()) };
    let mut reached = false;
    let outcome = in_a.foreign_call().try_run(|| {
        assert_eq!(in_b.foreign_call().run(fails), FALLBACK, "b's call goes on");
        reached = true;
    });
    assert_eq!((outcome.expect_err("a's exception").number(), reached), (1, true));
    // An exception of a world is a panic to another's frames, and an exception again where it came from.
    let through = UpcallClosure::new(&b, |_: &mut Mutator<Vm>, x: c_int| {
        std::panic::resume_unwind(Box::new(Thrown(Oops::Number(x as u32))))
    });
    let in_between = |x: c_int| -> c_int {
        // SAFETY: as above.
        unsafe { foreign_call_back_last(through.data_last(), x, through.data()) }
    };
    let outcome = in_b.foreign_call().try_run(|| in_between(3));
    assert_eq!(outcome.expect_err("of the same type").number(), 3);
    assert_eq!((a.vm().take_reports(), b.vm().take_reports()), (vec![], vec![]));
}
