//! The hooks of a VM run in pairs, whichever way a thread becomes managed and whichever way it leaves: so a lock that they keep is balanced.

use crate::plain::{Steps, for_each_strategy};
use core::cell::UnsafeCell;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;
use reentry::testkit::heap::Collection;
use reentry::testkit::{Heap, Ref, StaleReference};
use reentry::{
    ArgumentError, ArgumentPlan, AttachError, Capture, Crossing, FenceStrategy, GlobalLock, Mutator, Report,
    RootVisitor, Segment, Slot, StackScanner, StoppedWorld, UpcallClosure, Vm, World, upcall_fn,
};
use reentry_foreign::{
    foreign_call_back_last, foreign_jump, foreign_land_elsewhere, foreign_meet, foreign_threads,
};
use std::sync::Mutex;
use std::thread;

/// A VM that writes down which hook ran on which thread, and whose `attach` can fail.
#[derive(Default)]
struct Telling {
    told: Mutex<Vec<(usize, &'static str, Crossing)>>,
    attach_panics: AtomicBool,
}

impl Vm for Telling {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {
        assert!(!self.attach_panics.load(Ordering::Relaxed), "asked to");
    }

    fn leaving_managed(&self, crossing: Crossing) {
        self.told.lock().unwrap().push((this_thread(), "leaving", crossing));
    }

    fn entering_managed(&self, crossing: Crossing) {
        self.told.lock().unwrap().push((this_thread(), "entering", crossing));
    }

