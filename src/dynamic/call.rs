//! Foreign calls with a signature that is known at run time.
//!
//! # The two ways
//!
//! When a signature is prepared it is decided how its functions are reached. If every argument travels in a register (and the result is no struct), the arguments are written to a block
//! of sixteen words, and a routine of the machine's backend loads the registers from it and jumps to the function: about the cost of the call itself. Everything else goes through libffi, from
//! the same block, or from call memory where sixteen words do not hold the arguments.
//!
//! ```text
//!   words:   0 .. 6 or 8   integers and pointers     |  through libffi: the arguments one after the other,
//!            8 .. 16       floating-point numbers    |  each where its alignment wants it
//! ```

use super::closure::Closure;
use super::library::Function;
use super::signature::{Parameter, Path, Prepared, Signature};
use super::types::{Kind, Type};
use super::value::{Value, ValueError};
use crate::activation::{ForeignFrame, RESULT_WORDS, Scratch};
use crate::arch::{
    ARGUMENT_REGISTERS, ArgumentRegisters, FIRST_FLOAT, FLOAT_REGISTERS, INTEGER_REGISTERS,
    call_loading_integers, call_loading_registers,
};
use crate::errno::Errno;
use crate::foreign_call::{ForeignCall, InteriorNul};
use crate::foreign_value::ForeignValue;
use crate::root::{Argument, Root};
use crate::vm::{ArgumentError, StackScanner};
use core::ffi::{c_char, c_void};
use core::fmt;
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::ptr::{self, NonNull};
use libffi::raw::ffi_call;
use std::sync::Arc;

/// How a call passes a reference: what C gets, and for how long the object is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Plan {
    /// C gets the address of a slot, which follows the object; it lives until the call is dropped.
    Root,
    /// C gets the address of the object's bytes ([`Vm::bytes`](crate::Vm::bytes)); the object lives and stays where it is until the call is dropped.
    Pin,
    /// As `Pin`, and nothing that is reachable from the object moves.
    TransitivePin,
    /// As `Root`, until the first upcall of the call has begun: see [`ForeignCall::root_until_first_upcall`].
    RootUntilFirstUpcall,
    /// As `Pin`, until the first upcall of the call has begun: see [`ForeignCall::pin_until_first_upcall`].
    PinUntilFirstUpcall,
}

/// Why a call with a run-time signature was not made, or an argument of it not taken. Nothing has been called.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Too few arguments, or one too many.
    #[error(
        "`{function}` takes {}{expected} argument(s), and {came} came; it is declared `{signature}`",
        if *.or_more { "at least " } else { "" }
    )]
    WrongCount {
        /// The function.
        function: Arc<str>,
        /// How many it takes.
        expected: usize,
        /// Whether more may follow.
        or_more: bool,
        /// How many came.
        came: usize,
        /// Its signature.
        signature: Signature,
    },
    /// A value that is not of the parameter's type.
    #[error("argument {index} of `{function}` is of the wrong type: {error}; it is declared `{signature}`")]
    WrongType {
        /// The function.
        function: Arc<str>,
        /// Which argument, from 0.
        index: usize,
        /// What was expected, and what came.
        error: ValueError,
        /// Its signature.
        signature: Signature,
    },
    /// A closure of another signature than the parameter's.
    #[error("argument {index} of `{function}` is a `{expected}`, and the closure `{closure}` is a `{came}`")]
    WrongClosure {
        /// The function.
        function: Arc<str>,
        /// Which argument, from 0.
        index: usize,
        /// The closure's name.
        closure: Arc<str>,
        /// The parameter's signature.
        expected: Signature,
        /// The closure's.
        came: Signature,
    },
    /// The VM refuses a reference, or lends no bytes of it.
    #[error("argument {index} of `{function}` is refused: {error}")]
    Refused {
        /// The function.
        function: Arc<str>,
        /// Which argument, from 0.
        index: usize,
        /// Why.
        error: ArgumentError,
    },
    /// Text that C would see cut short.
    #[error("argument {index} of `{function}`: {error}")]
    Text {
        /// The function.
        function: Arc<str>,
        /// Which argument, from 0.
        index: usize,
        /// Where it has its NUL.
        error: InteriorNul,
    },
    /// A value that cannot be passed for `...`: a struct whose type nobody has named, or more of them than can be passed.
    #[error(
        "argument {index} of `{function}` cannot be passed for `...`: {reason}; name its type with `Function::with_variadic`"
    )]
    Variadic {
        /// The function.
        function: Arc<str>,
        /// Which argument, from 0.
        index: usize,
        /// Why.
        reason: String,
    },
}

