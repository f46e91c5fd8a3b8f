//! Crossings, upcalls and polls allocate nothing once warm. A binary of its own: it counts in the global allocator.
//!
//! Origin: Go's CgoNoEscape tests, and the rule that a transition allocates nothing (the foreign code it interrupts may be in an allocator
//! itself). Only the measuring thread's allocations count, so the tests can run side by side.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use emulator::EMULATED;
use reentry::dynamic::{Abi, Closure, Function, Library, Plan, Signature, Type, Types, Value};
use reentry::faults::Faults;
use reentry::testkit::bytecode::Program;
use reentry::testkit::{Ref, StackMoves, TestVm, Trap};
use reentry::{
    Capture, ErrorPolicy, FenceStrategy, MachineState, Mutator, Report, RootVisitor, Segment, StackScanner,
    Throwing, Thrown, UpcallClosure, Vm, World, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{
    Callback, foreign_add, foreign_call_back, foreign_call_back_last, foreign_call_back_many, foreign_jump,
    foreign_land_many,
};
use std::alloc::System;

#[path = "all/emulator.rs"]
mod emulator;

thread_local! {
    /// Allocations and reallocations of this thread. Without a destructor, so that it can be counted to the last.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// What of it has not been given back: blocks, bytes.
    static LIVE: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size());
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size());
        // SAFETY: promised by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(0, new_size);
        uncount(0, layout.size());
        // SAFETY: promised by the caller.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        uncount(1, layout.size());
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(blocks: i64, bytes: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    let live = LIVE.get();
    LIVE.set((live.0 + blocks, live.1 + bytes as i64));
}

fn uncount(blocks: i64, bytes: usize) {
    let live = LIVE.get();
    LIVE.set((live.0 - blocks, live.1 - bytes as i64));
}

/// How often `f` allocates on this thread.
fn allocations(f: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

const WARM_UP: usize = 3;
const CALLS: usize = if EMULATED { 20_000 } else { 1_000_000 };
const UPCALLS: c_int = if EMULATED { 5_000 } else { 100_000 };
const ERRORS: u64 = if EMULATED { 2_000 } else { 100_000 };
const SIGNATURES: u32 = if EMULATED { 10_000 } else { 100_000 };

fn worlds() -> impl Iterator<Item = World<TestVm>> {
    [FenceStrategy::Symmetric, FenceStrategy::Asymmetric]
        .into_iter()
        .filter(|fence| fence.is_supported())
        .map(|fence| {
            TestVm::builder(Program::new(Vec::new()).unwrap())
                .stack_moves(StackMoves::OnRequest)
                .build_world_with(World::builder().fence(fence))
        })
}

/// Runs `f` to warm up, and then as often as `times` says; it must not have allocated since.
#[track_caller]
fn assert_no_allocation(times: usize, mut f: impl FnMut()) {
    (0..WARM_UP).for_each(|_| f());
    assert_eq!(allocations(|| (0..times).for_each(|_| f())), 0);
}

fn add(a: c_int) -> c_int {
    // SAFETY: it adds.
    unsafe { foreign_add(a, 2) }
}

/// The counter counts: without this, the other tests would pass for nothing.
#[test]
fn an_allocation_is_counted() {
    assert_eq!(allocations(|| drop(black_box(Box::new(7)))), 1);
    assert_eq!(
        allocations(|| {
            let mut vec = black_box(Vec::with_capacity(1));
            vec.extend_from_slice(&[1, 2, 3]);
            drop(black_box(vec));
        }),
        2
    );
    assert_eq!(allocations(|| _ = black_box(3) + 4), 0);
}

/// Go's CgoNoEscape: a million calls with three roots each.
#[test]
fn a_million_foreign_calls_with_three_roots_allocate_nothing() {
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let objects: [Ref; 3] = core::array::from_fn(|n| world.vm().heap().alloc(&[], &[n as u8]));
        assert_no_allocation(CALLS, || {
            let mut call = mutator.foreign_call();
            let roots = objects.map(|object| call.root(object));
            assert_eq!(call.run(|| add(40)), 42);
            assert_eq!(call.get(roots[2]), objects[2]);
        });
    }
}

