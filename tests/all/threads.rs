//! Threads and pauses, over both fence strategies: who a pause waits for, who waits for a pause, and what errors do to either.
//!
//! A test that waits for another thread does so by [`Steps`], never by time alone. Where a test sleeps inside a pause, it gives a thread that should wait
//! the chance to do wrong; what it asserts does not depend on how long.

use crate::emulator::EMULATED;
use crate::plain::{Plain, Steps, Told, for_each_strategy, number, panic_quietly, told};
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use reentry::faults::Faults;
use reentry::testkit::{Correct, FaultSet};
use reentry::{
    Attachment, Errno, FenceStrategy, FrameKind, Mutator, StackScanner, UpcallClosure, World, layout,
    upcall_fn, upcall_fn_or,
};
use reentry_foreign::{
    foreign_add, foreign_call_back, foreign_call_back_and_clean_up, foreign_call_back_last,
    foreign_call_back_then_fail, foreign_call_back_twice, foreign_count_until, foreign_fail, foreign_meet,
    foreign_meet_and_fail, foreign_threads,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::thread::{self, ThreadId};
use std::time::Instant;

type Vm = Plain<0>;

/// Gives a thread that should be waiting the chance not to.
fn linger() {
    thread::sleep(Duration::from_millis(5));
}

/// The vocabulary of faults used here, each a type.
enum NoWaitOnReturn {}
// SAFETY: the test that uses it runs no heap.
unsafe impl FaultSet for NoWaitOnReturn {
    const FAULTS: Faults = Faults::NO_WAIT_ON_RETURN;
}

enum NoWaitOnUpcall {}
// SAFETY: the test that uses it runs no heap.
unsafe impl FaultSet for NoWaitOnUpcall {
    const FAULTS: Faults = Faults::NO_WAIT_ON_UPCALL;
}

/// Go's Test1560 and the fast half of every pause: the thread in C is not waited for, and is seen with its call's record.
#[test]
fn a_foreign_mutator_does_not_delay_a_pause() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let steps = Steps::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let mut call = mutator.foreign_call();
                call.root(17);
                // SAFETY: C touches the word alone, which lives.
                call.run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
            });
            steps.wait(1);
            for _ in 0..100 {
                world.pause(|stopped| {
                    let mutators: Vec<_> = stopped.mutators().collect();
                    assert_eq!(mutators.len(), 1);
                    let kinds: Vec<_> =
                        mutators[0].activations().map(|activation| activation.kind()).collect();
                    assert_eq!(kinds, [FrameKind::ForeignCall]);
                    assert_eq!(told(&mutators[0]).1.slots, [17]);
                    assert_eq!(steps.now(), 1, "C is where it was");
                });
            }
            steps.reach(2);
        });
        assert_eq!(world.attached(), 0);
    });
}

/// What a thread that comes back during a pause did while the pause lasted, and whether the pause was over when it was managed.
fn return_during_a_pause<F: FaultSet>(fence: FenceStrategy, patience: Duration) -> (bool, bool) {
    let world = Plain::<0, F>::world(fence);
    let steps = Steps::new();
    let (resumed, managed) = (AtomicBool::new(false), Steps::new());
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            // SAFETY: C touches the word alone, which lives.
            mutator.foreign_call().run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
            let waited = resumed.load(Ordering::Acquire);
            managed.reach(1);
            waited
        });
        steps.wait(1);
        let ran = world.pause(|_| {
            steps.reach(2);
            let ran = managed.wait_for(1, patience);
            resumed.store(true, Ordering::Release);
            ran
        });
        (ran, thread.join().unwrap())
    })
}

#[test]
fn a_mutator_that_returns_during_a_pause_waits_for_its_end() {
    for_each_strategy(|fence| {
        for _ in 0..5 {
            let (ran, waited) = return_during_a_pause::<Correct>(fence, Duration::from_millis(5));
            assert!(!ran, "{fence:?}: it was managed during the pause");
            assert!(waited, "{fence:?}: the pause was not over");
        }
    });
}

/// The twin with the protection off: the test above has teeth.
#[test]
fn without_the_wait_on_return_a_mutator_runs_through_a_pause() {
    for_each_strategy(|fence| {
        let (ran, waited) = return_during_a_pause::<NoWaitOnReturn>(fence, Duration::from_secs(60));
        assert!(ran && !waited, "{fence:?}");
    });
}

