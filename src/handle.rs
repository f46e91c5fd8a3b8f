//! Global handles: references that outlive calls, frames and threads.
//!
//! A [`Handle`] keeps an object alive and follows it when it moves. It is made and read by managed threads, and released by any thread in any state: dropping it is one store
//! and one compare-exchange, takes no lock and waits for no pause. Foreign code holds one as a [`RawHandle`], a word that is checked whenever it comes back. A
//! [`WeakHandle`] follows its object without keeping it alive. `handle_table.rs` is where they are stored.

use crate::handle_table::{HandleError, HandleSlot};
use crate::mutator::Mutator;
use crate::vm::{ArgumentError, ArgumentPlan, StackScanner};
use crate::world::World;
use core::ffi::c_void;
use core::fmt;
use core::marker::PhantomData;
use core::num::NonZeroUsize;
use core::panic::Location;
use core::ptr::{self, NonNull};

/// A reference that is nobody's frame's: it keeps its object alive, and follows it, until it is dropped.
///
/// Made by [`Mutator::handle`] and read by [`Mutator::load`], both of which need a managed thread. Between them it may go to any thread; dropping it is right on
/// each, attached or not, managed or foreign, during a pause (the object can then die in the next one), and after the world's end. Leaking it keeps the object alive (I9).
///
/// # Examples
///
/// ```
/// use reentry::World;
/// use reentry::testkit::TestVm;
///
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// let object = world.vm().heap().alloc(&[], b"kept");
/// let handle = mutator.handle(object);
/// TestVm::collect_in(&mut mutator).expect("no root is stale");
/// let moved = mutator.load(&handle);
/// assert_ne!(moved, object);
/// assert_eq!(world.vm().heap().bytes(moved).as_deref(), Ok(&b"kept"[..]));
/// // Any thread can let go of it.
/// std::thread::spawn(move || drop(handle)).join().unwrap();
/// let summary = TestVm::collect_in(&mut mutator).expect("no root is stale");
/// assert_eq!(summary.freed, 1);
/// # Ok::<(), reentry::AttachError>(())
/// ```
#[must_use = "dropping a `Handle` lets go of its object at once"]
pub struct Handle<R> {
    slot: NonNull<HandleSlot>,
    _reference: PhantomData<R>,
}

// SAFETY: the reference in it is copied out on any managed thread, which `R: Send` allows; the slot is made for all threads (H1, H2).
unsafe impl<R: Send> Send for Handle<R> {}
// SAFETY: as above: what a shared handle gives is copies.
unsafe impl<R: Send> Sync for Handle<R> {}

impl<R> Handle<R> {
    fn slot(&self) -> &HandleSlot {
        // SAFETY: H4: a handle keeps its table.
        unsafe { self.slot.as_ref() }
    }

    /// Where the handle was made, as [`World::leaks`] names it.
    #[must_use]
    pub fn site(&self) -> &'static Location<'static> {
        self.slot().site()
    }

    /// Gives the handle out as a word, for foreign code to keep.
    ///
    /// The object stays alive until the word is [released](World::release), or [taken back](World::handle_from_raw) and the handle dropped; the word is checked each time. Do
    /// neither and it stays for the life of the world, and is in the [leak report](World::leaks). A handle that is given out again after it was taken back has
    /// the same word. (Given out after its world's end, the word is good for nothing.)
    #[must_use = "the handle is released by whoever has its word"]
    pub fn into_raw(self) -> RawHandle {
        let this = core::mem::ManuallyDrop::new(self);
        // SAFETY: the handle's own slot, and the handle ends here.
        let word = unsafe { HandleSlot::expose(this.slot) };
        // SAFETY: a table's tag is never zero, and is part of the word.
        RawHandle(unsafe { NonZeroUsize::new_unchecked(word) })
    }
}

impl<R> Drop for Handle<R> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the handle's own slot, which nobody uses any more.
        unsafe { HandleSlot::release(self.slot) };
    }
}

impl<R> fmt::Debug for Handle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("site", &format_args!("{}", self.site())).finish_non_exhaustive()
    }
}

/// A reference that follows its object and does not keep it alive.
///
/// Made by [`Mutator::weak_handle`] and read by [`Mutator::load_weak`], which says when the object has died. (With a collector that knows nothing of weak handles
/// it keeps the object alive like a [`Handle`]; see [`RootVisitor::weak`](crate::RootVisitor::weak).) May go to any thread and be dropped on any, like a `Handle`.
///
/// # Examples
///
/// ```
/// use reentry::World;
/// use reentry::testkit::TestVm;
///
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// let object = world.vm().heap().alloc(&[], b"cached");
/// let strong = mutator.handle(object);
/// let weak = mutator.weak_handle(object);
/// TestVm::collect_in(&mut mutator).expect("no root is stale");
/// assert_eq!(mutator.load_weak(&weak), Some(mutator.load(&strong)));
/// drop(strong);
/// TestVm::collect_in(&mut mutator).expect("no root is stale");
/// assert_eq!(mutator.load_weak(&weak), None);
/// # Ok::<(), reentry::AttachError>(())
/// ```
#[must_use = "a `WeakHandle` that is dropped at once says nothing"]
pub struct WeakHandle<R> {
    slot: NonNull<HandleSlot>,
    _reference: PhantomData<R>,
}

