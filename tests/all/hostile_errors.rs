//! Safe code that tries to break a promise of the crate with errors: exceptions and reports that call back into the crate, forged payloads, guards that are leaked.

use crate::plain::{caught, message, number, panic_quietly};
use crate::raising::{Oops, Raising, Told};
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use reentry::{
    Capture, Crossing, DetachError, ErrorPolicy, FallbackOnly, Mutator, Report, RootVisitor, Segment,
    StackScanner, Throwing, Thrown, UpcallClosure, UpcallRefused, World, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{Callback, foreign_call_back, foreign_call_back_last};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

type Vm = Raising<560>;

const FALLBACK: c_int = -7;

type OnReport<V> = Box<dyn Fn(&V, u32) + Send + Sync>;

/// A VM whose exceptions and reports run what a test asks for.
struct Running<const TAG: u32> {
    /// What a report does, given how many there were before.
    report: OnceLock<OnReport<Self>>,
    reports: AtomicU32,
}

/// Runs something when it is dropped.
struct OnDrop(Option<Box<dyn FnOnce() + Send>>);

impl core::fmt::Debug for OnDrop {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("OnDrop")
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(f) = self.0.take() {
            f();
        }
    }
}

impl<const TAG: u32> Running<TAG> {
    fn world() -> World<Self> {
        World::new(Self { report: OnceLock::new(), reports: AtomicU32::new(0) })
    }

    fn on_report(&self, f: impl Fn(&Self, u32) + Send + Sync + 'static) {
        assert!(self.report.set(Box::new(f)).is_ok());
    }
}

