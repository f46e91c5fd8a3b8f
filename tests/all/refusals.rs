//! Upcalls that do not begin: where the call forbids them, where the stack is nearly used up, inside a pause of the same thread. C gets the fallback value and the managed
//! caller an error that says what to do; the world goes on.

use crate::emulator::EMULATED;
use crate::plain::{message, number, panic_quietly};
use crate::raising::{Oops, Raising, Told};
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::mem::ManuallyDrop;
use core::panic::AssertUnwindSafe;
use reentry::faults::Faults;
use reentry::testkit::{Correct, FaultSet};
use reentry::{
    ErrorPolicy, FallbackOnly, MachineState, Mutator, Throwing, UpcallClosure, UpcallRefused, World,
    upcall_fn, upcall_fn_or,
};
use reentry_foreign::{
    Callback, foreign_call_back, foreign_call_back_and_clean_up, foreign_call_back_and_go_on,
    foreign_call_back_below_64k, foreign_call_back_on_another_stack, foreign_call_back_while_suspended,
    foreign_suspend, foreign_thread_with_stack, foreign_threads,
};
use std::thread;

type Vm = Raising<520>;

const FALLBACK: c_int = -7;

thread_local! { static RAN: Cell<u32> = const { Cell::new(0) }; }

fn body<const TAG: u32>(_: &mut Mutator<Raising<TAG>>, x: c_int) -> c_int {
    RAN.set(RAN.get() + 1);
    x
}

fn callback() -> Callback {
    upcall_fn_or(body::<520>, || FALLBACK)
}

fn call_back() -> c_int {
    // SAFETY: the callback takes an `int` and gives one.
    unsafe { foreign_call_back(callback(), 3) }
}

/// What is said names the foreign call, and what to do.
#[track_caller]
fn assert_forbidden(said: &str, line: u32) {
    assert!(said.contains(&format!("{}:{line}", file!())), "it does not name the call: {said}");
    assert!(
        said.contains("was declared to make no upcall") && said.contains("take the declaration away"),
        "{said}"
    );
}

/// Go's CgoNoCallback.
#[test]
fn an_upcall_of_a_call_that_was_declared_to_make_none_is_refused_naming_the_call() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    // The first upcall ever at this depth, and later ones.
    for round in 0..3 {
        let (mut got, mut cleaned_up) = (0, 0);
        let mut call = mutator.foreign_call().without_upcalls();
        let line = line!() + 2;
        let said = message(|| {
            call.run(|| {
                // SAFETY: C writes the count.
                got = unsafe { foreign_call_back_and_clean_up(callback(), 3, &raw mut cleaned_up) };
            });
        });
        assert_forbidden(&said, line);
        assert_eq!((got, cleaned_up, RAN.get()), (FALLBACK, 1, round));
        // The same call can run again, and is refused again; a call that keeps its word is not.
        assert_forbidden(&message(|| call.run(call_back)), line!());
        assert_eq!(call.run(|| 4), 4);
        drop(call);
        // Other calls are not affected.
        assert_eq!(mutator.foreign_call().run(call_back), 3);
        assert_eq!(world.vm().take_reports(), []);
    }
}

/// A refusal is an error like others: policies hold for it, and the VM may make an exception of it.
#[test]
fn a_refusal_goes_where_the_policy_says_and_becomes_the_vms_exception() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().without_upcalls().on_error(ErrorPolicy::Fallback);
    assert_eq!(call.run(call_back), FALLBACK);
    assert_eq!(world.vm().take_reports(), [Told::Ignored("refused".to_owned())]);
    drop(call);
    let reporting: Callback = upcall_fn_or(FallbackOnly(body::<520>), || FALLBACK);
    // SAFETY: the callback takes an `int` and gives one.
    let refused = || unsafe { foreign_call_back(reporting, 3) };
    assert_eq!(mutator.foreign_call().without_upcalls().run(refused), FALLBACK);
    assert_eq!(world.vm().take_reports(), [Told::Ignored("refused".to_owned())]);

    let line = line!() + 1;
    assert_forbidden(&message(|| mutator.foreign_call().without_upcalls().try_run(call_back)), line);
    world.vm().translate_refusals();
    let outcome = mutator.foreign_call().without_upcalls().try_run(call_back);
    let Err(Oops::Refused(UpcallRefused::Forbidden { call_site: Some(site) })) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((site.file(), site.line()), (file!(), line!() - 4));
    // Also where the exception passes a plain `run` on its way.
    let through = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, _: c_int| {
        mutator.foreign_call().without_upcalls().run(call_back)
    });
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let outcome = mutator.foreign_call().try_run(|| unsafe { through.data_last()(0, through.data()) });
    assert!(matches!(outcome, Err(Oops::Refused(UpcallRefused::Forbidden { .. }))), "{outcome:?}");
    assert_eq!((RAN.get(), world.vm().take_reports()), (0, vec![]));
}

