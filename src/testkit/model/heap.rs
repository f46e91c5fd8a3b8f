//! A heap in loom's cells, and a collector that believes nothing.

use super::{HeapCell, PUBLICATION, STALE, Seen, UnlessPanicking, WARP};
use crate::mutator::Mutator;
use crate::pause::StoppedWorld;
use crate::vm::{FrameKind, RootVisitor, Slot, StackScanner, Vm};

/// Addresses of one object lie this close together, so that a stale one still tells whose it is.
const STRIDE: usize = 1000;

/// One object, with what the model knows of it.
#[derive(Clone, Copy, Debug)]
struct Object<T> {
    /// Where it is. Every collection moves it.
    address: usize,
    /// The foreign call that has declared it: its mutator, and the depth of its activation.
    call: Option<(u64, usize)>,
    contents: T,
}

/// A heap of a few objects, each in a [`HeapCell`], that every collection moves: the heap of a host's model.
///
/// A reference is a `usize`, never 0, so that a host whose [`Vm::Ref`] is `usize` can use 0 for "none". What is done with an object by reference checks that the reference is current;
/// what is done by index, its number, stands for managed code that has just loaded it.
///
/// The collector moves everything: a host over this heap admits no pins ([`Vm::admit`]).
///
/// # Examples
///
/// In `tests/loom_host.rs`, a host; and in the crate's own models, `tests/loom/mod.rs`.
#[derive(Debug)]
pub struct ModelHeap<T = ()> {
    objects: Box<[HeapCell<Object<T>>]>,
}

impl<T: Clone + Send + Sync> ModelHeap<T> {
    /// Makes a heap with an object of each of these contents.
    #[must_use]
    pub fn new(contents: impl IntoIterator<Item = T>) -> Self {
        let object = |(index, contents)| {
            let object = Object { address: (index + 1) * STRIDE, call: None, contents };
            HeapCell::new(format!("object {index}"), object)
        };
        Self { objects: contents.into_iter().enumerate().map(object).collect() }
    }

    /// Touches an object, as managed code may.
    ///
    /// # Panics
    ///
    /// As [`HeapCell::write`].
    pub fn touch(&self, index: usize) {
        self.objects[index].write(|_| ());
    }

    /// Returns a reference to an object, good until the next safepoint, as managed code may load one. Counts as a touch.
    ///
    /// # Panics
    ///
    /// As [`HeapCell::write`].
    #[must_use]
    pub fn reference(&self, index: usize) -> usize {
        self.objects[index].write(|object| object.address)
    }

    /// Gives `f` the contents of an object to change.
    ///
    /// # Panics
    ///
    /// With [`STALE`] if the object is somewhere else by now, and as [`HeapCell::write`].
    #[track_caller]
    pub fn write<R>(&self, reference: usize, f: impl FnOnce(&mut T) -> R) -> R {
        let index = index_of(reference, self.objects.len());
        let written = self.objects[index].write(|object| {
            if object.address == reference { Ok(f(&mut object.contents)) } else { Err(object.address) }
        });
        written.unwrap_or_else(|now| panic!("{STALE}: object {index} was at {reference} and is at {now}"))
    }

    /// Makes a foreign call that declares an object as a root, and checks that the root follows the object through every collection. `foreign` runs as foreign code and is
    /// given the address of the root's slot.
    ///
    /// While the call lasts, [`collect`](Self::collect) expects it in its mutator's chain, and the root declared.
    ///
    /// # Panics
    ///
    /// With [`WARP`] if the root is stale afterwards, and as [`HeapCell::write`].
    pub fn call_with_root<V: StackScanner + Vm<Ref = usize>>(
        &self,
        mutator: &mut Mutator<V>,
        index: usize,
        foreign: impl FnOnce(usize),
    ) {
        let place = (mutator.id(), mutator.depth());
        let mut call = UnlessPanicking::new(mutator.foreign_call());
        let root = call.root(self.objects[index].write(|object| {
            object.call = Some(place);
            object.address
        }));
        let slot = root.slot().addr();
        call.run(|| foreign(slot));
        let address = self.objects[index].write(|object| {
            object.call = None;
            object.address
        });
        assert_eq!(call.get(root), address, "{WARP}: the root of object {index} is stale after the call");
    }

