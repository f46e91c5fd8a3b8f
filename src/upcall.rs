//! Upcalls: foreign code calls into the VM, on the mutator's thread or on one the VM has never seen.
//!
//! | step | what happens | state |
//! |---|---|---|
//! | C calls | the thread's mutator is looked up; the published record is set aside | foreign |
//! | in | managed, fence, poll; wait if a pause is in force | managed |
//! | body | runs with a [`Mutator`] of its own; a panic stops here (I7) | managed |
//! | out | the upcall's own roots are released; the record set aside is published again: the last store (I2) | foreign |
//!
//! An upcall comes in two strengths. [`upcall_fn`] makes a plain C function pointer of a function item, with no data of its own. [`UpcallClosure`] makes a function
//! and a user-data pointer of a closure, for C interfaces that pass such a pointer on.

use crate::activation::ForeignFrame;
use crate::arch;
use crate::chain;
use crate::checked::CHECKED;
use crate::faults::Faults;
use crate::home::home;
use crate::mutator::{Mutator, MutatorParts};
use crate::pause::Shared;
use crate::record::Ownership;
use crate::registry::AttachError;
use crate::state::{Event, State};
use crate::thread::{Innermost, Record, innermost, is_mine, only};
use crate::transition::{come_in, go_back_out, hook, refuse_wait_in_own_pause, site_of, wait_to_come_in};
use crate::unwind::{self, Payload};
use crate::vm::{Capture, Crossing, FrameKind, Report, StackScanner};
use core::any::type_name;
use core::ffi::c_void;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use std::sync::Arc;

/// Runs `body` as an upcall on `record`'s mutator, and returns its result, or `fallback()` if it panicked.
///
/// The common way through makes one call, the body, and keeps two values across it; everything else leaves by a tail call, so that the common way
/// saves few registers.
#[inline(always)]
fn cross_in<V: StackScanner, R>(
    record: &Record<V>,
    body: impl FnOnce(&mut Mutator<V>) -> R,
    fallback: impl FnOnce() -> R,
) -> R {
    let header = &record.header;
    let Some(saved) = header.word.published() else {
        abort_managed::<V>(record);
    };
    // SAFETY: the word of an attached mutator holds a live record.
    let saved = unsafe { saved.as_ref() };
    // SAFETY: null, or a live record of this mutator.
    let Some(frame) = (unsafe { saved.newer().as_ref() }) else {
        saved.grow_slow();
        return cross_in_again(record, body, fallback);
    };
    entering::<V>(record);
    if !come_in::<V>(header, frame) {
        return cross_in_waiting(record, saved, frame, body, fallback);
    }
    managed_part(record, frame, body, fallback)
}

/// [`cross_in`], now that there is a record for this depth.
#[cold]
#[inline(never)]
fn cross_in_again<V: StackScanner, R>(
    record: &Record<V>,
    body: impl FnOnce(&mut Mutator<V>) -> R,
    fallback: impl FnOnce() -> R,
) -> R {
    let header = &record.header;
    // SAFETY: the word of an attached mutator holds a live record.
    let saved = unsafe { &*header.word.record() };
    // SAFETY: made just now.
    let frame = unsafe { &*saved.newer() };
    entering::<V>(record);
    if !come_in::<V>(header, frame) {
        return cross_in_waiting(record, saved, frame, body, fallback);
    }
    managed_part(record, frame, body, fallback)
}

/// [`cross_in`] while a pause is wanted: waits before the body runs.
#[cold]
#[inline(never)]
fn cross_in_waiting<V: StackScanner, R>(
    record: &Record<V>,
    saved: &ForeignFrame,
    frame: &ForeignFrame,
    body: impl FnOnce(&mut Mutator<V>) -> R,
    fallback: impl FnOnce() -> R,
) -> R {
    if wait_to_come_in::<V>(&record.header, saved, frame).is_err() {
        refuse_held(vm_of::<V>(record), saved);
        return fallback();
    }
    managed_part(record, frame, body, fallback)
}

