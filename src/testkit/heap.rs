//! A copying heap that makes a stale reference a named failure.
//!
//! Every collection moves every object to fresh memory, unless the object is pinned. What it leaves behind is poisoned,
//! stays readable until the end of the next collection, is then guarded (an access faults) for some collections more,
//! and only then may its addresses be used again. So a reference that a collection should have updated and did not is
//! wrong at once, each time, and stays wrong.
//!
//! # What a word is worth
//!
//! Any word can be passed as a [`Ref`], and every access checks it before it reads object memory: the word must be the
//! start of an object in a block of this heap, which the heap knows from bitmaps beside the blocks, and the header there
//! must carry the right canary. A word that fails is answered with [`StaleReference`], which says what became of the
//! object the word once named, as far back as [`HeapConfig::tombstone_collections`].
//!
//! # Life of a block
//!
//! ```text
//!                     collection c                end of c + 1          end of c + 1 + quarantine
//!   objects move in  |  objects move out         |                     |
//!   ---------------> |  poisoned, readable ----> |  guarded ---------> |  unmapped
//!                    |  (a pinned object stays: the block is kept, the rest of it poisoned,
//!                    |   and no object is allocated in it)
//! ```
//!
//! # Limits
//!
//! One lock covers the heap, and a [`Collection`] holds it. Inside a collection use the methods of `Collection`; those of
//! [`Heap`] wait for its end, on the collecting thread for ever. Foreign code that was given a [`Heap::payload`] address
//! must not write there while another thread reads the same object through the heap.

mod blocks;
mod collection;

use core::cmp::Ordering;
use core::fmt;
use core::hash::{BuildHasherDefault, Hasher};
use core::slice;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::blocks::{BLOCK_BYTES, Block, GRANULE_BYTES, Object, Shape};
pub use self::collection::{Collection, CollectionSummary};
use self::collection::{Retired, Tombstones};

/// One word that names an object: the address of its header.
///
/// A plain number. It may be stale, or never have named an object; whoever uses it is told so.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Ref(usize);

impl Ref {
    /// The reference to no object, a zero word.
    pub const NULL: Self = Self(0);

    /// Takes any word as a reference.
    #[must_use]
    pub const fn from_address(address: usize) -> Self {
        Self(address)
    }

    /// Says whether this is [`Ref::NULL`].
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// Returns the word.
    #[must_use]
    pub const fn address(self) -> usize {
        self.0
    }
}

/// The address in it is that of the object's header, so the pointer check looks at it.
impl crate::ForeignValue for Ref {
    const HAS_ADDRESSES: bool = true;

    fn addresses(&self, visit: &mut dyn FnMut(usize)) {
        visit(self.0);
    }
}

impl fmt::Debug for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A word was used as a reference and names no object of the heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stale reference {reference:?}: {fate}")]
pub struct StaleReference {
    /// The word.
    pub reference: Ref,
    /// What became of the object it named.
    pub fate: Fate,
}

/// What became of the object a stale reference named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// The object lives or lived on elsewhere: whoever holds the word was not told. Report the slot to that collection,
    /// or pin the object.
    Moved {
        /// The number of the collection that moved it.
        collection: u64,
        /// Where that collection put it.
        to: Ref,
    },
    /// Nothing reached the object: whoever holds the word was not a root. Report the slot to that collection.
    Freed {
        /// The number of the collection that freed it.
        collection: u64,
    },
    /// The object is there and its header is not: something wrote outside its own object, probably foreign code past the
    /// end of the payload before this one.
    Overwritten,
    /// The word never named an object, or its object is gone for more collections than the heap remembers.
    NotAnObject,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moved { collection, to } => {
                write!(f, "its object was moved by collection {collection} to {to:?}")
            }
            Self::Freed { collection } => write!(f, "its object was freed by collection {collection}"),
            Self::Overwritten => f.write_str("the header of its object was overwritten"),
            Self::NotAnObject => f.write_str("it is not an object of this heap"),
        }
    }
}

/// How long a heap remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeapConfig {
    /// The number of collections for which the heap can say what became of an object. 16 by default.
    pub tombstone_collections: usize,
    /// The number of collections for which old memory stays guarded before its addresses may be used again, counted from
    /// the end of the collection after the one that emptied it. 8 by default.
    pub quarantine_collections: usize,
}

