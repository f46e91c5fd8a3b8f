//! Code of the user's that runs while the crate works with a record: it cannot take the record, its VM or its
//! world away, no lock is held over it, and nothing that it does makes the crate unwind between two states.

use crate::child;
use core::ffi::c_int;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use reentry::{
    Always, Capture, Crossing, DetachError, FallbackOnly, Fiber, Mutator, Report, RootVisitor, Segment,
    StackScanner, Stragglers, Throwing, UpcallClosure, World, sample_thread, upcall_fn, upcall_fn_or,
};
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::thread;

type Told<V> = Box<dyn Fn(&V, &Report<'_>) + Send + Sync>;
type Hooked<V> = Box<dyn Fn(&V, Crossing) + Send + Sync>;

/// A VM whose reports and hooks run what a test asks for, and which keeps what a test gives it.
struct Asked<const TAG: u32> {
    on_report: Mutex<Option<Arc<Told<Self>>>>,
    on_entering: Mutex<Option<Arc<Hooked<Self>>>>,
    world: Mutex<Option<World<Self>>>,
    fibers: Mutex<Vec<Fiber<Self>>>,
    gone: Arc<AtomicBool>,
}

impl<const TAG: u32> Asked<TAG> {
    fn new() -> Self {
        Self {
            on_report: Mutex::default(),
            on_entering: Mutex::default(),
            world: Mutex::default(),
            fibers: Mutex::default(),
            gone: Arc::default(),
        }
    }

    fn on_report(&self, told: impl Fn(&Self, &Report<'_>) + Send + Sync + 'static) {
        *self.on_report.lock().unwrap() = Some(Arc::new(Box::new(told)));
    }

    fn on_entering(&self, hooked: impl Fn(&Self, Crossing) + Send + Sync + 'static) {
        *self.on_entering.lock().unwrap() = Some(Arc::new(Box::new(hooked)));
    }

    /// Detaches the calling thread from the world that was put here, and lets that go. Says how it ended.
    fn let_go(&self) -> Option<Result<(), DetachError>> {
        let world = self.world.lock().unwrap().take()?;
        Some(world.detach_foreign_thread())
    }
}

impl<const TAG: u32> Drop for Asked<TAG> {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Release);
    }
}

