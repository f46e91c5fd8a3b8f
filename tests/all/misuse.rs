//! Bad input and misuse. Each ends in an error or a panic that says where it happened and what to do, and leaves the world usable.

use crate::plain::{Plain, Told, checked, message, number, panic_quietly, told};
use core::cell::{Cell, RefCell};
use core::ffi::{CStr, c_int, c_void};
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;
use reentry::testkit::{TestVm, Trap};
use reentry::{
    Anchor, ArgumentError, ArgumentPlan, AttachError, Capture, Crossing, DetachError, FenceStrategy,
    ForeignFunction, HandOverError, Mutator, RelocationError, RootVisitor, Segment, StackEnd, StackScanner,
    StoppedWorld, UpcallClosure, World, upcall_fn_or,
};
use reentry_foreign::{
    foreign_call_back, foreign_call_back_in_destructor, foreign_call_back_last, foreign_nothing,
};
use std::sync::{Condvar, Mutex};
use std::thread::{self, ThreadId};

type Vm = Plain<300>;

fn world() -> World<Vm> {
    Vm::world(FenceStrategy::probe())
}

/// The message names a line of this file and contains what to do about it.
#[track_caller]
fn assert_says(message: &str, advice: &str) {
    assert!(message.contains(file!()), "it does not name the call site: {message}");
    assert!(message.contains(advice), "it does not say `{advice}`: {message}");
}

/// Calls `body` back from C, inside a foreign call of `mutator`.
fn call_back<V: StackScanner>(
    world: &World<V>,
    mutator: &mut Mutator<V>,
    body: impl Fn(&mut Mutator<V>) + Sync,
) {
    let body = UpcallClosure::new(world, |mutator: &mut Mutator<V>, x: c_int| {
        body(mutator);
        x
    });
    let (function, data) = (body.data_last(), body.data());
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let result = mutator.foreign_call().run(|| unsafe { foreign_call_back_last(function, 1, data) });
    assert_eq!(result, 1);
}

/// Another thread can pause the world, this one stops for it, and a foreign call works.
#[track_caller]
fn assert_usable<V: StackScanner>(world: &World<V>, mutator: &mut Mutator<V>) {
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(world.pause(|stopped| stopped.mutators().count()) > 0);
            finished.store(true, Ordering::Release);
        });
        while !finished.load(Ordering::Acquire) {
            mutator.poll();
            thread::yield_now();
        }
    });
    // SAFETY: C does nothing.
    mutator.foreign_call().run(|| unsafe { foreign_nothing() });
}

#[test]
fn a_null_function_is_refused_with_the_line_that_looked_it_up() {
    type Function = unsafe extern "C" fn();
    // SAFETY: null is allowed, and refused.
    let error = unsafe { Function::from_ptr(core::ptr::null()) }.unwrap_err();
    assert_says(&error.to_string(), "check the result of the symbol look-up");
    assert_eq!(error.site.file(), file!());
    // SAFETY: the address is that of such a function.
    let function = unsafe { Function::from_ptr(foreign_nothing as *const c_void) }.unwrap();
    let world = world();
    let mut mutator = world.attach().unwrap();
    // SAFETY: it may be called with no arguments.
    unsafe { mutator.foreign_call().invoke(function, ()) };
}

/// What the unsafe guard form leaves to its user, and what is checked all the same.
#[test]
fn a_mutator_left_foreign_by_a_leaked_guard_refuses_managed_work() {
    let world = world();
    // The attachment cannot be dropped from the foreign state either.
    let mut mutator = ManuallyDrop::new(world.attach().unwrap());
    let mut call = mutator.foreign_call();
    // SAFETY: broken on purpose: the guard is leaked. Nothing managed is touched below, since every attempt is refused.
    let guard = ManuallyDrop::new(unsafe { call.enter() });
    let _: &ManuallyDrop<_> = &guard;
    drop(call);

    assert_says(&message(|| drop(mutator.foreign_call())), "it is inside a foreign call");
    assert_says(&message(|| mutator.pause(|_| ())), "it is inside a foreign call");
    let relocated = message(|| {
        // SAFETY: refused before anything is read.
        unsafe { mutator.relocate_stack(0x1000..0x2000, 0x3000..0x4000, StackEnd::Low) }
    });
    assert_says(&relocated, "it is inside a foreign call");
    // SAFETY: dropped once; it refuses, and leaves the thread attached.
    let detached = message(|| unsafe { ManuallyDrop::drop(&mut mutator) });
    assert!(detached.contains("cannot detach") && detached.contains("inside a foreign call"), "{detached}");
    assert_eq!(world.attached(), 1);
    assert_eq!(world.pause(|stopped| stopped.mutators().count()), 1, "a pause does not wait for it");
}

