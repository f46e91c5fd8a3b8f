//! Managed callables as C function pointers that need no user data.
//!
//! # From C to the body
//!
//! ```text
//!   C ──> stub (libffi's: executable memory that nobody can write)
//!     ──> `enter`  with the addresses of C's arguments and of the place for the result
//!           counts itself in; is the closure open?  no: report, fallback value
//!           finds this thread's mutator of the closure's world, or attaches one
//!     ──> upcall   as every other: managed, fence, poll; errors stop here
//!           ──> the body
//! ```
//!
//! # The end
//!
//! A closure ends in three steps. Dropping it closes it: who comes in from now on is told. When nobody is inside any more, the body is dropped, by the last one out (`occupancy.rs`). The stub and what
//! is needed to answer a late call go to quarantine (`quarantine.rs`), and are freed when they leave it.

mod held;

use super::quarantine::{self, Dropped, LateCall, Quarantine};
use super::signature::{Prepared, Signature};
use super::types::Kind;
use super::value::{Value, ValueError};
use crate::activation::AfterError;
use crate::faults::Faults;
use crate::mutator::Mutator;
use crate::occupancy::{Occupancy, Visitor};
use crate::pause::Shared;
use crate::thread::{Record, only_of_any_type};
use crate::transition::hook;
use crate::unwind;
use crate::upcall::{ABORT, CARRY, FALLBACK, NO_POLICY, Named, UpcallName, enter_dynamic};
use crate::vm::{Capture, ErrorPolicy, Report, StackScanner, tell};
use crate::world::World;
use core::cell::{Cell, UnsafeCell};
use core::ffi::c_void;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::panic::Location;
use core::ptr::{self, NonNull};
use libffi::low::{self, ffi_cif, ffi_closure};
use libffi::raw::{ffi_prep_closure_loc, ffi_status_FFI_OK};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A managed callable as a C function: a function pointer of its own, for C interfaces with or without user data.
///
/// C may call it from any thread, nested and re-entrant; a thread the world does not know is attached. The body is an upcall: it may allocate, collect, call C, fail. If it panics or returns an exception, C gets the
/// fallback value, zero unless [`ClosureBuilder::fallback`] says otherwise, and the error goes the way of every upcall's ([`ErrorPolicy`]).
///
/// The closure ends when it is dropped, also inside a call of itself; the call then goes on to its end. C that calls later still is told so: see [`Quarantine`]. To leave
/// the closure to C, which gives its function pointer back some day, see [`into_raw`](Self::into_raw). It does not keep its world.
///
/// # Examples
///
/// A script's function, held by a global handle:
///
/// ```
/// use core::ffi::c_int;
/// use reentry::dynamic::{Closure, Function, Signature};
/// use reentry::testkit::TestVm;
/// use reentry::World;
///
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// let object = world.vm().heap().alloc(&[], b"abc");
/// let handle = mutator.handle(object);
///
/// let signature = Signature::parse("int (int)")?;
/// let byte_at = Closure::new(&world, &signature, move |mutator, call| {
///     TestVm::collect_in(mutator).expect("no root is stale");
///     let object = mutator.load(&handle); // where it is now
///     let bytes = mutator.vm().heap().bytes(object).expect("alive");
///     let index = call.argument(0).as_u64().expect("an integer") as usize;
///     call.returns(i32::from(bytes[index])).expect("an `int`");
///     Ok(())
/// })?;
///
/// // C would call the pointer; here it is called through the same machinery, as C would.
/// let function = Function::new(byte_at.code(), "byte_at", &signature)?;
/// let mut call = mutator.foreign_call().dynamic(&function);
/// call.value(1)?;
/// // SAFETY: the closure has this signature.
/// unsafe { call.run() }?;
/// assert_eq!(call.result().as_i64(), Some(i64::from(b'b')));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a `Closure` ends it"]
pub struct Closure<V: StackScanner> {
    head: NonNull<Head>,
    _world: PhantomData<fn(V)>,
}