impl Default for HeapConfig {
    fn default() -> Self {
        Self { tombstone_collections: 16, quarantine_collections: 8 }
    }
}

/// A copying heap; see the [module](self) for what it does to a stale reference.
///
/// An object has reference fields and raw bytes, any number of either. The payload of an object, that is its raw bytes,
/// is aligned to a word and followed by a zero byte.
///
/// ```
/// use reentry::testkit::heap::{Fate, Heap, Ref};
///
/// let heap = Heap::new();
/// let name = heap.alloc(&[], b"name");
/// let pair = heap.alloc(&[name, Ref::NULL], b"");
///
/// let mut collection = heap.begin_collection();
/// collection.pin(name).unwrap();
/// let moved = collection.forward(pair).unwrap();
/// collection.finish();
///
/// assert_eq!(heap.field(moved, 0), Ok(name));
/// let stale = heap.check(pair).unwrap_err();
/// assert_eq!(stale.fate, Fate::Moved { collection: 1, to: moved });
/// ```
pub struct Heap {
    state: Mutex<State>,
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The lock may be held by a collection of this very thread.
        f.debug_struct("Heap").finish_non_exhaustive()
    }
}

impl Heap {
    /// Makes an empty heap with the default [`HeapConfig`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_config(HeapConfig::default())
    }

    /// Makes an empty heap.
    #[must_use]
    pub fn with_config(config: HeapConfig) -> Self {
        Self { state: Mutex::new(State::new(config)) }
    }

    /// Allocates an object with these fields and these raw bytes.
    ///
    /// It never collects.
    ///
    /// # Panics
    ///
    /// If `refs` holds a stale reference, if the object is too large to describe in 32 bits, or if the system has no
    /// memory.
    pub fn alloc(&self, refs: &[Ref], bytes: &[u8]) -> Ref {
        self.try_alloc(refs, bytes).unwrap_or_else(|stale| panic!("field of a new object: {stale}"))
    }

    /// Allocates as [`alloc`](Self::alloc) does, and reports a stale reference among the fields.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if one of `refs` is neither null nor an object. Nothing was allocated then.
    ///
    /// # Panics
    ///
    /// If the object is too large to describe in 32 bits, or if the system has no memory.
    pub fn try_alloc(&self, refs: &[Ref], bytes: &[u8]) -> Result<Ref, StaleReference> {
        let mut state = self.lock();
        for &field in refs {
            state.check_field(field)?;
        }
        let shape = Shape::new(refs.len(), bytes.len());
        let block = state.block_for(shape.granules());
        let at = state.blocks[block].create(shape);
        state.objects += 1;
        let object = state.blocks[block].object(at).expect("the object was created above");
        for (index, &field) in refs.iter().enumerate() {
            object.write_field(index, field);
        }
        object.write_bytes(0, bytes);
        Ok(object.reference())
    }

    /// Checks that `r` names an object.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if it does not. Null does not.
    pub fn check(&self, r: Ref) -> Result<(), StaleReference> {
        self.lock().object(r).map(drop)
    }

    /// Says whether `r` names an object now.
    #[must_use]
    pub fn owns(&self, r: Ref) -> bool {
        self.check(r).is_ok()
    }

    /// Returns the number of reference fields of an object.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object.
    pub fn field_count(&self, r: Ref) -> Result<usize, StaleReference> {
        Ok(self.lock().object(r)?.shape().references as usize)
    }

    /// Returns the number of raw bytes of an object.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object.
    pub fn byte_count(&self, r: Ref) -> Result<usize, StaleReference> {
        Ok(self.lock().object(r)?.shape().bytes as usize)
    }

    /// Reads field `index` of an object.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object. What the field holds is not checked.
    ///
    /// # Panics
    ///
    /// If the object has no such field.
    pub fn field(&self, r: Ref, index: usize) -> Result<Ref, StaleReference> {
        Ok(self.lock().object(r)?.read_field(index))
    }

    /// Writes field `index` of an object.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object, or if `value` is neither null nor an object.
    ///
    /// # Panics
    ///
    /// If the object has no such field.
    pub fn set_field(&self, r: Ref, index: usize, value: Ref) -> Result<(), StaleReference> {
        let state = self.lock();
        state.check_field(value)?;
        state.object(r)?.write_field(index, value);
        Ok(())
    }

    /// Returns a copy of the raw bytes of an object.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object.
    pub fn bytes(&self, r: Ref) -> Result<Vec<u8>, StaleReference> {
        self.with_bytes(r, <[u8]>::to_vec)
    }

    /// Calls `read` with the raw bytes of an object, under the lock of the heap.
    ///
    /// `read` must not use the heap: it would wait for itself.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object. `read` is not called then.
    pub fn with_bytes<T>(&self, r: Ref, read: impl FnOnce(&[u8]) -> T) -> Result<T, StaleReference> {
        let state = self.lock();
        Ok(read(state.bytes(state.object(r)?)))
    }

    /// Overwrites raw bytes of an object, from `offset` on.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object.
    ///
    /// # Panics
    ///
    /// If the object has fewer than `offset + bytes.len()` raw bytes.
    pub fn write_bytes(&self, r: Ref, offset: usize, bytes: &[u8]) -> Result<(), StaleReference> {
        self.lock().object(r)?.write_bytes(offset, bytes);
        Ok(())
    }

    /// Compares the raw bytes of two objects, as slices compare.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if one of them is no object.
    pub fn compare_bytes(&self, a: Ref, b: Ref) -> Result<Ordering, StaleReference> {
        let state = self.lock();
        Ok(state.bytes(state.object(a)?).cmp(state.bytes(state.object(b)?)))
    }

    /// Returns the address of the raw bytes of an object, for foreign code.
    ///
    /// It is good until the next collection, or as long as the object is pinned. An object with no bytes has an address
    /// too, and the byte there is zero.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if `r` names no object.
    pub fn payload(&self, r: Ref) -> Result<*mut u8, StaleReference> {
        Ok(self.lock().object(r)?.payload().as_ptr())
    }

    /// Returns the object that covers `address`, wherever in the object that is: header, fields, bytes, or one past the
    /// last byte.
    #[must_use]
    pub fn resolve_interior(&self, address: usize) -> Option<Ref> {
        self.lock().resolve_interior(address)
    }

    /// Returns the number of collections so far.
    #[must_use]
    pub fn collections(&self) -> u64 {
        self.lock().collections
    }

    /// Returns the number of objects that no collection has found dead.
    #[must_use]
    pub fn live_objects(&self) -> usize {
        self.lock().objects
    }

    /// Returns the dead or moved objects whose old memory was written after they left it.
    ///
    /// Only foreign code can do that, through an address it kept for too long: the write was lost. It is looked for when
    /// old memory goes from poisoned to guarded, at the end of the collection after the one that emptied it. Writes to
    /// the dead part of a block that a pinned object keeps are not seen. The list ends at 64.
    #[must_use]
    pub fn stale_writes(&self) -> Vec<StaleReference> {
        self.lock().stale_writes.clone()
    }

    /// Starts a collection, which holds the lock of the heap until it is finished or dropped.
    ///
    /// The caller has stopped every mutator. It first names all pins, then forwards every root, then calls
    /// [`Collection::finish`].
    #[must_use = "a collection that is dropped keeps every object alive"]
    pub fn begin_collection(&self) -> Collection<'_> {
        Collection::begin(self.lock())
    }

    /// Takes the lock. A panic under it (an index out of range, a panic of the closure of `with_bytes`) comes before the
    /// first change, so the state is sound and the mutex's poisoning says nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an object is: a block and a granule in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    block: usize,
    granule: usize,
}

