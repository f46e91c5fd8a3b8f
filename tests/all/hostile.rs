//! Safe code that tries to break a promise of the crate. What it tries must be refused, or turn out harmless.
//!

use crate::plain::{Plain, Steps, Told, for_each_strategy, message, number, panic_quietly};
use core::cell::RefCell;
use core::ffi::c_int;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use reentry::{
    Capture, FenceStrategy, FrameKind, Mutator, RootVisitor, Segment, StackScanner, UpcallClosure, World,
    upcall_fn,
};
use reentry_foreign::foreign_call_back_last;
use std::sync::{Mutex, OnceLock};
use std::thread;

type Vm = Plain<400>;

fn world() -> World<Vm> {
    Vm::world(FenceStrategy::probe())
}

/// A thread that exits with its attachment leaked has no frames any more: nothing of its stack is handed to a scanner (I9).
#[test]
fn a_thread_that_exits_with_its_attachment_leaked_leaves_no_frames_to_scan() {
    struct Registers;
    impl reentry::Vm for Registers {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Registers;
        fn attach(&self) {}
    }
    // SAFETY: S1, S2: no frame of these tests holds a reference. S3 to S5: it reads nothing. S6: no fault.
    unsafe impl StackScanner for Registers {
        fn scan_segment(&self, (): &(), segment: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {
            assert!(segment.words().is_empty(), "the stack is gone: {segment:?}");
        }
    }
    let world = World::new(Registers);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = ManuallyDrop::new(world.attach().unwrap());
            let mut call = ManuallyDrop::new(mutator.foreign_call());
            call.root(5);
            call.run(|| ());
        });
    });
    assert_eq!(world.attached(), 1, "leaked");
    let mut told = Told::default();
    world.pause(|stopped| stopped.enumerate(&mut told));
    assert_eq!(told.slots, [5], "what the leaked call declared stays");
}

/// A pause does not wait for a thread that has exited, whatever it leaked.
#[test]
fn a_leaked_attachment_does_not_hang_a_pause_after_its_thread_has_exited() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        for leaked in 1..=3 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let _mutator = ManuallyDrop::new(world.attach().unwrap());
                });
            });
            assert_eq!(world.pause(|stopped| stopped.mutators().count()), leaked);
        }
    });
}

/// An attachment kept in a thread-local that is destroyed after the exit hook can be dropped and not used.
#[test]
fn an_attachment_in_a_thread_local_detaches_when_that_is_destroyed() {
    thread_local! { static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) }; }
    static RAN: AtomicBool = AtomicBool::new(false);
    struct Kept(Option<reentry::Attachment<Vm>>);
    impl Drop for Kept {
        fn drop(&mut self) {
            let mut attachment = self.0.take().expect("set by the thread");
            // The exit hook has run already, and the attachment is as good as before.
            attachment.poll();
            RAN.store(attachment.foreign_call().run(|| true), Ordering::Relaxed);
        }
    }
    let world = world();
    let clone = world.clone();
    let thread = thread::spawn(move || {
        // The thread-local first, the attachment second: what is registered first is destroyed last.
        KEPT.set(Some(Kept(None)));
        let attachment = clone.attach().unwrap();
        KEPT.with(|kept| kept.borrow_mut().as_mut().expect("set above").0 = Some(attachment));
    });
    thread.join().unwrap();
    assert!(RAN.load(Ordering::Relaxed));
    assert_eq!(world.attached(), 0, "dropping it detached the thread");
}

/// A foreign thread knows one world by its first upcall; C then calls into another of the same type, whose code calls C. The plain function is for the innermost call.
#[test]
fn a_base_that_made_no_call_is_never_the_innermost() {
    type Vm = Plain<401>;
    static RAN_IN: AtomicU64 = AtomicU64::new(0);
    fn note(mutator: &mut Mutator<Vm>) {
        RAN_IN.store(core::ptr::from_ref(mutator.vm()).addr() as u64, Ordering::Relaxed);
    }
    let (a, b) = (Vm::world(FenceStrategy::probe()), Vm::world(FenceStrategy::probe()));
    let ran_in =
        |world: &World<Vm>| RAN_IN.load(Ordering::Relaxed) == core::ptr::from_ref(world.vm()).addr() as u64;
    a.adopt_foreign_threads();
    let callback: extern "C" fn() = upcall_fn(note);
    let in_b = UpcallClosure::new(&b, |mutator: &mut Mutator<Vm>, x: c_int| {
        mutator.foreign_call().run(|| callback());
        assert!(ran_in(&b), "its call is the only one");
        x
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            callback();
            assert!(ran_in(&a), "it adopts foreign threads");
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            assert_eq!(unsafe { foreign_call_back_last(in_b.data_last(), 3, in_b.data()) }, 3);
        });
    });
    assert_eq!(b.vm().take_reports(), [""; 0]);
}

/// A VM that attaches its own thread again while it is being attached gets one mutator.
#[test]
fn a_vm_that_attaches_while_it_attaches_ends_with_one_mutator() {
    struct Eager(OnceLock<World<Self>>, AtomicBool);
    impl reentry::Vm for Eager {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {
            if let Some(world) = self.0.get().filter(|_| !self.1.swap(true, Ordering::Relaxed)) {
                let _mutator = ManuallyDrop::new(world.attach().unwrap());
            }
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Eager {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    let world = World::new(Eager(OnceLock::new(), AtomicBool::new(false)));
    assert!(world.vm().0.set(world.clone()).is_ok());
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(world.attach().unwrap_err(), reentry::AttachError::AlreadyAttached));
    });
    assert_eq!(world.attached(), 1);
}

