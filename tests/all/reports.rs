//! Who is late, who waits, and how long everything takes: told when asked for, and not otherwise.

use crate::plain::{Plain, Steps, for_each_strategy};
use core::ffi::c_int;
use core::panic::Location;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use reentry::{
    Capture, FenceStrategy, FrameKind, Histogram, Mutator, PauseWait, Report, RootVisitor, Segment,
    StackScanner, StopWait, UpcallClosure, Vm, Wanted, World,
};
use reentry_foreign::{foreign_add, foreign_call_back_last, foreign_meet};
use std::sync::Mutex;
use std::thread;

/// A VM that keeps what it is told of waits, and measures if `TIMED`.
#[derive(Default)]
struct Watched<const TIMED: bool = false> {
    stragglers: Mutex<Vec<StopWait>>,
    waits: Mutex<Vec<PauseWait>>,
    reported: AtomicBool,
}

impl<const TIMED: bool> Vm for Watched<TIMED> {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;
    const TIMED: bool = TIMED;

    fn attach(&self) {}

    fn report(&self, report: &Report<'_>) {
        match report {
            Report::StopWait(wait) => {
                self.stragglers.lock().unwrap().push((*wait).clone());
                self.reported.store(true, Ordering::Release);
            }
            Report::PauseWait(wait) => self.waits.lock().unwrap().push((*wait).clone()),
            other => panic!("{other}"),
        }
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl<const TIMED: bool> StackScanner for Watched<TIMED> {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

const AFTER: Duration = Duration::from_millis(30);

fn watched(fence: FenceStrategy) -> World<Watched> {
    World::<Watched>::builder().fence(fence).report_after(AFTER).build(Watched::default())
}

/// Managed code that does not poll until it has been reported (a minute at most).
fn ignore_the_world(vm: &Watched) {
    let began = std::time::Instant::now();
    while !vm.reported.load(Ordering::Acquire) && began.elapsed() < Duration::from_secs(60) {
        thread::yield_now();
    }
}

fn here(file: &str, line: u32) -> impl Fn(&&'static Location<'static>) -> bool {
    move |site| site.file() == file && site.line() == line
}

#[test]
fn a_mutator_that_does_not_stop_is_reported_with_its_last_call_sites() {
    for_each_strategy(|fence| {
        let world = watched(fence);
        let steps = Steps::new();
        let upcall = UpcallClosure::new(&world, |mutator: &mut Mutator<Watched>, x: c_int| {
            // SAFETY: a plain addition.
            mutator.foreign_call().run(|| unsafe { foreign_add(1, 2) });
            steps.reach(1);
            ignore_the_world(mutator.vm());
            x
        });
        let inner = line!() - 5;
        let outer = core::sync::atomic::AtomicU32::new(0);
        thread::scope(|scope| {
            let late = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let (function, data) = (upcall.data_last(), upcall.data());
                outer.store(line!() + 2, Ordering::Relaxed);
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                mutator.foreign_call().run(|| unsafe { foreign_call_back_last(function, 1, data) });
                mutator.id()
            });
            steps.wait(1);
            world.pause(|_| ());
            let id = late.join().unwrap();
            let stragglers = world.vm().stragglers.lock().unwrap();
            let [straggler, ..] = &stragglers[..] else { panic!("told: {stragglers:?}") };
            assert_eq!(straggler.late.mutator, id);
            assert!(straggler.waiter.waited >= AFTER, "{straggler:?}");
            let sites: Vec<u32> = straggler.late.call_sites.iter().map(|site| site.line()).collect();
            assert_eq!(sites, [inner, outer.load(Ordering::Relaxed)], "newest first");
            let text = straggler.to_string();
            assert!(text.contains(&format!("who does not stop: mutator {id}, thread ")), "{text}");
            assert!(text.contains("in an upcall of the foreign call at"), "{text}");
        });
    });
}

/// G9. A, managed, waits for a lock that B holds; B has stopped, for a pause that waits for A. Nothing of it is the crate's to break up; that somebody is told who, where, and holding what, is.
#[test]
fn a_lock_held_by_a_stopped_mutator_and_wanted_by_a_running_one_is_reported_with_both() {
    for_each_strategy(|fence| {
        let world = watched(fence);
        let (lock, steps) = (Mutex::new(()), Steps::new());
        let noted = core::sync::atomic::AtomicU32::new(0);
        let upcall = UpcallClosure::new(&world, |mutator: &mut Mutator<Watched>, x: c_int| {
            let _held = lock.lock().unwrap();
            noted.store(line!() + 1, Ordering::Relaxed);
            let _noted = mutator.note_lock("the symbol table");
            steps.reach(1);
            while steps.now() < 3 {
                mutator.poll();
            }
            x
        });
        thread::scope(|scope| {
            let b = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let mut call = mutator.foreign_call();
                call.pin(17).unwrap();
                call.pin(18).unwrap();
                let (function, data) = (upcall.data_last(), upcall.data());
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                call.run(|| unsafe { foreign_call_back_last(function, 1, data) });
                drop(call);
                mutator.id()
            });
            steps.wait(1);
            let a = scope.spawn(|| {
                let mutator = world.attach().unwrap();
                steps.reach(2);
                let vm = mutator.vm();
                // What `lock()` would do for ever; here it gives up when it has been told of.
                while lock.try_lock().is_err() && !vm.reported.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                mutator.id()
            });
            steps.wait(2);
            let pause_line = line!() + 1;
            world.pause(|_| thread::sleep(2 * AFTER));
            steps.reach(3);
            let (a, b) = (a.join().unwrap(), b.join().unwrap());
            let stragglers = world.vm().stragglers.lock().unwrap();
            let [straggler, ..] = &stragglers[..] else { panic!("told: {stragglers:?}") };
            assert_eq!(straggler.late.mutator, a);
            let [holder] = &straggler.holders[..] else { panic!("one holds something: {straggler:?}") };
            assert_eq!((holder.mutator, holder.kind, holder.pins), (b, FrameKind::Safepoint, 2));
            let [(name, site)] = &holder.locks[..] else { panic!("it holds one lock: {holder:?}") };
            assert_eq!(*name, "the symbol table");
            assert!(here(file!(), noted.load(Ordering::Relaxed))(site), "{site}");
            let text = straggler.to_string();
            assert!(
                text.contains("it holds 2 pin(s)\n    it holds the lock `the symbol table` since"),
                "{text}"
            );
            // And the other way round: who waits for the pause, and whose pause it is.
            let waits = world.vm().waits.lock().unwrap();
            let [wait, ..] = &waits[..] else { panic!("told: {waits:?}") };
            let waiter = &wait.waiter;
            assert_eq!((waiter.mutator, waiter.wants, wait.pins), (Some(b), Wanted::Safepoint, 2));
            assert!(waiter.waited >= AFTER && wait.locks.len() == 1, "{wait:?}");
            let pause = wait.pause.as_ref().unwrap();
            assert!(pause.site.as_ref().is_some_and(here(file!(), pause_line)), "{wait:?}");
        });
    });
}