impl<'m, V: StackScanner> ForeignCall<'m, V> {
    /// Makes it a call of `function`, whose signature is known at run time: the arguments follow, one by one.
    ///
    /// What has been declared and chosen before stays: roots and pins, [`on_error`](Self::on_error), [`without_upcalls`](Self::without_upcalls) and their like.
    #[inline(always)]
    pub fn dynamic(self, function: &'m Function) -> Call<'m, V> {
        let prepared = function.signature.prepared();
        Call { guard: self, function, prepared, count: 0, side: Side::Stale, has_run: false, word: 0 }
    }
}

/// How many arguments can stand for `...` in a call that does not name their types.
const MOST_EXTRAS: usize = 64;

/// A foreign call with a signature that is known at run time, being prepared, running, or run.
///
/// Each argument is given in its turn by the method that says how it is passed, and checked against the signature at once. Then [`run`](Self::run) makes the call; after that the call expects its
/// arguments anew, and what was declared for the first ones lasts still, until it is dropped.
///
/// | argument | method | C gets | kept until the call is dropped |
/// |---|---|---|---|
/// | a number, a pointer, a struct by value | [`value`](Self::value) | the value | |
/// | memory of the call, in, out or both | [`copy`](Self::copy), [`copy_slice`](Self::copy_slice) | its address | the memory |
/// | text | [`text`](Self::text) | the address of a copy that ends with a NUL | the copy |
/// | Rust memory, without a copy | [`keep_alive`](Self::keep_alive) | its address | the borrow |
/// | a heap object | [`reference`](Self::reference) | as the [`Plan`] says | as the [`Plan`] says |
/// | a callback | [`closure`](Self::closure) | its code | the borrow of the closure |
///
/// It allocates nothing once the mutator's call memory has grown to what its calls need, but where more arguments stand for `...` than registers are left, and the
/// [types](Function::with_variadic) of these have not been named.
///
/// # Examples
///
/// ```
/// use reentry::World;
/// use reentry::dynamic::{Library, Plan, Signature};
/// use reentry::testkit::TestVm;
///
/// let process = Library::this_process();
/// let strtol = process.function("strtol", &Signature::parse("long (const char*, char**, int)")?)?;
///
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// let text = world.vm().heap().alloc(&[], b"2a rest\0");
///
/// let mut call = mutator.foreign_call().dynamic(&strtol);
/// let bytes = call.reference(text, Plan::Pin)?; // C reads the heap object where it is
/// let end = call.copy(core::ptr::null::<u8>())?; // C writes here
/// call.value(16)?;
/// // SAFETY: the signature is that of `strtol`; the text ends with a NUL, and `end` is memory of the call.
/// unsafe { call.run() }?;
/// assert_eq!(call.result().as_i64(), Some(0x2a));
/// assert_eq!(call.read(end).addr() - bytes.addr(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a call that is not run does nothing but root its arguments"]
pub struct Call<'m, V: StackScanner> {
    guard: ForeignCall<'m, V>,
    function: &'m Function,
    prepared: &'m Prepared,
    /// How many arguments have been given.
    count: usize,
    side: Side,
    has_run: bool,
    /// What the last run gave, if it is a scalar.
    word: u64,
}

/// Whether the pointers in the record's scratch are this call's, or what an older one has left there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Stale,
    Ours,
}

/// What stands for `...` in one call: kinds and words. In call memory.
struct Extras {
    count: usize,
    values: [(Kind, u64); MOST_EXTRAS],
}

// The cold halves take what they need, and not the call: one whose address nobody has stays in registers from its first argument to its result.
impl<'m, V: StackScanner> Call<'m, V> {
    /// The next parameter.
    #[inline(always)]
    fn next(&self) -> Option<Parameter> {
        self.prepared.parameters.get(self.count).copied()
    }