/// I8, I9: the memory of a call ends with the call, so a token of it must not be read through the call of another mutator.
#[test]
fn an_argument_of_another_mutators_call_is_refused_with_the_line_that_read_it() {
    let (a, b) = (world(), world());
    let (mut in_a, mut in_b) = (a.attach().unwrap(), b.attach().unwrap());
    let other = in_b.foreign_call();
    let argument = {
        let mut call = in_a.foreign_call();
        let argument = call.copy([0x55_u8; 64]);
        call.copy_slice(&[0_u8; 1 << 16]);
        argument
    };
    let junk: Vec<_> = (0..100).map(|index| vec![0xAA_u8; 100 + 8 * index]).collect();
    let said = message(|| other.read(argument));
    drop(junk);
    assert!(said.contains(file!()), "{said}");
}

/// I9: managed code does not run in a pause, whatever was leaked. A leaked `&'static mut Mutator` outlives the exit hook in a thread-local.
#[test]
fn a_leaked_mutator_does_not_run_managed_code_during_a_pause() {
    thread_local! { static LATE: RefCell<Option<Late>> = const { RefCell::new(None) }; }
    static STEPS: Steps = Steps::new();
    static RAN_IN_A_PAUSE: AtomicBool = AtomicBool::new(false);
    struct Late(&'static mut Mutator<Vm>);
    impl Drop for Late {
        fn drop(&mut self) {
            STEPS.reach(1);
            if STEPS.wait_for(2, Duration::from_millis(200)) {
                // The world is stopped, and this is the proof of being managed, with the VM's data behind it.
                *self.0.local_mut() = ();
                RAN_IN_A_PAUSE.store(true, Ordering::Relaxed);
            }
            STEPS.reach(3);
        }
    }
    let world = world();
    let clone = world.clone();
    let thread = thread::spawn(move || {
        LATE.with(|late| assert!(late.borrow().is_none()));
        let attachment = Box::leak(Box::new(clone.attach().unwrap()));
        LATE.set(Some(Late(attachment)));
    });
    STEPS.wait(1);
    // Not waited for: a pause may well never begin now.
    thread::spawn(move || {
        world.pause(|_| {
            STEPS.reach(2);
            STEPS.wait(3);
        });
    });
    thread.join().unwrap();
    assert!(!RAN_IN_A_PAUSE.load(Ordering::Relaxed));
}

/// I7: a panic that another one has overtaken is told of and gone. It does not come back from a later, innocent call.
#[test]
fn a_panic_that_was_overtaken_does_not_resume_in_a_later_call() {
    let world = world();
    let body = UpcallClosure::new(&world, |_: &mut Mutator<Vm>, _: c_int| -> c_int { panic_quietly(1) });
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let overtaking = number(|| {
        call.run(|| {
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            unsafe { foreign_call_back_last(body.data_last(), 3, body.data()) };
            panic_quietly(2)
        })
    });
    assert_eq!((overtaking, world.vm().take_reports().len()), (2, 1));
    assert_eq!(call.run(|| 7), 7);
}

/// The roots of a stopped world are the same however often they are asked for: some collectors ask twice.
#[test]
fn enumerating_is_repeatable_though_a_pinner_is_dropped_during_the_pause() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    mutator.pin_with(&mut pinner, 9).unwrap();
    let (mut first, mut second) = (Told::default(), Told::default());
    mutator.foreign_call().run(|| {
        world.pause(|stopped| {
            stopped.enumerate(&mut first);
            thread::scope(|scope| {
                scope.spawn(|| drop(pinner));
            });
            stopped.enumerate(&mut second);
        });
    });
    assert_eq!(first, second);
}

/// I7 and the contract of `Vm::attach`: its panic must not unwind into C, nor end the process.
#[test]
fn a_vm_that_cannot_attach_a_foreign_thread_gives_c_the_fallback_value() {
    struct Full;
    impl reentry::Vm for Full {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {
            panic_quietly(1);
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Full {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    let world = World::new(Full);
    let body = UpcallClosure::with_fallback(&world, |_: &mut Mutator<Full>, x: c_int| x, -1);
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    assert_eq!(unsafe { foreign_call_back_last(body.data_last(), 3, body.data()) }, -1);
    assert_eq!(world.attached(), 0);
}

/// A pause sees a thread that waits to detach as one without frames.
#[test]
fn a_thread_that_waits_for_a_pause_to_detach_has_no_frames_to_scan() {
    let world = world();
    let steps = Steps::new();
    let kinds = Mutex::new(Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mutator = world.attach().unwrap();
            steps.reach(1);
            // Managed until the pause wants it, and then it leaves in place of polling.
            steps.wait(2);
            drop(mutator);
        });
        steps.wait(1);
        let pausing = scope.spawn(|| {
            world.pause(|stopped| {
                for mutator in stopped.mutators() {
                    for activation in mutator.activations() {
                        kinds.lock().unwrap().push((activation.kind(), activation.segment().is_some()));
                    }
                }
            });
        });
        // The stopper waits for the managed thread; give it the time to begin.
        thread::sleep(Duration::from_millis(20));
        assert!(!pausing.is_finished(), "it waits");
        steps.reach(2);
    });
    let kinds = kinds.into_inner().unwrap();
    assert_eq!(kinds, [(FrameKind::Leaving, false)]);
    assert_eq!(world.attached(), 0);
}