#[test]
fn a_reference_of_another_world_is_refused_at_each_kind_of_argument() {
    let (ours, theirs) = (World::new(TestVm::new()), World::new(TestVm::new()));
    let foreigner = theirs.vm().heap().alloc(&[], b"theirs");
    let mut mutator = ours.attach().unwrap();
    let mut call = mutator.foreign_call();
    let refused = ArgumentError::NotOfThisWorld { reference: foreigner.address() };
    assert_eq!(call.try_root(foreigner).unwrap_err(), refused);
    assert_eq!(call.pin(foreigner).unwrap_err(), refused);
    assert_eq!(call.pin_transitively(foreigner).unwrap_err(), refused);
    let mut slot = foreigner;
    // SAFETY: the slot lives until the call is dropped; it is refused anyhow.
    assert_eq!(unsafe { call.root_in_place(NonNull::from(&mut slot)) }.unwrap_err(), refused);
    assert_says(&message(|| call.root(foreigner)), "it may belong to another world");
    drop(call);
    assert_eq!(mutator.pause(declared), 0, "nothing refused is declared");
    let mut pinner = ours.pinner();
    assert_eq!(mutator.pin_with(&mut pinner, foreigner), Err(refused));
    call_back(&ours, &mut mutator, |mutator| {
        assert_eq!(mutator.hand_over(foreigner), Err(HandOverError::Argument(refused)));
        assert_eq!(mutator.hand_over_pinned(foreigner), Err(HandOverError::Argument(refused)));
    });
}

fn declared<V: StackScanner>(stopped: &StoppedWorld<'_, V>) -> usize {
    let mut count = 0;
    for mutator in stopped.mutators() {
        for activation in mutator.activations() {
            activation.for_each_declared(|_| count += 1);
        }
    }
    count
}

#[test]
fn a_root_of_another_mutator_is_refused_with_the_line_that_read_it() {
    let (a, b) = (world(), world());
    let (mut in_a, mut in_b) = (a.attach().unwrap(), b.attach().unwrap());
    let (mut call_a, mut call_b) = (in_a.foreign_call(), in_b.foreign_call());
    let (root_a, root_b) = (call_a.root(1), call_b.root(2));
    assert_says(&message(|| call_a.get(root_b)), "read it through the call that made it");
    assert_says(&message(|| call_b.get(root_a)), "read it through the call that made it");
    assert_eq!((call_a.get(root_a), call_b.get(root_b)), (1, 2));
}

#[test]
fn a_pinner_of_another_world_is_refused_with_the_line_that_used_it() {
    let (a, b) = (world(), world());
    let mut mutator = a.attach().unwrap();
    let mut theirs = b.pinner();
    assert_says(&message(|| mutator.pin_with(&mut theirs, 1)), "make one with this world's `World::pinner`");
    assert!(theirs.is_empty());
    let mut ours = a.pinner();
    assert!(mutator.pin_with(&mut ours, 1).is_ok());
    assert_eq!(ours.len(), 1);
}

/// A VM whose collector can only pin, or cannot.
struct Unpinnable;

