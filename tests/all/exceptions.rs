//! C++ that throws past upcalls: what its exceptions pass on their way runs its destructors, and what the upcalls held is released (I5, dotnet/runtime #113980).
//!
//! C++ calls back through unwinding upcall functions; the upcalls call C++ that throws, through foreign functions declared `extern "C-unwind"`. That much is defined behaviour.
#![expect(ffi_unwind_calls, reason = "exceptions of C++ pass through these functions on purpose")]

use crate::jumps::{
    ONE_UPCALL, Script, Step, assert_text, chain, collect_twice, is_freed, next, rounding, skipped,
    skipped_in, step, text, throwing, world,
};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use reentry::testkit::{Correct, TestVm, Trap};
use reentry::{MachineState, Mutator, UpcallClosure, upcall_fn, upcall_fn_unwind};
use reentry_foreign::{
    foreign_call_back_last, foreign_catch, foreign_catch_after_callback, foreign_catch_and_call,
    foreign_catch_and_rethrow, foreign_catch_first, foreign_log, foreign_pass, foreign_take_log,
    foreign_throw, foreign_throw_and_catch, needs_cpp,
};

type UnwindStep = extern "C-unwind" fn(c_int, *mut c_void) -> c_int;

/// Body `N` of the script, as a function that exceptions pass.
fn passing<const N: usize>() -> UnwindStep {
    upcall_fn_unwind(step::<Correct, N>, || -9)
}

/// A Rust value that enters its end in the log of C++.
struct Logged(c_int);

impl Drop for Logged {
    fn drop(&mut self) {
        // SAFETY: it adds to the thread's log.
        unsafe { foreign_log(self.0) };
    }
}

/// The thread's log: 1000 and a number for the end of a C++ object, 2000 for a handler, 3000 for one that throws again, less for Rust.
fn take_log() -> Vec<c_int> {
    let mut log = [0; 64];
    // SAFETY: as much room as it says.
    let length = unsafe { foreign_take_log(log.as_mut_ptr(), log.len()) };
    log[..length].to_vec()
}

#[needs_cpp]
#[test]
fn an_exception_passes_an_upcall_and_ends_what_it_held() {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let (outer, inner) = (text(&world, "the outer call's"), text(&world, "the upcall's call's"));
    let script = Script::<Correct>::new([
        Box::new(|mutator, _, _| {
            let _first = Logged(10);
            let mut call = mutator.foreign_call();
            call.pin(inner).unwrap();
            call.root(inner);
            call.copy([1_u8; 100]);
            let _second = Logged(11);
            // SAFETY: this body is called by C++ that catches, through functions that exceptions pass.
            call.run(|| unsafe { foreign_throw(7) })
        }),
        Box::new(|mutator, caught, _| {
            assert_eq!(collect_twice(mutator), 1);
            assert_eq!(chain(mutator), ONE_UPCALL);
            assert!(is_freed(&world, inner), "the roots and pins of the call below have ended");
            assert_text(&world, outer, "the outer call's");
            assert_eq!(skipped(&world), [1]);
            caught
        }),
    ]);
    let mut call = mutator.foreign_call();
    call.pin(outer).unwrap();
    // SAFETY: the script lives.
    let caught = call.run(|| unsafe { foreign_catch(passing::<0>(), 1, script.data()) });
    assert_eq!(caught, -7);
    assert_eq!(take_log(), [1007, 11, 10, 2007, 1001], "C++ and Rust, from the inside out");
    assert_eq!(skipped(&world), [1]);
    // The same, and C++ calls back before it returns.
    // SAFETY: as above.
    let result =
        call.run(|| unsafe { foreign_catch_and_call(passing::<0>(), passing::<1>(), 1, script.data()) });
    assert_eq!((result, take_log()), (7, vec![1007, 11, 10]));
    drop(call);
    assert_eq!(skipped(&world), [0_usize; 0], "reported once");
    assert_eq!((mutator.depth(), TestVm::collect_in(&mut mutator).unwrap().live), (0, 0));
}

/// C++ that throws below a leaf call: the upcall is managed when the exception passes it.
#[needs_cpp]
#[test]
fn an_exception_out_of_a_leaf_call_leaves_the_upcall_too() {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let script = Script::<Correct>::new([
        Box::new(|mutator, _, _| {
            let _value = Logged(10);
            // SAFETY: it is short, and does nothing else; C++ above catches.
            unsafe { mutator.leaf_call(|_| foreign_throw(7)) }
        }),
        Box::new(|mutator, caught, _| {
            assert_eq!((collect_twice(mutator), skipped(&world)), (1, vec![1]));
            caught
        }),
    ]);
    let (first, next) = (passing::<0>(), passing::<1>());
    // SAFETY: the script lives.
    let result =
        mutator.foreign_call().run(|| unsafe { foreign_catch_and_call(first, next, 1, script.data()) });
    assert_eq!((result, take_log()), (7, vec![1007, 10]));
}