// SAFETY: the body is `Send` and `Sync`, the rest is made for all threads.
unsafe impl<V: StackScanner> Send for Closure<V> {}
// SAFETY: as above.
unsafe impl<V: StackScanner> Sync for Closure<V> {}

/// What every closure has, whatever its body.
#[repr(C)]
struct Head {
    occupancy: Occupancy,
    /// The number of the world's mutator on whose thread it was made: the owner of the occupancy; 0, which no mutator has, if there is none. Not its record: that one is another thread's some day,
    /// perhaps while this thread is inside.
    owner: u64,
    /// The address of the world's `Shared`, as its records have it.
    world: *const (),
    /// Whether it runs when the foreign call carries an error already.
    after_error: AfterError,
    /// The result as a word, if it is a scalar.
    fallback: u64,
    /// The result's bytes, if it is none.
    fallback_bytes: Box<[u8]>,
    result: Kind,
    signature: Signature,
    name: Box<str>,
    made_at: &'static Location<'static>,
    stub: *mut ffi_closure,
    code: *const c_void,
    /// Drops the body.
    end: unsafe fn(NonNull<Head>),
    /// Frees the stub and all the rest.
    free: unsafe fn(NonNull<Head>),
}

/// A closure of a world and a body.
#[repr(C)]
struct Whole<V: StackScanner, B> {
    /// First: a pointer to one is a pointer to the other.
    head: Head,
    /// Weak: a VM that holds closures would never end otherwise. It keeps the address of the `Shared` from being used again.
    world: Weak<Shared<V>>,
    /// There until the occupancy tells one caller to end it (C2).
    body: UnsafeCell<ManuallyDrop<B>>,
}

/// What C has called a closure with, and where the result goes.
pub struct Invocation<'u> {
    signature: &'u Signature,
    prepared: &'u Prepared,
    arguments: *const *const c_void,
    result: *mut c_void,
    returned: Cell<bool>,
}

impl<'u> Invocation<'u> {
    /// The closure's signature.
    #[must_use]
    pub fn signature(&self) -> &'u Signature {
        self.signature
    }

    /// How many arguments there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.prepared.parameters.len()
    }

    /// Says whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An argument, from 0.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    #[inline(always)]
    #[must_use]
    #[track_caller]
    pub fn argument(&self, index: usize) -> Value<'u> {
        match self.get(index) {
            Some(value) => value,
            None => {
                panic!("reentry: argument {index} was asked for, and `{}` has {}", self.signature, self.len())
            }
        }
    }

    /// An argument, from 0, if there are so many.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Value<'u>> {
        let parameter = self.prepared.parameters.get(index)?;
        // SAFETY: libffi gives an address for each argument, of memory that holds a value of its type, or that value's address, and lasts until the call is over.
        unsafe {
            let mut address = *self.arguments.add(index);
            if parameter.is_by_address() {
                address = *address.cast();
            }
            Some(match parameter.kind {
                Kind::Void => Value::Void,
                Kind::Bool => Value::Bool(*address.cast::<u8>() != 0),
                Kind::I8 => Value::I8(*address.cast()),
                Kind::U8 => Value::U8(*address.cast()),
                Kind::I16 => Value::I16(*address.cast()),
                Kind::U16 => Value::U16(*address.cast()),
                Kind::I32 => Value::I32(*address.cast()),
                Kind::U32 => Value::U32(*address.cast()),
                Kind::I64 => Value::I64(*address.cast()),
                Kind::U64 => Value::U64(*address.cast()),
                Kind::F32 => Value::F32(*address.cast()),
                Kind::F64 => Value::F64(*address.cast()),
                Kind::Pointer => Value::Pointer(*address.cast()),
                Kind::LongDouble | Kind::Struct => {
                    let size = self.signature.parameters()[index].size();
                    Value::Bytes(core::slice::from_raw_parts(address.cast(), size))
                }
            })
        }
    }

    /// The arguments, in order.
    pub fn arguments(&self) -> impl ExactSizeIterator<Item = Value<'u>> {
        (0..self.len()).map(|index| self.argument(index))
    }

    /// Says what C gets. The last time counts.
    ///
    /// # Errors
    ///
    /// If the value is not of the signature's result type.
    #[inline(always)]
    pub fn returns<'v>(&self, value: impl Into<Value<'v>> + Copy) -> Result<(), ValueError> {
        let kind = self.prepared.result;
        match value.into().exact_word(kind) {
            // SAFETY: libffi gives memory for a result of the signature's type.
            Some(word) => unsafe { write_result(self.result, kind, word) },
            // What was given, and not the enum made of it: that would be built in memory.
            None => self.returns_slow(value)?,
        }
        self.returned.set(true);
        Ok(())
    }

    /// [`returns`](Self::returns), with a conversion or a struct.
    ///
    /// # Errors
    ///
    /// If the value is not of the signature's result type.
    #[inline(never)]
    fn returns_slow<'v>(&self, value: impl Into<Value<'v>>) -> Result<(), ValueError> {
        let (value, ty) = (value.into(), self.signature.result());
        match (value, ty.kind()) {
            (Value::Void, Kind::Void) => Ok(()),
            (Value::Bytes(bytes), Kind::Struct | Kind::LongDouble) if bytes.len() == ty.size() => {
                // SAFETY: libffi gives memory for a result of so many bytes; the bytes may be an argument's.
                unsafe { ptr::copy(bytes.as_ptr(), self.result.cast(), bytes.len()) };
                Ok(())
            }
            (value, kind) => {
                let word = value.word(kind).ok_or_else(|| ValueError::new(ty, value))?;
                // SAFETY: libffi gives memory for a result of the signature's type.
                unsafe { write_result(self.result, kind, word) };
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Invocation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.arguments()).finish()
    }
}

