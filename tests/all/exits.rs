//! The exit of the process, called where the crate has frames: nothing is freed below them, C's exit handlers get an answer, and the exit code is the caller's.

use crate::child;
use core::cell::RefCell;
use core::ffi::c_int;
use core::time::Duration;
use reentry::{
    Attachment, Capture, FallbackOnly, Mutator, RootVisitor, Segment, StackScanner, Stragglers, Vm, World,
    upcall_fn, upcall_fn_or,
};
use reentry_foreign::{Callback, foreign_call_back, foreign_call_back_at_exit};
use std::process::Output;
use std::thread;

/// A VM that says when it is dropped, and writes its reports to standard error.
struct Small {
    data: Vec<u64>,
}

impl Small {
    fn world() -> World<Self> {
        World::new(Self { data: vec![7; 1000] })
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        self.data.fill(0);
        eprintln!("the VM is dropped");
    }
}

impl Vm for Small {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;
    fn attach(&self) {}
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Small {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// The attachment of a thread that keeps it in a thread-local: `exit` destroys that.
fn with_attachment_in_a_thread_local<R>(world: &World<Small>, f: impl FnOnce(&mut Mutator<Small>) -> R) -> R {
    thread_local! { static ME: RefCell<Option<Attachment<Small>>> = const { RefCell::new(None) }; }
    ME.set(Some(world.attach().unwrap()));
    ME.with_borrow_mut(|me| f(me.as_mut().unwrap()))
}

fn double(_: &mut Mutator<Small>, x: c_int) -> c_int {
    2 * x
}

fn exit(_: &mut Mutator<Small>, code: c_int) -> c_int {
    std::process::exit(code)
}

fn call_back(callback: Callback, x: c_int) -> c_int {
    // SAFETY: the callback takes an `int` and gives one.
    unsafe { foreign_call_back(callback, x) }
}

fn at_exit(callback: Callback) {
    // SAFETY: the callback is an upcall function, which is never dropped.
    unsafe { foreign_call_back_at_exit(callback) };
}

/// What the child wrote, if it ended with `code` as `exit` was told.
#[track_caller]
fn exited(output: &Output, code: c_int) -> (String, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{}: {out}{err}", output.status);
    (out, err)
}

#[test]
fn exit_in_an_upcall_of_a_thread_whose_attachment_is_in_a_thread_local_ends_with_its_code() {
    let output = child::run(
        "exits::exit_in_an_upcall_of_a_thread_whose_attachment_is_in_a_thread_local_ends_with_its_code",
        || {
            let world = Small::world();
            with_attachment_in_a_thread_local(&world, |mutator| {
                mutator.foreign_call().run(|| call_back(upcall_fn(exit), 3))
            });
        },
    );
    let (out, err) = exited(&output, 3);
    assert!(!err.contains("dropped") && !err.contains("panicked"), "{out}{err}");
}

#[test]
fn exit_in_a_foreign_call_of_a_thread_whose_attachment_is_in_a_thread_local_ends_with_its_code() {
    let output = child::run(
        "exits::exit_in_a_foreign_call_of_a_thread_whose_attachment_is_in_a_thread_local_ends_with_its_code",
        || {
            let world = Small::world();
            at_exit(upcall_fn_or(double, || -1));
            with_attachment_in_a_thread_local(&world, |mutator| {
                mutator.foreign_call().run(|| std::process::exit(4))
            });
        },
    );
    let (out, err) = exited(&output, 4);
    assert!(out.contains("at exit: 14"), "the handler is served by the call in progress: {out}{err}");
}

/// A foreign thread's mutator is its own: `exit` on it must free nothing that frames below use.
#[test]
fn exit_in_an_upcall_of_a_foreign_thread_frees_nothing_that_frames_below_use() {
    fn body(mutator: &mut Mutator<Small>, code: c_int) -> c_int {
        let vm = mutator.vm();
        thread::scope(|scope| {
            scope.spawn(|| {
                loop {
                    let sum: u64 = vm.data.iter().sum();
                    if sum != 7000 {
                        eprintln!("the data sums to {sum}");
                    }
                    thread::yield_now();
                }
            });
            std::process::exit(code)
        })
    }
    /// The process takes its time to end.
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(100));
        }
    }
    thread_local! { static SLOW: Slow = const { Slow }; }
    let output = child::run(
        "exits::exit_in_an_upcall_of_a_foreign_thread_frees_nothing_that_frames_below_use",
        || {
            SLOW.with(|_| ());
            let world = Small::world();
            world.adopt_foreign_threads();
            call_back(upcall_fn(body), 5);
        },
    );
    let (out, err) = exited(&output, 5);
    assert!(!err.contains("dropped") && !err.contains("sums to"), "{out}{err}");
}

