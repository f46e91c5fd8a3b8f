//! Misuse that has no managed caller to tell: the process ends, with a message that says what happened, where that is known, and what to do.
//!
//! Each test runs itself again in a process of its own, which is to end.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::ptr;
use reentry::faults::Faults;
use reentry::{
    Capture, Crossing, Mutator, RootVisitor, Segment, StackScanner, UpcallClosure, Vm, World, upcall_fn,
    upcall_fn_or, upcall_fn_unwind,
};
use reentry_foreign::{
    Callback, DataCallback, foreign_call_back, foreign_call_back_elsewhere, foreign_call_back_last,
    foreign_catch, foreign_jump, foreign_land, foreign_land_and_call, foreign_throw,
};
use std::process::Command;
use std::sync::OnceLock;

const CHILD: &str = "REENTRY_ABORTING_TEST";

/// Runs `misuse` in a process of its own, the test `name` of this file, and checks that it aborts saying all of `says`.
#[track_caller]
fn aborts(name: &str, says: &[&str], misuse: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some_and(|child| child == name) {
        misuse();
        // Not reached; if it is, the parent sees this status in place of the signal.
        std::process::exit(77);
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args([name, "--exact", "--nocapture"]).env(CHILD, name).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;
        const SIGABRT: c_int = 6;
        assert_eq!(output.status.signal(), Some(SIGABRT), "{}: {said}", output.status);
    }
    assert!(!output.status.success());
    for part in says {
        assert!(said.contains(part), "it does not say `{part}`: {said}");
    }
}

struct Small;

thread_local! { static HOOK_PANICS: Cell<Option<Crossing>> = const { Cell::new(None) }; }

impl Vm for Small {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn leaving_managed(&self, crossing: Crossing) {
        assert!(HOOK_PANICS.get() != Some(crossing), "the hook's own message");
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Small {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

fn body(_: &mut Mutator<Small>, x: c_int) -> c_int {
    x
}

fn call_back(callback: Callback) -> c_int {
    // SAFETY: the callback takes what C gives it.
    unsafe { foreign_call_back(callback, 1) }
}

#[test]
fn an_upcall_function_called_from_managed_code_aborts() {
    aborts(
        "an_upcall_function_called_from_managed_code_aborts",
        &["reentry: fatal: mutator 1 cannot receive an upcall", "it is managed", "inside `ForeignCall::run`"],
        || {
            let world = World::new(Small);
            let _mutator = world.attach().unwrap();
            upcall_fn(body)(1);
        },
    );
}

/// In an upcall there is a call site to name: that of the foreign call the upcall came from.
#[test]
fn an_upcall_function_called_from_an_upcalls_body_aborts_and_names_the_call() {
    aborts(
        "an_upcall_function_called_from_an_upcalls_body_aborts_and_names_the_call",
        &["it is managed, in an upcall of the foreign call at", file!(), "inside `ForeignCall::run`"],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            let callback = upcall_fn(|_: &mut Mutator<Small>, x: c_int| upcall_fn(body)(x));
            mutator.foreign_call().run(|| call_back(callback));
        },
    );
}

#[test]
fn an_upcall_closure_called_from_managed_code_aborts() {
    aborts(
        "an_upcall_closure_called_from_managed_code_aborts",
        &["cannot receive an upcall", "inside `ForeignCall::run`"],
        || {
            let world = World::new(Small);
            let _mutator = world.attach().unwrap();
            let closure = UpcallClosure::new(&world, |_: &mut Mutator<Small>, x: c_int| x);
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            unsafe { foreign_call_back_last(closure.data_last(), 1, closure.data()) };
        },
    );
}

/// Dart, Go: a leaf call that calls back.
#[test]
fn a_leaf_call_that_calls_back_aborts() {
    aborts(
        "a_leaf_call_that_calls_back_aborts",
        &["cannot receive an upcall", "inside `ForeignCall::run`"],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            // SAFETY: broken on purpose: the callee calls back, which is caught.
            unsafe { mutator.leaf_call(|| call_back(upcall_fn(body))) };
        },
    );
}

#[test]
fn an_upcall_on_a_thread_that_no_world_adopts_aborts() {
    aborts(
        "an_upcall_on_a_thread_that_no_world_adopts_aborts",
        &["reentry: fatal: a thread that no world knows", "Small", "World::adopt_foreign_threads"],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            // SAFETY: the callback takes what C gives it.
            mutator.foreign_call().run(|| unsafe { foreign_call_back_elsewhere(upcall_fn(body), 1) });
        },
    );
}

