//! Misuse that has no managed caller to tell: the process ends, with a message that says what happened, where that is known, and what to do.
//!
//! Each test runs itself again in a process of its own, which is to end.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::ptr;
use core::time::Duration;
use reentry::faults::Faults;
use reentry::{
    Aborting, Capture, Crossing, ErrorPolicy, FallbackOnly, LeafSite, Mutator, Report, RootVisitor, Segment,
    StackScanner, Throwing, UpcallClosure, Vm, World, upcall_fn, upcall_fn_or, upcall_fn_unwind,
};
use reentry_foreign::{
    Callback, DataCallback, foreign_call_back, foreign_call_back_elsewhere, foreign_call_back_last,
    foreign_catch, foreign_jump, foreign_land, foreign_land_and_call, foreign_throw, needs_cpp,
};
use std::sync::OnceLock;

#[path = "all/emulator.rs"]
mod emulator;

/// Whether the crate under test checks.
const CHECKED: bool = cfg!(any(debug_assertions, feature = "checked"));

const CHILD: &str = "REENTRY_ABORTING_TEST";

/// Runs `misuse` in a process of its own, the test `name` of this file, and checks that it aborts saying all of `says`.
#[track_caller]
fn aborts(name: &str, says: &[&str], misuse: impl FnOnce()) {
    aborts_before("", name, says, misuse);
}

/// The same, and that it does not come to saying `too_late`, if that is anything.
#[track_caller]
fn aborts_before(too_late: &str, name: &str, says: &[&str], misuse: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some_and(|child| child == name) {
        misuse();
        // Not reached; if it is, the parent sees this status in place of the signal.
        std::process::exit(77);
    }
    let mut child = emulator::this_binary();
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
    assert!(too_late.is_empty() || !said.contains(too_late), "it goes on to say `{too_late}`: {said}");
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
        if CHECKED {
            &[
                "cannot receive an upcall",
                "in the leaf call at tests/aborts.rs:",
                "neither polls, pauses, allocates nor calls back",
                "make the call with `ForeignCall::run`",
            ]
        } else {
            &["cannot receive an upcall", "or in a leaf call", "inside `ForeignCall::run`"]
        },
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            // SAFETY: broken on purpose: the callee calls back, which is caught.
            unsafe { mutator.leaf_call(|_| call_back(upcall_fn(body))) };
        },
    );
}