#[test]
fn nothing_is_reported_by_a_world_that_did_not_ask() {
    type Vm = Plain<60>;
    let world = Vm::world(FenceStrategy::probe());
    let steps = Steps::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            steps.reach(1);
            thread::sleep(2 * AFTER);
            mutator.poll();
        });
        steps.wait(1);
        world.pause(|_| thread::sleep(2 * AFTER));
    });
    assert_eq!(world.vm().take_reports(), [""; 0]);
}

/// A handshake asks one mutator to stop. The others change what they hold as they please, and are none of its report's business.
#[test]
fn the_report_of_a_handshake_does_not_look_at_mutators_that_were_not_asked_to_stop() {
    for_each_strategy(|fence| {
        let world = watched(fence);
        let (steps, id) = (Steps::new(), core::sync::atomic::AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let mut call = mutator.foreign_call();
                call.pin(17).unwrap();
                // SAFETY: C touches the word alone, which lives.
                call.run(|| unsafe { foreign_meet(steps.word(), 1, 3) });
            });
            steps.wait(1);
            let late = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                id.store(mutator.id(), Ordering::Relaxed);
                steps.reach(2);
                ignore_the_world(mutator.vm());
                mutator.poll();
            });
            steps.wait(2);
            assert_eq!(world.handshake(id.load(Ordering::Relaxed), |_| ()), Some(()));
            late.join().unwrap();
            steps.reach(3);
        });
        let stragglers = world.vm().stragglers.lock().unwrap();
        let [straggler, ..] = &stragglers[..] else { panic!("told: {stragglers:?}") };
        assert!(straggler.holders.is_empty(), "{straggler:?}");
    });
}