/// A world that is gone adopts nobody.
#[test]
fn an_upcall_on_a_foreign_thread_after_the_adopting_world_has_gone_aborts() {
    aborts(
        "an_upcall_on_a_foreign_thread_after_the_adopting_world_has_gone_aborts",
        &["a thread that no world knows", "World::adopt_foreign_threads"],
        || {
            let world = World::new(Small);
            world.adopt_foreign_threads();
            drop(world);
            call_back(upcall_fn(body));
        },
    );
}

/// The thread would have to wait for a pause that it holds itself, and has no managed caller that an error could go to.
#[test]
fn an_upcall_that_would_attach_a_thread_inside_its_own_pause_aborts() {
    aborts(
        "an_upcall_that_would_attach_a_thread_inside_its_own_pause_aborts",
        &["reentry: fatal: a foreign thread calls in", "end the pause before attaching"],
        || {
            let world = World::new(Small);
            world.adopt_foreign_threads();
            world.pause(|_| call_back(upcall_fn(body)));
        },
    );
}

#[test]
fn a_hook_that_panics_on_the_way_into_a_foreign_call_aborts() {
    aborts(
        "a_hook_that_panics_on_the_way_into_a_foreign_call_aborts",
        &[
            "the hook's own message",
            "reentry: fatal: a transition hook panicked",
            "the hooks of `Vm` must not",
        ],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            HOOK_PANICS.set(Some(Crossing::ForeignCall));
            mutator.foreign_call().run(|| ());
        },
    );
}

#[test]
fn a_hook_that_panics_on_the_way_out_of_an_upcall_aborts() {
    aborts(
        "a_hook_that_panics_on_the_way_out_of_an_upcall_aborts",
        &["the hook's own message", "reentry: fatal: a transition hook panicked"],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            HOOK_PANICS.set(Some(Crossing::Upcall));
            mutator.foreign_call().run(|| call_back(upcall_fn(body)));
        },
    );
}

#[test]
fn a_fallback_that_panics_aborts() {
    aborts("a_fallback_that_panics_aborts", &["the fallback's own message"], || {
        let world = World::new(Small);
        let mut mutator = world.attach().unwrap();
        let body = |_: &mut Mutator<Small>, _: c_int| -> c_int { panic!("the body's own message") };
        let callback = upcall_fn_or(body, || panic!("the fallback's own message"));
        mutator.foreign_call().run(|| call_back(callback));
    });
}

/// The guard form may be dropped where a closure could not return: inside a pause of the same thread.
#[test]
fn a_foreign_call_that_returns_inside_a_pause_its_thread_holds_aborts_and_names_the_call() {
    aborts(
        "a_foreign_call_that_returns_inside_a_pause_its_thread_holds_aborts_and_names_the_call",
        &[
            "reentry: fatal: the foreign call at",
            file!(),
            "returned inside a pause that its own thread holds",
        ],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            let mut call = mutator.foreign_call();
            // SAFETY: dropped below, before the mutator is used again.
            let guard = unsafe { call.enter() };
            world.pause(|_| drop(guard));
        },
    );
}

/// The message of a correct program: none. It shows that the parent tells an abort from another end.
#[test]
fn a_correct_upcall_does_not_abort() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    assert_eq!(mutator.foreign_call().run(|| call_back(upcall_fn(body))), 1);
}

