//! The audit's part in a pause: what is enumerated is noted on the way to the visitor, and read once more before the world resumes.

use super::{Activation, Shared, StoppedMutator, StoppedWorld, Those, report};
use crate::anchor::Anchor;
use crate::audit::{Noted, Seen};
use crate::unwind;
use crate::vm::{Finding, FoundIn, Report, RootVisitor, Slot, StackScanner, tell};
use core::fmt::Write as _;
use std::collections::{HashMap, HashSet};

/// Hands on what a scanner reports, and notes it.
struct Noting<'n, 'v, R> {
    visitor: &'n mut (dyn RootVisitor<R> + 'v),
    address: fn(R) -> usize,
    frame: Option<Anchor>,
    noted: &'n mut Noted,
}

impl<R: Copy> RootVisitor<R> for Noting<'_, '_, R> {
    fn slot(&mut self, slot: Slot<'_, R>) {
        // Before the visitor has it: it may be updated there.
        let value = (self.address)(slot.load());
        self.noted.slots.push(Seen::new(slot.address(), value, self.frame, None));
        self.visitor.slot(slot);
    }

    fn pinned(&mut self, reference: R) {
        self.noted.pinned.push((self.address)(reference));
        self.visitor.pinned(reference);
    }

    fn transitively_pinned(&mut self, reference: R) {
        self.noted.pinned.push((self.address)(reference));
        self.visitor.transitively_pinned(reference);
    }

    fn weak(&mut self, slot: Slot<'_, R>) {
        self.visitor.weak(slot);
    }

    fn frame(&mut self, frame: Anchor) {
        self.frame = Some(frame);
        self.noted.frames.push(frame);
        self.visitor.frame(frame);
    }
}

/// Reads what slots hold, by their addresses.
struct Reading<R> {
    address: fn(R) -> usize,
    values: HashMap<usize, usize>,
}

impl<R: Copy> RootVisitor<R> for Reading<R> {
    fn slot(&mut self, slot: Slot<'_, R>) {
        self.values.insert(slot.address(), (self.address)(slot.load()));
    }

    fn pinned(&mut self, _: R) {}

    fn transitively_pinned(&mut self, _: R) {}

    fn weak(&mut self, _: Slot<'_, R>) {}
}

impl<V: StackScanner> Activation<'_, V> {
    fn found_in(&self) -> FoundIn {
        FoundIn {
            mutator: self.header.id.get(),
            depth: self.depth(),
            kind: self.kind(),
            anchor: self.anchor(),
            call_site: self.call_site(),
        }
    }
}

impl<V: StackScanner> StoppedMutator<'_, V> {
    /// [`enumerate`](Self::enumerate), noting what is found. Says whether it has: the world may have no audit, and of a pause the first enumeration counts.
    pub(super) fn enumerate_audited(&self, visitor: &mut dyn RootVisitor<V::Ref>) -> bool {
        let header = self.header();
        // SAFETY: `world` points to the `Shared<V>` whose mutator this is, which outlives it.
        let shared = unsafe { &*header.world.cast::<Shared<V>>() };
        let (Some(audit), Some(address)) = (&shared.coordinator.audit, shared.address) else { return false };
        let stacks = header.stacks.borrow().clone();
        let managed = |at: usize| stacks.iter().any(|stack| (stack.start..=stack.end).contains(&at));
        let anchors: Vec<_> = self
            .activations()
            .map(|activation| {
                let at = activation.found_in();
                let anchored = (managed(at.anchor.sp), managed(at.anchor.fp));
                (at, activation.frame.crossings.get(), anchored)
            })
            .collect();
        if !audit.begin(self.id(), &anchors) {
            return false;
        }
        let mut all = Vec::with_capacity(anchors.len());
        for (activation, (at, crossing, anchored)) in self.activations().zip(anchors) {
            let released = activation.frame.released();
            let mut noted = Noted {
                at,
                crossing,
                anchored,
                frames: Vec::new(),
                slots: Vec::new(),
                pinned: Vec::new(),
                released,
            };
            activation.for_each_declared(|declared| {
                let value = address(declared.slot.load());
                noted.slots.push(Seen::new(declared.slot.address(), value, None, Some(declared.plan)));
                report(declared, visitor);
            });
            if let Some(segment) = activation.segment() {
                let mut noting = Noting { visitor: &mut *visitor, address, frame: None, noted: &mut noted };
                self.vm.scan_segment(self.local(), &segment, &mut noting);
            }
            all.push(noted);
        }
        audit.noted(self.id(), all);
        true
    }

    /// The activations, one line for each, oldest first, with a mark at one.
    fn draw(&self, marked: usize) -> String {
        let mut lines: Vec<_> =
            self.activations().map(|activation| (activation.depth(), activation)).collect();
        lines.reverse();
        let mut drawing = String::new();
        for (depth, activation) in lines {
            let mark = if depth == marked { "   <-- here" } else { "" };
            // Writing to a string does not fail.
            let _ = writeln!(drawing, "  {activation:?}{mark}");
        }
        drawing.truncate(drawing.trim_end().len());
        drawing
    }
}

