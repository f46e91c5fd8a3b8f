//! Threads the VM has never seen: a worker pool's, a hundred at once, one that a signal interrupts, one that comes too early, too late, or when it is nearly gone.

use crate::child;
use crate::emulator::EMULATED;
use crate::plain::{Plain, Steps, for_each_strategy};
use core::ffi::{c_int, c_long};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use reentry::faults::Faults;
use reentry::testkit::bytecode::Program;
use reentry::testkit::{FaultSet, Ref, TestVm};
use reentry::{Early, FenceStrategy, Mutator, Stragglers, World, sample_thread, upcall_fn, upcall_fn_or};
use reentry_foreign::{
    Callback, foreign_call_back, foreign_call_back_at_exit, foreign_call_back_elsewhere,
    foreign_call_back_in_destructor, foreign_flood, foreign_threads, foreign_uv, foreign_uv_end, needs_libuv,
};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;

/// Calls back on a pthread of its own.
fn elsewhere(callback: Callback) -> c_int {
    // SAFETY: the callback takes an `int` and gives one.
    unsafe { foreign_call_back_elsewhere(callback, 0) }
}

/// libuv's pool is made of threads nobody announced; its loop calls back in the midst of a foreign call.
#[needs_libuv]
#[test]
fn the_pool_of_libuv_calls_in_on_threads_of_its_own_and_its_loop_inside_the_foreign_call() {
    type Vm = Plain<30>;
    static ON_POOL: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    static ON_LOOP: AtomicU64 = AtomicU64::new(0);
    fn on_pool(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
        assert_eq!(mutator.depth(), 1);
        ON_POOL.lock().unwrap().insert(mutator.id());
        mutator.pause(|stopped| assert!(stopped.mutators().count() >= 2, "the pool's thread and the loop's"));
        x
    }
    fn on_loop(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
        ON_LOOP.store(mutator.id(), Ordering::Relaxed);
        mutator.poll();
        1000 * x
    }
    let world = Vm::world(FenceStrategy::probe());
    world.adopt_foreign_threads();
    let mut mutator = world.attach().unwrap();
    // SAFETY: both callbacks are upcalls of a world that adopts foreign threads.
    let sum =
        mutator.foreign_call().run(|| unsafe { foreign_uv(200, upcall_fn(on_pool), upcall_fn(on_loop)) });
    assert_eq!(sum, 1001 * (199 * 200 / 2));
    assert_eq!(ON_LOOP.load(Ordering::Relaxed), mutator.id());
    let pool = ON_POOL.lock().unwrap().clone();
    assert!(!pool.is_empty() && !pool.contains(&mutator.id()), "{pool:?}");
    // The pool keeps its threads, and they stay what they are to the world: one mutator each.
    assert!((2..=5).contains(&world.attached()) && world.attached() > pool.len(), "{pool:?}");
    // SAFETY: the library is not used any more.
    mutator.foreign_call().run(|| unsafe { foreign_uv_end() });
    assert_eq!(world.attached(), 1, "the pool's threads have exited");
    assert_eq!(world.vm().take_reports(), [""; 0]);
}

/// Makes a VM type of this file's own: which world adopts foreign threads is a choice for each type.
enum Hundred {}
// SAFETY: no fault.
unsafe impl FaultSet for Hundred {
    const FAULTS: Faults = Faults::NONE;
}

#[test]
fn a_hundred_foreign_threads_call_in_a_thousand_times_each_while_everything_moves() {
    type Vm = TestVm<Hundred>;
    const CALLS: c_int = if EMULATED { 200 } else { 1000 };
    static RECORDS: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
    extern "C" fn nothing(x: c_int) -> c_int {
        thread::yield_now();
        x
    }
    fn body(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
        RECORDS.lock().unwrap().insert(mutator.record_address());
        let text = format!("{} {x}", mutator.id());
        let object: Ref = mutator.vm().heap().alloc(&[], text.as_bytes());
        let mut call = mutator.foreign_call();
        let root = call.root(object);
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(nothing, 0) });
        let object = call.get(root);
        drop(call);
        assert_eq!(mutator.vm().heap().bytes(object).unwrap(), text.as_bytes());
        x
    }
    let world = Vm::builder_without(Program::new(Vec::new()).unwrap()).build_world();
    world.adopt_foreign_threads();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut collections = 0;
            while !stop.load(Ordering::Relaxed) {
                world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
                collections += 1;
                thread::sleep(Duration::from_micros(500));
            }
            collections
        });
        // SAFETY: the callback is an upcall of a world that adopts foreign threads.
        let sum = unsafe { foreign_threads(100, CALLS, upcall_fn(body)) };
        assert_eq!(sum, 100 * c_long::from(CALLS) * c_long::from(CALLS - 1) / 2);
        assert_eq!(world.attached(), 0, "each was detached by its exit");
        let records = RECORDS.lock().unwrap().len();
        // SAFETY: as above.
        assert_eq!(unsafe { foreign_threads(100, 10, upcall_fn(body)) }, 100 * 45);
        assert!(RECORDS.lock().unwrap().len() <= records.max(100), "records are used again");
        stop.store(true, Ordering::Relaxed);
        assert!(collector.join().unwrap() > 10);
    });
    assert_eq!(world.attached(), 0);
    let summary = world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
    assert_eq!(summary.live, 0, "nothing is rooted any more");
}