// SAFETY: as for `Handle`.
unsafe impl<R: Send> Send for WeakHandle<R> {}
// SAFETY: as for `Handle`.
unsafe impl<R: Send> Sync for WeakHandle<R> {}

impl<R> WeakHandle<R> {
    fn slot(&self) -> &HandleSlot {
        // SAFETY: H4: a handle keeps its table.
        unsafe { self.slot.as_ref() }
    }

    /// Where the handle was made, as [`World::leaks`] names it.
    #[must_use]
    pub fn site(&self) -> &'static Location<'static> {
        self.slot().site()
    }
}

impl<R> Drop for WeakHandle<R> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the handle's own slot, which nobody uses any more.
        unsafe { HandleSlot::release(self.slot) };
    }
}

impl<R> fmt::Debug for WeakHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakHandle").field("site", &format_args!("{}", self.site())).finish_non_exhaustive()
    }
}

/// A [`Handle`] as foreign code holds it: a word that is never zero, and fits a `void*`.
///
/// A plain value: copying it copies no handle. Any word can be made one; using it is an error unless it was given out by [`Handle::into_raw`] and has not been
/// released since. A word names one handle for ever, in its world. It also says which world it is of, as well as eight bits can
/// (four where a word has 32): a program with more worlds than that should keep their words apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct RawHandle(NonZeroUsize);

impl RawHandle {
    /// Takes a word that came from foreign code.
    ///
    /// # Errors
    ///
    /// [`HandleError::Zero`].
    pub const fn new(word: usize) -> Result<Self, HandleError> {
        match NonZeroUsize::new(word) {
            Some(word) => Ok(Self(word)),
            None => Err(HandleError::Zero),
        }
    }

    /// Takes a pointer that came from foreign code. It is not followed, whatever it is.
    ///
    /// # Errors
    ///
    /// [`HandleError::Zero`].
    pub fn from_ptr(pointer: *const c_void) -> Result<Self, HandleError> {
        Self::new(pointer.addr())
    }

    /// The word.
    #[must_use]
    pub const fn get(self) -> NonZeroUsize {
        self.0
    }

    /// The word as a pointer, for foreign code that wants one. It points to nothing.
    #[must_use]
    pub const fn as_ptr(self) -> *mut c_void {
        ptr::without_provenance_mut(self.0.get())
    }
}

impl From<NonZeroUsize> for RawHandle {
    fn from(word: NonZeroUsize) -> Self {
        Self(word)
    }
}

impl From<RawHandle> for NonZeroUsize {
    fn from(raw: RawHandle) -> Self {
        raw.0
    }
}

impl<V: StackScanner> Mutator<V> {
    /// Makes a handle of `reference`: the object lives, wherever it moves, until the [`Handle`] is dropped.
    ///
    /// # Panics
    ///
    /// If the VM refuses the reference, for example because it is another world's ([`try_handle`](Self::try_handle) gives an error instead); or if there are as many
    /// handles as words can name (2^32, or 2^20 where a word has 32 bits).
    #[inline]
    #[track_caller]
    pub fn handle(&mut self, reference: V::Ref) -> Handle<V::Ref> {
        match self.try_handle(reference) {
            Ok(handle) => handle,
            Err(error) => refuse_reference(error, Location::caller()),
        }
    }

    /// [`handle`](Self::handle) with an error in place of the panic.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference.
    ///
    /// # Panics
    ///
    /// If there are as many handles as words can name.
    #[inline]
    #[track_caller]
    pub fn try_handle(&mut self, reference: V::Ref) -> Result<Handle<V::Ref>, ArgumentError> {
        let slot = self.new_slot(reference, false, Location::caller())?;
        Ok(Handle { slot, _reference: PhantomData })
    }

    /// Makes a weak handle of `reference`: it follows the object and does not keep it alive.
    ///
    /// # Panics
    ///
    /// As [`handle`](Self::handle).
    #[inline]
    #[track_caller]
    pub fn weak_handle(&mut self, reference: V::Ref) -> WeakHandle<V::Ref> {
        match self.new_slot(reference, true, Location::caller()) {
            Ok(slot) => WeakHandle { slot, _reference: PhantomData },
            Err(error) => refuse_reference(error, Location::caller()),
        }
    }

    /// Takes a slot and fills it.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference.
    ///
    /// # Panics
    ///
    /// If there are as many handles as words can name.
    #[inline]
    fn new_slot(
        &mut self,
        reference: V::Ref,
        weak: bool,
        site: &'static Location<'static>,
    ) -> Result<NonNull<HandleSlot>, ArgumentError> {
        self.vm().admit(reference, ArgumentPlan::Root)?;
        let header = self.header();
        let Some(slot) = self.shared().handles.take(&header.free_handles, header.id.get()) else {
            refuse_more(site);
        };
        // SAFETY: taken just now, on this managed thread.
        unsafe { slot.as_ref().own(reference, weak, site) };
        Ok(slot)
    }