/// Whether an upcall ran while a pause was in force that began before it.
fn call_in_during_a_pause<F: FaultSet>(fence: FenceStrategy, patience: Duration) -> (bool, bool) {
    let world = Plain::<1, F>::world(fence);
    let steps = Steps::new();
    let (resumed, ran, waited) = (AtomicBool::new(false), Steps::new(), AtomicBool::new(false));
    let body = UpcallClosure::new(&world, |_: &mut Mutator<Plain<1, F>>, x: c_int| {
        waited.store(resumed.load(Ordering::Acquire), Ordering::Release);
        ran.reach(1);
        x
    });
    let ran_in_pause = thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            let (function, data) = (body.data_last(), body.data());
            mutator.foreign_call().run(|| {
                // SAFETY: C touches the word alone, which lives.
                unsafe { foreign_meet(steps.word(), 1, 2) };
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                unsafe { foreign_call_back_last(function, 1, data) }
            });
        });
        steps.wait(1);
        world.pause(|_| {
            steps.reach(2);
            let ran = ran.wait_for(1, patience);
            resumed.store(true, Ordering::Release);
            ran
        })
    });
    (ran_in_pause, waited.load(Ordering::Acquire))
}

#[test]
fn an_upcall_during_a_pause_waits_for_its_end() {
    for_each_strategy(|fence| {
        for _ in 0..5 {
            let (ran, waited) = call_in_during_a_pause::<Correct>(fence, Duration::from_millis(5));
            assert!(!ran, "{fence:?}: it ran during the pause");
            assert!(waited, "{fence:?}: the pause was not over");
        }
    });
}

/// The twin with the protection off.
#[test]
fn without_the_wait_on_entry_an_upcall_runs_through_a_pause() {
    for_each_strategy(|fence| {
        let (ran, waited) = call_in_during_a_pause::<NoWaitOnUpcall>(fence, Duration::from_secs(60));
        assert!(ran && !waited, "{fence:?}");
    });
}

#[test]
fn a_mutator_that_polls_during_a_pause_stops() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let (counter, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    mutator.poll();
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut last = 0;
            for _ in 0..10 {
                while counter.load(Ordering::Relaxed) == last {
                    thread::yield_now();
                }
                last = world.pause(|stopped| {
                    let before = counter.load(Ordering::Relaxed);
                    linger();
                    assert_eq!(counter.load(Ordering::Relaxed), before, "{fence:?}: it went on");
                    for mutator in stopped.mutators() {
                        let kinds: Vec<_> =
                            mutator.activations().map(|activation| activation.kind()).collect();
                        assert_eq!(kinds, [FrameKind::Safepoint]);
                    }
                    before
                });
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

/// Go's Test1560: each side waits for the other to move, and the managed one neither polls nor crosses meanwhile.
#[test]
fn foreign_and_managed_code_of_one_world_run_in_parallel() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let steps = Steps::new();
        let (counter, stop) = (AtomicU64::new(0), Steps::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                mutator.foreign_call().run(|| {
                    for turn in 0..50 {
                        // SAFETY: C touches the word alone, which lives.
                        unsafe { foreign_meet(steps.word(), 2 * turn + 1, 2 * turn + 2) };
                    }
                    // SAFETY: C touches the two words alone, which live.
                    unsafe { foreign_count_until(&raw const counter, stop.word(), 1) };
                });
            });
            let mut mutator = world.attach().unwrap();
            for turn in 0..50 {
                steps.wait(2 * turn + 1);
                steps.reach(2 * turn + 2);
            }
            while counter.load(Ordering::Relaxed) < 1000 {
                core::hint::spin_loop();
            }
            mutator.poll();
            stop.reach(1);
        });
        assert_eq!(world.vm().take_reports(), [""; 0]);
    });
}

/// Go's TestCthread: each thread's error ends in its own upcall, is told of once, and the thread goes on calling.
#[test]
fn six_foreign_threads_each_recover_from_an_error_of_one_of_their_upcalls() {
    type Vm = Plain<15>;
    fn body(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
        assert_eq!(mutator.depth(), 1);
        if x == 3 {
            std::panic::resume_unwind(Box::new("upcall 3 failed"));
        }
        x
    }
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        world.adopt_foreign_threads();
        let mut mutator = world.attach().unwrap();
        let callback = upcall_fn_or(body, || 1000);
        // SAFETY: the callback is an upcall of a world that adopts foreign threads.
        let sum = mutator.foreign_call().run(|| unsafe { foreign_threads(6, 10, callback) });
        assert_eq!(sum, 6 * (45 - 3 + 1000));
        let reports = world.vm().take_reports();
        assert_eq!(reports.len(), 6, "{reports:#?}");
        for report in reports {
            assert!(report.contains("upcall 3 failed"), "{report}");
        }
        assert_eq!(world.attached(), 1, "only this thread is left");
    });
}