    /// The record's scratch, for a cold half.
    #[inline(always)]
    fn cold(&mut self) -> Cold<'m> {
        let side = core::mem::replace(&mut self.side, Side::Ours);
        Cold::new(self.guard.frame_with_memory(), side)
    }

    /// Where the arguments lie.
    #[inline(always)]
    fn words(&mut self) -> *mut u64 {
        if self.prepared.words <= ARGUMENT_REGISTERS {
            arguments(self.guard.frame())
        } else {
            self.cold().block(self.prepared)
        }
    }

    /// Passes a value: a number, a truth value, a pointer, or the bytes of a struct.
    ///
    /// In checked mode the address in a pointer is [checked](ForeignCall::check) when the call runs. Where it stands for `...` its C type is that of the value's variant, promoted: `I32` is an
    /// `int`, `I64` an `int64_t`, `F64` a `double`.
    ///
    /// # Errors
    ///
    /// If it is not of the parameter's type, or no parameter is left. The call expects the argument still.
    #[inline(always)]
    pub fn value<'v>(&mut self, value: impl Into<Value<'v>> + Copy) -> Result<(), CallError> {
        if let Value::Pointer(pointer) = value.into() {
            self.guard.note_argument(pointer.addr(), self.count);
        }
        match self.next() {
            Some(parameter) if self.prepared.words <= ARGUMENT_REGISTERS => {
                if let Some(word) = value.into().exact_word(parameter.kind) {
                    // SAFETY: there are as many words as the signature needs, and this one is the argument's own.
                    unsafe {
                        arguments(self.guard.frame())
                            .add(parameter.word.into())
                            .write(in_memory(parameter.kind, word))
                    };
                    self.count += 1;
                    return Ok(());
                }
            }
            _ => {}
        }
        if let Value::Bytes(bytes) = value.into()
            && let Some(parameter) = self.next()
            && self.prepared.words <= ARGUMENT_REGISTERS
            && parameter.takes(bytes)
        {
            let to = arguments(self.guard.frame()).wrapping_add(parameter.word.into());
            // SAFETY: the argument's own words, which hold so many bytes.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast::<u8>(), bytes.len()) };
            self.count += 1;
            return Ok(());
        }
        // What was given is handed on, and not the enum made of it: that would be built in memory for every argument.
        self.cold().pass(self.function, self.count, value)?;
        self.count += 1;
        Ok(())
    }

    /// Passes the address of memory of the call that holds `value`: for what C reads, writes or both. See [`ForeignCall::copy`].
    ///
    /// # Errors
    ///
    /// If the parameter is no pointer, or none is left.
    pub fn copy<T: Copy + ForeignValue>(&mut self, value: T) -> Result<Argument<'m, T>, CallError> {
        self.due("the address of a copy")?;
        let argument = self.guard.copy(value);
        self.pass(argument.as_ptr().cast())?;
        Ok(argument)
    }

    /// Passes the address of memory of the call that holds `values`. See [`ForeignCall::copy_slice`].
    ///
    /// # Errors
    ///
    /// As [`copy`](Self::copy).
    pub fn copy_slice<T: Copy + ForeignValue>(
        &mut self,
        values: &[T],
    ) -> Result<Argument<'m, [T]>, CallError> {
        self.due("the address of a copy")?;
        let argument = self.guard.copy_slice(values);
        self.pass(argument.as_ptr().cast())?;
        Ok(argument)
    }

    /// Passes the address of a copy of `text` that ends with a NUL. See [`ForeignCall::copy_c_str`].
    ///
    /// # Errors
    ///
    /// If the text has a NUL inside, the parameter is no pointer, or none is left.
    pub fn text(&mut self, text: &str) -> Result<Argument<'m, c_char>, CallError> {
        self.due("text")?;
        let argument = self.guard.copy_c_str(text).map_err(|error| CallError::Text {
            function: Arc::clone(&self.function.name),
            index: self.count,
            error,
        })?;
        self.pass(argument.as_ptr().cast())?;
        Ok(argument)
    }

    /// Passes the address of Rust memory, without a copy: it stays borrowed as long as the call. C may only read it.
    ///
    /// # Errors
    ///
    /// If the parameter is no pointer, or none is left.
    pub fn keep_alive<T>(&mut self, values: &'m [T]) -> Result<(), CallError> {
        self.due("the address of memory")?;
        self.guard.keep_alive(values);
        self.pass(values.as_ptr().cast_mut().cast())
    }

    /// Passes a heap object, as `plan` says, and gives back what C gets: the address of a slot, or that of the object's bytes.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference, [`ArgumentError::NoBytes`] if it lends no bytes of a pinned object; if the parameter is no pointer, or none is left.
    pub fn reference(&mut self, reference: V::Ref, plan: Plan) -> Result<*mut c_void, CallError> {
        self.due("the address of a heap object")?;
        let pointer = self.declare(reference, plan).map_err(|error| CallError::Refused {
            function: Arc::clone(&self.function.name),
            index: self.count,
            error,
        })?;
        self.pass(pointer)?;
        Ok(pointer)
    }

    fn declare(&mut self, reference: V::Ref, plan: Plan) -> Result<*mut c_void, ArgumentError> {
        let guard = &mut self.guard;
        match plan {
            Plan::Root => return guard.try_root(reference).map(|root| Root::slot(&root).cast()),
            Plan::RootUntilFirstUpcall => {
                return guard.root_until_first_upcall(reference).map(|slot| slot.as_ptr().cast());
            }
            Plan::Pin => drop(guard.pin(reference)?),
            Plan::TransitivePin => drop(guard.pin_transitively(reference)?),
            Plan::PinUntilFirstUpcall => drop(guard.pin_until_first_upcall(reference)?),
        }
        // Only of what the VM has admitted.
        let bytes = guard.vm().bytes(reference).ok_or(ArgumentError::NoBytes)?;
        Ok(bytes.as_ptr().cast())
    }

    /// Passes a closure's code: C can call it until the closure is dropped, and this call borrows it.
    ///
    /// # Errors
    ///
    /// If the parameter is declared as a pointer to a function of another signature, is no pointer, or none is left.
    pub fn closure(&mut self, closure: &'m Closure<V>) -> Result<(), CallError> {
        self.due("the code of a closure")?;
        let parameter = self.function.signature.parameters().get(self.count).and_then(Type::function);
        if let Some(expected) = parameter.filter(|expected| *expected != closure.signature()) {
            return Err(CallError::WrongClosure {
                function: Arc::clone(&self.function.name),
                index: self.count,
                closure: closure.name().into(),
                expected: expected.clone(),
                came: closure.signature().clone(),
            });
        }
        self.guard.keep_alive(closure);
        self.pass(closure.code().cast_mut())
    }

    /// Refuses an address where none is due.
    ///
    /// # Errors
    ///
    /// If the next parameter is no pointer, or none is left.
    fn due(&self, what: &str) -> Result<(), CallError> {
        match self.next() {
            Some(parameter) if parameter.kind == Kind::Pointer => Ok(()),
            Some(_) => {
                let expected = self.function.signature.parameters()[self.count].clone();
                Err(wrong_type(self.function, self.count, ValueError { expected, came: what.to_owned() }))
            }
            None if self.function.signature.takes_more() => Ok(()),
            None => Err(wrong_count(self.function, self.count + 1)),
        }
    }

    /// Passes an address that [`due`](Self::due) has let through.
    ///
    /// # Errors
    ///
    /// If too many stand for `...`.
    fn pass(&mut self, address: *mut c_void) -> Result<(), CallError> {
        self.cold().pass(self.function, self.count, Value::Pointer(address))?;
        self.count += 1;
        Ok(())
    }

    /// Makes the call: [`ForeignCall::run`] with the arguments given. Read what it gives with [`result`](Self::result).
    ///
    /// # Safety
    ///
    /// The function has the signature it was declared with, and may be called with these arguments. No exception of foreign code leaves it: what raises one is called with
    /// [`ForeignCall::invoke`].
    ///
    /// # Errors
    ///
    /// [`CallError::WrongCount`], if arguments are missing. Nothing has been called, and the call expects its first argument.
    ///
    /// # Panics
    ///
    /// As [`ForeignCall::run`].
    #[inline(always)]
    #[track_caller]
    pub unsafe fn run(&mut self) -> Result<&Self, CallError> {
        let prepared = self.begin()?;
        let target = self.target(prepared);
        // SAFETY: promised by the caller.
        let word = self.guard.run(|| unsafe { target.call() });
        Ok(self.end(word))
    }

    /// [`run`](Self::run), with the VM exception of an upcall as an error: [`ForeignCall::try_run`].
    ///
    /// # Safety
    ///
    /// As for [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// The outer is that of [`run`](Self::run), the inner what an upcall threw.
    ///
    /// # Panics
    ///
    /// As [`ForeignCall::try_run`].
    #[inline(always)]
    #[track_caller]
    pub unsafe fn try_run(&mut self) -> Result<Result<&Self, V::Exception>, CallError> {
        let prepared = self.begin()?;
        let target = self.target(prepared);
        // SAFETY: promised by the caller.
        match self.guard.try_run(|| unsafe { target.call() }) {
            Ok(word) => Ok(Ok(self.end(word))),
            Err(exception) => Ok(Err(exception)),
        }
    }

    /// [`run`](Self::run), and C's `errno` as it was when the function returned.
    ///
    /// # Safety
    ///
    /// As for [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    #[inline(always)]
    #[track_caller]
    pub unsafe fn run_with_errno(&mut self) -> Result<(&Self, Errno), CallError> {
        let prepared = self.begin()?;
        let target = self.target(prepared);
        // SAFETY: promised by the caller.
        let (word, errno) = self.guard.run_with_errno(|| unsafe { target.call() });
        Ok((self.end(word), errno))
    }

    /// What the last run gave: [`Value::Bytes`] for a struct. [`Value::Void`] before the first.
    #[inline(always)]
    #[must_use]
    pub fn result(&self) -> Value<'_> {
        let kind = self.prepared.result;
        if !self.has_run || kind == Kind::Void {
            return Value::Void;
        }
        if matches!(kind, Kind::Struct | Kind::LongDouble) {
            let start = ptr::with_exposed_provenance::<u8>(self.word as usize);
            let size = self.prepared.result_size;
            // SAFETY: libffi has written so many bytes there: the call has run, and a struct comes through libffi.
            return Value::Bytes(unsafe { core::slice::from_raw_parts(start, size) });
        }
        Value::of_word(kind, self.word)
    }

    /// Makes ready for a run, and forgets the arguments. Gives the signature in force.
    ///
    /// # Errors
    ///
    /// If arguments are missing.
    #[inline(always)]
    fn begin(&mut self) -> Result<*const Prepared, CallError> {
        let count = core::mem::take(&mut self.count);
        if count == self.prepared.parameters.len() {
            return Ok(self.prepared);
        }
        self.cold().extras(self.function, count)
    }

    /// What is to be called, as plain addresses: words only, which are copied in one piece each.
    #[inline(always)]
    fn target(&mut self, prepared: *const Prepared) -> Target {
        let named = !ptr::eq(prepared, self.prepared);
        let words = if named { self.cold().named_block() } else { self.words() };
        let way = match self.prepared.path {
            _ if named => Target::LIBFFI,
            Path::Integers => Target::INTEGERS,
            Path::Registers => Target::REGISTERS,
            Path::Libffi => Target::LIBFFI,
        };
        let result = if way != Target::LIBFFI {
            ptr::null_mut()
        } else if self.prepared.result_words <= RESULT_WORDS {
            place_of_result(self.guard.frame())
        } else {
            self.cold().large_result(self.prepared)
        };
        Target { prepared, function: self.function.address, way, words, result }
    }

    #[inline(always)]
    fn end(&mut self, word: u64) -> &Self {
        self.word = word;
        self.has_run = true;
        self
    }
}

