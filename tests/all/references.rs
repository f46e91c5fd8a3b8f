//! Roots, pins and results: what the collector does with an object as long as somebody has declared it, and afterwards.

use crate::witness::View;
use core::ffi::{c_int, c_void};
use core::panic::AssertUnwindSafe;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicUsize, Ordering};
use reentry::testkit::bytecode::{Function, Program};
use reentry::testkit::heap::Fate;
use reentry::testkit::{Guard, NativeResult, Ref, ResultSlot, TestVm, Value};
use reentry::{
    ArgumentError, ArgumentPlan, HandOverError, Mutator, UpcallClosure, World, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{
    foreign_call_back, foreign_call_back_last, foreign_call_back_many, foreign_sum_through_slot,
    foreign_sum_twice, foreign_take_and_give,
};
use std::panic::catch_unwind;
use std::sync::Mutex;

pub(crate) fn world() -> World<TestVm> {
    World::new(TestVm::new())
}

/// A world that `TestVm::world` knows.
pub(crate) fn known_world() -> World<TestVm> {
    TestVm::builder(Program::new(Vec::new()).unwrap()).build_world()
}

pub(crate) fn text(world: &World<TestVm>, text: &str) -> Ref {
    world.vm().heap().alloc(&[], text.as_bytes())
}

#[track_caller]
pub(crate) fn assert_text(world: &World<TestVm>, reference: Ref, text: &str) {
    assert_eq!(world.vm().heap().bytes(reference).as_deref(), Ok(text.as_bytes()));
}

/// What became of an object, if it is not where it was.
pub(crate) fn fate(world: &World<TestVm>, reference: Ref) -> Option<Fate> {
    world.vm().heap().check(reference).err().map(|stale| stale.fate)
}

pub(crate) fn collect(mutator: &mut Mutator<TestVm>) {
    TestVm::collect_in(mutator).unwrap();
}

/// An upcall that collects twice.
pub(crate) fn collect_twice(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
    collect(mutator);
    collect(mutator);
    0
}

/// Go's TestPinnerPinKeepsAliveAndReleases.
#[test]
fn a_pinned_object_stays_through_two_collections_and_is_free_to_die_afterwards() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    let object = text(&world, "pinned");
    mutator.pin_with(&mut pinner, object).unwrap();
    assert_eq!(pinner.len(), 1);
    for _ in 0..2 {
        collect(&mut mutator);
        assert_text(&world, object, "pinned");
    }
    drop(pinner);
    collect(&mut mutator);
    assert_eq!(fate(&world, object), Some(Fate::Freed { collection: 3 }));
}

/// The same object, when something else keeps it alive: free to move.
#[test]
fn an_object_is_free_to_move_when_its_last_pin_ends() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    let object = text(&world, "pinned and global");
    let global = world.vm().add_global(object);
    mutator.pin_with(&mut pinner, object).unwrap();
    for _ in 0..2 {
        collect(&mut mutator);
        assert_eq!(world.vm().global(global), object);
    }
    pinner.unpin_all();
    collect(&mut mutator);
    assert_ne!(world.vm().global(global), object);
    assert_text(&world, world.vm().global(global), "pinned and global");
}

/// Go's TestPinnerEmptyUnpin: an owner without pins.
#[test]
fn an_empty_owner_of_pins_holds_nothing() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    assert!(pinner.is_empty());
    pinner.unpin_all();
    let object = text(&world, "nobody's");
    collect(&mut mutator);
    assert_eq!(fate(&world, object), Some(Fate::Freed { collection: 1 }));
    assert_eq!(pinner.len(), 0);
}

/// Go's TestPinnerReuse: an owner pins again after it let go.
#[test]
fn an_owner_of_pins_can_be_used_again() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    let first = text(&world, "first");
    mutator.pin_with(&mut pinner, first).unwrap();
    pinner.unpin_all();
    let second = text(&world, "second");
    mutator.pin_with(&mut pinner, second).unwrap();
    collect(&mut mutator);
    assert_eq!(fate(&world, first), Some(Fate::Freed { collection: 1 }));
    assert_text(&world, second, "second");
    // And its place in the world's table, after it is gone.
    drop(pinner);
    let mut pinner = world.pinner();
    assert!(pinner.is_empty(), "a new owner has none of the old one's pins");
    let third = text(&world, "third");
    mutator.pin_with(&mut pinner, third).unwrap();
    collect(&mut mutator);
    assert_eq!(fate(&world, second), Some(Fate::Freed { collection: 2 }));
    assert_text(&world, third, "third");
}