/// Writes a scalar where libffi takes a result from: an integer that is smaller than a register as a whole one.
///
/// # Safety
///
/// `to` is valid for a result of `kind`, and for a register if that is larger.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "what is cut off does not belong to the value")]
unsafe fn write_result(to: *mut c_void, kind: Kind, word: u64) {
    // SAFETY: promised by the caller.
    unsafe {
        match kind {
            Kind::F32 => to.cast::<u32>().write(word as u32),
            Kind::F64 | Kind::I64 | Kind::U64 => to.cast::<u64>().write(word),
            Kind::Void | Kind::Struct | Kind::LongDouble => {}
            _ => to.cast::<usize>().write(word as usize),
        }
    }
}

/// A closure that could not be made.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClosureError {
    /// The signature has a `...`.
    #[error("a closure cannot take `...`: nothing says what C has passed; declare `{0}` without it")]
    Variadic(Signature),
    /// The fallback value is not of the result's type.
    #[error("the fallback value is of the wrong type: {0}")]
    Fallback(#[from] ValueError),
    /// There is no executable memory, or the system does not let the process have any.
    #[error("no executable memory is to be had for a closure; the system may forbid it")]
    NoExecutableMemory,
}

/// Makes a [`Closure`]. Made by [`Closure::builder`].
#[must_use = "a builder makes nothing until `build`"]
pub struct ClosureBuilder<'b, V: StackScanner> {
    world: &'b World<V>,
    signature: Signature,
    name: &'b str,
    fallback: Option<Value<'b>>,
    policy: Option<ErrorPolicy>,
    after_error: AfterError,
}

impl<'b, V: StackScanner> ClosureBuilder<'b, V> {
    /// Names it, for reports.
    pub fn name(mut self, name: &'b str) -> Self {
        self.name = name;
        self
    }

    /// What C gets when the body fails, and when it calls too late; zero otherwise.
    pub fn fallback(mut self, value: impl Into<Value<'b>>) -> Self {
        self.fallback = Some(value.into());
        self
    }