/// A note can be leaked, or outlive its mutator. The next mutator has the same record.
#[test]
fn a_note_of_a_lock_ends_with_its_mutator() {
    let world = watched(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let record = mutator.record_address();
    let outlives = mutator.note_lock("another's");
    drop(mutator);
    let steps = Steps::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            assert_eq!(mutator.record_address(), record);
            let _own = mutator.note_lock("its own");
            steps.reach(1);
            ignore_the_world(mutator.vm());
        });
        steps.wait(1);
        world.pause(|_| ());
    });
    drop(outlives);
    let stragglers = world.vm().stragglers.lock().unwrap();
    let names: Vec<_> = stragglers[0].late.locks.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["its own"]);
}

#[test]
fn durations_are_counted_by_call_site_and_plausible() {
    type Vm = Watched<true>;
    let world = World::new(Vm::default());
    let (short, long) = (line!() + 5, line!() + 8);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            for _ in 0..1000 {
                mutator.foreign_call().run(|| ());
            }
            for _ in 0..3 {
                mutator.foreign_call().run(|| thread::sleep(Duration::from_millis(20)));
            }
            // One that ends by a panic counts too.
            let panicking = || mutator.foreign_call().run(|| crate::plain::panic_quietly(1));
            assert_eq!(crate::plain::number(panicking), 1);
        });
    });
    let timings = world.timings();
    let of = |line: u32| -> &Histogram {
        let found = timings.in_foreign.iter().find(|(site, _)| here(file!(), line)(site));
        &found.unwrap_or_else(|| panic!("no call at line {line}: {timings:?}")).1
    };
    assert_eq!((of(short).count(), of(long).count(), timings.in_foreign.len()), (1000, 3, 3));
    assert!(of(short).quantile(0.5) < Duration::from_millis(1), "{:?}", of(short));
    assert!(of(long).quantile(0.0) >= Duration::from_millis(20), "{:?}", of(long));
    assert!(of(long).total() >= Duration::from_millis(60) && of(long).longest() < Duration::from_secs(20));
    assert!(here(file!(), long)(&timings.in_foreign[0].0), "longest total first");

    // A mutator that polls 20 ms after it was asked.
    let steps = Steps::new();
    let poll = line!() + 7;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            steps.reach(1);
            steps.wait(2);
            thread::sleep(Duration::from_millis(20));
            mutator.poll();
        });
        steps.wait(1);
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(5));
            steps.reach(2);
        });
        world.pause(|_| ());
    });
    let to_stop = world.timings().to_stop;
    let (_, stop) =
        to_stop.iter().find(|(site, _)| here(file!(), poll)(site)).expect("it stopped at its poll");
    assert_eq!(stop.count(), 1);
    assert!(stop.longest() >= Duration::from_millis(10), "{stop:?}");
}

#[test]
fn a_vm_that_is_not_timed_counts_nothing() {
    let world = World::new(Watched::<false>::default());
    let mut mutator = world.attach().unwrap();
    mutator.foreign_call().run(|| ());
    mutator.pause(|_| ());
    let timings = world.timings();
    assert_eq!((timings.in_foreign.len(), timings.to_stop.len()), (0, 0));
}