/// The words for arguments in a record.
#[inline(always)]
fn arguments(frame: &ForeignFrame) -> *mut u64 {
    // SAFETY: a field of the record's own scratch.
    unsafe { (&raw mut (*frame.scratch()).arguments).cast() }
}

/// The words for a result in a record.
#[inline(always)]
fn place_of_result(frame: &ForeignFrame) -> *mut u64 {
    // SAFETY: a field of the record's own scratch.
    unsafe { (&raw mut (*frame.scratch()).result).cast() }
}

/// A record of a call whose cold half runs: its scratch is this call's.
struct Cold<'m> {
    frame: &'m ForeignFrame,
}

impl<'m> Cold<'m> {
    #[inline(always)]
    fn new(frame: &'m ForeignFrame, side: Side) -> Self {
        let cold = Self { frame };
        if side == Side::Stale {
            let scratch = cold.scratch();
            (scratch.extras, scratch.block, scratch.large_result) = (None, None, None);
        }
        cold
    }

    fn scratch(&self) -> &mut Scratch {
        // SAFETY: one call at most uses an activation's scratch, on its own thread, and what this gives is used within one method.
        unsafe { &mut *self.frame.scratch() }
    }

    /// Words of call memory, aligned for everything that travels in them.
    fn memory(&self, words: usize) -> NonNull<u64> {
        let memory = self.frame.arena().alloc_slice_fill_with(words.div_ceil(2), |_| Aligned([0; 2]));
        NonNull::from(memory).cast()
    }

