//! The memory of the heap: mappings, blocks of objects, and what an object looks like in them.
//!
//! ```text
//!   block: a mapping aligned to 64 KiB, in granules of 16 bytes
//!   +-----------+-----------+-----------+-------------------- - - ---+
//!   | object    | object    | object    | not used yet               |
//!   +-----------+-----------+-----------+-------------------- - - ---+
//!   starts: one bit a granule, beside the block, never in it
//!
//!   object: whole granules
//!   +----------------+-----------------------+----------+----------+-------------+---- - ---+
//!   | canary, 8 bytes| references: u32       | bytes:   | fields,  | raw bytes   | zeroes,  |
//!   |                |                       | u32      | one word |             | at least |
//!   |                |                       |          | each     |             | one      |
//!   +----------------+-----------------------+----------+----------+-------------+---- - ---+
//! ```
//!
//! The canary is a function of the object's own address and shape, so it catches a header that was overwritten, and a
//! shape that was changed under it. The zero after the raw bytes lets C read them as a string, and makes the address one
//! past the last byte an address of the same object.

use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use super::Ref;

/// The size and alignment of a block.
pub(super) const BLOCK_BYTES: usize = 64 * 1024;
/// The size and alignment of a granule: an object starts at a granule and covers whole ones.
pub(super) const GRANULE_BYTES: usize = size_of::<Granule>();
const BLOCK_GRANULES: usize = BLOCK_BYTES / GRANULE_BYTES;

/// The byte that fills the memory of dead objects.
pub(super) const POISON: u8 = 0xDB;
const POISONED: Granule = Granule([u64::from_ne_bytes([POISON; 8]); 2]);

/// The unit of object memory.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub(super) struct Granule([u64; 2]);

/// What precedes the fields of every object, one granule.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    canary: u64,
    shape: Shape,
}

/// The number of fields and of raw bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Shape {
    pub(super) references: u32,
    pub(super) bytes: u32,
}

impl Shape {
    /// Describes an object with these many fields and bytes.
    ///
    /// # Panics
    ///
    /// If one of them does not fit 32 bits.
    pub(super) fn new(references: usize, bytes: usize) -> Self {
        let narrow =
            |count: usize| u32::try_from(count).expect("an object has less than 2^32 fields and bytes");
        Self { references: narrow(references), bytes: narrow(bytes) }
    }

    /// Returns the granules an object of this shape covers: header, fields, bytes and the closing zero.
    pub(super) fn granules(self) -> usize {
        let fields = self.references as usize * size_of::<Ref>();
        (size_of::<Header>() + fields + self.bytes as usize + 1).div_ceil(GRANULE_BYTES)
    }

