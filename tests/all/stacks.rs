//! Upcalls on stacks that nobody has announced: C's `makecontext`, and a coroutine that a foreign call switches to. An unknown stack pointer opens a segment there, and is mistaken for
//! nothing else.

use crate::plain::for_each_strategy;
use core::cell::{Cell, RefCell};
use core::ffi::c_int;
use core::ops::Range;
use corosensei::Coroutine;
use corosensei::stack::{DefaultStack, Stack as _};
use reentry::{
    Capture, FenceStrategy, Mutator, Report, RootVisitor, Segment, StackScanner, UpcallClosure, Vm, World,
    upcall_fn,
};
use reentry_foreign::{
    foreign_call_back, foreign_call_back_last, foreign_call_back_on_context, foreign_word,
};
use std::sync::Mutex;
use std::thread;

/// A conservative scanner that reads every word it is told of, and remembers where they stood.
struct Words {
    segments: Mutex<Vec<(usize, Range<usize>)>>,
    reports: Mutex<Vec<String>>,
}

impl Vm for Words {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Registers;

    fn attach(&self) {}

    fn report(&self, report: &Report<'_>) {
        self.reports.lock().unwrap().push(report.to_string());
    }
}

// SAFETY: S1, S2: no object moves or is freed, and nothing is reported. S3, S4: it reads, and takes a lock that no mutator holds at a safepoint. S5: it stays within `words`. S6: no fault.
unsafe impl StackScanner for Words {
    fn scan_segment(&self, (): &(), segment: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {
        let words = segment.words();
        let mut sum = 0_usize;
        for address in (words.start.next_multiple_of(8)..words.end).step_by(8) {
            // SAFETY: a word of a stack whose thread is stopped or foreign, between the crossing and the entry.
            sum ^= unsafe { foreign_word(core::ptr::with_exposed_provenance(address)) };
        }
        core::hint::black_box(sum);
        self.segments.lock().unwrap().push((segment.depth(), words));
    }
}

struct Nothing;

impl RootVisitor<usize> for Nothing {
    fn slot(&mut self, _: reentry::Slot<'_, usize>) {}
    fn pinned(&mut self, _: usize) {}
    fn transitively_pinned(&mut self, _: usize) {}
}

impl Words {
    fn world(fence: FenceStrategy) -> World<Self> {
        World::<Self>::builder()
            .fence(fence)
            .build(Self { segments: Mutex::default(), reports: Mutex::default() })
    }

    /// The segments of the running thread, by depth, oldest first.
    fn look(mutator: &mut Mutator<Self>) -> Vec<Range<usize>> {
        mutator.vm().segments.lock().unwrap().clear();
        mutator.pause(|stopped| stopped.enumerate(&mut Nothing));
        let mut segments = core::mem::take(&mut *mutator.vm().segments.lock().unwrap());
        segments.sort_unstable_by_key(|(depth, _)| *depth);
        segments.into_iter().map(|(_, words)| words).collect()
    }

    #[track_caller]
    fn assert_no_report(&self) {
        assert_eq!(*self.reports.lock().unwrap(), [""; 0]);
    }
}

#[track_caller]
fn assert_within(words: &Range<usize>, stack: &Range<usize>) {
    assert!(
        !words.is_empty() && stack.contains(&words.start) && words.end <= stack.end,
        "{words:x?} is not in {stack:x?}"
    );
}

/// The stack of the test's thread, as far as it matters: what lies below the frame of the test and not far from it.
fn near(address: usize) -> Range<usize> {
    address - (1 << 20)..address + (1 << 20)
}

thread_local! {
    /// The unknown stacks in use, outermost first; and the segments that were seen from the innermost upcall.
    static STACKS: RefCell<Vec<Range<usize>>> = const { RefCell::new(Vec::new()) };
    static SEEN: RefCell<Vec<Range<usize>>> = const { RefCell::new(Vec::new()) };
    static BOUNDS: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
}

/// Calls C, which calls back on a stack it has made; and so on, `x` times.
fn nest(mutator: &mut Mutator<Words>, x: c_int) -> c_int {
    if BOUNDS.get()[1] != 0 {
        let [start, end] = BOUNDS.take();
        STACKS.with_borrow_mut(|stacks| stacks.push(start..end));
    }
    let below = if x == 0 {
        SEEN.set(Words::look(mutator));
        0
    } else {
        // SAFETY: the callback takes what C gives it, and the bounds are written to two words.
        let below = mutator.foreign_call().run(|| unsafe {
            foreign_call_back_on_context(upcall_fn(nest), x - 1, 256 * 1024, BOUNDS.with(Cell::as_ptr).cast())
        });
        // Back on this stack, with everything as it was: an upcall on it is in order too.
        let plain: extern "C" fn(c_int) -> c_int = upcall_fn(|mutator: &mut Mutator<Words>, x: c_int| {
            c_int::try_from(Words::look(mutator).len()).unwrap() + x
        });
        let depth = c_int::try_from(mutator.depth()).unwrap();
        // SAFETY: the callback takes what C gives it.
        assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back(plain, 0) }), depth + 2);
        below
    };
    below + 1
}