/// A hook runs between two states; detaching there would leave the upcall with a mutator that no pause stops (I4).
#[test]
fn a_hook_that_detaches_the_thread_it_runs_for_aborts() {
    thread_local! { static DETACH: Cell<bool> = const { Cell::new(false) }; }
    struct Hooked(OnceLock<World<Self>>);
    impl Vm for Hooked {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {}
        fn entering_managed(&self, crossing: Crossing) {
            if crossing == Crossing::Upcall && DETACH.get() {
                self.0.get().unwrap().detach_foreign_thread().unwrap();
            }
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Hooked {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    aborts(
        "a_hook_that_detaches_the_thread_it_runs_for_aborts",
        &["reentry: fatal: a transition hook detached the thread", "the hooks of `Vm` must not"],
        || {
            let world = World::new(Hooked(OnceLock::new()));
            assert!(world.vm().0.set(world.clone()).is_ok());
            let closure = UpcallClosure::new(&world, |_: &mut Mutator<Hooked>, x: c_int| x);
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            let call = || unsafe { foreign_call_back_last(closure.data_last(), 3, closure.data()) };
            assert_eq!(call(), 3);
            DETACH.set(true);
            call();
        },
    );
}

/// Two calls of one type of VM, made in one stack frame: which is inside the other cannot be told, and guessing would run the upcall in the wrong world.
#[test]
#[cfg(not(debug_assertions))]
fn an_upcall_function_that_cannot_tell_two_worlds_apart_aborts() {
    aborts(
        "an_upcall_function_that_cannot_tell_two_worlds_apart_aborts",
        &["cannot tell which of two worlds it is for", "use an `UpcallClosure`"],
        || {
            let (a, b) = (World::new(Small), World::new(Small));
            let (mut in_a, mut in_b) = (a.attach().unwrap(), b.attach().unwrap());
            in_a.foreign_call().run(|| in_b.foreign_call().run(|| call_back(upcall_fn(body))));
        },
    );
}

/// A world that stays stopped could not be helped: nobody is left who would end the pause.
#[test]
fn a_jump_out_of_a_pause_aborts_and_names_the_call_it_landed_in() {
    extern "C" fn jump_out(_: c_int, _: *mut c_void) -> c_int {
        // SAFETY: the point is set by C that waits for the upcall.
        unsafe { foreign_jump(0) }
    }
    fn pausing(mutator: &mut Mutator<Small>, x: c_int, data: *mut c_void) -> c_int {
        mutator.pause(|_| jump_out(x, data))
    }
    let says = [
        "reentry: fatal: foreign code jumped out of a pause that its own thread holds, to the foreign call at",
        file!(),
    ];
    aborts("a_jump_out_of_a_pause_aborts_and_names_the_call_it_landed_in", &says, || {
        let world = World::new(Small);
        let mut mutator = world.attach().unwrap();
        // SAFETY: the callback does not use the data.
        mutator.foreign_call().run(|| unsafe { foreign_land(0, upcall_fn(pausing), 0, ptr::null_mut()) });
    });
}

/// The same where C calls back before it returns.
#[test]
fn an_upcall_after_a_jump_out_of_a_pause_aborts() {
    fn pausing(mutator: &mut Mutator<Small>, _: c_int, _: *mut c_void) -> c_int {
        // SAFETY: the point is set by C that waits for the upcall.
        mutator.pause(|_| unsafe { foreign_jump(0) })
    }
    fn next(_: &mut Mutator<Small>, x: c_int, _: *mut c_void) -> c_int {
        x
    }
    aborts(
        "an_upcall_after_a_jump_out_of_a_pause_aborts",
        &["jumped out of a pause that its own thread holds", file!()],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            let (first, next) = (upcall_fn(pausing), upcall_fn(next));
            // SAFETY: the callbacks do not use the data.
            mutator
                .foreign_call()
                .run(|| unsafe { foreign_land_and_call(0, first, next, 0, ptr::null_mut()) });
        },
    );
}

/// The protection against jumps over managed upcalls, off: the upcall after the jump looks like one from managed code. (On, it is served: see `tests/all/jumps.rs`.)
#[test]
fn without_the_look_for_skipped_upcalls_an_upcall_after_a_jump_aborts() {
    struct Unlooking;
    impl Vm for Unlooking {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {}
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: a test of the protection.
    unsafe impl StackScanner for Unlooking {
        const FAULTS: Faults = Faults::NO_SKIP_CHECK;
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    fn first(mutator: &mut Mutator<Unlooking>, _: c_int, _: *mut c_void) -> c_int {
        // SAFETY: the point is set by C that waits for the upcall.
        unsafe { mutator.leaf_call(|| foreign_jump(0)) }
    }
    fn next(_: &mut Mutator<Unlooking>, x: c_int, _: *mut c_void) -> c_int {
        x
    }
    aborts(
        "without_the_look_for_skipped_upcalls_an_upcall_after_a_jump_aborts",
        &["cannot receive an upcall: it is managed, in an upcall of the foreign call at", file!()],
        || {
            let world = World::new(Unlooking);
            let mut mutator = world.attach().unwrap();
            let (first, next) = (upcall_fn(first), upcall_fn(next));
            // SAFETY: the callbacks do not use the data.
            mutator
                .foreign_call()
                .run(|| unsafe { foreign_land_and_call(0, first, next, 0, ptr::null_mut()) });
        },
    );
}

/// Rust cannot catch an exception of C++, and a plain upcall function must not let it pass: the standard library ends the process.
#[test]
#[expect(ffi_unwind_calls, reason = "an exception of C++ leaves the function on purpose")]
fn an_exception_that_reaches_a_plain_upcall_function_aborts() {
    fn throwing(mutator: &mut Mutator<Small>, _: c_int, _: *mut c_void) -> c_int {
        // SAFETY: broken on purpose: no function that lets exceptions pass is above, which is caught.
        mutator.foreign_call().run(|| unsafe { foreign_throw(7) })
    }
    aborts(
        "an_exception_that_reaches_a_plain_upcall_function_aborts",
        &["Rust cannot catch foreign exceptions"],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            let plain: DataCallback = upcall_fn(throwing);
            mutator.foreign_call().run(|| {
                // SAFETY: the two ABIs differ in what may unwind only, and nothing does, since the process ends.
                let plain = unsafe {
                    core::mem::transmute::<DataCallback, reentry_foreign::UnwindDataCallback>(plain)
                };
                // SAFETY: the callback does not use the data.
                unsafe { foreign_catch(plain, 1, ptr::null_mut()) }
            });
        },
    );
}

/// I7: what goes the way of an exception must be one, since C++ above must not meet a panic.
#[test]
#[expect(ffi_unwind_calls, reason = "exceptions of C++ may leave these functions")]
fn a_panic_in_an_unwinding_upcall_aborts_and_names_the_call() {
    fn panicking(_: &mut Mutator<Small>, _: c_int, _: *mut c_void) -> c_int {
        panic!("the body's own message")
    }
    let says = [
        "the body's own message",
        "reentry: fatal: a panic reached foreign code through an unwinding upcall of the foreign call at",
        file!(),
        "return an error",
    ];
    aborts("a_panic_in_an_unwinding_upcall_aborts_and_names_the_call", &says, || {
        let world = World::new(Small);
        let mut mutator = world.attach().unwrap();
        let function: extern "C-unwind" fn(c_int, *mut c_void) -> c_int = upcall_fn_unwind(panicking, || -1);
        // SAFETY: the callback does not use the data.
        mutator.foreign_call().run(|| unsafe { foreign_catch(function, 1, ptr::null_mut()) });
    });
}

#[test]
#[expect(ffi_unwind_calls, reason = "exceptions of C++ may leave these functions")]
fn a_panic_in_an_unwinding_closure_aborts() {
    aborts(
        "a_panic_in_an_unwinding_closure_aborts",
        &["the body's own message", "a panic reached foreign code through an unwinding upcall"],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            let body = |_: &mut Mutator<Small>, _: c_int| -> c_int { panic!("the body's own message") };
            let closure = UpcallClosure::new(&world, body);
            let (function, data) = (closure.data_last_unwind(), closure.data());
            // SAFETY: the data is the closure's, which lives.
            mutator.foreign_call().run(|| unsafe { foreign_catch(function, 1, data) });
        },
    );
}