/// The same of a timed one, as long as it is a leaf call.
#[test]
fn a_timed_leaf_call_that_calls_back_aborts() {
    static SITE: LeafSite = LeafSite::new(Duration::MAX);
    aborts(
        "a_timed_leaf_call_that_calls_back_aborts",
        &[
            "cannot receive an upcall",
            if CHECKED { "in the leaf call at tests/aborts.rs:" } else { "or in a leaf call" },
        ],
        || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            // SAFETY: broken on purpose: the callee calls back, which is caught.
            unsafe { mutator.foreign_call().run_leaf(&SITE, || call_back(upcall_fn(body))) };
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
            "it must not, since nothing may unwind there",
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

/// Two calls of one type of VM, made in one stack frame: which is inside the other cannot be told, and guessing would run the upcall in the wrong world.
/// (With the checks in it, the inner call is no longer made in the frame of the outer one.)
#[test]
#[cfg(not(any(debug_assertions, feature = "checked")))]
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

/// Foreign code that has written over a record is found out at the next crossing of that mutator, poll that waits, or enumeration; the message draws the chain.
#[cfg(any(debug_assertions, feature = "checked"))]
mod damage {
    use super::{Small, aborts_before, body, call_back};
    use core::ffi::c_int;
    use core::sync::atomic::{AtomicU32, Ordering};
    use reentry::{Mutator, RootVisitor, Slot, World, layout, upcall_fn};
    use reentry_foreign::foreign_overwrite;
    use std::thread;

    const SAYS: [&str; 5] = [
        "reentry: fatal: the activation chain of mutator 1 is damaged at activation #0",
        "the last word of the record is 0x41414141, not",
        "  #0 ",
        "Anchor { pc: ",
        "<-- the last word of the record",
    ];
    const TOO_LATE: &str = "it went on";

    /// Has C write over the last word of the record of the base activation, which is the running one or is published.
    fn overwrite(record: usize) {
        let frame = core::ptr::with_exposed_provenance::<usize>(record + layout::FRAME);
        // SAFETY: broken on purpose: a live mutator's frame word, and its record.
        unsafe {
            let base = frame.read_volatile() & !layout::MANAGED;
            let canary = core::ptr::with_exposed_provenance_mut(base + layout::CANARY_IN_RECORD);
            foreign_overwrite(canary, 0x4141_4141);
        }
    }

    #[test]
    fn a_damaged_record_is_found_on_the_way_into_a_foreign_call() {
        aborts_before(
            TOO_LATE,
            "damage::a_damaged_record_is_found_on_the_way_into_a_foreign_call",
            &SAYS,
            || {
                let world = World::new(Small);
                let mut mutator = world.attach().unwrap();
                overwrite(mutator.record_address());
                mutator.foreign_call().run(|| eprintln!("{TOO_LATE}"));
            },
        );
    }

    #[test]
    fn a_damaged_record_is_found_on_the_way_back_from_a_foreign_call() {
        aborts_before(
            TOO_LATE,
            "damage::a_damaged_record_is_found_on_the_way_back_from_a_foreign_call",
            &SAYS,
            || {
                let world = World::new(Small);
                let mut mutator = world.attach().unwrap();
                let record = mutator.record_address();
                mutator.foreign_call().run(|| overwrite(record));
                eprintln!("{TOO_LATE}");
            },
        );
    }

    #[test]
    fn a_damaged_record_is_found_on_the_way_into_an_upcall() {
        fn late(_: &mut Mutator<Small>, x: c_int) -> c_int {
            eprintln!("{TOO_LATE}");
            x
        }
        aborts_before(TOO_LATE, "damage::a_damaged_record_is_found_on_the_way_into_an_upcall", &SAYS, || {
            let world = World::new(Small);
            let mut mutator = world.attach().unwrap();
            let record = mutator.record_address();
            mutator.foreign_call().run(|| {
                overwrite(record);
                call_back(upcall_fn(late));
            });
        });
    }

    #[test]
    fn a_damaged_record_is_found_on_the_way_out_of_an_upcall() {
        fn write(mutator: &mut Mutator<Small>, x: c_int) -> c_int {
            let record = mutator.record_address();
            let frame = core::ptr::with_exposed_provenance::<usize>(record + layout::FRAME);
            // SAFETY: broken on purpose: the running record, and the older one it links to.
            unsafe {
                let newest = frame.read_volatile() & !layout::MANAGED;
                let base = core::ptr::with_exposed_provenance::<usize>(newest + layout::OLDER_IN_RECORD)
                    .read_volatile();
                let canary = core::ptr::with_exposed_provenance_mut(base + layout::CANARY_IN_RECORD);
                foreign_overwrite(canary, 0x4141_4141);
            }
            x
        }
        aborts_before(
            TOO_LATE,
            "damage::a_damaged_record_is_found_on_the_way_out_of_an_upcall",
            &SAYS,
            || {
                let world = World::new(Small);
                let mut mutator = world.attach().unwrap();
                mutator.foreign_call().run(|| {
                    call_back(upcall_fn(write));
                    eprintln!("{TOO_LATE}");
                });
            },
        );
    }

    #[test]
    fn a_damaged_record_is_found_by_a_poll_that_has_to_wait() {
        aborts_before(
            TOO_LATE,
            "damage::a_damaged_record_is_found_by_a_poll_that_has_to_wait",
            &SAYS,
            || {
                let world = World::new(Small);
                let mut mutator = world.attach().unwrap();
                let record = mutator.record_address();
                thread::scope(|scope| {
                    scope.spawn(|| world.pause(|_| eprintln!("{TOO_LATE}")));
                    let poll = core::ptr::with_exposed_provenance::<AtomicU32>(record + layout::POLL);
                    // SAFETY: the mutator's own poll word.
                    while unsafe { &*poll }.load(Ordering::Relaxed) & layout::POLL_MASK == 0 {
                        thread::yield_now();
                    }
                    overwrite(record);
                    mutator.poll();
                });
            },
        );
    }

    #[test]
    fn a_damaged_record_is_found_before_its_roots_are_enumerated() {
        struct Late;
        impl RootVisitor<usize> for Late {
            fn slot(&mut self, _: Slot<'_, usize>) {
                eprintln!("{TOO_LATE}");
            }
            fn pinned(&mut self, _: usize) {}
            fn transitively_pinned(&mut self, _: usize) {}
        }
        aborts_before(
            TOO_LATE,
            "damage::a_damaged_record_is_found_before_its_roots_are_enumerated",
            &SAYS,
            || {
                let world = World::new(Small);
                let mut mutator = world.attach().unwrap();
                let record = mutator.record_address();
                let mut call = mutator.foreign_call();
                call.root(7);
                call.run(|| {
                    world.pause(|stopped| {
                        overwrite(record);
                        stopped.enumerate(&mut Late);
                        eprintln!("{TOO_LATE}");
                    });
                });
            },
        );
    }

    /// The control: the same steps without the damage.
    #[test]
    fn a_whole_chain_is_never_found_damaged() {
        let world = World::new(Small);
        let mut mutator = world.attach().unwrap();
        let nested = upcall_fn(|mutator: &mut Mutator<Small>, x: c_int| {
            mutator.poll();
            mutator.pause(|stopped| assert_eq!(stopped.mutators().next().unwrap().validate(), Ok(())));
            mutator.foreign_call().run(|| call_back(upcall_fn(body))) + x
        });
        assert_eq!(mutator.foreign_call().run(|| call_back(nested)), 2);
    }
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
        &["reentry: fatal: `Vm::report` panicked: the report's own message"],
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
        &["reentry: fatal: the drop of an error of an upcall panicked: the drop's own message"],
        || {
            let throws =
                |_: &mut Mutator<Small>, _: c_int| -> Result<c_int, Oops> { Err(Oops::PanicsWhenDropped) };
            call_under(ErrorPolicy::Fallback, upcall_fn(Throwing(throws)));
        },
    );
}

/// A payload that panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the payload's own message");
    }
}