/// Runs the hook, which must not detach the thread it runs for. (With no hook the compiler sees that nothing has changed.)
#[inline(always)]
fn entering<V: StackScanner>(record: &Record<V>) {
    let vm = vm_of::<V>(record);
    hook(|| vm.entering_managed(Crossing::Upcall));
    if !is_mine(&record.header) {
        unwind::abort(format_args!(
            "a transition hook detached the thread it runs for; the hooks of `Vm` must not"
        ));
    }
}

#[inline(always)]
fn vm_of<V: StackScanner>(record: &Record<V>) -> &V {
    // SAFETY: `world` points to the `Shared<V>` whose record this is, which outlives it.
    unsafe { &(*record.header.world.cast::<Shared<V>>()).vm }
}

/// The upcall from the moment it is managed to the moment it is foreign again.
#[inline(always)]
fn managed_part<V: StackScanner, R>(
    record: &Record<V>,
    frame: &ForeignFrame,
    body: impl FnOnce(&mut Mutator<V>) -> R,
    fallback: impl FnOnce() -> R,
) -> R {
    // Nothing unwinds from here on: the body is stopped, and a fallback that panics aborts (`extern "C"`).
    let header = &record.header;
    if V::CAPTURE != Capture::Nothing {
        // SAFETY: the cell is valid for writes.
        unsafe { arch::store_stack_pointer(frame.entry_sp.as_ptr()) };
    }
    frame.roots_base.set(header.roots.mark());
    if CHECKED {
        chain::check::<V>(header);
    }
    let outcome = unwind::stop(|| {
        // SAFETY: attached and managed until `go_back_out`, and the handle ends with the body.
        let mut parts = unsafe { MutatorParts::new(record, frame) };
        let mutator = parts.lend_mut();
        match V::CAPTURE {
            // Native frames of the body must lie below `entry_sp`, so it must not be inlined into this frame.
            Capture::Anchor | Capture::Registers => outlined(|| body(mutator)),
            Capture::Nothing => body(mutator),
        }
    });
    // SAFETY: the record of an upcall always has an older one, which lives as long.
    let saved = unsafe { &*frame.older };
    let base = frame.roots_base.get();
    // Something is above only if a call was leaked. Comparing keeps the next call from waiting for this store.
    if header.roots.mark() != base {
        header.roots.release_to(base);
    }
    if V::FAULTS.has(Faults::ROOTS_DROPPED_BY_UPCALL) {
        header.roots.release_to(saved.roots_base.get());
    }
    let result = match outcome {
        Ok(result) => result,
        Err(payload) => {
            carry(vm_of::<V>(record), saved, payload);
            fallback()
        }
    };
    go_back_out(vm_of::<V>(record), header, saved);
    result
}

#[inline(never)]
fn outlined<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Keeps the panic of an upcall for the foreign call it ran in.
#[cold]
#[inline(never)]
fn carry<V: StackScanner>(vm: &V, saved: &ForeignFrame, payload: Payload) {
    if saved.kind.get() == FrameKind::ForeignThread {
        vm.report(&Report::UpcallPanicUnclaimed { payload: &*payload });
    } else if let Some(second) = saved.set_pending(payload) {
        vm.report(&Report::UpcallPanicSuperseded { payload: &*second });
    }
}

/// An upcall came in on a thread that holds a pause: the error goes to whoever runs the foreign call or the pause.
#[cold]
#[inline(never)]
fn refuse_held<V: StackScanner>(vm: &V, saved: &crate::activation::ForeignFrame) {
    let site = saved.site.get().unwrap_or(core::panic::Location::caller());
    let Err(payload) = unwind::stop(|| refuse_wait_in_own_pause("an upcall from the foreign call", site));
    carry(vm, saved, payload);
}

#[cold]
#[inline(never)]
fn abort_managed<V: StackScanner>(record: &Record<V>) -> ! {
    let header = &record.header;
    let reason = State::Managed.after(Event::Upcall).err().unwrap_or_default();
    // SAFETY: the word of an attached mutator holds a live record; `older` is null or one: the foreign call the running activation was called from.
    let caller = unsafe { (*header.word.record()).older.as_ref() };
    if let Some(region) = header.checked.region() {
        unwind::abort(format_args!(
            "mutator {} cannot receive an upcall: it is managed, {region}; {reason}; {}",
            header.id.get(),
            region.advice()
        ));
    }
    match caller {
        Some(caller) => unwind::abort(format_args!(
            "mutator {} cannot receive an upcall: it is managed, in an upcall of the foreign call at {}; {reason}",
            header.id.get(),
            site_of(caller)
        )),
        None => unwind::abort(format_args!(
            "mutator {} cannot receive an upcall: it is managed; {reason}",
            header.id.get()
        )),
    }
}