/// Go's TestPinnerMultiplePinsSame and TestPinnerTwoPinner: pins count, for each owner.
#[test]
fn an_object_pinned_a_hundred_times_by_two_owners_stays_until_both_let_go() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let (mut one, mut other) = (world.pinner(), world.pinner());
    let object = text(&world, "pinned two hundred times");
    for _ in 0..100 {
        mutator.pin_with(&mut one, object).unwrap();
        mutator.pin_with(&mut other, object).unwrap();
    }
    assert_eq!((one.len(), other.len()), (100, 100));
    let summary = TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!((summary.pinned, summary.moved), (1, 0));
    one.unpin_all();
    collect(&mut mutator);
    assert_text(&world, object, "pinned two hundred times");
    drop(other);
    collect(&mut mutator);
    assert_eq!(fate(&world, object), Some(Fate::Freed { collection: 3 }));
}

/// A call's pin and an owner's pin on one object do not know of each other; nor do those of nested calls.
#[test]
fn pins_of_calls_of_nested_calls_and_of_owners_are_independent() {
    static OBJECT: Mutex<Option<Ref>> = Mutex::new(None);
    fn nested(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        let object = OBJECT.lock().unwrap().unwrap();
        let mut call = mutator.foreign_call();
        call.pin(object).unwrap();
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
        drop(call);
        collect(mutator);
        0
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    let object = text(&world, "shared");
    *OBJECT.lock().unwrap() = Some(object);
    mutator.pin_with(&mut pinner, object).unwrap();
    let mut call = mutator.foreign_call();
    call.pin(object).unwrap();
    // SAFETY: the callback takes an `int` and gives one.
    call.run(|| unsafe { foreign_call_back(upcall_fn(nested), 0) });
    assert_text(&world, object, "shared");
    pinner.unpin_all();
    // SAFETY: the callback takes an `int` and gives one.
    call.run(|| unsafe { foreign_call_back(upcall_fn(nested), 0) });
    assert_text(&world, object, "shared");
    drop(call);
    let collections = world.vm().totals().0;
    assert_eq!(collections, 6);
    collect(&mut mutator);
    assert_eq!(fate(&world, object), Some(Fate::Freed { collection: 7 }));
}

/// A pin holds the object, a transitive pin what is reachable from it too, at each collection: also what was stored there since.
#[test]
fn a_transitive_pin_holds_what_is_reachable_and_a_pin_only_the_object() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    for plan in [ArgumentPlan::Pin, ArgumentPlan::TransitivePin] {
        let leaf = text(&world, "leaf");
        let middle = world.vm().heap().alloc(&[leaf, Ref::NULL], b"middle");
        let top = world.vm().heap().alloc(&[middle], b"top");
        let mut call = mutator.foreign_call();
        match plan {
            ArgumentPlan::Pin => call.pin(top).unwrap(),
            _ => call.pin_transitively(top).unwrap(),
        };
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
        let heap = world.vm().heap();
        let middle_now = heap.field(top, 0).unwrap();
        let leaf_now = heap.field(middle_now, 0).unwrap();
        assert_text(&world, leaf_now, "leaf");
        let stayed = plan == ArgumentPlan::TransitivePin;
        assert_eq!((middle_now == middle, leaf_now == leaf), (stayed, stayed), "{plan}");
        let late = text(&world, "stored during the call");
        heap.set_field(middle_now, 1, late).unwrap();
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
        let late_now = heap.field(heap.field(top, 0).unwrap(), 1).unwrap();
        assert_text(&world, late_now, "stored during the call");
        assert_eq!(late_now == late, stayed, "{plan}");
    }
}

