//! The tokens a foreign call gives for what it has declared: where C finds it, and how to read it afterwards.

use crate::mutator::Mutator;
use crate::record::Header;
use crate::root_stack::{RootMark, word_of};
use crate::vm::StackScanner;
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

/// A reference rooted by a foreign call until an upcall releases it, or the call ends. See
/// [`ForeignCall::root_until_released`](crate::ForeignCall::root_until_released).
pub struct ReleasableRoot<'m, R> {
    word: NonNull<R>,
    token: ReleaseToken,
    _call: PhantomData<&'m mut R>,
}

impl<R> Clone for ReleasableRoot<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for ReleasableRoot<'_, R> {}

impl<R> ReleasableRoot<'_, R> {
    pub(crate) fn new(word: NonNull<R>, token: ReleaseToken) -> Self {
        Self { word, token, _call: PhantomData }
    }

    /// The address of the word that holds the reference, for C. It is updated until the argument is released; after that it must not be used.
    #[inline]
    #[must_use]
    pub fn slot(&self) -> *mut R {
        self.word.as_ptr()
    }

    /// What an upcall needs to release the argument: a plain value, which can travel through C.
    #[inline]
    #[must_use]
    pub fn token(&self) -> ReleaseToken {
        self.token
    }
}

impl<R> fmt::Debug for ReleasableRoot<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReleasableRoot").field("word", &self.word).field("token", &self.token).finish()
    }
}

/// Names one argument of one foreign call for ever, for [`Mutator::release_argument`]. It keeps nothing alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct ReleaseToken {
    pub(crate) world: usize,
    pub(crate) mutator: u64,
    pub(crate) number: u64,
}

/// Why an argument could not be released. Nothing has been changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The argument is of a call of another mutator, or of another world's.
    #[error(
        "the argument was declared by another mutator; release it in an upcall of the call that declared it, on the same thread"
    )]
    OtherMutator,
    /// No foreign call below this activation has the argument.
    #[error(
        "no foreign call that this upcall runs in has the argument: the call is over; release an argument before its call returns"
    )]
    CallOver,
    /// It has been released.
    #[error("the argument has been released already; release it once")]
    AlreadyReleased,
}

impl<V: StackScanner> Mutator<V> {
    /// Ends, from an upcall, an argument that a foreign call below declared with
    /// [`ForeignCall::root_until_released`](crate::ForeignCall::root_until_released): C has said that it needs it no more.
    ///
    /// From here on the call does not keep the object alive, and it never will again (I3). The call's other arguments are not touched.
    ///
    /// # Errors
    ///
    /// If the argument is another mutator's, has been released, or is of a call that is over.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ffi::c_int;
    /// use reentry::testkit::TestVm;
    /// use reentry::{Mutator, UpcallClosure, World};
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let input = world.vm().heap().alloc(&[], b"read once, at the beginning");
    ///
    /// let mut call = mutator.foreign_call();
    /// let input = call.root_until_released(input)?;
    /// let token = input.token();
    /// let has_read = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, _: c_int| {
    ///     mutator.release_argument(token).expect("the call is in progress, and says so once");
    ///     TestVm::collect_in(mutator).expect("no root is stale").freed as c_int
    /// });
    /// // SAFETY: the data pointer is the closure's own, and the closure lives.
    /// let freed = call.run(|| unsafe { (has_read.data_last())(0, has_read.data()) });
    /// assert_eq!(freed, 1);
    /// assert_eq!(call.get_unless_released(input), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn release_argument(&mut self, token: ReleaseToken) -> Result<(), ReleaseError> {
        if (token.world, token.mutator) != (self.shared().pins.number(), self.id()) {
            return Err(ReleaseError::OtherMutator);
        }
        let mut call = self.frame().older;
        // SAFETY: null or a live record of this mutator; this thread is managed.
        while let Some(record) = unsafe { call.as_ref() } {
            match record.release_result(token.number) {
                Some(true) => return Ok(()),
                Some(false) => return Err(ReleaseError::AlreadyReleased),
                None => call = record.older,
            }
        }
        Err(ReleaseError::CallOver)
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