    fn report(&self, _: &Report<'_>) {}
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Telling {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// The calling thread, also when its thread-locals are gone: `thread::current` may panic then.
fn this_thread() -> usize {
    // SAFETY: it has no preconditions.
    unsafe { libc::pthread_self() as usize }
}

impl Telling {
    /// What has been told since the last time.
    fn take(&self) -> Vec<(&'static str, Crossing)> {
        core::mem::take(&mut *self.told.lock().unwrap()).into_iter().map(|(_, way, at)| (way, at)).collect()
    }

    /// How often each thread has entered more often than it has left: none, if all is well.
    #[track_caller]
    fn assert_in_pairs(&self) {
        let told = self.told.lock().unwrap();
        let mut inside = std::collections::HashMap::new();
        for (thread, way, crossing) in told.iter() {
            let inside = inside.entry(thread).or_insert(0);
            *inside += if *way == "entering" { 1 } else { -1 };
            assert!((0..=1).contains(inside), "{thread:?} {way} {crossing:?}: {told:?}");
        }
        assert!(inside.values().all(|inside| *inside == 0), "{told:?}");
    }
}

fn telling() -> World<Telling> {
    World::new(Telling::default())
}

#[test]
fn an_attachment_begins_and_ends_with_a_hook() {
    use Crossing::{Attachment, ForeignCall};
    let world = telling();
    let mut mutator = world.attach().unwrap();
    assert_eq!(world.vm().take(), [("entering", Attachment)]);
    mutator.foreign_call().run(|| ());
    mutator.poll();
    mutator.pause(|_| ());
    assert_eq!(world.vm().take(), [("leaving", ForeignCall), ("entering", ForeignCall)]);
    drop(mutator);
    assert_eq!(world.vm().take(), [("leaving", Attachment)]);
}

/// What comes to nothing is told of in pairs, or not at all.
#[test]
fn an_attachment_that_is_refused_is_told_of_in_pairs() {
    let world = telling();
    let mutator = world.attach().unwrap();
    assert_eq!(world.attach().unwrap_err(), AttachError::AlreadyAttached);
    drop(mutator);
    world.vm().attach_panics.store(true, Ordering::Relaxed);
    assert!(std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| drop(world.attach()))).is_err());
    world.vm().attach_panics.store(false, Ordering::Relaxed);
    world.pause(|_| assert_eq!(world.attach().unwrap_err(), AttachError::PauseHeldHere));
    world.shutdown();
    assert_eq!(world.attach().unwrap_err(), AttachError::Shutdown);
    world.vm().assert_in_pairs();
}

/// It is a mutator's first and last thing; in between, the thread that is refused an early end goes on.
#[test]
fn a_detachment_that_is_refused_tells_nothing() {
    let world = telling();
    let mut mutator = world.attach().unwrap();
    world.vm().take();
    let closure = UpcallClosure::new(&world, |_: &mut Mutator<Telling>, x: c_int| {
        world.detach_foreign_thread().unwrap_err();
        x
    });
    // SAFETY: the data is the closure's, which lives.
    mutator.foreign_call().run(|| unsafe { foreign_call_back_last(closure.data_last(), 1, closure.data()) });
    assert_eq!(world.vm().take().len(), 4, "the call and the upcall");
    drop(mutator);
    assert_eq!(world.vm().take(), [("leaving", Crossing::Attachment)]);
}

fn same(_: &mut Mutator<Telling>, x: c_int) -> c_int {
    x
}

/// A foreign thread is managed in its upcalls alone.
#[test]
fn a_foreign_thread_is_told_of_with_its_upcalls_and_not_when_it_attaches_or_exits() {
    let world = telling();
    world.adopt_foreign_threads();
    // SAFETY: the callback takes an `int` and gives one.
    assert_eq!(unsafe { foreign_threads(3, 5, upcall_fn(same)) }, 3 * (1 + 2 + 3 + 4));
    let told = world.vm().told.lock().unwrap().clone();
    assert_eq!(told.len(), 2 * 3 * 5);
    assert!(told.iter().all(|(_, _, crossing)| *crossing == Crossing::Upcall));
    world.vm().assert_in_pairs();
}

/// What the way in of an upcall has taken, the exit of a thread gives up if C has jumped over the upcall and made no crossing since.
#[test]
fn a_foreign_thread_that_exits_after_a_jump_gives_up_what_the_skipped_upcall_held() {
    fn jump(mutator: &mut Mutator<Telling>, x: c_int, _: *mut c_void) -> c_int {
        // SAFETY: the point is set by C that waits for this upcall.
        let leap = || -> () { unsafe { foreign_jump(0) } };
        match x {
            // SAFETY: it calls nobody back.
            0 => unsafe { mutator.leaf_call(|_| leap()) },
            _ => mutator.foreign_call().run(leap),
        }
        unreachable!("it has jumped")
    }
    let world = telling();
    world.adopt_foreign_threads();
    for managed in [0, 1] {
        // SAFETY: the callback does not use the data.
        unsafe { foreign_land_elsewhere(upcall_fn(jump), None, managed, core::ptr::null_mut()) };
        assert_eq!(world.attached(), 0);
        world.vm().assert_in_pairs();
    }
}

/// A leaked attachment is managed until nothing of its thread can run any more. Then it is told of, or a lock that it holds would be held for ever.
#[test]
#[cfg(unix)]
fn a_leaked_attachment_is_told_of_when_its_thread_is_gone() {
    use Crossing::{Attachment, ForeignCall};
    let world = telling();
    for in_c in [false, true] {
        thread::scope(|scope| {
            let leak = scope.spawn(|| {
                let attachment = Box::leak(Box::new(world.attach().unwrap()));
                if in_c {
                    let call = Box::leak(Box::new(attachment.foreign_call()));
                    // SAFETY: nothing managed runs on this thread any more.
                    let foreign = unsafe { call.enter() };
                    let _leaked = core::mem::ManuallyDrop::new(foreign);
                }
            });
            leak.join().unwrap();
        });
        // A scope's threads have not yet exited where it ends.
        let began = std::time::Instant::now();
        let expected = [("entering", Attachment), ("leaving", if in_c { ForeignCall } else { Attachment })];
        while world.vm().told.lock().unwrap().len() < 2 && began.elapsed() < Duration::from_secs(60) {
            thread::yield_now();
        }
        assert_eq!(world.vm().take(), expected, "{in_c}");
    }
    world.pause(|stopped| assert_eq!(stopped.mutators().count(), 2, "leaked, and stopped"));
}

#[test]
fn fibers_are_told_of_in_pairs_suspended_or_not() {
    let world = telling();
    let mut mutator = world.attach().unwrap();
    let (run, unused) = (world.fiber().unwrap(), world.fiber().unwrap());
    let entered = mutator.resume(&run, || run.run(|mutator| mutator.foreign_call().run(|| 7)));
    assert_eq!(entered.unwrap().unwrap(), 7);
    drop((run, unused));
    drop(mutator);
    world.vm().assert_in_pairs();
}

/// A VM with a global lock, a heap that moves everything, and what only the lock keeps from racing.
struct Interpreter<const TAG: u32> {
    lock: GlobalLock,
    heap: Heap,
    /// Read and written by whoever is managed.
    work: UnsafeCell<u64>,
    inside: AtomicUsize,
}

// SAFETY: `work` is touched under the lock alone, which is what the tests show.
unsafe impl<const TAG: u32> Sync for Interpreter<TAG> {}

impl<const TAG: u32> Interpreter<TAG> {
    fn world(fence: FenceStrategy) -> World<Self> {
        World::builder().fence(fence).build(Self {
            lock: GlobalLock::new(),
            heap: Heap::new(),
            work: UnsafeCell::new(0),
            inside: AtomicUsize::new(0),
        })
    }