    fn canary_at(self, address: usize) -> u64 {
        let shape = u64::from(self.references) << 32 | u64::from(self.bytes);
        0xC0A1_E5CE_0B1E_C75A ^ address as u64 ^ shape.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

/// A set of granules of one block, one bit each.
#[derive(Debug, Clone)]
pub(super) struct Starts(Box<[u64]>);

impl Starts {
    /// Makes an empty set over `granules` granules.
    fn new(granules: usize) -> Self {
        Self(vec![0; granules.div_ceil(64)].into_boxed_slice())
    }

    /// Makes an empty set over the same granules.
    pub(super) fn emptied(&self) -> Self {
        Self(vec![0; self.0.len()].into_boxed_slice())
    }

    pub(super) fn insert(&mut self, granule: usize) {
        self.0[granule / 64] |= 1 << (granule % 64);
    }

    pub(super) fn contains(&self, granule: usize) -> bool {
        self.0.get(granule / 64).is_some_and(|word| word >> (granule % 64) & 1 != 0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(index, &word)| {
            let rest = core::iter::successors(Some(word), |left| Some(left & left.wrapping_sub(1)));
            rest.take_while(|&left| left != 0).map(move |left| index * 64 + left.trailing_zeros() as usize)
        })
    }

    /// Returns the greatest member that is at most `granule`.
    pub(super) fn at_or_below(&self, granule: usize) -> Option<usize> {
        let last = (granule / 64).min(self.0.len() - 1);
        let mask = if last == granule / 64 { u64::MAX >> (63 - granule % 64) } else { u64::MAX };
        (0..=last).rev().find_map(|index| {
            let word = self.0[index] & if index == last { mask } else { u64::MAX };
            (word != 0).then(|| index * 64 + 63 - word.leading_zeros() as usize)
        })
    }

    /// Returns, for each word of the set, the number of members in the words before it.
    pub(super) fn counts_before_words(&self) -> Box<[u32]> {
        let mut before = 0;
        let count = |word: &u64| {
            before += word.count_ones();
            before - word.count_ones()
        };
        self.0.iter().map(count).collect()
    }

    /// Returns the number of members below `granule`, given [`counts_before_words`](Self::counts_before_words).
    pub(super) fn rank(&self, before: &[u32], granule: usize) -> usize {
        let below = self.0[granule / 64] & ((1 << (granule % 64)) - 1);
        (before[granule / 64] + below.count_ones()) as usize
    }
}

/// A mapping and the objects in it.
///
/// - B1: the first `used` granules of the mapping are handed out to objects or were; the rest is still zero.
/// - B2: every start is the header of an object whose shape ends at or before `used`, unless code outside the heap
///   overwrote the header. The canary says so.
/// - B3: memory is read and written under the lock of the heap only, but for foreign code that was given a payload
///   address: that code answers for not racing with the heap and for staying inside the payload.
pub(super) struct Block {
    memory: Mapping,
    used: usize,
    starts: Starts,
}

impl Block {
    /// Maps a block that fits an object of `granules` granules: 64 KiB, or more for a large object.
    ///
    /// # Panics
    ///
    /// If the system has no memory.
    pub(super) fn map(granules: usize) -> Self {
        let memory = Mapping::map(granules.div_ceil(BLOCK_GRANULES).max(1));
        // A block of several chunks holds one object, at its start.
        let possible_starts = if memory.chunks == 1 { BLOCK_GRANULES } else { 1 };
        Self { memory, used: 0, starts: Starts::new(possible_starts) }
    }

    pub(super) fn base(&self) -> usize {
        self.memory.base.addr().get()
    }

    /// Returns the number of 64 KiB chunks the block covers.
    pub(super) fn chunks(&self) -> usize {
        self.memory.chunks
    }

    pub(super) fn starts(&self) -> &Starts {
        &self.starts
    }

    /// Says whether an object of `granules` granules fits behind those there are.
    pub(super) fn has_room_for(&self, granules: usize) -> bool {
        granules <= self.memory.granules() - self.used
    }

    /// Makes an object behind those there are, with null fields and zero bytes, and returns its granule.
    ///
    /// # Panics
    ///
    /// If there is no room for it.
    pub(super) fn create(&mut self, shape: Shape) -> usize {
        assert!(self.has_room_for(shape.granules()), "the caller looked for room");
        let at = self.used;
        let header = self.granule(at).cast::<Header>();
        let canary = shape.canary_at(header.addr().get());
        // SAFETY: M1: room for the object, hence for its header, was asserted above, and granules are aligned for it.
        unsafe { header.write(Header { canary, shape }) };
        self.used += shape.granules();
        self.starts.insert(at);
        at
    }

    /// Copies an object of another block behind the objects there are, and returns its granule.
    ///
    /// # Panics
    ///
    /// If there is no room for it.
    pub(super) fn adopt(&mut self, object: Object<'_>) -> usize {
        let at = self.create(object.shape);
        // SAFETY: `create` made room for as many granules as the object covers (B2); the one after the header is still
        // inside, since an object covers two at least. The object is in another mapping, since this block is borrowed
        // mutably.
        unsafe {
            let from = object.header.cast::<Granule>().add(1);
            from.copy_to_nonoverlapping(self.granule(at).add(1), object.shape.granules() - 1);
        }
        at
    }

    /// Returns the object that starts at granule `at`, or `None` if none does or its header was overwritten.
    pub(super) fn object(&self, at: usize) -> Option<Object<'_>> {
        if !self.starts.contains(at) {
            return None;
        }
        let header = self.granule(at).cast::<Header>();
        // SAFETY: B2: a start is a header inside the mapping (M1). Any bit pattern is a header.
        let Header { canary, shape } = unsafe { header.read() };
        (canary == shape.canary_at(header.addr().get())).then_some(Object {
            header,
            shape,
            block: PhantomData,
        })
    }

    /// Returns the start of the object that covers granule `granule`.
    pub(super) fn object_around(&self, granule: usize) -> Option<usize> {
        let at = self.starts.at_or_below(granule)?;
        (granule < at + self.object(at)?.shape.granules()).then_some(at)
    }

    /// Poisons everything but the objects at `kept`, which are the only ones left.
    pub(super) fn keep_only(&mut self, kept: Starts) {
        let mut free = 0;
        for at in kept.iter() {
            self.poison(free, at);
            free = at + self.object(at).map_or(1, |object| object.shape.granules());
        }
        self.poison(free, self.used);
        self.starts = kept;
    }

    /// Poisons everything: no object is left.
    pub(super) fn clear(&mut self) {
        self.keep_only(Starts::new(1));
    }

    /// Returns the granules of a cleared block that no longer hold poison.
    pub(super) fn damaged_poison(&self) -> impl Iterator<Item = usize> {
        // SAFETY: B1: the index is below `used`, so inside the mapping (M1), which is initialised.
        (0..self.used).filter(|&index| unsafe { self.granule(index).read() } != POISONED)
    }

    /// Gives the memory up to a [`Guarded`] mapping.
    pub(super) fn guard(self) -> Guarded {
        self.memory.guard()
    }

    fn poison(&mut self, from: usize, to: usize) {
        debug_assert!(from <= to && to <= self.used);
        // SAFETY: M1 and B1: the granules up to `used` are inside the mapping.
        unsafe { ptr::write_bytes(self.granule(from).as_ptr(), POISON, to - from) };
    }

    /// Returns the address of a granule of the mapping, or the end of it.
    ///
    /// # Panics
    ///
    /// If the block has no such granule.
    fn granule(&self, index: usize) -> NonNull<Granule> {
        assert!(index <= self.memory.granules(), "granule {index} is outside the block");
        // SAFETY: M1, and the index was checked.
        unsafe { self.memory.base.add(index) }
    }
}

/// An object found in a block: the header was checked.
///
/// It borrows the block, so the memory stays mapped and no object is created or moved meanwhile. Accesses go through raw
/// pointers (B3).
#[derive(Clone, Copy)]
pub(super) struct Object<'block> {
    header: NonNull<Header>,
    shape: Shape,
    block: PhantomData<&'block Block>,
}

