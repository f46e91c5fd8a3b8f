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
//! and a user-data pointer of a closure, for C interfaces that pass such a pointer on. Either takes a body that returns what C gets, or one that
//! is [`Throwing`]; and either can say what becomes of its errors ([`Aborting`], [`FallbackOnly`]).

mod arrival;
mod closure;
mod crossing;

pub use closure::UpcallClosure;
pub(crate) use crossing::run_on;

use crate::activation::AfterError;
use crate::arch;
use crate::mutator::Mutator;
use crate::pause::Shared;
use crate::thread::only;
use crate::unwind::last_resort;
use crate::vm::{Capture, ErrorPolicy, StackScanner};
use arrival::{Aim, Arrival};
use closure::ClosureData;
use core::any::type_name;
use core::ffi::c_void;
use core::hint::black_box;
use core::marker::PhantomData;
use core::ptr::NonNull;
pub(crate) use crossing::UpcallName;
#[cfg(feature = "libffi")]
use crossing::policy_of;
use crossing::{Conduct, Exceptions, Once, cross_in, cross_in_by, throw};
use std::sync::Weak;

/// What C can call: a function or closure that takes a [`Mutator`] and up to twelve C arguments, and returns what C gets; or one of these wrapped in [`Throwing`], [`Aborting`] or
/// [`FallbackOnly`].
///
/// `Arguments` is the tuple of C argument types, `R` the result.
pub trait UpcallBody<V: StackScanner, Arguments, R>: sealed::Body<V, Arguments, R> {
    /// The C function pointer type of a plain function.
    type Function;
    /// The same, through which exceptions of foreign code pass.
    type UnwindFunction;
    /// The same as `Function` with a user-data pointer before the arguments.
    type DataFirst;
    /// The same as `Function` with a user-data pointer after the arguments.
    type DataLast;
    /// The same as `UnwindFunction` with a user-data pointer before the arguments.
    type UnwindDataFirst;
    /// The same as `UnwindFunction` with a user-data pointer after the arguments.
    type UnwindDataLast;

    /// # Safety
    ///
    /// A value of this type, and one of `G`, exist for ever; whoever calls the function needs nothing else.
    #[doc(hidden)]
    unsafe fn function<G: Fn() -> R>() -> Self::Function;
    /// # Safety
    ///
    /// As for `function`.
    #[doc(hidden)]
    unsafe fn unwind_function<G: Fn() -> R>() -> Self::UnwindFunction;
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
    /// # Safety
    ///
    /// For [`UpcallClosure`] alone: the data pointer must be that of a closure of this type.
    #[doc(hidden)]
    unsafe fn unwind_data_first() -> Self::UnwindDataFirst;
    /// # Safety
    ///
    /// For [`UpcallClosure`] alone: the data pointer must be that of a closure of this type.
    #[doc(hidden)]
    unsafe fn unwind_data_last() -> Self::UnwindDataLast;
}

mod sealed {
    use crate::activation::AfterError;
    use crate::mutator::Mutator;
    use crate::vm::{ErrorPolicy, StackScanner};

    /// A body, whatever its form.
    pub trait Body<V: StackScanner, Arguments, R> {
        /// What becomes of its errors, if it says so itself.
        const POLICY: Option<ErrorPolicy>;
        /// Whether it runs when its foreign call carries an error already.
        const AFTER_ERROR: AfterError = AfterError::Skip;

        /// What a report calls it.
        fn name() -> &'static str;

        /// Calls it. `policy` is for the exception it may throw, `fallback` what C gets then.
        fn call(
            &self,
            mutator: &mut Mutator<V>,
            arguments: Arguments,
            policy: Option<ErrorPolicy>,
            fallback: impl FnOnce() -> R,
        ) -> R;
    }
}

/// An upcall body that returns `Result<R, V::Exception>`: an error travels past C as a panic does, and [`ForeignCall::try_run`](crate::ForeignCall::try_run) gives it back.
///
/// # Examples
///
/// ```
/// use core::ffi::c_int;
/// use reentry::testkit::{TestVm, Trap};
/// use reentry::{Mutator, Throwing, World, upcall_fn_or};
///
/// fn half(_: &mut Mutator<TestVm>, x: c_int) -> Result<c_int, Trap> {
///     if x % 2 == 0 { Ok(x / 2) } else { Err(Trap::NoSuchNative(x as u16)) }
/// }
/// let half: extern "C" fn(c_int) -> c_int = upcall_fn_or(Throwing(half), || -1);
///
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// // A Rust closure stands for the C code here: it sees the fallback value.
/// let outcome = mutator.foreign_call().try_run(|| assert_eq!(half(7), -1));
/// assert_eq!(outcome, Err(Trap::NoSuchNative(7)));
/// assert_eq!(mutator.foreign_call().try_run(|| half(8)), Ok(4));
/// # Ok::<(), reentry::AttachError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Throwing<F>(pub F);

