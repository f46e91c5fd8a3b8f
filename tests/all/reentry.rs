//! Re-entry: what collections and stack moves inside upcalls may and may not do to the calls below them.

use crate::programs::{RECURSION_64, recursion};
use crate::witness::View;
use core::ffi::c_int;
use core::hint::black_box;
use core::panic::AssertUnwindSafe;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use reentry::faults::Faults;
use reentry::testkit::bytecode::{Function, Program, StackMove};
use reentry::testkit::{
    Correct, FaultSet, Guard, NativeArgument, NativeResult, Ref, StackMoves, TestVm, TestVmBuilder, Value,
    Walk,
};
use reentry::{ArgumentPlan, FrameKind, Mutator, NoAddresses, UpcallClosure, World, upcall_fn};
use reentry_foreign::{
    Callback, Pair, foreign_arity_0, foreign_arity_1, foreign_arity_3, foreign_arity_6, foreign_arity_7,
    foreign_arity_8, foreign_arity_11, foreign_arity_12, foreign_call_back, foreign_call_back_below_64k,
    foreign_call_back_last, foreign_call_back_many, foreign_fill, foreign_threads,
};
use std::panic::catch_unwind;

/// A world that can recurse: `recurse(n)` uses n + 1 KiB of operand stack, which starts much smaller.
fn world() -> World<TestVm> {
    recursive().build_world()
}

fn recursive<F: FaultSet>() -> TestVmBuilder<F> {
    TestVm::builder_without(Program::new(vec![recursion(0)]).unwrap()).stack_words(64)
}

/// Collects, makes the operand stack move by growing it, and collects again. The stack must really have moved.
fn collect_and_grow<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>) {
    TestVm::collect_in(mutator).unwrap();
    TestVm::call(mutator, "recurse", &[Value::Integer(64)]).unwrap();
    let before = mutator.local().stack_range();
    assert!(before.len() > RECURSION_64);
    TestVm::collect_in(mutator).unwrap();
    assert_ne!(mutator.local().stack_range(), before);
}

/// An upcall that collects, grows the stack, and doubles its argument.
fn double(mutator: &mut Mutator<TestVm>, x: c_int) -> c_int {
    collect_and_grow(mutator);
    2 * x
}

/// Go's TestCallbackGC.
#[test]
fn a_full_collection_in_an_upcall_leaves_64_kib_of_c_frame_above_it_intact() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], b"below 64 KiB of C");
    let mut call = mutator.foreign_call();
    let root = call.root(text);
    let pinned = call.pin(world.vm().heap().alloc(&[], b"pinned there")).unwrap();
    // SAFETY: the callback takes an `int` and gives one.
    let result = call.run(|| unsafe { foreign_call_back_below_64k(upcall_fn(double), 21) });
    assert_eq!(result, 42, "-1 would be a damaged frame");
    assert_ne!(call.get(root), text, "the collections moved it");
    assert_eq!(world.vm().heap().bytes(call.get(root)).as_deref(), Ok(&b"below 64 KiB of C"[..]));
    assert_eq!(world.vm().heap().bytes(pinned.get()).as_deref(), Ok(&b"pinned there"[..]));
    assert_eq!(world.vm().totals().0, 2);
}

/// A foreign thread's VM of its own: which world adopts foreign threads is settled for each VM type.
enum PreDirtied {}

// SAFETY: no fault.
unsafe impl FaultSet for PreDirtied {
    const FAULTS: Faults = Faults::NONE;
}