    /// Call memory for the arguments of a signature, and behind them for the address of each.
    #[cold]
    #[inline(never)]
    fn block(&self, prepared: &Prepared) -> *mut u64 {
        if let Some(block) = self.scratch().block {
            return block.as_ptr();
        }
        let block = self.memory(prepared.words + prepared.parameters.len());
        self.scratch().block = Some(block);
        block.as_ptr()
    }

    /// The arguments of the signature that [`extras`](Self::extras) has given.
    fn named_block(&self) -> *mut u64 {
        self.scratch().named_block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    /// Call memory for a result that the record has no room for.
    #[cold]
    #[inline(never)]
    fn large_result(&self, prepared: &Prepared) -> *mut u64 {
        if let Some(large) = self.scratch().large_result {
            return large.as_ptr();
        }
        let large = self.memory(prepared.result_words);
        self.scratch().large_result = Some(large);
        large.as_ptr()
    }

    /// Passes the argument `index`.
    ///
    /// # Errors
    ///
    /// If it is not of the parameter's type, or no parameter is left.
    #[inline(never)]
    fn pass<'v>(
        &self,
        function: &Function,
        index: usize,
        value: impl Into<Value<'v>>,
    ) -> Result<(), CallError> {
        let (value, prepared) = (value.into(), function.signature.prepared());
        let Some(parameter) = prepared.parameters.get(index) else {
            return self.pass_extra(function, index, value);
        };
        let words =
            if prepared.words <= ARGUMENT_REGISTERS { arguments(self.frame) } else { self.block(prepared) };
        let to = words.wrapping_add(parameter.word.into());
        if let Some(word) = value.word(parameter.kind) {
            // SAFETY: the argument's own word.
            unsafe { to.write(in_memory(parameter.kind, word)) };
            return Ok(());
        }
        let ty = &function.signature.parameters()[index];
        match value {
            Value::Bytes(bytes) if parameter.takes(bytes) => {
                // SAFETY: the argument's own words, which hold so many bytes.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast::<u8>(), bytes.len()) };
                Ok(())
            }
            _ => Err(wrong_type(function, index, ValueError::new(ty, value))),
        }
    }