impl Object<'_> {
    pub(super) fn shape(self) -> Shape {
        self.shape
    }

    pub(super) fn reference(self) -> Ref {
        Ref::from_address(self.header.addr().get())
    }

    /// Returns the address of field `index`.
    ///
    /// # Panics
    ///
    /// If the object has no such field.
    pub(super) fn field(self, index: usize) -> NonNull<Ref> {
        let count = self.shape.references as usize;
        assert!(index < count, "field {index} of {:?}, which has {count}", self.reference());
        // SAFETY: B2: the fields follow the header, and the index was checked.
        unsafe { self.header.add(1).cast::<Ref>().add(index) }
    }

    /// Reads field `index`.
    ///
    /// # Panics
    ///
    /// If the object has no such field.
    pub(super) fn read_field(self, index: usize) -> Ref {
        // SAFETY: `field` gives the address of an initialised word of this object; any word is a `Ref`.
        unsafe { self.field(index).read() }
    }

    /// Writes field `index`.
    ///
    /// # Panics
    ///
    /// If the object has no such field.
    pub(super) fn write_field(self, index: usize, value: Ref) {
        // SAFETY: `field` gives the address of a word of this object, to which no reference exists (B3).
        unsafe { self.field(index).write(value) };
    }

    /// Returns the address of the raw bytes.
    pub(super) fn payload(self) -> NonNull<u8> {
        // SAFETY: B2: the bytes follow the fields, inside the object.
        unsafe { self.header.add(1).cast::<Ref>().add(self.shape.references as usize).cast::<u8>() }
    }

    /// Copies `bytes` over the raw bytes from `offset` on.
    ///
    /// # Panics
    ///
    /// If the object has too few bytes.
    pub(super) fn write_bytes(self, offset: usize, bytes: &[u8]) {
        let count = self.shape.bytes as usize;
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= count),
            "{} bytes at offset {offset} of {:?}, which has {count}",
            bytes.len(),
            self.reference()
        );
        // SAFETY: the range was checked against the shape (B2). `bytes` is not in the heap's memory: a slice of it is
        // lent only under the lock, by a method that writes nothing.
        unsafe {
            self.payload().add(offset).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        };
    }
}