/// Go's CgoCallbackGC: threads the VM has never seen, with garbage on their stacks, call in, collect, grow their operand stacks, and
/// collect again.
#[test]
fn a_hundred_foreign_threads_collect_and_grow_and_leave_nothing_attached() {
    static UPCALLS: AtomicUsize = AtomicUsize::new(0);
    fn upcall(mutator: &mut Mutator<TestVm<PreDirtied>>, x: c_int) -> c_int {
        UPCALLS.fetch_add(1, Ordering::Relaxed);
        assert_eq!(mutator.depth(), 1, "above the thread's base, which has no frames");
        let own = mutator.vm().heap().alloc(&[], b"a foreign thread's");
        let number = mutator.vm().add_global(own);
        TestVm::collect_in(mutator).unwrap();
        TestVm::call(mutator, "recurse", &[Value::Integer(64)]).unwrap();
        assert!(mutator.local().stack_range().len() > RECURSION_64);
        TestVm::collect_in(mutator).unwrap();
        // At which address it is now nobody can say: the other threads' collections have moved it several times.
        let text = mutator.vm().heap().bytes(mutator.vm().global(number));
        assert_eq!(text.as_deref(), Ok(&b"a foreign thread's"[..]));
        mutator.vm().set_global(number, Ref::NULL);
        x + 1
    }
    // A collection for each upcall that moved a hundred large stacks would take its time: here they move when they grow.
    let world = recursive::<PreDirtied>().stack_moves(StackMoves::OnRequest).build_world();
    world.adopt_foreign_threads();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let text = world.vm().heap().alloc(&[], b"the caller's");
    let root = call.root(text);
    // SAFETY: the callback takes an `int` and gives one; it may be called from any thread.
    let sum = call.run(|| unsafe { foreign_threads(100, 2, upcall_fn(upcall)) });
    assert_eq!(sum, 100 * (1 + 2), "-1 would be a thread that did not start");
    assert_eq!(UPCALLS.load(Ordering::Relaxed), 200);
    assert_eq!(world.vm().totals().0, 400);
    assert_eq!(world.vm().heap().bytes(call.get(root)).as_deref(), Ok(&b"the caller's"[..]));
    drop(call);
    assert_eq!(world.attached(), 1, "the threads are gone, and this one is left");
    assert_eq!(mutator.pause(|stopped| stopped.mutators().count()), 1);
}

/// Go's TestReturnAfterGrow: the result of a foreign call goes to the caller's frame where that is now.
#[test]
fn a_foreign_result_reaches_the_callers_frame_after_the_stack_has_moved() {
    for moves in [StackMoves::EveryCollection, StackMoves::OnRequest] {
        let mut main = Function::builder("main");
        let x = main.integer_parameter();
        let doubled = main.integer_slot();
        let sum = main.integer_slot();
        main.foreign(Some(doubled), 0, &[x]);
        main.add(sum, doubled, x);
        main.give_back(sum);
        let program = Program::new(vec![recursion(0), main.finish()]).unwrap();
        let native = |_: &TestVm, arguments: &reentry::testkit::NativeArguments<'_>| {
            let x = c_int::try_from(arguments.integer(0)).unwrap();
            // SAFETY: the callback takes an `int` and gives one.
            NativeResult::Integer(unsafe { foreign_call_back(upcall_fn(grow_and_double), x) }.into())
        };
        let world = TestVm::builder(program).stack_words(64).stack_moves(moves).native(native).build_world();
        let mut mutator = world.attach().unwrap();
        let before = mutator.local().stack_range();
        let result = TestVm::call(&mut mutator, "main", &[Value::Integer(7)]);
        assert_eq!(result, Ok(Some(Value::Integer(21))));
        assert_ne!(mutator.local().stack_range(), before);
    }
}

fn grow_and_double(mutator: &mut Mutator<TestVm>, x: c_int) -> c_int {
    TestVm::call(mutator, "recurse", &[Value::Integer(64)]).unwrap();
    2 * x
}