    /// Takes a value for which no parameter is left.
    ///
    /// # Errors
    ///
    /// If it cannot stand for `...`.
    #[cold]
    fn pass_extra(&self, function: &Function, index: usize, value: Value<'_>) -> Result<(), CallError> {
        if !function.signature.takes_more() {
            return Err(wrong_count(function, index + 1));
        }
        let refuse =
            |reason: String| Err(CallError::Variadic { function: Arc::clone(&function.name), index, reason });
        let kind = value.variadic_kind();
        let Some((kind, word)) = kind.and_then(|kind| Some((kind, value.word(kind)?))) else {
            return refuse(format!("{value} has no C type of its own"));
        };
        let extras = self.scratch().extras.map_or_else(
            || {
                let values = [(Kind::Void, 0); MOST_EXTRAS];
                NonNull::from(self.frame.arena().alloc_with(|| Extras { count: 0, values }))
            },
            NonNull::cast,
        );
        self.scratch().extras = Some(extras.cast());
        // SAFETY: call memory, which nobody else uses.
        let extras = unsafe { &mut *extras.as_ptr() };
        let Some(place) = extras.values.get_mut(extras.count) else {
            return refuse(format!("{MOST_EXTRAS} have been passed"));
        };
        *place = (kind, word);
        extras.count += 1;
        Ok(())
    }

