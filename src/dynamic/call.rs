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
        Call {
            guard: self,
            function,
            prepared: function.signature.prepared(),
            count: 0,
            extras: None,
            block: None,
            words: ArgumentRegisters([MaybeUninit::uninit(); ARGUMENT_REGISTERS]),
            result: ResultWords([MaybeUninit::uninit(); RESULT_WORDS]),
            large_result: None,
            has_run: false,
            named: None,
        }
    }
}

/// The words of a result that fit into the call; a larger one goes to call memory.
const RESULT_WORDS: usize = 8;

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
    /// What stands for `...`, where the signature does not name its types: call memory.
    extras: Option<NonNull<Extras>>,
    /// The arguments, where `words` does not hold them: call memory, of so many words and an address for each argument.
    block: Option<NonNull<u64>>,
    words: ArgumentRegisters,
    /// What the last run gave: a scalar as a word in the first, or the bytes of a struct.
    result: ResultWords,
    /// The bytes of a struct that does not fit there: call memory.
    large_result: Option<NonNull<u64>>,
    has_run: bool,
    /// The signature with the types of the last run's `...`, where the function's does not name them and libffi needs them.
    named: Option<Signature>,
}

#[repr(align(16))]
struct ResultWords([MaybeUninit<u64>; RESULT_WORDS]);

/// What stands for `...` in one call: kinds and words.
struct Extras {
    count: usize,
    values: [(Kind, u64); MOST_EXTRAS],
}

impl<'m, V: StackScanner> Call<'m, V> {
    /// The next parameter.
    #[inline(always)]
    fn next(&self) -> Option<Parameter> {
        self.prepared.parameters.get(self.count).copied()
    }

    /// Where the arguments lie.
    #[inline(always)]
    fn base(&mut self) -> *mut u64 {
        if self.prepared.words <= ARGUMENT_REGISTERS {
            self.words.0.as_mut_ptr().cast()
        } else {
            self.base_slow()
        }
    }

    #[cold]
    #[inline(never)]
    fn base_slow(&mut self) -> *mut u64 {
        let prepared = self.prepared;
        let guard = &mut self.guard;
        self.block.get_or_insert_with(|| words_in(guard, prepared.words + prepared.parameters.len())).as_ptr()
    }

    /// Writes the word of the next argument, a scalar.
    #[inline(always)]
    fn put(&mut self, parameter: Parameter, word: u64) {
        let base = self.base();
        // SAFETY: there are as many words as the signature needs, and this one is the argument's own.
        unsafe { base.add(parameter.word.into()).write(in_memory(parameter.kind, word)) };
        self.count += 1;
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
    pub fn value<'v>(&mut self, value: impl Into<Value<'v>>) -> Result<(), CallError> {
        let value = value.into();
        if let Some(parameter) = self.next()
            && let Some(word) = value.word(parameter.kind)
        {
            self.note(value);
            self.put(parameter, word);
            return Ok(());
        }
        self.value_slow(value)
    }

    /// Checked mode: the address in a pointer is looked at when the call runs.
    #[inline(always)]
    fn note(&mut self, value: Value<'_>) {
        if let Value::Pointer(pointer) = value {
            self.guard.note_argument(pointer.addr(), self.count);
        }
    }

    #[inline(never)]
    fn value_slow(&mut self, value: Value<'_>) -> Result<(), CallError> {
        let Some(parameter) = self.next() else { return self.extra(value) };
        let ty = &self.function.signature.parameters()[self.count];
        match value {
            Value::Bytes(bytes)
                if matches!(parameter.kind, Kind::Struct | Kind::LongDouble) && bytes.len() == ty.size() =>
            {
                let to = self.base().wrapping_add(parameter.word.into()).cast::<u8>();
                // SAFETY: the argument's own words, which hold so many bytes.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
                self.count += 1;
                Ok(())
            }
            _ => Err(self.wrong_type(ValueError::new(ty, value))),
        }
    }

