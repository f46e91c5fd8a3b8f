//! Misuse that has no managed caller to tell: the process ends, with a message that says what happened, where that is known, and what to do.
//!
//! Each test runs itself again in a process of its own, which is to end.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::cell::Cell;
use core::ffi::c_int;
use reentry::{
    Aborting, Capture, Crossing, ErrorPolicy, FallbackOnly, Mutator, Report, RootVisitor, Segment,
    StackScanner, Throwing, UpcallClosure, Vm, World, upcall_fn, upcall_fn_or, upcall_fn_unwind,
};
use reentry_foreign::{Callback, foreign_call_back, foreign_call_back_elsewhere, foreign_call_back_last};
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

thread_local! {
    static HOOK_PANICS: Cell<Option<Crossing>> = const { Cell::new(None) };
    static REPORT_PANICS: Cell<bool> = const { Cell::new(false) };
}

/// An exception, which may panic where it is told of or where it ends.
enum Oops {
    Quiet,
    PanicsWhenTold,
    PanicsWhenDropped,
}

impl core::fmt::Debug for Oops {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        assert!(!matches!(self, Self::PanicsWhenTold), "the text's own message");
        f.write_str("Oops")
    }
}

impl Drop for Oops {
    fn drop(&mut self) {
        assert!(!matches!(self, Self::PanicsWhenDropped), "the drop's own message");
    }
}

impl Vm for Small {
    type Ref = usize;
    type Local = ();
    type Exception = Oops;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn report(&self, report: &Report<'_>) {
        assert!(!REPORT_PANICS.get(), "the report's own message");
        eprintln!("{report}");
    }

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

fn panics(_: &mut Mutator<Small>, _: c_int) -> c_int {
    panic!("the body's own message")
}

/// # Errors
///
/// Always.
fn throws(_: &mut Mutator<Small>, _: c_int) -> Result<c_int, Oops> {
    Err(Oops::Quiet)
}

fn throws_and_goes_on(mutator: &mut Mutator<Small>, x: c_int) -> c_int {
    mutator.throw(Oops::Quiet);
    x
}

/// Calls C, which calls back, under a policy, in a world of its own.
fn call_under(policy: ErrorPolicy, callback: Callback) {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    mutator.foreign_call().on_error(policy).run(|| call_back(callback));
}

#[test]
fn a_panic_under_a_calls_policy_to_abort_ends_the_process_naming_the_call() {
    aborts(
        "a_panic_under_a_calls_policy_to_abort_ends_the_process_naming_the_call",
        &[
            "reentry: fatal: an upcall of the foreign call at",
            file!(),
            "panicked: the body's own message; its error policy is to abort",
        ],
        || call_under(ErrorPolicy::Abort, upcall_fn(panics)),
    );
}

#[test]
fn an_exception_under_a_calls_policy_to_abort_ends_the_process_naming_the_call() {
    aborts(
        "an_exception_under_a_calls_policy_to_abort_ends_the_process_naming_the_call",
        &["an upcall of the foreign call at", file!(), "threw Oops; its error policy is to abort"],
        || call_under(ErrorPolicy::Abort, upcall_fn(Throwing(throws))),
    );
}

#[test]
fn an_exception_thrown_by_hand_under_a_calls_policy_to_abort_ends_the_process() {
    aborts(
        "an_exception_thrown_by_hand_under_a_calls_policy_to_abort_ends_the_process",
        &["an upcall of the foreign call at", file!(), "threw Oops; its error policy is to abort"],
        || call_under(ErrorPolicy::Abort, upcall_fn(throws_and_goes_on)),
    );
}

/// The function's policy wins over the call's.
#[test]
fn a_panic_of_an_aborting_upcall_function_ends_the_process_whatever_the_call_says() {
    aborts(
        "a_panic_of_an_aborting_upcall_function_ends_the_process_whatever_the_call_says",
        &[
            "an upcall of the foreign call at",
            file!(),
            "panicked: the body's own message; its error policy is to abort",
        ],
        || call_under(ErrorPolicy::Fallback, upcall_fn(Aborting(panics))),
    );
}

#[test]
fn an_exception_of_an_aborting_upcall_function_ends_the_process() {
    aborts(
        "an_exception_of_an_aborting_upcall_function_ends_the_process",
        &["an upcall of the foreign call at", file!(), "threw Oops; its error policy is to abort"],
        || call_under(ErrorPolicy::Carry, upcall_fn(Aborting(Throwing(throws)))),
    );
}

#[test]
fn an_exception_thrown_by_hand_in_an_aborting_upcall_function_ends_the_process() {
    aborts(
        "an_exception_thrown_by_hand_in_an_aborting_upcall_function_ends_the_process",
        &["an upcall of the foreign call at", file!(), "threw Oops; its error policy is to abort"],
        || call_under(ErrorPolicy::Fallback, upcall_fn(Aborting(FallbackOnly(throws_and_goes_on)))),
    );
}

/// Also where there is no foreign call.
#[test]
fn an_error_of_an_aborting_upcall_closure_on_a_foreign_thread_ends_the_process() {
    aborts(
        "an_error_of_an_aborting_upcall_closure_on_a_foreign_thread_ends_the_process",
        &["reentry: fatal: an upcall of", "panicked: the body's own message; its error policy is to abort"],
        || {
            let world = World::new(Small);
            let closure = UpcallClosure::new(&world, Aborting(panics));
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            unsafe { foreign_call_back_last(closure.data_last(), 1, closure.data()) };
        },
    );
}

#[test]
fn a_refused_upcall_under_a_policy_to_abort_ends_the_process_saying_why() {
    aborts(
        "a_refused_upcall_under_a_policy_to_abort_ends_the_process_saying_why",
        &[file!(), "was refused", "was declared to make no upcall", "its error policy is to abort"],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            mutator.foreign_call().without_upcalls().run(|| call_back(upcall_fn(Aborting(body))));
        },
    );
}