/// An upcall without data on a thread with no mutator, with several, or with one of another type of VM.
#[cold]
#[inline(never)]
fn cross_in_somewhere<V: StackScanner, R>(
    body: impl FnOnce(&mut Mutator<V>) -> R,
    fallback: impl FnOnce() -> R,
) -> R {
    match innermost::<V>() {
        // SAFETY: this thread's attached record of a world of `V`.
        Innermost::Of(record) => cross_in(unsafe { &*record }, body, fallback),
        Innermost::Ambiguous => unwind::abort(format_args!(
            "an upcall function of `{}` cannot tell which of two worlds it is for: both foreign calls were made in one stack frame; \
             use an `UpcallClosure`, which knows its world",
            type_name::<V>()
        )),
        Innermost::None => match home::<V>() {
            Some(shared) => cross_in_attaching(&shared, body, fallback),
            None => abort_homeless::<V>(),
        },
    }
}

/// An upcall into a world that is not the thread's only one, or not yet one of its worlds.
#[cold]
#[inline(never)]
fn cross_in_world<V: StackScanner, R>(
    shared: &Arc<Shared<V>>,
    body: impl FnOnce(&mut Mutator<V>) -> R,
    fallback: impl FnOnce() -> R,
) -> R {
    // SAFETY: null, or this thread's attached record of this world.
    match unsafe { shared.current().as_ref() } {
        Some(record) => cross_in(record, body, fallback),
        None => cross_in_attaching(shared, body, fallback),
    }
}

/// Attaches a thread that calls in for the first time, and goes on.
#[cold]
#[inline(never)]
fn cross_in_attaching<V: StackScanner, R>(
    shared: &Arc<Shared<V>>,
    body: impl FnOnce(&mut Mutator<V>) -> R,
    fallback: impl FnOnce() -> R,
) -> R {
    let attached = match unwind::stop(|| shared.attach(Ownership::Thread, 0)) {
        Ok(attached) => attached,
        Err(payload) => {
            shared.vm.report(&Report::UpcallPanicUnclaimed { payload: &*payload });
            return fallback();
        }
    };
    let report = match attached {
        Ok(record) => return cross_in(record, body, fallback),
        Err(AttachError::Shutdown) => Report::UpcallAfterShutdown,
        Err(AttachError::ThreadExiting) => Report::UpcallAtThreadExit,
        Err(error @ (AttachError::PauseHeldHere | AttachError::AlreadyAttached)) => {
            unwind::abort(format_args!("a foreign thread calls in: {error}"))
        }
    };
    shared.vm.report(&report);
    fallback()
}

/// A function item or a closure without captures that can be called from C. Implemented for functions of up to twelve arguments after the mutator.
///
/// `Arguments` is the tuple of C argument types, `R` the result.
pub trait UpcallBody<V: StackScanner, Arguments, R>: sealed::Sealed<V, Arguments, R> {
    /// The C function pointer type of a plain function.
    type Function;
    /// The same with a user-data pointer before the arguments.
    type DataFirst;
    /// The same with a user-data pointer after the arguments.
    type DataLast;

    /// # Safety
    ///
    /// A value of this type, and one of `G`, exist for ever; whoever calls the function needs nothing else.
    #[doc(hidden)]
    unsafe fn function<G: Fn() -> R>() -> Self::Function;
    /// # Safety
    ///
    /// For [`UpcallClosure`] alone: the data pointer must be that of a closure of this type.
    #[doc(hidden)]
    unsafe fn data_first() -> Self::DataFirst;
    /// # Safety
    ///
    /// For [`UpcallClosure`] alone: the data pointer must be that of a closure of this type.
    #[doc(hidden)]
    unsafe fn data_last() -> Self::DataLast;
}