/// Go issue 42207. The handler calls in wherever it finds the thread foreign or unknown: on the way to its first upcall, between two, in C. So each place where the crate holds
/// something on a thread that is not managed is one that a handler could find.
#[test]
fn ten_threads_that_flood_an_attaching_one_with_a_signal_do_not_hang_it() {
    type Vm = Plain<31>;
    static UPCALLS: AtomicUsize = AtomicUsize::new(0);
    static OF_HANDLERS: AtomicUsize = AtomicUsize::new(0);
    fn body(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
        let counter = if x < 0 { &OF_HANDLERS } else { &UPCALLS };
        counter.fetch_add(1, Ordering::Relaxed);
        mutator.poll();
        x
    }
    /// A handler may call in where no managed code is interrupted.
    extern "C" fn may_call() -> c_int {
        let mut newest = None;
        let sampled = sample_thread(|activation| {
            newest.get_or_insert(activation.kind.is_some());
        });
        c_int::from(sampled.is_ok() && newest.unwrap_or(true))
    }
    let (visits, calls) = (100, 50);
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        world.adopt_foreign_threads();
        UPCALLS.store(0, Ordering::Relaxed);
        OF_HANDLERS.store(0, Ordering::Relaxed);
        let stop = AtomicBool::new(false);
        let (served, passed) = thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    world.pause(|_| thread::yield_now());
                    thread::yield_now();
                }
            });
            let _stop = scopeguard::guard((), |()| stop.store(true, Ordering::Relaxed));
            let mut passed: c_long = 0;
            // SAFETY: the callback is an upcall of a world that adopts foreign threads; `may_call` is safe in a handler.
            let served =
                unsafe { foreign_flood(10, visits, calls, upcall_fn(body), may_call, &raw mut passed) };
            (served, passed)
        });
        assert_eq!(UPCALLS.load(Ordering::Relaxed), usize::try_from(visits * calls).unwrap());
        assert_eq!(c_long::try_from(OF_HANDLERS.load(Ordering::Relaxed)), Ok(served));
        assert!(served >= c_long::from(visits), "{served} handlers called in, {passed} found managed code");
        assert_eq!(world.attached(), 0);
        assert_eq!(world.vm().take_reports(), [""; 0]);
    });
}

/// Go's TestCallbackInInit, told so.
#[test]
fn a_foreign_thread_that_comes_before_the_world_is_open_is_refused_and_served_after() {
    type Vm = Plain<32>;
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        x + 1
    }
    let world = World::<Vm>::builder().closed_to_foreign_threads(Early::Refuse).build(Vm::new());
    world.adopt_foreign_threads();
    let callback: Callback = upcall_fn_or(body, || -1);
    assert_eq!(elsewhere(callback), -1);
    let reports = world.vm().take_reports();
    let [report] = &reports[..] else { panic!("{reports:?}") };
    let said = "a foreign thread called in before `World::open`; C got the fallback value\n  which: `";
    assert!(report.starts_with(said), "{report}");
    // The VM's own threads come and go, and their upcalls are theirs.
    let mut mutator = world.attach().unwrap();
    // SAFETY: the callback takes an `int` and gives one.
    assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back(callback, 1) }), 2);
    drop(mutator);
    world.open();
    assert_eq!(elsewhere(callback), 1);
    assert_eq!((world.attached(), world.vm().take_reports().len()), (0, 0));
}

/// Go's TestCallbackInInit, waiting.
#[test]
fn a_foreign_thread_that_comes_before_the_world_is_open_waits_and_is_served() {
    type Vm = Plain<33>;
    static OPEN: AtomicBool = AtomicBool::new(false);
    fn body(_: &mut Mutator<Vm>, _: c_int) -> c_int {
        c_int::from(OPEN.load(Ordering::Relaxed))
    }
    let world = World::<Vm>::builder().closed_to_foreign_threads(Early::Wait).build(Vm::new());
    world.adopt_foreign_threads();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| elsewhere(upcall_fn_or(body, || -1)));
        thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished() && world.attached() == 0);
        // It waits outside: a pause does not know it.
        assert_eq!(world.pause(|stopped| stopped.mutators().count()), 0);
        OPEN.store(true, Ordering::Relaxed);
        world.open();
        assert_eq!(waiting.join().unwrap(), 1);
    });
    assert_eq!(world.vm().take_reports(), [""; 0]);
}