    /// Takes a value for which no parameter is left.
    #[cold]
    #[inline(never)]
    fn extra(&mut self, value: Value<'_>) -> Result<(), CallError> {
        let signature = &self.function.signature;
        // A signature that names the types of its `...` takes those and no more.
        if signature.variadic_from() != Some(signature.parameters().len()) {
            self.count += 1;
            let wrong = self.wrong_count();
            self.count -= 1;
            return Err(wrong);
        }
        let (function, index) = (Arc::clone(&self.function.name), self.count);
        let refuse = |reason: String| Err(CallError::Variadic { function, index, reason });
        let kind = value.variadic_kind();
        let Some((kind, word)) = kind.and_then(|kind| Some((kind, value.word(kind)?))) else {
            return refuse(format!("{value} has no C type of its own"));
        };
        let guard = &mut self.guard;
        let mut extras = *self.extras.get_or_insert_with(|| {
            NonNull::from(
                guard.arena().alloc_with(|| Extras { count: 0, values: [(Kind::Void, 0); MOST_EXTRAS] }),
            )
        });
        // SAFETY: call memory, which nobody else uses.
        let extras = unsafe { extras.as_mut() };
        let Some(place) = extras.values.get_mut(extras.count) else {
            return refuse(format!("{MOST_EXTRAS} have been passed"));
        };
        *place = (kind, word);
        extras.count += 1;
        self.note(value);
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
        self.pass(argument.as_ptr().cast());
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
        self.pass(argument.as_ptr().cast());
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
        self.pass(argument.as_ptr().cast());
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
        self.pass(values.as_ptr().cast_mut().cast());
        Ok(())
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
        self.pass(pointer);
        Ok(pointer)
    }