mod sealed {
    pub trait Sealed<V, Arguments, R> {}
}

/// Conjures a value of a zero-sized type of which one exists.
///
/// # Safety
///
/// A value of `F` has been given to the crate and not been dropped since, or `F` is `Copy`.
#[inline(always)]
unsafe fn conjure<'f, F>() -> &'f F {
    const {
        assert!(
            size_of::<F>() == 0,
            "an upcall function must be a function item or a closure that captures nothing; \
        use `UpcallClosure` for one that does"
        )
    };
    // SAFETY: zero-sized: a dangling, aligned pointer is valid, and a value exists.
    unsafe { NonNull::<F>::dangling().as_ref() }
}

macro_rules! upcall_body {
    ($($argument:ident: $Argument:ident),*) => {
        impl<V, Body, R, $($Argument),*> sealed::Sealed<V, ($($Argument,)*), R> for Body
        where
            V: StackScanner,
            Body: for<'u> Fn(&'u mut Mutator<V>, $($Argument),*) -> R,
        {
        }

        impl<V, Body, R, $($Argument),*> UpcallBody<V, ($($Argument,)*), R> for Body
        where
            V: StackScanner,
            Body: for<'u> Fn(&'u mut Mutator<V>, $($Argument),*) -> R,
        {
            type Function = extern "C" fn($($Argument),*) -> R;
            type DataFirst = unsafe extern "C" fn(*mut c_void, $($Argument),*) -> R;
            type DataLast = unsafe extern "C" fn($($Argument,)* *mut c_void) -> R;

            unsafe fn function<Fallback: Fn() -> R>() -> Self::Function {
                extern "C" fn enter<V, Body, Fallback, R, $($Argument),*>($($argument: $Argument),*) -> R
                where
                    V: StackScanner,
                    Body: for<'u> Fn(&'u mut Mutator<V>, $($Argument),*) -> R,
                    Fallback: Fn() -> R,
                {
                    // SAFETY: values of both exist for ever, as the caller of `function` has promised.
                    let (body, fallback) = unsafe { (conjure::<Body>(), conjure::<Fallback>()) };
                    let body = |mutator: &mut Mutator<V>| body(mutator, $($argument),*);
                    // SAFETY: null, or this thread's attached record of a world of `V`.
                    match unsafe { only::<V>().as_ref() } {
                        Some(record) => cross_in(record, body, fallback),
                        None => cross_in_somewhere(body, fallback),
                    }
                }
                enter::<V, Body, Fallback, R, $($Argument),*>
            }

            unsafe fn data_first() -> Self::DataFirst {
                /// # Safety
                ///
                /// `data` is that of a live `UpcallClosure` of this body.
                unsafe extern "C" fn enter<V, Body, R, $($Argument),*>(data: *mut c_void, $($argument: $Argument),*) -> R
                where
                    V: StackScanner,
                    Body: for<'u> Fn(&'u mut Mutator<V>, $($Argument),*) -> R,
                {
                    // SAFETY: promised by the caller.
                    let data = unsafe { &*data.cast::<ClosureData<V, Body, R>>() };
                    data.enter(|body, mutator| body(mutator, $($argument),*))
                }
                enter::<V, Body, R, $($Argument),*>
            }

            unsafe fn data_last() -> Self::DataLast {
                /// # Safety
                ///
                /// `data` is that of a live `UpcallClosure` of this body.
                unsafe extern "C" fn enter<V, Body, R, $($Argument),*>($($argument: $Argument,)* data: *mut c_void) -> R
                where
                    V: StackScanner,
                    Body: for<'u> Fn(&'u mut Mutator<V>, $($Argument),*) -> R,
                {
                    // SAFETY: promised by the caller.
                    let data = unsafe { &*data.cast::<ClosureData<V, Body, R>>() };
                    data.enter(|body, mutator| body(mutator, $($argument),*))
                }
                enter::<V, Body, R, $($Argument),*>
            }
        }
    };
}
crate::arity::for_each_arity!(upcall_body);

