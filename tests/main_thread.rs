//! The main thread's stack, whose size is the system's choice and which grows: recursion through C ends in an error there too. A binary of its own without the test
//! harness, which runs tests on threads that it makes.

#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

#[path = "evidence/scenarios.rs"]
mod scenarios;

use core::cell::Cell;
use core::ffi::c_int;
#[cfg(target_os = "linux")]
use corosensei::{
    Coroutine,
    stack::{Stack, StackPointer},
};
use reentry::{
    Capture, Mutator, RootVisitor, Segment, Slot, StackScanner, Throwing, UpcallRefused, Vm, World,
    upcall_fn_or,
};
use reentry_foreign::{Callback, foreign_call_back_and_go_on};

/// A VM whose exception is the refusal.
struct Small;

impl Vm for Small {
    type Ref = usize;
    type Local = ();
    type Exception = UpcallRefused;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn exception_for(&self, refused: &UpcallRefused) -> Option<UpcallRefused> {
        Some(*refused)
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Small {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

thread_local! { static LEVELS: Cell<u32> = const { Cell::new(0) }; }

/// # Errors
///
/// The refusal that ends it.
fn recurse(mutator: &mut Mutator<Small>, x: c_int) -> Result<c_int, UpcallRefused> {
    LEVELS.set(LEVELS.get() + 1);
    let callback: Callback = upcall_fn_or(Throwing(recurse), || -1);
    // SAFETY: the callback takes an `int` and gives one.
    mutator.foreign_call().try_run(|| unsafe { foreign_call_back_and_go_on(callback, x) })
}

fn main() {
    exhaust_the_stack();
    #[cfg(target_os = "linux")]
    {
        assert_eq!(scenarios::run_all(), 24);
        attach_on_a_coroutine();
        run_again_without_a_limit();
    }
}

/// A VM whose native frames are scanned conservatively; its scanner looks how far it would have to read.
struct Scanned;

impl Vm for Scanned {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Registers;

    fn attach(&self) {}
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it reads nothing. S6: no fault.
unsafe impl StackScanner for Scanned {
    fn scan_segment(&self, (): &(), segment: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {
        let words = segment.words();
        assert!(!words.is_empty() && words.len() < 1 << 20, "{words:x?}");
    }
}

struct Nobody;

impl RootVisitor<usize> for Nobody {
    fn slot(&mut self, _: Slot<'_, usize>) {}
    fn pinned(&mut self, _: usize) {}
    fn transitively_pinned(&mut self, _: usize) {}
}

/// A coroutine's stack above the end of the heap: without a limit on the main thread's stack, the C library reports that stack to reach down to there.
#[cfg(target_os = "linux")]
struct AboveTheHeap(usize);

#[cfg(target_os = "linux")]
impl AboveTheHeap {
    const BYTES: usize = 512 * 1024;

    fn new() -> Self {
        // SAFETY: it moves the end of the heap, which the allocator allows others to do.
        let memory = unsafe { libc::sbrk(Self::BYTES as libc::intptr_t) };
        assert_ne!(memory.addr(), usize::MAX, "there is room above the heap");
        Self(memory.addr().next_multiple_of(16))
    }
}

// SAFETY: the memory is this stack's alone, for ever. It has no guard page; what runs on it is known.
#[cfg(target_os = "linux")]
unsafe impl Stack for AboveTheHeap {
    fn base(&self) -> StackPointer {
        StackPointer::new((self.0 + Self::BYTES - 16) & !15).expect("it is not null")
    }

    fn limit(&self) -> StackPointer {
        StackPointer::new(self.0).expect("it is not null")
    }
}

/// A coroutine's stack is not the thread's, whatever is said of that: a scan of what is attached there ends on it.
#[cfg(target_os = "linux")]
fn attach_on_a_coroutine() {
    // The bounds of the thread's own stack are looked up before the coroutine's is mapped.
    drop(World::new(Scanned).attach().expect("a new world"));
    Coroutine::<(), (), (), _>::with_stack(AboveTheHeap::new(), |_, ()| {
        let mut mutator = World::new(Scanned).attach().expect("a new world");
        mutator.pause(|stopped| stopped.enumerate(&mut Nobody));
    })
    .resume(());
}

/// The same where nothing limits the main thread's stack: the C library then reports that it reaches down to the next mapping, and stacks that are mapped later lie in there.
fn run_again_without_a_limit() {
    const UNLIMITED: &str = "REENTRY_UNLIMITED_STACK";
    if std::env::var_os(UNLIMITED).is_some() {
        return;
    }
    let this = std::env::current_exe().expect("it runs");
    let mut again = std::process::Command::new("sh");
    again.args(["-c", "ulimit -s unlimited || exit 9; exec \"$0\""]).arg(this).env(UNLIMITED, "1");
    let output = again.output().expect("there is a shell");
    if output.status.code() == Some(9) {
        eprintln!("THE STACK COULD NOT BE MADE UNLIMITED HERE: not run again without a limit");
        return;
    }
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// Recursion through C ends in an error.
fn exhaust_the_stack() {
    if std::env::var_os("REENTRY_UNLIMITED_STACK").is_some() {
        return; // it would take a gigabyte
    }
    let world = World::new(Small);
    let mut mutator = world.attach().expect("a new world");
    let mut depths = Vec::new();
    for _ in 0..3 {
        LEVELS.set(0);
        let outcome = recurse(&mut mutator, 0);
        if cfg!(target_os = "linux") {
            let Err(UpcallRefused::StackExhausted { left, reserve, .. }) = outcome else {
                panic!("{outcome:?}")
            };
            assert_eq!(reserve, 64 * 1024);
            assert!(left < reserve && left > reserve / 2, "{left}");
            depths.push(LEVELS.get());
        }
    }
    // Never less deep than before: nothing of a recursion is left. (The first to reach a depth makes its record, which takes more stack.)
    assert!(depths.is_sorted() && depths.iter().all(|depth| *depth > 100), "{depths:?}");
    assert_eq!(mutator.depth(), 0);
    assert_eq!(mutator.foreign_call().run(|| 4), 4);
}