/// The payload of a hook's panic is not dropped, since that could panic again and get out between two states.
#[test]
fn a_hook_whose_payload_panics_when_dropped_aborts() {
    thread_local! { static ARMED: Cell<bool> = const { Cell::new(false) }; }
    struct Hooked;
    impl Vm for Hooked {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {}
        fn entering_managed(&self, _: Crossing) {
            if ARMED.get() {
                std::panic::resume_unwind(Box::new(Bomb));
            }
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Hooked {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    aborts_before(
        "the payload's own message",
        "a_hook_whose_payload_panics_when_dropped_aborts",
        &["reentry: fatal: a transition hook panicked: a payload that is not text"],
        || {
            let world = World::new(Hooked);
            let mut mutator = world.attach().unwrap();
            ARMED.set(true);
            let call = core::panic::AssertUnwindSafe(|| mutator.foreign_call().run(|| ()));
            drop(std::panic::catch_unwind(call));
        },
    );
}

/// A report that panics where a thread waits for a pause would go on managed beside the pause.
#[test]
fn a_report_that_panics_while_its_thread_waits_for_a_pause_aborts() {
    aborts(
        "a_report_that_panics_while_its_thread_waits_for_a_pause_aborts",
        &["reentry: fatal: `Vm::report` panicked: the report's own message"],
        || {
            let world = World::<Small>::builder().report_after(Duration::from_millis(5)).build(Small);
            let (inside, stopped) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    REPORT_PANICS.set(true);
                    let mut mutator = world.attach().unwrap();
                    let call = core::panic::AssertUnwindSafe(|| {
                        mutator.foreign_call().run(|| {
                            inside.wait();
                            stopped.wait();
                        });
                    });
                    // It would be caught.
                    drop(std::panic::catch_unwind(call));
                    std::process::exit(78);
                });
                inside.wait();
                world.pause(|_| {
                    stopped.wait();
                    std::thread::sleep(Duration::from_secs(60));
                });
            });
        },
    );
}

/// I7: also where the world has been shut down, before there is a mutator.
#[test]
#[expect(ffi_unwind_calls, reason = "this Rust closure stands for the foreign code")]
fn a_report_that_panics_on_the_way_into_an_unwinding_upcall_aborts() {
    aborts(
        "a_report_that_panics_on_the_way_into_an_unwinding_upcall_aborts",
        &["reentry: fatal: `Vm::report` panicked: the report's own message"],
        || {
            let world = World::new(Small);
            world.adopt_foreign_threads();
            world.shutdown();
            let callback = upcall_fn_unwind(body, || 1);
            let caught = std::thread::spawn(move || {
                REPORT_PANICS.set(true);
                std::panic::catch_unwind(|| callback(1)).is_err()
            });
            std::process::exit(if caught.join().unwrap() { 78 } else { 79 });
        },
    );
}