impl reentry::Vm for Unpinnable {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn admit(&self, _: usize, plan: ArgumentPlan) -> Result<(), ArgumentError> {
        match plan {
            ArgumentPlan::Pin | ArgumentPlan::TransitivePin => Err(ArgumentError::CannotPin(plan)),
            _ => Ok(()),
        }
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Unpinnable {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

#[test]
fn a_pin_on_a_vm_that_cannot_pin_is_an_error_at_the_call() {
    let world = World::new(Unpinnable);
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    let refused = mutator.pin_with(&mut pinner, 1).unwrap_err();
    assert_eq!((refused, pinner.len()), (ArgumentError::CannotPin(ArgumentPlan::Pin), 0));
    let mut call = mutator.foreign_call();
    assert!(call.pin(1).unwrap_err().to_string().contains("root the object instead"));
    assert_eq!(call.pin_transitively(1).unwrap_err(), ArgumentError::CannotPin(ArgumentPlan::TransitivePin));
    let root = call.root(1);
    assert_eq!(call.get(root), 1);
}

/// What a thread that attached itself may do: detach between upcalls, and at no other time.
#[test]
fn a_foreign_thread_detaches_between_its_upcalls_and_not_inside_one() {
    fn busy(world: &World<Vm>, says: &str) {
        match world.detach_foreign_thread() {
            Err(error @ DetachError::Busy { .. }) => assert!(error.to_string().contains(says), "{error}"),
            other => panic!("it should be refused: {other:?}"),
        }
    }
    let world = world();
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, x: c_int| {
        busy(&world, "detach when the upcall has returned");
        mutator.foreign_call().run(|| busy(&world, "detach when the upcall has returned"));
        x
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(world.detach_foreign_thread(), Ok(()), "not attached: nothing to do");
            for _ in 0..3 {
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                assert_eq!(unsafe { foreign_call_back_last(body.data_last(), 4, body.data()) }, 4);
                assert_eq!(world.attached(), 1);
                world.pause(|_| busy(&world, "end the pause first"));
                assert_eq!(world.attached(), 1, "refused: nothing has changed");
                assert_eq!(world.detach_foreign_thread(), Ok(()));
                assert_eq!(world.attached(), 0);
            }
        });
    });
}

#[test]
fn a_thread_with_an_attachment_detaches_by_dropping_it_and_not_otherwise() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    assert_eq!(world.detach_foreign_thread(), Err(DetachError::Owned));
    assert!(DetachError::Owned.to_string().contains("drop that instead"));
    mutator.foreign_call().run(|| assert_eq!(world.detach_foreign_thread(), Err(DetachError::Owned)));
    call_back(&world, &mut mutator, |_| assert_eq!(world.detach_foreign_thread(), Err(DetachError::Owned)));
    assert_eq!(world.attached(), 1);
    drop(mutator);
    assert_eq!((world.attached(), world.detach_foreign_thread()), (0, Ok(())));
}

/// The upcall cannot wait for the pause to end, for its own thread is to end it; the error goes to whoever runs the foreign call.
#[test]
fn an_upcall_inside_a_pause_that_its_thread_holds_is_refused() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let ran = AtomicBool::new(false);
    let body = UpcallClosure::with_fallback(
        &world,
        |mutator: &mut Mutator<Vm>, _: c_int| {
            ran.store(true, Ordering::Relaxed);
            mutator.poll();
            1
        },
        -1,
    );
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let callback = || unsafe { foreign_call_back_last(body.data_last(), 4, body.data()) };
    let mut given = 0;
    let refused = message(|| mutator.foreign_call().run(|| world.pause(|_| given = callback())));
    assert_says(&refused, "end the pause first");
    assert_eq!(given, -1, "C got the fallback value");
    let mut given = 0;
    let refused = message(|| mutator.pause(|_| given = callback()));
    assert_says(&refused, "end the pause first");
    assert_eq!((given, ran.load(Ordering::Relaxed)), (-1, false));
    assert_usable(&world, &mut mutator);
    assert_eq!(mutator.foreign_call().run(callback), 1);
}

#[test]
fn a_pause_can_be_asked_for_from_every_state_a_thread_can_be_in() {
    let world = world();
    let count = || world.pause(|stopped| stopped.mutators().count());
    assert_eq!(count(), 0, "a thread that is no mutator");
    let mut mutator = world.attach().unwrap();
    assert_eq!(
        mutator.pause(|stopped| stopped.mutators().count()),
        1,
        "a managed thread, of its own mutator"
    );
    assert_eq!(mutator.foreign_call().run(count), 1, "a thread in a foreign call");
    call_back(&world, &mut mutator, |mutator| {
        let activations = mutator.pause(|stopped| told(&stopped.mutators().next().expect("one")).0);
        assert_eq!(activations, 2, "an upcall, of its own mutator");
        assert_eq!(mutator.foreign_call().run(count), 1, "a foreign call in an upcall");
    });
    thread::scope(|scope| {
        let elsewhere = scope.spawn(count);
        while !elsewhere.is_finished() {
            mutator.poll();
            thread::yield_now();
        }
        assert_eq!(elsewhere.join().unwrap(), 1, "a foreign thread");
    });
}