#[test]
fn a_foreign_thread_that_waits_for_a_world_that_is_shut_down_instead_gets_the_fallback_value() {
    type Vm = Plain<34>;
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        x
    }
    let world = World::<Vm>::builder().closed_to_foreign_threads(Early::Wait).build(Vm::new());
    world.adopt_foreign_threads();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| elsewhere(upcall_fn_or(body, || -1)));
        thread::sleep(Duration::from_millis(30));
        world.shutdown();
        assert_eq!(waiting.join().unwrap(), -1);
    });
    let reports = world.vm().take_reports();
    let [report] = &reports[..] else { panic!("{reports:?}") };
    let said = "a foreign thread called in after shutdown; C got the fallback value\n  which: `";
    assert!(report.starts_with(said), "{report}");
}

/// One that was attached before, and goes on calling when the world has ended.
#[test]
fn a_foreign_thread_that_stays_gets_the_fallback_value_from_the_end_of_the_world_on() {
    type Vm = Plain<35>;
    static STEPS: Steps = Steps::new();
    static RESULTS: Mutex<Vec<c_int>> = Mutex::new(Vec::new());
    fn body(_: &mut Mutator<Vm>, _: c_int) -> c_int {
        1
    }
    /// C code, as far as the VM knows.
    extern "C" fn visitor(_: c_int) -> c_int {
        let callback: Callback = upcall_fn_or(body, || -1);
        for step in 0..6 {
            let result = callback(0);
            RESULTS.lock().unwrap().push(result);
            if step == 2 {
                STEPS.reach(1);
                STEPS.wait(2);
            }
        }
        0
    }
    for (policy, tag) in [(Stragglers::Fail, "fail"), (Stragglers::Park, "park")] {
        let world = Vm::world(FenceStrategy::probe());
        world.adopt_foreign_threads();
        STEPS.reach(0);
        RESULTS.lock().unwrap().clear();
        thread::scope(|scope| {
            scope.spawn(|| elsewhere(visitor));
            STEPS.wait(1);
            let late = world.shutdown_within(Duration::from_secs(60), policy);
            assert!(late.is_empty(), "{tag}: a thread between two upcalls is not waited for");
            STEPS.reach(2);
        });
        assert_eq!(*RESULTS.lock().unwrap(), [1, 1, 1, -1, -1, -1], "{tag}");
        assert_eq!(world.vm().take_reports().len(), 3, "{tag}");
        assert_eq!(world.attached(), 0, "{tag}: it was detached by its exit all the same");
    }
}

/// POSIX runs these destructors when thread-locals are gone, and with them whatever would have detached the thread.
#[test]
fn a_thread_that_calls_in_for_the_first_time_in_its_last_destructor_is_served_and_detached() {
    type Vm = Plain<36>;
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        x
    }
    let world = Vm::world(FenceStrategy::probe());
    world.adopt_foreign_threads();
    for _ in 0..10 {
        // SAFETY: the callback is an upcall of a world that adopts foreign threads.
        let result = unsafe { foreign_call_back_in_destructor(upcall_fn_or(body, || -1), 0) };
        assert_eq!((result, world.attached()), (7, 0));
    }
    assert_eq!(world.vm().take_reports(), [""; 0]);
}

#[test]
fn a_thread_that_calls_in_again_when_its_exit_has_detached_it_gets_the_fallback_value() {
    type Vm = Plain<37>;
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        x
    }
    let world = Vm::world(FenceStrategy::probe());
    world.adopt_foreign_threads();
    // SAFETY: the callback is an upcall of a world that adopts foreign threads.
    let result = unsafe { foreign_call_back_in_destructor(upcall_fn_or(body, || -1), 3) };
    assert_eq!((result, world.attached()), (-1, 0));
    let reports = world.vm().take_reports();
    let [report] = &reports[..] else { panic!("{reports:?}") };
    let said = "a foreign thread called in while it was exiting; C got the fallback value\n  which: `";
    assert!(report.starts_with(said), "{report}");
}