#[test]
fn an_upcall_on_a_stack_that_c_made_opens_a_segment_on_that_stack() {
    for_each_strategy(|fence| {
        // A thread of its own: its stack is not the main thread's, so either lies above the other in memory.
        thread::spawn(move || {
            let here = core::ptr::from_ref(&fence).addr();
            let world = Words::world(fence);
            let mut mutator = world.attach().unwrap();
            for depth in 1..=3 {
                assert_eq!(nest(&mut mutator, depth), depth + 1);
                let (stacks, segments) = (STACKS.take(), SEEN.take());
                let depth = usize::try_from(depth).unwrap();
                assert_eq!((stacks.len(), segments.len()), (depth, depth + 1));
                assert!(near(here).contains(&segments[0].start));
                for (words, stack) in segments[1..].iter().zip(&stacks) {
                    assert_within(words, stack);
                }
            }
            world.vm().assert_no_report();
        })
        .join()
        .unwrap();
    });
}

/// A coroutine that a foreign call switches to and comes back from, twice, with an upcall each time and one left unfinished in between: the coroutine's stack is no fiber's.
#[test]
fn an_upcall_on_a_coroutines_stack_opens_a_segment_on_that_stack() {
    for_each_strategy(|fence| {
        let here = core::ptr::from_ref(&fence).addr();
        let world = Words::world(fence);
        let mut mutator = world.attach().unwrap();
        let look = |mutator: &mut Mutator<Words>, x: c_int| {
            SEEN.set(Words::look(mutator));
            x
        };
        let of = world.clone();
        let stack = DefaultStack::new(256 * 1024).unwrap();
        let bounds = stack.limit().get()..stack.base().get();
        let mut coroutine = Coroutine::<(), (), (), _>::with_stack(stack, move |yielder, ()| {
            for _ in 0..2 {
                let closure = UpcallClosure::new(&of, look);
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                assert_eq!(unsafe { foreign_call_back_last(closure.data_last(), 4, closure.data()) }, 4);
                // SAFETY: the callback takes what C gives it.
                assert_eq!(unsafe { foreign_call_back(upcall_fn(look), 5) }, 5);
                yielder.suspend(());
            }
        });
        for _ in 0..2 {
            mutator.foreign_call().run(|| {
                coroutine.resume(());
                let segments = SEEN.take();
                assert_eq!(segments.len(), 2);
                assert_within(&segments[1], &bounds);
                assert!(near(here).contains(&segments[0].start));
            });
            assert_eq!(Words::look(&mut mutator).len(), 1);
        }
        mutator.foreign_call().run(|| coroutine.resume(()));
        world.vm().assert_no_report();
    });
}

/// A fiber's own segments: its stack is no thread's, and each activation's words are on it.
#[test]
fn the_words_of_a_suspended_fiber_are_those_of_its_own_stack() {
    for_each_strategy(|fence| {
        let world = Words::world(fence);
        let mut mutator = world.attach().unwrap();
        let fiber = std::sync::Arc::new(world.fiber().unwrap());
        let inner = std::sync::Arc::clone(&fiber);
        let stack = DefaultStack::new(256 * 1024).unwrap();
        let bounds = stack.limit().get()..stack.base().get();
        let mut coroutine = Coroutine::<(), (), (), _>::with_stack(stack, move |yielder, ()| {
            inner.run(|mutator| mutator.suspend(|| yielder.suspend(())).unwrap()).unwrap();
        });
        for ended in [false, true] {
            mutator.resume(&fiber, || coroutine.resume(()).as_yield()).unwrap();
            let segments = Words::look(&mut mutator);
            assert_eq!(segments.len(), if ended { 1 } else { 2 });
            assert_eq!(
                segments.iter().filter(|words| bounds.contains(&words.start)).count(),
                segments.len() - 1
            );
            for words in segments.iter().filter(|words| bounds.contains(&words.start)) {
                assert_within(words, &bounds);
            }
        }
        world.vm().assert_no_report();
    });
}