impl<const TAG: u32> reentry::Vm for Asked<TAG> {
    type Ref = usize;
    type Local = Vec<u64>;
    type Exception = String;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) -> Vec<u64> {
        Vec::new()
    }

    fn report(&self, report: &Report<'_>) {
        let told = self.on_report.lock().unwrap().clone();
        if let Some(told) = told {
            told(self, report);
        }
    }

    fn entering_managed(&self, crossing: Crossing) {
        let hooked = self.on_entering.lock().unwrap().clone();
        if let Some(hooked) = hooked {
            hooked(self, crossing);
        }
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl<const TAG: u32> StackScanner for Asked<TAG> {
    fn scan_segment(&self, _: &Vec<u64>, _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

#[track_caller]
fn assert_refused(outcome: Option<Result<(), DetachError>>) {
    let Some(Err(DetachError::Busy { reason })) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("the crate is calling code of the VM for it"), "{reason}");
}

#[test]
fn a_visitor_of_a_sample_cannot_drop_the_attachment_it_looks_at() {
    type Vm = Asked<0>;
    let world = World::new(Vm::new());
    let gone = Arc::clone(&world.vm().gone);
    let mut attachment = Some(world.attach().unwrap());
    drop(world);
    let outcome = catch_unwind(AssertUnwindSafe(|| sample_thread(|_| drop(attachment.take()))));
    let said = *outcome.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("cannot detach: the crate is calling code of the VM for it"), "{said}");
    assert!(!gone.load(Ordering::Acquire));
    // It looked at the mutator, and left it as it was.
    let mut depths = Vec::new();
    sample_thread(|activation| depths.push(activation.depth)).unwrap();
    assert_eq!(depths, [0]);
}

#[test]
fn a_hook_cannot_detach_the_foreign_thread_it_runs_for() {
    type Vm = Asked<1>;
    static OUTCOME: Mutex<Option<Result<(), DetachError>>> = Mutex::new(None);
    let world = World::new(Vm::new());
    let gone = Arc::clone(&world.vm().gone);
    world.adopt_foreign_threads();
    world.vm().on_entering(|vm, crossing| {
        if crossing == Crossing::Upcall
            && let Some(outcome) = vm.let_go()
        {
            *OUTCOME.lock().unwrap() = Some(outcome);
            assert!(!vm.gone.load(Ordering::Acquire));
        }
    });
    let callback: extern "C" fn() -> c_int = upcall_fn(|_: &mut Mutator<Vm>| 1);
    thread::spawn(move || {
        assert_eq!(callback(), 1);
        *world.vm().world.lock().unwrap() = Some(world.clone());
        drop(world);
        assert_eq!(callback(), 1);
        assert_eq!(callback(), 1, "attached as before");
    })
    .join()
    .unwrap();
    assert_refused(OUTCOME.lock().unwrap().take());
    assert!(gone.load(Ordering::Acquire), "the world goes with its last thread");
}

#[test]
fn a_report_of_a_refused_upcall_has_its_vm_though_its_thread_has_left() {
    type Vm = Asked<2>;
    static OUTCOME: Mutex<Option<Result<(), DetachError>>> = Mutex::new(None);
    let world = World::new(Vm::new());
    let gone = Arc::clone(&world.vm().gone);
    world.adopt_foreign_threads();
    world.vm().on_report(|vm, report| {
        assert!(matches!(report, Report::UpcallAfterShutdown { .. }), "{report}");
        if let Some(outcome) = vm.let_go() {
            *OUTCOME.lock().unwrap() = Some(outcome);
            assert!(!vm.gone.load(Ordering::Acquire));
        }
    });
    let callback: extern "C" fn() -> c_int = upcall_fn_or(|_: &mut Mutator<Vm>| 1, || -1);
    let (arrived, go_on) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(callback(), 1);
            arrived.wait();
            go_on.wait();
            assert_eq!(callback(), -1);
        });
        arrived.wait();
        world.shutdown_within(Duration::ZERO, Stragglers::Fail);
        *world.vm().world.lock().unwrap() = Some(world.clone());
        drop(world);
        go_on.wait();
    });
    // The thread had left the world before the report ran: there was nothing to detach.
    assert_eq!(OUTCOME.lock().unwrap().take(), Some(Ok(())));
    // The scope is over before the thread has run its last destructors.
    let since = std::time::Instant::now();
    while !gone.load(Ordering::Acquire) {
        assert!(since.elapsed() < Duration::from_secs(60), "the world goes with its last thread");
        thread::yield_now();
    }
}

#[test]
fn a_report_of_a_wait_cannot_detach_the_thread_that_waits() {
    type Vm = Asked<3>;
    static OUTCOME: Mutex<Option<Result<(), DetachError>>> = Mutex::new(None);
    static MUTATOR: AtomicU64 = AtomicU64::new(0);
    let world = World::<Vm>::builder().report_after(Duration::from_millis(5)).build(Vm::new());
    world.adopt_foreign_threads();
    world.vm().on_report(|vm, report| {
        // The wait is reported again and again; the first report has let go.
        if let Report::PauseWait(_) = report
            && let Some(outcome) = vm.let_go()
        {
            *OUTCOME.lock().unwrap() = Some(outcome);
        }
    });
    let callback: extern "C" fn() -> u64 = upcall_fn(|mutator: &mut Mutator<Vm>| mutator.id());
    let barrier = std::sync::Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            MUTATOR.store(callback(), Ordering::Relaxed);
            barrier.wait();
            barrier.wait();
            assert_eq!(callback(), MUTATOR.load(Ordering::Relaxed), "the mutator it was");
        });
        barrier.wait();
        *world.vm().world.lock().unwrap() = Some(world.clone());
        world.pause(|_| {
            barrier.wait();
            while OUTCOME.lock().unwrap().is_none() {
                thread::yield_now();
            }
        });
    });
    assert_refused(OUTCOME.lock().unwrap().take());
}