/// The loader's lock is held while a library's destructor runs, and the C library takes it for a thread's first thread-local with a destructor.
#[test]
fn a_thread_that_calls_in_for_the_first_time_while_a_librarys_destructor_waits_for_it_is_served() {
    type Vm = Plain<41>;
    type Start = unsafe extern "C" fn(Callback, *mut c_int) -> c_int;
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        x
    }
    child::succeeds(
        "foreign_threads::a_thread_that_calls_in_for_the_first_time_while_a_librarys_destructor_waits_for_it_is_served",
        || {
            // SAFETY: a child that hangs is killed by this, and fails the test.
            unsafe { libc::alarm(60) };
            let world = Vm::world(FenceStrategy::probe());
            world.adopt_foreign_threads();
            let mut result = 0;
            let path = std::ffi::CString::new(reentry_foreign::DESTRUCTOR_LIBRARY).unwrap();
            // SAFETY: the library is this test's own; `library_start` has that type, and `result` outlives
            // the library, whose thread ends with it.
            unsafe {
                let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
                assert!(!library.is_null());
                let start = libc::dlsym(library, c"library_start".as_ptr());
                let start = core::mem::transmute::<*mut core::ffi::c_void, Start>(start);
                assert_eq!(start(upcall_fn_or(body, || -1), &raw mut result), 0);
                assert_eq!(libc::dlclose(library), 0);
            }
            assert_eq!((result, world.attached()), (5, 0));
        },
    );
}

/// A pool's thread outlives the VM it called first: it goes to the one that adopts now, and lets go of the other.
#[test]
fn a_thread_that_outlives_its_world_goes_to_the_one_that_adopts_now() {
    type Vm = Plain<42>;
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        x
    }
    let callback: Callback = upcall_fn_or(body, || -1);
    let (send, receive) = std::sync::mpsc::channel::<std::sync::mpsc::Sender<c_int>>();
    let pool = thread::spawn(move || {
        for reply in receive {
            reply.send(callback(1)).unwrap();
        }
    });
    let ask = || {
        let (reply, answer) = std::sync::mpsc::channel();
        send.send(reply).unwrap();
        answer.recv().unwrap()
    };
    for how in 0..6 {
        let world = Vm::world(FenceStrategy::probe());
        world.adopt_foreign_threads();
        assert_eq!(ask(), 1, "{how}");
        assert_eq!(world.attached(), 1, "{how}: the thread is this world's");
        assert_eq!(ask(), 1, "{how}");
        match how % 3 {
            0 => world.shutdown(),
            1 => assert!(world.shutdown_within(Duration::from_secs(60), Stragglers::Fail).is_empty()),
            _ => {}
        }
        if how == 4 {
            // Nobody adopts: the thread lets go of what was its world.
            assert_eq!(ask(), -1);
            assert_eq!(world.attached(), 0);
        }
        assert_eq!(world.vm().take_reports().len(), usize::from(how == 4));
    }
    drop(send);
    pool.join().unwrap();
}

/// Between the end of one world and the adoption by the next, a pool's thread is refused, and not the end of the process.
#[test]
fn a_thread_that_calls_in_when_the_world_that_adopted_has_gone_gets_the_fallback_value() {
    type Vm = Plain<39>;
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        x + 1
    }
    let callback: Callback = upcall_fn_or(body, || -1);
    for _ in 0..2 {
        let world = Vm::world(FenceStrategy::probe());
        world.adopt_foreign_threads();
        assert_eq!(elsewhere(callback), 1);
        drop(world);
        assert_eq!(elsewhere(callback), -1);
    }
}

/// The handler runs after the thread-locals of the main thread are gone, when the world may be.
#[test]
fn an_upcall_at_the_exit_of_the_process_gets_the_result_or_the_fallback_value() {
    type Vm = Plain<38>;
    fn body(_: &mut Mutator<Vm>, x: c_int) -> c_int {
        x
    }
    let said = child::succeeds(
        "foreign_threads::an_upcall_at_the_exit_of_the_process_gets_the_result_or_the_fallback_value",
        || {
            let world = Vm::world(FenceStrategy::probe());
            world.adopt_foreign_threads();
            let callback: Callback = upcall_fn_or(body, || -1);
            // SAFETY: the callback is an upcall of a world that adopts foreign threads, and is never dropped.
            unsafe { foreign_call_back_at_exit(callback) };
            let mut mutator = world.attach().unwrap();
            // SAFETY: the callback takes an `int` and gives one.
            assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back(callback, 1) }), 1);
            drop(mutator);
            // The thread that exits is this one, which has been attached; its thread-locals are gone when the handler runs, or, not being the main
            // thread's, still there. Either is an answer.
            let _kept = core::mem::ManuallyDrop::new(world);
        },
    );
    let result = said.lines().find_map(|line| line.strip_prefix("at exit: ")).expect("the handler has run");
    assert!(["7", "-1"].contains(&result), "{result}");
}