#[test]
fn a_managed_thread_cannot_pause_its_own_world_but_through_its_mutator() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    assert_says(&message(|| world.pause(|_| ())), "use `Mutator::pause`");
    call_back(&world, &mut mutator, |_| {
        assert_says(&message(|| world.pause(|_| ())), "use `Mutator::pause`");
    });
    assert_usable(&world, &mut mutator);
}

#[test]
fn a_pause_inside_a_pause_of_the_same_thread_is_refused_and_the_outer_one_ends() {
    let world = world();
    assert_says(&message(|| world.pause(|_| world.pause(|_| ()))), "end the pause first");
    let mut mutator = world.attach().unwrap();
    assert_says(&message(|| mutator.pause(|_| world.pause(|_| ()))), "end the pause first");
    let nested = message(|| mutator.foreign_call().run(|| world.pause(|_| world.pause(|_| ()))));
    assert_says(&nested, "end the pause first");
    assert_usable(&world, &mut mutator);
}

#[test]
fn a_panic_inside_a_pause_ends_it_and_reaches_whoever_paused() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    assert_eq!(number(|| mutator.pause(|_| panic_quietly(1))), 1);
    assert_eq!(number(|| mutator.foreign_call().run(|| world.pause(|_| panic_quietly(2)))), 2);
    assert_usable(&world, &mut mutator);
}

/// A relocation that is refused changes nothing: neither what is saved nor which range is the stack.
#[test]
fn a_relocation_of_what_is_no_stack_or_does_not_fit_is_refused_and_changes_nothing() {
    type Range = core::ops::Range<usize>;
    const OLD: Range = 0x10_0000..0x11_0000;
    fn saved(stopped: &StoppedWorld<'_, Vm>) -> Vec<Anchor> {
        let mutator = stopped.mutators().next().expect("one is attached");
        mutator.activations().map(|activation| activation.anchor()).collect()
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    assert_eq!(mutator.declare_stack(OLD), Ok(()));
    assert_eq!(mutator.declare_stack(5..5), Err(RelocationError::Empty(5..5)));
    let reversed = Range { start: 9, end: 5 };
    assert_eq!(mutator.declare_stack(reversed.clone()), Err(RelocationError::Empty(reversed)));
    for overlapping in [0xF_0000..0x10_0001, 0x10_FFFF..0x12_0000, 0x10_4000..0x10_5000, 0xF_0000..0x12_0000]
    {
        let error = mutator.declare_stack(overlapping.clone()).unwrap_err();
        assert_eq!(error, RelocationError::Overlaps { declared: overlapping, known: OLD });
    }
    assert_eq!(mutator.declare_stack(OLD.end..OLD.end + 0x1000), Ok(()), "touching is not overlapping");

    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, x: c_int| {
        let before = mutator.pause(saved);
        let mut refused = |old: Range, new: Range, end| {
            // SAFETY: every one of these is refused before anything is read.
            let error = unsafe { mutator.relocate_stack(old, new, end) }.unwrap_err();
            assert_eq!(mutator.pause(saved)[1..], before[1..], "{error}");
            error
        };
        let unknown = refused(0x10_0000..0x10_8000, 0x20_0000..0x20_8000, StackEnd::Low);
        assert!(matches!(&unknown, RelocationError::UnknownStack { known, .. } if known.contains(&OLD)));
        assert!(unknown.to_string().contains("declare it with `Mutator::declare_stack` first"), "{unknown}");
        assert_eq!(refused(OLD, 7..7, StackEnd::Low), RelocationError::Empty(7..7));
        // The saved sp is 0xF000 from the low end, and 0x1000 from the high end.
        let outside =
            |moved, new| RelocationError::OutsideNewStack { what: "sp", address: 0x10_F000, moved, new };
        let (low, high) = (0x20_0000..0x20_8000, 0x20_0000..0x20_0800);
        assert_eq!(refused(OLD, low.clone(), StackEnd::Low), outside(0x20_F000, low));
        assert_eq!(refused(OLD, high.clone(), StackEnd::High), outside(0x1F_F800, high));
        // The range is the stack still: a good one is taken.
        // SAFETY: no slot lies in the stack, so nothing is read or written there.
        assert_eq!(unsafe { mutator.relocate_stack(OLD, 0x20_0000..0x21_0000, StackEnd::Low) }, Ok(2));
        assert_eq!(mutator.pause(saved)[1], Anchor::new(7, 0x20_F000, 0x20_E000));
        x
    });
    let mut call = mutator.foreign_call().at(Anchor::new(7, 0x10_F000, 0x10_E000));
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    call.run(|| unsafe { foreign_call_back_last(body.data_last(), 1, body.data()) });
}

