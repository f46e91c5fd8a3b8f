//! A VM with exceptions of its own, for tests of errors: it keeps what it is told, and counts what becomes of its exceptions.

use core::ffi::c_int;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use reentry::faults::Faults;
use reentry::testkit::{Correct, FaultSet};
use reentry::{
    Capture, Crossing, Report, RootVisitor, Segment, StackScanner, UpcallError, UpcallRefused, Vm, World,
};
use std::sync::{Arc, Mutex};

/// What the VM throws.
#[derive(Debug)]
pub(crate) enum Oops {
    /// One of the tests' own.
    Number(u32),
    /// One whose end is counted.
    Counted(#[expect(dead_code, reason = "held for its drop")] Counted),
    /// What a refused upcall becomes, if the VM is asked to make exceptions of them.
    Refused(UpcallRefused),
}

impl Oops {
    #[track_caller]
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Number(number) => number,
            other => panic!("another exception: {other:?}"),
        }
    }
}

/// Counts how often it has been dropped: once, whatever happens.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicU32>);

impl Counted {
    /// One, and its counter.
    pub(crate) fn new() -> (Self, Arc<AtomicU32>) {
        let dropped = Arc::new(AtomicU32::new(0));
        (Self(Arc::clone(&dropped)), dropped)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was reported, without the places.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    Unclaimed(String),
    Superseded(String),
    Ignored(String),
    Skipped(usize),
    Other(String),
}

/// `TAG` makes VMs of different tests different types: which world adopts foreign threads is a choice for each VM type.
pub(crate) struct Raising<const TAG: u32, F: FaultSet = Correct> {
    reports: Mutex<Vec<Told>>,
    texts: Mutex<Vec<String>>,
    crossings: Mutex<Vec<(&'static str, Crossing)>>,
    translating: AtomicBool,
    _faults: PhantomData<F>,
}

impl<const TAG: u32, F: FaultSet> Raising<TAG, F> {
    pub(crate) fn new() -> Self {
        Self {
            reports: Mutex::new(Vec::new()),
            texts: Mutex::new(Vec::new()),
            crossings: Mutex::new(Vec::new()),
            translating: AtomicBool::new(false),
            _faults: PhantomData,
        }
    }

    pub(crate) fn world() -> World<Self> {
        World::new(Self::new())
    }

    /// Has refused upcalls made into [`Oops::Refused`].
    pub(crate) fn translate_refusals(&self) {
        self.translating.store(true, Ordering::Relaxed);
    }

    /// What has been reported since the last time.
    pub(crate) fn take_reports(&self) -> Vec<Told> {
        self.texts.lock().unwrap().clear();
        core::mem::take(&mut *self.reports.lock().unwrap())
    }

    /// The same, as it would be printed.
    pub(crate) fn take_texts(&self) -> Vec<String> {
        self.reports.lock().unwrap().clear();
        core::mem::take(&mut *self.texts.lock().unwrap())
    }

    /// What the hooks were told since the last time.
    pub(crate) fn take_crossings(&self) -> Vec<(&'static str, Crossing)> {
        core::mem::take(&mut *self.crossings.lock().unwrap())
    }
}

/// What an error was, in a word.
fn kind(error: &UpcallError<'_>) -> String {
    match error {
        UpcallError::Panic { payload } => match payload.downcast_ref::<u32>() {
            Some(number) => format!("panic {number}"),
            None => "panic".to_owned(),
        },
        UpcallError::Exception { exception } => format!("{exception:?}"),
        UpcallError::Refused(_) => "refused".to_owned(),
        other => format!("{other:?}"),
    }
}

impl<const TAG: u32, F: FaultSet> Vm for Raising<TAG, F> {
    type Ref = usize;
    type Local = ();
    type Exception = Oops;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn leaving_managed(&self, crossing: Crossing) {
        self.crossings.lock().unwrap().push(("leaving", crossing));
    }

    fn entering_managed(&self, crossing: Crossing) {
        self.crossings.lock().unwrap().push(("entering", crossing));
    }

    fn exception_for(&self, refused: &UpcallRefused) -> Option<Oops> {
        self.translating.load(Ordering::Relaxed).then_some(Oops::Refused(*refused))
    }

    fn report(&self, report: &Report<'_>) {
        self.texts.lock().unwrap().push(report.to_string());
        self.reports.lock().unwrap().push(match report {
            Report::UpcallErrorUnclaimed { error, .. } => Told::Unclaimed(kind(error)),
            Report::UpcallErrorSuperseded { error } => Told::Superseded(kind(error)),
            Report::UpcallErrorIgnored { error, .. } => Told::Ignored(kind(error)),
            Report::ActivationsSkipped { skipped, .. } => Told::Skipped(*skipped),
            other => Told::Other(other.to_string()),
        });
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3, S4, S5: it does nothing. S6: `FaultSet` is unsafe to implement.
unsafe impl<const TAG: u32, F: FaultSet> StackScanner for Raising<TAG, F> {
    const FAULTS: Faults = F::FAULTS;

    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// What C counted across its callbacks: how many blocks it holds, how many it gave back intact.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Holdings {
    pub(crate) held: c_int,
    pub(crate) cleaned_up: c_int,
}