/// An upcall body whose errors end the process with a message, whatever the foreign call's [policy](ErrorPolicy::Abort).
#[derive(Clone, Copy, Debug)]
pub struct Aborting<F>(pub F);

/// An upcall body whose errors are reported and end there, whatever the foreign call's [policy](ErrorPolicy::Fallback).
#[derive(Clone, Copy, Debug)]
pub struct FallbackOnly<F>(pub F);

macro_rules! policy_body {
    ($Wrapper:ident, $policy:ident) => {
        impl<V, F, Arguments, R> sealed::Body<V, Arguments, R> for $Wrapper<F>
        where
            V: StackScanner,
            F: sealed::Body<V, Arguments, R>,
        {
            const POLICY: Option<ErrorPolicy> = Some(ErrorPolicy::$policy);
            const AFTER_ERROR: AfterError = F::AFTER_ERROR;

            fn name() -> &'static str {
                F::name()
            }

            #[inline(always)]
            fn call(
                &self,
                mutator: &mut Mutator<V>,
                arguments: Arguments,
                policy: Option<ErrorPolicy>,
                fallback: impl FnOnce() -> R,
            ) -> R {
                let frame = mutator.running();
                // SAFETY: records live as long as their mutator's, which is attached for as long as the body runs.
                let frame = unsafe { frame.as_ref() };
                frame.under_policy(policy, || self.0.call(mutator, arguments, policy, fallback))
            }
        }
    };
}
policy_body!(Aborting, Abort);
policy_body!(FallbackOnly, Fallback);

/// An upcall body that runs also when the foreign call carries an error already: one that frees what C gives
/// up, for example. Other upcalls are not run then: see [`ForeignCall::upcalls_after_error`](crate::ForeignCall::upcalls_after_error).
///
/// # Examples
///
/// ```
/// use core::sync::atomic::{AtomicU32, Ordering};
/// use reentry::testkit::{TestVm, Trap};
/// use reentry::{Always, Mutator, Throwing, World, upcall_fn};
///
/// static DESTROYED: AtomicU32 = AtomicU32::new(0);
/// fn step(_: &mut Mutator<TestVm>) -> Result<(), Trap> {
///     Err(Trap::NoSuchNative(1))
/// }
/// fn destroy(mutator: &mut Mutator<TestVm>) {
///     assert!(mutator.error_pending());
///     DESTROYED.fetch_add(1, Ordering::Relaxed);
/// }
/// let step: extern "C" fn() = upcall_fn(Throwing(step));
/// let destroy: extern "C" fn() = upcall_fn(Always(destroy));
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// // A Rust closure stands for the C code here.
/// let outcome = mutator.foreign_call().try_run(|| {
///     step();
///     step(); // not run
///     destroy();
/// });
/// assert_eq!(outcome, Err(Trap::NoSuchNative(1)));
/// assert_eq!(DESTROYED.load(Ordering::Relaxed), 1);
/// # Ok::<(), reentry::AttachError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Always<F>(pub F);

impl<V, F, Arguments, R> sealed::Body<V, Arguments, R> for Always<F>
where
    V: StackScanner,
    F: sealed::Body<V, Arguments, R>,
{
    const POLICY: Option<ErrorPolicy> = F::POLICY;
    const AFTER_ERROR: AfterError = AfterError::Run;

    fn name() -> &'static str {
        F::name()
    }

    #[inline(always)]
    fn call(
        &self,
        mutator: &mut Mutator<V>,
        arguments: Arguments,
        policy: Option<ErrorPolicy>,
        fallback: impl FnOnce() -> R,
    ) -> R {
        self.0.call(mutator, arguments, policy, fallback)
    }
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