    /// What becomes of its errors, whatever the foreign call's [policy](crate::ForeignCall::on_error).
    pub fn on_error(mut self, policy: ErrorPolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Lets it run also when the foreign call that calls it carries an error already: for a closure that frees
    /// what C gives up. See [`Always`](crate::Always).
    pub fn always(mut self) -> Self {
        self.after_error = AfterError::Run;
        self
    }

    /// Makes it. The body gets what C has passed, and says what C gets ([`Invocation::returns`]); one that says nothing where there is a result has failed.
    ///
    /// # Errors
    ///
    /// See [`ClosureError`]. The body has been dropped.
    #[track_caller]
    pub fn build<B>(self, body: B) -> Result<Closure<V>, ClosureError>
    where
        B: Fn(&mut Mutator<V>, &Invocation<'_>) -> Result<(), V::Exception> + Send + Sync + 'static,
    {
        let result = self.signature.result();
        if self.signature.is_variadic() {
            return Err(ClosureError::Variadic(self.signature.clone()));
        }
        let (mut fallback, mut fallback_bytes) = (0, Box::default());
        if matches!(result.kind(), Kind::Struct | Kind::LongDouble) {
            fallback_bytes = vec![0; result.size()].into_boxed_slice();
            if let Some(value) = self.fallback {
                result.write(&mut fallback_bytes, value)?;
            }
        } else if let Some(value) = self.fallback
            && (value, result.kind()) != (Value::Void, Kind::Void)
        {
            fallback = value.word(result.kind()).ok_or_else(|| ValueError::new(result, value))?;
        }
        let Some((stub, code)) = with_stubs(low::try_closure_alloc) else {
            return Err(ClosureError::NoExecutableMemory);
        };
        let shared = self.world.shared();
        let world = Arc::as_ptr(shared).cast::<()>();
        // SAFETY: null, or this thread's record.
        let owner = match unsafe { only_of_any_type().as_ref() } {
            Some(record) if record.world == world => record.id.get(),
            _ => 0,
        };
        let head = Head {
            occupancy: Occupancy::new(self.world.fence()),
            owner,
            world,
            fallback,
            fallback_bytes,
            result: result.kind(),
            signature: self.signature.clone(),
            name: self.name.into(),
            made_at: Location::caller(),
            after_error: self.after_error,
            stub,
            code: code.as_ptr(),
            end: end::<V, B>,
            free: free::<V, B>,
        };
        let body = UnsafeCell::new(ManuallyDrop::new(body));
        let whole = Box::into_raw(Box::new(Whole { head, world: Arc::downgrade(shared), body }));
        // SAFETY: just allocated, not null.
        let closure = Closure { head: unsafe { NonNull::new_unchecked(whole.cast()) }, _world: PhantomData };
        // The policy is known to the code that C enters by, so that it is not looked up in each call.
        let enter = match self.policy {
            None => enter::<V, B, NO_POLICY>,
            Some(ErrorPolicy::Carry) => enter::<V, B, CARRY>,
            Some(ErrorPolicy::Abort) => enter::<V, B, ABORT>,
            Some(ErrorPolicy::Fallback) => enter::<V, B, FALLBACK>,
        };
        let cif = self.signature.prepared().cif();
        // libffi takes the lock of its stubs here too.
        // SAFETY: the stub is ours and new; the description lives as long as the signature, which the head holds, and the stub is freed before either.
        let prepare =
            || unsafe { ffi_prep_closure_loc(stub, cif, Some(enter), whole.cast(), code.as_mut_ptr()) };
        let status = with_stubs(prepare);
        // `closure` ends what has been made.
        if status == ffi_status_FFI_OK { Ok(closure) } else { Err(ClosureError::NoExecutableMemory) }
    }
}

impl<V: StackScanner> fmt::Debug for ClosureBuilder<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClosureBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<V: StackScanner> Closure<V> {
    /// Makes a closure of a body, for C. See [`ClosureBuilder::build`].
    ///
    /// # Errors
    ///
    /// See [`ClosureError`].
    #[track_caller]
    pub fn new<B>(world: &World<V>, signature: &Signature, body: B) -> Result<Self, ClosureError>
    where
        B: Fn(&mut Mutator<V>, &Invocation<'_>) -> Result<(), V::Exception> + Send + Sync + 'static,
    {
        Self::builder(world, signature).build(body)
    }

    /// Starts making a closure with choices of its own.
    pub fn builder<'b>(world: &'b World<V>, signature: &Signature) -> ClosureBuilder<'b, V> {
        let signature = signature.clone();
        ClosureBuilder {
            world,
            signature,
            name: "closure",
            fallback: None,
            policy: None,
            after_error: AfterError::Skip,
        }
    }

    fn head(&self) -> &Head {
        // SAFETY: there until it leaves quarantine, where it comes when this is dropped.
        unsafe { self.head.as_ref() }
    }

    /// The function pointer for C. Whoever calls it keeps to the signature.
    #[must_use]
    pub fn code(&self) -> *const c_void {
        self.head().code
    }

    /// Its signature.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.head().signature
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.head().name
    }