/// Go's TestReturnAfterGrowFromGo: the result an upcall computes in bytecode reaches C and, through C, the caller, after moves at both ends.
#[test]
fn an_upcalls_result_reaches_c_after_the_stack_has_moved_under_the_upcall() {
    let mut triple = Function::builder("triple");
    let x = triple.integer_parameter();
    let levels = triple.integer_slot();
    let sum = triple.integer_slot();
    triple.add(sum, x, x);
    triple.integer(levels, 64);
    triple.call(None, 0, &[levels]);
    triple.collect();
    triple.add(sum, sum, x);
    triple.give_back(sum);
    let program = Program::new(vec![recursion(0), triple.finish()]).unwrap();
    let world = TestVm::builder(program).stack_words(64).build_world();
    let mut mutator = world.attach().unwrap();
    let callback: Callback = upcall_fn(|mutator: &mut Mutator<TestVm>, x: c_int| {
        let before = mutator.local().stack_range();
        let result = TestVm::call(mutator, "triple", &[Value::Integer(x.into())]).unwrap();
        assert_ne!(mutator.local().stack_range(), before);
        let Some(Value::Integer(result)) = result else { panic!("{result:?}") };
        c_int::try_from(result).unwrap()
    });
    // SAFETY: the callback takes an `int` and gives one.
    let result = mutator.foreign_call().run(|| unsafe { foreign_call_back(callback, 14) });
    assert_eq!(result, 42);
}

/// Go's Test10303: C is never given an address in the stack that moves. (An in-place root's slot is there: it is for the collector.)
#[test]
fn what_c_is_given_is_not_on_the_movable_stack_at_ten_depths() {
    static DEPTHS: AtomicUsize = AtomicUsize::new(0);
    fn descend(mutator: &mut Mutator<TestVm>, levels: c_int) -> c_int {
        DEPTHS.fetch_add(1, Ordering::Relaxed);
        TestVm::call(mutator, "recurse", &[Value::Integer(levels.into())]).unwrap();
        let stack = mutator.local().stack_range();
        // SAFETY: the test VM and its heap outlive the mutator.
        let vm = unsafe { &*core::ptr::from_ref(mutator.vm()) };
        let text = vm.heap().alloc(&[], b"text");
        let mut call = mutator.foreign_call();
        let root = call.root(text);
        let pinned = call.pin(text).unwrap();
        let number = call.copy(17_i64);
        let slice = call.copy_slice(&[1_u16, 2, 3]);
        let c_str = call.copy_c_str("copied").unwrap();
        let given = [
            root.slot().addr(),
            vm.heap().payload(pinned.get()).unwrap().addr(),
            number.as_ptr().addr(),
            slice.as_ptr().addr(),
            c_str.as_ptr().addr(),
        ];
        let below = match levels {
            0 => 0,
            // SAFETY: the callback takes an `int` and gives one.
            _ => call.run(|| unsafe { foreign_call_back(upcall_fn(descend), levels - 1) }),
        };
        assert!(given.iter().all(|address| !stack.contains(address)), "{given:x?} and {stack:x?}");
        // Nor has any of it moved: the first, read again, is where it was.
        assert_eq!(root.slot().addr(), given[0]);
        assert_eq!(call.read(number), 17);
        below + 1
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    // SAFETY: the callback takes an `int` and gives one.
    let depths = mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(descend), 9) });
    assert_eq!((depths, DEPTHS.load(Ordering::Relaxed)), (10, 10));
    assert!(mutator.local().stack_range().len() > 9 * 1024, "it moved under them");
}

/// The same for what the interpreter gives: bytes of objects, and the guard's own slots.
#[test]
fn the_interpreters_arguments_are_not_on_the_movable_stack() {
    for guard in [Guard::Pins, Guard::TransitivePins, Guard::RootsInPlace, Guard::RootsByValue] {
        let mut main = Function::builder("main");
        let text = main.reference_slot();
        main.bytes(text, b"text");
        main.foreign(None, 0, &[text]);
        main.leave();
        let native = move |vm: &TestVm, arguments: &reentry::testkit::NativeArguments<'_>| {
            let NativeArgument::Object { bytes, slot, .. } = arguments.get(0) else {
                panic!("an object was passed")
            };
            assert_eq!(slot.is_some(), guard == Guard::RootsByValue);
            let given = [bytes.addr(), slot.map_or(0, |slot| slot.as_ptr().addr())];
            vm.world().unwrap().pause(|stopped| {
                let mutator = stopped.mutators().next().unwrap();
                let stack = mutator.local().stack_range();
                assert!(given.iter().all(|address| !stack.contains(address)));
                // What the collector is given differs: in place is on the stack.
                mutator.activations().next().unwrap().for_each_declared(|declared| {
                    let in_place = declared.plan == ArgumentPlan::RootInPlace;
                    assert_eq!(stack.contains(&declared.slot.address()), in_place);
                });
            });
            NativeResult::Nothing
        };
        let program = Program::new(vec![main.finish()]).unwrap();
        let world = TestVm::builder(program).guard(guard).native(native).build_world();
        let mut mutator = world.attach().unwrap();
        assert_eq!(TestVm::call(&mut mutator, "main", &[]), Ok(None));
    }
}