/// Three upcalls and four frames of C++ between the throw and the catch; each upcall gives back what it held before the frame above goes on.
#[needs_cpp]
#[test]
fn an_exception_passes_three_upcalls_caught_and_thrown_again_on_the_way() {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let objects: Vec<_> = (0..3).map(|level| text(&world, &format!("level {level}"))).collect();
    let script = Script::<Correct>::new([Box::new(|mutator, level, data| {
        let _value = Logged(level);
        let mut call = mutator.foreign_call();
        call.pin(objects[level as usize]).unwrap();
        // SAFETY: the script lives; C++ above catches, and all of these functions let exceptions pass.
        call.run(|| unsafe {
            match level {
                0 => foreign_pass(passing::<0>(), 1, data),
                1 => foreign_catch_and_rethrow(passing::<0>(), 2, data),
                _ => foreign_throw(9),
            }
        })
    })]);
    // SAFETY: as above.
    let caught = mutator.foreign_call().run(|| unsafe { foreign_catch(passing::<0>(), 0, script.data()) });
    assert_eq!(caught, -9);
    assert_eq!(take_log(), [1009, 2, 3009, 1, 1001, 0, 2009, 1000]);
    assert_eq!(skipped(&world), [1, 1, 1], "each upcall it passed");
    assert_eq!((mutator.depth(), TestVm::collect_in(&mut mutator).unwrap().live), (0, 0));
}

/// The inner of two calls catches: the outer upcall, which the exception has not reached, keeps what it has.
#[needs_cpp]
#[test]
fn an_exception_that_is_caught_halfway_disturbs_nothing_above() {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let (outer, inner) = (text(&world, "outer"), text(&world, "inner"));
    let script = Script::<Correct>::new([
        Box::new(|mutator, _, data| {
            let mut call = mutator.foreign_call();
            call.pin(outer).unwrap();
            // SAFETY: the script lives.
            let caught = call.run(|| unsafe { foreign_catch(passing::<1>(), 0, data) });
            assert_eq!(skipped(&world), [1]);
            // SAFETY: as above.
            let depth =
                call.run(|| unsafe { foreign_call_back_last(upcall_fn(step::<Correct, 2>), 0, data) });
            assert_text(&world, outer, "outer");
            assert!(is_freed(&world, inner));
            10 * depth - caught
        }),
        Box::new(|mutator, _, _| {
            let mut call = mutator.foreign_call();
            call.pin(inner).unwrap();
            // SAFETY: C++ above catches.
            call.run(|| unsafe { foreign_throw(5) })
        }),
        Box::new(|mutator, _, _| collect_twice(mutator)),
    ]);
    // SAFETY: the script lives.
    let result = mutator.foreign_call().run(|| unsafe { foreign_catch(passing::<0>(), 0, script.data()) });
    assert_eq!((result, skipped(&world)), (25, vec![]));
}

/// An error of an upcall that the exception's call carried has nobody left to go to; one of the outer call is carried on.
#[needs_cpp]
#[test]
fn an_error_of_an_upcall_beside_an_exception_is_reported_or_carried() {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let script = Script::<Correct>::new([Box::new(|mutator, x, data| {
        if x > 0 {
            mutator.throw(Trap::NoSuchNative(x as u16));
        }
        // SAFETY: C++ above catches.
        mutator.foreign_call().run(|| unsafe {
            assert_eq!(foreign_call_back_last(throwing(), 3, data), -9, "C++ got the fallback");
            foreign_throw(7)
        })
    })]);
    for x in [0, 4] {
        let mut call = mutator.foreign_call();
        // SAFETY: the script lives.
        let outcome = call.try_run(|| unsafe { foreign_catch(passing::<0>(), x, script.data()) });
        assert_eq!(outcome, if x == 0 { Ok(-7) } else { Err(Trap::NoSuchNative(4)) });
        let reports = world.vm().take_reports();
        assert_eq!(reports.len(), 2, "{reports:?}");
        assert!(reports[0].contains("threw NoSuchNative(3); another error"), "{reports:?}");
        assert_eq!(skipped_in(&reports[1]), 1);
    }
}