/// Go's EnsureBindM and EnsureDropM.
#[test]
fn a_foreign_thread_keeps_its_mutator_and_its_record_is_used_again_after_it_has_gone() {
    type Vm = Plain<16>;
    static SEEN: Mutex<BTreeMap<u64, BTreeSet<(usize, String)>>> = Mutex::new(BTreeMap::new());
    fn body(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
        let thread: ThreadId = thread::current().id();
        let entry = (mutator.record_address(), format!("{thread:?}"));
        SEEN.lock().unwrap().entry(mutator.id()).or_default().insert(entry);
        x
    }
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        world.adopt_foreign_threads();
        SEEN.lock().unwrap().clear();
        for round in 1..=3 {
            // SAFETY: the callback is an upcall of a world that adopts foreign threads.
            assert_eq!(unsafe { foreign_threads(1, 10, upcall_fn(body)) }, 45);
            assert_eq!(world.attached(), 0, "released at thread exit");
            assert_eq!(
                SEEN.lock().unwrap().len(),
                round,
                "a new mutator for each thread, one for all its upcalls"
            );
        }
        let seen = core::mem::take(&mut *SEEN.lock().unwrap());
        assert!(seen.values().all(|places| places.len() == 1), "{seen:?}");
        let records: BTreeSet<_> = seen.values().flatten().map(|(record, _)| *record).collect();
        assert_eq!(records.len(), 1, "one record served all three threads: {seen:?}");
        // SAFETY: as above.
        assert_eq!(unsafe { foreign_threads(8, 20, upcall_fn(body)) }, 8 * 190);
        let seen = SEEN.lock().unwrap();
        assert_eq!(seen.len(), 8);
        assert!(seen.values().all(|places| places.len() == 1), "{seen:?}");
    });
}

/// Go's TestBlocking: the upcall waits as all managed code waits for another thread, in a foreign call.
#[test]
fn an_upcall_that_waits_for_another_mutator_makes_progress_and_the_world_can_pause() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let steps = Steps::new();
        let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, x: c_int| {
            let mut call = mutator.foreign_call();
            call.root(2);
            // SAFETY: C touches the word alone, which lives.
            call.run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
            x + 1
        });
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let (function, data) = (body.data_last(), body.data());
                let mut call = mutator.foreign_call();
                call.root(1);
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                call.run(|| unsafe { foreign_call_back_last(function, 1, data) })
            });
            let mut mutator = world.attach().unwrap();
            while steps.now() < 1 {
                mutator.poll();
                thread::yield_now();
            }
            let see = |stopped: &reentry::StoppedWorld<'_, Vm>| {
                let other = stopped.mutators().find(|other| other.activations().count() == 2);
                told(&other.expect("the waiting mutator is in two calls")).1.slots
            };
            assert_eq!(mutator.pause(see), [2, 1], "newest first");
            assert_eq!(mutator.foreign_call().run(|| world.pause(see)), [2, 1]);
            steps.reach(2);
            assert_eq!(waiting.join().unwrap(), 2);
        });
    });
}

/// Attaching, detaching and thread exit race with pauses. In each pause the set of mutators stands still.
#[test]
fn the_set_of_mutators_does_not_change_within_a_pause() {
    type Vm = Plain<20>;
    fn body(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
        mutator.poll();
        x
    }
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        world.adopt_foreign_threads();
        let (stop, attached) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let mut mutator = world.attach().unwrap();
                        mutator.poll();
                        attached.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: the callback is an upcall of a world that adopts foreign threads.
                    assert_eq!(unsafe { foreign_threads(2, 3, upcall_fn(body)) }, 6);
                }
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    thread::scope(|inner| {
                        inner.spawn(|| body_on_a_thread(&world));
                    });
                }
            });
            let mut sizes = BTreeSet::new();
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(400) || sizes.len() < 2 {
                world.pause(|stopped| {
                    let ids = || stopped.mutators().map(|mutator| mutator.id()).collect::<BTreeSet<_>>();
                    let (before, count) = (ids(), world.attached());
                    thread::yield_now();
                    assert_eq!(ids(), before);
                    assert_eq!((world.attached(), before.len()), (count, count), "{fence:?}");
                    sizes.insert(count);
                });
                thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(attached.load(Ordering::Relaxed) > 0);
        assert_eq!(world.attached(), 0);
        assert_eq!(world.pause(|stopped| stopped.mutators().count()), 0);
        assert_eq!(world.vm().take_reports(), [""; 0]);
    });

    fn body_on_a_thread(world: &World<Vm>) {
        let mut mutator = world.attach().unwrap();
        mutator.foreign_call().run(thread::yield_now);
    }
}