/// Go's TestPinnerPinZerosizeObj and TestPinnerPinTinyObj: objects with no bytes, one byte, no fields.
#[test]
fn objects_without_bytes_and_tiny_objects_can_be_pinned() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let heap = world.vm().heap();
    let objects =
        [heap.alloc(&[], b""), heap.alloc(&[], b""), heap.alloc(&[], b"1"), heap.alloc(&[Ref::NULL], b"")];
    assert_ne!(objects[0], objects[1]);
    let mut pinner = world.pinner();
    for object in objects {
        mutator.pin_with(&mut pinner, object).unwrap();
    }
    let mut call = mutator.foreign_call();
    for object in objects {
        assert_eq!(call.pin(object).unwrap().get(), object);
    }
    // SAFETY: the callback takes an `int` and gives one.
    call.run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
    drop(call);
    let lengths = [0, 0, 1, 0];
    for _ in 0..2 {
        for (object, length) in objects.into_iter().zip(lengths) {
            assert_eq!(world.vm().heap().byte_count(object), Ok(length));
        }
        collect(&mut mutator);
    }
    drop(pinner);
    let summary = TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!((summary.freed, summary.live), (4, 0));
}

/// Go's TestPinnerPinNonPtrPanics: what is no object of this heap is refused by name, by every way to declare it, and
/// nothing is declared then.
#[test]
fn what_is_no_object_of_this_heap_is_refused_by_every_declaration() {
    let world = world();
    let other = self::world();
    let mut mutator = world.attach().unwrap();
    let dead = text(&world, "dead");
    collect(&mut mutator);
    let alive = text(&world, "alive");
    let on_the_stack = 17_u64;
    let refused = [
        Ref::from_address((&raw const on_the_stack).addr()),
        text(&other, "another world's"),
        dead,
        Ref::from_address(alive.address() + 8),
        Ref::from_address(1),
        Ref::from_address(usize::MAX),
    ];
    let mut pinner = world.pinner();
    for reference in refused {
        let error = ArgumentError::NotOfThisWorld { reference: reference.address() };
        assert_eq!(mutator.pin_with(&mut pinner, reference), Err(error));
        let mut call = mutator.foreign_call();
        assert_eq!(call.pin(reference).map(|pinned| pinned.get()), Err(error));
        assert_eq!(call.pin_transitively(reference).map(|pinned| pinned.get()), Err(error));
        assert_eq!(call.try_root(reference).map(drop), Err(error));
        let mut word = reference;
        // SAFETY: the word holds a reference and outlives the call.
        assert_eq!(unsafe { call.root_in_place(NonNull::from(&mut word)) }.map(drop), Err(error));
        let refused = catch_unwind(AssertUnwindSafe(|| call.root(reference).slot())).unwrap_err();
        let message = refused.downcast_ref::<String>().unwrap();
        assert!(message.contains(file!()) && message.ends_with(&error.to_string()), "{message}");
        call.run(|| {
            world.pause(|stopped| {
                let view = View::of(stopped.vm(), &stopped.mutators().next().unwrap());
                assert_eq!(view.chain[0].declared, []);
            });
        });
    }
    assert!(pinner.is_empty());
}

/// Null can be rooted, and stays what it is; it has no address to pin, and is refused by name.
#[test]
fn null_can_be_rooted_and_not_pinned() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let root = call.root(Ref::NULL);
    let refused = Err(ArgumentError::NotAnObject { reference: 0 });
    assert_eq!(call.pin(Ref::NULL).map(|pinned| pinned.get()), refused);
    assert_eq!(call.pin_transitively(Ref::NULL).map(|pinned| pinned.get()), refused);
    // SAFETY: the callback takes an `int` and gives one.
    call.run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
    assert_eq!(call.get(root), Ref::NULL);
}

/// Go #16035 turned round: C reads through the slot and finds the object where it is, before and after it has moved.
#[test]
fn c_reads_a_rooted_object_through_its_slot_before_and_after_it_moves() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let object = text(&world, "read by C");
    let offset = world.vm().heap().payload(object).unwrap().addr() - object.address();
    let mut call = mutator.foreign_call();
    let root = call.root(object);
    let slot = root.slot();
    // SAFETY: the slot is the call's; its object's bytes stand `offset` behind the reference; the callback takes an `int` and gives one.
    let sum = call.run(|| unsafe {
        foreign_sum_through_slot(slot.cast_const().cast(), offset, 9, Some(upcall_fn(collect_twice)))
    });
    assert_eq!(sum, 2 * b"read by C".iter().map(|byte| u64::from(*byte)).sum::<u64>());
    assert!(matches!(fate(&world, object), Some(Fate::Moved { .. })), "C was not reading the old place");
    assert_eq!(root.slot(), slot, "the guard's own slot does not move");
    assert_text(&world, call.get(root), "read by C");
}

