//! Misuse of fibers that cannot be an error: by the time it shows, frames run that hold a mutator which is not theirs. The process ends, and says where the fiber was.
//!
//! Each test runs itself again in a process of its own, which is to end.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::ffi::c_int;
use corosensei::Coroutine;
use reentry::{
    Capture, Fiber, Mutator, RootVisitor, Segment, StackScanner, UpcallClosure, Vm, World, upcall_fn,
};
use reentry_foreign::{foreign_call_back, foreign_call_back_last};
use std::rc::Rc;
use std::sync::Arc;
use strand::{Strand, suspend, switch_back};

#[path = "all/emulator.rs"]
mod emulator;
#[path = "all/strand.rs"]
mod strand;

const CHILD: &str = "REENTRY_ABORTING_TEST";

/// Runs `misuse` in a process of its own, the test `name` of this file, and checks that it aborts saying all of `says`.
#[track_caller]
fn aborts(name: &str, says: &[&str], misuse: impl FnOnce(World<Small>)) {
    if std::env::var_os(CHILD).is_some_and(|child| child == name) {
        misuse(World::new(Small));
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
}

struct Small;

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

#[test]
fn a_fiber_switched_away_from_while_it_is_managed_aborts() {
    aborts(
        "a_fiber_switched_away_from_while_it_is_managed_aborts",
        &["reentry: fatal: the fiber resumed at", "while it was managed", "switch inside `Mutator::suspend`"],
        |world| {
            let mut strand = Strand::new(&world, |_: &mut Mutator<Small>| switch_back());
            let _ = strand.resume(&mut world.attach().unwrap());
        },
    );
}

/// What comes back from foreign code is managed at once, on whatever thread, asked or not: so nothing is left there.
#[test]
fn a_fiber_switched_away_from_inside_a_foreign_call_aborts() {
    aborts(
        "a_fiber_switched_away_from_inside_a_foreign_call_aborts",
        &["the fiber resumed at", "while it was in a foreign call", "switch inside `Mutator::suspend`"],
        |world| {
            let mut strand = Strand::new(&world, |mutator: &mut Mutator<Small>| {
                mutator.foreign_call().run(switch_back);
            });
            let _ = strand.resume(&mut world.attach().unwrap());
        },
    );
}

#[test]
fn a_fiber_switched_away_from_inside_its_pause_aborts() {
    aborts(
        "a_fiber_switched_away_from_inside_its_pause_aborts",
        &["the fiber resumed at", "while it was stopped at a safepoint"],
        |world| {
            let mut strand =
                Strand::new(&world, |mutator: &mut Mutator<Small>| mutator.pause(|_| switch_back()));
            let _ = strand.resume(&mut world.attach().unwrap());
        },
    );
}

#[test]
fn a_fiber_switched_away_from_while_it_waits_for_another_aborts() {
    aborts(
        "a_fiber_switched_away_from_while_it_waits_for_another_aborts",
        &["the fiber resumed at", "while it was waiting for a fiber that it had resumed"],
        |world| {
            let inner = world.fiber().unwrap();
            let mut strand = Strand::new(&world, move |mutator: &mut Mutator<Small>| {
                mutator.resume(&inner, switch_back).unwrap()
            });
            let _ = strand.resume(&mut world.attach().unwrap());
        },
    );
}

#[test]
fn a_stack_switched_to_without_its_fiber_being_resumed_aborts() {
    aborts(
        "a_stack_switched_to_without_its_fiber_being_resumed_aborts",
        &["reentry: fatal: the fiber suspended at", "was switched to without `Mutator::resume`"],
        |world| {
            let mut strand = Strand::new(&world, |mutator: &mut Mutator<Small>| suspend(mutator));
            let mut mutator = world.attach().unwrap();
            assert_eq!(strand.resume(&mut mutator), Ok(false));
            strand.switch();
        },
    );
}

/// The same with another fiber resumed: being resumed is not for anybody on the thread.
#[test]
fn a_stack_switched_to_inside_the_resumption_of_another_fiber_aborts() {
    aborts(
        "a_stack_switched_to_inside_the_resumption_of_another_fiber_aborts",
        &["reentry: fatal: the fiber suspended at", "was switched to without `Mutator::resume`"],
        |world| {
            let mut strand = Strand::new(&world, |mutator: &mut Mutator<Small>| suspend(mutator));
            let mut mutator = world.attach().unwrap();
            assert_eq!(strand.resume(&mut mutator), Ok(false));
            let other = world.fiber().unwrap();
            let _ = mutator.resume(&other, || strand.switch());
        },
    );
}

/// Not a word of unsafe code: the stack enters its fiber by an upcall, and borrows nothing of it.
fn suspended_by_an_upcall(
    world: &World<Small>,
    mutator: &mut Mutator<Small>,
) -> (Fiber<Small>, Coroutine<(), (), ()>) {
    let fiber = world.fiber().unwrap();
    let of = world.clone();
    let mut stack = Coroutine::new(move |yielder, ()| {
        let upcall = UpcallClosure::new(&of, |mutator: &mut Mutator<Small>, x: c_int| {
            let yielder = core::ptr::with_exposed_provenance::<corosensei::Yielder<(), ()>>(YIELDER.get());
            // SAFETY: the yielder below, which lives as long as the stack runs.
            mutator.suspend(|| unsafe { (*yielder).suspend(()) }).unwrap();
            x
        });
        YIELDER.set(core::ptr::from_ref(yielder).expose_provenance());
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        unsafe { foreign_call_back_last(upcall.data_last(), 1, upcall.data()) };
    });
    mutator.resume(&fiber, || stack.resume(()).as_yield()).unwrap();
    (fiber, stack)
}

thread_local! { static YIELDER: core::cell::Cell<usize> = const { core::cell::Cell::new(0) }; }

/// Its destructors would run managed, with a mutator that is gone; and its record serves another by now.
#[test]
fn a_stack_unwound_after_its_fiber_was_dropped_aborts() {
    aborts(
        "a_stack_unwound_after_its_fiber_was_dropped_aborts",
        &[
            "was dropped with 1 activation(s) suspended",
            "reentry: fatal: the fiber suspended at",
            "or after its `Fiber` was dropped",
        ],
        |world| {
            let mut mutator = world.attach().unwrap();
            let (fiber, stack) = suspended_by_an_upcall(&world, &mut mutator);
            drop(fiber);
            // The record is in use again, on this very thread, and running.
            let next = world.fiber().unwrap();
            let _ = mutator.resume(&next, || next.run(|_| drop(stack)));
        },
    );
}

/// The world is gone with everything in it: what the stack looks at is still there.
#[test]
fn a_stack_unwound_after_its_world_has_gone_aborts() {
    aborts(
        "a_stack_unwound_after_its_world_has_gone_aborts",
        &["reentry: fatal: the fiber suspended at", "or after its `Fiber` was dropped"],
        |world| {
            let shared = Arc::new(());
            let mut mutator = world.attach().unwrap();
            let fiber = Rc::new(world.fiber().unwrap());
            let inner = Rc::clone(&fiber);
            let mut stack = Coroutine::<(), (), ()>::new(move |yielder, ()| {
                // SAFETY: broken on purpose: the fiber is dropped while this borrow of it lasts, which is caught.
                let fiber = unsafe { &*Rc::as_ptr(&inner) };
                core::mem::drop(inner);
                fiber.run(|mutator| mutator.suspend(|| yielder.suspend(())).unwrap()).unwrap();
            });
            mutator.resume(&fiber, || stack.resume(()).as_yield()).unwrap();
            drop((fiber, mutator, world, shared));
            drop(stack);
        },
    );
}

#[test]
fn a_fiber_dropped_while_it_runs_aborts() {
    aborts(
        "a_fiber_dropped_while_it_runs_aborts",
        &["reentry: fatal: fiber 2 was dropped while it runs"],
        |world| {
            let mut mutator = world.attach().unwrap();
            let fiber = Box::into_raw(Box::new(world.fiber().unwrap()));
            // SAFETY: made above. Broken on purpose: it is dropped while it is borrowed, which is caught.
            unsafe { mutator.resume(&*fiber, || drop(Box::from_raw(fiber))).unwrap() };
        },
    );
}

/// An upcall's activation must end before what is below it goes on; nothing makes sure of that on a stack that others switch.
#[test]
fn an_upcall_on_a_fiber_that_has_suspended_aborts() {
    aborts(
        "an_upcall_on_a_fiber_that_has_suspended_aborts",
        &["reentry: fatal: mutator 1 cannot receive an upcall: it is a suspended fiber at", file!()],
        |world| {
            let mut strand = Strand::new(&world, |mutator: &mut Mutator<Small>| suspend(mutator));
            let fiber = Arc::clone(&strand.fiber);
            let mut mutator = world.attach().unwrap();
            let _ = mutator.resume(&fiber, || {
                strand.switch();
                // SAFETY: the callback takes what C gives it.
                unsafe { foreign_call_back(upcall_fn(|_: &mut Mutator<Small>, x: c_int| x), 1) }
            });
        },
    );
}