/// Standard error is a pipe that nobody reads: the default report writes what it can.
#[test]
fn the_default_report_does_not_panic_when_standard_error_is_closed() {
    struct Silent;
    impl reentry::Vm for Silent {
        type Ref = usize;
        type Local = ();
        type Exception = String;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {}
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Silent {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    /// # Errors
    ///
    /// Always.
    fn fail(_: &mut Mutator<Silent>) -> Result<c_int, String> {
        Err("no".into())
    }
    let said =
        child::succeeds("holds::the_default_report_does_not_panic_when_standard_error_is_closed", || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            // SAFETY: both are open descriptors of this process, whose standard error nothing else uses.
            assert_eq!(unsafe { libc_dup2(std::os::fd::AsRawFd::as_raw_fd(&writer), 2) }, 2);
            let world = World::new(Silent);
            let mut mutator = world.attach().unwrap();
            let fail: extern "C" fn() -> c_int = upcall_fn_or(FallbackOnly(Throwing(fail)), || -1);
            assert_eq!(mutator.foreign_call().run(|| fail()), -1);
            std::io::Write::write_all(&mut std::io::stdout(), b"goes on").unwrap();
        });
    assert!(said.contains("goes on"), "{said}");
}

unsafe extern "C" {
    #[link_name = "dup2"]
    fn libc_dup2(from: c_int, to: c_int) -> c_int;
}

#[test]
fn a_leaked_attachments_data_is_not_lent_when_its_thread_has_gone() {
    type Vm = Asked<4>;
    let world = World::new(Vm::new());
    let other = world.clone();
    let local: &'static mut Vec<u64> = thread::spawn(move || {
        let attachment = Box::leak(Box::new(other.attach().unwrap()));
        attachment.local_mut()
    })
    .join()
    .unwrap();
    local.push(42);
    let said = world.pause(|stopped| {
        let mutator = stopped.mutators().next().unwrap();
        assert!(mutator.try_local().is_none());
        let outcome = catch_unwind(AssertUnwindSafe(|| mutator.local().len()));
        *outcome.unwrap_err().downcast::<String>().unwrap()
    });
    assert!(said.contains("has no data to lend") && said.contains(file!()), "{said}");
    assert_eq!(local, &[42]);
    let mut mutator = world.attach().unwrap();
    let id = mutator.id();
    assert_eq!(mutator.handshake(id, |stopped| stopped.try_local().is_some()), Some(true));
}

#[test]
fn a_vm_that_keeps_its_own_fibers_and_closures_is_dropped() {
    type Vm = Asked<5>;
    let world = World::new(Vm::new());
    let gone = Arc::clone(&world.vm().gone);
    let fiber = world.fiber().unwrap();
    world.vm().fibers.lock().unwrap().push(fiber);
    let left = world.fiber().unwrap();
    let closure = UpcallClosure::new(&world, |_: &mut Mutator<Vm>| 1 as c_int);
    drop(world);
    assert!(gone.load(Ordering::Acquire));
    assert_ne!(left.id(), 0);
    // The closure is there still, its world is not.
    let (function, data) = (closure.data_last(), closure.data());
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    assert_eq!(unsafe { function(data) }, 0, "the fallback value");
    drop(left);
}