#[test]
fn attaching_is_refused_twice_after_shutdown_in_a_pause_held_here_and_at_thread_exit() {
    // A thread-local's destructor attaches and detaches; one of thread-specific data, which runs after
    // the thread's attachments have ended, is refused.
    thread_local! { static LATE: RefCell<Option<Late>> = const { RefCell::new(None) }; }
    static IN_THREAD_LOCAL: Mutex<Option<Result<(), AttachError>>> = Mutex::new(None);
    static WORLD: Mutex<Option<World<Vm>>> = Mutex::new(None);
    struct Late(World<Vm>);
    impl Drop for Late {
        fn drop(&mut self) {
            *IN_THREAD_LOCAL.lock().unwrap() = Some(self.0.attach().map(drop));
        }
    }
    extern "C" fn attach(_: c_int) -> c_int {
        let world = WORLD.lock().unwrap().clone().unwrap();
        match world.attach() {
            Ok(_) => 0,
            Err(AttachError::ThreadExiting) => 1,
            Err(_) => 2,
        }
    }

    let world = world();
    let refused = |expected: AttachError, says: &str| {
        let error = world.attach().unwrap_err();
        assert_eq!(error, expected);
        assert!(error.to_string().contains(says), "{error}");
    };
    let mutator = world.attach().unwrap();
    refused(AttachError::AlreadyAttached, "use the mutator it has");
    drop(mutator);
    world.pause(|_| refused(AttachError::PauseHeldHere, "end the pause before attaching"));
    assert_eq!(world.attached(), 0);
    drop(world.attach().unwrap());

    let late = world.clone();
    let thread = thread::spawn(move || {
        LATE.set(Some(Late(late.clone())));
        drop(late.attach().unwrap());
    });
    thread.join().unwrap();
    assert_eq!(*IN_THREAD_LOCAL.lock().unwrap(), Some(Ok(())));
    *WORLD.lock().unwrap() = Some(world.clone());
    // SAFETY: the callback takes an `int` and gives one.
    assert_eq!(unsafe { foreign_call_back_in_destructor(attach, 1) }, 1, "attached once, and exited");
    *WORLD.lock().unwrap() = None;

    world.shutdown();
    assert!(world.is_shut_down());
    refused(AttachError::Shutdown, "make a new one");
    assert_eq!(world.attached(), 0);
}

/// What an unknown thread's upcall gets when it cannot be attached any more: the fallback value, and the VM is told.
#[test]
fn a_foreign_thread_that_calls_in_too_late_gets_the_fallback_value_and_the_vm_a_report() {
    let world = world();
    let body = UpcallClosure::with_fallback(&world, |_: &mut Mutator<Vm>, x: c_int| x, -5);
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let call = || unsafe { foreign_call_back_last(body.data_last(), 3, body.data()) };
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(call(), 3);
            world.shutdown();
            assert_eq!(call(), 3, "attached before: it goes on");
            assert_eq!(world.detach_foreign_thread(), Ok(()));
        });
    });
    assert_eq!(world.vm().take_reports(), [""; 0]);
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(call(), -5));
    });
    let reports = world.vm().take_reports();
    assert!(matches!(&reports[..], [report] if report.contains("shut")), "{reports:?}");
    assert_eq!(world.attached(), 0);
}

/// A thread-local's destructor runs before the thread's attachments end, whatever the order of the
/// thread-locals.
#[test]
fn a_thread_that_calls_in_from_a_thread_locals_destructor_is_served_and_detached() {
    type Vm = Plain<301>;
    thread_local! { static LATE: Cell<Option<Late>> = const { Cell::new(None) }; }
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    struct Late;
    impl Drop for Late {
        fn drop(&mut self) {
            // SAFETY: the callback is an upcall of a world that adopts foreign threads.
            let given = unsafe { foreign_call_back(upcall_fn_or(body, || 9), 3) };
            GIVEN.store(given as u32, Ordering::Relaxed);
        }
    }
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        x
    }
    let world = Vm::world(FenceStrategy::probe());
    world.adopt_foreign_threads();
    let thread = thread::spawn(|| {
        LATE.set(Some(Late));
        // SAFETY: as above.
        unsafe { foreign_call_back(upcall_fn_or(body, || 9), 3) }
    });
    assert_eq!(thread.join().unwrap(), 3, "attached itself");
    assert_eq!((GIVEN.load(Ordering::Relaxed), world.attached()), (3, 0));
    assert_eq!(world.vm().take_reports(), [""; 0]);
}