/// The same for many roots, more than one chunk of the mutator's storage holds, at several depths.
#[test]
fn every_root_of_many_calls_follows_its_object() {
    const ROOTS: usize = 150;
    fn nested(mutator: &mut Mutator<TestVm>, depth: c_int) -> c_int {
        if depth == 0 {
            return collect_twice(mutator, 0);
        }
        let world = mutator.vm().world().unwrap();
        let texts: Vec<String> = (0..ROOTS).map(|n| format!("root {n} at {depth}")).collect();
        let objects: Vec<Ref> = texts.iter().map(|string| text(&world, string)).collect();
        let mut call = mutator.foreign_call();
        let roots: Vec<_> = objects.iter().map(|object| call.root(*object)).collect();
        let slots: Vec<_> = roots.iter().map(|root| root.slot()).collect();
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(nested), depth - 1) });
        for (n, root) in roots.iter().enumerate() {
            assert_eq!(root.slot(), slots[n]);
            assert_ne!(call.get(*root), objects[n]);
            assert_text(&world, call.get(*root), &texts[n]);
        }
        drop(call);
        collect(mutator);
        0
    }
    let world = known_world();
    let mut mutator = world.attach().unwrap();
    nested(&mut mutator, 4);
    collect(&mut mutator);
    assert_eq!(world.vm().heap().live_objects(), 0, "and nothing is kept afterwards");
}

/// A call can run again, with what was declared before and what has been declared since: hundreds of declarations, in each of ten runs.
#[test]
fn what_is_declared_between_two_runs_of_a_call_is_held_in_the_next() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let (mut roots, mut pins) = (Vec::new(), Vec::new());
    for run in 0..10 {
        for n in 0..33 {
            let (rooted, pinned) = (format!("root {n} of {run}"), format!("pin {n} of {run}"));
            roots.push((call.root(text(&world, &rooted)), rooted));
            pins.push((call.pin(text(&world, &pinned)).unwrap(), pinned));
        }
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
        for (root, string) in &roots {
            assert_text(&world, call.get(*root), string);
        }
        for (pinned, string) in &pins {
            assert_text(&world, pinned.get(), string);
        }
        assert_eq!(world.vm().heap().live_objects(), 66 * (run + 1));
    }
    drop(call);
    collect(&mut mutator);
    assert_eq!(world.vm().heap().live_objects(), 0);
}

/// What a reference in C's hands is, in these tests: the address of a slot, or of an object's bytes.
type Take = extern "C" fn() -> *mut c_void;
type Give = extern "C" fn(*mut c_void) -> c_int;

fn read_through(mutator: &mut Mutator<TestVm>, slot: *mut c_void) -> c_int {
    // SAFETY: the slot that `take` handed over, which lives as long as the call.
    let reference = unsafe { slot.cast::<Ref>().read() };
    let bytes = mutator.vm().heap().bytes(reference);
    c_int::from(bytes.as_deref() == Ok(b"result"))
}

/// wasmtime's CVE-2021-39216, at the other end: between the upcall that gives C a reference and C's next use of it, two collections.
#[test]
fn a_reference_handed_over_by_an_upcall_is_rooted_until_c_gives_it_back() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let take: Take = upcall_fn_or(
        |mutator: &mut Mutator<TestVm>| {
            let result = mutator.vm().heap().alloc(&[], b"result");
            mutator.hand_over(result).unwrap().cast()
        },
        null_mut,
    );
    let give: Give = upcall_fn(read_through);
    let mut call = mutator.foreign_call();
    // SAFETY: the functions take and give what C passes on.
    let same = call.run(|| unsafe { foreign_take_and_give(take, upcall_fn(collect_twice), give) });
    assert_eq!(same, 1);
    assert_eq!(world.vm().totals(), (2, 2), "it moved twice in C's hands");
    assert_eq!(world.vm().heap().live_objects(), 1);
    // Over with the call.
    drop(call);
    collect(&mut mutator);
    assert_eq!(world.vm().heap().live_objects(), 0);
}