    fn declare(&mut self, reference: V::Ref, plan: Plan) -> Result<*mut c_void, ArgumentError> {
        let guard = &mut self.guard;
        match plan {
            Plan::Root => return guard.try_root(reference).map(|root| Root::slot(&root).cast()),
            Plan::RootUntilFirstUpcall => {
                return guard.root_until_first_upcall(reference).map(|slot| slot.as_ptr().cast());
            }
            _ => {}
        }
        // Before it is pinned: an argument that is refused leaves nothing behind.
        let bytes = guard.vm().bytes(reference).ok_or(ArgumentError::NoBytes);
        match plan {
            Plan::TransitivePin => guard.pin_transitively(reference).map(drop)?,
            Plan::PinUntilFirstUpcall => guard.pin_until_first_upcall(reference).map(drop)?,
            _ => guard.pin(reference).map(drop)?,
        }
        Ok(bytes?.as_ptr().cast())
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
        self.pass(closure.code().cast_mut());
        Ok(())
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
                Err(self.wrong_type(ValueError { expected, came: what.to_owned() }))
            }
            None if self.function.signature.variadic_from() == Some(self.prepared.parameters.len()) => Ok(()),
            None => Err(CallError::WrongCount {
                function: Arc::clone(&self.function.name),
                expected: self.prepared.parameters.len(),
                or_more: false,
                came: self.count + 1,
                signature: self.function.signature.clone(),
            }),
        }
    }

    /// Passes an address that [`due`](Self::due) has let through.
    fn pass(&mut self, address: *mut c_void) {
        let passed = match self.next() {
            Some(parameter) => {
                self.put(parameter, address.expose_provenance() as u64);
                Ok(())
            }
            None => self.extra(Value::Pointer(address)),
        };
        debug_assert_eq!(passed, Ok(()), "it was due");
    }

    #[cold]
    #[inline(never)]
    fn wrong_type(&self, error: ValueError) -> CallError {
        CallError::WrongType {
            function: Arc::clone(&self.function.name),
            index: self.count,
            error,
            signature: self.function.signature.clone(),
        }
    }

    #[cold]
    #[inline(never)]
    fn wrong_count(&self) -> CallError {
        CallError::WrongCount {
            function: Arc::clone(&self.function.name),
            expected: self.prepared.parameters.len(),
            or_more: self.function.signature.variadic_from() == Some(self.prepared.parameters.len()),
            came: self.count,
            signature: self.function.signature.clone(),
        }
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
    /// [`CallError::WrongCount`], if arguments are missing. Nothing has been called.
    ///
    /// # Panics
    ///
    /// As [`ForeignCall::run`].
    #[inline(always)]
    #[track_caller]
    pub unsafe fn run(&mut self) -> Result<&Self, CallError> {
        let target = self.begin()?;
        // SAFETY: promised by the caller.
        let word = self.guard.run(|| unsafe { target.call() });
        Ok(self.end(target.path, word))
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
        let target = self.begin()?;
        // SAFETY: promised by the caller.
        match self.guard.try_run(|| unsafe { target.call() }) {
            Ok(word) => Ok(Ok(self.end(target.path, word))),
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
        let target = self.begin()?;
        // SAFETY: promised by the caller.
        let (word, errno) = self.guard.run_with_errno(|| unsafe { target.call() });
        Ok((self.end(target.path, word), errno))
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
            return self.bytes_of_result();
        }
        // SAFETY: the run has written it: `end`, or libffi.
        Value::of_word(kind, unsafe { self.result.0[0].assume_init() })
    }

    /// Makes ready for a run, and forgets the arguments.
    #[inline(always)]
    fn begin(&mut self) -> Result<Target, CallError> {
        if self.count != self.prepared.parameters.len() {
            return self.begin_slow();
        }
        self.count = 0;
        let (prepared, function) = (self.prepared, self.function.address);
        let words = self.base();
        let result = if prepared.path == Path::Libffi { self.place_of_result() } else { ptr::null_mut() };
        Ok(Target { prepared, function, path: prepared.path, words, result })
    }

    /// [`begin`](Self::begin) with more or fewer arguments than the signature names.
    #[cold]
    #[inline(never)]
    fn begin_slow(&mut self) -> Result<Target, CallError> {
        let Some(extras) = self.extras.filter(|_| self.count > self.prepared.parameters.len()) else {
            return Err(self.wrong_count());
        };
        // SAFETY: call memory, which nobody else uses.
        let extras = unsafe { &mut *extras.as_ptr() };
        let count = core::mem::take(&mut extras.count);
        let values = &extras.values[..count];
        self.count = 0;
        let function = self.function.address;
        if self.prepared.path != Path::Libffi && self.extras_in_registers(values) {
            let (prepared, words) = (self.prepared, self.base());
            return Ok(Target { prepared, function, path: Path::Registers, words, result: ptr::null_mut() });
        }
        let types: Vec<Type> = values.iter().map(|(kind, _)| kind.variadic_type()).collect();
        let signature =
            self.function.signature.with_variadic(&types).map_err(|error| CallError::Variadic {
                function: Arc::clone(&self.function.name),
                index: self.prepared.parameters.len(),
                reason: error.to_string(),
            })?;
        let from = self.base();
        let prepared = signature.prepared();
        let words = words_in(&mut self.guard, prepared.words + prepared.parameters.len()).as_ptr();
        let fixed = self.prepared.parameters.iter().zip(self.function.signature.parameters());
        for ((old, ty), new) in fixed.zip(&prepared.parameters) {
            let (old, new) = (from.wrapping_add(old.word.into()), words.wrapping_add(new.word.into()));
            // SAFETY: both are the argument's own words, in the old place and in the new, and hold as many bytes as its type has.
            unsafe { ptr::copy_nonoverlapping(old.cast::<u8>(), new.cast::<u8>(), ty.size()) };
        }
        for ((kind, word), new) in values.iter().zip(&prepared.parameters[self.prepared.parameters.len()..]) {
            // SAFETY: the argument's own word.
            unsafe { words.add(new.word.into()).write(in_memory(*kind, *word)) };
        }
        let (path, prepared) = (prepared.path, ptr::from_ref(prepared));
        self.named = Some(signature);
        Ok(Target { prepared, function, path, words, result: self.place_of_result() })
    }

    /// Writes what stands for `...` behind the other arguments, if there are registers for all of it.
    fn extras_in_registers(&mut self, values: &[(Kind, u64)]) -> bool {
        let fixed = self.prepared.parameters.iter().map(|parameter| parameter.kind);
        let (mut integer, mut float) = (0, FIRST_FLOAT);
        fixed.for_each(|kind| *if kind.is_word() { &mut integer } else { &mut float } += 1);
        let base = self.base();
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

    /// Where libffi writes the result: no smaller than what it writes at least, and in whole words.
    fn place_of_result(&mut self) -> *mut u64 {
        let words = self.result_words();
        if words <= RESULT_WORDS {
            return self.result.0.as_mut_ptr().cast();
        }
        let guard = &mut self.guard;
        self.large_result.get_or_insert_with(|| words_in(guard, words)).as_ptr()
    }

    fn result_words(&self) -> usize {
        self.function.signature.result().size().div_ceil(16) * 2
    }

    /// `path` is the way the call has gone: with arguments for `...` it need not be that of the function's own signature.
    #[inline(always)]
    fn end(&mut self, path: Path, word: u64) -> &Self {
        if path != Path::Libffi {
            self.result.0[0].write(word);
        }
        self.has_run = true;
        self
    }

    #[inline(never)]
    fn bytes_of_result(&self) -> Value<'_> {
        let start = match self.large_result {
            Some(large) => large.as_ptr().cast_const().cast(),
            None => self.result.0.as_ptr().cast(),
        };
        let size = self.function.signature.result().size();
        // SAFETY: libffi has written so many bytes there: the call has run, and a struct comes through libffi.
        Value::Bytes(unsafe { core::slice::from_raw_parts(start, size) })
    }
}

