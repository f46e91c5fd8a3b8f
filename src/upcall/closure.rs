//! [`UpcallClosure`]: a closure behind a function pointer and a user-data pointer.

use super::arrival::Arrival;
use super::crossing::{Conduct, Exceptions, Once, UpcallName, cross_in, cross_in_by};
use super::{Frontier, Signature, UpcallBody, sealed};
use crate::arch;
use crate::mutator::Mutator;
use crate::pause::Shared;
use crate::vm::{ErrorPolicy, StackScanner};
use core::ffi::c_void;
use core::fmt;
use core::marker::PhantomData;
use core::panic::Location;
use core::ptr::{self, NonNull};
use std::sync::Arc;

/// What the user-data pointer of an [`UpcallClosure`] points to.
pub(super) struct ClosureData<V: StackScanner, F, R> {
    shared: Arc<Shared<V>>,
    body: F,
    fallback: R,
    made_at: &'static Location<'static>,
}

/// The conduct of a closure's body at a frontier. The closure is looked at when there is something to report.
struct ConductIn<'a, V: StackScanner, F, Arguments, R, E>(
    &'a ClosureData<V, F, R>,
    PhantomData<Signature<V, F, Arguments, R, E>>,
);

impl<V: StackScanner, F, Arguments, R, E> Clone for ConductIn<'_, V, F, Arguments, R, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V: StackScanner, F, Arguments, R, E> Copy for ConductIn<'_, V, F, Arguments, R, E> {}

impl<V, F, Arguments, R, E> Conduct for ConductIn<'_, V, F, Arguments, R, E>
where
    V: StackScanner,
    F: sealed::Body<V, Arguments, R>,
    E: Frontier,
{
    const POLICY: Option<ErrorPolicy> = F::POLICY;
    const EXCEPTIONS: Exceptions = E::EXCEPTIONS;

    fn name(&self) -> UpcallName<'_> {
        UpcallName { function: F::name(), made_at: Some(self.0.made_at) }
    }
}

impl<V: StackScanner, F, R> ClosureData<V, F, R> {
    fn fallback(&self) -> impl Fn() -> R {
        || {
            // SAFETY: `R: Copy`, as `UpcallClosure::with_fallback` asks.
            unsafe { ptr::from_ref(&self.fallback).read() }
        }
    }

    #[inline(always)]
    pub(super) fn enter<Arguments, E: Frontier>(&self, arguments: Arguments) -> R
    where
        F: sealed::Body<V, Arguments, R>,
    {
        let mut body = Once::new(move |mutator: &mut Mutator<V>| {
            self.body.call(mutator, arguments, F::POLICY, self.fallback())
        });
        let conduct = ConductIn::<V, F, Arguments, R, E>(self, PhantomData);
        // SAFETY: null, or this thread's attached record of this world.
        match unsafe { self.shared.only().as_ref() } {
            Some(record) => cross_in(record, conduct, &mut body, self.fallback()),
            None => cross_in_by(
                Arrival::In(&self.shared),
                arch::entry_stack_pointer(),
                conduct,
                &mut body,
                self.fallback(),
            ),
        }
    }
}

/// A closure that C can call, through a function pointer and a user-data pointer.
///
/// The closure is `Fn`, since C may call it again while it runs, and `Sync`, since C may call it from another thread; such a thread is attached to the closure's world on its
/// first upcall. Dropping the `UpcallClosure` frees the closure. Write out the type of the closure's first parameter, as in the example: the compiler cannot infer it.
///
/// # Safety of the pointers
///
/// [`data_first`](Self::data_first), [`data_last`](Self::data_last) and their unwinding forms are `unsafe` functions: whoever calls them, C included, passes [`data`](Self::data) of the same closure, which must
/// not have been dropped and must not be dropped before the call is over.
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
/// let base = 40;
/// let add = UpcallClosure::new(&world, |_: &mut Mutator<TestVm>, x: c_int| base + x);
/// let (function, data) = (add.data_last(), add.data());
/// // SAFETY: the data pointer is the closure's own, and the closure lives.
/// let sum = mutator.foreign_call().run(|| unsafe { function(2, data) });
/// assert_eq!(sum, 42);
/// # Ok::<(), reentry::AttachError>(())
/// ```
pub struct UpcallClosure<'c, V: StackScanner, Arguments, R, F> {
    data: NonNull<ClosureData<V, F, R>>,
    _closure: PhantomData<&'c F>,
    _signature: PhantomData<fn(Arguments) -> R>,
}