    /// Where it was made.
    #[must_use]
    pub fn made_at(&self) -> &'static Location<'static> {
        self.head().made_at
    }

    /// Leaves the closure to C: it lasts until its function pointer, which this gives, comes back to [`World::release_closure`], or [`World::closure_from_raw`].
    ///
    /// What is never released lasts as long as the process, and keeps what its body holds; it does not keep the world.
    #[must_use = "the closure is released by whoever has its function pointer"]
    pub fn into_raw(self) -> *const c_void {
        let this = ManuallyDrop::new(self);
        let code = this.code();
        with_raw(|raw| raw.insert(code.addr(), Raw(this.head)));
        code
    }
}

impl<V: StackScanner> Drop for Closure<V> {
    fn drop(&mut self) {
        // SAFETY: the closure's own, and nobody closes it again.
        unsafe { close(self.head, V::FAULTS) };
    }
}

impl<V: StackScanner> fmt::Debug for Closure<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closure")
            .field("name", &self.name())
            .field("signature", &self.signature())
            .field("made_at", &format_args!("{}", self.made_at()))
            .finish_non_exhaustive()
    }
}

/// A function pointer that is no closure's which was left to C.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{address:#x} is not the function pointer of a closure of this world that was left to C; release each once, with the pointer that `Closure::into_raw` gave"
)]
pub struct UnknownClosure {
    /// The address.
    pub address: usize,
}

impl<V: StackScanner> World<V> {
    /// Takes back a closure that was left to C with [`Closure::into_raw`].
    ///
    /// # Errors
    ///
    /// If the pointer is no such closure's, of this world; also if it has come back before.
    pub fn closure_from_raw(&self, code: *const c_void) -> Result<Closure<V>, UnknownClosure> {
        let ours = Arc::as_ptr(self.shared()).cast::<()>();
        let found = with_raw(|raw| {
            let Raw(head) = raw.get(&code.addr())?;
            // SAFETY: what is in the table has not been dropped.
            let world = unsafe { head.as_ref() }.world;
            if ptr::eq(world, ours) { raw.remove(&code.addr()) } else { None }
        });
        let Raw(head) = found.ok_or(UnknownClosure { address: code.addr() })?;
        Ok(Closure { head, _world: PhantomData })
    }

    /// Ends a closure that was left to C with [`Closure::into_raw`].
    ///
    /// # Errors
    ///
    /// As [`closure_from_raw`](Self::closure_from_raw).
    pub fn release_closure(&self, code: *const c_void) -> Result<(), UnknownClosure> {
        self.closure_from_raw(code).map(drop)
    }
}

/// A closure that was left to C.
struct Raw(NonNull<Head>);

// SAFETY: as for `Closure`.
unsafe impl Send for Raw {}