/// Words of call memory, aligned for everything that travels in them.
fn words_in<V: StackScanner>(guard: &mut ForeignCall<'_, V>, words: usize) -> NonNull<u64> {
    let pairs = words.div_ceil(2);
    let memory: &mut [Aligned] = guard.arena().alloc_slice_fill_with(pairs, |_| Aligned([0; 2]));
    NonNull::from(memory).cast()
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
    path: Path,
    words: *mut u64,
    result: *mut u64,
}

impl Target {
    /// Calls the function. Gives its result as a word, or writes it to `result` if the way is through libffi.
    ///
    /// # Safety
    ///
    /// What `begin` has written down is there still, and the function may be called with these arguments.
    ///
    /// # Panics
    ///
    /// Never: no exception leaves the function.
    #[inline(always)]
    #[expect(ffi_unwind_calls, reason = "the routines leave no frame; that no exception passes is promised")]
    unsafe fn call(&self) -> u64 {
        let registers = self.words.cast_const().cast::<ArgumentRegisters>();
        // SAFETY: all that follows: the words hold the arguments as the signature places them, and the function's type is promised. A floating-point result comes back in another register, so the
        // routine is called as a function that returns one.
        unsafe {
            match self.path {
                Path::Integers => call_loading_integers(registers, self.function),
                Path::Registers => match (*self.prepared).result {
                    Kind::F64 => as_double(call_loading_registers)(registers, self.function).to_bits(),
                    Kind::F32 => as_float(call_loading_registers)(registers, self.function).to_bits().into(),
                    _ => call_loading_registers(registers, self.function),
                },
                Path::Libffi => {
                    self.call_through_libffi();
                    0
                }
            }
        }
    }

    /// # Safety
    ///
    /// As for [`call`](Self::call).
    #[inline(never)]
    unsafe fn call_through_libffi(&self) {
        // SAFETY: the signature lives as long as its function, or is kept by the call.
        let prepared = unsafe { &*self.prepared };
        let count = prepared.parameters.len();
        let mut few = [ptr::null_mut::<c_void>(); ARGUMENT_REGISTERS];
        let addresses = if count <= few.len() {
            few.as_mut_ptr()
        } else {
            // More arguments have more words than fit in the call; then there is room for their addresses behind them.
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
        // What is smaller than a register comes as one, and is read as the word it is on every machine.
        if prepared.result == Kind::F32 {
            // SAFETY: libffi has written a `float`.
            unsafe { self.result.write(self.result.cast::<u32>().read().into()) };
        } else if size_of::<usize>() < 8 && prepared.result.is_word() && prepared.result.size_of_scalar() < 8
        {
            // SAFETY: libffi has written a machine word.
            unsafe { self.result.write(self.result.cast::<usize>().read() as u64) };
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