// The functions that C enters by are never inlined, not even into a Rust caller: `nesting.rs` looks for a frame of their own.
macro_rules! upcall_body {
    ($($argument:ident: $Argument:ident),*) => {
        impl<V, Body, R, $($Argument),*> sealed::Body<V, ($($Argument,)*), R> for Body
        where
            V: StackScanner,
            Body: for<'u> Fn(&'u mut Mutator<V>, $($Argument),*) -> R,
        {
            const POLICY: Option<ErrorPolicy> = None;

            fn name() -> &'static str {
                type_name::<Body>()
            }

            #[inline(always)]
            fn call(
                &self,
                mutator: &mut Mutator<V>,
                ($($argument,)*): ($($Argument,)*),
                _: Option<ErrorPolicy>,
                _: impl FnOnce() -> R,
            ) -> R {
                self(mutator, $($argument),*)
            }
        }

        impl<V, Body, R, $($Argument),*> sealed::Body<V, ($($Argument,)*), R> for Throwing<Body>
        where
            V: StackScanner,
            Body: for<'u> Fn(&'u mut Mutator<V>, $($Argument),*) -> Result<R, V::Exception>,
        {
            const POLICY: Option<ErrorPolicy> = None;

            fn name() -> &'static str {
                type_name::<Body>()
            }

            #[inline(always)]
            fn call(
                &self,
                mutator: &mut Mutator<V>,
                ($($argument,)*): ($($Argument,)*),
                policy: Option<ErrorPolicy>,
                fallback: impl FnOnce() -> R,
            ) -> R {
                match (self.0)(mutator, $($argument),*) {
                    Ok(result) => result,
                    Err(exception) => {
                        let name = UpcallName { function: type_name::<Body>(), made_at: None };
                        throw(mutator, policy, name, exception);
                        fallback()
                    }
                }
            }
        }

        impl<V, Body, R, $($Argument),*> UpcallBody<V, ($($Argument,)*), R> for Body
        where
            V: StackScanner,
            Body: sealed::Body<V, ($($Argument,)*), R>,
        {
            type Function = extern "C" fn($($Argument),*) -> R;
            type UnwindFunction = extern "C-unwind" fn($($Argument),*) -> R;
            type DataFirst = unsafe extern "C" fn(*mut c_void, $($Argument),*) -> R;
            type DataLast = unsafe extern "C" fn($($Argument,)* *mut c_void) -> R;
            type UnwindDataFirst = unsafe extern "C-unwind" fn(*mut c_void, $($Argument),*) -> R;
            type UnwindDataLast = unsafe extern "C-unwind" fn($($Argument,)* *mut c_void) -> R;

            unsafe fn function<Fallback: Fn() -> R>() -> Self::Function {
                #[inline(never)]
                extern "C" fn enter<V, Body, Fallback, R, $($Argument),*>($($argument: $Argument),*) -> R
                where
                    V: StackScanner,
                    Body: sealed::Body<V, ($($Argument,)*), R>,
                    Fallback: Fn() -> R,
                {
                    // SAFETY: values of both exist for ever, as the caller of `function` has promised.
                    unsafe { enter_conjured::<V, Body, Fallback, _, R, Stopping>(($($argument,)*)) }
                }
                enter::<V, Body, Fallback, R, $($Argument),*>
            }

            unsafe fn unwind_function<Fallback: Fn() -> R>() -> Self::UnwindFunction {
                /// # Panics
                ///
                /// Never: an exception of foreign code passes, a panic ends the process.
                #[inline(never)]
                extern "C-unwind" fn enter<V, Body, Fallback, R, $($Argument),*>($($argument: $Argument),*) -> R
                where
                    V: StackScanner,
                    Body: sealed::Body<V, ($($Argument,)*), R>,
                    Fallback: Fn() -> R,
                {
                    // SAFETY: values of both exist for ever, as the caller of `unwind_function` has promised.
                    unsafe { enter_conjured::<V, Body, Fallback, _, R, Passing>(($($argument,)*)) }
                }
                enter::<V, Body, Fallback, R, $($Argument),*>
            }

            unsafe fn data_first() -> Self::DataFirst {
                /// # Safety
                ///
                /// `data` is that of a live `UpcallClosure` of this body.
                #[inline(never)]
                unsafe extern "C" fn enter<V, Body, R, $($Argument),*>(data: *mut c_void, $($argument: $Argument),*) -> R
                where
                    V: StackScanner,
                    Body: sealed::Body<V, ($($Argument,)*), R>,
                {
                    // SAFETY: promised by the caller.
                    let data = unsafe { &*data.cast::<ClosureData<V, Body, R>>() };
                    data.enter::<_, Stopping>(($($argument,)*))
                }
                enter::<V, Body, R, $($Argument),*>
            }

            unsafe fn data_last() -> Self::DataLast {
                /// # Safety
                ///
                /// `data` is that of a live `UpcallClosure` of this body.
                #[inline(never)]
                unsafe extern "C" fn enter<V, Body, R, $($Argument),*>($($argument: $Argument,)* data: *mut c_void) -> R
                where
                    V: StackScanner,
                    Body: sealed::Body<V, ($($Argument,)*), R>,
                {
                    // SAFETY: promised by the caller.
                    let data = unsafe { &*data.cast::<ClosureData<V, Body, R>>() };
                    data.enter::<_, Stopping>(($($argument,)*))
                }
                enter::<V, Body, R, $($Argument),*>
            }

            unsafe fn unwind_data_first() -> Self::UnwindDataFirst {
                /// # Safety
                ///
                /// `data` is that of a live `UpcallClosure` of this body.
                ///
                /// # Panics
                ///
                /// Never: an exception of foreign code passes, a panic ends the process.
                #[inline(never)]
                unsafe extern "C-unwind" fn enter<V, Body, R, $($Argument),*>(data: *mut c_void, $($argument: $Argument),*) -> R
                where
                    V: StackScanner,
                    Body: sealed::Body<V, ($($Argument,)*), R>,
                {
                    // SAFETY: promised by the caller.
                    let data = unsafe { &*data.cast::<ClosureData<V, Body, R>>() };
                    data.enter::<_, Passing>(($($argument,)*))
                }
                enter::<V, Body, R, $($Argument),*>
            }

            unsafe fn unwind_data_last() -> Self::UnwindDataLast {
                /// # Safety
                ///
                /// `data` is that of a live `UpcallClosure` of this body.
                ///
                /// # Panics
                ///
                /// Never: an exception of foreign code passes, a panic ends the process.
                #[inline(never)]
                unsafe extern "C-unwind" fn enter<V, Body, R, $($Argument),*>($($argument: $Argument,)* data: *mut c_void) -> R
                where
                    V: StackScanner,
                    Body: sealed::Body<V, ($($Argument,)*), R>,
                {
                    // SAFETY: promised by the caller.
                    let data = unsafe { &*data.cast::<ClosureData<V, Body, R>>() };
                    data.enter::<_, Passing>(($($argument,)*))
                }
                enter::<V, Body, R, $($Argument),*>
            }
        }
    };
}
crate::arity::for_each_arity!(upcall_body);