/// OCaml #9233: the interpreter kept its stack pointer across a callback that reallocated the stack. Integers and references put
/// there before the call must be found after it, by the program and by the collector.
#[test]
fn an_interpreter_whose_stack_is_reallocated_in_a_callback_finds_its_operands() {
    for how in [StackMove::Grow, StackMove::Shrink, StackMove::Same] {
        for (guard, walk) in [(Guard::Pins, Walk::Record), (Guard::RootsInPlace, Walk::Legacy)] {
            let world = reallocating::<Correct>(how, guard, walk);
            let mut mutator = world.attach().unwrap();
            let before = mutator.local().stack_range();
            assert_eq!(
                TestVm::call(&mut mutator, "main", &[]),
                Ok(Some(Value::Integer(42))),
                "{how:?} {guard:?}"
            );
            assert_ne!(mutator.local().stack_range(), before);
        }
    }
}

/// An interpreter's saved anchors do not follow its stack.
enum StaleStackPointer {}

// SAFETY: for a test that expects the failure, which is a panic of the scanner: it checks each anchor before it is used.
unsafe impl FaultSet for StaleStackPointer {
    const FAULTS: Faults = Faults::NO_RELOCATION;
}

/// The teeth of the test above.
#[test]
#[should_panic(expected = "but in one it has left: it was not relocated")]
fn an_interpreter_whose_saved_stack_pointer_is_stale_is_found_out() {
    let world = reallocating::<StaleStackPointer>(StackMove::Same, Guard::Pins, Walk::Record);
    let mut mutator = world.attach().unwrap();
    // The panic comes in the callback's collection, goes round C, and resumes here.
    let _never = TestVm::call(&mut mutator, "main", &[]);
}

/// `main` keeps 40, 2 and a text in its frame across a foreign call whose callback reallocates the stack by bytecode, and collects.
fn reallocating<F: FaultSet>(how: StackMove, guard: Guard, walk: Walk) -> World<TestVm<F>> {
    let mut callback = Function::builder("callback");
    callback.move_stack(how);
    callback.collect();
    callback.leave();
    let mut main = Function::builder("main");
    let forty = main.integer_slot();
    let two = main.integer_slot();
    let kept = main.reference_slot();
    let passed = main.reference_slot();
    main.integer(forty, 40);
    main.integer(two, 2);
    main.bytes(kept, b"kept across the call");
    main.bytes(passed, b"passed to the call");
    main.foreign(None, 0, &[passed]);
    main.check(kept);
    main.collect();
    main.check(kept);
    main.add(forty, forty, two);
    main.give_back(forty);
    let native = |vm: &TestVm<F>, _: &reentry::testkit::NativeArguments<'_>| {
        let body = |mutator: &mut Mutator<TestVm<F>>, _: c_int| {
            TestVm::call(mutator, "callback", &[]).unwrap();
            0
        };
        let callback = UpcallClosure::new(&vm.world().unwrap(), body);
        // SAFETY: the data is the closure's, which lives.
        unsafe { foreign_call_back_last(callback.data_last(), 0, callback.data()) };
        NativeResult::Nothing
    };
    TestVm::builder_without(Program::new(vec![callback.finish(), main.finish()]).unwrap())
        .guard(guard)
        .walk(walk)
        .stack_moves(StackMoves::OnRequest)
        .native(native)
        .build_world()
}