/// The declaration is about one call: an upcall's own foreign calls have their own.
#[test]
fn a_call_in_an_upcall_may_make_the_declaration_and_the_outer_not() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let inner = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, x: c_int| {
        let line = line!() + 1;
        let said = message(|| mutator.foreign_call().without_upcalls().run(call_back));
        assert_forbidden(&said, line);
        assert_eq!(mutator.foreign_call().run(call_back), 3);
        x
    });
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let inner = || unsafe { inner.data_last()(4, inner.data()) };
    for _ in 0..2 {
        let both = || (inner(), call_back(), inner());
        assert_eq!(mutator.foreign_call().run(both), (4, 3, 4));
    }
    assert_eq!(RAN.get(), 2 + 4);
}

/// Another thread's upcalls, and another world's, are no upcalls of this call.
#[test]
fn the_declaration_is_about_the_calls_own_mutator() {
    type Vm = Raising<521>;
    let (world, other) = (Vm::world(), Vm::world());
    world.adopt_foreign_threads();
    let mut mutator = world.attach().unwrap();
    let mut in_other = other.attach().unwrap();
    let there = UpcallClosure::new(&other, |_: &mut Mutator<Vm>, x: c_int| x);
    in_other.foreign_call().run(|| {
        mutator.foreign_call().without_upcalls().run(|| {
            // SAFETY: the callback takes an `int` and gives one; it may be called from any thread.
            assert_eq!(unsafe { foreign_threads(2, 3, upcall_fn(body::<521>)) }, 6);
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            assert_eq!(unsafe { there.data_last()(5, there.data()) }, 5);
        });
    });
    assert_eq!((world.vm().take_reports(), other.vm().take_reports()), (vec![], vec![]));
}

/// Whatever ends a call with terms of its own, the next call of the activation has none of them.
#[test]
fn the_terms_of_a_call_do_not_reach_the_next_one() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    // Twice: before the record of an upcall's depth is made, and after. Once at the base, once in an upcall.
    let check = |mutator: &mut Mutator<Vm>, warm: bool| {
        if warm {
            assert_eq!(mutator.foreign_call().run(call_back), 3);
        }
        let next = |mutator: &mut Mutator<Vm>| assert_eq!(mutator.foreign_call().run(call_back), 3);
        // It panics.
        assert_eq!(number(|| mutator.foreign_call().without_upcalls().run(|| panic_quietly(6))), 6);
        next(mutator);
        // It is leaked, having run or not.
        let mut leaked = ManuallyDrop::new(mutator.foreign_call().without_upcalls());
        leaked.run(|| ());
        next(mutator);
        let leaked = ManuallyDrop::new(mutator.foreign_call().without_upcalls());
        let _: &ManuallyDrop<_> = &leaked;
        next(mutator);
        // The guard form, dropped, left, and dropped by a panic.
        let mut call = mutator.foreign_call().without_upcalls();
        // SAFETY: dropped before the mutator is used again.
        let foreign = unsafe { call.enter() };
        assert_eq!(call_back(), FALLBACK);
        assert!(message(|| drop(foreign)).contains("was declared to make no upcall"));
        // SAFETY: as above.
        assert!(unsafe { call.enter() }.leave().is_ok());
        let panicked = number(|| {
            // SAFETY: as above.
            let _foreign = unsafe { call.enter() };
            panic_quietly(2)
        });
        assert_eq!(panicked, 2);
        drop(call);
        next(mutator);
        // Every other term, refused or not.
        for policy in [ErrorPolicy::Carry, ErrorPolicy::Fallback] {
            let mut call = mutator.foreign_call().on_error(policy).preserving(MachineState::ALL);
            assert_eq!(call.run(call_back), 3);
            drop(call);
            let call = mutator.foreign_call().preserving(MachineState::ALL).without_upcalls();
            assert_eq!(call.on_error(ErrorPolicy::Fallback).run(call_back), FALLBACK);
        }
        next(mutator);
        let fails = upcall_fn_or(|_: &mut Mutator<Vm>, _: c_int| panic_quietly(9), || FALLBACK);
        // SAFETY: the callback takes an `int` and gives one.
        assert_eq!(number(|| mutator.foreign_call().run(|| unsafe { foreign_call_back(fails, 3) })), 9);
    };
    check(&mut mutator, false);
    check(&mut mutator, true);
    let reports = world.vm().take_reports();
    assert_eq!(reports, vec![Told::Ignored("refused".to_owned()); 4]);
    let inside = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, x: c_int| {
        check(mutator, x == 1);
        x
    });
    for x in [0, 1] {
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        let run = || unsafe { inside.data_last()(x, inside.data()) };
        assert_eq!(mutator.foreign_call().preserving(MachineState::FLOATING_POINT).run(run), x);
    }
}