/// The same with the address of the object itself.
#[test]
fn an_object_handed_over_pinned_stays_where_c_has_its_address() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let take: Take = upcall_fn_or(
        |mutator: &mut Mutator<TestVm>| {
            let result = mutator.vm().heap().alloc(&[], b"result");
            let pinned = mutator.hand_over_pinned(result).unwrap();
            mutator.vm().heap().payload(pinned).unwrap().cast()
        },
        null_mut,
    );
    let give: Give = upcall_fn(|_: &mut Mutator<TestVm>, bytes: *mut c_void| {
        // SAFETY: the address `take` gave: the object is pinned as long as the call.
        let sum = unsafe { foreign_sum_twice(bytes.cast(), 6, None) };
        c_int::try_from(sum).unwrap()
    });
    // SAFETY: the functions take and give what C passes on.
    let sum =
        mutator.foreign_call().run(|| unsafe { foreign_take_and_give(take, upcall_fn(collect_twice), give) });
    assert_eq!(sum, 2 * b"result".iter().map(|byte| c_int::from(*byte)).sum::<c_int>());
    assert_eq!(world.vm().totals(), (2, 0));
}

/// What is handed over belongs to C's call and not to the upcall that made it: it is there when a collector comes while no upcall runs, and
/// when a later upcall of the same depth makes calls, hands over and ends them.
#[test]
fn a_reference_handed_over_outlives_everything_its_upcalls_depth_is_used_for() {
    static SLOT: AtomicUsize = AtomicUsize::new(0);
    fn take(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        let result = mutator.vm().heap().alloc(&[], b"result");
        SLOT.store(mutator.hand_over(result).unwrap().expose_provenance(), Ordering::Relaxed);
        0
    }
    fn use_the_depth(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        let nested = upcall_fn(|mutator: &mut Mutator<TestVm>, _: c_int| {
            let other = mutator.vm().heap().alloc(&[], b"another result");
            mutator.hand_over(other).unwrap();
            0
        });
        for _ in 0..3 {
            let mut call = mutator.foreign_call();
            call.copy([0_u64; 100]);
            // SAFETY: the callback takes an `int` and gives one.
            call.run(|| unsafe { foreign_call_back(nested, 0) });
        }
        0
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    let give = upcall_fn(|mutator: &mut Mutator<TestVm>, _: c_int| {
        read_through(mutator, core::ptr::with_exposed_provenance_mut(SLOT.load(Ordering::Relaxed)))
    });
    let mut call = mutator.foreign_call();
    let same = call.run(|| {
        let collected = || world.pause(|stopped| stopped.vm().collect(stopped)).unwrap().live;
        // SAFETY: the callbacks take an `int` and give one.
        unsafe {
            foreign_call_back(upcall_fn(take), 0);
            assert_eq!(collected(), 1, "nobody is managed, and C holds it");
            foreign_call_back(upcall_fn(use_the_depth), 0);
            assert_eq!(collected(), 1, "what the nested calls handed over ended with them");
            foreign_call_back(give, 0)
        }
    });
    assert_eq!(same, 1);
    drop(call);
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
}

/// The teeth of the two above: what is not handed over ends with the upcall.
#[test]
fn a_reference_that_was_not_handed_over_is_gone_at_the_next_collection() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let take: Take = upcall_fn_or(
        |mutator: &mut Mutator<TestVm>| {
            let result = mutator.vm().heap().alloc(&[], b"result");
            // A root of a call of the upcall's own does not outlive the upcall.
            let mut call = mutator.foreign_call();
            call.root(result);
            core::ptr::without_provenance_mut(result.address())
        },
        null_mut,
    );
    let give: Give = upcall_fn(|mutator: &mut Mutator<TestVm>, word: *mut c_void| {
        let stale = mutator.vm().heap().check(Ref::from_address(word.addr())).unwrap_err();
        assert_eq!(stale.fate, Fate::Freed { collection: 1 });
        7
    });
    // SAFETY: the functions take and give what C passes on.
    let result =
        mutator.foreign_call().run(|| unsafe { foreign_take_and_give(take, upcall_fn(collect_twice), give) });
    assert_eq!(result, 7);
}

