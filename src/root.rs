//! The tokens a foreign call gives for what it has declared: where C finds it, and how to read it afterwards.

use crate::record::Header;
use crate::root_stack::{RootMark, word_of};
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

/// A reference rooted by a foreign call. The object may move; the slot is updated.
///
/// Copy it into the closure of [`ForeignCall::run`](crate::ForeignCall::run); read the reference after the call with
/// [`ForeignCall::get`](crate::ForeignCall::get). As long as the token is used, the mutator stays borrowed.
pub struct Root<'m, R> {
    word: NonNull<usize>,
    owner: NonNull<Header>,
    in_place: bool,
    _call: PhantomData<&'m mut R>,
}

impl<R> Clone for Root<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Root<'_, R> {}

impl<R> Root<'_, R> {
    #[inline(always)]
    pub(crate) fn new(word: RootMark, owner: &Header, in_place: bool) -> Self {
        // SAFETY: a mark is an address in a chunk.
        let word = unsafe { NonNull::new_unchecked(word) };
        Self { word, owner: NonNull::from(owner), in_place, _call: PhantomData }
    }

    /// The address of the word that holds the reference: what C is given where it reads the object through a slot.
    ///
    /// For [`ForeignCall::root`](crate::ForeignCall::root) it is the guard's own word: its address does not change during the call. For
    /// [`ForeignCall::root_in_place`](crate::ForeignCall::root_in_place) it is the VM's stack slot *now*: it changes when the stack moves, so C must not be
    /// given it where an upcall could move the stack.
    #[inline]
    #[must_use]
    pub fn slot(&self) -> *mut R {
        let word = self.word.as_ptr();
        if self.in_place {
            // SAFETY: an in-place entry's word is the address of the slot. The mutator is borrowed for as long as the token lives, so the word
            // has not been given to another call.
            unsafe { word_of::<*mut R>(word).read() }
        } else {
            word_of::<R>(word)
        }
    }

    pub(crate) fn is_of(&self, header: &Header) -> bool {
        core::ptr::eq(self.owner.as_ptr(), header)
    }
}

impl<R> fmt::Debug for Root<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root").field("word", &self.word).field("in_place", &self.in_place).finish()
    }
}

/// A reference pinned by a foreign call: its object does not move, so the reference stays what it is.
pub struct Pinned<'m, R> {
    reference: R,
    _call: PhantomData<&'m mut R>,
}

impl<R: Copy> Clone for Pinned<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: Copy> Copy for Pinned<'_, R> {}

impl<R: Copy> Pinned<'_, R> {
    #[inline(always)]
    pub(crate) fn new(reference: R) -> Self {
        Self { reference, _call: PhantomData }
    }

    /// The reference.
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> R {
        self.reference
    }
}

impl<R: fmt::Debug> fmt::Debug for Pinned<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pinned").field(&self.reference).finish()
    }
}

/// Memory of a foreign call that C may read and write: it does not move, and ends with the call (I8).
pub struct Argument<'m, T: ?Sized> {
    memory: NonNull<T>,
    owner: NonNull<Header>,
    _call: PhantomData<&'m mut T>,
}

impl<T: ?Sized> Clone for Argument<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Argument<'_, T> {}

impl<T: ?Sized> Argument<'_, T> {
    pub(crate) fn new(memory: NonNull<T>, owner: &Header) -> Self {
        Self { memory, owner: NonNull::from(owner), _call: PhantomData }
    }

    pub(crate) fn is_of(&self, header: &Header) -> bool {
        core::ptr::eq(self.owner.as_ptr(), header)
    }

    /// The address to give to C.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut T {
        self.memory.as_ptr()
    }
}

impl<T: ?Sized> fmt::Debug for Argument<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Argument").field(&self.memory).finish()
    }
}