/// A VM with raw stack pointers, as OCaml's interpreter had: what it re-reads through the token of an in-place root is current.
#[test]
fn an_in_place_root_tells_where_the_slot_is_after_the_stack_has_moved() {
    let mut main = Function::builder("main");
    let text = main.reference_parameter();
    main.foreign(None, 0, &[text]);
    main.leave();
    // Only to have the operand stack declared: the slot below is put into it by hand.
    let native = |_: &TestVm, _: &reentry::testkit::NativeArguments<'_>| {
        // SAFETY: the callback takes an `int` and gives one.
        unsafe { foreign_call_back(upcall_fn(in_place), 0) };
        NativeResult::Nothing
    };
    fn in_place(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        // SAFETY: the test VM outlives the mutator.
        let vm = unsafe { &*core::ptr::from_ref(mutator.vm()) };
        // The word of the caller's frame that holds its parameter: behind the three words of its header.
        let stack = mutator.local().stack_range();
        let slot = core::ptr::with_exposed_provenance_mut::<Ref>(stack.start + 3 * size_of::<u64>());
        let mut call = mutator.foreign_call();
        // SAFETY: the slot is the parameter of a frame that is not left before the call is over, and moves with the declared stack.
        let root = unsafe { call.root_in_place(NonNull::new(slot).unwrap()) }.unwrap();
        let before = (root.slot().addr(), call.get(root));
        assert_eq!(vm.heap().bytes(before.1).as_deref(), Ok(&b"in place"[..]));
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(double), 0) });
        let after = (root.slot().addr(), call.get(root));
        assert_eq!(vm.heap().bytes(after.1).as_deref(), Ok(&b"in place"[..]));
        assert!(
            before.0 != after.0 && before.1 != after.1,
            "the slot moved with the stack, and the object too"
        );
        drop(call);
        let stack = mutator.local().stack_range();
        assert_eq!(after.0, stack.start + 3 * size_of::<u64>());
        0
    }
    let program = Program::new(vec![recursion(0), main.finish()]).unwrap();
    // With roots by value the frame's own slot is nobody's but the frame walk's and this test's.
    let world =
        TestVm::builder(program).guard(Guard::RootsByValue).stack_words(64).native(native).build_world();
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], b"in place");
    assert_eq!(TestVm::call(&mut mutator, "main", &[Value::Reference(text)]), Ok(None));
}

/// Says whether this thread is managed in its world: [`World::pause`] refuses exactly those threads.
fn is_managed(world: &World<TestVm>) -> bool {
    let refused = catch_unwind(AssertUnwindSafe(|| world.pause(|_| ())));
    if let Err(panic) = &refused {
        let message = panic.downcast_ref::<String>().map_or("", String::as_str);
        assert!(message.contains("this thread is managed"), "{message}");
    }
    refused.is_err()
}

/// The kinds and depths of the only mutator's activations, seen by another thread.
fn seen_from_elsewhere(world: &World<TestVm>) -> Vec<(usize, FrameKind)> {
    std::thread::scope(|scope| {
        let look = || {
            world.pause(|stopped| {
                let mutator = stopped.mutators().next().unwrap();
                mutator.activations().map(|activation| (activation.depth(), activation.kind())).collect()
            })
        };
        scope.spawn(look).join().unwrap()
    })
}

