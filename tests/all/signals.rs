//! Signals: which are blocked where the crate holds something, and when a handler may call in.
#![cfg(target_os = "linux")]

use crate::child;
use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use reentry::{
    Capture, Mutator, RootVisitor, Segment, StackScanner, Vm, World, can_call_in, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{Callback, foreign_call_back};
use std::os::unix::process::ExitStatusExt as _;
use std::thread;

/// The signals that this thread blocks, bit `n - 1` for signal `n`.
fn blocked() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

const fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

/// What an instruction of the thread itself causes.
const SYNCHRONOUS: u64 = bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGFPE)
    | bit(libc::SIGILL)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGSYS);

static IN_ATTACH: AtomicU64 = AtomicU64::new(u64::MAX);
static IN_LOCAL: AtomicU64 = AtomicU64::new(u64::MAX);
static IN_THREAD: AtomicU64 = AtomicU64::new(u64::MAX);

/// A VM that notes the mask its code runs under.
struct Noting;

struct NotingLocal;

impl Drop for NotingLocal {
    fn drop(&mut self) {
        IN_LOCAL.store(blocked(), Ordering::Relaxed);
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        let thread = thread::spawn(|| IN_THREAD.store(blocked(), Ordering::Relaxed));
        thread.join().unwrap();
    }
}

impl Vm for Noting {
    type Ref = usize;
    type Local = NotingLocal;
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;
    fn attach(&self) -> NotingLocal {
        IN_ATTACH.store(blocked(), Ordering::Relaxed);
        NotingLocal
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Noting {
    fn scan_segment(&self, _: &NotingLocal, _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// A fault in a section where signals are blocked must have its handler: the kernel ends the process otherwise, without a word.
#[test]
fn signals_that_an_instruction_causes_are_blocked_nowhere_and_the_vms_drop_runs_under_the_threads_own_mask() {
    let before = blocked();
    let world = World::new(Noting);
    let mutator = world.attach().unwrap();
    drop(world);
    drop(mutator);
    let in_attach = IN_ATTACH.load(Ordering::Relaxed);
    assert_eq!(in_attach & SYNCHRONOUS, before & SYNCHRONOUS, "{in_attach:#x}");
    assert_ne!(in_attach & bit(libc::SIGUSR1), 0, "a handler that calls in finds the thread attached or not");
    assert_eq!(IN_LOCAL.load(Ordering::Relaxed), before);
    assert_eq!(IN_THREAD.load(Ordering::Relaxed), before, "a thread that the VM's drop starts");
    assert_eq!(blocked(), before);
}

/// The standard library's message comes from a handler of SIGSEGV.
#[test]
fn a_stack_overflow_in_the_vms_attach_ends_with_a_message() {
    struct Deep;
    #[expect(unconditional_recursion, reason = "the stack is to end")]
    fn deep(n: u64) -> u64 {
        let words = core::hint::black_box([n; 64]);
        deep(n + 1) + words[3]
    }
    impl Vm for Deep {
        type Ref = usize;
        type Local = u64;
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) -> u64 {
            deep(0)
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Deep {
        fn scan_segment(&self, _: &u64, _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    let output = child::run("signals::a_stack_overflow_in_the_vms_attach_ends_with_a_message", || {
        drop(World::new(Deep).attach());
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("has overflowed its stack"), "{said}");
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{said}");
}

/// A VM whose upcalls handlers make.
struct Plainest;

impl Vm for Plainest {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;
    fn attach(&self) {}
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Plainest {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// What the last handler found: 1 if it could call in, and was served.
static FOUND: AtomicI32 = AtomicI32::new(-1);
static SERVED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_signal(_: c_int) {
    let served: extern "C" fn() -> c_int = upcall_fn_or(
        |_: &mut Mutator<Plainest>| {
            SERVED.fetch_add(1, Ordering::Relaxed);
            1
        },
        || -2,
    );
    FOUND.store(if can_call_in() { served() } else { 0 }, Ordering::Relaxed);
}

/// Interrupts this thread, and says what the handler found.
fn interrupt() -> c_int {
    FOUND.store(-1, Ordering::Relaxed);
    // SAFETY: the handler is `on_signal`, and runs before this returns.
    unsafe { libc::raise(libc::SIGURG) };
    FOUND.load(Ordering::Relaxed)
}

#[test]
fn a_handler_is_told_whether_it_may_call_in_and_is_served_where_it_may() {
    extern "C" fn in_c(_: c_int) -> c_int {
        interrupt()
    }
    fn deeper(mutator: &mut Mutator<Plainest>, _: c_int) -> c_int {
        assert_eq!(interrupt(), 0, "managed code was interrupted, in an upcall");
        let inside = |mutator: &mut Mutator<Plainest>| {
            // SAFETY: the callback takes an `int` and gives one.
            mutator.foreign_call().run(|| unsafe { foreign_call_back(in_c, 0) })
        };
        let first = inside(mutator);
        // The depth below is reached once.
        let nothing: Callback = upcall_fn(|_: &mut Mutator<Plainest>, x: c_int| x);
        // SAFETY: as above.
        mutator.foreign_call().run(|| unsafe { foreign_call_back(nothing, 0) });
        10 * first + inside(mutator)
    }
    // SAFETY: the handler calls what may be called in one.
    unsafe {
        libc::signal(libc::SIGURG, on_signal as extern "C" fn(c_int) as *const () as libc::sighandler_t)
    };
    assert_eq!(interrupt(), 0, "no mutator");
    let world = World::new(Plainest);
    let mut mutator = world.attach().unwrap();
    assert_eq!(interrupt(), 0, "managed code was interrupted");
    assert_eq!(mutator.foreign_call().run(interrupt), 1);
    assert_eq!(mutator.foreign_call().without_upcalls().run(interrupt), 0);
    assert_eq!(mutator.pause(|_| interrupt()), 0, "this thread holds a pause");
    // SAFETY: the callback takes an `int` and gives one.
    let depths = mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(deeper), 0) });
    assert_eq!(depths, 1, "0: an upcall at a new depth would allocate; then 1");
    assert_eq!(SERVED.load(Ordering::Relaxed), 2);
    drop(mutator);
    assert_eq!(interrupt(), 0, "no mutator any more");
    // A foreign thread between two upcalls.
    world.adopt_foreign_threads();
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(interrupt(), 0);
            let nothing: Callback = upcall_fn(|_: &mut Mutator<Plainest>, x: c_int| x);
            // SAFETY: the callback takes an `int` and gives one.
            unsafe { foreign_call_back(nothing, 0) };
            assert_eq!(interrupt(), 1);
        });
    });
}