/// The same with pins of every kind, a kept value, and arguments in the call's memory.
#[test]
fn foreign_calls_with_pins_and_copied_arguments_allocate_nothing() {
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let objects: [Ref; 3] = core::array::from_fn(|n| world.vm().heap().alloc(&[], &[n as u8]));
        let kept = [1_u8; 100];
        assert_no_allocation(CALLS / 10, || {
            let mut call = mutator.foreign_call();
            call.pin(objects[0]).unwrap();
            call.pin(objects[1]).unwrap();
            call.pin_transitively(objects[2]).unwrap();
            call.keep_alive(&kept);
            let number = call.copy(40);
            let slice = call.copy_slice(&[1_u64; 8]);
            let text = call.copy_c_str("text").unwrap();
            // SAFETY: the number is the call's.
            let sum = call.run(|| add(unsafe { number.as_ptr().read() }));
            assert_eq!(sum, 42);
            black_box((slice.as_ptr(), text.as_ptr()));
        });
    }
}

/// More declared arguments than one chunk of the mutator's storage holds: the chunks are kept.
#[test]
fn foreign_calls_with_hundreds_of_roots_allocate_nothing() {
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"one");
        assert_no_allocation(CALLS / 1000, || {
            let mut call = mutator.foreign_call();
            for _ in 0..500 {
                call.root(object);
            }
            assert_eq!(call.run(|| add(40)), 42);
        });
    }
}

/// A call that runs many times, and one guarded by hand.
#[test]
fn running_a_call_again_and_entering_by_hand_allocate_nothing() {
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"one");
        let mut call = mutator.foreign_call();
        let root = call.root(object);
        assert_no_allocation(CALLS / 10, || {
            assert_eq!(call.run_with_errno(|| add(40)).0, 42);
            // SAFETY: the guard is dropped at once, and the mutator is not used meanwhile.
            let foreign = unsafe { call.enter() };
            assert_eq!(add(40), 42);
            drop(foreign);
        });
        assert_eq!(call.get(root), object);
    }
}

/// An upcall with a call of its own, which has an upcall of its own.
fn add_one(mutator: &mut Mutator<TestVm>, x: c_int) -> c_int {
    if mutator.depth() < 3 {
        // SAFETY: the callback takes an `int` and gives one.
        return mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(add_one), x) });
    }
    x + 1
}

/// Upcalls of both strengths, and nested three deep: the records of each depth are made once.
#[test]
fn a_hundred_thousand_upcalls_allocate_nothing() {
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"one");
        let plain: Callback = upcall_fn(|_: &mut Mutator<TestVm>, x: c_int| x + 1);
        let base = 1;
        let closure = UpcallClosure::new(&world, |_: &mut Mutator<TestVm>, x: c_int| x + base);
        let mut sum = 0;
        assert_no_allocation(UPCALLS as usize, || {
            let mut call = mutator.foreign_call();
            call.root(object);
            // SAFETY: the callbacks take what C gives them, and the data is the closure's.
            sum += call.run(|| unsafe {
                foreign_call_back(plain, 1) + foreign_call_back_last(closure.data_last(), 1, closure.data())
            });
        });
        assert_eq!(sum, 4 * (UPCALLS + WARM_UP as c_int));
        // Many upcalls of one call.
        let mut many = 0;
        assert_no_allocation(1, || {
            // SAFETY: the callback takes an `int` and gives one.
            many += mutator.foreign_call().run(|| unsafe { foreign_call_back_many(plain, UPCALLS) });
        });
        assert_eq!(many, (1 + WARM_UP as i64) * (1..=i64::from(UPCALLS)).sum::<i64>());
        // Three deep.
        assert_no_allocation(UPCALLS as usize / 10, || {
            // SAFETY: the callback takes an `int` and gives one.
            let result = mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(add_one), 41) });
            assert_eq!(result, 42);
        });
    }
}

/// What an upcall hands over lives in its call's memory, which is kept.
#[test]
fn handing_over_a_reference_allocates_nothing() {
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"one");
        let hand_over = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, _: c_int| {
            mutator.hand_over(object).unwrap();
            mutator.hand_over_pinned(object).unwrap();
            1
        });
        assert_no_allocation(UPCALLS as usize / 10, || {
            // SAFETY: the data is the closure's.
            let done = mutator
                .foreign_call()
                .run(|| unsafe { foreign_call_back_last(hand_over.data_last(), 0, hand_over.data()) });
            assert_eq!(done, 1);
        });
    }
}