/// Memory for whole 64 KiB chunks, aligned to 64 KiB.
///
/// - M1: `base` is the start of `chunks` chunks that this value alone owns: readable, writable and initialised, zero at
///   first, aligned to [`BLOCK_BYTES`].
pub(super) struct Mapping {
    base: NonNull<Granule>,
    chunks: usize,
}

/// A mapping that may not be touched any more: where the system can, an access faults. Its addresses are not reused.
pub(super) struct Guarded {
    /// Kept for its `Drop`.
    _memory: Mapping,
}

// SAFETY: M1: the memory belongs to this value and is tied to no thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps zeroes.
    ///
    /// # Panics
    ///
    /// If the system has no memory.
    fn map(chunks: usize) -> Self {
        let bytes = chunks.checked_mul(BLOCK_BYTES).expect("a block smaller than the address space");
        Self { base: system::map(bytes).cast(), chunks }
    }

    fn bytes(&self) -> usize {
        self.chunks * BLOCK_BYTES
    }

    fn granules(&self) -> usize {
        self.chunks * BLOCK_GRANULES
    }

    fn guard(self) -> Guarded {
        // SAFETY: M1: the memory is ours, and `Guarded` offers no access to it.
        unsafe { system::guard(self.base.cast(), self.bytes()) };
        Guarded { _memory: self }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: M1: the memory is ours, from `system::map` with this size, and this is its last use.
        unsafe { system::unmap(self.base.cast(), self.bytes()) };
    }
}

/// Memory from the kernel, with real guards. By the C library's functions and not by system calls: ThreadSanitizer sees those only, and would take two heaps that get the same addresses, one
/// after the other, for one.
#[cfg(all(target_os = "linux", not(miri)))]
mod system {
    use core::ffi::c_void;
    use core::ptr::{self, NonNull};
    use std::io;

    use super::BLOCK_BYTES;

    /// Maps `bytes` bytes of zeroes, a multiple of [`BLOCK_BYTES`], aligned to that.
    ///
    /// # Panics
    ///
    /// If the system refuses.
    pub(super) fn map(bytes: usize) -> NonNull<c_void> {
        // The kernel often puts a mapping right below the last one, which keeps the alignment. Ask first.
        let first = anonymous(bytes);
        if first.addr().get().is_multiple_of(BLOCK_BYTES) {
            return first;
        }
        // SAFETY: the mapping was made above and never used.
        unsafe { unmap(first, bytes) };
        // One block more than needed has an aligned part of the size we want. Trim what surrounds it.
        let wide = anonymous(bytes + BLOCK_BYTES);
        let before = wide.addr().get().next_multiple_of(BLOCK_BYTES) - wide.addr().get();
        let after = BLOCK_BYTES - before;
        // SAFETY: `before` is less than a block, so `before` and `before + bytes` are inside the wide mapping.
        let (base, end) = unsafe { (wide.byte_add(before), wide.byte_add(before + bytes)) };
        for (part, size) in [(wide, before), (end, after)] {
            if size != 0 {
                // SAFETY: both parts are whole pages of the wide mapping outside the range handed out.
                unsafe { unmap(part, size) };
            }
        }
        base
    }