/// How deep a recursion managed -> C -> upcall went, and the error that ended it.
struct Depth {
    levels: u32,
    refused: UpcallRefused,
}

thread_local! {
    static LEVELS: Cell<u32> = const { Cell::new(0) };
    /// At which level the recursion ends by itself.
    static LAST_LEVEL: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// Recurses through C, for ever unless told otherwise.
///
/// # Errors
///
/// The refusal that ends it, as an exception.
fn recurse<const TAG: u32, F: FaultSet>(
    mutator: &mut Mutator<Raising<TAG, F>>,
    x: c_int,
) -> Result<c_int, Oops> {
    LEVELS.set(LEVELS.get() + 1);
    if LEVELS.get() >= LAST_LEVEL.get() {
        return Ok(x);
    }
    let callback = upcall_fn_or(Throwing(recurse::<TAG, F>), || FALLBACK);
    // SAFETY: the callback takes an `int` and gives one.
    mutator.foreign_call().try_run(|| unsafe { foreign_call_back_and_go_on(callback, x) })
}

/// The same with a panic for an exception.
fn recurse_plainly(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
    LEVELS.set(LEVELS.get() + 1);
    let callback = upcall_fn_or(recurse_plainly, || FALLBACK);
    // SAFETY: the callback takes an `int` and gives one.
    mutator.foreign_call().run(|| unsafe { foreign_call_back_and_go_on(callback, x) })
}

/// Recurses on this thread until it is refused, three ways, twice each: the thread works afterwards.
fn exhaust(world: &World<Vm>, told_as_panic: bool) -> Depth {
    let mut mutator = world.attach().unwrap();
    let mut deepest = None;
    // The outermost call is in foreign code already, with a fallback of its own.
    let plainly = upcall_fn_or(recurse_plainly, || FALLBACK);
    // SAFETY: the callback takes an `int` and gives one.
    let plainly = || unsafe { foreign_call_back(plainly, 0) };
    for _ in 0..2 {
        if told_as_panic && deepest.is_none() {
            // Before the VM makes exceptions of refusals: a panic that is printed, with a backtrace if one is asked for.
            let said = message(|| mutator.foreign_call().run(plainly));
            assert!(said.contains("the recursion through foreign code is too deep"), "{said}");
        }
        world.vm().translate_refusals();
        LEVELS.set(0);
        let outcome = recurse(&mut mutator, 0);
        let Err(Oops::Refused(refused)) = outcome else { panic!("{outcome:?}") };
        deepest = Some(Depth { levels: LEVELS.get(), refused });
        assert_eq!(mutator.foreign_call().run(call_back), 3);
        // The exception passes plain `run` all the way up.
        let outcome = mutator.foreign_call().try_run(plainly);
        assert!(matches!(outcome, Err(Oops::Refused(UpcallRefused::StackExhausted { .. }))), "{outcome:?}");
        assert_eq!(mutator.depth(), 0);
        assert_eq!(mutator.foreign_call().run(call_back), 3);
    }
    assert_eq!(world.vm().take_reports(), []);
    deepest.expect("it ran")
}

/// Runs `f` on a thread with exactly `stack` bytes of stack, with a page behind it that faults.
fn on_a_stack_of<R: Send>(stack: usize, f: impl FnOnce() -> R + Send) -> R {
    struct Task<F, R> {
        f: Option<F>,
        result: Option<thread::Result<R>>,
    }
    extern "C" fn run<F: FnOnce() -> R, R>(task: *mut c_void) {
        // SAFETY: `task` is the `Task<F, R>` below, whose owner waits.
        let task = unsafe { &mut *task.cast::<Task<F, R>>() };
        let f = task.f.take().expect("called once");
        task.result = Some(std::panic::catch_unwind(AssertUnwindSafe(f)));
    }
    fn runner<F: FnOnce() -> R, R>(_: &Task<F, R>) -> extern "C" fn(*mut c_void) {
        run::<F, R>
    }
    let mut task = Task { f: Some(f), result: None };
    let run = runner(&task);
    // SAFETY: `run` takes a `Task` of this type, which outlives the thread.
    assert_eq!(unsafe { foreign_thread_with_stack(stack, run, (&raw mut task).cast()) }, 0);
    match task.result.expect("it has run") {
        Ok(result) => result,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

#[track_caller]
fn assert_exhausted(depth: &Depth, expected_reserve: usize) {
    let UpcallRefused::StackExhausted { left, reserve, call_site: Some(site) } = depth.refused else {
        panic!("{:?}", depth.refused)
    };
    assert_eq!((reserve, site.file()), (expected_reserve, file!()));
    assert!(left < reserve, "{left} of {reserve}");
    assert!(depth.levels > 1, "it went {} levels deep", depth.levels);
    let said = depth.refused.to_string();
    assert!(
        said.contains(&format!("found {left} bytes of stack left, fewer than the {reserve} in reserve")),
        "{said}"
    );
}

/// Half of a small stack is in reserve at most. The smallest has room for the panic's message, with a backtrace.
#[test]
#[cfg(target_os = "linux")]
fn endless_recursion_through_c_ends_in_an_error_on_stacks_of_every_size() {
    // SAFETY: it asks for a number.
    let least = usize::try_from(unsafe { libc::sysconf(libc::_SC_THREAD_STACK_MIN) }).unwrap();
    // On aarch64, where a page may be as large as that, glibc makes no thread with 64 KiB, but with 128.
    let smallest = least.next_power_of_two().max(64 << 10);
    assert!(smallest <= 128 << 10, "{smallest}");
    // Checked mode looks at the whole chain at each crossing, so the time grows with the square of the depth.
    let largest = if EMULATED { 1 << 20 } else { 8 << 20 };
    for (stack, reserve) in
        [(64 << 10, 32 << 10), (128 << 10, 64 << 10), (256 << 10, 64 << 10), (largest, 64 << 10)]
    {
        if stack >= smallest {
            let depth = on_a_stack_of(stack, || exhaust(&Vm::world(), stack == smallest));
            assert_exhausted(&depth, reserve);
        }
    }
}

/// The reserve is the world's to choose; without the check the recursion goes on into it.
#[test]
#[cfg(target_os = "linux")]
fn a_world_chooses_the_reserve_and_without_the_check_an_upcall_goes_on_into_it() {
    enum Unchecked {}
    // SAFETY: this test goes no deeper than the stack is.
    unsafe impl FaultSet for Unchecked {
        const FAULTS: Faults = Faults::NO_STACK_CHECK;
    }
    const STACK: usize = 1 << 20;
    /// # Errors
    ///
    /// How deep it went, and why not deeper.
    fn levels<F: FaultSet>(reserve: usize, last: u32) -> Result<u32, (u32, UpcallRefused)> {
        on_a_stack_of(STACK, || {
            let vm = Raising::<522, F>::new();
            vm.translate_refusals();
            let world = World::<Raising<522, F>>::builder().stack_reserve(reserve).build(vm);
            LAST_LEVEL.set(last);
            match recurse(&mut world.attach().unwrap(), 0) {
                Ok(_) => Ok(LEVELS.get()),
                Err(Oops::Refused(refused)) => Err((LEVELS.get(), refused)),
                Err(other) => panic!("{other:?}"),
            }
        })
    }
    let reserve_of = |refused| match refused {
        UpcallRefused::StackExhausted { reserve, .. } => reserve,
        other => panic!("{other:?}"),
    };
    let (shallow, refused) = levels::<Correct>(200 << 10, u32::MAX).expect_err("refused");
    assert_eq!(reserve_of(refused), 200 << 10);
    let (deep, refused) = levels::<Correct>(100 << 10, u32::MAX).expect_err("refused");
    assert_eq!(reserve_of(refused), 100 << 10);
    // The two hundred and the one hundred KiB are a fifth and a tenth of the stack.
    assert!(deep * 8 > shallow * 9 - 72 && deep * 8 < shallow * 9 + 72, "{shallow} and {deep} levels");
    let (most, refused) = levels::<Correct>(usize::MAX, u32::MAX).expect_err("refused");
    assert_eq!(reserve_of(refused), STACK / 2);
    assert!(most < shallow);
    // As deep as the smaller reserve allows, under the larger one: refused with the check, and not without.
    assert_eq!(levels::<Correct>(200 << 10, deep).expect_err("refused").0, shallow);
    assert_eq!(levels::<Unchecked>(200 << 10, deep), Ok(deep));
}

/// An upcall that has plenty of stack, but below a large C frame, is as good as any.
#[test]
fn an_upcall_from_below_a_large_frame_of_c_is_not_refused() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    // SAFETY: the callback takes an `int` and gives one.
    assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back_below_64k(callback(), 3) }), 3);
}