/// All there is to a heap.
struct State {
    config: HeapConfig,
    /// The live blocks, in no order.
    blocks: Vec<Block>,
    /// The block that covers each 64 KiB chunk of addresses, as an index into `blocks`.
    table: HashMap<usize, usize, BuildHasherDefault<ChunkHasher>>,
    /// The block that small objects are allocated in.
    current: Option<usize>,
    objects: usize,
    collections: u64,
    /// Blocks without objects that keep their addresses, oldest first.
    retired: VecDeque<Retired>,
    /// What became of the objects of earlier collections, oldest first.
    tombstones: VecDeque<Tombstones>,
    stale_writes: Vec<StaleReference>,
}

impl State {
    fn new(config: HeapConfig) -> Self {
        Self {
            config,
            blocks: Vec::new(),
            table: HashMap::default(),
            current: None,
            objects: 0,
            collections: 0,
            retired: VecDeque::new(),
            tombstones: VecDeque::new(),
            stale_writes: Vec::new(),
        }
    }

    /// Returns a block with room for an object of `granules` granules.
    fn block_for(&mut self, granules: usize) -> usize {
        if let Some(current) = self.current
            && self.blocks[current].has_room_for(granules)
        {
            return current;
        }
        let index = self.blocks.len();
        let block = Block::map(granules);
        if block.chunks() == 1 {
            self.current = Some(index);
        }
        self.blocks.push(block);
        self.enter_in_table(index);
        index
    }

