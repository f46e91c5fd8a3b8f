//! Where the arguments of a call lie, and how the function is reached that takes them.

use super::error::{CallError, wrong_count, wrong_type};
use crate::activation::{ForeignFrame, Scratch};
use crate::arch::{
    ARGUMENT_REGISTERS, ArgumentRegisters, FIRST_FLOAT, FLOAT_REGISTERS, INTEGER_REGISTERS,
    call_loading_integers, call_loading_registers,
};
use crate::dynamic::library::Function;
use crate::dynamic::signature::{Path, Prepared};
use crate::dynamic::types::{Kind, Type};
use crate::dynamic::value::{Value, ValueError};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use libffi::raw::ffi_call;
use std::sync::Arc;

/// How many arguments can stand for `...` in a call that does not name their types.
const MOST_EXTRAS: usize = 64;

/// Whether the pointers in the record's scratch are this call's, or what an older one has left there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Stale,
    Ours,
}

/// What stands for `...` in one call: kinds and words. In call memory.
struct Extras {
    count: usize,
    values: [(Kind, u64); MOST_EXTRAS],
}

/// The words for arguments in a record.
#[inline(always)]
pub(super) fn arguments(frame: &ForeignFrame) -> *mut u64 {
    // SAFETY: a field of the record's own scratch.
    unsafe { (&raw mut (*frame.scratch()).arguments).cast() }
}

/// The words for a result in a record.
#[inline(always)]
pub(super) fn place_of_result(frame: &ForeignFrame) -> *mut u64 {
    // SAFETY: a field of the record's own scratch.
    unsafe { (&raw mut (*frame.scratch()).result).cast() }
}

/// A record of a call whose cold half runs: its scratch is this call's.
pub(super) struct Cold<'m> {
    frame: &'m ForeignFrame,
}

impl<'m> Cold<'m> {
    #[inline(always)]
    pub(super) fn new(frame: &'m ForeignFrame, side: Side) -> Self {
        let cold = Self { frame };
        if side == Side::Stale {
            let scratch = cold.scratch();
            (scratch.extras, scratch.block, scratch.large_result) = (None, None, None);
        }
        cold
    }

    /// The record's scratch.
    #[expect(
        clippy::mut_from_ref,
        reason = "it is behind the record's cell, and each use ends before the next begins"
    )]
    fn scratch(&self) -> &mut Scratch {
        // SAFETY: one call at most uses an activation's scratch, on its own thread, and what this gives is used within one expression.
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
    pub(super) fn block(&self, prepared: &Prepared) -> *mut u64 {
        if let Some(block) = self.scratch().block {
            return block.as_ptr();
        }
        let block = self.memory(prepared.words + prepared.parameters.len());
        self.scratch().block = Some(block);
        block.as_ptr()
    }

    /// The arguments of the signature that [`extras`](Self::extras) has given.
    pub(super) fn named_block(&self) -> *mut u64 {
        self.scratch().named_block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    /// Call memory for a result that the record has no room for.
    #[cold]
    #[inline(never)]
    pub(super) fn large_result(&self, prepared: &Prepared) -> *mut u64 {
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
    pub(super) fn pass<'v>(
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
    pub(super) fn extras(&self, function: &Function, count: usize) -> Result<*const Prepared, CallError> {
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

/// Copies the bytes of a struct to its words: whole words one by one, which is less than a call of `memcpy` for the few that most have.
///
/// # Safety
///
/// `to` is valid for writes of so many bytes, and these do not lie there.
#[inline(always)]
pub(super) unsafe fn copy_bytes(bytes: &[u8], to: *mut u64) {
    let (words, rest) = bytes.as_chunks::<8>();
    if words.len() <= 4 && rest.is_empty() {
        for (index, word) in words.iter().enumerate() {
            // SAFETY: promised by the caller.
            unsafe { to.add(index).write(u64::from_ne_bytes(*word)) };
        }
    } else {
        // SAFETY: promised by the caller.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast::<u8>(), bytes.len()) };
    }
}

/// As much as the strictest C type asks for.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Aligned(#[expect(dead_code, reason = "it is memory")] [u64; 2]);

/// The word that has a scalar of `kind` in its first bytes, as C reads it there.
#[inline(always)]
pub(super) fn in_memory(kind: Kind, word: u64) -> u64 {
    if cfg!(target_endian = "big") { word << (64 - 8 * kind.size_of_scalar()) } else { word }
}

/// A call that is ready: plain addresses, for the foreign state.
pub(super) struct Target {
    pub(super) prepared: *const Prepared,
    pub(super) function: *const c_void,
    pub(super) way: usize,
    pub(super) words: *mut u64,
    pub(super) result: *mut u64,
}

impl Target {
    pub(super) const INTEGERS: usize = 0;
    pub(super) const REGISTERS: usize = 1;
    pub(super) const LIBFFI: usize = 2;

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
    pub(super) unsafe fn call(&self) -> u64 {
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
        #[expect(clippy::cast_ptr_alignment, reason = "the words of a record, which are aligned for it")]
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
            let mut argument = self.words.wrapping_add(parameter.word.into());
            if parameter.is_by_address() {
                let behind = argument.wrapping_add((parameter.size as usize).div_ceil(8));
                // SAFETY: the word behind the argument's own, which is there for this.
                unsafe { behind.cast::<*mut u64>().write(argument) };
                argument = behind;
            }
            // SAFETY: there is room for as many, and each argument's word is one of the words.
            unsafe { addresses.add(index).write(argument.cast()) };
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