/// Go #72870: the return of a nested callback marked the outer callback as being in C. Three levels; at each, before and after the
/// nested call, C is foreign and the upcall is managed, and each chain is as long as it was.
#[test]
fn the_return_of_a_nested_upcall_leaves_the_outer_level_as_it_was() {
    static UPCALLS: AtomicUsize = AtomicUsize::new(0);
    fn level(mutator: &mut Mutator<TestVm>, n: c_int) -> c_int {
        UPCALLS.fetch_add(1, Ordering::Relaxed);
        let depth = mutator.depth();
        let world = mutator.vm().world().unwrap();
        assert!(is_managed(&world));
        for _ in 0..2 {
            collect_and_grow(mutator);
            let foreign_chain = |newest: usize| -> Vec<_> {
                (0..=newest).rev().map(|depth| (depth, FrameKind::ForeignCall)).collect()
            };
            let mut call = mutator.foreign_call();
            call.run(|| {
                for _ in 0..2 {
                    assert!(!is_managed(&world));
                    assert_eq!(seen_from_elsewhere(&world), foreign_chain(depth));
                    if n > 0 {
                        // SAFETY: the callback takes an `int` and gives one.
                        unsafe { foreign_call_back(upcall_fn(level), n - 1) };
                    }
                    assert!(!is_managed(&world), "foreign again");
                    assert_eq!(seen_from_elsewhere(&world), foreign_chain(depth));
                }
            });
            drop(call);
            assert!(is_managed(&world), "managed again");
            assert_eq!(mutator.depth(), depth);
            let stopped = mutator.pause(|stopped| {
                let newest = stopped.mutators().next().unwrap().activations().next().unwrap();
                (newest.depth(), newest.kind())
            });
            assert_eq!(stopped, (depth, FrameKind::Safepoint));
        }
        0
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    level(&mut mutator, 2);
    assert!(is_managed(&world));
    assert_eq!(UPCALLS.load(Ordering::Relaxed), 1 + 4 + 16);
}

/// Go #72870 again, from the collector's side: after a nested upcall has returned, the outer one is managed, so a pause must wait for it.
#[test]
fn a_pause_waits_for_the_outer_upcall_after_a_nested_one_has_returned() {
    let world = world();
    let ready = AtomicBool::new(false);
    let about_to_pause = AtomicBool::new(false);
    let finished = AtomicBool::new(false);
    let nested = UpcallClosure::new(&world, |_: &mut Mutator<TestVm>, x: c_int| x + 1);
    let outer = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, x: c_int| {
        // SAFETY: the data is the closure's, which lives.
        let x = mutator
            .foreign_call()
            .run(|| unsafe { foreign_call_back_last(nested.data_last(), x, nested.data()) });
        ready.store(true, Ordering::Release);
        while !about_to_pause.load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
        // Managed, not polling, for long enough to be caught if the pause did not wait.
        std::thread::sleep(core::time::Duration::from_millis(20));
        finished.store(true, Ordering::Release);
        x
    });
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| {
            while !ready.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            about_to_pause.store(true, Ordering::Release);
            world.pause(|_| finished.load(Ordering::Acquire))
        });
        let mut mutator = world.attach().unwrap();
        // If something panics before the outer upcall says so, nobody must wait for it for ever.
        let _ready = scopeguard::guard((), |()| ready.store(true, Ordering::Release));
        // SAFETY: the data is the closure's, which lives.
        let result = mutator
            .foreign_call()
            .run(|| unsafe { foreign_call_back_last(outer.data_last(), 40, outer.data()) });
        assert_eq!(result, 41);
        drop(mutator);
        assert!(pause.join().unwrap(), "the pause began while the outer upcall was managed");
    });
}