/// Pauses a world of `foreign` mutators in C and `polling` ones that poll, `rounds` times. Returns the shortest pause.
fn pause_many(fence: FenceStrategy, foreign: usize, polling: usize, rounds: u32) -> Duration {
    let world = Vm::world(fence);
    let (stop, inside, polls) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU64::new(0));
    let (asleep, wake) = (Mutex::new(true), std::sync::Condvar::new());
    thread::scope(|scope| {
        let small = || thread::Builder::new().stack_size(64 * 1024);
        for index in 0..foreign {
            let (world, inside, asleep, wake) = (&world, &inside, &asleep, &wake);
            let body = move || {
                let mut mutator = world.attach().unwrap();
                let mut call = mutator.foreign_call();
                call.root(index);
                call.run(|| {
                    inside.fetch_add(1, Ordering::Relaxed);
                    drop(wake.wait_while(asleep.lock().unwrap(), |asleep| *asleep).unwrap());
                });
            };
            small().spawn_scoped(scope, body).unwrap();
        }
        for _ in 0..polling {
            let body = || {
                let mut mutator = world.attach().unwrap();
                inside.fetch_add(1, Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    mutator.poll();
                    polls.fetch_add(1, Ordering::Relaxed);
                    thread::yield_now();
                }
            };
            small().spawn_scoped(scope, body).unwrap();
        }
        while (inside.load(Ordering::Relaxed) as usize) < foreign + polling {
            thread::yield_now();
        }
        let mut best = Duration::MAX;
        for round in 0..rounds {
            let start = Instant::now();
            let count = world.pause(|stopped| stopped.mutators().count());
            best = best.min(start.elapsed());
            assert_eq!(count, foreign + polling);
            if round.is_multiple_of(100) {
                let mut told = Told::default();
                world.pause(|stopped| stopped.enumerate(&mut told));
                told.slots.sort_unstable();
                assert!(
                    told.slots.iter().copied().eq(0..foreign),
                    "every root of every foreign mutator, once"
                );
            }
        }
        assert_eq!(polling == 0, polls.load(Ordering::Relaxed) == 0, "the managed ones made progress");
        stop.store(true, Ordering::Relaxed);
        *asleep.lock().unwrap() = false;
        wake.notify_all();
        best
    })
}

#[test]
fn a_thousand_mutators_stop_and_resume_a_thousand_times_and_none_is_lost() {
    for_each_strategy(|fence| {
        pause_many(fence, 990, 10, if EMULATED { 200 } else { 1000 });
    });
}

/// Ten times the mutators may not cost a hundred times as much. The shortest of many pauses, so that a busy machine does not matter.
#[test]
fn the_cost_of_a_pause_grows_in_step_with_the_number_of_mutators() {
    for_each_strategy(|fence| {
        let (few, many) = (pause_many(fence, 99, 0, 300), pause_many(fence, 990, 0, 300));
        let limit = 40 * few + Duration::from_micros(100);
        assert!(many < limit, "{fence:?}: {few:?} for 99, {many:?} for 990");
    });
}

/// The thread is managed in one world for all the time it is foreign in the other: each pause concerns its own world.
fn pausing_one_world_does_not_wait_for_the_other<A, B>(a: &World<A>, b: &World<B>)
where
    A: StackScanner<Ref = usize>,
    B: StackScanner<Ref = usize>,
{
    let steps = Steps::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut in_a = a.attach().unwrap();
            let mut in_b = b.attach().unwrap();
            let mut call = in_a.foreign_call();
            call.root(0xA);
            call.run(|| {
                steps.reach(1);
                steps.wait(2);
                in_b.poll();
                let mut call = in_b.foreign_call();
                call.root(0xB);
                // SAFETY: C touches the word alone, which lives.
                call.run(|| unsafe { foreign_meet(steps.word(), 3, 4) });
            });
        });
        steps.wait(1);
        let mut told = Told::default();
        a.pause(|stopped| stopped.enumerate(&mut told));
        assert_eq!((steps.now(), told.slots), (1, vec![0xA]), "managed in B all the while");
        steps.reach(2);
        steps.wait(3);
        let (mut in_a, mut in_b) = (Told::default(), Told::default());
        a.pause(|stopped| {
            b.pause(|stopped| stopped.enumerate(&mut in_b));
            stopped.enumerate(&mut in_a);
        });
        assert_eq!((in_a.slots, in_b.slots), (vec![0xA], vec![0xB]), "each sees its own");
        steps.reach(4);
    });
}