impl<const TAG: u32> reentry::Vm for Running<TAG> {
    type Ref = usize;
    type Local = ();
    type Exception = OnDrop;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn report(&self, _: &Report<'_>) {
        let before = self.reports.fetch_add(1, Ordering::Relaxed);
        if let Some(report) = self.report.get() {
            report(self, before);
        }
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3, S4, S5: it does nothing. S6: no fault.
unsafe impl<const TAG: u32> StackScanner for Running<TAG> {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// Where an exception ends, code of the VM's runs. In another world it may do what it likes, errors of its own included.
#[test]
fn an_exception_whose_drop_makes_foreign_calls_in_another_world_disturbs_nobody() {
    type Vm = Running<0>;
    static DROPPED: AtomicU32 = AtomicU32::new(0);
    fn exception() -> OnDrop {
        OnDrop(Some(Box::new(|| {
            let other = Raising::<561>::world();
            let mut mutator = other.attach().unwrap();
            let fails: Callback = upcall_fn_or(
                Throwing(|_: &mut Mutator<Raising<561>>, x: c_int| Err(Oops::Number(x as u32))),
                || FALLBACK,
            );
            // SAFETY: the callback takes an `int` and gives one.
            let outcome = mutator.foreign_call().try_run(|| unsafe { foreign_call_back(fails, 3) });
            assert_eq!(outcome.expect_err("thrown").number(), 3);
            DROPPED.fetch_add(1, Ordering::Relaxed);
        })))
    }
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let throws = UpcallClosure::with_fallback(
        &world,
        Throwing(|mutator: &mut Mutator<Vm>, _: c_int| -> Result<c_int, OnDrop> {
            mutator.throw(exception());
            Err(exception())
        }),
        FALLBACK,
    );
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let run = || unsafe { foreign_call_back_last(throws.data_last(), 1, throws.data()) };
    let mut call = mutator.foreign_call();
    drop(call.try_run(run).expect_err("the first"));
    assert_eq!(DROPPED.swap(0, Ordering::Relaxed), 2, "one superseded, one carried");
    drop(caught(|| call.run(run)));
    assert_eq!(DROPPED.swap(0, Ordering::Relaxed), 2);
    // Both while another panic unwinds.
    assert_eq!(number(|| call.run(|| panic_quietly(run() as u32))), FALLBACK as u32);
    assert_eq!(DROPPED.swap(0, Ordering::Relaxed), 2);
    let mut ignoring = call.on_error(ErrorPolicy::Fallback);
    assert_eq!(ignoring.run(run), FALLBACK);
    assert_eq!(DROPPED.swap(0, Ordering::Relaxed), 2);
    assert_eq!(world.vm().reports.load(Ordering::Relaxed), 6);
}

/// Reports are made in any state; from a refused upcall's, safe code can call back.
#[test]
fn a_report_that_calls_back_where_an_upcall_was_refused_is_refused_too() {
    type Vm = Running<1>;
    static RAN: AtomicU32 = AtomicU32::new(0);
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        RAN.fetch_add(1, Ordering::Relaxed);
        x
    }
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let callback: Callback = upcall_fn_or(FallbackOnly(body), || FALLBACK);
    world.vm().on_report(move |_, before| {
        if before < 10 {
            assert_eq!(callback(1), FALLBACK);
        }
    });
    let mut got = 0;
    mutator.foreign_call().without_upcalls().run(|| got = callback(1));
    assert_eq!(
        (got, RAN.load(Ordering::Relaxed), world.vm().reports.load(Ordering::Relaxed)),
        (FALLBACK, 0, 11)
    );
    assert_eq!(mutator.foreign_call().run(|| callback(1)), 1);
}

/// A foreign thread between upcalls may detach, but not in a report: the world would go, and with it the VM that is just making it.
#[test]
#[cfg(target_os = "linux")]
fn a_report_cannot_detach_its_thread_and_has_its_vm_when_the_world_is_let_go() {
    use reentry_foreign::foreign_thread_with_stack;

    struct Witness {
        world: Mutex<Option<World<Self>>>,
        gone: Arc<AtomicBool>,
    }
    static OUTLIVED: Mutex<Option<bool>> = Mutex::new(None);
    impl Drop for Witness {
        fn drop(&mut self) {
            self.gone.store(true, Ordering::Relaxed);
        }
    }
    impl reentry::Vm for Witness {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {}
        fn report(&self, report: &Report<'_>) {
            assert!(matches!(report, Report::UpcallErrorUnclaimed { .. }), "{report}");
            let (gone, world) = (Arc::clone(&self.gone), self.world.lock().unwrap().take());
            let Some(world) = world else { return };
            assert!(matches!(world.detach_foreign_thread(), Err(DetachError::Busy { .. })));
            drop(world);
            *OUTLIVED.lock().unwrap() = Some(!gone.load(Ordering::Relaxed));
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Witness {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    fn body(_: &mut Mutator<Witness>, x: c_int) -> c_int {
        x
    }
    /// Foreign frames, until an upcall is refused.
    fn until_refused(callback: Callback) {
        let frame = core::hint::black_box([0_u8; 1024]);
        if callback(1) == 1 {
            until_refused(callback);
        }
        core::hint::black_box(frame);
    }
    extern "C" fn thread(_: *mut core::ffi::c_void) {
        until_refused(upcall_fn_or(body, || FALLBACK));
    }
    let gone = Arc::new(AtomicBool::new(false));
    let world = World::new(Witness { world: Mutex::new(None), gone: Arc::clone(&gone) });
    world.adopt_foreign_threads();
    *world.vm().world.lock().unwrap() = Some(world.clone());
    drop(world);
    // SAFETY: the function takes no data.
    assert_eq!(unsafe { foreign_thread_with_stack(128 << 10, thread, core::ptr::null_mut()) }, 0);
    assert_eq!(*OUTLIVED.lock().unwrap(), Some(true));
    assert!(gone.load(Ordering::Relaxed), "and it goes with its last thread");
}

/// In an upcall the thread cannot be detached, whatever ends there.
#[test]
fn an_exception_whose_drop_detaches_the_thread_in_an_upcall_is_refused() {
    type Vm = Running<2>;
    static REFUSED: AtomicU32 = AtomicU32::new(0);
    let world = Vm::world();
    let detach = {
        let world = world.clone();
        move || {
            let world = world.clone();
            OnDrop(Some(Box::new(move || match world.detach_foreign_thread() {
                Err(DetachError::Busy { .. }) => _ = REFUSED.fetch_add(1, Ordering::Relaxed),
                other => panic!("{other:?}"),
            })))
        }
    };
    let throws = UpcallClosure::with_fallback(
        &world,
        Throwing(move |mutator: &mut Mutator<Vm>, _: c_int| -> Result<c_int, OnDrop> {
            mutator.throw(detach());
            assert_eq!(mutator.depth(), 1);
            Err(detach())
        }),
        FALLBACK,
    );
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            assert_eq!(unsafe { foreign_call_back_last(throws.data_last(), 1, throws.data()) }, FALLBACK);
            assert_eq!(world.attached(), 1);
        });
    });
    assert_eq!(REFUSED.load(Ordering::Relaxed), 2);
}

/// The payloads are public types: code that panics with one itself gets what it asked for, and no more.
#[test]
fn forged_payloads_are_the_errors_they_say_they_are() {
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let forge = UpcallClosure::new(&world, |_: &mut Mutator<Vm>, x: c_int| -> c_int {
        match x {
            0 => std::panic::resume_unwind(Box::new(Thrown(Oops::Number(4)))),
            1 => std::panic::resume_unwind(Box::new(UpcallRefused::Forbidden { call_site: None })),
            // Another type's: a panic like any other.
            _ => std::panic::resume_unwind(Box::new(Thrown(5_u64))),
        }
    });
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let upcall = |x| unsafe { foreign_call_back_last(forge.data_last(), x, forge.data()) };
    let mut call = mutator.foreign_call();
    assert_eq!(call.try_run(|| upcall(0)).expect_err("thrown").number(), 4);
    assert!(message(|| call.try_run(|| upcall(1))).contains("an unknown call site"));
    assert_eq!(caught(|| call.try_run(|| upcall(2))).downcast_ref::<Thrown<u64>>(), Some(&Thrown(5)));
    assert_eq!(call.run(|| 1), 1);
}

/// Bodies that catch, and fail again, and leak what they caught.
#[test]
fn a_body_that_catches_leaks_and_fails_again_leaves_the_activations_in_order() {
    /// # Errors
    ///
    /// Always.
    fn leaf(_: &mut Mutator<Vm>, _: c_int) -> Result<c_int, Oops> {
        Err(Oops::Number(1))
    }
    /// # Errors
    ///
    /// Never: it throws by hand, and panics.
    fn body(mutator: &mut Mutator<Vm>, x: c_int) -> Result<c_int, Oops> {
        let leaf: Callback = upcall_fn_or(Throwing(leaf), || FALLBACK);
        // SAFETY: the callback takes an `int` and gives one.
        let call_back = || unsafe { foreign_call_back(leaf, 0) };
        for _ in 0..3 {
            let mut call = mutator.foreign_call().without_upcalls();
            call.root(7);
            leak(caught(|| call.run(call_back)));
            leak(call);
            let mut call = mutator.foreign_call();
            call.root(8);
            let payload = caught(|| call.run(call_back));
            assert_eq!(payload.downcast::<Thrown<Oops>>().expect("thrown").0.number(), 1);
            leak(call);
            leak(mutator.foreign_call().on_error(ErrorPolicy::Abort));
        }
        assert_eq!(mutator.depth(), 1);
        mutator.throw(Oops::Number(2));
        panic_quietly(x as u32)
    }
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    let body: Callback = upcall_fn_or(Throwing(body), || FALLBACK);
    let roots = |world: &World<Vm>| {
        let mut told = crate::plain::Told::default();
        world.pause(|stopped| stopped.enumerate(&mut told));
        told.slots
    };
    let mut call = mutator.foreign_call();
    call.root(9);
    for _ in 0..3 {
        let outcome = call.try_run(|| {
            // SAFETY: the callback takes an `int` and gives one.
            assert_eq!(unsafe { foreign_call_back(body, 5) }, FALLBACK);
            assert_eq!(roots(&world), [9], "what the upcall leaked ended with it");
        });
        assert_eq!(outcome.expect_err("thrown").number(), 2);
        assert_eq!(world.vm().take_reports(), [Told::Superseded("panic 5".to_owned())]);
    }
}

/// A VM with a global lock sees its hooks in pairs, whatever fails: a refused upcall never became managed, and has none.
#[test]
fn the_hooks_are_balanced_whatever_fails() {
    use Crossing::{Attachment, ForeignCall, Upcall};
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    assert_eq!(world.vm().take_crossings(), [("entering", Attachment)]);
    let fails: Callback =
        upcall_fn_or(Throwing(|_: &mut Mutator<Vm>, _: c_int| Err(Oops::Number(1))), || FALLBACK);
    // SAFETY: the callback takes an `int` and gives one.
    let upcall = || unsafe { foreign_call_back(fails, 1) };
    let out = ("leaving", ForeignCall);
    let back = ("entering", ForeignCall);
    drop(message(|| mutator.foreign_call().without_upcalls().run(upcall)));
    assert_eq!(world.vm().take_crossings(), [out, back]);
    drop(message(|| mutator.foreign_call().run(|| world.pause(|_| upcall()))));
    let hooks = world.vm().take_crossings();
    let balance = |hooks: &[(&str, Crossing)]| {
        hooks.iter().map(|(way, _)| if *way == "leaving" { 1 } else { -1 }).sum::<i32>()
    };
    assert_eq!(balance(&hooks), 0, "{hooks:?}");
    for _ in 0..2 {
        drop(mutator.foreign_call().try_run(upcall).expect_err("thrown"));
        assert_eq!(world.vm().take_crossings(), [out, ("entering", Upcall), ("leaving", Upcall), back]);
    }
}

/// What `exception_for` makes of a refusal may be nothing, or a panic: the call is over in either case.
#[test]
fn a_vm_that_panics_while_it_makes_an_exception_of_a_refusal_panics_in_the_managed_caller() {
    struct Touchy;
    impl reentry::Vm for Touchy {
        type Ref = usize;
        type Local = ();
        type Exception = u32;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {}
        fn exception_for(&self, _: &UpcallRefused) -> Option<u32> {
            panic_quietly(3)
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Touchy {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    let world = World::new(Touchy);
    let mut mutator = world.attach().unwrap();
    let callback: Callback = upcall_fn(|_: &mut Mutator<Touchy>, x: c_int| x);
    // SAFETY: the callback takes an `int` and gives one.
    let upcall = || unsafe { foreign_call_back(callback, 2) };
    for _ in 0..2 {
        assert_eq!(number(|| mutator.foreign_call().without_upcalls().run(upcall)), 3);
        assert_eq!(number(|| mutator.foreign_call().without_upcalls().try_run(upcall)), 3);
        assert_eq!(mutator.foreign_call().run(upcall), 2);
    }
}

#[expect(clippy::mem_forget, reason = "leaking is what is tested")]
fn leak<T>(value: T) {
    core::mem::forget(value);
}
