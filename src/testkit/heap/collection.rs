//! One collection: pins, forwarding, the scan, and what is remembered of it.
//!
//! Nothing of the old blocks is written until the sweep at the very end. Where each object went is kept in a ledger beside
//! its block, which afterwards serves as the tombstones of the block.

use core::fmt;
use core::hash::BuildHasherDefault;
use core::mem;
use std::collections::{HashMap, HashSet};
use std::sync::MutexGuard;

use super::blocks::{BLOCK_BYTES, Block, GRANULE_BYTES, Guarded, Starts};
use super::{ChunkHasher, Fate, Place, Ref, StaleReference, State};

/// The greatest number of stale writes that are listed.
const LISTED_STALE_WRITES: usize = 64;

/// A collection under way. It holds the lock of the heap.
///
/// Two phases: first [`pin`](Self::pin) and [`pin_transitively`](Self::pin_transitively), then [`forward`](Self::forward)
/// for every root, then [`finish`](Self::finish).
///
/// Dropped without `finish` (a panic while roots were enumerated, for one), it frees nothing and moves nothing further:
/// objects not forwarded so far stay where they are, those forwarded stay at their new places, and every field is updated
/// to match. Roots that were forwarded and roots that were not are then both right. It counts as a collection.
///
/// Leaked, it leaves the heap locked for ever, with every object where it was.
pub struct Collection<'heap> {
    state: MutexGuard<'heap, State>,
    /// One for each block there was at the start, which are the first of `state.blocks`. Blocks behind them are new.
    ledgers: Vec<Ledger>,
    /// Objects whose fields are still to be forwarded: new copies and pinned objects.
    unscanned: Vec<Place>,
    /// The objects from which everything is pinned.
    pinned_transitively: HashSet<Ref>,
    summary: CollectionSummary,
    forwarding: bool,
    finished: bool,
}

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CollectionSummary {
    /// The number of the collection; the first of a heap is 1.
    pub number: u64,
    /// The number of objects that moved.
    pub moved: usize,
    /// The number of objects that stayed because they were pinned.
    pub pinned: usize,
    /// The number of objects that died.
    pub freed: usize,
    /// The number of objects there are now.
    pub live: usize,
    /// The memory of the objects that moved, headers included.
    pub bytes_moved: usize,
}

impl fmt::Debug for Collection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collection").field("so_far", &self.summary).finish_non_exhaustive()
    }
}

impl<'heap> Collection<'heap> {
    pub(super) fn begin(mut state: MutexGuard<'heap, State>) -> Self {
        // Nothing is allocated in an old block any more.
        state.current = None;
        let number = state.collections + 1;
        Self {
            ledgers: state.blocks.iter().map(Ledger::new).collect(),
            state,
            unscanned: Vec::new(),
            pinned_transitively: HashSet::new(),
            summary: CollectionSummary { number, ..CollectionSummary::default() },
            forwarding: false,
            finished: false,
        }
    }

