//! The smallest VM, for tests of threads and states: a reference is a number, no frame holds one, and what is reported is kept.

use core::any::Any;
use core::marker::PhantomData;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use reentry::faults::Faults;
use reentry::testkit::{Correct, FaultSet};
use reentry::{
    Capture, FenceStrategy, Report, RootVisitor, Segment, Slot, StackScanner, StoppedMutator, Vm, World,
};
use std::panic::{catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::time::Instant;

/// `TAG` makes VMs of different tests different types: which world adopts foreign threads is a choice for each VM type.
pub(crate) struct Plain<const TAG: u32, F: FaultSet = Correct> {
    reports: Mutex<Vec<String>>,
    _faults: PhantomData<F>,
}

impl<const TAG: u32, F: FaultSet> Plain<TAG, F> {
    pub(crate) fn new() -> Self {
        Self { reports: Mutex::new(Vec::new()), _faults: PhantomData }
    }

    pub(crate) fn world(fence: FenceStrategy) -> World<Self> {
        World::<Self>::builder().fence(fence).build(Self::new())
    }

    /// What has been reported since the last time.
    pub(crate) fn take_reports(&self) -> Vec<String> {
        core::mem::take(&mut *self.reports.lock().unwrap())
    }
}

impl<const TAG: u32, F: FaultSet> Vm for Plain<TAG, F> {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn report(&self, report: &Report<'_>) {
        self.reports.lock().unwrap().push(report.to_string());
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3, S4, S5: it does nothing. S6: `FaultSet` is unsafe to implement.
unsafe impl<const TAG: u32, F: FaultSet> StackScanner for Plain<TAG, F> {
    const FAULTS: Faults = F::FAULTS;

    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// Runs `test` once for each fence strategy that this process can use.
pub(crate) fn for_each_strategy(test: impl Fn(FenceStrategy)) {
    for fence in [FenceStrategy::Symmetric, FenceStrategy::Asymmetric] {
        if fence.is_supported() {
            test(fence);
        }
    }
}

/// A word that only grows, which two threads use to take turns.
pub(crate) struct Steps(AtomicU32);

impl Steps {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    pub(crate) fn word(&self) -> *const AtomicU32 {
        &raw const self.0
    }

    pub(crate) fn now(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn reach(&self, step: u32) {
        self.0.store(step, Ordering::Release);
    }

    /// Waits for `step` or a later one.
    #[track_caller]
    pub(crate) fn wait(&self, step: u32) {
        assert!(
            self.wait_for(step, Duration::from_secs(60)),
            "step {step} was never reached; it is {}",
            self.now()
        );
    }

    /// Waits for `step` for so long at most, and says whether it came.
    pub(crate) fn wait_for(&self, step: u32, timeout: Duration) -> bool {
        let start = Instant::now();
        while self.now() < step {
            if start.elapsed() > timeout {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }
}

/// What a collector is told of, in order.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Told {
    pub(crate) slots: Vec<usize>,
    pub(crate) pinned: Vec<usize>,
    pub(crate) transitively_pinned: Vec<usize>,
}

impl RootVisitor<usize> for Told {
    fn slot(&mut self, slot: Slot<'_, usize>) {
        self.slots.push(slot.load());
    }

    fn pinned(&mut self, reference: usize) {
        self.pinned.push(reference);
    }

    fn transitively_pinned(&mut self, reference: usize) {
        self.transitively_pinned.push(reference);
    }
}

/// How many activations a stopped mutator has, and what its guards declared.
pub(crate) fn told<const TAG: u32, F: FaultSet>(mutator: &StoppedMutator<Plain<TAG, F>>) -> (usize, Told) {
    let mut told = Told::default();
    mutator.enumerate(&mut told);
    (mutator.activations().count(), told)
}

/// Panics with `value` and without the panic hook's message.
pub(crate) fn panic_quietly(value: u32) -> ! {
    resume_unwind(Box::new(value))
}

/// Runs `f`, which must panic, and returns what it panicked with.
#[track_caller]
pub(crate) fn caught<R>(f: impl FnOnce() -> R) -> Box<dyn Any + Send> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(_) => panic!("it did not panic"),
        Err(payload) => payload,
    }
}

/// Runs `f`, which must panic with a message, and returns the message.
#[track_caller]
pub(crate) fn message<R>(f: impl FnOnce() -> R) -> String {
    let payload = caught(f);
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => (*payload.downcast::<&str>().expect("a panic with a message")).to_owned(),
    }
}

/// Runs `f`, which must panic with [`panic_quietly`], and returns the number.
#[track_caller]
pub(crate) fn number<R>(f: impl FnOnce() -> R) -> u32 {
    *caught(f).downcast::<u32>().expect("a quiet panic")
}

/// Whether the crate under test checks.
pub(crate) fn checked() -> bool {
    cfg!(any(debug_assertions, feature = "checked"))
}