impl<V: StackScanner> StoppedWorld<'_, V> {
    /// Begins a collection, and notes what the handles hold, if the world has an audit.
    pub(super) fn note_handles(&self) {
        if let (Some(audit), Some(address)) = (&self.shared.coordinator.audit, self.shared.address) {
            audit.begin_collection();
            audit.noted_handles(self.read_handles(address));
        }
    }

    /// The slots of handles that keep their objects alive, and what they hold.
    fn read_handles(&self, address: fn(V::Ref) -> usize) -> Vec<(usize, usize)> {
        let mut handles = Vec::new();
        self.frozen_handles().for_each(V::FAULTS, |slot: Slot<'_, V::Ref>, weak| {
            if !weak {
                handles.push((slot.address(), address(slot.load())));
            }
        });
        handles
    }

    /// Tells the audit, if there is one, that the collector has moved an object. It finds most moves out by itself, from slots that have changed; an object that one slot alone refers
    /// to shows it nothing if just that slot was forgotten.
    pub fn note_move(&self, from: V::Ref, to: V::Ref) {
        if let (Some(audit), Some(address)) = (&self.shared.coordinator.audit, self.shared.address) {
            audit.noted_move(address(from), address(to));
        }
    }

    /// Ends the collection, if roots were enumerated: compares it with those before, and gives what is to be reported. The mutators are stopped still.
    pub(super) fn audit(&self) -> Vec<Finding> {
        let (Some(audit), Some(address)) = (&self.shared.coordinator.audit, self.shared.address) else {
            return Vec::new();
        };
        let Some(enumerated) = audit.enumerated() else { return Vec::new() };
        if std::thread::panicking() {
            audit.give_up();
        } else {
            // A scanner that panics only now has said what it had to say: the world must resume, and what was read so far counts.
            drop(unwind::stop(|| {
                for mutator in
                    self.mutators().filter(|mutator| audit.values && enumerated.contains(&mutator.id()))
                {
                    let mut reading = Reading { address, values: HashMap::new() };
                    mutator.walk(&mut reading);
                    audit.read_again(mutator.id(), &reading.values);
                }
            }));
            let mut pinned = HashSet::new();
            self.shared.pins.for_each(|_, reference| {
                pinned.insert(address(reference));
            });
            let attached =
                matches!(self.those, Those::All).then(|| self.mutators().map(|m| m.id()).collect());
            let handles = self.read_handles(address).into_iter().collect();
            audit.judge(attached.as_ref(), &pinned, &handles);
        }
        let mut findings = audit.take_fresh();
        for finding in &mut findings {
            let Some(at) = finding.activation else { continue };
            if let Some(mutator) = self.mutators().find(|mutator| mutator.id() == at.mutator) {
                finding.chain = mutator.draw(at.depth);
            }
        }
        audit.keep(&findings);
        findings
    }

    /// Tells the VM. The world runs on.
    pub(super) fn tell(&self, findings: &[Finding]) {
        for finding in findings {
            tell(&self.shared.vm, &Report::Audit(finding));
        }
    }
}