    /// Returns the number of this collection; the first of a heap is 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.summary.number
    }

    /// Returns the object that covers `address`, as [`Heap::resolve_interior`](super::Heap::resolve_interior) does.
    ///
    /// A conservative scanner pins what it finds this way. Once objects have been forwarded, both the old and the new
    /// memory of an object resolve to itself.
    #[must_use]
    pub fn resolve_interior(&self, address: usize) -> Option<Ref> {
        self.state.resolve_interior(address)
    }

    /// Keeps an object alive and where it is in this collection. Null needs no pin and is accepted.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object.
    ///
    /// # Panics
    ///
    /// If [`forward`](Self::forward) was called before: the object might have moved already.
    pub fn pin(&mut self, r: Ref) -> Result<(), StaleReference> {
        self.assert_pinning();
        if !r.is_null() {
            let place = self.state.locate(r)?;
            self.pin_place(place, r);
        }
        Ok(())
    }

    /// Pins an object and every object reachable from it. Null is accepted.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object. A field that names none is passed over.
    ///
    /// # Panics
    ///
    /// If [`forward`](Self::forward) was called before.
    pub fn pin_transitively(&mut self, r: Ref) -> Result<(), StaleReference> {
        self.assert_pinning();
        if r.is_null() {
            return Ok(());
        }
        self.state.locate(r)?;
        let mut pending = vec![r];
        while let Some(next) = pending.pop() {
            if let Ok(place) = self.state.locate(next)
                && self.pinned_transitively.insert(next)
            {
                self.pin_place(place, next);
                if let Some(object) = self.state.object_at(place) {
                    pending.extend((0..object.shape().references as usize).map(|i| object.read_field(i)));
                }
            }
        }
        Ok(())
    }

    /// Says whether `r` names an object that is pinned in this collection.
    #[must_use]
    pub fn is_pinned(&self, r: Ref) -> bool {
        let place = self.state.start(r).filter(|place| place.block < self.ledgers.len());
        place.is_some_and(|place| self.ledgers[place.block].went_to(place.granule) == r)
    }

    /// Keeps an object alive and returns its address from now on: where it is if it is pinned, where it was moved to if
    /// it is not. Null gives null.
    ///
    /// Calling it twice for a slot is harmless: a new address is returned as it is.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object.
    ///
    /// # Panics
    ///
    /// If the system has no memory.
    pub fn forward(&mut self, r: Ref) -> Result<Ref, StaleReference> {
        self.forwarding = true;
        if r.is_null() {
            return Ok(r);
        }
        let place = self.state.locate(r)?;
        let Some(known) = self.ledgers.get(place.block).map(|ledger| ledger.went_to(place.granule)) else {
            return Ok(r);
        };
        Ok(if known.is_null() { self.copy(place) } else { known })
    }

    /// Reaches everything that is to live, once every root has been forwarded: after this [`survivor`](Self::survivor) knows who does.
    ///
    /// # Panics
    ///
    /// If the system has no memory.
    pub fn reach(&mut self) {
        self.scan();
    }

    /// Returns where an object is from now on, or `None` if nothing has reached it: for references that keep nothing alive. Null gives null.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object.
    pub fn survivor(&self, r: Ref) -> Result<Option<Ref>, StaleReference> {
        if r.is_null() {
            return Ok(Some(r));
        }
        let place = self.state.locate(r)?;
        let Some(to) = self.ledgers.get(place.block).map(|ledger| ledger.went_to(place.granule)) else {
            return Ok(Some(r));
        };
        Ok((!to.is_null()).then_some(to))
    }

    /// Scans everything reached and frees the rest.
    ///
    /// A field that names no object, which only foreign code can bring about, is left as it is: its next use is
    /// reported.
    ///
    /// # Panics
    ///
    /// If the system has no memory. The collection then ends as if it had been dropped.
    pub fn finish(mut self) -> CollectionSummary {
        self.scan();
        self.sweep();
        self.summary
    }

    /// Checks that pins may still be named.
    ///
    /// # Panics
    ///
    /// If something was forwarded.
    fn assert_pinning(&self) {
        assert!(!self.forwarding, "every pin of a collection comes before its first forward");
    }

    /// Pins the old object `r` at `place`, unless it is pinned.
    fn pin_place(&mut self, place: Place, r: Ref) {
        let destination = self.ledgers[place.block].destination(place.granule);
        if destination.is_null() {
            *destination = r;
            self.summary.pinned += 1;
            self.unscanned.push(place);
        }
    }

    /// Copies an old object that was not reached before, and returns its new address.
    ///
    /// # Panics
    ///
    /// If the system has no memory. Nothing has changed then.
    fn copy(&mut self, from: Place) -> Ref {
        let granules = self.state.object_at(from).expect("the caller located it").shape().granules();
        let block = self.state.block_for(granules);
        let [old, new] =
            self.state.blocks.get_disjoint_mut([from.block, block]).expect("an old block and a new one");
        let granule = new.adopt(old.object(from.granule).expect("the caller located it"));
        let to = new.object(granule).expect("it was copied there").reference();
        *self.ledgers[from.block].destination(from.granule) = to;
        self.summary.moved += 1;
        self.summary.bytes_moved += granules * GRANULE_BYTES;
        self.unscanned.push(Place { block, granule });
        to
    }

    /// Forwards the fields of everything reached, until nothing new is.
    fn scan(&mut self) {
        while let Some(place) = self.unscanned.pop() {
            let fields = self.state.object_at(place).map_or(0, |object| object.shape().references as usize);
            for index in 0..fields {
                let Some(field) = self.state.object_at(place).map(|object| object.read_field(index)) else {
                    break;
                };
                if let Ok(to) = self.forward(field)
                    && to != field
                    && let Some(object) = self.state.object_at(place)
                {
                    object.write_field(index, to);
                }
            }
        }
    }

    /// Pins every sound object not reached so far and has every object scanned, those scanned already as well: a panic
    /// may have come in the middle of one.
    fn keep_everything(&mut self) {
        self.unscanned.clear();
        for block in 0..self.state.blocks.len() {
            let objects: Vec<usize> = self.state.blocks[block].starts().iter().collect();
            for granule in objects {
                let place = Place { block, granule };
                let Some(r) = self.state.object_at(place).map(|object| object.reference()) else { continue };
                match self.ledgers.get(block).map(|ledger| ledger.went_to(granule)) {
                    // A new copy, or an object pinned before.
                    None => self.unscanned.push(place),
                    Some(to) if to == r => self.unscanned.push(place),
                    Some(to) if to.is_null() => self.pin_place(place, r),
                    // The old copy of an object that moved.
                    Some(_) => {}
                }
            }
        }
    }

    /// Poisons what was not reached, ages the memory of earlier collections, and remembers what became of each object.
    fn sweep(&mut self) {
        self.finished = true;
        let state = &mut *self.state;
        let ledgers = mem::take(&mut self.ledgers);
        let fresh = state.blocks.split_off(ledgers.len());
        let current = state.current.map(|index| index - ledgers.len());
        let mut emptied = Vec::new();
        let mut tombstones = HashMap::default();
        for (mut block, ledger) in mem::take(&mut state.blocks).into_iter().zip(ledgers) {
            let base = block.base();
            if let Some(pinned) = ledger.pinned(base) {
                block.keep_only(pinned);
                state.blocks.push(block);
            } else {
                block.clear();
                emptied.push(block);
            }
            tombstones.insert(base, ledger);
        }
        state.current = current.map(|index| index + state.blocks.len());
        state.blocks.extend(fresh);
        state.table.clear();
        for index in 0..state.blocks.len() {
            state.enter_in_table(index);
        }

        let summary = &mut self.summary;
        summary.live = summary.moved + summary.pinned;
        summary.freed = state.objects - summary.live;
        state.objects = summary.live;
        state.collections = summary.number;
        state.age_retired(summary.number);
        state.retired.push_back(Retired {
            collection: summary.number,
            readable: emptied,
            guarded: Vec::new(),
        });
        state.tombstones.push_back(Tombstones { collection: summary.number, ledgers: tombstones });
        while state.tombstones.len() > state.config.tombstone_collections {
            state.tombstones.pop_front();
        }
    }
}