#[test]
fn pausing_one_of_two_worlds_does_not_wait_for_a_thread_managed_in_the_other() {
    for_each_strategy(|fence| {
        pausing_one_world_does_not_wait_for_the_other(
            &Plain::<221>::world(fence),
            &Plain::<222>::world(fence),
        );
        pausing_one_world_does_not_wait_for_the_other(&Vm::world(fence), &Vm::world(fence));
    });
}

/// What each of two worlds sees of a thread, from inside its innermost call: how many activations, and which roots.
type Views = Mutex<Vec<[(usize, Vec<usize>); 2]>>;

/// A calls C, which calls B, which calls C, which calls A, and so on `depth` times; both are looked at from the innermost call.
fn nest<const A: u32, const B: u32>(
    a: &World<Plain<A>>,
    b: &World<Plain<B>>,
    depth: usize,
) -> [(usize, Vec<usize>); 2] {
    struct Tower<const A: u32, const B: u32> {
        a: World<Plain<A>>,
        b: World<Plain<B>>,
        depth: usize,
        enter_a: Mutex<Option<Entry>>,
        enter_b: Mutex<Option<Entry>>,
        views: Views,
    }
    #[derive(Clone, Copy)]
    struct Entry(unsafe extern "C" fn(c_int, *mut c_void) -> c_int, *mut c_void);
    // SAFETY: the closure behind the pointer is `Sync`, and outlives the calls (`nest` owns it).
    unsafe impl Send for Entry {}

    fn look<const T: u32>(world: &World<Plain<T>>) -> (usize, Vec<usize>) {
        world.pause(|stopped| {
            let (mut activations, mut roots) = (0, Vec::new());
            for mutator in stopped.mutators() {
                let (count, told) = told(&mutator);
                activations += count;
                roots.extend(told.slots);
            }
            (activations, roots)
        })
    }

    impl<const A: u32, const B: u32> Tower<A, B> {
        fn floor<V: StackScanner<Ref = usize>>(
            &self,
            mutator: &mut Mutator<V>,
            level: usize,
            next: &Mutex<Option<Entry>>,
        ) {
            let mut call = mutator.foreign_call();
            call.root(level);
            call.run(|| {
                if level == self.depth {
                    self.views.lock().unwrap().push([look(&self.a), look(&self.b)]);
                } else {
                    let Entry(function, data) = next.lock().unwrap().expect("set before the first call");
                    // SAFETY: the data pointer is the closure's own, and the closure lives until `nest` returns.
                    unsafe { foreign_call_back_last(function, level as c_int + 1, data) };
                }
            });
        }
    }

    let tower = Tower {
        a: a.clone(),
        b: b.clone(),
        depth,
        enter_a: Mutex::new(None),
        enter_b: Mutex::new(None),
        views: Views::default(),
    };
    let in_a = UpcallClosure::new(a, |mutator: &mut Mutator<Plain<A>>, level: c_int| {
        tower.floor(mutator, level as usize, &tower.enter_b);
        level
    });
    let in_b = UpcallClosure::new(b, |mutator: &mut Mutator<Plain<B>>, level: c_int| {
        tower.floor(mutator, level as usize, &tower.enter_a);
        level
    });
    *tower.enter_a.lock().unwrap() = Some(Entry(in_a.data_last(), in_a.data()));
    *tower.enter_b.lock().unwrap() = Some(Entry(in_b.data_last(), in_b.data()));
    let mut mutator = a.attach().unwrap();
    tower.floor(&mut mutator, 0, &tower.enter_b);
    drop(mutator);
    b.detach_foreign_thread().unwrap();
    let views = core::mem::take(&mut *tower.views.lock().unwrap());
    let [view] = <[_; 1]>::try_from(views).expect("the innermost call looks once");
    view
}