    /// Makes the chunks of a block known.
    fn enter_in_table(&mut self, index: usize) {
        let first = self.blocks[index].base() / BLOCK_BYTES;
        for chunk in first..first + self.blocks[index].chunks() {
            self.table.insert(chunk, index);
        }
    }

    /// Returns the block that covers `address`, and the granule in it.
    fn place_of(&self, address: usize) -> Option<Place> {
        let &block = self.table.get(&(address / BLOCK_BYTES))?;
        Some(Place { block, granule: (address - self.blocks[block].base()) / GRANULE_BYTES })
    }

    /// Returns the place of the start `r`, whether or not its header is sound.
    fn start(&self, r: Ref) -> Option<Place> {
        let place = self.place_of(r.0).filter(|_| r.0.is_multiple_of(GRANULE_BYTES))?;
        self.blocks[place.block].starts().contains(place.granule).then_some(place)
    }

    /// Returns the object at `place`, or `None` if its header was overwritten.
    fn object_at(&self, place: Place) -> Option<Object<'_>> {
        self.blocks[place.block].object(place.granule)
    }

    /// Returns the place of the object `r`.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if it is none, or its header was overwritten.
    fn locate(&self, r: Ref) -> Result<Place, StaleReference> {
        let sound = self.start(r).filter(|&place| self.object_at(place).is_some());
        sound.ok_or_else(|| self.stale(r))
    }

    /// Returns the object `r`.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if it is none, or its header was overwritten.
    fn object(&self, r: Ref) -> Result<Object<'_>, StaleReference> {
        self.start(r).and_then(|place| self.object_at(place)).ok_or_else(|| self.stale(r))
    }

    /// Checks that `value` may be put in a field.
    ///
    /// # Errors
    ///
    /// [`StaleReference`] if it is neither null nor an object.
    fn check_field(&self, value: Ref) -> Result<(), StaleReference> {
        if value.is_null() { Ok(()) } else { self.object(value).map(drop) }
    }

    /// Lends the raw bytes of an object.
    fn bytes<'state>(&'state self, object: Object<'state>) -> &'state [u8] {
        let count = object.shape().bytes as usize;
        // SAFETY: the bytes are inside the object (B2) and initialised. Nothing of the heap writes while the state is
        // borrowed from a method that reads, and foreign writers answer for themselves (B3).
        unsafe { slice::from_raw_parts(object.payload().as_ptr(), count) }
    }

    fn resolve_interior(&self, address: usize) -> Option<Ref> {
        let place = self.place_of(address)?;
        let block = &self.blocks[place.block];
        block.object(block.object_around(place.granule)?).map(Object::reference)
    }

    /// Says what became of `r`, which is no object.
    #[cold]
    fn stale(&self, reference: Ref) -> StaleReference {
        let remembered = || self.tombstones.iter().rev().find_map(|tombstones| tombstones.fate_of(reference));
        let fate = match self.start(reference) {
            Some(_) => Fate::Overwritten,
            None => remembered().unwrap_or(Fate::NotAnObject),
        };
        StaleReference { reference, fate }
    }
}

/// Hashes chunk numbers, which come in runs, with one multiplication.
#[derive(Default)]
struct ChunkHasher(u64);

impl Hasher for ChunkHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_usize(usize::from(byte));
        }
    }

    fn write_usize(&mut self, word: usize) {
        self.0 = (self.0.rotate_left(5) ^ word as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[cfg(test)]
#[allow(clippy::missing_panics_doc, reason = "a test panics to fail")]
mod tests;
