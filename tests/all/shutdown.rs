//! The end of a world: who is waited for and how long, who is told, and what becomes of the others.

use crate::plain::{Steps, for_each_strategy, message};
use core::ffi::c_int;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use core::time::Duration;
use reentry::{
    AttachError, Capture, Crossing, FenceStrategy, Mutator, Report, RootVisitor, Segment, StackScanner,
    Stragglers, Thrown, UpcallClosure, UpcallRefused, Vm, World,
};
use reentry_foreign::{foreign_call_back_last, foreign_meet};
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

/// A VM whose exception says that the world has ended, and that counts its hooks as a global lock would.
#[derive(Default)]
struct Ending {
    reports: Mutex<Vec<String>>,
    /// The refusals it has made exceptions of.
    refused: Mutex<Vec<String>>,
    /// Entries of managed code less departures, the base activation of an attached thread not counted.
    balance: AtomicI64,
}

#[derive(PartialEq, Eq, Debug)]
struct Ended;

impl Vm for Ending {
    type Ref = usize;
    type Local = ();
    type Exception = Ended;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn entering_managed(&self, _: Crossing) {
        self.balance.fetch_add(1, Ordering::Relaxed);
    }

    fn leaving_managed(&self, _: Crossing) {
        self.balance.fetch_sub(1, Ordering::Relaxed);
    }

    fn exception_for(&self, refused: &UpcallRefused) -> Option<Ended> {
        self.refused.lock().unwrap().push(refused.to_string());
        matches!(refused, UpcallRefused::WorldEnded { .. }).then_some(Ended)
    }

    fn report(&self, report: &Report<'_>) {
        self.reports.lock().unwrap().push(report.to_string());
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Ending {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

fn world(fence: FenceStrategy) -> World<Ending> {
    World::<Ending>::builder().fence(fence).build(Ending::default())
}

/// So long at most for those that do leave.
const LONG: Duration = Duration::from_secs(60);
/// So long for those that do not.
const SHORT: Duration = Duration::from_millis(40);

#[test]
fn a_shutdown_waits_for_those_who_leave_and_lets_nobody_in() {
    for_each_strategy(|fence| {
        let world = world(fence);
        let (steps, left) = (Steps::new(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                // SAFETY: C touches the word alone, which lives.
                // SAFETY: C touches the word alone, which lives.
                mutator.foreign_call().run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
                mutator.poll();
                left.store(true, Ordering::Relaxed);
            });
            steps.wait(1);
            scope.spawn(|| {
                while !world.is_shut_down() {
                    thread::yield_now();
                }
                assert_eq!(world.attach().unwrap_err(), AttachError::Shutdown);
                thread::sleep(SHORT);
                steps.reach(2);
            });
            assert_eq!(world.shutdown_within(LONG, Stragglers::Fail).len(), 0);
            assert!(left.load(Ordering::Relaxed), "it was waited for");
            assert_eq!(world.attached(), 0);
        });
    });
}

#[test]
fn a_shutdown_waits_no_longer_than_it_was_told_and_says_who_is_left_and_where() {
    for_each_strategy(|fence| {
        let world = world(fence);
        let (steps, id) = (Steps::new(), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                id.store(mutator.id(), Ordering::Relaxed);
                // SAFETY: C touches the word alone, which lives.
                let outcome = mutator.foreign_call().try_run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
                assert_eq!(outcome, Err(Ended));
            });
            let line = line!() - 3;
            steps.wait(1);
            let began = Instant::now();
            let late = world.shutdown_within(SHORT, Stragglers::Fail);
            let took = began.elapsed();
            assert!(took >= SHORT && took < LONG, "{took:?}");
            let [straggler] = &late[..] else { panic!("one is left: {late:?}") };
            assert_eq!(straggler.mutator, id.load(Ordering::Relaxed));
            let sites: Vec<_> = straggler.call_sites.iter().map(|site| (site.file(), site.line())).collect();
            assert_eq!(sites, [(file!(), line)]);
            assert!(straggler.waited >= SHORT);
            steps.reach(2);
        });
        assert_eq!((world.attached(), world.vm().balance.load(Ordering::Relaxed)), (0, 0));
    });
}

#[test]
fn a_shutdown_makes_interruptible_calls_return() {
    for_each_strategy(|fence| {
        let world = world(fence);
        let (steps, stop) = (Steps::new(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let ask = || stop.store(true, Ordering::Relaxed);
                mutator.foreign_call().interruptible(&ask).run(|| {
                    steps.reach(1);
                    while !stop.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                });
            });
            steps.wait(1);
            assert_eq!(world.shutdown_within(LONG, Stragglers::Park).len(), 0);
        });
    });
}