/// Those that were left to C, by their function pointers.
static RAW: Mutex<BTreeMap<usize, Raw>> = Mutex::new(BTreeMap::new());

fn with_raw<R>(f: impl FnOnce(&mut BTreeMap<usize, Raw>) -> R) -> R {
    // Each critical section leaves the map whole wherever it can unwind.
    f(&mut RAW.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Held round whatever takes libffi's lock of stubs (allocating, preparing, freeing one), which nobody can hold over a fork.
static STUBS: Mutex<()> = Mutex::new(());

fn with_stubs<R>(f: impl FnOnce() -> R) -> R {
    let _held = STUBS.lock().unwrap_or_else(PoisonError::into_inner);
    f()
}

/// No other thread changes the table, or makes or frees a stub, until the result is dropped.
#[cfg(all(unix, not(loom), not(miri)))]
pub(super) fn closures_held() -> impl Sized {
    let raw = RAW.lock().unwrap_or_else(PoisonError::into_inner);
    (STUBS.lock().unwrap_or_else(PoisonError::into_inner), raw)
}

/// A closure in quarantine.
struct Late(NonNull<Head>);

// SAFETY: the body is `Send`; the rest is made for all threads.
unsafe impl Send for Late {}

impl Dropped for Late {
    fn is_deserted(&self) -> bool {
        // SAFETY: freed when this is dropped, and no sooner.
        unsafe { self.0.as_ref() }.occupancy.is_deserted(Faults::NONE)
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        // SAFETY: in quarantine once, and out of it now, with nobody inside.
        unsafe {
            let free = self.0.as_ref().free;
            free(self.0);
        }
    }
}

/// Closes a closure, drops its body if nobody is in it, and has the rest kept.
///
/// # Safety
///
/// `head` is a closure's, and this is done once.
unsafe fn close(head: NonNull<Head>, faults: Faults) {
    // SAFETY: promised by the caller.
    let this = unsafe { head.as_ref() };
    if this.occupancy.close(faults) {
        // SAFETY: C2.
        unsafe { (this.end)(head) };
    }
    quarantine::admit(Box::new(Late(head)));
}

/// Drops the body.
///
/// # Safety
///
/// `head` is that of a `Whole<V, B>`, and the occupancy has told the caller to do this (C2).
unsafe fn end<V: StackScanner, B>(head: NonNull<Head>) {
    // SAFETY: promised by the caller: nobody is in the body, or will be.
    unsafe { ManuallyDrop::drop(&mut *head.cast::<Whole<V, B>>().as_ref().body.get()) };
}

/// Frees the stub, and what it leads to.
///
/// # Safety
///
/// `head` is that of a `Whole<V, B>` whose body has been dropped; C does not call it any more.
unsafe fn free<V: StackScanner, B>(head: NonNull<Head>) {
    // SAFETY: promised by the caller.
    unsafe {
        with_stubs(|| low::closure_free(head.as_ref().stub));
        drop(Box::from_raw(head.cast::<Whole<V, B>>().as_ptr()));
    }
}

/// Where a stub leads.
///
/// # Safety
///
/// Called by libffi for a stub that `build` has prepared: `data` is that of a `Whole<V, B>`, the rest what libffi gives.
// Not inlined, as all functions that C enters by: see `upcall.rs`.
#[inline(never)]
unsafe extern "C" fn enter<V, B, const POLICY: u8>(
    _: *mut ffi_cif,
    result: *mut c_void,
    arguments: *mut *mut c_void,
    data: *mut c_void,
) where
    V: StackScanner,
    B: Fn(&mut Mutator<V>, &Invocation<'_>) -> Result<(), V::Exception> + Send + Sync + 'static,
{
    // SAFETY: promised by the caller; freed only when nobody is inside, and C does not call any more.
    let whole = unsafe { &*data.cast::<Whole<V, B>>() };
    let head = &whole.head;
    let here = only_of_any_type();
    // SAFETY: null, or this thread's record.
    let (record, visitor) = match unsafe { here.as_ref() } {
        Some(record) if record.world == head.world => {
            // A world gives each number once, and a mutator that has one runs on one thread at a time.
            let visitor = if record.id.get() == head.owner { Visitor::Owner } else { Visitor::Other };
            (here.cast::<Record<V>>(), visitor)
        }
        _ => (ptr::null(), Visitor::Other),
    };
    let open = head.occupancy.enter(visitor, V::FAULTS);
    // SAFETY: the address of a live whole, which is not null.
    let own = unsafe { NonNull::new_unchecked(data.cast::<Head>()) };
    let leaving = Leaving { head: own, visitor, faults: V::FAULTS };
    if !open {
        return late::<V, B>(whole, leaving, result);
    }
    // Here, and handed on by its address: the body reads what was written once.
    let invocation = &Invocation {
        signature: &head.signature,
        prepared: head.signature.prepared(),
        arguments: arguments.cast_const().cast(),
        result,
        returned: Cell::new(false),
    };
    enter_dynamic::<V, Head, POLICY>(
        record,
        &whole.world,
        head,
        move |mutator| {
            // SAFETY: C1: this thread is inside.
            let body = unsafe { &*whole.body.get() };
            if V::CAPTURE == Capture::Registers {
                invocation.held(|| body(mutator, invocation))?;
            } else {
                body(mutator, invocation)?;
            }
            if !invocation.returned.get() && whole.head.result != Kind::Void {
                whole.head.panic_without_result();
            }
            Ok(())
        },
        move || whole.head.write_fallback(invocation.result),
    );
    drop(leaving);
}

/// Leaves a closure, and drops its body if it is the last one out.
struct Leaving {
    /// The whole's own pointer: one made of a reference to the head would not reach the body.
    head: NonNull<Head>,
    visitor: Visitor,
    faults: Faults,
}

impl Drop for Leaving {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the visitor has not left, so it is there; `leave` touches it for the last time (C3).
        let head = unsafe { self.head.as_ref() };
        // Foreign frames are next: the drop of a body must not unwind.
        // SAFETY: C2.
        head.occupancy.leave(self.visitor, self.faults, || hook(|| unsafe { (head.end)(self.head) }));
    }
}

impl Named for Head {
    fn after_error(&self) -> AfterError {
        self.after_error
    }

    fn name(&self) -> UpcallName<'_> {
        UpcallName { function: &self.name, made_at: Some(self.made_at) }
    }
}

impl Head {
    /// Writes what C gets for an error.
    fn write_fallback(&self, result: *mut c_void) {
        // SAFETY: libffi gives memory for a result of the signature's type.
        unsafe {
            if self.fallback_bytes.is_empty() {
                write_result(result, self.result, self.fallback);
            } else {
                ptr::copy_nonoverlapping(
                    self.fallback_bytes.as_ptr(),
                    result.cast(),
                    self.fallback_bytes.len(),
                );
            }
        }
    }

    /// # Panics
    ///
    /// Always.
    #[cold]
    #[inline(never)]
    fn panic_without_result(&self) {
        panic!(
            "reentry: the closure `{}`, made at {}, returned nothing, and its signature is `{}`; call `Invocation::returns`, or return an exception",
            self.name, self.made_at, self.signature
        );
    }
}

/// A call of a closure that has been dropped.
#[cold]
#[inline(never)]
fn late<V: StackScanner, B>(whole: &Whole<V, B>, leaving: Leaving, result: *mut c_void) {
    let head = &whole.head;
    let report = Report::ClosureCalledLate { name: &head.name, made_at: head.made_at };
    if Quarantine::late_call() == LateCall::Abort {
        unwind::abort(format_args!("{report}"));
    }
    hook(|| match whole.world.upgrade() {
        Some(shared) => tell(&shared.vm, &report),
        None => unwind::say(&report),
    });
    head.write_fallback(result);
    drop(leaving);
}