/// One foreign call that lasts: C calls back again and again, and gives up what it got, one by one or frame by frame.
#[test]
fn a_main_loop_that_hands_over_and_back_allocates_nothing() {
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"one");
        let step = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, _: c_int| {
            let slot = mutator.hand_over(object).unwrap();
            mutator.hand_over_pinned(object).unwrap();
            mutator.hand_back(slot).unwrap();
            mutator.hand_back_pinned(object).unwrap();
            mutator.begin_hand_overs().unwrap();
            for _ in 0..10 {
                mutator.hand_over(object).unwrap();
            }
            mutator.end_hand_overs().unwrap() as c_int
        });
        let (function, data) = (step.data_last(), step.data());
        mutator.foreign_call().run(|| {
            assert_no_allocation(UPCALLS as usize, || {
                // SAFETY: the data is the closure's.
                assert_eq!(unsafe { foreign_call_back_last(function, 0, data) }, 10);
            });
        });
    }
}

/// Handles of every kind, and locals: the slots of a table are used again, as are the chunks of locals.
#[test]
fn making_reading_and_releasing_handles_allocates_nothing() {
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"one");
        assert_no_allocation(CALLS / 10, || {
            let handle = mutator.handle(object);
            assert_eq!(mutator.load(&handle), object);
            let weak = mutator.weak_handle(object);
            assert_eq!(mutator.load_weak(&weak), Some(object));
            let raw = handle.into_raw();
            assert_eq!(mutator.lookup(raw), Ok(object));
            world.release(raw).unwrap();
        });
        // Hundreds at once, released together by foreign code.
        let mut handles = Vec::with_capacity(500);
        assert_no_allocation(CALLS / 10_000, || {
            handles.extend((0..500).map(|_| mutator.handle(object)));
            mutator.foreign_call().run(|| handles.clear());
        });
        assert_no_allocation(CALLS / 10_000, || {
            mutator.scope(|scope| {
                for _ in 0..500 {
                    scope.root(object);
                }
            });
        });
    }
}

/// What a world has allocated for its handles is freed when the last of the world and its handles is gone: also when handles outlive the world, words were never
/// given back, or mutators had taken slots they did not use.
#[test]
fn a_world_and_its_handles_free_the_table_between_them() {
    type End = fn(World<TestVm>, Vec<reentry::Handle<Ref>>);
    let ends: [End; 4] = [
        |world, handles| drop((handles, world)),
        |world, handles| drop((world, handles)),
        |world, mut handles| {
            let last = handles.pop().unwrap();
            drop((handles, world));
            assert_eq!(last.site().file(), file!());
        },
        |world, mut handles| {
            let _never_given_back = handles.pop().unwrap().into_raw();
            drop((world, handles));
        },
    ];
    // The first round warms up what belongs to the thread.
    for round in 0..3 {
        for (number, end) in ends.iter().enumerate() {
            let before = LIVE.get();
            let world = World::new(TestVm::new());
            let mut handles = Vec::new();
            for _ in 0..3 {
                let mut mutator = world.attach().unwrap();
                let object = world.vm().heap().alloc(&[], b"one");
                handles.extend((0..100).map(|_| mutator.handle(object)));
                drop(mutator.weak_handle(object));
            }
            end(world, handles);
            assert!(
                round == 0 || LIVE.get().0 == before.0,
                "end {number}: {} blocks left",
                LIVE.get().0 - before.0
            );
        }
    }
}

/// A pause that reports them allocates nothing for them either.
#[test]
fn enumerating_handles_allocates_nothing() {
    struct Count(usize);
    impl reentry::RootVisitor<Ref> for Count {
        fn slot(&mut self, _: reentry::Slot<'_, Ref>) {
            self.0 += 1;
        }
        fn pinned(&mut self, _: Ref) {}
        fn transitively_pinned(&mut self, _: Ref) {}
    }
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"one");
        let handles: Vec<_> = (0..500).map(|_| mutator.handle(object)).collect();
        assert_no_allocation(10, || {
            mutator.pause(|stopped| {
                let mut count = Count(0);
                stopped.enumerate(&mut count);
                assert_eq!(count.0, handles.len());
            });
        });
    }
}