/// A thread whose own mutator is managed may end the world when it is the last, whatever pause another thread asks for meanwhile: it must not wait for that.
#[test]
fn the_last_mutator_ends_the_world_while_pauses_are_asked_for() {
    for_each_strategy(|fence| {
        for _ in 0..200 {
            let world = world(fence);
            let (pausing, done) = (Steps::new(), AtomicBool::new(false));
            thread::scope(|scope| {
                let mut mutator = world.attach().unwrap();
                scope.spawn(|| {
                    pausing.reach(1);
                    while !done.load(Ordering::Relaxed) {
                        world.pause(|_| ());
                    }
                });
                pausing.wait(1);
                assert_eq!(world.shutdown_within(LONG, Stragglers::Fail).len(), 0);
                done.store(true, Ordering::Relaxed);
                mutator.poll();
                mutator.foreign_call().run(|| ());
            });
        }
    });
}

#[test]
fn a_managed_thread_cannot_wait_for_others_and_is_told_so() {
    let world = world(FenceStrategy::probe());
    let steps = Steps::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            // SAFETY: C touches the word alone, which lives.
            // SAFETY: C touches the word alone, which lives.
            mutator.foreign_call().run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
        });
        steps.wait(1);
        let mut mutator = world.attach().unwrap();
        let text = message(|| world.shutdown_within(LONG, Stragglers::Fail));
        assert!(text.contains("use `ForeignCall::run`") && text.contains(file!()), "{text}");
        steps.reach(2);
        assert_eq!(mutator.foreign_call().run(|| world.shutdown_within(LONG, Stragglers::Fail)).len(), 0);
        mutator.poll();
    });
    let text = message(|| world.pause(|_| world.shutdown_within(SHORT, Stragglers::Fail)));
    assert!(text.contains("would wait for a pause that this thread holds itself"), "{text}");
}

/// Each way a straggler can be told that it is one. It is told once; then it cleans up, with calls and polls that work.
#[test]
fn a_straggler_is_told_once_by_its_next_call_poll_or_pause_and_can_clean_up() {
    type Way = fn(&mut Mutator<Ending>, &Steps);
    /// What unwinds is the VM's exception, made of the refusal, which names the call site.
    fn told(mutator: &mut Mutator<Ending>, f: impl FnOnce(&mut Mutator<Ending>)) {
        let payload = catch_unwind(AssertUnwindSafe(|| f(mutator))).expect_err("it is told");
        assert!(payload.is::<Thrown<Ended>>());
        let refused = mutator.vm().refused.lock().unwrap().pop().expect("the VM was asked");
        assert!(
            refused.contains("the world was shut down, and did not wait for the foreign call or poll at"),
            "{refused}"
        );
        assert!(refused.contains(file!()), "{refused}");
    }
    /// Becomes a straggler: in managed code, which neither polls nor crosses.
    fn fall_behind(steps: &Steps) {
        steps.reach(1);
        steps.wait(2);
    }
    fn by_run(mutator: &mut Mutator<Ending>, steps: &Steps) {
        told(mutator, |mutator| {
            // SAFETY: C touches the word alone, which lives.
            mutator.foreign_call().run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
        });
    }
    fn by_try_run(mutator: &mut Mutator<Ending>, steps: &Steps) {
        fall_behind(steps);
        assert_eq!(mutator.foreign_call().try_run(|| ()), Err(Ended));
    }
    fn by_poll(mutator: &mut Mutator<Ending>, steps: &Steps) {
        fall_behind(steps);
        told(mutator, |mutator| mutator.poll());
    }
    fn by_pause(mutator: &mut Mutator<Ending>, steps: &Steps) {
        fall_behind(steps);
        let ran = AtomicBool::new(false);
        told(mutator, |mutator| mutator.pause(|_| ran.store(true, Ordering::Relaxed)));
        assert!(ran.load(Ordering::Relaxed), "the pause took place");
    }
    fn by_guard(mutator: &mut Mutator<Ending>, steps: &Steps) {
        let mut call = mutator.foreign_call();
        // SAFETY: no managed code runs until the guard is dropped, here.
        let foreign = unsafe { call.enter() };
        // SAFETY: C touches the word alone, which lives.
        unsafe { foreign_meet(steps.word(), 1, 2) };
        assert_eq!(foreign.leave(), Err(Ended));
    }
    for_each_strategy(|fence| {
        for way in [by_run as Way, by_try_run, by_poll, by_pause, by_guard] {
            let world = world(fence);
            let steps = Steps::new();
            thread::scope(|scope| {
                scope.spawn(|| {
                    let mut mutator = world.attach().unwrap();
                    way(&mut mutator, &steps);
                    mutator.poll();
                    assert_eq!(mutator.foreign_call().try_run(|| 5), Ok(5));
                    assert_eq!(mutator.pause(|stopped| stopped.mutators().count()), 1);
                });
                steps.wait(1);
                assert_eq!(world.shutdown_within(SHORT, Stragglers::Fail).len(), 1);
                steps.reach(2);
            });
            assert_eq!((world.attached(), world.vm().balance.load(Ordering::Relaxed)), (0, 0));
        }
    });
}