/// The way in of an upcall without data, inlined into the function C calls.
///
/// # Safety
///
/// A value of `Body` and one of `Fallback` have been given to the crate and exist for ever.
#[inline(always)]
unsafe fn enter_conjured<V, Body, Fallback, Arguments, R, E>(arguments: Arguments) -> R
where
    V: StackScanner,
    Body: sealed::Body<V, Arguments, R>,
    Fallback: Fn() -> R,
    E: Frontier,
{
    // Body and fallback are conjured where they are called: what the crossing carries is the arguments alone.
    let fallback = || {
        // SAFETY: promised by the caller.
        last_resort(unsafe { conjure::<Fallback>() })
    };
    let mut body = Once::new(move |mutator: &mut Mutator<V>| {
        // SAFETY: promised by the caller.
        let body = unsafe { conjure::<Body>() };
        body.call(mutator, arguments, Body::POLICY, fallback)
    });
    let conduct = ConductOf::<V, Body, Arguments, R, E>(PhantomData);
    // SAFETY: null, or this thread's attached record of a world of `V`.
    match unsafe { only::<V>().as_ref() } {
        Some(record) => cross_in(record, Aim::Type, conduct, &mut body, fallback),
        None => cross_in_by(Arrival::Somewhere, arch::entry_stack_pointer(), conduct, &mut body, fallback),
    }
}

/// What an exception of foreign code does at an upcall, as a type.
trait Frontier {
    const EXCEPTIONS: Exceptions;
}

enum Stopping {}
enum Passing {}

impl Frontier for Stopping {
    const EXCEPTIONS: Exceptions = Exceptions::Stop;
}

impl Frontier for Passing {
    const EXCEPTIONS: Exceptions = Exceptions::Pass;
}