/// I8: what C writes goes to the call's own memory; a collection and a move of the stack come between its two halves.
#[test]
fn a_result_that_c_writes_survives_collections_and_moves_in_between() {
    fn next(mutator: &mut Mutator<TestVm>, which: c_int) -> c_int {
        let depth = c_int::try_from(mutator.depth()).unwrap();
        // The memory of this upcall's own calls must not be the outer call's.
        if depth < 4 {
            let below = filled(mutator);
            assert_eq!(
                (below.first, below.second),
                (i64::from(100 * depth + 101), i64::from(100 * depth + 102))
            );
        }
        collect_and_grow(mutator);
        100 * depth + which
    }
    fn filled(mutator: &mut Mutator<TestVm>) -> Pair {
        let mut call = mutator.foreign_call();
        let result = call.copy(NoAddresses(Pair::default()));
        let also = call.copy_slice(&[0xA5_u8; 3000]);
        // SAFETY: the result is valid for writes, and the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_fill(result.as_ptr().cast(), upcall_fn(next)) });
        assert!(call.read_slice(also).iter().all(|byte| *byte == 0xA5));
        call.read(result).0
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    assert_eq!(filled(&mut mutator), Pair { first: 101, second: 102 });
    assert!(world.vm().totals().0 >= 2 * (2 + 4 + 8 + 16));
}

/// A value that needs the alignment C promises for the stack.
#[repr(align(16))]
struct Aligned([u8; 16]);

/// What each upcall of the arity test does: checks the stack's alignment, collects, moves the stack.
fn collect_aligned(mutator: &mut Mutator<TestVm>, arguments: &[i64]) -> i64 {
    let local = black_box(Aligned([7; 16]));
    assert!((&raw const local).addr().is_multiple_of(16));
    assert_eq!(local.0, [7; 16]);
    collect_and_grow(mutator);
    arguments.iter().sum()
}

macro_rules! arity_test {
    ($mutator:ident: $($foreign:ident($($argument:ident),*);)*) => {$(
        let upcall = upcall_fn(|mutator: &mut Mutator<TestVm> $(, $argument: i64)*| {
            collect_aligned(mutator, &[$($argument),*])
        });
        let count = <[&str]>::len(&[$(stringify!($argument)),*]);
        // As many declared arguments as C's function has: odd and even numbers of them too.
        let vm = $mutator.vm().world().unwrap();
        let texts: Vec<Ref> = (0..count).map(|n| vm.vm().heap().alloc(&[], &[n as u8; 3])).collect();
        let mut call = $mutator.foreign_call();
        let roots: Vec<_> = texts.iter().map(|text| call.root(*text)).collect();
        // SAFETY: the upcall takes as many arguments as C gives.
        let sum = call.run(|| unsafe { $foreign(upcall) });
        assert_eq!(sum, (1 << count) - 1, stringify!($foreign));
        for (n, root) in roots.iter().enumerate() {
            assert_eq!(vm.vm().heap().bytes(call.get(*root)).as_deref(), Ok(&[n as u8; 3][..]));
            assert_ne!(call.get(*root), texts[n]);
        }
        drop(call);
    )*};
}

/// Dart #37241: an odd number of arguments left the stack misaligned for the collector.
#[test]
fn upcalls_of_odd_and_even_numbers_of_arguments_collect() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    arity_test! { mutator:
        foreign_arity_0();
        foreign_arity_1(a);
        foreign_arity_3(a, b, c);
        foreign_arity_6(a, b, c, d, e, f);
        foreign_arity_7(a, b, c, d, e, f, g);
        foreign_arity_8(a, b, c, d, e, f, g, h);
        foreign_arity_11(a, b, c, d, e, f, g, h, i, j, k);
        foreign_arity_12(a, b, c, d, e, f, g, h, i, j, k, l);
    }
}

/// Go's Test7978 without a program: a thousand upcalls of one call, each collecting, and the call's declared arguments at each.
#[test]
fn what_a_call_declares_is_reported_in_every_one_of_its_upcalls() {
    fn look(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        let anchor = TestVm::idle_anchor(mutator);
        let declared = mutator.pause_at(anchor, |stopped| {
            stopped.vm().collect(stopped).unwrap();
            let view = View::of(stopped.vm(), &stopped.mutators().next().unwrap());
            assert!(view.find(b"rooted").is_some() && view.find(b"pinned").is_some());
            view.chain[1].declared.len()
        });
        c_int::try_from(declared).unwrap()
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    call.root(world.vm().heap().alloc(&[], b"rooted"));
    call.pin(world.vm().heap().alloc(&[], b"pinned")).unwrap();
    // SAFETY: the callback takes an `int` and gives one.
    let declared = call.run(|| unsafe { foreign_call_back_many(upcall_fn(look), 1000) });
    assert_eq!(declared, 2000);
}