impl Drop for Collection<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.keep_everything();
            self.scan();
            self.sweep();
        }
    }
}

impl State {
    /// Guards and unmaps the memory of earlier collections, at the end of collection `number`.
    fn age_retired(&mut self, number: u64) {
        let mut retired = mem::take(&mut self.retired);
        for batch in &mut retired {
            for block in &batch.readable {
                self.note_stale_writes(batch.collection, block);
            }
            batch.guarded.extend(batch.readable.drain(..).map(Block::guard));
        }
        // In quarantine since the end of the collection after the one that emptied it.
        let quarantine = self.config.quarantine_collections as u64;
        retired.retain(|batch| number <= batch.collection.saturating_add(quarantine));
        self.retired = retired;
    }

    /// Lists the objects that once were in an emptied block and whose memory is no longer poison.
    fn note_stale_writes(&mut self, collection: u64, block: &Block) {
        let ledger = self
            .tombstones
            .iter()
            .find(|tombstones| tombstones.collection == collection)
            .and_then(|tombstones| tombstones.ledgers.get(&block.base()));
        for granule in block.damaged_poison() {
            if self.stale_writes.len() == LISTED_STALE_WRITES {
                return;
            }
            let start = ledger.and_then(|ledger| ledger.starts.at_or_below(granule)).unwrap_or(granule);
            let reference = Ref::from_address(block.base() + start * GRANULE_BYTES);
            if self.stale_writes.last().is_none_or(|last| last.reference != reference) {
                let fate = ledger.and_then(|ledger| ledger.fate(collection, reference, start));
                let stale = StaleReference { reference, fate: fate.unwrap_or(Fate::NotAnObject) };
                self.stale_writes.push(stale);
            }
        }
    }
}