#[cold]
#[inline(never)]
fn abort_homeless<V>() -> ! {
    unwind::abort(format_args!(
        "a thread that no world knows called an upcall function of `{}`; call `World::adopt_foreign_threads` first, \
         or use an `UpcallClosure`, which knows its world",
        type_name::<V>()
    ))
}

/// Makes a plain C function pointer of a function item (or of a closure that captures nothing).
///
/// The function takes a [`Mutator`] and then C's arguments. It may be called by C from inside [`ForeignCall::run`](crate::ForeignCall::run), on the same thread, at any depth; and from a thread the VM
/// has never seen, if the world [adopts foreign threads](crate::World::adopt_foreign_threads): such a thread is attached on its first upcall and detached
/// when it exits. With several worlds of one type on a thread, it is the one whose foreign call is the innermost, told by the stack pointer; an
/// [`UpcallClosure`] knows its world.
///
/// If the function panics, C gets `R::default()` and the panic resumes when the foreign call returns.
///
/// # Aborts
///
/// The returned function aborts the process with a message when it is called from managed code; from an unknown thread while no world adopts
/// foreign threads; or where two worlds of one type have foreign calls in progress that were made in one stack frame.
///
/// # Examples
///
/// ```
/// use core::ffi::c_int;
/// use reentry::testkit::TestVm;
/// use reentry::{Mutator, World, upcall_fn};
///
/// fn double(mutator: &mut Mutator<TestVm>, x: c_int) -> c_int {
///     assert_eq!(mutator.depth(), 1);
///     2 * x
/// }
///
/// let function: extern "C" fn(c_int) -> c_int = upcall_fn(double);
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// // A Rust closure stands for the C code here.
/// assert_eq!(mutator.foreign_call().run(|| function(21)), 42);
/// # Ok::<(), reentry::AttachError>(())
/// ```
pub fn upcall_fn<V, Arguments, R, F>(function: F) -> F::Function
where
    V: StackScanner,
    R: Default + 'static,
    F: UpcallBody<V, Arguments, R> + Copy + Send + Sync + 'static,
{
    upcall_fn_or(function, R::default)
}

/// [`upcall_fn`] with a fallback of your own: what C gets if the function panics. A fallback that panics aborts the process.
pub fn upcall_fn_or<V, Arguments, R, F, G>(function: F, fallback: G) -> F::Function
where
    V: StackScanner,
    F: UpcallBody<V, Arguments, R> + Copy + Send + Sync + 'static,
    G: Fn() -> R + Copy + Send + Sync + 'static,
{
    let _ = (function, fallback);
    // SAFETY: both have been given, and are `Copy` and `'static`.
    unsafe { F::function::<G>() }
}

/// What the user-data pointer of an [`UpcallClosure`] points to.
struct ClosureData<V: StackScanner, F, R> {
    shared: Arc<Shared<V>>,
    body: F,
    fallback: R,
}

impl<V: StackScanner, F, R> ClosureData<V, F, R> {
    #[inline(always)]
    fn enter(&self, call: impl FnOnce(&F, &mut Mutator<V>) -> R) -> R {
        let body = |mutator: &mut Mutator<V>| call(&self.body, mutator);
        let fallback = || {
            // SAFETY: `R: Copy`, as `UpcallClosure::with_fallback` asks.
            unsafe { ptr::from_ref(&self.fallback).read() }
        };
        // SAFETY: null, or this thread's attached record of this world.
        match unsafe { self.shared.only().as_ref() } {
            Some(record) => cross_in(record, body, fallback),
            None => cross_in_world(&self.shared, body, fallback),
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
/// [`data_first`](Self::data_first) and [`data_last`](Self::data_last) are `unsafe` functions: whoever calls them, C included, passes [`data`](Self::data) of the same closure, which must
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
    pub fn new(world: &crate::World<V>, closure: F) -> Self
    where
        R: Default,
    {
        Self::with_fallback(world, closure, R::default())
    }

    /// Makes a closure callable from C; if it panics, C gets `fallback`.
    #[must_use]
    pub fn with_fallback(world: &crate::World<V>, closure: F, fallback: R) -> Self {
        let data = Box::new(ClosureData { shared: Arc::clone(world.shared()), body: closure, fallback });
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