    /// Managed work: it must be alone.
    fn work(&self) {
        assert!(self.lock.is_held_here());
        assert_eq!(self.inside.fetch_add(1, Ordering::Relaxed), 0, "two threads are managed");
        // SAFETY: this thread is managed, and so holds the lock.
        unsafe { *self.work.get() += 1 };
        self.inside.fetch_sub(1, Ordering::Relaxed);
    }

    /// Moves every object.
    fn collect(&self, stopped: &StoppedWorld<'_, Self>) {
        assert_eq!(self.inside.load(Ordering::Relaxed), 0, "nobody works in a pause");
        let mut collection = self.heap.begin_collection();
        let mut roots = Roots { collection: &mut collection, stale: None };
        stopped.enumerate(&mut roots);
        assert_eq!(roots.stale, None);
        collection.finish();
    }
}

struct Roots<'c, 'h> {
    collection: &'c mut Collection<'h>,
    stale: Option<StaleReference>,
}

impl RootVisitor<Ref> for Roots<'_, '_> {
    fn slot(&mut self, mut slot: Slot<'_, Ref>) {
        match self.collection.forward(slot.load()) {
            Ok(moved) => slot.store(moved),
            Err(stale) => self.stale = Some(stale),
        }
    }

    fn pinned(&mut self, _: Ref) {
        unreachable!("nothing is pinned")
    }

    fn transitively_pinned(&mut self, _: Ref) {
        unreachable!("nothing is pinned")
    }
}

impl<const TAG: u32> Vm for Interpreter<TAG> {
    type Ref = Ref;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn admit(&self, _: Ref, plan: ArgumentPlan) -> Result<(), ArgumentError> {
        if plan == ArgumentPlan::Root { Ok(()) } else { Err(ArgumentError::CannotPin(plan)) }
    }

    fn entering_managed(&self, _: Crossing) {
        self.lock.enter();
    }