    /// Puts what stands for `...` where the callee looks for it. Gives the signature in force: the function's own if there are registers for all of it, else one that names the types, whose arguments are
    /// in the [`named_block`](Self::named_block).
    ///
    /// # Errors
    ///
    /// If arguments are missing.
    #[cold]
    #[inline(never)]
    fn extras(&self, function: &Function, count: usize) -> Result<*const Prepared, CallError> {
        let plain = function.signature.prepared();
        let passed = self.scratch().extras.filter(|_| count > plain.parameters.len());
        // What an aborted call has left counts no more.
        let values = passed.map_or(&mut [][..], |extras| {
            // SAFETY: call memory, which nobody else uses.
            let extras = unsafe { &mut *extras.cast::<Extras>().as_ptr() };
            &mut extras.values[..core::mem::take(&mut extras.count)]
        });
        if count != plain.parameters.len() + values.len() || values.is_empty() {
            return Err(wrong_count(function, count));
        }
        if plain.path != Path::Libffi && self.extras_in_registers(plain, values) {
            return Ok(plain);
        }
        let types: Vec<Type> = values.iter().map(|(kind, _)| kind.variadic_type()).collect();
        let named = function.signature.with_variadic(&types).map_err(|error| CallError::Variadic {
            function: Arc::clone(&function.name),
            index: plain.parameters.len(),
            reason: error.to_string(),
        })?;
        let prepared = ptr::from_ref(named.prepared());
        // SAFETY: kept in the record until another is, and read by this call only.
        let new = unsafe { &*prepared };
        self.scratch().named = Some(Arc::new(named));
        let from = if plain.words <= ARGUMENT_REGISTERS { arguments(self.frame) } else { self.block(plain) };
        let to = self.memory(new.words + new.parameters.len());
        self.scratch().named_block = Some(to);
        let parameters = plain.parameters.iter().zip(function.signature.parameters());
        for ((old, ty), new) in parameters.zip(&new.parameters) {
            // SAFETY: the argument's own words here and there, which hold as many bytes as its type has.
            unsafe {
                let (from, to) = (from.add(old.word.into()), to.as_ptr().add(new.word.into()));
                ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast::<u8>(), ty.size());
            }
        }
        for ((kind, word), new) in values.iter().zip(&new.parameters[plain.parameters.len()..]) {
            // SAFETY: the argument's own word.
            unsafe { to.as_ptr().add(new.word.into()).write(in_memory(*kind, *word)) };
        }
        Ok(prepared)
    }

    /// Writes what stands for `...` behind the other arguments, if there are registers for all of it.
    fn extras_in_registers(&self, plain: &Prepared, values: &[(Kind, u64)]) -> bool {
        let (mut integer, mut float) = (0, FIRST_FLOAT);
        for parameter in &plain.parameters {
            *if parameter.kind.is_word() { &mut integer } else { &mut float } += 1;
        }
        let base = arguments(self.frame);
        for (kind, word) in values {
            let (next, end) = if kind.is_word() {
                (&mut integer, INTEGER_REGISTERS)
            } else {
                (&mut float, FIRST_FLOAT + FLOAT_REGISTERS)
            };
            if *next == end {
                return false;
            }
            // SAFETY: there are as many words as registers.
            unsafe { base.add(*next).write(*word) };
            *next += 1;
        }
        true
    }
}

#[cold]
#[inline(never)]
fn wrong_type(function: &Function, index: usize, error: ValueError) -> CallError {
    CallError::WrongType {
        function: Arc::clone(&function.name),
        index,
        error,
        signature: function.signature.clone(),
    }
}

#[cold]
#[inline(never)]
fn wrong_count(function: &Function, came: usize) -> CallError {
    CallError::WrongCount {
        function: Arc::clone(&function.name),
        expected: function.signature.parameters().len(),
        or_more: function.signature.takes_more(),
        came,
        signature: function.signature.clone(),
    }
}

/// As much as the strictest C type asks for.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Aligned(#[expect(dead_code, reason = "it is memory")] [u64; 2]);

/// The word that has a scalar of `kind` in its first bytes, as C reads it there.
#[inline(always)]
fn in_memory(kind: Kind, word: u64) -> u64 {
    if cfg!(target_endian = "big") { word << (64 - 8 * kind.size_of_scalar()) } else { word }
}

/// A call that is ready: plain addresses, for the foreign state.
struct Target {
    prepared: *const Prepared,
    function: *const c_void,
    way: usize,
    words: *mut u64,
    result: *mut u64,
}

impl Target {
    const INTEGERS: usize = 0;
    const REGISTERS: usize = 1;
    const LIBFFI: usize = 2;