/// The scanner's panic goes to whoever paused; the world resumes, and pauses again.
#[test]
fn a_scanner_that_panics_ends_the_pause_and_the_world_goes_on() {
    struct Fragile(AtomicBool);
    impl reentry::Vm for Fragile {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {}
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it reads nothing. S6: no fault.
    unsafe impl StackScanner for Fragile {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {
            if self.0.load(Ordering::Relaxed) {
                panic_quietly(11);
            }
        }
    }
    let world = World::new(Fragile(AtomicBool::new(true)));
    let mut mutator = world.attach().unwrap();
    assert_eq!(number(|| mutator.pause(|stopped| stopped.enumerate(&mut Told::default()))), 11);
    let mut call = mutator.foreign_call();
    call.root(1);
    assert_eq!(number(|| call.run(|| world.pause(|stopped| stopped.enumerate(&mut Told::default())))), 11);
    world.vm().0.store(false, Ordering::Relaxed);
    let mut seen = Told::default();
    call.run(|| world.pause(|stopped| stopped.enumerate(&mut seen)));
    assert_eq!(seen.slots, [1], "what the call declared is there still");
    drop(call);
    assert_usable(&world, &mut mutator);
}

/// A VM with a global lock, taken and released in the hooks.
struct Locked {
    held_by: Mutex<Option<ThreadId>>,
    free: Condvar,
    log: Mutex<Vec<(&'static str, Crossing)>>,
    /// How many threads do managed work.
    working: AtomicU32,
}

impl Locked {
    fn new() -> Self {
        Self {
            held_by: Mutex::new(None),
            free: Condvar::new(),
            log: Mutex::new(Vec::new()),
            working: AtomicU32::new(0),
        }
    }

    fn acquire(&self) {
        let holder = self.held_by.lock().unwrap();
        *self.free.wait_while(holder, |holder| holder.is_some()).unwrap() = Some(thread::current().id());
    }

    fn release(&self) {
        let holder = self.held_by.lock().unwrap().take();
        assert_eq!(holder, Some(thread::current().id()), "released by whoever holds it");
        self.free.notify_one();
    }

    fn is_held_here(&self) -> bool {
        *self.held_by.lock().unwrap() == Some(thread::current().id())
    }

    /// Managed work: it must be alone.
    fn work(&self) {
        assert!(self.is_held_here());
        assert_eq!(self.working.fetch_add(1, Ordering::Relaxed), 0, "two threads hold the lock");
        thread::yield_now();
        self.working.fetch_sub(1, Ordering::Relaxed);
    }

    fn note(&self, direction: &'static str, crossing: Crossing) {
        self.log.lock().unwrap().push((direction, crossing));
    }

    fn take_log(&self) -> Vec<(&'static str, Crossing)> {
        core::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl reentry::Vm for Locked {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn leaving_managed(&self, crossing: Crossing) {
        assert!(self.is_held_here(), "managed still");
        self.note("leaving", crossing);
        self.release();
    }

    fn entering_managed(&self, crossing: Crossing) {
        assert!(!self.is_held_here(), "foreign still");
        self.acquire();
        self.note("entering", crossing);
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Locked {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

#[test]
fn the_hooks_of_a_vm_run_on_the_managed_side_of_the_way_out_and_on_the_foreign_side_of_the_way_in() {
    use Crossing::{Attachment, ForeignCall, Upcall};
    let world = World::new(Locked::new());
    {
        let mut attached = world.attach().unwrap();
        let mutator = &mut *attached;
        assert!(world.vm().is_held_here());
        assert_eq!(world.vm().take_log(), [("entering", Attachment)]);
        call_back(&world, mutator, |mutator| {
            world.vm().work();
            mutator.foreign_call().run(|| assert!(!world.vm().is_held_here()));
            world.vm().work();
        });
        let expected = [
            ("leaving", ForeignCall),
            ("entering", Upcall),
            ("leaving", ForeignCall),
            ("entering", ForeignCall),
            ("leaving", Upcall),
            ("entering", ForeignCall),
        ];
        assert_eq!(world.vm().take_log(), expected);
        // A panic takes the same way.
        assert_eq!(number(|| mutator.foreign_call().run(|| panic_quietly(3))), 3);
        assert!(world.vm().is_held_here());
        assert_eq!(world.vm().take_log(), [("leaving", ForeignCall), ("entering", ForeignCall)]);
        // A poll and a pause are no crossings.
        mutator.poll();
        mutator.pause(|_| ());
        assert_eq!(world.vm().take_log(), []);
    }
    assert!(!world.vm().is_held_here());
    assert_eq!(world.vm().take_log(), [("leaving", Attachment)]);
}

#[test]
fn a_vm_with_a_global_lock_runs_one_thread_at_a_time_and_pauses_begin_and_end() {
    let world = World::new(Locked::new());
    let (finished, calls) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                {
                    let mut attached = world.attach().unwrap();
                    let mutator = &mut *attached;
                    for round in 0..200 {
                        world.vm().work();
                        mutator.poll();
                        call_back(&world, mutator, |mutator| {
                            world.vm().work();
                            if round % 10 == 0 {
                                mutator.pause(|_| world.vm().work());
                            }
                        });
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                }
                finished.fetch_add(1, Ordering::Release);
            });
        }
        let mut pauses = 0;
        while finished.load(Ordering::Acquire) < 2 || pauses == 0 {
            world.pause(|stopped| {
                assert!(stopped.mutators().count() <= 2);
                assert_eq!(world.vm().working.load(Ordering::Relaxed), 0, "nobody works in a pause");
            });
            pauses += 1;
            thread::sleep(Duration::from_micros(200));
        }
    });
    assert_eq!(calls.load(Ordering::Relaxed), 400);
    assert_eq!((world.attached(), *world.vm().held_by.lock().unwrap()), (0, None));
}

#[test]
fn text_with_a_nul_inside_is_refused_with_its_position() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let error = call.copy_c_str("ab\0cd\0").unwrap_err();
    assert_eq!(error.position, 2);
    assert!(error.to_string().contains("pass the bytes and their length instead"), "{error}");
    for text in ["", "plain", "sm\u{f8}rrebr\u{f8}d"] {
        let argument = call.copy_c_str(text).unwrap();
        // SAFETY: the call's memory ends with a NUL and lives as long as the call.
        let copied = unsafe { CStr::from_ptr(argument.as_ptr()) };
        assert_eq!(copied.to_str(), Ok(text));
    }
}

/// There is no call for the reference to be rooted in: at the base of a mutator, and in an upcall that a foreign thread made by itself.
#[test]
fn handing_over_without_a_managed_caller_is_refused() {
    fn refused(mutator: &mut Mutator<Vm>) {
        assert_eq!(mutator.hand_over(1), Err(HandOverError::NoCaller));
        assert_eq!(mutator.hand_over_pinned(1), Err(HandOverError::NoCaller));
    }
    assert!(HandOverError::NoCaller.to_string().contains("pin it with a `Pinner` instead"));
    let world = world();
    let mut mutator = world.attach().unwrap();
    refused(&mut mutator);
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, x: c_int| {
        refused(mutator);
        // One level further in there is a caller.
        call_back(&world, mutator, |mutator| assert!(mutator.hand_over(1).is_ok()));
        x
    });
    thread::scope(|scope| {
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        scope.spawn(|| assert_eq!(unsafe { foreign_call_back_last(body.data_last(), 3, body.data()) }, 3));
    });
    assert_eq!(world.vm().take_reports(), [""; 0]);
}

/// Dropping guards out of order needs `unsafe`; a call that was leaked instead is released with its activation.
#[test]
fn what_a_leaked_call_declared_stays_declared_until_its_activation_ends() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let seen = Mutex::new(Vec::new());
    let look = || {
        let slots = world.pause(|stopped| told(&stopped.mutators().next().expect("one is attached")).1.slots);
        seen.lock().unwrap().push(slots);
    };
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, x: c_int| {
        let mut leaked = ManuallyDrop::new(mutator.foreign_call());
        leaked.root(1);
        leaked.run(|| ());
        let mut call = mutator.foreign_call();
        call.root(2);
        call.run(look);
        x
    });
    let mut call = mutator.foreign_call();
    call.root(3);
    call.run(|| {
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        unsafe { foreign_call_back_last(body.data_last(), 1, body.data()) };
        look();
    });
    assert_eq!(*seen.lock().unwrap(), [vec![2, 1, 3], vec![3]]);
}