    /// Reads a handle: where its object is now.
    ///
    /// # Panics
    ///
    /// If the handle is another world's.
    #[inline]
    #[must_use]
    #[track_caller]
    pub fn load(&self, handle: &Handle<V::Ref>) -> V::Ref {
        let slot = handle.slot();
        self.check(slot);
        // SAFETY: H2: managed, and the handle is in use; it is of this world, whose references are `V::Ref`s.
        unsafe { slot.read() }
    }

    /// Makes a handle refer to another object. It takes the handle to itself, so that no other thread is reading it.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference. The handle is what it was then.
    ///
    /// # Panics
    ///
    /// If the handle is another world's.
    #[track_caller]
    pub fn store(&mut self, handle: &mut Handle<V::Ref>, reference: V::Ref) -> Result<(), ArgumentError> {
        let slot = handle.slot();
        self.check(slot);
        self.vm().admit(reference, ArgumentPlan::Root)?;
        // SAFETY: the handle is this function's alone, and this thread is managed.
        unsafe { slot.replace(reference) };
        Ok(())
    }

    /// Reads a weak handle: where its object is now, or `None` if it has died.
    ///
    /// # Panics
    ///
    /// If the handle is another world's.
    #[inline]
    #[must_use]
    #[track_caller]
    pub fn load_weak(&self, handle: &WeakHandle<V::Ref>) -> Option<V::Ref> {
        let slot = handle.slot();
        self.check(slot);
        // SAFETY: H2: managed, and the handle is in use, of this world, and not cleared: only a stopper clears it.
        (!slot.is_cleared()).then(|| unsafe { slot.read() })
    }

    /// Reads a handle that foreign code has given back as a word: where its object is now. The word stays good.
    ///
    /// Any word is safe to look up. Another thread may release the handle at the same time; then this gives the object or the error.
    ///
    /// # Errors
    ///
    /// If the word is not that of a handle that is given out.
    ///
    /// # Examples
    ///
    /// ```
    /// use reentry::testkit::TestVm;
    /// use reentry::{HandleError, RawHandle, World};
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let object = world.vm().heap().alloc(&[], b"user data");
    /// let user_data = mutator.handle(object).into_raw().as_ptr();
    /// // ... C keeps `user_data` and passes it back ...
    /// let raw = RawHandle::from_ptr(user_data)?;
    /// assert_eq!(mutator.lookup(raw), Ok(object));
    /// world.release(raw)?;
    /// assert_eq!(mutator.lookup(raw), Err(HandleError::Stale { word: raw.get().get() }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn lookup(&self, raw: RawHandle) -> Result<V::Ref, HandleError> {
        self.shared().handles.lookup(raw.get().get(), V::FAULTS)
    }

    /// Refuses a handle of another world.
    ///
    /// # Panics
    ///
    /// Then.
    #[inline]
    #[track_caller]
    fn check(&self, slot: &HandleSlot) {
        if !self.shared().handles.owns(slot) {
            refuse_handle(slot.site(), Location::caller());
        }
    }
}

impl<V: StackScanner> World<V> {
    /// Takes a handle back from its word: from now on the word is not good, and the [`Handle`] releases the object.
    ///
    /// From any thread in any state; never waits.
    ///
    /// # Errors
    ///
    /// If the word is not that of a handle that is given out; so it is when it has been taken back already.
    pub fn handle_from_raw(&self, raw: RawHandle) -> Result<Handle<V::Ref>, HandleError> {
        let slot = self.shared().handles.take_back(raw.get().get())?;
        Ok(Handle { slot, _reference: PhantomData })
    }

    /// Releases a handle by its word: what foreign code calls when it is done with it.
    ///
    /// From any thread, attached or not, in any state; takes no lock and never waits, not for a pause either. During a pause the object stays until the next one.
    ///
    /// # Errors
    ///
    /// If the word is not that of a handle that is given out; so it is when it has been released already.
    pub fn release(&self, raw: RawHandle) -> Result<(), HandleError> {
        self.shared().handles.release_raw(raw.get().get())
    }
}

/// Ends the use of a handle that is not this world's.
///
/// # Panics
///
/// Always.
#[cold]
#[inline(never)]
fn refuse_handle(made: &Location<'_>, site: &Location<'_>) -> ! {
    panic!(
        "reentry: the handle used at {site}, made at {made}, is of another world; use it with a mutator of its own"
    )
}

/// Ends the making of a handle that the VM refuses.
///
/// # Panics
///
/// Always.
#[cold]
#[inline(never)]
fn refuse_reference(error: ArgumentError, site: &Location<'_>) -> ! {
    panic!("reentry: the handle made at {site} is refused: {error}")
}

/// Ends the making of one handle more than there are words for.
///
/// # Panics
///
/// Always.
#[cold]
#[inline(never)]
fn refuse_more(site: &Location<'_>) -> ! {
    panic!("reentry: the handle made at {site} is one too many: every word is taken; see `World::leaks`")
}
