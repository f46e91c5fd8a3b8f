//! Shared libraries, and the functions in them.

use super::signature::Signature;
use super::types::{Type, TypeError};
use crate::foreign_function::NullFunction;
use core::ffi::c_void;
use core::fmt;
use core::panic::Location;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

/// A shared library, loaded for as long as this, a clone of it or a function of it exists.
///
/// # Examples
///
/// ```
/// use reentry::World;
/// use reentry::dynamic::{Library, Signature, Value};
/// use reentry::testkit::TestVm;
///
/// // What the process has loaded already: the C library above all.
/// let process = Library::this_process();
/// let abs = process.function("abs", &Signature::parse("int (int)")?)?;
///
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// let mut call = mutator.foreign_call().dynamic(&abs);
/// call.value(-3)?;
/// // SAFETY: the signature is that of `abs`.
/// assert_eq!(unsafe { call.run() }?.result(), Value::I32(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Library {
    library: Arc<libloading::Library>,
    name: Arc<str>,
}

impl Library {
    /// Loads a library, by path or by the name the system looks up.
    ///
    /// This blocks, and runs constructors that may call in. A managed thread calls it inside
    /// [`ForeignCall::run`](crate::ForeignCall::run): see [`guide::dynamic`](crate::guide::dynamic).
    ///
    /// # Safety
    ///
    /// The library's initialisers run, and its finalisers when it is unloaded: both are foreign code that may do anything.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub unsafe fn open(path: impl AsRef<OsStr>) -> Result<Self, LibraryError> {
        let path = path.as_ref();
        // SAFETY: promised by the caller.
        match unsafe { libloading::Library::new(path) } {
            Ok(library) => Ok(Self { library: Arc::new(library), name: path.to_string_lossy().into() }),
            Err(error) => Err(LibraryError { path: path.into(), reason: said(&error) }),
        }
    }

    /// What the process is made of: its own symbols, and those of all libraries it was linked with.
    ///
    /// # Panics
    ///
    /// If the system cannot give a handle to the process.
    #[cfg(unix)]
    #[must_use]
    pub fn this_process() -> Self {
        let library = libloading::os::unix::Library::this();
        Self { library: Arc::new(library.into()), name: "this process".into() }
    }

    /// Looks a function up.
    ///
    /// Whether it has this signature nobody can tell: that is promised when it is [called](super::Call::run).
    ///
    /// # Errors
    ///
    /// If the library has no such symbol, or it is null.
    pub fn function(&self, name: &str, signature: &Signature) -> Result<Function, SymbolError> {
        // SAFETY: of the symbol only its address is used.
        let symbol = unsafe { self.library.get::<*const c_void>(name) };
        let unknown =
            |reason| SymbolError { symbol: name.to_owned(), library: self.name.to_string(), reason };
        let symbol = symbol.map_err(|error| unknown(said(&error)))?;
        // SAFETY: the function that is made of it holds the library.
        let address =
            unsafe { symbol.try_as_raw_ptr() }.ok_or_else(|| unknown("it has no address".to_owned()))?;
        let address = address.cast_const();
        if address.is_null() {
            return Err(unknown("it is a weak symbol that nothing defines".to_owned()));
        }
        Ok(Function {
            address,
            signature: signature.clone(),
            name: name.into(),
            _library: Some(self.clone()),
        })
    }
}

/// What the system says of an error, with what stands behind it.
fn said(error: &dyn core::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        source = error.source();
    }
    said
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Library").field(&self.name).finish()
    }
}

/// A library that could not be loaded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the library {} cannot be loaded: {reason}", path.display())]
pub struct LibraryError {
    /// What was asked for.
    pub path: PathBuf,
    /// What the system says.
    pub reason: String,
}

/// A symbol that could not be made a function.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{symbol}` is not in {library}: {reason}")]
pub struct SymbolError {
    /// The symbol.
    pub symbol: String,
    /// The library.
    pub library: String,
    /// What the system says.
    pub reason: String,
}

/// A C function with a signature that is known at run time.
///
/// Called through [`ForeignCall::dynamic`](crate::ForeignCall::dynamic).
#[derive(Clone)]
pub struct Function {
    pub(super) address: *const c_void,
    pub(super) signature: Signature,
    pub(super) name: Arc<str>,
    _library: Option<Library>,
}

// SAFETY: the address of code, which all threads see alike.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Makes a function of an address: one that C gave, or [`Closure::code`](super::Closure::code). `name` is for errors.
    ///
    /// # Errors
    ///
    /// If the address is null.
    #[track_caller]
    pub fn new(address: *const c_void, name: &str, signature: &Signature) -> Result<Self, NullFunction> {
        if address.is_null() {
            return Err(NullFunction { site: Location::caller() });
        }
        Ok(Self { address, signature: signature.clone(), name: name.into(), _library: None })
    }

    /// This function, for calls that pass `types` for the `...` of its signature: see [`Signature::with_variadic`].
    ///
    /// # Errors
    ///
    /// As [`Signature::with_variadic`].
    pub fn with_variadic(&self, types: &[Type]) -> Result<Self, TypeError> {
        Ok(Self { signature: self.signature.with_variadic(types)?, ..self.clone() })
    }

    /// Its signature.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> *const c_void {
        self.address
    }
}

/// A declaration of the function.
impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.signature.declare(f, &self.name)
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({self}, {:p})", self.address)
    }
}