/// C++ that throws and catches between two upcalls, or after one, crosses nothing with its exceptions: plain upcall functions serve it.
#[needs_cpp]
#[test]
fn exceptions_between_frames_of_cpp_disturb_no_upcall() {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let outer = text(&world, "outer");
    let script = Script::<Correct>::new([
        Box::new(|_, _, _| unreachable!("body 1 is called")),
        Box::new(|mutator, x, _| {
            assert_eq!(collect_twice(mutator), 1);
            x
        }),
    ]);
    let callback: Step = next::<Correct>();
    let mut call = mutator.foreign_call();
    call.pin(outer).unwrap();
    // SAFETY: the script lives.
    let both = call.run(|| unsafe {
        (
            foreign_throw_and_catch(callback, 4, script.data()),
            foreign_catch_after_callback(callback, 6, script.data()),
        )
    });
    assert_eq!(both, (8, -6));
    assert_eq!(take_log(), [1004, 1006]);
    assert_text(&world, outer, "outer");
    drop(call);
    assert_eq!(world.vm().take_reports(), Vec::<String>::new());
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
}

/// Both unwinding forms of a closure with user data, with and without an exception.
#[needs_cpp]
#[test]
fn exceptions_pass_closures_in_their_unwinding_form() {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let inner = text(&world, "inner");
    let base = 30;
    let closure = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, x: c_int| {
        let _value = Logged(x);
        if x == 1 {
            let mut call = mutator.foreign_call();
            call.pin(inner).unwrap();
            // SAFETY: C++ above catches.
            call.run(|| unsafe { foreign_throw(8) });
        }
        base + x
    });
    let (first, last) = (closure.data_first_unwind(), closure.data_last_unwind());
    for (x, expected) in [(0, 30), (1, -8), (2, 32)] {
        // SAFETY: the data is the closure's, which lives.
        let results = mutator.foreign_call().run(|| unsafe {
            (foreign_catch_first(first, x, closure.data()), foreign_catch(last, x, closure.data()))
        });
        assert_eq!(results, (expected, expected));
        let reports = skipped(&world);
        if x == 1 {
            assert_eq!(take_log(), [1008, 1, 1008, 1, 2008, 1001]);
            assert_eq!(reports, [1, 1]);
        } else {
            assert_eq!((take_log(), reports), (vec![x, x, 1000 + x], vec![]));
        }
    }
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
}

/// C++ gets its own machine state back when an exception leaves the upcall, as it does when the upcall returns.
#[needs_cpp]
#[test]
fn an_exception_that_leaves_an_upcall_leaves_cpp_its_own_machine_state() {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let before = rounding();
    let script = Script::<Correct>::new([Box::new(|mutator, _, _| {
        assert_eq!(rounding(), before, "managed code has its own");
        // SAFETY: C++ above catches.
        mutator.foreign_call().run(|| unsafe { foreign_throw(2) })
    })]);
    let mut call = mutator.foreign_call().preserving(MachineState::FLOATING_POINT);
    let in_cpp = call.run(|| {
        crate::jumps::round_upward();
        // SAFETY: the script lives.
        assert_eq!(unsafe { foreign_catch(passing::<0>(), 0, script.data()) }, -2);
        rounding()
    });
    assert_eq!((in_cpp, rounding()), (crate::jumps::UPWARD, before));
}

/// Exceptions while another thread collects all the time: each upcall on the way becomes managed, waits if it must, and is foreign again before C++ goes on.
#[needs_cpp]
#[test]
fn exceptions_pass_upcalls_while_another_thread_pauses_the_world() {
    let world = world::<Correct>();
    let (stop, pauses) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
                pauses.fetch_add(1, Ordering::Relaxed);
            }
        });
        let thrower = scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            let script = Script::<Correct>::new([Box::new(|mutator, level, data| {
                let mut call = mutator.foreign_call();
                call.pin(text(&world, "a passed call's")).unwrap();
                // SAFETY: the script lives; C++ above catches.
                call.run(|| unsafe {
                    match level {
                        0 => foreign_throw(1),
                        _ => foreign_pass(passing::<0>(), level - 1, data),
                    }
                })
            })]);
            for round in 0..500 {
                let mut call = mutator.foreign_call();
                let outer = text(&world, "outer");
                call.pin(outer).unwrap();
                // SAFETY: as above.
                let caught = call.run(|| unsafe { foreign_catch(passing::<0>(), round % 4, script.data()) });
                assert_eq!(caught, -1);
                assert_text(&world, outer, "outer");
            }
        });
        let ended = thrower.join();
        stop.store(true, Ordering::Relaxed);
        collector.join().unwrap();
        ended.unwrap();
    });
    assert!(pauses.into_inner() > 10);
    assert_eq!(world.pause(|stopped| stopped.vm().collect(stopped)).unwrap().live, 0);
}