/// A bare exception has a foreign call to go on from, or nowhere to go.
#[test]
fn an_exception_thrown_outside_an_upcall_is_refused_with_the_line_that_threw_it() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let line = line!() + 1;
    let said = message(|| mutator.throw(Trap::NoSuchNative(1)));
    assert_says(&said, "there is no foreign call to carry the exception");
    assert!(said.contains(&format!("cannot throw at {}:{line}:", file!())), "{said}");
    // One level further in there is a call.
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, x: c_int| {
        mutator.throw(Trap::NoSuchNative(2));
        x
    });
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let outcome = mutator.foreign_call().try_run(|| unsafe { body.data_last()(1, body.data()) });
    assert_eq!(outcome, Err(Trap::NoSuchNative(2)));
    assert_usable(&world, &mut mutator);
}

/// The closure of a pause cannot name the mutator that paused. A VM's C API can, by the pointer it was given: the mutator is stopped, and says so.
#[test]
fn the_mutator_that_paused_refuses_managed_work_in_its_own_pause() {
    /// What the message calls it, whether every build refuses it, and the work.
    type Work = (&'static str, bool, &'static dyn Fn(&mut Mutator<Vm>));
    const WORK: [Work; 5] = [
        ("cannot begin a foreign call", true, &|mutator| drop(mutator.foreign_call())),
        ("cannot start a pause", true, &|mutator| mutator.pause(|_| ())),
        ("cannot relocate a stack", true, &|mutator| {
            // SAFETY: refused before anything is read.
            drop(unsafe { mutator.relocate_stack(0x1000..0x2000, 0x3000..0x4000, StackEnd::Low) });
        }),
        ("cannot poll", false, &|mutator| mutator.poll()),
        ("cannot allocate on the heap", false, &|mutator| mutator.may_allocate()),
    ];
    let world = world();
    let mut mutator = world.attach().unwrap();
    for (says, _, work) in WORK.into_iter().filter(|(_, every_build, _)| *every_build || checked()) {
        let raw: *mut Mutator<Vm> = &raw mut *mutator;
        // SAFETY: broken on purpose: the mutator is used while it is borrowed. Nothing managed is touched, since every attempt is refused.
        let said = unsafe { (*raw).pause(|_| message(|| work(&mut *raw))) };
        assert!(said.contains(says), "{said}");
        assert_says(&said, "it is stopped at a safepoint; let the pause end first");
        assert_usable(&world, &mut mutator);
    }
}

