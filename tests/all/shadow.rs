//! A VM whose managed code is Rust with a stack of references beside it: precise, with a heap that moves everything, and no bytecode. For tests that need managed code to stop anywhere.

use core::cell::RefCell;
use core::ptr::NonNull;
use reentry::testkit::heap::Collection;
use reentry::testkit::{Heap, Ref, StaleReference};
use reentry::{
    ArgumentError, ArgumentPlan, Capture, FenceStrategy, Mutator, Report, RootVisitor, Segment, Slot,
    StackScanner, StoppedWorld, Vm, World,
};
use std::sync::Mutex;

/// `TAG` makes VMs of different tests different types.
pub(crate) struct Shadow<const TAG: u32> {
    heap: Heap,
    reports: Mutex<Vec<String>>,
}

/// The references of a mutator's frames. Its memory is reserved once, so that a slot has one address.
pub(crate) struct Slots(RefCell<Vec<Ref>>);

const ROOM: usize = 1024;

impl<const TAG: u32> Shadow<TAG> {
    pub(crate) fn world(fence: FenceStrategy) -> World<Self> {
        World::<Self>::builder().fence(fence).build(Self { heap: Heap::new(), reports: Mutex::default() })
    }

    pub(crate) fn heap(&self) -> &Heap {
        &self.heap
    }

    /// What has been reported since the last time.
    pub(crate) fn take_reports(&self) -> Vec<String> {
        core::mem::take(&mut *self.reports.lock().unwrap())
    }

    /// Moves every object that is not pinned.
    #[track_caller]
    pub(crate) fn collect(&self, stopped: &StoppedWorld<'_, Self>) {
        let mut collection = self.heap.begin_collection();
        let mut pins = Pins { collection: &mut collection, stale: None };
        stopped.enumerate(&mut pins);
        assert_eq!(pins.stale, None, "a pin");
        let mut roots = Roots { collection: &mut collection, stale: None };
        stopped.enumerate(&mut roots);
        assert_eq!(roots.stale, None, "a root");
        collection.finish();
    }

    #[track_caller]
    pub(crate) fn collect_in(mutator: &mut Mutator<Self>) {
        mutator.pause(|stopped| stopped.vm().collect(stopped));
    }

    /// Makes an object that the running frame holds. Returns the number of its slot.
    pub(crate) fn hold(mutator: &Mutator<Self>, text: &str) -> usize {
        let object = mutator.vm().heap.alloc(&[], text.as_bytes());
        let mut slots = mutator.local().0.borrow_mut();
        assert!(slots.len() < ROOM);
        slots.push(object);
        slots.len() - 1
    }

    pub(crate) fn held(mutator: &Mutator<Self>, slot: usize) -> Ref {
        mutator.local().0.borrow()[slot]
    }

    /// The text of an object that the running frame holds.
    #[track_caller]
    pub(crate) fn text(mutator: &Mutator<Self>, slot: usize) -> String {
        let bytes = mutator.vm().heap.bytes(Self::held(mutator, slot)).expect("the slot was updated");
        String::from_utf8(bytes).unwrap()
    }

    /// The slot's address.
    pub(crate) fn place(mutator: &Mutator<Self>, slot: usize) -> NonNull<Ref> {
        NonNull::from(&mut mutator.local().0.borrow_mut()[slot])
    }

    /// Forgets the slots from `first` on.
    pub(crate) fn forget(mutator: &Mutator<Self>, first: usize) {
        mutator.local().0.borrow_mut().truncate(first);
    }
}

impl<const TAG: u32> Vm for Shadow<TAG> {
    type Ref = Ref;
    type Local = Slots;
    type Exception = String;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) -> Slots {
        Slots(RefCell::new(Vec::with_capacity(ROOM)))
    }

    fn admit(&self, reference: Ref, _: ArgumentPlan) -> Result<(), ArgumentError> {
        if self.heap.owns(reference) {
            Ok(())
        } else {
            Err(ArgumentError::NotOfThisWorld { reference: reference.address() })
        }
    }

    fn report(&self, report: &Report<'_>) {
        self.reports.lock().unwrap().push(report.to_string());
    }
}

// SAFETY: S1: all references of a mutator's frames stand in its slots, which are reported with its newest segment. S2: each is a `Ref` of a vector that is not resized during the
// pause. S3, S4: it reads. S5: they belong to no native frame. S6: no fault.
unsafe impl<const TAG: u32> StackScanner for Shadow<TAG> {
    fn scan_segment(&self, local: &Slots, segment: &Segment<'_>, visitor: &mut dyn RootVisitor<Ref>) {
        if segment.is_newest() {
            for slot in local.0.borrow_mut().iter_mut() {
                // SAFETY: a reference of the vector, which stands still.
                visitor.slot(unsafe { Slot::new(NonNull::from(slot)) });
            }
        }
    }
}

struct Pins<'c, 'h> {
    collection: &'c mut Collection<'h>,
    stale: Option<StaleReference>,
}

impl RootVisitor<Ref> for Pins<'_, '_> {
    fn slot(&mut self, _: Slot<'_, Ref>) {}

    fn pinned(&mut self, reference: Ref) {
        self.stale = self.stale.or(self.collection.pin(reference).err());
    }

    fn transitively_pinned(&mut self, reference: Ref) {
        self.stale = self.stale.or(self.collection.pin_transitively(reference).err());
    }
}

struct Roots<'c, 'h> {
    collection: &'c mut Collection<'h>,
    stale: Option<StaleReference>,
}

impl RootVisitor<Ref> for Roots<'_, '_> {
    fn slot(&mut self, mut slot: Slot<'_, Ref>) {
        match self.collection.forward(slot.load()) {
            Ok(new) => slot.store(new),
            Err(stale) => self.stale = Some(stale),
        }
    }

    fn pinned(&mut self, _: Ref) {}

    fn transitively_pinned(&mut self, _: Ref) {}
}