/// The thread belongs to A, and attaches itself to B when C calls into it. Even levels are A's, odd ones B's.
#[test]
fn two_worlds_nested_through_c_on_one_thread_each_see_their_own_segments() {
    for_each_strategy(|fence| {
        for depth in [1, 2, 3, 8] {
            let of =
                |parity: usize| (0..=depth).rev().filter(|level| level % 2 == parity).collect::<Vec<_>>();
            let (a, b) = (of(0), of(1));
            // B's oldest activation is the one of a foreign thread, with no frames of its own.
            let expected = [(a.len(), a), (b.len() + 1, b)];
            let (x, y) = (Plain::<223>::world(fence), Plain::<224>::world(fence));
            assert_eq!(nest(&x, &y, depth), expected, "different VM types, depth {depth}");
            assert_eq!((x.attached(), y.attached()), (0, 0));
            let (x, y) = (Vm::world(fence), Vm::world(fence));
            assert_eq!(nest(&x, &y, depth), expected, "one VM type, depth {depth}");
            assert_eq!((x.attached(), y.attached()), (0, 0));
        }
    });
}

/// Two worlds of one type on one thread: the function has no data to tell them apart, so the innermost foreign call does.
#[test]
fn a_plain_upcall_function_goes_to_the_world_whose_foreign_call_is_the_innermost() {
    #[inline(never)]
    fn in_call<R>(mutator: &mut Mutator<Which>, f: impl FnOnce() -> R) -> R {
        mutator.foreign_call().run(f)
    }
    for_each_strategy(|fence| {
        let (a, b) = (Which::world(fence), Which::world(fence));
        let (mut in_a, mut in_b) = (a.attach().unwrap(), b.attach().unwrap());
        in_call(&mut in_a, || assert_calls_back_into(&a));
        in_call(&mut in_b, || assert_calls_back_into(&b));
        in_call(&mut in_a, || {
            in_call(&mut in_b, || assert_calls_back_into(&b));
            assert_calls_back_into(&a);
        });
        in_call(&mut in_b, || {
            in_call(&mut in_a, || assert_calls_back_into(&a));
            assert_calls_back_into(&b);
        });
    });
}

/// The same with both calls made by one function. Optimised, they are made in one stack frame, and then the upcall aborts (`tests/aborts.rs`).
#[test]
#[cfg(debug_assertions)]
fn a_plain_upcall_function_goes_to_the_innermost_of_two_calls_made_by_one_function() {
    for_each_strategy(|fence| {
        let (a, b) = (Which::world(fence), Which::world(fence));
        let (mut in_a, mut in_b) = (a.attach().unwrap(), b.attach().unwrap());
        in_a.foreign_call().run(|| in_b.foreign_call().run(|| assert_calls_back_into(&b)));
        in_b.foreign_call().run(|| in_a.foreign_call().run(|| assert_calls_back_into(&a)));
    });
}

type Which = Plain<225>;

/// Calls a plain upcall function from C, and checks which world it ran in.
#[track_caller]
fn assert_calls_back_into(world: &World<Which>) {
    thread_local! { static RAN_IN: Cell<usize> = const { Cell::new(0) }; }
    fn body(mutator: &mut Mutator<Which>, x: c_int) -> c_int {
        RAN_IN.set(core::ptr::from_ref(mutator.vm()).addr());
        x
    }
    // SAFETY: the callback is an upcall, and this thread is in a foreign call.
    assert_eq!(unsafe { foreign_call_back(upcall_fn(body), 5) }, 5);
    assert_eq!(RAN_IN.get(), core::ptr::from_ref(world.vm()).addr(), "it ran in the other world");
}

