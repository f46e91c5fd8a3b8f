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

mod error;
mod pointee;
mod words;

pub use error::{CallError, TryCallError};

use super::closure::Closure;
use super::library::Function;
use super::signature::{Parameter, Path, Prepared};
use super::types::{Kind, Type};
use super::value::{Value, ValueError};
use crate::activation::RESULT_WORDS;
use crate::arch::ARGUMENT_REGISTERS;
use crate::errno::Errno;
use crate::foreign_call::ForeignCall;
use crate::foreign_value::ForeignValue;
use crate::root::{Argument, Root};
use crate::vm::{ArgumentError, StackScanner};
use core::ffi::{c_char, c_void};
use core::fmt;
use core::ops::Deref;
use core::ptr;
use error::{wrong_count, wrong_type};
use pointee::Data;
use std::sync::Arc;
use words::{Cold, Side, Target, arguments, copy_bytes, in_memory, place_of_result};

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
    /// `int`, `I64` an `int64_t`, `F64` a `double`. What the callee takes it for nobody can check: C leaves `%d` with an `int64_t` undefined, though on x86_64 and aarch64 it prints the low half.
    ///
    /// # Errors
    ///
    /// If it is not of the parameter's type, or no parameter is left. The call expects the argument still.
    #[inline(always)]
    pub fn value<'v>(&mut self, value: impl Into<Value<'v>> + Copy) -> Result<(), CallError> {
        self.take(value)?;
        // Of what has been taken only: a call that is not given an address takes none along.
        if let Value::Pointer(pointer) = value.into() {
            self.guard.note_argument(pointer.addr(), self.count - 1);
        }
        Ok(())
    }

    /// [`value`](Self::value), without the note of an address.
    ///
    /// # Errors
    ///
    /// As [`value`](Self::value).
    #[inline(always)]
    fn take<'v>(&mut self, value: impl Into<Value<'v>> + Copy) -> Result<(), CallError> {
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
            unsafe { copy_bytes(bytes, to) };
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
    /// If the parameter is no pointer, or one to something that `value` cannot be: a function, or a type of another size or a lesser alignment. (Where `void*` or a
    /// struct known by name alone is declared, anything goes; bytes go for every type that they are enough for.) Or if no parameter is left.
    pub fn copy<T: Copy + ForeignValue>(&mut self, value: T) -> Result<Argument<'m, T>, CallError> {
        self.due(Data::copied(core::slice::from_ref(&value)))?;
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
        self.due(Data::copied(values))?;
        let argument = self.guard.copy_slice(values);
        self.pass(argument.as_ptr().cast())?;
        Ok(argument)
    }

    /// Passes the address of a copy of `text` that ends with a NUL. See [`ForeignCall::copy_c_str`].
    ///
    /// # Errors
    ///
    /// If the text has a NUL inside, the parameter is no pointer to characters (or to `void`, or to a struct known by name alone), or none is left.
    pub fn text(&mut self, text: &str) -> Result<Argument<'m, c_char>, CallError> {
        self.due(Data::Text)?;
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
    /// As [`copy`](Self::copy); and if the memory is not aligned as what the parameter points to.
    pub fn keep_alive<T>(&mut self, values: &'m [T]) -> Result<(), CallError> {
        self.due(Data::borrowed(values))?;
        self.guard.keep_alive(values);
        self.pass(values.as_ptr().cast_mut().cast())
    }

    /// Passes a heap object, as `plan` says, and gives back what C gets: the address of a slot, or that of the object's bytes.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference, [`ArgumentError::NoBytes`] if it lends no bytes of a pinned object; if the parameter is no pointer to data, or none is left.
    pub fn reference(&mut self, reference: V::Ref, plan: Plan) -> Result<*mut c_void, CallError> {
        self.due(Data::Object)?;
        let pointer = self.declare(reference, plan).map_err(|error| CallError::Refused {
            function: Arc::clone(&self.function.name),
            index: self.count,
            error,
        })?;
        self.pass(pointer)?;
        Ok(pointer)
    }

    /// Roots or pins a reference, and gives what C gets.
    ///
    /// # Errors
    ///
    /// Why the VM refuses it.
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
    /// If the parameter is declared as a pointer to a function of another signature, is no pointer to a function or to `void`, or none is left.
    pub fn closure(&mut self, closure: &'m Closure<V>) -> Result<(), CallError> {
        self.due(Data::Code)?;
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

    /// Refuses the address of `data` where none is due, or that of something else.
    ///
    /// # Errors
    ///
    /// If the next parameter is no pointer to such data, or none is left.
    fn due(&self, data: Data) -> Result<(), CallError> {
        let Some(expected) = self.function.signature.parameters().get(self.count) else {
            return if self.function.signature.takes_more() {
                Ok(())
            } else {
                Err(wrong_count(self.function, self.count + 1))
            };
        };
        match data.mismatch(expected) {
            None => Ok(()),
            Some(came) => {
                let expected = expected.clone();
                Err(wrong_type(self.function, self.count, ValueError { expected, came }))
            }
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
    /// [`TryCallError::NotCalled`], as [`run`](Self::run); [`TryCallError::Thrown`] with what an upcall threw.
    ///
    /// # Panics
    ///
    /// As [`ForeignCall::try_run`].
    #[inline(always)]
    #[track_caller]
    pub unsafe fn try_run(&mut self) -> Result<&Self, TryCallError<V::Exception>> {
        let prepared = self.begin()?;
        let target = self.target(prepared);
        // SAFETY: promised by the caller.
        match self.guard.try_run(|| unsafe { target.call() }) {
            Ok(word) => Ok(self.end(word)),
            Err(exception) => Err(TryCallError::Thrown(exception)),
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

    /// [`try_run`](Self::try_run), and C's `errno` as it was when the function returned.
    ///
    /// # Safety
    ///
    /// As for [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// As [`try_run`](Self::try_run).
    ///
    /// # Panics
    ///
    /// As [`ForeignCall::try_run`].
    #[inline(always)]
    #[track_caller]
    pub unsafe fn try_run_with_errno(&mut self) -> Result<(&Self, Errno), TryCallError<V::Exception>> {
        let prepared = self.begin()?;
        let target = self.target(prepared);
        // SAFETY: promised by the caller.
        let outcome = self.guard.try_run(|| unsafe { (target.call(), Errno::current()) });
        match outcome {
            Ok((word, errno)) => Ok((self.end(word), errno)),
            Err(exception) => Err(TryCallError::Thrown(exception)),
        }
    }

    /// What the last run gave: [`Value::Bytes`] for a struct. [`Value::Void`] before the first, and after one that ended with the error of an upcall.
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
        // Until the function has returned, and no upcall's error goes on in place of its result.
        self.has_run = false;
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