    /// Collects, in a pause: moves every object, updates every root that is reported, the host's own ([`scan_segment`](StackScanner::scan_segment)) and the crate's, and checks
    ///
    /// - that nobody else touches an object meanwhile;
    /// - that each mutator's chain is complete, from its newest activation to its oldest;
    /// - that what foreign calls made with [`call_with_root`](Self::call_with_root) have declared is declared, once, and reported;
    /// - that each slot reported is current.
    ///
    /// References inside of contents are the host's to update: [`Collected::moved`] tells where an object is now.
    ///
    /// # Panics
    ///
    /// With [`EXCLUSION`](super::EXCLUSION), [`PUBLICATION`] or [`WARP`] where one of these does not hold; and if an object is pinned.
    pub fn collect<V: StackScanner + Vm<Ref = usize>>(
        &self,
        stopped: &StoppedWorld<'_, V>,
        seen: &Seen,
    ) -> Collected {
        // The heap first: if the pause does not exclude a mutator, this is what tells, before anything else looks odd.
        let before: Vec<_> = self
            .objects
            .iter()
            .map(|object| {
                object.write(|object| {
                    object.address += 1;
                    (object.address - 1, object.call)
                })
            })
            .collect();
        complete(stopped);
        seen.note(stopped);
        for (index, &(address, call)) in before.iter().enumerate() {
            let Some((id, depth)) = call else { continue };
            let activation = stopped
                .mutators()
                .filter(|mutator| mutator.id() == id)
                .flat_map(|mutator| mutator.activations())
                .find(|activation| {
                    activation.depth() == depth && activation.kind() == FrameKind::ForeignCall
                });
            let Some(activation) = activation else {
                panic!(
                    "{PUBLICATION}: the foreign call of mutator {id} at depth {depth} is not in its chain"
                );
            };
            let mut declared = 0;
            activation.for_each_declared(|root| declared += usize::from(root.slot.load() == address));
            assert_eq!(
                declared, 1,
                "{WARP}: object {index} of the foreign call at depth {depth} is not declared"
            );
        }
        let mut roots = Roots { before: &before, reported: vec![0; before.len()] };
        stopped.enumerate(&mut roots);
        let reported = roots.reported;
        for (index, (_, call)) in before.iter().enumerate() {
            let missing = call.is_some() && reported[index] == 0;
            assert!(!missing, "{WARP}: object {index} is declared, and `enumerate` does not report it");
        }
        Collected { reported, in_calls: before.iter().map(|(_, call)| call.is_some()).collect() }
    }
}

/// Fails unless each chain is whole: its depths without a gap, each with its call site.
fn complete<V: StackScanner>(stopped: &StoppedWorld<'_, V>) {
    for mutator in stopped.mutators() {
        let chain: Vec<_> = mutator.activations().collect();
        for (older, activation) in chain.iter().rev().enumerate() {
            assert_eq!(activation.depth(), older, "{PUBLICATION}: the chain is {chain:?}");
            if activation.segment().is_none() {
                continue; // a foreign thread's base, or a mutator that is leaving: there is no frame to name
            }
            assert!(activation.call_site().is_some(), "{PUBLICATION}: no call site in {chain:?}");
        }
    }
}

/// The number of the object that `reference` names or has named.
///
/// # Panics
///
/// If it never named one.
#[track_caller]
fn index_of(reference: usize, objects: usize) -> usize {
    match (reference / STRIDE).checked_sub(1) {
        Some(index) if index < objects => index,
        _ => panic!("{STALE}: {reference} is no reference of this heap"),
    }
}

/// What a collection of a [`ModelHeap`] has found.
#[derive(Debug)]
pub struct Collected {
    reported: Vec<usize>,
    in_calls: Vec<bool>,
}

impl Collected {
    /// How many slots that were reported held a reference to an object.
    #[must_use]
    pub fn reported(&self, index: usize) -> usize {
        self.reported[index]
    }

    /// Says whether a foreign call made with [`ModelHeap::call_with_root`] had declared an object.
    #[must_use]
    pub fn in_call(&self, index: usize) -> bool {
        self.in_calls[index]
    }

    /// Where the object of a reference from before the collection is now.
    ///
    /// # Panics
    ///
    /// If it is no reference.
    #[must_use]
    #[track_caller]
    pub fn moved(&self, reference: usize) -> usize {
        index_of(reference, self.reported.len());
        reference + 1
    }
}

/// Updates every slot it is given.
struct Roots<'o> {
    before: &'o [(usize, Option<(u64, usize)>)],
    reported: Vec<usize>,
}

impl RootVisitor<usize> for Roots<'_> {
    fn slot(&mut self, mut slot: Slot<'_, usize>) {
        let reference = slot.load();
        if reference == 0 {
            return;
        }
        let index = index_of(reference, self.before.len());
        assert_eq!(reference, self.before[index].0, "{WARP}: the slot of object {index} missed a collection");
        slot.store(reference + 1);
        self.reported[index] += 1;
    }

    fn pinned(&mut self, _reference: usize) {
        panic!("the model's heap moves every object: its host admits no pins");
    }

    fn transitively_pinned(&mut self, reference: usize) {
        self.pinned(reference);
    }
}