// SAFETY: it owns the closure (`Sync`, and `Send` is asked for here), a fallback and a shared world.
unsafe impl<V: StackScanner, Arguments, R: Send, F: Send> Send for UpcallClosure<'_, V, Arguments, R, F> {}
// SAFETY: shared access gives pointers only; what C does with them is the unsafe caller's promise.
unsafe impl<V: StackScanner, Arguments, R: Sync, F: Sync> Sync for UpcallClosure<'_, V, Arguments, R, F> {}

impl<'c, V, Arguments, R, F> UpcallClosure<'c, V, Arguments, R, F>
where
    V: StackScanner,
    R: Copy,
    F: UpcallBody<V, Arguments, R> + Sync + 'c,
{
    /// Makes a closure callable from C; if it panics, C gets `R::default()`.
    #[must_use]
    #[track_caller]
    pub fn new(world: &crate::World<V>, closure: F) -> Self
    where
        R: Default,
    {
        Self::with_fallback(world, closure, R::default())
    }

    /// Makes a closure callable from C; if it panics, C gets `fallback`.
    #[must_use]
    #[track_caller]
    pub fn with_fallback(world: &crate::World<V>, closure: F, fallback: R) -> Self {
        let (shared, made_at) = (Arc::clone(world.shared()), Location::caller());
        let data = Box::new(ClosureData { shared, body: closure, fallback, made_at });
        Self { data: NonNull::from(Box::leak(data)), _closure: PhantomData, _signature: PhantomData }
    }

    /// The function for C interfaces that pass user data before the arguments.
    #[must_use]
    pub fn data_first(&self) -> F::DataFirst {
        // SAFETY: this is a closure of the type.
        unsafe { F::data_first() }
    }

    /// The function for C interfaces that pass user data after the arguments.
    #[must_use]
    pub fn data_last(&self) -> F::DataLast {
        // SAFETY: this is a closure of the type.
        unsafe { F::data_last() }
    }

    /// [`data_first`](Self::data_first), through which exceptions of foreign code pass: for C++ that calls back and throws. See [`upcall_fn_unwind`](crate::upcall_fn_unwind()) for what passes and
    /// what does not.
    #[must_use]
    pub fn data_first_unwind(&self) -> F::UnwindDataFirst {
        // SAFETY: this is a closure of the type.
        unsafe { F::unwind_data_first() }
    }

    /// [`data_last`](Self::data_last), through which exceptions of foreign code pass: for C++ that calls back and throws. See [`upcall_fn_unwind`](crate::upcall_fn_unwind()) for what passes and
    /// what does not.
    ///
    /// # Aborts
    ///
    /// If the closure panics: what goes the way of an exception must be one.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ffi::{c_int, c_void};
    /// use reentry::testkit::TestVm;
    /// use reentry::{Mutator, UpcallClosure, World};
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let base = 40;
    /// let add = UpcallClosure::new(&world, |_: &mut Mutator<TestVm>, x: c_int| base + x);
    /// let function: unsafe extern "C-unwind" fn(c_int, *mut c_void) -> c_int = add.data_last_unwind();
    /// // SAFETY: the data pointer is the closure's own, and the closure lives.
    /// let sum = mutator.foreign_call().run(|| unsafe { function(2, add.data()) });
    /// assert_eq!(sum, 42);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[must_use]
    pub fn data_last_unwind(&self) -> F::UnwindDataLast {
        // SAFETY: this is a closure of the type.
        unsafe { F::unwind_data_last() }
    }
}

impl<V: StackScanner, Arguments, R, F> UpcallClosure<'_, V, Arguments, R, F> {
    /// The user-data pointer to give to C with the function.
    #[must_use]
    pub fn data(&self) -> *mut c_void {
        self.data.as_ptr().cast()
    }
}

impl<V: StackScanner, Arguments, R, F> Drop for UpcallClosure<'_, V, Arguments, R, F> {
    fn drop(&mut self) {
        // SAFETY: made by `Box::leak`, and freed once; C does not call it any more (see "Safety of the pointers").
        drop(unsafe { Box::from_raw(self.data.as_ptr()) });
    }
}

impl<V: StackScanner, Arguments, R, F> fmt::Debug for UpcallClosure<'_, V, Arguments, R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpcallClosure").field("data", &self.data).finish_non_exhaustive()
    }
}
