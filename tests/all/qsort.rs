//! C's own sort with a managed comparator, which allocates and collects between any two of C's instructions that call it.

use crate::emulator::EMULATED;
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use reentry::testkit::{Ref, TestVm};
use reentry::{Mutator, World, upcall_fn};

unsafe extern "C" {
    fn qsort(
        base: *mut c_void,
        count: usize,
        size: usize,
        compare: extern "C" fn(*const c_void, *const c_void) -> c_int,
    );
}

/// The strings to sort: all different, in an order that sorting has to change.
fn strings(count: usize) -> Vec<String> {
    let scattered = |index: usize| index.wrapping_mul(0x9E37_79B9) % 1_000_003;
    (0..count).map(|index| format!("{:07} of {count}", scattered(index))).collect()
}

thread_local! {
    /// How many comparisons there were on this thread: each test has its own.
    static COMPARISONS: Cell<u64> = const { Cell::new(0) };
}

/// Compares, and allocates and collects first: on every `EVERY`th comparison.
fn compare_after_collecting<const EVERY: u64>(
    mutator: &mut Mutator<TestVm>,
    read: impl Fn(&TestVm) -> [Ref; 2],
) -> c_int {
    let number = COMPARISONS.get();
    COMPARISONS.set(number + 1);
    if number.is_multiple_of(EVERY) {
        mutator.vm().heap().alloc(&[], b"garbage of a comparison");
        TestVm::collect_in(mutator).unwrap();
    }
    let [a, b] = read(mutator.vm());
    mutator.vm().heap().compare_bytes(a, b).unwrap() as c_int
}

fn compare_pinned<const EVERY: u64>(
    mutator: &mut Mutator<TestVm>,
    a: *const c_void,
    b: *const c_void,
) -> c_int {
    // SAFETY: `qsort` gives addresses of elements, which are references.
    compare_after_collecting::<EVERY>(mutator, |_| [a, b].map(|at| unsafe { at.cast::<Ref>().read() }))
}

fn compare_indexes<const EVERY: u64>(
    mutator: &mut Mutator<TestVm>,
    a: *const c_void,
    b: *const c_void,
) -> c_int {
    compare_after_collecting::<EVERY>(mutator, |vm| {
        [a, b].map(|at| {
            // SAFETY: `qsort` gives addresses of elements, which are numbers of globals.
            vm.global(unsafe { at.cast::<usize>().read() })
        })
    })
}

/// Sorts an array of pinned references in the call's memory.
fn sort_pinned<const EVERY: u64>(count: usize) {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let mut expected = strings(count);
    let references: Vec<Ref> =
        expected.iter().map(|string| world.vm().heap().alloc(&[], string.as_bytes())).collect();
    let mut call = mutator.foreign_call();
    for reference in &references {
        call.pin(*reference).unwrap();
    }
    let array = call.copy_slice(&references);
    let compare: extern "C" fn(*const c_void, *const c_void) -> c_int = upcall_fn(compare_pinned::<EVERY>);
    // SAFETY: the array holds `count` references, and the comparator takes addresses of two of them.
    call.run(|| unsafe { qsort(array.as_ptr().cast(), count, size_of::<Ref>(), compare) });
    expected.sort();
    let sorted = call.read_slice(array);
    for (reference, expected) in sorted.iter().zip(&expected) {
        assert_eq!(world.vm().heap().bytes(*reference).as_deref(), Ok(expected.as_bytes()));
    }
    assert_eq!(sorted.len(), expected.len());
    if count > 1 {
        let (collections, moved) = world.vm().totals();
        assert!(collections > 0 && moved == 0, "everything was pinned");
    }
}

/// Sorts an array of indexes; the strings move at every collection.
fn sort_indexes<const EVERY: u64>(count: usize) {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let mut expected = strings(count);
    for string in &expected {
        world.vm().add_global(world.vm().heap().alloc(&[], string.as_bytes()));
    }
    let mut indexes: Vec<usize> = (0..count).collect();
    let compare: extern "C" fn(*const c_void, *const c_void) -> c_int = upcall_fn(compare_indexes::<EVERY>);
    let array = indexes.as_mut_ptr();
    // SAFETY: the array holds `count` indexes, and the comparator takes addresses of two of them.
    mutator.foreign_call().run(|| unsafe { qsort(array.cast(), count, size_of::<usize>(), compare) });
    expected.sort();
    for (index, expected) in indexes.iter().zip(&expected) {
        assert_eq!(world.vm().heap().bytes(world.vm().global(*index)).as_deref(), Ok(expected.as_bytes()));
    }
    if count > 1 {
        let (collections, moved) = world.vm().totals();
        assert!(collections > 0);
        assert_eq!(moved, collections * count as u64, "every string moved at every collection");
    }
}

/// larceny #402, Dart #37241: C's own sort, whose comparator is managed and collects at every comparison.
#[test]
fn qsort_sorts_pinned_strings_while_the_comparator_collects_every_time() {
    for count in [1, 2, 3, MANY_STRINGS] {
        sort_pinned::<1>(count);
    }
}

/// The same with strings that move at every comparison.
#[test]
fn qsort_sorts_strings_that_move_at_every_comparison() {
    for count in [1, 2, 3, MANY_STRINGS] {
        sort_indexes::<1>(count);
    }
}

/// The same with more elements than a comparator can collect for each time.
#[test]
fn qsort_sorts_very_many_strings_while_the_comparator_collects_now_and_then() {
    sort_indexes::<1000>(VERY_MANY_STRINGS);
    // A pin is two visits at each collection: more seldom.
    sort_pinned::<10_000>(VERY_MANY_STRINGS);
}

/// A collection visits every string, so the work grows with the square of these: without optimisation they are smaller, and smaller still in an emulator.
const MANY_STRINGS: usize = match (EMULATED, cfg!(debug_assertions)) {
    (true, _) => 100,
    (false, true) => 250,
    (false, false) => 1000,
};
const VERY_MANY_STRINGS: usize = match (EMULATED, cfg!(debug_assertions)) {
    (true, _) => 2_000,
    (false, true) => 5_000,
    (false, false) => 100_000,
};