/// A foreign thread has no managed caller: the refusal is reported.
#[test]
#[cfg(target_os = "linux")]
fn a_foreign_thread_that_runs_out_of_stack_gets_the_fallback_value_and_goes_on() {
    type Vm = Raising<523>;
    let world = Vm::world();
    world.adopt_foreign_threads();
    let callback: Callback = upcall_fn_or(body::<523>, || FALLBACK);
    /// Foreign frames, until an upcall is refused; how many.
    fn refused_below(levels: u32, callback: Callback) -> u32 {
        let frame = core::hint::black_box([levels; 256]);
        let refused = match callback(3) {
            3 => refused_below(levels + 1, callback),
            got => {
                assert_eq!(got, FALLBACK);
                levels
            }
        };
        assert_eq!(core::hint::black_box(frame)[0], levels);
        refused
    }
    on_a_stack_of(128 << 10, || {
        assert_eq!(callback(3), 3);
        // Half of the stack is in reserve.
        let levels = refused_below(0, callback);
        assert!((4..=64).contains(&levels), "{levels} KiB at least");
        assert_eq!(callback(3), 3);
    });
    assert_eq!(world.vm().take_reports(), [Told::Unclaimed("refused".to_owned())]);
}

/// A fiber's stack is none of the thread's: there is nothing to compare its stack pointer with.
#[test]
#[cfg(target_os = "linux")]
fn an_upcall_on_another_stack_is_neither_refused_nor_taken_for_a_skipped_one() {
    thread_local! { static FIBERS: Cell<c_int> = const { Cell::new(0) }; }
    fn inside(mutator: &mut Mutator<Vm>, levels: c_int) -> c_int {
        FIBERS.set(FIBERS.get() + 1);
        if levels == 0 {
            return 1;
        }
        let callback = upcall_fn(inside);
        // From this stack to a third one, and plainly; and upcalls of this call before and after.
        let other = |levels: c_int| {
            // SAFETY: the callback takes an `int` and gives one.
            unsafe {
                foreign_call_back_on_another_stack(callback, levels)
                    + foreign_call_back(callback, 0)
                    + foreign_call_back_on_another_stack(callback, 0)
            }
        };
        mutator.foreign_call().run(|| other(levels - 1)) + 1
    }
    let check = |world: &World<Vm>| {
        let mut mutator = world.attach().unwrap();
        FIBERS.set(0);
        let callback = upcall_fn(inside);
        // SAFETY: the callback takes an `int` and gives one.
        let sum = mutator.foreign_call().run(|| unsafe { foreign_call_back_on_another_stack(callback, 4) });
        assert_eq!((sum, FIBERS.get()), (13, 13));
        // An error on another stack is carried like any other.
        let fails = upcall_fn_or(|_: &mut Mutator<Vm>, _: c_int| panic_quietly(4), || FALLBACK);
        let mut got = 0;
        let carried = number(|| {
            // SAFETY: as above.
            mutator.foreign_call().run(|| got = unsafe { foreign_call_back_on_another_stack(fails, 4) });
        });
        assert_eq!((carried, got, mutator.depth()), (4, FALLBACK, 0));
        drop(mutator);
        assert_eq!(world.vm().take_reports(), []);
    };
    check(&Vm::world());
    // The main thread's heap lies below its stack, another thread's stack among the heaps.
    on_a_stack_of(1 << 20, || check(&Vm::world()));
}