/// Where the body has thrown, the fallback is called inside it, so its panic could be taken for the body's.
#[test]
fn a_fallback_of_a_throwing_body_that_panics_aborts() {
    aborts(
        "a_fallback_of_a_throwing_body_that_panics_aborts",
        &["the fallback's own message", "reentry: fatal: the fallback of an upcall panicked"],
        || {
            call_under(
                ErrorPolicy::Carry,
                upcall_fn_or(Throwing(throws), || panic!("the fallback's own message")),
            )
        },
    );
}

/// I7: through an unwinding upcall the panic would reach C.
#[test]
#[expect(ffi_unwind_calls, reason = "this Rust closure stands for the foreign code")]
fn a_fallback_of_a_refused_unwinding_upcall_that_panics_aborts() {
    aborts(
        "a_fallback_of_a_refused_unwinding_upcall_that_panics_aborts",
        &["the fallback's own message", "reentry: fatal: the fallback of an upcall panicked"],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            let callback = upcall_fn_unwind(body, || panic!("the fallback's own message"));
            mutator.foreign_call().without_upcalls().run(|| callback(1));
        },
    );
}

/// I7: as above.
#[test]
#[expect(ffi_unwind_calls, reason = "this Rust closure stands for the foreign code")]
fn a_report_of_a_refused_unwinding_upcall_that_panics_aborts() {
    aborts(
        "a_report_of_a_refused_unwinding_upcall_that_panics_aborts",
        &["the report's own message", "reentry: fatal: a transition hook panicked", "nor a report"],
        || {
            REPORT_PANICS.set(true);
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            let callback = upcall_fn_unwind(FallbackOnly(body), || 1);
            mutator.foreign_call().without_upcalls().run(|| callback(1));
        },
    );
}

#[test]
fn an_exception_that_panics_when_an_upcall_drops_it_aborts() {
    aborts(
        "an_exception_that_panics_when_an_upcall_drops_it_aborts",
        &["the drop's own message", "reentry: fatal: a transition hook panicked", "the drop of an error"],
        || {
            let throws =
                |_: &mut Mutator<Small>, _: c_int| -> Result<c_int, Oops> { Err(Oops::PanicsWhenDropped) };
            call_under(ErrorPolicy::Fallback, upcall_fn(Throwing(throws)));
        },
    );
}

/// The message of an abort holds the exception's text, which the VM writes.
#[test]
fn an_exception_that_panics_when_it_is_told_of_does_not_keep_the_process_from_ending() {
    aborts(
        "an_exception_that_panics_when_it_is_told_of_does_not_keep_the_process_from_ending",
        &["the text's own message"],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            let throws = |mutator: &mut Mutator<Small>, x: c_int| {
                // The body would catch what `throw` panics with.
                drop(std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
                    mutator.throw(Oops::PanicsWhenTold);
                })));
                x
            };
            mutator.foreign_call().run(|| call_back(upcall_fn(Aborting(throws))));
        },
    );
}