/// Go's TestErrno. On the slow path the thread waits, in the C library, for the pause to end.
#[test]
fn errno_set_by_c_survives_the_way_back_also_through_a_pause() {
    fn through_a_pause<R: Send>(
        fence: FenceStrategy,
        call: impl Fn(&mut Attachment<Vm>, &Steps) -> R + Sync,
    ) -> R {
        let world = Vm::world(fence);
        let (steps, resumed) = (Steps::new(), AtomicBool::new(false));
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let result = call(&mut mutator, &steps);
                assert!(resumed.load(Ordering::Acquire), "it waited: the slow path was taken");
                result
            });
            steps.wait(1);
            world.pause(|_| {
                steps.reach(2);
                linger();
                resumed.store(true, Ordering::Release);
            });
            thread.join().unwrap()
        })
    }
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        // SAFETY: C touches errno alone.
        assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_fail(7) }), -1);
        assert_eq!(Errno::current(), Errno::from_raw(7));
        // SAFETY: as above.
        let failed = mutator.foreign_call().run_with_errno(|| unsafe { foreign_fail(8) });
        assert_eq!(failed, (-1, Errno::from_raw(8)));
        for error in 1..20 {
            let after = through_a_pause(fence, |mutator, steps| {
                // SAFETY: C touches the word, which lives, and errno.
                mutator.foreign_call().run(|| unsafe { foreign_meet_and_fail(steps.word(), 1, 2, error) });
                Errno::current()
            });
            assert_eq!(after, Errno::from_raw(error), "{fence:?}");
            let (result, errno) = through_a_pause(fence, |mutator, steps| {
                // SAFETY: as above.
                mutator
                    .foreign_call()
                    .run_with_errno(|| unsafe { foreign_meet_and_fail(steps.word(), 1, 2, error) })
            });
            assert_eq!((result, errno), (-1, Errno::from_raw(error)), "{fence:?}");
        }
    });
}

#[test]
fn errno_set_by_c_after_an_upcall_survives_the_way_back() {
    type Vm = Plain<23>;
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        // SAFETY: C touches errno alone.
        unsafe { foreign_fail(99) };
        x
    }
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    // SAFETY: the callback is an upcall, and this thread is in a foreign call.
    let failed = mutator
        .foreign_call()
        .run_with_errno(|| unsafe { foreign_call_back_then_fail(upcall_fn(body), 1, 12) });
    assert_eq!((failed, Errno::current()), ((-1, Errno::from_raw(12)), Errno::from_raw(12)));
}

/// The mutator is managed, in its base activation, and nothing of a call is left.
#[track_caller]
fn assert_nothing_is_left<const TAG: u32>(world: &World<Plain<TAG>>, mutator: &mut Mutator<Plain<TAG>>) {
    assert_eq!((mutator.depth(), world.attached()), (0, 1));
    mutator.poll();
    let seen = mutator.pause(|stopped| stopped.mutators().map(|mutator| told(&mutator)).collect::<Vec<_>>());
    assert_eq!(seen, [(1, Told::default())]);
    // SAFETY: C adds two numbers.
    assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_add(2, 3) }), 5);
}

/// Go's TestCallbackPanic and TestCallbackPanicLoop.
#[test]
fn a_panic_in_an_upcall_resumes_after_c_has_cleaned_up_with_the_fallback_value() {
    type Vm = Plain<25>;
    static ROUND: AtomicU32 = AtomicU32::new(0);
    fn body(mutator: &mut Mutator<Vm>, _: c_int) -> c_int {
        let mut call = mutator.foreign_call();
        call.root(3);
        call.copy([0_u64; 16]);
        call.run(|| ());
        panic_quietly(ROUND.load(Ordering::Relaxed))
    }
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let callback = upcall_fn_or(body, || -7);
        let record = mutator.record_address();
        for round in 0..if EMULATED { 2_000 } else { 10_000 } {
            ROUND.store(round, Ordering::Relaxed);
            let (mut cleaned_up, mut given) = (0, 0);
            let panicked_with = number(|| {
                let mut call = mutator.foreign_call();
                call.root(1);
                call.pin(2).unwrap();
                call.copy(4);
                call.run(|| {
                    // SAFETY: the callback is an upcall, and this thread is in a foreign call; `cleaned_up` lives.
                    given = unsafe { foreign_call_back_and_clean_up(callback, 1, &raw mut cleaned_up) };
                });
            });
            assert_eq!((panicked_with, cleaned_up, given), (round, 1, -7));
            if round % 1000 == 0 {
                assert_nothing_is_left(&world, &mut mutator);
            }
        }
        assert_nothing_is_left(&world, &mut mutator);
        assert_eq!(mutator.record_address(), record);
        assert_eq!(world.vm().take_reports(), [""; 0]);
    });
}

#[test]
fn the_second_panic_of_one_foreign_call_is_reported_and_the_first_resumes() {
    type Vm = Plain<251>;
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        std::panic::resume_unwind(Box::new(format!("upcall {x} failed")))
    }
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let mut cleaned_up = 0;
    let message = crate::plain::message(|| {
        // SAFETY: the callback is an upcall, and this thread is in a foreign call; `cleaned_up` lives.
        mutator
            .foreign_call()
            .upcalls_after_error()
            .run(|| unsafe { foreign_call_back_twice(upcall_fn(body), &raw mut cleaned_up) })
    });
    assert_eq!((message.as_str(), cleaned_up), ("upcall 1 failed", 2));
    let reports = world.vm().take_reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(reports[0].contains("upcall 2 failed"), "{reports:?}");
    assert_nothing_is_left(&world, &mut mutator);
}