/// `Vm::attach` attaches the thread it is called for, and what it returns detaches it again: for ever, if it were tried again.
#[test]
fn a_vm_that_attaches_and_detaches_the_thread_it_attaches_aborts() {
    thread_local! { static BUSY: Cell<bool> = const { Cell::new(false) }; }
    struct Eager(OnceLock<World<Self>>);
    impl Vm for Eager {
        type Ref = usize;
        type Local = Option<Inner>;
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) -> Option<Inner> {
            if BUSY.replace(true) {
                return None;
            }
            let own = Inner(self.0.get()?.attach().ok());
            BUSY.set(false);
            Some(own)
        }
    }
    /// Never leaves its thread: it is dropped where it was made.
    struct Inner(#[expect(dead_code, reason = "held for its drop")] Option<reentry::Attachment<Eager>>);
    // SAFETY: dropped by the thread that made it, as the test sees to.
    unsafe impl Send for Inner {}
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Eager {
        fn scan_segment(&self, _: &Option<Inner>, _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    aborts(
        "a_vm_that_attaches_and_detaches_the_thread_it_attaches_aborts",
        &[
            "reentry: fatal: `Vm::attach` of",
            "attached the foreign thread it was called for, and detached it again",
        ],
        || {
            let world = World::new(Eager(OnceLock::new()));
            assert!(world.vm().0.set(world.clone()).is_ok());
            world.adopt_foreign_threads();
            call_back(upcall_fn(|_: &mut Mutator<Eager>, x: c_int| x));
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
        unsafe { mutator.leaf_call(|_| foreign_jump(0)) }
    }
    fn next(_: &mut Mutator<Unlooking>, x: c_int, _: *mut c_void) -> c_int {
        x
    }
    aborts(
        "without_the_look_for_skipped_upcalls_an_upcall_after_a_jump_aborts",
        &["cannot receive an upcall: it is managed, in ", file!()],
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
#[needs_cpp]
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
#[needs_cpp]
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

/// An exception and a panic look alike to a destructor of a thread that was unwinding before the upcall.
#[needs_cpp]
#[test]
#[expect(ffi_unwind_calls, reason = "exceptions of C++ may leave these functions")]
fn an_exception_past_an_unwinding_upcall_on_a_thread_that_unwinds_aborts() {
    fn throwing(mutator: &mut Mutator<Small>, x: c_int, _: *mut c_void) -> c_int {
        // SAFETY: it throws; every frame up to the C++ that catches lets the exception pass.
        mutator.foreign_call().run(|| unsafe { foreign_throw(x) })
    }
    struct Calling<'m>(&'m mut Mutator<Small>);
    impl Drop for Calling<'_> {
        fn drop(&mut self) {
            let function: extern "C-unwind" fn(c_int, *mut c_void) -> c_int =
                upcall_fn_unwind(throwing, || -1);
            // SAFETY: the callback does not use the data.
            self.0.foreign_call().run(|| unsafe { foreign_catch(function, 1, ptr::null_mut()) });
        }
    }
    let says = [
        "the first panic's own message",
        "reentry: fatal: a panic or an exception left an unwinding upcall of the foreign call at",
        file!(),
        "on a thread that was unwinding already",
    ];
    aborts("an_exception_past_an_unwinding_upcall_on_a_thread_that_unwinds_aborts", &says, || {
        let world = World::new(Small);
        let mut mutator = world.attach().unwrap();
        let _calling = Calling(&mut mutator);
        panic!("the first panic's own message");
    });
}

#[needs_cpp]
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

/// The error policy of an upcall is that of its thread's attachment too: C that cannot bear a fallback value gets none.
#[test]
fn a_foreign_thread_that_cannot_be_attached_for_an_aborting_upcall_aborts() {
    struct Full;
    impl Vm for Full {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {
            panic!("no room for another thread")
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Full {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    aborts(
        "a_foreign_thread_that_cannot_be_attached_for_an_aborting_upcall_aborts",
        &[
            "reentry: fatal: a foreign thread that called in could not be attached: ",
            "`Vm::attach` panicked: no room for another thread",
        ],
        || {
            let world = World::new(Full);
            let closure = UpcallClosure::new(&world, Aborting(|_: &mut Mutator<Full>, x: c_int| x));
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            unsafe { foreign_call_back_last(closure.data_last(), 1, closure.data()) };
        },
    );
}

/// The upcall is for the mutator that the VM made meanwhile, which is managed.
#[test]
fn an_upcall_whose_thread_the_vm_attaches_meanwhile_aborts() {
    struct Eager(OnceLock<World<Self>>, Cell<bool>);
    // SAFETY: one thread uses it.
    unsafe impl Sync for Eager {}
    impl Vm for Eager {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {
            if let Some(world) = self.0.get().filter(|_| !self.1.replace(true)) {
                let _mutator = core::mem::ManuallyDrop::new(world.attach().unwrap());
            }
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Eager {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    aborts(
        "an_upcall_whose_thread_the_vm_attaches_meanwhile_aborts",
        &["reentry: fatal: mutator 1 cannot receive an upcall: it is managed"],
        || {
            let world = World::new(Eager(OnceLock::new(), Cell::new(false)));
            assert!(world.vm().0.set(world.clone()).is_ok());
            let closure = UpcallClosure::new(&world, |_: &mut Mutator<Eager>, x: c_int| x);
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            unsafe { foreign_call_back_last(closure.data_last(), 1, closure.data()) };
        },
    );
}

/// A process whose system calls are filtered, as in a sandbox.
#[cfg(target_os = "linux")]
mod filtered {
    use super::{Small, aborts};
    use reentry::{FenceStrategy, World};

    /// Has the kernel refuse `membarrier` from now on, on this thread and those it makes.
    fn forbid_membarrier() {
        // Of <linux/filter.h> and <linux/seccomp.h>: load a word, jump if equal, return a constant.
        let step = |code: u32, (jt, jf): (u8, u8), k: u32| libc::sock_filter {
            code: u16::try_from(code).expect("an operation is 16 bits"),
            jt,
            jf,
            k,
        };
        let number = u32::try_from(libc::SYS_membarrier).expect("a system call has a small number");
        let refuse =
            libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).expect("an error is a small number");
        let mut program = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (0, 1), number),
            step(libc::BPF_RET | libc::BPF_K, (0, 0), refuse),
            step(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ALLOW),
        ];
        let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        // SAFETY: the calls take what the kernel's documentation says; the program lives until they return.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
        }
    }

    /// The probe finds out, so a world that asks for nothing works; one that asks for the impossible is told where.
    #[test]
    fn a_process_that_forbids_membarrier_has_symmetric_fences_and_is_refused_others() {
        aborts(
            "filtered::a_process_that_forbids_membarrier_has_symmetric_fences_and_is_refused_others",
            &[
                "tests/aborts.rs:",
                "reentry: Asymmetric is not supported here; use `FenceStrategy::probe()`",
                "as it should be",
            ],
            || {
                forbid_membarrier();
                let world = World::new(Small);
                assert_eq!(world.fence(), FenceStrategy::Symmetric);
                let mut mutator = world.attach().unwrap();
                mutator.foreign_call().run(|| world.pause(|_| ()));
                let refused =
                    std::panic::catch_unwind(|| World::<Small>::builder().fence(FenceStrategy::Asymmetric));
                assert!(refused.is_err());
                eprintln!("as it should be");
                // What the parent waits for.
                std::process::abort();
            },
        );
    }

    /// Nothing can be done then: mutators have left their half of the fence to this one.
    #[test]
    fn a_filter_that_refuses_membarrier_afterwards_aborts_at_the_next_pause() {
        if !FenceStrategy::Asymmetric.is_supported() {
            return;
        }
        aborts(
            "filtered::a_filter_that_refuses_membarrier_afterwards_aborts_at_the_next_pause",
            &[
                "a pause as ever",
                "reentry: fatal: membarrier(PRIVATE_EXPEDITED) was refused after it had been registered",
                "choose FenceStrategy::Symmetric",
            ],
            || {
                let world = World::builder().fence(FenceStrategy::Asymmetric).build(Small);
                world.pause(|_| eprintln!("a pause as ever"));
                forbid_membarrier();
                world.pause(|_| ());
            },
        );
    }
}