    /// Calls the function, and gives its result as a word; the address of the result if it is no scalar.
    ///
    /// # Safety
    ///
    /// What `begin` has written down is there still, and the function may be called with these arguments.
    ///
    /// # Panics
    ///
    /// Never: no exception leaves the function.
    #[inline(always)]
    unsafe fn call(&self) -> u64 {
        if self.way == Self::INTEGERS {
            // SAFETY: the words hold the arguments as the signature places them, and the function's type is promised.
            return unsafe { call_loading_integers(self.words.cast_const().cast(), self.function) };
        }
        // SAFETY: promised by the caller.
        unsafe { self.call_otherwise() }
    }

    /// [`call`](Self::call), with floating-point numbers or through libffi.
    ///
    /// # Safety
    ///
    /// As for [`call`](Self::call).
    ///
    /// # Panics
    ///
    /// Never: no exception leaves the function.
    #[inline(never)]
    #[expect(ffi_unwind_calls, reason = "the routine leaves no frame; that no exception passes is promised")]
    unsafe fn call_otherwise(&self) -> u64 {
        // SAFETY: the signature lives as long as its function, or is kept by the record.
        let prepared = unsafe { &*self.prepared };
        if self.way == Self::LIBFFI {
            // SAFETY: promised by the caller.
            return unsafe { self.call_through_libffi(prepared) };
        }
        let registers = self.words.cast_const().cast::<ArgumentRegisters>();
        // SAFETY: the words hold the arguments as the signature places them, and the function's type is promised. A floating-point result comes back in another register, so the
        // routine is called as a function that returns one.
        unsafe {
            match prepared.result {
                Kind::F64 => as_double(call_loading_registers)(registers, self.function).to_bits(),
                Kind::F32 => as_float(call_loading_registers)(registers, self.function).to_bits().into(),
                _ => call_loading_registers(registers, self.function),
            }
        }
    }

    /// # Safety
    ///
    /// As for [`call`](Self::call).
    #[inline(always)]
    unsafe fn call_through_libffi(&self, prepared: &Prepared) -> u64 {
        let count = prepared.parameters.len();
        let mut few = [const { MaybeUninit::<*mut c_void>::uninit() }; ARGUMENT_REGISTERS];
        // More arguments have more words than a record has; then there is room for their addresses behind them.
        let addresses = if count <= few.len() {
            few.as_mut_ptr().cast::<*mut c_void>()
        } else {
            self.words.wrapping_add(prepared.words).cast()
        };
        for (index, parameter) in prepared.parameters.iter().enumerate() {
            // SAFETY: there is room for as many, and each argument's word is one of the words.
            unsafe { addresses.add(index).write(self.words.add(parameter.word.into()).cast()) };
        }
        // SAFETY: an address of code, not null; a function pointer has its size.
        let function =
            unsafe { core::mem::transmute::<*const c_void, unsafe extern "C" fn()>(self.function) };
        // SAFETY: the description is prepared; arguments and result are where it says, and the rest is promised.
        unsafe { ffi_call(prepared.cif(), Some(function), self.result.cast(), addresses) };
        // SAFETY: libffi has written a value of the type; an integer that is smaller than a register as a whole one.
        unsafe {
            match prepared.result {
                Kind::Struct | Kind::LongDouble => self.result.expose_provenance() as u64,
                Kind::Void => 0,
                Kind::F32 => self.result.cast::<u32>().read().into(),
                Kind::F64 | Kind::I64 | Kind::U64 => self.result.read(),
                _ => self.result.cast::<usize>().read() as u64,
            }
        }
    }
}

type Loader<R> = unsafe extern "C-unwind" fn(*const ArgumentRegisters, *const c_void) -> R;

fn as_double(loader: Loader<u64>) -> Loader<f64> {
    // SAFETY: the routine returns what the function it jumps to returns, in that function's register.
    unsafe { core::mem::transmute::<Loader<u64>, Loader<f64>>(loader) }
}

fn as_float(loader: Loader<u64>) -> Loader<f32> {
    // SAFETY: as above.
    unsafe { core::mem::transmute::<Loader<u64>, Loader<f32>>(loader) }
}

/// What a guard can be asked of what it has declared: see [`ForeignCall::get`], [`ForeignCall::read`].
impl<'m, V: StackScanner> Deref for Call<'m, V> {
    type Target = ForeignCall<'m, V>;

    fn deref(&self) -> &ForeignCall<'m, V> {
        &self.guard
    }
}

impl<V: StackScanner> fmt::Debug for Call<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("function", &self.function.name)
            .field("arguments", &self.count)
            .finish_non_exhaustive()
    }
}
