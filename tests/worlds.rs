//! Worlds that are made, used by threads that come and go, and dropped, leave nothing behind. A binary of its own: it counts the bytes of the whole process.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::alloc::{GlobalAlloc, Layout};
use core::ffi::c_int;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use reentry::{
    Capture, Mutator, RootVisitor, Segment, StackScanner, Stragglers, UpcallClosure, Vm, World, upcall_fn,
};
use reentry_foreign::{foreign_call_back_last, foreign_threads};
use std::alloc::System;
use std::thread;

static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How many VMs and how many mutators' data there are.
static VMS: AtomicUsize = AtomicUsize::new(0);
static LOCALS: AtomicUsize = AtomicUsize::new(0);

struct Counted(&'static AtomicUsize);

impl Counted {
    fn new(counter: &'static AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Short(#[expect(dead_code, reason = "its drop counts")] Counted);

impl Vm for Short {
    type Ref = usize;
    type Local = (Counted, Vec<u8>);
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) -> Self::Local {
        (Counted::new(&LOCALS), vec![0; 100])
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Short {
    fn scan_segment(&self, _: &Self::Local, _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

fn body(mutator: &mut Mutator<Short>, x: c_int) -> c_int {
    let mut call = mutator.foreign_call();
    call.root(1);
    let _copied = call.copy([x; 16]);
    call.run(|| x)
}

/// One world's life.
fn live(round: usize) {
    let world = World::new(Short(Counted::new(&VMS)));
    world.adopt_foreign_threads();
    let mut mutator = world.attach().unwrap();
    mutator.poster().post(|_, _| (), 0).unwrap();
    let upcall = UpcallClosure::new(&world, body);
    let (function, data) = (upcall.data_last(), upcall.data());
    let ask = || ();
    let mut call = mutator.foreign_call().interruptible(&ask);
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    assert_eq!(call.run(|| unsafe { foreign_call_back_last(function, 3, data) }), 3);
    drop(call);
    let _noted = mutator.note_lock("a lock");
    if round.is_multiple_of(10) {
        // SAFETY: the world adopts foreign threads.
        assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_threads(2, 3, upcall_fn(body)) }), 6);
        mutator.foreign_call().run(|| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let mut mutator = world.attach().unwrap();
                    assert_eq!(mutator.pause(|stopped| stopped.mutators().count()), 2);
                });
            });
        });
    }
    if round.is_multiple_of(3) {
        assert_eq!(world.shutdown_within(Duration::from_secs(60), Stragglers::Fail).len(), 0);
    }
    if round.is_multiple_of(2) {
        // The last handle may as well be the mutator's.
        drop(upcall);
        drop(world);
    }
}

#[test]
fn ten_thousand_worlds_with_threads_that_come_and_go_leave_nothing_behind() {
    for round in 0..100 {
        live(round);
    }
    let before = LIVE.load(Ordering::Relaxed);
    for round in 0..10_000 {
        live(round);
    }
    let after = LIVE.load(Ordering::Relaxed);
    assert_eq!((VMS.load(Ordering::Relaxed), LOCALS.load(Ordering::Relaxed)), (0, 0), "each was dropped");
    eprintln!("{before} bytes live before, {after} after");
    // The test's own thread and the standard library's may keep a little; a byte for each world would be 10,000.
    assert!(after < before + 2_000, "{before} bytes were live before, {after} are after");
}