    /// Maps `bytes` bytes of zeroes, aligned to a page.
    ///
    /// # Panics
    ///
    /// If the system refuses.
    fn anonymous(bytes: usize) -> NonNull<c_void> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping at an address the kernel chooses touches no memory in use.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            panic!("the test kit's heap cannot map {bytes} bytes: {}", io::Error::last_os_error());
        }
        NonNull::new(mapped).expect("the kernel maps nothing at null")
    }

    /// Takes away access and the pages, and keeps the addresses.
    ///
    /// # Safety
    ///
    /// The range is the caller's own mapping, and nothing reads or writes it from here on.
    pub(super) unsafe fn guard(base: NonNull<c_void>, bytes: usize) {
        // Both may fail for want of kernel memory (the limit on mappings). The addresses stay ours all the same, and the
        // range keeps its poison: a weaker guard, not an error.
        // SAFETY: the caller owns the range and gives up access to it.
        let _weaker = unsafe { libc::mprotect(base.as_ptr(), bytes, libc::PROT_NONE) };
        // SAFETY: the same; the contents are needed no more.
        let _larger = unsafe { libc::madvise(base.as_ptr(), bytes, libc::MADV_DONTNEED) };
    }

    /// Gives the range back to the kernel.
    ///
    /// # Safety
    ///
    /// The range is the caller's own mapping, or whole pages of it, and this is its last use.
    pub(super) unsafe fn unmap(base: NonNull<c_void>, bytes: usize) {
        // A failure (the limit on mappings, when this would split one) leaks the range, which is safe.
        // SAFETY: the caller owns the range and gives it up.
        let _leaked = unsafe { libc::munmap(base.as_ptr(), bytes) };
    }
}

/// Memory from the allocator, without guards: a block in quarantine keeps its poison.
#[cfg(not(all(target_os = "linux", not(miri))))]
mod system {
    use core::alloc::Layout;
    use core::ffi::c_void;
    use core::ptr::NonNull;
    use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error};

    use super::BLOCK_BYTES;

    /// Returns the layout of a mapping.
    ///
    /// # Panics
    ///
    /// If `bytes` is more than the address space holds.
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, BLOCK_BYTES).expect("a block smaller than the address space")
    }

    /// Allocates `bytes` bytes of zeroes, a multiple of [`BLOCK_BYTES`] and not zero, aligned to that.
    ///
    /// # Panics
    ///
    /// If `bytes` is more than the address space holds.
    pub(super) fn map(bytes: usize) -> NonNull<c_void> {
        let layout = layout(bytes);
        // SAFETY: the size is not zero: a block has one chunk at least.
        let base = unsafe { alloc_zeroed(layout) };
        NonNull::new(base.cast()).unwrap_or_else(|| handle_alloc_error(layout))
    }

    /// Does nothing: there is no guard without the kernel's help.
    ///
    /// # Safety
    ///
    /// The range is the caller's own, and nothing reads or writes it from here on.
    pub(super) unsafe fn guard(_base: NonNull<c_void>, _bytes: usize) {}

    /// Frees the range.
    ///
    /// # Safety
    ///
    /// `map` returned `base` for this size, and this is its last use.
    pub(super) unsafe fn unmap(base: NonNull<c_void>, bytes: usize) {
        // SAFETY: the caller hands back what `map` allocated with this layout.
        unsafe { dealloc(base.as_ptr().cast(), layout(bytes)) };
    }
}