/// Polls, with no pause in force and with pauses that another thread makes all the time: the slow paths of a poll, of the way back
/// from foreign code and of the way into an upcall allocate nothing either.
#[test]
fn polls_and_crossings_that_wait_for_pauses_allocate_nothing() {
    for world in worlds() {
        let stopping = AtomicBool::new(true);
        let pauses = AtomicU64::new(0);
        let plain: Callback = upcall_fn(|_: &mut Mutator<TestVm>, x: c_int| x + 1);
        std::thread::scope(|scope| {
            let mut mutator = world.attach().unwrap();
            assert_no_allocation(CALLS, || mutator.poll());

            // Also if an assertion fails. The mutator is detached next, so that the last pause need not wait for it.
            let stop = scopeguard::guard((), |()| stopping.store(false, Ordering::Relaxed));
            let stopper = scope.spawn(|| {
                while stopping.load(Ordering::Relaxed) {
                    world.pause(|_| pauses.fetch_add(1, Ordering::Relaxed));
                }
            });
            let mut round = || {
                mutator.poll();
                // SAFETY: the callback takes an `int` and gives one.
                let result = mutator.foreign_call().run(|| unsafe { foreign_call_back(plain, 41) });
                assert_eq!(result, 42);
            };
            while pauses.load(Ordering::Relaxed) < 10 {
                round();
            }
            let allocated = allocations(|| {
                let first = pauses.load(Ordering::Relaxed);
                while pauses.load(Ordering::Relaxed) < first + 1000 {
                    round();
                }
            });
            drop(stop);
            while !stopper.is_finished() {
                mutator.poll(); // its last pause waits for this thread
            }
            assert_eq!(allocated, 0);
        });
    }
}

/// A call with terms of its own costs stores, not memory: also where the terms are the default ones, and with upcalls.
#[test]
fn foreign_calls_with_terms_of_their_own_allocate_nothing() {
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let plain: Callback = upcall_fn(|_: &mut Mutator<TestVm>, x: c_int| x + 1);
        assert_no_allocation(UPCALLS as usize / 10, || {
            // SAFETY: the callback takes an `int` and gives one.
            let call_back = || unsafe { foreign_call_back(plain, 41) };
            assert_eq!(mutator.foreign_call().without_upcalls().run(|| add(40)), 42);
            for policy in [ErrorPolicy::Carry, ErrorPolicy::Abort, ErrorPolicy::Fallback] {
                assert_eq!(mutator.foreign_call().on_error(policy).run(call_back), 42);
            }
            for state in [MachineState::NOTHING, MachineState::FLOATING_POINT, MachineState::ALL] {
                assert_eq!(mutator.foreign_call().preserving(state).run(call_back), 42);
            }
            assert_eq!(mutator.foreign_call().blocking().run(call_back), 42);
            // And a call without terms after them finds its records as they were.
            assert_eq!(mutator.foreign_call().run(call_back), 42);
        });
    }
}

/// Go's TestCallbackPanicLoop: a hundred thousand errors, each of which is carried past C and caught; nothing of them is left.
#[test]
fn a_hundred_thousand_errors_leave_nothing_behind() {
    #[derive(Clone, Copy, Debug)]
    enum How {
        Panic,
        Return,
        Throw,
    }
    thread_local! { static HOW: Cell<How> = const { Cell::new(How::Panic) }; }
    /// # Errors
    ///
    /// Always, or a panic in its place.
    fn fail(mutator: &mut Mutator<TestVm>, x: c_int) -> Result<c_int, Trap> {
        if x > 0 {
            // The error passes a foreign call more.
            let callback = upcall_fn_or(Throwing(fail), || -7);
            // SAFETY: the callback takes an `int` and gives one.
            return Ok(mutator.foreign_call().run(|| unsafe { foreign_call_back(callback, x - 1) }));
        }
        match HOW.get() {
            How::Panic => std::panic::resume_unwind(Box::new(5_u32)),
            How::Return => Err(Trap::NoSuchFunction("an exception with memory of its own".to_owned())),
            How::Throw => {
                mutator.throw(Trap::NoSuchFunction("an exception with memory of its own".to_owned()));
                Ok(0)
            }
        }
    }
    let world = worlds().next().unwrap();
    let mut mutator = world.attach().unwrap();
    let callback = upcall_fn_or(Throwing(fail), || -7);
    for how in [How::Panic, How::Return, How::Throw] {
        HOW.set(how);
        for nested in [0, 1] {
            let mut fail_once = || {
                // SAFETY: the callback takes an `int` and gives one.
                let call_back = || unsafe { foreign_call_back(callback, nested) };
                match how {
                    How::Panic => {
                        let call = core::panic::AssertUnwindSafe(|| mutator.foreign_call().run(call_back));
                        let payload = std::panic::catch_unwind(call).unwrap_err();
                        assert_eq!(payload.downcast_ref::<u32>(), Some(&5));
                    }
                    How::Return => {
                        let outcome = mutator.foreign_call().try_run(call_back);
                        assert!(matches!(outcome, Err(Trap::NoSuchFunction(_))));
                    }
                    How::Throw => {
                        let call = core::panic::AssertUnwindSafe(|| mutator.foreign_call().run(call_back));
                        let payload = std::panic::catch_unwind(call).unwrap_err();
                        assert!(payload.downcast_ref::<Thrown<Trap>>().is_some());
                    }
                }
            };
            (0..WARM_UP).for_each(|_| fail_once());
            let before = LIVE.get();
            let allocated = allocations(|| (0..ERRORS).for_each(|_| fail_once()));
            assert_eq!(LIVE.get(), before, "{how:?} {nested}: blocks and bytes");
            assert!(allocated >= ERRORS, "{how:?}: an error is a box, so the counter has seen it");
        }
    }
}