#[test]
fn an_interrupt_may_ask_the_world_and_make_interruptible_calls_of_its_own() {
    type Vm = Asked<6>;
    static OTHERS: AtomicU32 = AtomicU32::new(0);
    let world = World::new(Vm::new());
    let (id, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            let me = mutator.id();
            let ask = || {
                // Both threads that interrupt the call are here at the same time.
                OTHERS.fetch_add(1, Ordering::AcqRel);
                while OTHERS.load(Ordering::Acquire) < 2 {
                    thread::yield_now();
                }
                assert_eq!(world.attached(), 1);
                assert_eq!(world.pause(|stopped| stopped.mutators().count()), 1);
                stop.store(true, Ordering::Release);
            };
            mutator.foreign_call().interruptible(&ask).run(|| {
                id.store(me, Ordering::Release);
                while !stop.load(Ordering::Acquire) {
                    thread::yield_now();
                }
            });
        });
        while id.load(Ordering::Acquire) == 0 {
            thread::yield_now();
        }
        for _ in 0..2 {
            scope.spawn(|| world.interrupt(id.load(Ordering::Acquire)).unwrap());
        }
    });
    assert_eq!(OTHERS.load(Ordering::Relaxed), 2);
    // An interrupt called on the call's own thread, which calls in and makes a call that has one, too.
    let inner: extern "C" fn() -> c_int =
        upcall_fn(|mutator: &mut Mutator<Vm>| mutator.foreign_call().interruptible(&|| ()).run(|| 3));
    let outer: extern "C" fn() -> c_int = upcall_fn(|mutator: &mut Mutator<Vm>| {
        let id = mutator.id();
        c_int::from(mutator.interrupt(id).unwrap())
    });
    let mut mutator = world.attach().unwrap();
    let ask = || assert_eq!(inner(), 3);
    assert_eq!(mutator.foreign_call().interruptible(&ask).run(|| outer()), 1);
}

#[test]
fn posted_work_that_polls_does_no_other_posted_work() {
    type Vm = Asked<7>;
    static DEPTH: AtomicU32 = AtomicU32::new(0);
    static DONE: AtomicU32 = AtomicU32::new(0);
    static POSTER: Mutex<Option<reentry::Poster<Vm>>> = Mutex::new(None);
    fn work(mutator: &mut Mutator<Vm>, left: usize) {
        assert_eq!(DEPTH.fetch_add(1, Ordering::Relaxed), 0, "it does not nest");
        if left > 0 {
            POSTER.lock().unwrap().as_ref().unwrap().post(work, left - 1).unwrap();
        }
        mutator.poll();
        let inner: extern "C" fn() = upcall_fn(|mutator: &mut Mutator<Vm>| mutator.poll());
        mutator.foreign_call().run(|| inner());
        DEPTH.fetch_sub(1, Ordering::Relaxed);
        DONE.fetch_add(1, Ordering::Relaxed);
        if left == 7 {
            resume_unwind(Box::new(left));
        }
    }
    let world = World::new(Vm::new());
    let mut mutator = world.attach().unwrap();
    *POSTER.lock().unwrap() = Some(mutator.poster());
    POSTER.lock().unwrap().as_ref().unwrap().post(work, 9).unwrap();
    for done in 1..=10 {
        let outcome = catch_unwind(AssertUnwindSafe(|| mutator.poll()));
        assert_eq!(outcome.is_err(), done == 3, "one panics, and the next poll goes on");
        assert_eq!(DONE.load(Ordering::Relaxed), done, "each poll does what was posted before it");
    }
    mutator.poll();
    assert_eq!(DONE.load(Ordering::Relaxed), 10);
    *POSTER.lock().unwrap() = None;
}

#[test]
fn a_function_that_always_runs_is_told_of_the_error() {
    type Vm = Asked<8>;
    static PENDING: Mutex<Vec<bool>> = Mutex::new(Vec::new());
    let throw: extern "C" fn() = upcall_fn(Throwing(|_: &mut Mutator<Vm>| Err::<(), _>("no".to_owned())));
    let tell: extern "C" fn() =
        upcall_fn(Always(|mutator: &mut Mutator<Vm>| PENDING.lock().unwrap().push(mutator.error_pending())));
    let world = World::new(Vm::new());
    let mut mutator = world.attach().unwrap();
    assert!(!mutator.error_pending());
    let outcome = mutator.foreign_call().try_run(|| {
        tell();
        throw();
        throw();
        tell();
    });
    assert_eq!(outcome, Err("no".to_owned()));
    assert_eq!(*PENDING.lock().unwrap(), [false, true]);
}