/// The mutator of the caller is borrowed by its foreign call. A VM's C API has a pointer to it all the same: it is not the running activation's, and says so.
#[test]
fn a_foreign_call_through_the_callers_mutator_in_an_upcall_is_refused() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let outer = CallersMutator(&raw mut *mutator);
    call_back(&world, &mut mutator, |running| {
        // SAFETY: broken on purpose: it is borrowed. The attempt is refused.
        let said = message(|| drop(unsafe { (*outer.get()).foreign_call() }));
        assert_says(&said, "the mutator is in use elsewhere");
        assert!(said.contains("cannot begin a foreign call at"), "{said}");
        assert_eq!(running.foreign_call().run(|| 5), 5);
    });
    assert_usable(&world, &mut mutator);
}

/// What C would keep: a pointer, whatever it points to.
struct CallersMutator(*mut Mutator<Vm>);

// SAFETY: it is used on one thread.
unsafe impl Sync for CallersMutator {}

impl CallersMutator {
    fn get(&self) -> *mut Mutator<Vm> {
        self.0
    }
}

/// The contract of `Vm::attach`: the panic is the caller's, and nothing is attached.
#[test]
fn a_vm_that_panics_while_it_attaches_leaves_nothing_attached() {
    struct Fragile(AtomicBool);
    impl reentry::Vm for Fragile {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {
            if self.0.swap(false, Ordering::Relaxed) {
                panic_quietly(13);
            }
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Fragile {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    let world = World::new(Fragile(AtomicBool::new(true)));
    assert_eq!(number(|| world.attach()), 13);
    assert_eq!((world.attached(), world.pause(|stopped| stopped.mutators().count())), (0, 0));
    let mut mutator = world.attach().unwrap();
    assert_usable(&world, &mut mutator);
}