/// The handler finds the mutator managed, for ever: it gets the fallback value, and the VM is told.
#[test]
fn an_exit_handler_that_calls_in_where_managed_code_exited_gets_the_fallback_value_and_a_report() {
    let output = child::run(
        "exits::an_exit_handler_that_calls_in_where_managed_code_exited_gets_the_fallback_value_and_a_report",
        || {
            let world = Small::world();
            at_exit(upcall_fn_or(double, || -1));
            match std::env::var("REENTRY_EXITS").as_deref() {
                Ok("upcall") => {
                    let mut mutator = world.attach().unwrap();
                    mutator.foreign_call().run(|| call_back(upcall_fn(exit), 6));
                }
                Ok("foreign") => {
                    world.adopt_foreign_threads();
                    call_back(upcall_fn(exit), 6);
                }
                Ok("pause") => {
                    world.adopt_foreign_threads();
                    world.pause(|_| std::process::exit(6));
                }
                _ => {
                    let _mutator = world.attach().unwrap();
                    std::process::exit(6);
                }
            }
        },
    );
    let told = |output: &Output| {
        let (out, err) = exited(output, 6);
        assert!(out.contains("at exit: -1"), "{out}{err}");
        assert!(err.contains("reentry: foreign code called in at the exit of the process"), "{out}{err}");
    };
    told(&output);
    for how in ["upcall", "foreign", "pause"] {
        let name = "exits::an_exit_handler_that_calls_in_where_managed_code_exited_gets_the_fallback_value_and_a_report";
        let mut child = crate::emulator::this_binary();
        child.args([name, "--exact", "--nocapture"]);
        told(&child.env("REENTRY_CHILD_TEST", name).env("REENTRY_EXITS", how).output().unwrap());
    }
}

#[test]
fn an_exit_handler_that_calls_in_where_a_mutator_paused_the_world_gets_the_fallback_value() {
    let output = child::run(
        "exits::an_exit_handler_that_calls_in_where_a_mutator_paused_the_world_gets_the_fallback_value",
        || {
            let world = Small::world();
            at_exit(upcall_fn_or(double, || -1));
            let mut mutator = world.attach().unwrap();
            mutator.pause(|_| std::process::exit(7));
        },
    );
    let (out, err) = exited(&output, 7);
    assert!(out.contains("at exit: -1"), "{out}{err}");
}

/// The last world has gone when C's handlers run.
#[test]
fn an_exit_handler_that_calls_in_when_the_world_has_gone_gets_the_fallback_value_and_a_message() {
    let output = child::run(
        "exits::an_exit_handler_that_calls_in_when_the_world_has_gone_gets_the_fallback_value_and_a_message",
        || {
            let world = Small::world();
            world.adopt_foreign_threads();
            at_exit(upcall_fn_or(double, || -1));
            assert!(world.shutdown_within(Duration::from_secs(10), Stragglers::Fail).is_empty());
            drop(world);
            std::process::exit(8);
        },
    );
    let (out, err) = exited(&output, 8);
    assert!(err.contains("the VM is dropped") && out.contains("at exit: -1"), "{out}{err}");
    assert!(err.contains("reentry: a foreign thread called in after shutdown"), "{err}");
}

/// No world has ever adopted threads: an error of the program, which this function says is to be survived.
#[test]
fn an_upcall_that_is_fallback_only_gives_its_fallback_where_there_is_no_world() {
    let output = child::run(
        "exits::an_upcall_that_is_fallback_only_gives_its_fallback_where_there_is_no_world",
        || {
            let given = call_back(upcall_fn_or(FallbackOnly(double), || -9), 1);
            std::process::exit(if given == -9 { 9 } else { 1 });
        },
    );
    let (_, err) = exited(&output, 9);
    assert!(err.contains("reentry: a thread that no world knows called an upcall function of"), "{err}");
}