/// A VM that keeps no reports, since a text would be an allocation: it counts what was skipped.
struct Counted<const REPAIRED: bool>(AtomicU64);

impl<const REPAIRED: bool> Vm for Counted<REPAIRED> {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn report(&self, report: &Report<'_>) {
        if let Report::ActivationsSkipped { skipped, .. } = report {
            self.0.fetch_add(*skipped as u64, Ordering::Relaxed);
        }
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: a fault for the twin only, whose references are numbers.
unsafe impl<const REPAIRED: bool> StackScanner for Counted<REPAIRED> {
    const FAULTS: Faults = if REPAIRED { Faults::NONE } else { Faults::NO_REPAIR };

    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// Declares much, and leaves by a jump: from a foreign call, from managed code, and from two upcalls further down.
fn leave_by_a_jump<const REPAIRED: bool>(
    mutator: &mut Mutator<Counted<REPAIRED>>,
    x: c_int,
    data: *mut c_void,
) -> c_int {
    let mut call = mutator.foreign_call();
    for reference in 0..200 {
        call.root(reference);
    }
    call.copy([1_u64; 64]);
    call.run(|| match x % 4 {
        // SAFETY: the point is set by C that waits for the upcall; here and below.
        0 => unsafe { foreign_jump(0) },
        1 => {}
        // SAFETY: the callback does not use the data.
        _ => _ = unsafe { foreign_call_back_last(upcall_fn(leave_by_a_jump::<REPAIRED>), x % 4 - 2, data) },
    });
    // SAFETY: as above.
    unsafe { foreign_jump(0) }
}

/// A hundred jumps in a foreign call that declares nothing, so that its own end gives nothing back.
fn jump_a_hundred_times<const REPAIRED: bool>(mutator: &mut Mutator<Counted<REPAIRED>>) {
    let leave = upcall_fn(leave_by_a_jump::<REPAIRED>);
    // SAFETY: the callback does not use the data.
    let landed =
        mutator.foreign_call().run(|| unsafe { foreign_land_many(0, leave, 100, core::ptr::null_mut()) });
    assert_eq!(landed, 100);
}

fn counted<const REPAIRED: bool>(fence: FenceStrategy) -> World<Counted<REPAIRED>> {
    World::<Counted<REPAIRED>>::builder().fence(fence).build(Counted(AtomicU64::new(0)))
}

/// What foreign code skips is given back whole: the records, the root stack and the argument memory of a skipped call serve the next one.
#[test]
fn jumps_over_upcalls_allocate_nothing_and_nothing_grows() {
    for fence in [FenceStrategy::Symmetric, FenceStrategy::Asymmetric] {
        if !fence.is_supported() {
            continue;
        }
        let world = counted::<true>(fence);
        let mut mutator = world.attach().unwrap();
        assert_no_allocation(100, || jump_a_hundred_times(&mut mutator));
        // Of four jumps two skip one upcall, and two skip two.
        assert_eq!(world.vm().0.load(Ordering::Relaxed), 150 * (100 + WARM_UP as u64));
        // The twin with the protection off: what was skipped piles up.
        let world = counted::<false>(fence);
        let mut mutator = world.attach().unwrap();
        (0..WARM_UP).for_each(|_| jump_a_hundred_times(&mut mutator));
        assert!(allocations(|| jump_a_hundred_times(&mut mutator)) > 100);
    }
}

/// The cache of signatures forgets those that nobody uses.
#[test]
fn a_hundred_thousand_signatures_leave_nothing_behind() {
    let make = |index: u32| {
        let parameters = vec![Type::Enum(format!("tag{index}").into()), Type::pointer()];
        drop(Signature::new(Abi::C, Type::Void, parameters).unwrap());
    };
    (0..1000).for_each(make);
    let (mut least, mut most) = (i64::MAX, 0);
    for index in 1000..1000 + SIGNATURES {
        make(index);
        let (_, bytes) = LIVE.get();
        (least, most) = (least.min(bytes), most.max(bytes));
    }
    assert!(most - least < 1 << 16, "from {least} to {most} bytes");
}

/// Calls with run-time signatures, on each of their ways: in registers, with more than registers for `...` whose types are named, through libffi with structs and with arguments
/// on the stack; with each sort of argument; and closures.
#[test]
fn calls_and_closures_with_run_time_signatures_allocate_nothing() {
    let libc = |prototype| {
        let (name, signature) = Types::new().prototype(prototype).unwrap();
        Library::this_process().function(&name, &signature).unwrap()
    };
    let add = Signature::parse("int (int, int)").unwrap();
    let add = Function::new(foreign_add as *const c_void, "foreign_add", &add).unwrap();
    let mirror = Signature::parse("struct { double x, y; } (struct { double x, y; })").unwrap();
    let mirror = Function::new(reentry_foreign::foreign_mirror as *const c_void, "mirror", &mirror).unwrap();
    let snprintf = libc("int snprintf(char*, size_t, const char*, ...)");
    let named = snprintf.with_variadic(&vec![Type::pointer(); 20]).unwrap();
    let strtol = libc("long strtol(const char*, char**, int)");
    for world in worlds() {
        let mut mutator = world.attach().unwrap();
        let (digits, point) = (world.vm().heap().alloc(&[], b"123\0"), [1_u8; 16]);
        let length = Closure::new(&world, &Signature::parse("int (int)").unwrap(), |mutator, call| {
            mutator.poll();
            call.returns(call.argument(0)).unwrap();
            Ok(())
        });
        let length = length.unwrap();
        // SAFETY: code of a function of this type.
        let code = unsafe { core::mem::transmute::<*const c_void, Callback>(length.code()) };
        assert_no_allocation(2000, || {
            let mut call = mutator.foreign_call().dynamic(&add);
            call.value(1).unwrap();
            call.value(Value::I64(2)).unwrap();
            // SAFETY: here and below, the functions are what they are declared as, and their arguments live.
            assert_eq!(unsafe { call.run() }.unwrap().result(), Value::I32(3));
            drop(call);
            let mut call = mutator.foreign_call().dynamic(&mirror);
            call.value(Value::Bytes(&point)).unwrap();
            // SAFETY: as above.
            assert_eq!(unsafe { call.run() }.unwrap().result(), Value::Bytes(&point));
            drop(call);
            let mut call = mutator.foreign_call().dynamic(&snprintf);
            call.copy_slice(&[0_u8; 64]).unwrap();
            call.value(64_usize).unwrap();
            call.text("%d %g").unwrap();
            call.value(1).unwrap();
            call.value(0.5).unwrap();
            // SAFETY: as above.
            assert_eq!(unsafe { call.run() }.unwrap().result(), Value::I32(5));
            drop(call);
            let mut call = mutator.foreign_call().dynamic(&named);
            call.copy_slice(&[0_u8; 64]).unwrap();
            call.value(64_usize).unwrap();
            call.text("").unwrap();
            for _ in 0..20 {
                call.value(Value::NULL).unwrap();
            }
            // SAFETY: as above.
            assert_eq!(unsafe { call.run() }.unwrap().result(), Value::I32(0));
            drop(call);
            let mut call = mutator.foreign_call().dynamic(&strtol);
            call.reference(digits, Plan::Pin).unwrap();
            call.copy(core::ptr::null::<u8>()).unwrap();
            call.value(10).unwrap();
            // SAFETY: as above.
            assert_eq!(unsafe { call.run() }.unwrap().result().as_i64(), Some(123));
            drop(call);
            // SAFETY: calls the callback.
            assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back(code, 7) }), 7);
        });
    }
}
