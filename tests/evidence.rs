//! Which foreign call an upcall belongs to, and what becomes of calls that foreign code leaves: evidence, and no stack pointer alone.
//!
//! A binary of its own: signal stacks are changed, and some tests end the process. Each of those runs itself again in a process of its own.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

#[path = "evidence/scenarios.rs"]
mod scenarios;

use core::cell::{Cell, RefCell};
use core::ffi::{c_int, c_void};
use core::hint::black_box;
use core::ptr;
use corosensei::{Coroutine, CoroutineResult};
use reentry::{
    AttachError, Capture, FallbackOnly, Mutator, RootVisitor, Segment, Slot, StackScanner, UpcallClosure, Vm,
    World, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{NESTS, Nest, foreign_call_back_last_and_go_on, foreign_word};

#[path = "all/emulator.rs"]
mod emulator;

const CHILD: &str = "REENTRY_ABORTING_TEST";

/// Runs `misuse` in a process of its own, the test `name` of this file, and checks that it aborts saying all of `says`.
#[track_caller]
fn aborts(name: &str, says: &[&str], misuse: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some_and(|child| child == name) {
        misuse();
        // Not reached; if it is, the parent sees this status in place of the signal.
        std::process::exit(77);
    }
    let mut child = emulator::this_binary();
    let output = child.args([name, "--exact", "--nocapture"]).env(CHILD, name).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;
        const SIGABRT: c_int = 6;
        assert_eq!(output.status.signal(), Some(SIGABRT), "{}: {said}", output.status);
    }
    assert!(!output.status.success());
    for part in says {
        assert!(said.contains(part), "it does not say `{part}`: {said}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_call_that_is_not_over_keeps_what_it_declared_on_every_stack() {
    assert_eq!(scenarios::run_all(), 24);
}

/// The same where the thread is foreign, and its signal stack lies in its first frame: nothing is above.
#[test]
#[cfg(target_os = "linux")]
fn a_foreign_thread_may_have_its_signal_stack_in_its_first_frame() {
    fn outer(mutator: &mut Mutator<Virtual>, _: c_int, nest: *mut c_void) -> c_int {
        let inner: Step =
            upcall_fn(|mutator: &mut Mutator<Virtual>, _: c_int, _: *mut c_void| mutator.depth() as c_int);
        let mut call = mutator.foreign_call();
        let root = call.root(5);
        // SAFETY: the nest that is given below, whose stack is there.
        let depth = call.run(|| unsafe { ((*nest.cast::<Nest>()).on_stack)(inner, 0, nest) });
        assert_eq!(call.get(root), 5);
        depth
    }
    for nest in NESTS {
        let world = World::new(Virtual);
        world.adopt_foreign_threads();
        let thread = std::thread::spawn(move || {
            let data = ptr::from_ref(&nest).cast_mut().cast();
            // SAFETY: the callbacks take what C gives them.
            unsafe { (nest.with_stack_in_frame)(1, upcall_fn(outer), 0, data) }
        });
        assert_eq!(thread.join().unwrap(), 2, "{nest:?}");
    }
}

macro_rules! small_vm {
    ($(#[$meta:meta])* $name:ident, $capture:ident) => {
        $(#[$meta])*
        struct $name;

        impl Vm for $name {
            type Ref = usize;
            type Local = u64;
            type Exception = core::convert::Infallible;
            const CAPTURE: Capture = Capture::$capture;

            fn attach(&self) -> u64 {
                0
            }
        }

        // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
        unsafe impl StackScanner for $name {
            fn scan_segment(&self, _: &u64, _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
        }
    };
}

small_vm!(
    /// A VM whose frames stand on a stack of its own.
    Virtual,
    Nothing
);
small_vm!(
    /// A VM with stack maps, whose scanner walks native frames.
    Native,
    Anchor
);
small_vm!(
    /// A VM whose native frames are scanned conservatively.
    Saving,
    Registers
);

/// Upcall functions that Rust calls, so that the compiler sees through the pointer: the innermost and the outermost of them stand in for C.
fn rust_calls_upcalls_directly<V: StackScanner<Ref = usize, Local = u64>>(vm: V) {
    fn inner<V: StackScanner<Ref = usize, Local = u64>>(mutator: &mut Mutator<V>) -> c_int {
        *mutator.local_mut() += 1;
        mutator.depth() as c_int
    }
    fn outer<V: StackScanner<Ref = usize, Local = u64>>(mutator: &mut Mutator<V>) -> c_int {
        let mut call = mutator.foreign_call();
        let root = call.root(41);
        let depth = call.run(|| {
            let function: extern "C" fn() -> c_int = upcall_fn(inner::<V>);
            function()
        });
        depth * 1000 + call.get(root) as c_int
    }
    // What the compiler knows of the outer pointer differs.
    let world = World::new(vm);
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let root = call.root(40);
    let result = call.run(|| {
        let function: extern "C" fn() -> c_int = upcall_fn(outer::<V>);
        function()
    });
    assert_eq!((result, call.get(root)), (2041, 40));
    drop(call);
    let function = black_box::<extern "C" fn() -> c_int>(upcall_fn(outer::<V>));
    assert_eq!(mutator.foreign_call().run(|| function()), 2041);
    let (base, counter) = (black_box(40), Cell::new(0));
    let closure = UpcallClosure::new(&world, |_: &mut Mutator<V>, x: c_int| base + x);
    let (first, last, data) = (closure.data_first(), closure.data_last(), closure.data());
    counter.set(counter.get() + 1);
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let sum = mutator.foreign_call().run(|| unsafe { first(data, 2) + last(3, data) });
    assert_eq!(sum, 85);
}

/// With one codegen unit, or link-time optimisation, the functions that C enters by would be inlined into these calls, and their stack pointer would be the call's own.
#[test]
fn an_upcall_that_rust_calls_directly_is_one_of_the_call_it_is_made_in() {
    rust_calls_upcalls_directly(Virtual);
    rust_calls_upcalls_directly(Native);
    rust_calls_upcalls_directly(Saving);
}

fn call_upcall_from_managed_code<V: StackScanner<Ref = usize, Local = u64>>(vm: V) {
    fn inner<V: StackScanner<Ref = usize, Local = u64>>(mutator: &mut Mutator<V>) -> c_int {
        *mutator.local_mut() += 1;
        1
    }
    fn wrong<V: StackScanner<Ref = usize, Local = u64>>(_: &mut Mutator<V>) -> c_int {
        let function: extern "C" fn() -> c_int = upcall_fn(inner::<V>);
        function()
    }
    let world = World::new(vm);
    let mut mutator = world.attach().unwrap();
    let function = black_box::<extern "C" fn() -> c_int>(upcall_fn(wrong::<V>));
    mutator.foreign_call().run(|| function());
}

/// Inlined into the managed code that calls it, such an upcall would look like one after a jump.
#[test]
fn an_upcall_that_managed_code_calls_directly_aborts() {
    let says = ["cannot receive an upcall: it is managed, in an upcall of the foreign call at"];
    aborts("an_upcall_that_managed_code_calls_directly_aborts", &says, || {
        call_upcall_from_managed_code(Virtual);
    });
}

// Coroutines of a safe crate.

thread_local! {
    static COROUTINE: RefCell<Option<Coroutine<(), (), ()>>> = const { RefCell::new(None) };
}

/// Switches to the coroutine. Says whether it has suspended, and not ended.
fn step() -> bool {
    let mut coroutine = COROUTINE.take().unwrap();
    let suspended = matches!(coroutine.resume(()), CoroutineResult::Yield(()));
    COROUTINE.set(Some(coroutine));
    suspended
}

/// Runs `body` in an upcall of a foreign call that a coroutine has made and suspended in.
fn in_an_upcall_of_a_suspended_coroutine<F>(body: F)
where
    F: Fn(&mut Mutator<Virtual>) -> c_int + Copy + Send + Sync + 'static,
{
    let world = World::new(Virtual);
    let function: extern "C" fn() -> c_int = upcall_fn(body);
    COROUTINE.set(Some(Coroutine::new(move |yielder, ()| {
        let mut mutator = world.attach().unwrap();
        mutator.foreign_call().run(|| yielder.suspend(()));
        yielder.suspend(());
    })));
    assert!(step());
    function();
}

#[test]
fn a_coroutine_whose_call_is_called_back_and_then_resumed_works() {
    let world = World::new(Virtual);
    let of = world.clone();
    COROUTINE.set(Some(Coroutine::new(move |yielder, ()| {
        let mut mutator = of.attach().unwrap();
        let mut call = mutator.foreign_call();
        let root = call.root(7);
        call.run(|| yielder.suspend(()));
        assert_eq!(call.get(root), 7);
    })));
    assert!(step());
    let function: extern "C" fn() -> c_int =
        upcall_fn(|mutator: &mut Mutator<Virtual>| mutator.depth() as c_int);
    assert_eq!(function(), 1, "on another stack, and in the call all the same");
    assert!(!step());
}

#[test]
fn a_call_that_comes_back_inside_its_own_managed_upcall_aborts() {
    let says = [
        "the foreign call at",
        "came back inside an upcall of its own, on a stack that the upcall has resumed",
    ];
    aborts("a_call_that_comes_back_inside_its_own_managed_upcall_aborts", &says, || {
        in_an_upcall_of_a_suspended_coroutine(|_| c_int::from(step()));
    });
}

#[test]
fn a_call_that_comes_back_inside_a_call_of_its_own_upcall_aborts() {
    let says = [
        "the foreign call at",
        "came back inside an upcall of its own, on a stack that the upcall has resumed",
    ];
    aborts("a_call_that_comes_back_inside_a_call_of_its_own_upcall_aborts", &says, || {
        in_an_upcall_of_a_suspended_coroutine(|mutator| {
            let mut call = mutator.foreign_call();
            call.root(5);
            c_int::from(call.run(step))
        });
    });
}

#[test]
fn a_coroutine_that_is_dropped_in_an_upcall_of_its_own_call_aborts() {
    let says = [
        "the foreign call at",
        "came back inside an upcall of its own, on a stack that the upcall has resumed",
    ];
    aborts("a_coroutine_that_is_dropped_in_an_upcall_of_its_own_call_aborts", &says, || {
        in_an_upcall_of_a_suspended_coroutine(|_| {
            drop(COROUTINE.take());
            0
        });
    });
}

/// An upcall on a coroutine suspends, managed as it is; the call that it is in comes back.
#[test]
fn a_call_that_comes_back_while_an_upcall_of_it_is_suspended_managed_aborts() {
    let says = ["the foreign call at", "came back, and an upcall of it on another stack has not returned"];
    aborts("a_call_that_comes_back_while_an_upcall_of_it_is_suspended_managed_aborts", &says, || {
        let world = World::new(Virtual);
        let mut mutator = world.attach().unwrap();
        COROUTINE.set(Some(Coroutine::new(|yielder, ()| {
            YIELDER.set(ptr::from_ref(yielder).cast());
            let function: extern "C" fn() -> c_int = upcall_fn(|_: &mut Mutator<Virtual>| {
                // SAFETY: the coroutine's own, which runs this.
                unsafe { &*YIELDER.get().cast::<corosensei::Yielder<(), ()>>() }.suspend(());
                0
            });
            function();
        })));
        mutator.foreign_call().run(step);
    });
}

thread_local! {
    static YIELDER: Cell<*const c_void> = const { Cell::new(ptr::null()) };
}

/// A call of a coroutine is suspended when the call below it comes back: that ends it, and it must not go on. Whether another activation is in its place by then, or nothing any more.
#[test]
fn a_call_that_goes_on_after_an_older_one_has_come_back_aborts() {
    let says = ["came back after an older call of its thread had come back, which ended it"];
    aborts("a_call_that_goes_on_after_an_older_one_has_come_back_aborts", &says, || {
        resume_a_call_that_has_ended(false);
    });
}

#[test]
fn a_call_that_goes_on_in_place_of_another_aborts() {
    let says = ["came back after an older call of its thread had come back, which ended it"];
    aborts("a_call_that_goes_on_in_place_of_another_aborts", &says, || resume_a_call_that_has_ended(true));
}

/// Ends the mutator, or has another upcall in the place of the one that has ended, before the suspended call goes on.
fn resume_a_call_that_has_ended(in_place: bool) {
    fn suspend(mutator: &mut Mutator<Virtual>) -> c_int {
        let mut call = mutator.foreign_call();
        let root = call.root(5);
        call.run(|| {
            // SAFETY: the coroutine's own, which runs this.
            unsafe { &*YIELDER.get().cast::<corosensei::Yielder<(), ()>>() }.suspend(());
        });
        eprintln!("it has gone on, and holds {}", call.get(root));
        0
    }
    fn suspended() -> Coroutine<(), (), ()> {
        let mut coroutine = Coroutine::new(|yielder, ()| {
            YIELDER.set(ptr::from_ref(yielder).cast());
            let function: extern "C" fn() -> c_int = upcall_fn(suspend);
            function();
        });
        assert!(coroutine.resume(()).as_yield().is_some());
        coroutine
    }
    let world = World::new(Virtual);
    let mut mutator = world.attach().unwrap();
    let mut first = mutator.foreign_call().run(suspended);
    if in_place {
        let yielder = YIELDER.get();
        mutator.foreign_call().run(|| {
            let _second = core::mem::ManuallyDrop::new(suspended());
            YIELDER.set(yielder);
            first.resume(());
        });
    } else {
        drop(mutator);
        drop(world);
        first.resume(());
    }
}

// Native frames.

/// A word that is written nowhere as it is, so that a scan finds only what holds it.
const KEY: usize = 0x5A5A_A5A5_5A5A_A5A5;

/// A conservative scanner that counts a word in the segments.
struct Words {
    wanted: Cell<usize>,
    seen: Cell<usize>,
}

// SAFETY: each test uses its world on one thread.
unsafe impl Sync for Words {}

impl Vm for Words {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Registers;

    fn attach(&self) {}
}

// SAFETY: S1, S2: no object moves or is freed. S3, S4: it reads. S5: it stays within `words`. S6: no fault.
unsafe impl StackScanner for Words {
    fn scan_segment(&self, (): &(), segment: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {
        let look = |word: usize| {
            if word ^ KEY == self.wanted.get() {
                self.seen.set(self.seen.get() + 1);
            }
        };
        let words = segment.words();
        for address in (words.start.next_multiple_of(8)..words.end).step_by(8) {
            // SAFETY: a word of a stack whose thread is stopped or foreign, between the crossing and the entry.
            look(unsafe { foreign_word(ptr::with_exposed_provenance(address)) });
        }
        segment.registers().iter().copied().for_each(look);
    }
}

struct Nobody;

impl RootVisitor<usize> for Nobody {
    fn slot(&mut self, _: Slot<'_, usize>) {}
    fn pinned(&mut self, _: usize) {}
    fn transitively_pinned(&mut self, _: usize) {}
}

impl Words {
    fn world(object: usize) -> World<Self> {
        World::new(Self { wanted: Cell::new(object ^ KEY), seen: Cell::new(0) })
    }

    /// How often a scan finds the word, with the stack below overwritten.
    #[inline(never)]
    fn scan(mutator: &mut Mutator<Self>) -> usize {
        let mut clean = [0_usize; 4000];
        black_box(&mut clean);
        mutator.pause(|stopped| stopped.enumerate(&mut Nobody));
        mutator.vm().seen.replace(0)
    }
}

const OBJECT: usize = 0x1234_5678_9ABC_0000;

/// What the scan finds in a frame of managed code that holds the word.
#[inline(never)]
fn find_what_a_frame_holds(mutator: &mut Mutator<Words>) -> usize {
    let held = black_box([OBJECT; 4]);
    let found = Words::scan(mutator);
    black_box(held);
    found
}

#[test]
#[cfg(target_os = "linux")]
fn a_thread_that_attaches_on_a_coroutines_stack_is_scanned_on_that_stack() {
    std::thread::spawn(|| {
        let world = Words::world(OBJECT);
        let mut coroutine = Coroutine::<(), (), usize>::new(move |_, ()| {
            let mut mutator = world.attach().unwrap();
            find_what_a_frame_holds(&mut mutator)
        });
        let found = coroutine.resume(()).as_return().unwrap();
        assert!(found >= 4, "{found}");
    })
    .join()
    .unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_thread_whose_stack_nothing_tells_of_does_not_attach_for_a_conservative_collector() {
    thread_local! { static OUTCOME: Cell<Option<AttachError>> = const { Cell::new(None) }; }
    extern "C" fn attach(_: c_int, _: *mut c_void) -> c_int {
        OUTCOME.set(Words::world(OBJECT).attach().err());
        3
    }
    extern "C" fn switch(_: c_int, nest: *mut c_void) -> c_int {
        // SAFETY: the nest that is given below, whose stack is there.
        unsafe { ((*nest.cast::<Nest>()).on_stack)(attach, 0, nest) }
    }
    for (nest, expected) in NESTS.iter().zip([None, Some(AttachError::UnknownStack)]) {
        let data = ptr::from_ref(nest).cast_mut().cast();
        // SAFETY: the callbacks take what C gives them.
        assert_eq!(unsafe { (nest.with_stack_on_heap)(0, switch, 0, data) }, 3);
        assert_eq!(OUTCOME.take(), expected, "{nest:?}");
    }
}

/// Managed code that switches stacks has frames on both, and nothing tells where.
#[test]
#[cfg(target_os = "linux")]
fn a_scan_of_managed_code_that_has_switched_stacks_aborts() {
    let says = [
        "the activation that crossed at",
        "was entered on one stack",
        "run managed code that switches stacks as a `Fiber`",
    ];
    aborts("a_scan_of_managed_code_that_has_switched_stacks_aborts", &says, || {
        let mutator = Box::leak(Box::new(Words::world(OBJECT).attach().unwrap()));
        Coroutine::<(), (), ()>::new(move |_, ()| mutator.pause(|stopped| stopped.enumerate(&mut Nobody)))
            .resume(());
    });
}

/// An upcall in an upcall, on a stack that lies in a frame of C above both, of a VM whose native frames are scanned. Returns the depth of the inner one.
#[cfg(target_os = "linux")]
fn call_back_on_a_stack_in_a_frame(nest: &Nest, for_signals: bool) -> c_int {
    fn outer(mutator: &mut Mutator<Saving>, _: c_int, nest: *mut c_void) -> c_int {
        let inner: Step =
            upcall_fn(|mutator: &mut Mutator<Saving>, _: c_int, _: *mut c_void| mutator.depth() as c_int);
        // SAFETY: the nest that is given below, whose stack is there.
        mutator.foreign_call().run(|| unsafe { ((*nest.cast::<Nest>()).on_stack)(inner, 0, nest) })
    }
    let world = World::new(Saving);
    let mut mutator = world.attach().unwrap();
    let (data, for_signals) = (ptr::from_ref(nest).cast_mut().cast(), c_int::from(for_signals));
    mutator.foreign_call().run(|| {
        // SAFETY: the callbacks take what C gives them.
        unsafe { (nest.with_stack_in_frame)(for_signals, upcall_fn(outer), 0, data) }
    })
}

/// The kernel knows a signal stack; no unwind table is needed.
#[test]
#[cfg(target_os = "linux")]
fn an_upcall_of_a_signal_handler_is_one_of_the_call_that_the_signal_has_interrupted() {
    for nest in NESTS {
        assert_eq!(call_back_on_a_stack_in_a_frame(&nest, true), 2, "{nest:?}");
    }
}

/// C without unwind tables switches to a stack in a frame of its own: it may as well have jumped, and a scanner of native frames would walk what is gone.
#[test]
#[cfg(target_os = "linux")]
fn an_upcall_of_which_nothing_tells_aborts_where_native_frames_are_scanned() {
    assert_eq!(call_back_on_a_stack_in_a_frame(&NESTS[0], false), 2, "with tables it is known");
    let says = [
        "nothing tells whether it is one of the foreign call at",
        "or whether C has jumped past that call to the one at",
        "tests/evidence.rs",
    ];
    aborts("an_upcall_of_which_nothing_tells_aborts_where_native_frames_are_scanned", &says, || {
        call_back_on_a_stack_in_a_frame(&NESTS[1], false);
    });
}

/// A signal stack has its own end: wherever it lies, endless recursion on it is refused before that, and the handler's C gets its fallback values.
#[test]
#[cfg(target_os = "linux")]
fn endless_recursion_on_a_signal_stack_ends_in_a_refusal() {
    thread_local! { static LEVELS: Cell<u32> = const { Cell::new(0) }; }
    fn recurse(mutator: &mut Mutator<Virtual>, x: c_int, data: *mut c_void) -> c_int {
        LEVELS.set(LEVELS.get() + 1);
        let function: Step = upcall_fn_or(FallbackOnly(recurse), || -5);
        // SAFETY: the callback takes what C gives it.
        mutator.foreign_call().run(|| unsafe { foreign_call_back_last_and_go_on(function, x, data) })
    }
    fn on_stack(mutator: &mut Mutator<Virtual>, x: c_int, nest: *mut c_void) -> c_int {
        // SAFETY: the nest that is given below, whose stack is there.
        mutator
            .foreign_call()
            .run(|| unsafe { ((*nest.cast::<Nest>()).on_stack)(upcall_fn(recurse), x, nest) })
    }
    let nest = &NESTS[0];
    for with in [nest.with_stack_in_frame, nest.with_stack_on_heap] {
        let world = World::new(Virtual);
        let mut mutator = world.attach().unwrap();
        let data = ptr::from_ref(nest).cast_mut().cast();
        let mut levels = Vec::new();
        for _ in 0..2 {
            LEVELS.set(0);
            // SAFETY: the callbacks take what C gives them.
            let result = mutator.foreign_call().run(|| unsafe { with(1, upcall_fn(on_stack), 0, data) });
            let count = LEVELS.get();
            assert_eq!(result, count as c_int - 5, "each level has added one to the fallback value");
            levels.push(count);
        }
        // 256 KiB of stack, of which 64 are kept in reserve.
        assert!(levels.iter().all(|levels| (10..3000).contains(levels)), "{levels:?}");
    }
}

type Step = extern "C" fn(c_int, *mut c_void) -> c_int;

/// Stands for C that has an object's address in the arguments of a call, and nowhere else.
#[cfg(feature = "libffi")]
mod arguments {
    use super::{KEY, OBJECT, Words, black_box};
    use core::ffi::c_void;
    use reentry::dynamic::{Closure, Signature};
    use reentry::{Mutator, upcall_fn};

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Large {
        words: [usize; 5],
    }

    type Two = extern "C" fn(usize, usize) -> i64;
    type Many = extern "C" fn(usize, usize, usize, usize, usize, usize, usize, usize, usize) -> i64;
    type ByValue = extern "C" fn(i32, Large) -> i64;

    #[inline(never)]
    fn call_two(function: Two, disguised: usize) -> i64 {
        black_box(function)(1, black_box(disguised) ^ KEY)
    }

    #[inline(never)]
    fn call_many(function: Many, disguised: usize) -> i64 {
        black_box(function)(1, 2, 3, 4, 5, 6, 7, 8, black_box(disguised) ^ KEY)
    }

    #[inline(never)]
    fn call_by_value(function: ByValue, disguised: usize) -> i64 {
        black_box(function)(1, Large { words: [1, 2, 3, 4, black_box(disguised) ^ KEY] })
    }

    /// Collects before the argument is looked at, and then uses it.
    fn found(mutator: &mut Mutator<Words>, object: impl FnOnce() -> usize) -> i64 {
        let seen = Words::scan(mutator);
        assert_eq!(object() ^ KEY, mutator.vm().wanted.get());
        i64::try_from(seen).unwrap()
    }

    #[test]
    fn what_c_passes_to_an_upcall_is_in_its_segment() {
        let world = Words::world(OBJECT);
        let mut mutator = world.attach().unwrap();
        let disguised = world.vm().wanted.get();
        let two: Two = upcall_fn(|mutator: &mut Mutator<Words>, _, object: usize| found(mutator, || object));
        let many: Many = upcall_fn(
            |mutator: &mut Mutator<Words>,
             _: usize,
             _: usize,
             _: usize,
             _: usize,
             _: usize,
             _: usize,
             _: usize,
             _: usize,
             object: usize| { found(mutator, || object) },
        );
        let by_value: ByValue =
            upcall_fn(|mutator: &mut Mutator<Words>, _: i32, large: Large| found(mutator, || large.words[4]));
        assert!(mutator.foreign_call().run(|| call_two(two, disguised)) > 0);
        assert!(mutator.foreign_call().run(|| call_many(many, disguised)) > 0);
        assert!(mutator.foreign_call().run(|| call_by_value(by_value, disguised)) > 0);
    }

    #[test]
    fn what_c_passes_to_a_dynamic_closure_is_in_its_segment() {
        let world = Words::world(OBJECT);
        let mut mutator = world.attach().unwrap();
        let disguised = world.vm().wanted.get();
        let closure = |text: &str, argument: usize, word: usize| {
            let signature = Signature::parse(text).unwrap();
            Closure::new(&world, &signature, move |mutator, call| {
                let seen = found(mutator, || match call.argument(argument).as_bytes() {
                    Some(bytes) => usize::from_ne_bytes(bytes[8 * word..][..8].try_into().unwrap()),
                    None => call.argument(argument).as_u64().unwrap() as usize,
                });
                call.returns(seen).unwrap();
                Ok(())
            })
            .unwrap()
        };
        let two = closure("int64_t (uint64_t, uint64_t)", 1, 0);
        let many = closure(&format!("int64_t ({})", ["uint64_t"; 9].join(", ")), 8, 0);
        let by_value = closure("int64_t (int32_t, struct { uint64_t words[5]; })", 1, 4);
        // SAFETY: each has its signature.
        let (two_code, many_code, by_value_code) = unsafe {
            (
                core::mem::transmute::<*const c_void, Two>(two.code()),
                core::mem::transmute::<*const c_void, Many>(many.code()),
                core::mem::transmute::<*const c_void, ByValue>(by_value.code()),
            )
        };
        assert!(mutator.foreign_call().run(|| call_two(two_code, disguised)) > 0);
        assert!(mutator.foreign_call().run(|| call_many(many_code, disguised)) > 0);
        assert!(mutator.foreign_call().run(|| call_by_value(by_value_code, disguised)) > 0);
    }
}
