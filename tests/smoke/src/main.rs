//! Foreign calls, upcalls, collections, errors, handles, threads and pauses on whatever machine this is, with the C library as the foreign code. Exits with 0 if all of it holds.

#![expect(clippy::missing_panics_doc, reason = "a check fails by panicking")]

use core::ffi::{c_int, c_void};
use core::panic::AssertUnwindSafe;
use reentry::testkit::{Ref, TestVm};
use reentry::{Mutator, World, upcall_fn};
use std::panic::catch_unwind;
use std::thread;

/// A comparator that allocates, collects (which moves every object that is not pinned, and the operand stack), and may fail.
fn compare<const FAIL: bool>(mutator: &mut Mutator<TestVm>, a: *const c_void, b: *const c_void) -> c_int {
    mutator.vm().heap().alloc(&[], b"garbage of a comparison");
    TestVm::collect_in(mutator).unwrap();
    if FAIL {
        std::panic::resume_unwind(Box::new("from under C"));
    }
    // SAFETY: `qsort` gives the addresses of elements, which are references.
    let [a, b] = [a, b].map(|at| unsafe { at.cast::<Ref>().read() });
    mutator.vm().heap().compare_bytes(a, b).unwrap() as c_int
}

/// Sorts `count` texts, and looks at them and at a root that has moved meanwhile.
fn sort<const FAIL: bool>(world: &World<TestVm>, mutator: &mut Mutator<TestVm>, count: usize) {
    let heap = world.vm().heap();
    let text = |index: usize| format!("{:04}", index.wrapping_mul(7919) % 10_007).into_bytes();
    let rooted = heap.alloc(&[], b"rooted");
    let kept = mutator.handle(rooted);
    let mut call = mutator.foreign_call();
    let root = call.root(rooted);
    let mut elements: Vec<Ref> =
        (0..count).map(|index| call.pin(heap.alloc(&[], &text(index))).unwrap().get()).collect();
    let base = elements.as_mut_ptr().cast();
    let function: unsafe extern "C" fn(*const c_void, *const c_void) -> c_int = {
        let safe: extern "C" fn(*const c_void, *const c_void) -> c_int = upcall_fn(compare::<FAIL>);
        safe
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `count` elements of the size of a reference, and a comparator of two of them.
        call.run(|| unsafe { libc::qsort(base, count, size_of::<Ref>(), Some(function)) })
    }));
    if FAIL {
        assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"from under C"));
    } else {
        let mut expected: Vec<_> = (0..count).map(text).collect();
        expected.sort();
        let sorted: Vec<_> = elements.iter().map(|&element| heap.bytes(element).unwrap()).collect();
        assert_eq!(sorted, expected);
    }
    assert_ne!(call.get(root), rooted, "it has moved");
    assert_eq!(heap.bytes(call.get(root)).unwrap(), b"rooted");
    drop(call);
    assert_eq!(heap.bytes(mutator.load(&kept)).unwrap(), b"rooted");
}

fn main() {
    let world = World::new(TestVm::new());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                for count in [2, 3, 30] {
                    sort::<false>(&world, &mut mutator, count);
                    mutator.poll();
                    sort::<true>(&world, &mut mutator, count);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..50 {
                world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
                thread::yield_now();
            }
        });
    });
    assert_eq!(world.attached(), 0);
    let summary = world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
    assert_eq!((summary.live, summary.pinned), (0, 0), "nothing is held any more");
    let (collections, moved) = world.vm().totals();
    assert!(collections > 50 && moved > 100, "{collections} collections moved {moved} objects");
    eprintln!(
        "{}, {:?} fences: {collections} collections moved {moved} objects under C's own sort",
        std::env::consts::ARCH,
        world.fence()
    );
}