#[test]
fn a_panic_of_the_closure_of_run_comes_back_managed_before_c_and_after_it() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        for before in [true, false] {
            let mut ran = 0;
            let panicked_with = number(|| {
                let mut call = mutator.foreign_call();
                call.root(1);
                call.run(|| {
                    if before {
                        panic_quietly(1);
                    }
                    // SAFETY: C adds two numbers.
                    ran = unsafe { foreign_add(1, 1) };
                    panic_quietly(2)
                })
            });
            assert_eq!((panicked_with, ran), if before { (1, 0) } else { (2, 2) });
            assert_nothing_is_left(&world, &mut mutator);
        }
    });
}

/// Two panics, one of an upcall and then one of the closure: the latter is under way and goes on; the former is told of.
#[test]
fn a_panic_of_the_closure_of_run_supersedes_the_one_an_upcall_left() {
    type Vm = Plain<252>;
    fn body(_: &mut Mutator<Vm>, _: c_int) -> c_int {
        std::panic::resume_unwind(Box::new("the upcall failed"))
    }
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let panicked_with = number(|| {
        mutator.foreign_call().run(|| {
            // SAFETY: the callback is an upcall, and this thread is in a foreign call.
            unsafe { foreign_call_back(upcall_fn(body), 1) };
            panic_quietly(5)
        })
    });
    assert_eq!(panicked_with, 5);
    let reports = world.vm().take_reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(reports[0].contains("the upcall failed"), "{reports:?}");
    assert_nothing_is_left(&world, &mut mutator);
}

/// The thread unwinds out of its foreign call while a pause is in force: it waits for the end of the pause, and then goes on unwinding.
#[test]
fn a_panic_during_a_pause_waits_for_its_end_and_goes_on() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let (steps, resumed) = (Steps::new(), AtomicBool::new(false));
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let panicked_with = number(|| {
                    mutator.foreign_call().run(|| {
                        // SAFETY: C touches the word alone, which lives.
                        unsafe { foreign_meet(steps.word(), 1, 2) };
                        panic_quietly(6)
                    })
                });
                assert!(resumed.load(Ordering::Acquire), "it waited");
                panicked_with
            });
            steps.wait(1);
            world.pause(|_| {
                steps.reach(2);
                linger();
                resumed.store(true, Ordering::Release);
            });
            assert_eq!(thread.join().unwrap(), 6);
        });
    });
}

/// The stopper waits for an upcall that does not poll; the upcall panics; what it left is foreign, and the pause begins.
#[test]
fn a_panic_in_an_upcall_that_a_stopper_waits_for_lets_the_pause_begin() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let steps = Steps::new();
        let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, _: c_int| -> c_int {
            let poll = mutator.record_address() + layout::POLL;
            steps.reach(1);
            // SAFETY: the documented poll word of this mutator, which is attached.
            let poll = unsafe { &*core::ptr::with_exposed_provenance::<AtomicU32>(poll) };
            while poll.load(Ordering::Relaxed) & layout::POLL_MASK == 0 {
                thread::yield_now();
            }
            panic_quietly(8)
        });
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let (function, data) = (body.data_last(), body.data());
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                number(|| mutator.foreign_call().run(|| unsafe { foreign_call_back_last(function, 1, data) }))
            });
            steps.wait(1);
            let kinds = world.pause(|stopped| {
                let mutator = stopped.mutators().next().expect("one is attached");
                mutator.activations().map(|activation| activation.kind()).collect::<Vec<_>>()
            });
            assert_eq!(kinds, [FrameKind::ForeignCall]);
            assert_eq!(thread.join().unwrap(), 8);
        });
    });
}

/// Both ask at once: one waits, counting as stopped, and both have their pause.
#[test]
fn two_mutators_that_ask_for_a_pause_at_once_both_get_theirs() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let (inside, pauses) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut mutator = world.attach().unwrap();
                    for _ in 0..200 {
                        mutator.pause(|_| {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "one pause at a time");
                            pauses.fetch_add(1, Ordering::Relaxed);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(pauses.load(Ordering::Relaxed), 600);
    });
}
