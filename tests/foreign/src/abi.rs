//! Callees and callers of every shape, which the build script generates (`abi.rs`), and C's word on types.
//!
//! Values pass through memory of the thread, field by field and without padding: x87's numbers have ten bytes there.

use core::ffi::{CStr, c_char, c_int, c_void};

/// What a thread's C functions have seen, and what they are to say.
#[derive(Debug)]
#[repr(C)]
pub struct Memory {
    seen: [u8; 1024],
    seen_length: usize,
    said: [u8; 1024],
}

/// A generated function.
#[derive(Debug)]
#[repr(C)]
pub struct Function {
    prototype: *const c_char,
    call: *const c_char,
    /// Writes its arguments to the thread's memory, and returns what it finds there.
    pub callee: unsafe extern "C" fn(),
    /// Calls a function of this type with arguments from the thread's memory, and writes the result there.
    pub caller: Option<unsafe extern "C" fn(callee: *const c_void)>,
}

/// A struct that the generated functions take and return.
#[derive(Debug)]
#[repr(C)]
pub struct Struct {
    declaration: *const c_char,
    /// C's `sizeof`.
    pub size: usize,
    /// C's `_Alignof`.
    pub alignment: usize,
    fields: usize,
    offsets: *const usize,
}

/// A scalar, as C has it.
#[derive(Debug)]
#[repr(C)]
pub struct Scalar {
    name: *const c_char,
    /// C's `sizeof`.
    pub size: usize,
    /// C's `_Alignof`.
    pub alignment: usize,
    is_signed: c_int,
}

// SAFETY: addresses of constants and of code.
unsafe impl Sync for Function {}
// SAFETY: as above.
unsafe impl Sync for Struct {}
// SAFETY: as above.
unsafe impl Sync for Scalar {}

unsafe extern "C" {
    safe fn foreign_abi_memory() -> *mut Memory;
    static foreign_abi_functions: Function;
    safe static foreign_abi_function_count: usize;
    static foreign_abi_structs: Struct;
    safe static foreign_abi_struct_count: usize;
    static foreign_abi_scalars: Scalar;
    safe static foreign_abi_scalar_count: usize;
    static foreign_abi_enums: *const c_char;
    safe static foreign_abi_enum_count: usize;
}

/// Every generated function.
#[must_use]
pub fn functions() -> &'static [Function] {
    // SAFETY: the start of an array of so many, which nobody writes to.
    unsafe { core::slice::from_raw_parts(&raw const foreign_abi_functions, foreign_abi_function_count) }
}

/// Every struct, each behind those it contains.
#[must_use]
pub fn structs() -> &'static [Struct] {
    // SAFETY: as above.
    unsafe { core::slice::from_raw_parts(&raw const foreign_abi_structs, foreign_abi_struct_count) }
}

/// Every scalar.
#[must_use]
pub fn scalars() -> &'static [Scalar] {
    // SAFETY: as above.
    unsafe { core::slice::from_raw_parts(&raw const foreign_abi_scalars, foreign_abi_scalar_count) }
}

/// The declarations of the enumerations that the functions and structs name.
pub fn enums() -> impl Iterator<Item = &'static str> {
    // SAFETY: as above.
    let texts = unsafe { core::slice::from_raw_parts(&raw const foreign_abi_enums, foreign_abi_enum_count) };
    texts.iter().map(|text| constant(*text))
}

/// What this thread's C functions have seen last.
#[must_use]
pub fn seen() -> Vec<u8> {
    // SAFETY: this thread's own, which no C function writes to now.
    let memory = unsafe { &*foreign_abi_memory() };
    memory.seen[..memory.seen_length].to_vec()
}

/// Chooses what this thread's C functions say from now on, and forgets what they have seen.
///
/// # Panics
///
/// If it is more than there is room for.
pub fn say(bytes: &[u8]) {
    // SAFETY: this thread's own, which no C function uses now.
    let memory = unsafe { &mut *foreign_abi_memory() };
    memory.said[..bytes.len()].copy_from_slice(bytes);
    memory.seen_length = 0;
}

/// Text that C has written down.
///
/// # Panics
///
/// If it is not ASCII; the generator writes nothing else.
fn constant(text: *const c_char) -> &'static str {
    // SAFETY: a string constant of the generated file.
    unsafe { CStr::from_ptr(text) }.to_str().expect("ASCII")
}

impl Function {
    /// Its declaration.
    #[must_use]
    pub fn prototype(&self) -> &'static str {
        constant(self.prototype)
    }

    /// Its declaration with the types behind `...` that it looks for; the same as [`prototype`](Self::prototype) if there is no `...`.
    #[must_use]
    pub fn call(&self) -> &'static str {
        constant(self.call)
    }
}

impl Struct {
    /// Its declaration.
    #[must_use]
    pub fn declaration(&self) -> &'static str {
        constant(self.declaration)
    }

    /// C's `offsetof` for each field.
    #[must_use]
    pub fn offsets(&self) -> &'static [usize] {
        // SAFETY: an array of so many, which nobody writes to.
        unsafe { core::slice::from_raw_parts(self.offsets, self.fields) }
    }
}

impl Scalar {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        constant(self.name)
    }

    /// Whether it holds numbers below zero.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.is_signed != 0
    }
}
