//! [`UpcallClosure`]: a closure that C can call, through a function pointer and a user-data pointer.

use super::arrival::Aim;
use super::crossing::{Conduct, Exceptions, Once, UpcallName, cross_in};
use super::{Frontier, Signature, UpcallBody, enter_somewhere, sealed};
use crate::activation::AfterError;
use crate::mutator::Mutator;
use crate::pause::Shared;
use crate::thread::only_in;
use crate::unwind::last_resort;
use crate::vm::{ErrorPolicy, StackScanner};
use core::ffi::c_void;
use core::fmt;
use core::marker::PhantomData;
use core::panic::Location;
use core::ptr::{self, NonNull};
use std::sync::{Arc, Weak};

/// What the user-data pointer of an [`UpcallClosure`] points to.
pub(super) struct ClosureData<V: StackScanner, F, R> {
    /// Weak: a VM may keep closures of its own, and would never end.
    shared: Weak<Shared<V>>,
    /// The same, as the records of its mutators have it: `Weak::as_ptr` looks at more.
    world: *const Shared<V>,
    body: F,
    fallback: ClosureFallback<R>,
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

    fn after_error(self) -> AfterError {
        F::AFTER_ERROR
    }
}

/// What C gets in place of a result.
enum ClosureFallback<R> {
    /// The same value each time. It goes to whatever thread calls: `R: Copy + Send`.
    Value(R),
    /// Made on the thread that calls, so nothing goes from one to another.
    Made(fn() -> R),
}

impl<V: StackScanner, F, R> ClosureData<V, F, R> {
    fn fallback(&self) -> impl Fn() -> R {
        || match &self.fallback {
            // SAFETY: `R: Copy + Send`, as `UpcallClosure::with_fallback` asks.
            ClosureFallback::Value(value) => unsafe { ptr::from_ref(value).read() },
            ClosureFallback::Made(make) => last_resort(*make),
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
        match unsafe { only_in(self.world).as_ref() } {
            Some(record) => cross_in(record, Aim::World, conduct, &mut body, self.fallback()),
            None => enter_somewhere(&self.shared, conduct, &mut body, self.fallback()),
        }
    }
}

/// A closure that C can call, through a function pointer and a user-data pointer.
///
/// The closure is `Fn`, since C may call it again while it runs, and `Sync`, since C may call it from another thread; such a thread is attached to the closure's world on its
/// first upcall. Dropping the `UpcallClosure` frees the closure. It does not keep its world: a VM can keep closures of its own. When the world has ended, C gets the fallback value, and a line is
/// written to standard error. Write out the type of the closure's first parameter, as in the example: the compiler cannot infer it.
///
/// # Safety of the pointers
///
/// [`data_first`](Self::data_first), [`data_last`](Self::data_last) and their unwinding forms are `unsafe` functions. Whoever calls them, C included, promises two things:
///
/// - The user data is [`data`](Self::data) of the same closure, which has not been dropped, and is not dropped
///   before the call is over.
/// - What the closure borrows is borrowed still, until the call is over: the call lies within `'c`, the first
///   parameter of this type. The second does not follow from the first, since [`mem::forget`](core::mem::forget) ends the
///   borrow of a closure that borrows, and drops nothing. A closure that C keeps for longer owns what it uses.
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

// SAFETY: it owns the closure (`Sync`, and `Send` is asked for here), a fallback and a count of a shared world.
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
        Self::make(world, closure, ClosureFallback::Made(R::default))
    }

    /// Makes a closure callable from C; if it panics, C gets `fallback`, on whatever thread it calls.
    ///
    /// A fallback that may not go to another thread, a pointer for example, is made where it is needed:
    /// see [`with_fallback_fn`](Self::with_fallback_fn).
    ///
    /// ```compile_fail,E0277
    /// use core::cell::Cell;
    /// use reentry::testkit::TestVm;
    /// use reentry::{Mutator, UpcallClosure, World};
    ///
    /// let world = World::new(TestVm::new());
    /// let cell: &'static Cell<u64> = Box::leak(Box::new(Cell::new(0)));
    /// // The thread that calls would get a `&Cell` of this one.
    /// let closure = UpcallClosure::with_fallback(&world, |_: &mut Mutator<TestVm>| -> &'static Cell<u64> { panic!() }, cell);
    /// ```
    #[must_use]
    #[track_caller]
    pub fn with_fallback(world: &crate::World<V>, closure: F, fallback: R) -> Self
    where
        R: Send,
    {
        Self::make(world, closure, ClosureFallback::Value(fallback))
    }

    /// Makes a closure callable from C; if it panics, C gets what `fallback` returns, on the thread it calls on.
    ///
    /// A fallback that panics ends the process.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ffi::c_void;
    /// use reentry::testkit::TestVm;
    /// use reentry::{Mutator, UpcallClosure, World};
    ///
    /// let world = World::new(TestVm::new());
    /// let closure = UpcallClosure::with_fallback_fn(
    ///     &world,
    ///     |_: &mut Mutator<TestVm>| -> *mut c_void { panic!("no memory") },
    ///     core::ptr::null_mut,
    /// );
    /// let (function, data) = (closure.data_last(), closure.data());
    /// let mut mutator = world.attach()?;
    /// let seen = core::cell::Cell::new(data);
    /// // SAFETY: the data pointer is the closure's own, and the closure lives.
    /// let call = || seen.set(unsafe { function(data) });
    /// std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| mutator.foreign_call().run(call))).unwrap_err();
    /// assert!(seen.get().is_null());
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[must_use]
    #[track_caller]
    pub fn with_fallback_fn(world: &crate::World<V>, closure: F, fallback: fn() -> R) -> Self {
        Self::make(world, closure, ClosureFallback::Made(fallback))
    }

    #[track_caller]
    fn make(world: &crate::World<V>, closure: F, fallback: ClosureFallback<R>) -> Self {
        let shared = Arc::downgrade(world.shared());
        let (world, made_at) = (shared.as_ptr(), Location::caller());
        let data = Box::new(ClosureData { shared, world, body: closure, fallback, made_at });
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