/// An interpreter's foreign function returns a reference: it reaches the caller's frame through the slot, whatever moved meanwhile.
#[test]
fn a_reference_a_foreign_function_returns_reaches_the_callers_frame_current() {
    static SLOT: AtomicUsize = AtomicUsize::new(0);
    fn make(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        let result = mutator.vm().heap().alloc(&[], b"the result");
        SLOT.store(mutator.hand_over(result).unwrap().expose_provenance(), Ordering::Relaxed);
        collect(mutator);
        0
    }
    for guard in [Guard::Pins, Guard::RootsInPlace] {
        let mut main = Function::builder("main");
        let argument = main.reference_slot();
        let result = main.reference_slot();
        main.bytes(argument, b"the argument");
        main.foreign(Some(result), 0, &[argument]);
        main.check(result);
        main.give_back(result);
        let native = |_: &TestVm, _: &reentry::testkit::NativeArguments<'_>| {
            // SAFETY: the callbacks take an `int` and give one.
            unsafe {
                foreign_call_back(upcall_fn(make), 0);
                foreign_call_back(upcall_fn(collect_twice), 0);
            }
            let slot = core::ptr::with_exposed_provenance(SLOT.load(Ordering::Relaxed));
            // SAFETY: what `hand_over` gave in an upcall of this call.
            NativeResult::Slot(unsafe { ResultSlot::new(slot) })
        };
        let world = TestVm::builder(Program::new(vec![main.finish()]).unwrap())
            .guard(guard)
            .native(native)
            .build_world();
        let mut mutator = world.attach().unwrap();
        let Ok(Some(Value::Reference(result))) = TestVm::call(&mut mutator, "main", &[]) else { panic!() };
        assert_text(&world, result, "the result");
    }
}

/// A thousand results of one call: each is kept, and all of them end with it.
#[test]
fn a_thousand_references_handed_over_in_one_call_are_all_kept_until_it_ends() {
    static SLOTS: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    fn make(mutator: &mut Mutator<TestVm>, n: c_int) -> c_int {
        let result = mutator.vm().heap().alloc(&[], &n.to_le_bytes());
        SLOTS.lock().unwrap().push(mutator.hand_over(result).unwrap().expose_provenance());
        if n % 100 == 0 {
            collect(mutator);
        }
        0
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    // SAFETY: the callback takes an `int` and gives one.
    call.run(|| unsafe { foreign_call_back_many(upcall_fn(make), 1000) });
    for (n, slot) in SLOTS.lock().unwrap().iter().enumerate() {
        // SAFETY: a slot handed over in this call, which is not over.
        let reference = unsafe { core::ptr::with_exposed_provenance::<Ref>(*slot).read() };
        assert_eq!(world.vm().heap().bytes(reference).as_deref(), Ok(&(n as c_int).to_le_bytes()[..]));
    }
    drop(call);
    collect(&mut mutator);
    assert_eq!(world.vm().heap().live_objects(), 0);
}

/// Without a foreign call below there is nobody to hand a reference to; and a refused reference is refused here as well.
#[test]
fn handing_over_is_refused_without_a_caller_and_for_what_is_no_object() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let object = text(&world, "nobody's");
    assert_eq!(mutator.hand_over(object), Err(HandOverError::NoCaller));
    assert_eq!(mutator.hand_over_pinned(object), Err(HandOverError::NoCaller));
    let refuse = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, _: c_int| {
        let refused = HandOverError::Argument(ArgumentError::NotOfThisWorld { reference: 1 });
        assert_eq!(mutator.hand_over(Ref::from_address(1)), Err(refused));
        assert_eq!(mutator.hand_over_pinned(Ref::from_address(1)), Err(refused));
        1
    });
    // SAFETY: the data is the closure's, which lives.
    let ran = mutator
        .foreign_call()
        .run(|| unsafe { foreign_call_back_last(refuse.data_last(), 0, refuse.data()) });
    assert_eq!(ran, 1);
}