/// The conduct of a body at a frontier.
struct ConductOf<V, Body, Arguments, R, E>(PhantomData<Signature<V, Body, Arguments, R, E>>);

type Signature<V, Body, Arguments, R, E> = (fn(V, Body, E), fn(Arguments) -> R);

impl<V, Body, Arguments, R, E> Clone for ConductOf<V, Body, Arguments, R, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V, Body, Arguments, R, E> Copy for ConductOf<V, Body, Arguments, R, E> {}

impl<V, Body, Arguments, R, E> Conduct for ConductOf<V, Body, Arguments, R, E>
where
    V: StackScanner,
    Body: sealed::Body<V, Arguments, R>,
    E: Frontier,
{
    const POLICY: Option<ErrorPolicy> = Body::POLICY;
    const EXCEPTIONS: Exceptions = E::EXCEPTIONS;

    fn name(&self) -> UpcallName<'_> {
        UpcallName { function: Body::name(), made_at: None }
    }

    #[inline(always)]
    fn after_error(self) -> AfterError {
        Body::AFTER_ERROR
    }
}

/// Runs the body of an upcall.
///
/// # Safety
///
/// It has not been run.
///
/// # Panics
///
/// With what the body panics with.
#[inline(always)]
unsafe fn run<V: StackScanner, R>(
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    mutator: &mut Mutator<V>,
) -> R {
    // SAFETY: promised by the caller.
    let body = unsafe { body.take() };
    body(mutator)
}

/// [`run`] in a frame of its own.
///
/// Here, beside the functions C calls, so that it is compiled with them: of a body that cannot panic, for example, they know it.
///
/// # Safety
///
/// As for [`run`].
///
/// # Panics
///
/// With what the body panics with.
#[inline(never)]
unsafe fn run_outlined<V: StackScanner, R>(
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    mutator: &mut Mutator<V>,
) -> R {
    // SAFETY: promised by the caller.
    let body = unsafe { body.take() };
    // What C has passed is in the body, whose old place is above the segment: a conservative scan must find it in this frame.
    let body = if V::CAPTURE == Capture::Registers { black_box(body) } else { body };
    body(mutator)
}

/// Makes a plain C function pointer of a function item (or of a closure that captures nothing).
///
/// The function takes a [`Mutator`] and then C's arguments. It may be called by C from inside [`ForeignCall::run`](crate::ForeignCall::run), on the same thread, at any depth; and from a thread the VM
/// has never seen, if the world [adopts foreign threads](crate::World::adopt_foreign_threads): such a thread is attached on its first upcall and detached
/// when it exits. With several worlds of one type on a thread, it is the one whose foreign call is the innermost, told by the stack pointer; an
/// [`UpcallClosure`] knows its world.
///
/// If the function panics, C gets `R::default()` and the panic resumes when the foreign call returns; see [`ErrorPolicy`](crate::ErrorPolicy) for other choices. It does the same if little of the
/// native stack is left ([`UpcallRefused::StackExhausted`](crate::UpcallRefused::StackExhausted)).
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

/// Makes a C function pointer through which exceptions of foreign code pass: for C++ that calls back and throws.
///
/// Where C++ calls an [`upcall_fn`], that upcall makes a foreign call, and C++ throws an exception there, the exception ends the process when it reaches the upcall, since Rust
/// cannot catch it. Through this function it passes: the destructors of the managed frames run, what the upcall held is released, the foreign call below is
/// foreign again, and the C++ frames above can catch it. It is reported as [`Report::ActivationsSkipped`](crate::Report::ActivationsSkipped).
///
/// A panic must not go that way (I7), and there is no means to stop the one and not the other: a panic that leaves the body ends the process with a message. Return errors: a [`Throwing`] body
/// carries them as in every upcall, and C++ gets `fallback()`.
///
/// What is defined and what is not: foreign functions that throw are declared `extern "C-unwind"`; an exception that leaves a function declared `extern "C"` is undefined
/// behaviour. `longjmp` over Rust frames is defined only for frames without destructors, which those of an upcall are not; this crate is written
/// so that none of its own frames holds what could not be skipped, and the next crossing repairs the records.
///
/// # Aborts
///
/// As [`upcall_fn`], and if the body panics.
pub fn upcall_fn_unwind<V, Arguments, R, F, G>(function: F, fallback: G) -> F::UnwindFunction
where
    V: StackScanner,
    F: UpcallBody<V, Arguments, R> + Copy + Send + Sync + 'static,
    G: Fn() -> R + Copy + Send + Sync + 'static,
{
    let _ = (function, fallback);
    // SAFETY: both have been given, and are `Copy` and `'static`.
    unsafe { F::unwind_function::<G>() }
}