/// The blocks a collection emptied: readable poison until the end of the next one, guarded after that.
pub(super) struct Retired {
    collection: u64,
    readable: Vec<Block>,
    /// Kept for its `Drop`.
    guarded: Vec<Guarded>,
}

/// What one collection did to the objects there were.
pub(super) struct Tombstones {
    collection: u64,
    /// By the base address of the block.
    ledgers: HashMap<usize, Ledger, BuildHasherDefault<ChunkHasher>>,
}

impl Tombstones {
    /// Says what this collection did to the object that started at `r`, if it moved or freed one.
    pub(super) fn fate_of(&self, r: Ref) -> Option<Fate> {
        let offset = r.address() % BLOCK_BYTES;
        let ledger = self.ledgers.get(&(r.address() - offset))?;
        let granule = offset.is_multiple_of(GRANULE_BYTES).then_some(offset / GRANULE_BYTES)?;
        ledger.fate(self.collection, r, granule)
    }
}

/// Where each object of one block went.
struct Ledger {
    starts: Starts,
    /// The number of starts before each word of `starts`.
    before: Box<[u32]>,
    /// For each start, in order: null if it was not reached, its own address if it is pinned, else its new address.
    destinations: Box<[Ref]>,
}

impl Ledger {
    /// Opens the ledger of a block before anything was reached.
    fn new(block: &Block) -> Self {
        let starts = block.starts().clone();
        let before = starts.counts_before_words();
        let destinations = vec![Ref::NULL; starts.iter().count()].into_boxed_slice();
        Self { starts, before, destinations }
    }

    /// Returns where the object at the start `granule` went.
    fn went_to(&self, granule: usize) -> Ref {
        self.destinations[self.starts.rank(&self.before, granule)]
    }

    /// Returns where to write down where the object at the start `granule` goes.
    fn destination(&mut self, granule: usize) -> &mut Ref {
        &mut self.destinations[self.starts.rank(&self.before, granule)]
    }

    /// Returns the pinned objects of the block at `base`, or `None` if there is none.
    fn pinned(&self, base: usize) -> Option<Starts> {
        let stayed = |(granule, to): &(usize, &Ref)| to.address() == base + granule * GRANULE_BYTES;
        let mut pinned = None;
        for (granule, _) in self.starts.iter().zip(&self.destinations).filter(stayed) {
            pinned.get_or_insert_with(|| self.starts.emptied()).insert(granule);
        }
        pinned
    }

    /// Says what `collection` did to the object `r` at `granule`, if there was one and it did not stay.
    fn fate(&self, collection: u64, r: Ref, granule: usize) -> Option<Fate> {
        if !self.starts.contains(granule) {
            return None;
        }
        match self.went_to(granule) {
            Ref::NULL => Some(Fate::Freed { collection }),
            to => (to != r).then_some(Fate::Moved { collection, to }),
        }
    }
}