/// An upcall on another stack makes a foreign call that suspends the stack; an upcall on the thread's own stack belongs to that call, which lies on neither side of it.
#[test]
#[cfg(target_os = "linux")]
fn an_upcall_while_another_stack_is_suspended_in_a_call_is_not_taken_for_a_jump() {
    fn there(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
        // SAFETY: C goes back to where this stack was made, which resumes it.
        mutator.foreign_call().run(|| unsafe { foreign_suspend() });
        x
    }
    fn here(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
        // Nothing was skipped: the suspended upcall is an activation, and its call the one this upcall came from.
        assert_eq!(mutator.depth(), 2);
        10 * x
    }
    let check = || {
        let world = Vm::world();
        let mut mutator = world.attach().unwrap();
        let (there, here) = (upcall_fn(there), upcall_fn(here));
        // SAFETY: the callbacks take an `int` and give one; the upcall on the other stack ends after the one on this stack.
        let sum = mutator.foreign_call().run(|| unsafe { foreign_call_back_while_suspended(there, here, 3) });
        assert_eq!((sum, mutator.depth(), world.vm().take_reports()), (33, 0, vec![]));
    };
    check();
    on_a_stack_of(1 << 20, check);
}

/// The thread would wait for itself.
#[test]
fn an_upcall_in_a_pause_of_its_own_thread_is_refused_through_every_way_to_call() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let in_pause = || world.pause(|_| call_back());
    let said = message(|| mutator.foreign_call().run(|| assert_eq!(in_pause(), FALLBACK)));
    assert!(said.contains("end the pause first") && said.contains(file!()), "{said}");
    let said = message(|| mutator.pause(|_| assert_eq!(call_back(), FALLBACK)));
    assert!(said.contains("end the pause first") && said.contains(file!()), "{said}");
    let said = message(|| {
        let mut call = mutator.foreign_call();
        // SAFETY: left before the mutator is used again.
        let foreign = unsafe { call.enter() };
        assert_eq!(in_pause(), FALLBACK);
        foreign.leave()
    });
    assert!(said.contains("end the pause first") && said.contains(file!()), "{said}");
    assert_eq!(mutator.foreign_call().on_error(ErrorPolicy::Fallback).run(in_pause), FALLBACK);
    assert_eq!(world.vm().take_reports(), [Told::Ignored("refused".to_owned())]);
    // With machine state to put back, it is.
    let mut call = mutator.foreign_call().preserving(MachineState::ALL).on_error(ErrorPolicy::Fallback);
    assert_eq!(call.run(in_pause), FALLBACK);
    drop(call);
    assert_eq!(world.vm().take_reports(), [Told::Ignored("refused".to_owned())]);

    world.vm().translate_refusals();
    let outcome = mutator.foreign_call().try_run(in_pause);
    assert!(matches!(outcome, Err(Oops::Refused(UpcallRefused::PauseHeldHere { .. }))), "{outcome:?}");
    // A foreign thread has nobody to tell.
    let closure = UpcallClosure::with_fallback(&world, |_: &mut Mutator<Vm>, x: c_int| x, FALLBACK);
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let upcall = || unsafe { closure.data_last()(3, closure.data()) };
    mutator.foreign_call().run(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(upcall(), 3);
                assert_eq!(world.pause(|_| upcall()), FALLBACK);
                assert_eq!(upcall(), 3);
            });
        });
    });
    assert_eq!(world.vm().take_reports(), [Told::Unclaimed("refused".to_owned())]);
    assert_eq!((RAN.get(), mutator.foreign_call().run(call_back)), (0, 3));
}
