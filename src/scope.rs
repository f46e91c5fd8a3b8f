//! Scoped handles: references that managed code holds across safepoints, for as long as a closure runs.
//!
//! Any safepoint may move objects, so a reference in a Rust local is stale after a poll. A [`Local`] is a name for a word on the mutator's root stack, which the
//! collector updates; it is read through the mutator when the reference is needed. The scope is a closure, so its words cannot be leaked, and a `Local`
//! carries a lifetime of that one scope, so it cannot leave it.
//!
//! The words stand in groups among those of foreign calls. Unlike a call's, which nobody can see before it runs, a scope's group is closed after each word: the next
//! safepoint may come at any time.

use crate::mutator::{Mutator, MutatorParts};
use crate::record::Header;
use crate::root_stack::{EntryKind, OpenGroup, RootMark, word_of};
use crate::vm::{ArgumentError, ArgumentPlan, StackScanner};
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::panic::Location;
use core::ptr::NonNull;

/// Makes a lifetime invariant: neither shorter nor longer will do.
type Brand<'s> = PhantomData<fn(&'s ()) -> &'s ()>;

/// A scope of local references, and the mutator while it lasts. Made by [`Mutator::scope`].
///
/// It dereferences to the [`Mutator`]: polls, pauses, foreign calls and inner scopes go through it, and the scope's references are reported in all of them.
pub struct Scope<'s, V: StackScanner> {
    parts: MutatorParts<V>,
    /// The scope's newest group, closed but for the next word.
    group: OpenGroup,
    /// Where the scope left the root stack. If the top is elsewhere, a foreign call was leaked above, and the next word begins a group of its own.
    top: RootMark,
    _brand: Brand<'s>,
}

/// A reference held by a [`Scope`]: the object lives, and the word follows it, until the scope ends.
///
/// Read with [`Mutator::get`], changed with [`Mutator::set`].
pub struct Local<'s, R> {
    word: NonNull<R>,
    owner: NonNull<Header>,
    _brand: Brand<'s>,
}

impl<R> Clone for Local<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Local<'_, R> {}

impl<R> fmt::Debug for Local<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("word", &self.word).finish_non_exhaustive()
    }
}

impl<V: StackScanner> Mutator<V> {
    /// Runs `f` with a scope for local references; they end when it returns or panics.
    ///
    /// An upcall that makes a scope has one of its own: it ends with the upcall at the latest, also when foreign code goes past it with `longjmp`.
    ///
    /// # Panics
    ///
    /// With what `f` panics with.
    ///
    /// # Examples
    ///
    /// ```
    /// use reentry::World;
    /// use reentry::testkit::TestVm;
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// mutator.scope(|scope| {
    ///     let object = scope.vm().heap().alloc(&[], b"local");
    ///     let local = scope.root(object);
    ///     TestVm::collect_in(scope).expect("no root is stale"); // moves every object
    ///     let moved = scope.get(local);
    ///     assert_ne!(moved, object);
    ///     assert_eq!(scope.vm().heap().bytes(moved).as_deref(), Ok(&b"local"[..]));
    /// });
    /// let summary = TestVm::collect_in(&mut mutator).expect("no root is stale");
    /// assert_eq!(summary.freed, 1);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    pub fn scope<R>(&mut self, f: impl for<'s> FnOnce(&mut Scope<'s, V>) -> R) -> R {
        let header = self.header();
        let mark = header.roots.mark();
        // What the scope and everything in it declared lies above, leaked calls included. Not leakable: it is this function's.
        let _end = scopeguard::guard((), |()| header.roots.release_to(mark));
        // SAFETY: this mutator is borrowed for as long as the scope, and managed whenever the scope can be used.
        let parts = unsafe { MutatorParts::new(self.record(), self.frame()) };
        f(&mut Scope { parts, group: OpenGroup::at(mark), top: mark, _brand: PhantomData })
    }

    /// Reads a local reference: where its object is now.
    ///
    /// # Panics
    ///
    /// If it is another mutator's.
    #[inline]
    #[must_use]
    #[track_caller]
    pub fn get(&self, local: Local<'_, V::Ref>) -> V::Ref {
        self.check_local(local);
        // SAFETY: a word of this mutator's root stack that holds a reference; its scope is not over, since the brand is in use. This thread is managed.
        unsafe { local.word.as_ptr().read() }
    }

    /// Makes a local refer to another object.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference. The local is what it was then.
    ///
    /// # Panics
    ///
    /// If it is another mutator's.
    #[inline]
    #[track_caller]
    pub fn set(&mut self, local: Local<'_, V::Ref>, reference: V::Ref) -> Result<(), ArgumentError> {
        self.check_local(local);
        self.vm().admit(reference, ArgumentPlan::Root)?;
        // SAFETY: as in `get`; nobody else writes it while this thread is managed.
        unsafe { local.word.as_ptr().write(reference) };
        Ok(())
    }

    /// Refuses a local of another mutator.
    ///
    /// # Panics
    ///
    /// Then.
    #[inline]
    #[track_caller]
    fn check_local(&self, local: Local<'_, V::Ref>) {
        if !core::ptr::eq(local.owner.as_ptr(), self.header()) {
            refuse_local(Location::caller());
        }
    }
}

impl<'s, V: StackScanner> Scope<'s, V> {
    /// Holds `reference` in this scope.
    ///
    /// # Panics
    ///
    /// If the VM refuses the reference, for example because it is another world's. [`try_root`](Self::try_root) gives an error instead.
    #[inline]
    #[track_caller]
    pub fn root(&mut self, reference: V::Ref) -> Local<'s, V::Ref> {
        match self.try_root(reference) {
            Ok(local) => local,
            Err(error) => refuse_reference(error, Location::caller()),
        }
    }

    /// [`root`](Self::root) with an error in place of the panic.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference.
    #[inline]
    pub fn try_root(&mut self, reference: V::Ref) -> Result<Local<'s, V::Ref>, ArgumentError> {
        self.vm().admit(reference, ArgumentPlan::Root)?;
        let mut group = self.group;
        let header = self.header();
        let roots = &header.roots;
        if roots.mark() != self.top {
            group = OpenGroup::at(roots.mark());
        }
        // Over the group's trailer, if it has one; nobody looks before it is closed again below.
        let word = word_of::<V::Ref>(roots.push(&mut group, EntryKind::Root, reference));
        roots.seal(group);
        // SAFETY: an address in a chunk.
        let word = unsafe { NonNull::new_unchecked(word) };
        let local = Local { word, owner: NonNull::from(header), _brand: PhantomData };
        let top = roots.mark();
        (self.group, self.top) = (group, top);
        Ok(local)
    }
}

impl<V: StackScanner> Deref for Scope<'_, V> {
    type Target = Mutator<V>;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        self.parts.lend()
    }
}

impl<V: StackScanner> DerefMut for Scope<'_, V> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.parts.lend_mut()
    }
}

impl<V: StackScanner> fmt::Debug for Scope<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scope").field(&self.parts.lend()).finish()
    }
}

/// Ends the use of a local that is not this mutator's.
///
/// # Panics
///
/// Always.
#[cold]
#[inline(never)]
fn refuse_local(site: &Location<'_>) -> ! {
    panic!("reentry: the local used at {site} belongs to another mutator; use it through the scope it is of")
}

/// Ends the making of a local that the VM refuses.
///
/// # Panics
///
/// Always.
#[cold]
#[inline(never)]
fn refuse_reference(error: ArgumentError, site: &Location<'_>) -> ! {
    panic!("reentry: the local made at {site} is refused: {error}")
}