/// An upcall runs no managed code in a world that has ended. What the hooks took for it they give back.
#[test]
fn an_upcall_of_a_straggler_gets_the_fallback_value_and_is_reported() {
    for_each_strategy(|fence| {
        let world = world(fence);
        let steps = Steps::new();
        let upcall = UpcallClosure::with_fallback(&world, |_: &mut Mutator<Ending>, x: c_int| x, -1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let (function, data) = (upcall.data_last(), upcall.data());
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                let call_back = |x| unsafe { foreign_call_back_last(function, x, data) };
                let outcome = mutator.foreign_call().try_run(|| {
                    assert_eq!(call_back(3), 3);
                    // SAFETY: C touches the word alone, which lives.
                    unsafe { foreign_meet(steps.word(), 1, 2) };
                    assert_eq!([0, 1, 2].map(call_back), [-1; 3], "{fence:?}");
                    assert_eq!(world.vm().balance.load(Ordering::Relaxed), 0, "as in any foreign call");
                });
                assert_eq!(outcome, Err(Ended));
                // Told, it may use upcalls to clean up.
                assert_eq!(mutator.foreign_call().try_run(|| call_back(4)), Ok(4));
            });
            steps.wait(1);
            assert_eq!(world.shutdown_within(SHORT, Stragglers::Fail).len(), 1);
            steps.reach(2);
        });
        let reports = world.vm().reports.lock().unwrap();
        assert_eq!(reports.len(), 3, "{reports:?}");
        assert!(reports.iter().all(|report| report.contains("called in after shutdown")), "{reports:?}");
    });
}

/// Threads that are parked are for a process that ends: these two are left behind when the test is over.
#[test]
fn a_straggler_that_is_parked_never_comes_back_and_delays_no_pause() {
    fn leak<T>(value: T) -> &'static T {
        Box::leak(Box::new(value))
    }
    for_each_strategy(|fence| {
        let world = leak(world(fence));
        let (steps, polling) = (leak(Steps::new()), leak(Steps::new()));
        let back = leak(AtomicU64::new(0));
        let upcall = leak(UpcallClosure::with_fallback(world, |_: &mut Mutator<Ending>, x: c_int| x, -1));
        thread::spawn(move || {
            let mut mutator = world.attach().unwrap();
            mutator.foreign_call().run(|| {
                // SAFETY: C touches the word alone, which lives.
                unsafe { foreign_meet(steps.word(), 1, 2) };
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                let result = unsafe { foreign_call_back_last(upcall.data_last(), 5, upcall.data()) };
                assert_eq!(result, -1, "an upcall does not wait: C may hold a lock that others want");
                steps.reach(3);
            });
            back.fetch_add(1, Ordering::Relaxed);
        });
        thread::spawn(move || {
            let mut mutator = world.attach().unwrap();
            polling.reach(1);
            polling.wait(2);
            polling.reach(3);
            mutator.poll();
            back.fetch_add(1, Ordering::Relaxed);
        });
        steps.wait(1);
        polling.wait(1);
        assert_eq!(world.shutdown_within(SHORT, Stragglers::Park).len(), 2);
        steps.reach(2);
        polling.reach(2);
        steps.wait(3);
        polling.wait(3);
        for _ in 0..20 {
            assert_eq!(
                world.pause(|stopped| stopped.mutators().count()),
                2,
                "both stay attached, with their roots"
            );
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(back.load(Ordering::Relaxed), 0);
        assert_eq!(world.vm().reports.lock().unwrap().len(), 1, "the upcall");
        let parked = world.vm().balance.load(Ordering::Relaxed);
        assert_eq!(parked, 0, "what the hooks took for the two, a global lock, nobody waits for");
    });
}