    fn leaving_managed(&self, _: Crossing) {
        assert!(self.lock.is_held_here() || self.inside.load(Ordering::Relaxed) == 0);
        self.lock.leave();
    }
}

// SAFETY: S1, S2: no frame holds a reference across a safepoint but by a guard. S3 to S5: it does nothing. S6: no fault.
unsafe impl<const TAG: u32> StackScanner for Interpreter<TAG> {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<Ref>) {}
}

/// Three threads attach, call C, are called back, collect and leave, again and again, while a fourth, which is no mutator, collects too.
#[test]
fn a_global_lock_lets_one_thread_work_at_a_time_through_upcalls_and_pauses() {
    const THREADS: usize = 3;
    const ROUNDS: c_int = if crate::emulator::EMULATED { 30 } else { 150 };
    type Gil = Interpreter<0>;
    for_each_strategy(|fence| {
        let world = Gil::world(fence);
        let finished = AtomicUsize::new(0);
        let upcall = UpcallClosure::new(&world, |mutator: &mut Mutator<Gil>, round: c_int| {
            mutator.vm().work();
            if round % 10 == 0 {
                mutator.pause(|stopped| stopped.vm().collect(stopped));
            }
            mutator.vm().work();
            round
        });
        let run = |mutator: &mut Mutator<Gil>, round: c_int| {
            let text = format!("of mutator {}, {round}", mutator.id());
            let object = mutator.vm().heap.alloc(&[], text.as_bytes());
            let mut call = mutator.foreign_call();
            let root = call.root(object);
            // SAFETY: the data is the closure's, which lives.
            let got =
                call.run(|| unsafe { foreign_call_back_last(upcall.data_last(), round, upcall.data()) });
            assert_eq!(got, round);
            let object = call.get(root);
            drop(call);
            assert_eq!(mutator.vm().heap.bytes(object).unwrap(), text.as_bytes());
            mutator.vm().work();
            mutator.poll();
        };
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for round in 0..ROUNDS {
                        let mut mutator = world.attach().unwrap();
                        run(&mut mutator, round);
                        run(&mut mutator, round);
                    }
                    finished.fetch_add(1, Ordering::Release);
                });
            }
            let mut pauses = 0;
            while finished.load(Ordering::Acquire) < THREADS || pauses == 0 {
                world.pause(|stopped| stopped.vm().collect(stopped));
                pauses += 1;
                thread::sleep(Duration::from_micros(200));
            }
        });
        let mutator = world.attach().unwrap();
        // SAFETY: this thread is managed.
        let work = unsafe { *mutator.vm().work.get() };
        assert_eq!(work, THREADS as u64 * ROUNDS as u64 * 6);
        drop(mutator);
        assert!(!world.vm().lock.is_held_here());
    });
}

/// The holder of the lock stands still in the very pause in which C calls back: the upcall must not wait for it.
#[test]
fn an_upcall_in_a_pause_of_its_own_thread_does_not_wait_for_the_lock() {
    type Gil = Interpreter<1>;
    for_each_strategy(|fence| {
        let world = Gil::world(fence);
        let (steps, upcall) =
            (Steps::new(), UpcallClosure::with_fallback(&world, |_: &mut Mutator<Gil>, x: c_int| x, -1));
        thread::scope(|scope| {
            let world = &world;
            let (steps, upcall) = (&steps, &upcall);
            let mut mutator = world.attach().unwrap();
            let refused = crate::plain::message(|| {
                mutator.foreign_call().run(|| {
                    scope.spawn(move || {
                        let mut other = world.attach().unwrap();
                        steps.reach(1);
                        // Held, and stopped by the pause below.
                        while steps.now() < 3 {
                            other.poll();
                        }
                    });
                    steps.wait(1);
                    let got = world.pause(|_| {
                        assert!(!world.vm().lock.is_held_here());
                        // SAFETY: the data is the closure's, which lives.
                        unsafe { foreign_call_back_last(upcall.data_last(), 5, upcall.data()) }
                    });
                    steps.reach(3);
                    assert_eq!(got, -1, "refused");
                });
            });
            assert!(refused.contains("would wait for a pause that this thread holds itself"), "{refused}");
            assert!(world.vm().lock.is_held_here(), "managed again");
        });
    });
}

/// A pause does not wait for a thread that waits for the lock to attach; a thread in C does not hold it.
#[test]
fn a_pause_does_not_wait_for_a_thread_that_waits_for_the_lock() {
    type Gil = Interpreter<2>;
    for_each_strategy(|fence| {
        let world = Gil::world(fence);
        let steps = Steps::new();
        thread::scope(|scope| {
            let mut mutator = world.attach().unwrap();
            let waiting = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                mutator.vm().work();
                // SAFETY: C touches the word alone, which lives.
                mutator.foreign_call().run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
                mutator.vm().work();
            });
            thread::sleep(Duration::from_millis(20));
            assert_eq!((steps.now(), world.attached()), (0, 1), "it waits for the lock");
            mutator.pause(|stopped| stopped.vm().collect(stopped));
            // In C this thread does not hold it.
            mutator.foreign_call().run(|| steps.wait(1));
            mutator.vm().work();
            steps.reach(2);
            thread::sleep(Duration::from_millis(5));
            mutator.pause(|stopped| assert_eq!(stopped.mutators().count(), 2));
            mutator.foreign_call().run(|| waiting.join().unwrap());
            mutator.vm().work();
        });
    });
}
