//! What a check looks at in a pause: the activations of a mutator, and every reference a collector is told of.

use core::ops::Range;
use reentry::testkit::bytecode::Program;
use reentry::testkit::{FaultSet, Ref, TestVm};
use reentry::{Anchor, ArgumentPlan, FrameKind, RootVisitor, Slot, StoppedMutator};
use std::collections::HashMap;

/// One activation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) depth: usize,
    pub(crate) kind: FrameKind,
    pub(crate) anchor: Anchor,
    /// The function of the newest frame and the pc in it, or `idle` where no function runs.
    pub(crate) place: (String, usize),
    /// What its guards declared, newest first.
    pub(crate) declared: Vec<(ArgumentPlan, Ref)>,
}

impl Seen {
    /// What identifies it across collections.
    pub(crate) fn summary(&self) -> (usize, FrameKind, &str, usize) {
        (self.depth, self.kind, &self.place.0, self.place.1)
    }
}

/// One mutator, as a collector sees it after it has collected.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Newest first.
    pub(crate) chain: Vec<Seen>,
    /// Where its operand stack is.
    pub(crate) stack: Range<usize>,
    /// The raw bytes of each object reported.
    pub(crate) contents: HashMap<Ref, Vec<u8>>,
}

impl View {
    /// Looks at a mutator. Every reference reported must name an object.
    pub(crate) fn of<F: FaultSet>(vm: &TestVm<F>, mutator: &StoppedMutator<TestVm<F>>) -> Self {
        let mut chain = Vec::new();
        for activation in mutator.activations() {
            let mut declared = Vec::new();
            activation.for_each_declared(|entry| declared.push((entry.plan, entry.slot.load())));
            chain.push(Seen {
                depth: activation.depth(),
                kind: activation.kind(),
                anchor: activation.anchor(),
                place: place(vm.program(), activation.anchor()),
                declared,
            });
        }
        let mut reported = Reported::default();
        mutator.enumerate(&mut reported);
        let mut again = Reported::default();
        mutator.enumerate(&mut again);
        assert_eq!(reported, again, "enumerating is repeatable");
        let contents = reported.all().map(|r| (r, vm.heap().bytes(r).unwrap())).collect();
        Self { chain, stack: mutator.local().stack_range(), contents }
    }

    /// The chain, as identified across collections.
    pub(crate) fn summary(&self) -> Vec<(usize, FrameKind, &str, usize)> {
        self.chain.iter().map(Seen::summary).collect()
    }

    /// The reported object that holds these bytes, if there is one. Two of them would be an error.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<Ref> {
        let mut found = self.contents.iter().filter(|(_, content)| *content == bytes).map(|(r, _)| *r);
        let first = found.next();
        assert_eq!(found.next(), None, "one object is reported at two addresses");
        first
    }
}

/// Everything that was reported, null references left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Reported {
    slots: Vec<Ref>,
    pinned: Vec<Ref>,
    transitively_pinned: Vec<Ref>,
}

impl Reported {
    fn all(&self) -> impl Iterator<Item = Ref> {
        self.slots
            .iter()
            .chain(&self.pinned)
            .chain(&self.transitively_pinned)
            .copied()
            .filter(|r| !r.is_null())
    }
}

impl RootVisitor<Ref> for Reported {
    fn slot(&mut self, slot: Slot<'_, Ref>) {
        self.slots.push(slot.load());
    }

    fn pinned(&mut self, reference: Ref) {
        self.pinned.push(reference);
    }

    fn transitively_pinned(&mut self, reference: Ref) {
        self.transitively_pinned.push(reference);
    }
}

/// The function and pc an interpreter's anchor names. The test VM puts the function's number and one above bit 20; no anchor is 0.
pub(crate) fn place(program: &Program, anchor: Anchor) -> (String, usize) {
    match (anchor.pc >> 20).checked_sub(1) {
        Some(function) => (program.functions()[function].name.clone(), anchor.pc & 0xF_FFFF),
        None => ("idle".to_owned(), 0),
    }
}
