//! Faults for the tools of the gate to find, each a mistake with the crate that no run of the program shows by itself: without an argument the sound twins run, and no tool may say a word; with
//! `--fault NAME` one fault does, and its tool must find it (`.ci/asan`, `.ci/tsan`, `.ci/run`).

#![expect(clippy::missing_panics_doc, reason = "a check fails by panicking")]

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};
use reentry::testkit::TestVm;
use reentry::{Mutator, UpcallClosure, World};
use reentry_foreign::{Entry, Resource, foreign_close, foreign_fire, foreign_meet, foreign_register};
use std::thread;

/// Whether the mistake is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twin {
    Sound,
    Faulty,
}

/// C writes to memory of a call: after the call has been dropped, and its memory given back, if faulty.
fn memory_after_its_call(twin: Twin) {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().expect("a new world");
    let mut call = mutator.foreign_call();
    let kept = call.copy([1_i32, 0]).as_ptr().cast::<Resource>();
    // What the memory has no room for comes from a new block, and the call's end gives the older one back.
    call.copy_slice(&[0_u8; 1 << 16]);
    if twin == Twin::Sound {
        // SAFETY: memory of the call, of the layout of a `Resource`.
        call.run(|| unsafe { foreign_close(kept) });
    }
    drop(call);
    if twin == Twin::Faulty {
        // SAFETY: none: the call has been dropped.
        mutator.foreign_call().run(|| unsafe { foreign_close(kept) });
    }
}

/// C calls a closure with user data: after the closure has been dropped, if faulty.
fn closure_after_its_drop(twin: Twin) {
    let world = World::new(TestVm::new());
    let offset = Box::new(40);
    let add = move |_: &mut Mutator<TestVm>, x: c_int| -> c_int { x + *offset };
    let closure = UpcallClosure::new(&world, add);
    let mut entry = Entry { callback: None, user_data: core::ptr::null_mut() };
    // SAFETY: the entry lives here.
    unsafe { foreign_register(&raw mut entry, closure.data_last(), closure.data()) };
    let kept = (twin == Twin::Sound).then_some(closure);
    let mut mutator = world.attach().expect("a new world");
    // SAFETY: the closure is kept; but if faulty it is not.
    let sum = mutator.foreign_call().run(|| unsafe { foreign_fire(&raw const entry, 2) });
    assert_eq!(sum, 42);
    drop(kept);
}

/// The bytes of an object, for another thread.
struct Bytes(*mut c_void);

// SAFETY: the object is pinned while they are used.
unsafe impl Send for Bytes {}

impl Bytes {
    fn resource(&self) -> *mut Resource {
        self.0.cast()
    }
}

/// A pause writes to an object, and so does the thread that has it pinned for C: managed, when its call has waited for the pause to end; in the midst of the pause, as foreign code, if faulty.
fn writing_beside_a_pause(twin: Twin) {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().expect("a new world");
    let object = world.vm().heap().alloc(&[], &[1; 8]);
    let mut call = mutator.foreign_call();
    call.pin(object).expect("the test VM can pin");
    let bytes = reentry::Vm::bytes(world.vm(), object).expect("pinned");
    let (address, steps) = (bytes.as_ptr().cast::<c_void>(), AtomicU32::new(0));
    let shared = Bytes(address);
    thread::scope(|scope| {
        let (world, steps) = (&world, &steps);
        scope.spawn(move || {
            // Pairs with C's own.
            while steps.load(Ordering::Acquire) == 0 {
                thread::yield_now();
            }
            world.pause(|_| {
                // Before the write: what C does from here on is not ordered with it.
                steps.store(2, Ordering::Release);
                // SAFETY: a pinned object, in a pause.
                unsafe { foreign_close(shared.resource()) };
            });
        });
        let resource = Bytes(address).resource();
        call.run(|| {
            // SAFETY: the word lives.
            unsafe { foreign_meet(steps.as_ptr().cast_const().cast(), 1, 2) };
            if twin == Twin::Faulty {
                // SAFETY: none: the collector may be at work on the object.
                unsafe { foreign_close(resource) };
            }
        });
        // SAFETY: a pinned object, and this thread is managed: the pause is over.
        unsafe { foreign_close(resource) };
    });
}

/// What can be named.
type Planted = (&'static str, fn(Twin));

const FAULTS: [Planted; 3] = [
    ("memory-after-its-call", memory_after_its_call),
    ("closure-after-its-drop", closure_after_its_drop),
    ("writing-beside-a-pause", writing_beside_a_pause),
];

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    let named = arguments.iter().position(|argument| argument == "--fault").map(|at| arguments.get(at + 1));
    for (name, run) in FAULTS {
        match named {
            None => run(Twin::Sound),
            Some(fault) if fault.is_some_and(|fault| fault == name) => run(Twin::Faulty),
            Some(_) => {}
        }
    }
}