/// What a closure with a run-time signature does about errors, as a type.
#[cfg(feature = "libffi")]
struct Dynamic<'a, N, const POLICY: u8>(&'a N);

#[cfg(feature = "libffi")]
impl<N, const POLICY: u8> Clone for Dynamic<'_, N, POLICY> {
    fn clone(&self) -> Self {
        *self
    }
}

#[cfg(feature = "libffi")]
impl<N, const POLICY: u8> Copy for Dynamic<'_, N, POLICY> {}

/// What a report calls a closure with a run-time signature.
#[cfg(feature = "libffi")]
pub(crate) trait Named {
    fn name(&self) -> UpcallName<'_>;
    fn after_error(&self) -> AfterError;
}

/// The policies of such a closure: none of its own, and one for each of [`ErrorPolicy`].
#[cfg(feature = "libffi")]
pub(crate) const NO_POLICY: u8 = 0;
#[cfg(feature = "libffi")]
pub(crate) const CARRY: u8 = 1;
#[cfg(feature = "libffi")]
pub(crate) const ABORT: u8 = 2;
#[cfg(feature = "libffi")]
pub(crate) const FALLBACK: u8 = 3;

#[cfg(feature = "libffi")]
impl<N: Named, const POLICY: u8> Conduct for Dynamic<'_, N, POLICY> {
    const POLICY: Option<ErrorPolicy> = match POLICY {
        CARRY => Some(ErrorPolicy::Carry),
        ABORT => Some(ErrorPolicy::Abort),
        FALLBACK => Some(ErrorPolicy::Fallback),
        _ => None,
    };
    const EXCEPTIONS: Exceptions = Exceptions::Stop;

    fn name(&self) -> UpcallName<'_> {
        self.0.name()
    }

    fn after_error(self) -> AfterError {
        self.0.after_error()
    }
}

/// The way in of a closure with a run-time signature: runs `body` as an upcall on this thread's mutator of the world, which may be attached for it.
///
/// `record` is that mutator if it is the thread's only one, else null. `fallback` gives C what it gets for an error.
#[cfg(feature = "libffi")]
#[inline(always)]
pub(crate) fn enter_dynamic<V: StackScanner, N: Named, const POLICY: u8>(
    record: *const crate::thread::Record<V>,
    world: &Weak<Shared<V>>,
    named: &N,
    body: impl FnOnce(&mut Mutator<V>) -> Result<(), V::Exception>,
    fallback: impl Fn() + Copy,
) {
    let conduct = Dynamic::<N, POLICY>(named);
    let policy = policy_of(conduct);
    let mut body = Once::new(move |mutator: &mut Mutator<V>| {
        let outcome = match policy {
            None => body(mutator),
            policy => {
                let frame = mutator.running();
                // SAFETY: records live as long as their mutator's, which is attached for as long as the body runs.
                unsafe { frame.as_ref() }.under_policy(policy, || body(mutator))
            }
        };
        if let Err(exception) = outcome {
            throw(mutator, policy, named.name(), exception);
            fallback();
        }
    });
    // SAFETY: null, or this thread's attached record of this world.
    match unsafe { record.as_ref() } {
        Some(record) => cross_in(record, Aim::World, conduct, &mut body, fallback),
        None => enter_somewhere(world, conduct, &mut body, fallback),
    }
}

/// The way in of a closure on a thread of which its world is not the only one.
#[cold]
#[inline(never)]
fn enter_somewhere<V: StackScanner, R>(
    world: &Weak<Shared<V>>,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl Fn() -> R,
) -> R {
    // The upcall runs on an attached thread, which keeps the world; this keeps it until it is attached.
    match world.upgrade() {
        Some(shared) => cross_in_by(Arrival::In(&shared), arch::stack_pointer(), conduct, body, fallback),
        None => {
            let upcall = &crossing::origin(Some(conduct.name()), None, None);
            arrival::tell_nobody(&crate::vm::Report::UpcallAfterShutdown { upcall });
            fallback()
        }
    }
}
