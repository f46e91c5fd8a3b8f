//! Signatures, prepared once and shared: what libffi makes of them, and which of them need it.

use super::abi::Abi;
use super::types::{Extent, Kind, LARGEST, MOST, Type, TypeError};
use crate::arch::{ARGUMENT_REGISTERS, FIRST_FLOAT, FLOAT_REGISTERS, INTEGER_REGISTERS};
use core::cell::UnsafeCell;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::ptr;
use libffi::low::{self, ffi_cif, ffi_type, type_tag};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

/// The type of a C function, prepared for calls in either direction.
///
/// Signatures are cached for the process: two that are equal are one, and cloning one counts a reference. Made of text ([`parse`](Self::parse), [`Types`](super::Types)) or of types ([`new`](Self::new)).
///
/// # Examples
///
/// ```
/// use reentry::dynamic::{Abi, Scalar, Signature, Type};
///
/// let double = Type::Scalar(Scalar::Double);
/// let pow = Signature::new(Abi::C, double.clone(), vec![double.clone(), double])?;
/// assert_eq!(pow, Signature::parse("double (double, double)")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Signature(Arc<Prepared>);

/// What a signature says.
#[derive(PartialEq, Eq, Hash, Debug)]
struct Description {
    abi: Abi,
    result: Type,
    parameters: Box<[Type]>,
    /// How many parameters stand before the `...`, if there is one.
    fixed: Option<usize>,
}

/// A signature, ready to be called.
pub(super) struct Prepared {
    description: Arc<Description>,
    /// Written by `prepare`, and read by libffi ever after.
    cif: UnsafeCell<ffi_cif>,
    /// What `cif` points to.
    _types: Tree,
    extent: Extent,
    pub(super) parameters: Box<[Parameter]>,
    pub(super) result: Kind,
    /// Its bytes.
    pub(super) result_size: usize,
    /// The words that libffi may write the result to: pairs, since it writes registers.
    pub(super) result_words: usize,
    pub(super) path: Path,
    /// The words that the arguments take up.
    pub(super) words: usize,
}

// SAFETY: nothing in it changes once it is prepared; what the pointers in it point to is its own, or libffi's constants. libffi reads a prepared `ffi_cif`.
unsafe impl Send for Prepared {}
// SAFETY: as above.
unsafe impl Sync for Prepared {}

/// One parameter, to the machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter {
    pub(super) kind: Kind,
    /// Its first word among those of the arguments.
    pub(super) word: u16,
    /// Its bytes.
    pub(super) size: u32,
    /// Whether libffi is told of a pointer in its place; the word behind its own is for that.
    by_address: bool,
}

impl Parameter {
    /// Whether libffi passes, and gives, the address of the value's address. Never where no type is passed that way: then nothing is looked up.
    #[inline(always)]
    pub(super) fn is_by_address(&self) -> bool {
        cfg!(target_arch = "aarch64") && self.by_address
    }

    /// Whether it is one whose value is bytes, and so many.
    #[inline(always)]
    pub(super) fn takes(&self, bytes: &[u8]) -> bool {
        matches!(self.kind, Kind::Struct | Kind::LongDouble) && bytes.len() == self.size as usize
    }
}

/// How a function is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// Every argument in an integer register, and the result in one too, or none.
    Integers,
    /// Every argument in a register; the result is no struct.
    Registers,
    /// Through libffi.
    Libffi,
}

/// libffi's descriptions of structs.
#[derive(Default)]
struct Tree {
    structs: Vec<*mut ffi_type>,
    /// The lists of fields, and that of the parameters: each a box of so many.
    lists: Vec<(*mut *mut ffi_type, usize)>,
}

impl Tree {
    fn list(&mut self, elements: Vec<*mut ffi_type>) -> *mut *mut ffi_type {
        let list = Box::into_raw(elements.into_boxed_slice());
        self.lists.push((list.cast(), list.len()));
        list.cast()
    }

    fn describe(&mut self, ty: &Type) -> *mut ffi_type {
        let elements = match ty {
            Type::Struct(ty) => ty.fields().iter().map(|field| self.describe(field.ty())).collect(),
            // An array is passed as the struct of its elements.
            Type::Array(element, count) => vec![self.describe(element); *count],
            _ => return ty.kind().ffi_type(),
        };
        self.aggregate(elements)
    }

    /// On x86_64 a struct that holds a `long double` and nothing else is returned as that is, in a register of x87. libffi looks for it in others, and leaves x87's stack one deeper each time.
    fn describe_result(&mut self, abi: Abi, ty: &Type) -> *mut ffi_type {
        let in_x87 = cfg!(all(target_arch = "x86_64", unix)) && abi.is_native();
        if in_x87 && ty.is_long_double_alone() { Kind::LongDouble.ffi_type() } else { self.describe(ty) }
    }

    /// A parameter that C passes by the address of a copy is described as that address, and the words of the call are the copy. libffi (3.6.0) would make one, and put its address where one with
    /// the copy's alignment would go: in the wrong slot if that is the stack and the struct is aligned to 16 bytes.
    fn describe_parameter(&mut self, ty: &Type) -> *mut ffi_type {
        if ty.is_passed_by_address() { Kind::Pointer.ffi_type() } else { self.describe(ty) }
    }

    fn aggregate(&mut self, mut elements: Vec<*mut ffi_type>) -> *mut ffi_type {
        elements.push(ptr::null_mut());
        let elements = self.list(elements);
        // With a size of 0: libffi lays it out.
        let described = ffi_type { type_: type_tag::STRUCT, elements, ..ffi_type::default() };
        let described = Box::into_raw(Box::new(described));
        self.structs.push(described);
        described
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for described in self.structs.drain(..) {
            // SAFETY: made by `Box::into_raw`, and freed once.
            drop(unsafe { Box::from_raw(described) });
        }
        for (list, count) in self.lists.drain(..) {
            // SAFETY: made by `Box::into_raw` of a slice of so many, and freed once.
            drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(list, count)) });
        }
    }
}

/// The signatures that are in use, by what they say.
static CACHE: LazyLock<Mutex<Cache>> =
    LazyLock::new(|| Mutex::new(Cache { signatures: HashMap::new(), sweep_at: 64 }));

struct Cache {
    signatures: HashMap<Arc<Description>, Weak<Prepared>>,
    /// With so many, those that nobody uses are taken out.
    sweep_at: usize,
}

impl Cache {
    fn with<R>(f: impl FnOnce(&mut Self) -> R) -> R {
        // Each critical section leaves the map whole wherever it can unwind.
        f(&mut CACHE.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in a signature, or gives the equal one that another thread has taken in meanwhile.
    fn add(&mut self, prepared: Arc<Prepared>) -> Arc<Prepared> {
        if let Some(known) = self.signatures.get(&prepared.description).and_then(Weak::upgrade) {
            return known;
        }
        if self.signatures.len() >= self.sweep_at {
            // What is taken out may have been the last to use others: the functions it had pointers to.
            let mut before = usize::MAX;
            while self.signatures.len() < before {
                before = self.signatures.len();
                self.signatures.retain(|_, signature| signature.strong_count() > 0);
            }
            self.sweep_at = 64.max(2 * self.signatures.len());
        }
        self.signatures.insert(Arc::clone(&prepared.description), Arc::downgrade(&prepared));
        prepared
    }
}

/// No other thread uses the cache until the result is dropped.
#[cfg(all(unix, not(loom), not(miri)))]
pub(super) fn cache_held() -> impl Sized {
    CACHE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Signature {
    /// Makes a signature of types. An array among the parameters is taken for a pointer, as in C.
    ///
    /// # Errors
    ///
    /// What cannot be passed that way.
    pub fn new(abi: Abi, result: Type, parameters: Vec<Type>) -> Result<Self, TypeError> {
        Self::build(abi, result, parameters, None)
    }

    /// Makes a signature that ends in `...`: any arguments may follow those of `parameters`. In a call each has the type that C promotes its value to; see
    /// [`with_variadic`](Self::with_variadic) for other types.
    ///
    /// # Errors
    ///
    /// What cannot be passed that way.
    pub fn variadic(abi: Abi, result: Type, parameters: Vec<Type>) -> Result<Self, TypeError> {
        let fixed = parameters.len();
        Self::build(abi, result, parameters, Some(fixed))
    }

    /// This signature for calls that pass `types` for the `...`, in place of any that were named before. A signature without `...` is given back as it is.
    ///
    /// # Errors
    ///
    /// If C would promote one of the types, as it does `float` to `double` and `short` to `int`; see [`Type::promoted`].
    pub fn with_variadic(&self, types: &[Type]) -> Result<Self, TypeError> {
        let Some(fixed) = self.variadic_from() else { return Ok(self.clone()) };
        let parameters = [&self.parameters()[..fixed], types].concat();
        Self::build(self.abi(), self.result().clone(), parameters, Some(fixed))
    }

    /// Takes a signature from the cache, or prepares it.
    ///
    /// # Errors
    ///
    /// What cannot be passed that way.
    pub(super) fn build(
        abi: Abi,
        result: Type,
        parameters: Vec<Type>,
        fixed: Option<usize>,
    ) -> Result<Self, TypeError> {
        let parameters: Box<[Type]> = parameters.into_iter().map(Type::into_parameter).collect();
        if parameters.len() > MOST {
            return Err(TypeError::TooManyParameters { count: parameters.len() });
        }
        if parameters.contains(&Type::Void) {
            return Err(TypeError::Void("a parameter".into()));
        }
        if matches!(result, Type::Array(..)) {
            return Err(TypeError::ArrayResult);
        }
        if let Some(unpromoted) =
            parameters[fixed.unwrap_or(parameters.len())..].iter().find(|ty| ty.promoted() != **ty)
        {
            return Err(TypeError::Unpromoted(unpromoted.clone()));
        }
        let size = parameters.iter().map(Type::size).fold(result.size(), usize::saturating_add);
        if size > LARGEST {
            return Err(TypeError::TooLarge { size });
        }
        let parts = parameters.iter().chain([&result]).map(Type::extent);
        let extent = Extent::around(parts).check()?;
        let description = Arc::new(Description { abi, result, parameters, fixed });
        if let Some(known) = Cache::with(|cache| cache.signatures.get(&description).and_then(Weak::upgrade)) {
            return Ok(Self(known));
        }
        let prepared = Arc::new(Prepared::new(description, extent)?);
        Ok(Self(Cache::with(|cache| cache.add(prepared))))
    }

    /// The calling convention.
    #[must_use]
    pub fn abi(&self) -> Abi {
        self.0.description.abi
    }

    /// The type of the result.
    #[must_use]
    pub fn result(&self) -> &Type {
        &self.0.description.result
    }

    /// The types of the parameters, those that stand for `...` included.
    #[must_use]
    pub fn parameters(&self) -> &[Type] {
        &self.0.description.parameters
    }

    /// Whether it has a `...`.
    #[must_use]
    pub fn is_variadic(&self) -> bool {
        self.0.description.fixed.is_some()
    }

    /// How many parameters do not stand for `...`.
    #[must_use]
    pub fn fixed(&self) -> usize {
        self.variadic_from().unwrap_or(self.parameters().len())
    }

    /// Whether arguments may follow for which it names no type.
    pub(super) fn takes_more(&self) -> bool {
        self.variadic_from() == Some(self.parameters().len())
    }

    pub(super) fn variadic_from(&self) -> Option<usize> {
        self.0.description.fixed
    }

    /// Whether calls of functions with this signature load the machine's registers themselves, and do without libffi.
    #[must_use]
    pub fn is_in_registers(&self) -> bool {
        self.0.path != Path::Libffi
    }

    pub(super) fn extent(&self) -> Extent {
        self.0.extent
    }

    pub(super) fn prepared(&self) -> &Prepared {
        &self.0
    }
}

impl Prepared {
    /// Has libffi prepare a signature, and decides how its functions are reached.
    ///
    /// # Errors
    ///
    /// If libffi refuses it.
    fn new(description: Arc<Description>, extent: Extent) -> Result<Self, TypeError> {
        let Description { abi, result, parameters, fixed } = &*description;
        let raw_abi = abi.raw().ok_or(TypeError::UnsupportedAbi(*abi))?;
        let mut types = Tree::default();
        let (own_result, mut own) = (types.describe_result(*abi, result), Vec::new());
        for ty in parameters {
            own.push(types.describe_parameter(ty));
        }
        let (count, own) = (own.len(), types.list(own));
        let mut cif = ffi_cif::default();
        // SAFETY: `cif` is valid for writes, and what it keeps is in `types`, which it goes with.
        let status = unsafe {
            match fixed {
                None => low::prep_cif(&raw mut cif, raw_abi, count, own_result, own),
                Some(fixed) => low::prep_cif_var(&raw mut cif, raw_abi, *fixed, count, own_result, own),
            }
        };
        status.map_err(|error| {
            TypeError::Refused(match error {
                low::Error::Typedef => "it describes no type",
                low::Error::ArgType => "one of the types cannot be passed for `...`",
                _ => "the convention has no place for it",
            })
        })?;
        let described = core::iter::once(own_result).chain((0..count).map(|index| {
            // SAFETY: a list of `count`.
            unsafe { *own.add(index) }
        }));
        for (index, (ty, described)) in core::iter::once(result).chain(parameters).zip(described).enumerate()
        {
            if index > 0 && ty.is_passed_by_address() {
                continue;
            }
            // SAFETY: libffi's own, or in `types`.
            let (size, alignment) = unsafe { ((*described).size, usize::from((*described).alignment)) };
            if *ty != Type::Void && (ty.size(), ty.alignment()) != (size, alignment) {
                return Err(TypeError::Refused("it lays one of the structs out in another way than C does"));
            }
        }
        let kinds = || parameters.iter().map(Type::kind);
        let path = path(*abi, result.kind(), kinds(), fixed.is_some());
        let (mut integers, mut floats, mut end) = (0, FIRST_FLOAT, 0_usize);
        let parameters = parameters.iter().map(|ty| {
            let (kind, by_address) = (ty.kind(), ty.is_passed_by_address());
            let word = match path {
                Path::Integers | Path::Registers => {
                    let next = if kind.is_word() { &mut integers } else { &mut floats };
                    *next += 1;
                    *next - 1
                }
                Path::Libffi => {
                    let start = end.next_multiple_of(ty.alignment().div_ceil(8));
                    end = start + ty.size().div_ceil(8) + usize::from(by_address);
                    start
                }
            };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "all arguments together have no more than `LARGEST` bytes, and 24 each"
            )]
            let (word, size) = (word as u16, ty.size() as u32);
            Parameter { kind, word, size, by_address }
        });
        let parameters: Box<[Parameter]> = parameters.collect();
        let words = if path == Path::Libffi { end } else { ARGUMENT_REGISTERS };
        let result_words = (result.size().div_ceil(16) * 2).max(2);
        let result = result.kind();
        Ok(Self {
            result_size: description.result.size(),
            result_words,
            cif: UnsafeCell::new(cif),
            _types: types,
            extent,
            parameters,
            result,
            path,
            words,
            description,
        })
    }

    /// libffi's description of the call, which it only reads.
    pub(super) fn cif(&self) -> *mut ffi_cif {
        self.cif.get()
    }
}

/// Which way functions with a signature are reached.
fn path(abi: Abi, result: Kind, parameters: impl Iterator<Item = Kind>, variadic: bool) -> Path {
    // Apple passes what stands for `...` on the stack.
    if INTEGER_REGISTERS == 0 || !abi.is_native() || (variadic && cfg!(target_vendor = "apple")) {
        return Path::Libffi;
    }
    let (mut integers, mut floats) = (0, 0);
    for kind in parameters {
        match kind {
            Kind::F32 | Kind::F64 => floats += 1,
            kind if kind.is_word() => integers += 1,
            _ => return Path::Libffi,
        }
    }
    let in_registers = integers <= INTEGER_REGISTERS && floats <= FLOAT_REGISTERS;
    match result {
        Kind::Struct | Kind::LongDouble => Path::Libffi,
        _ if !in_registers => Path::Libffi,
        Kind::F32 | Kind::F64 => Path::Registers,
        // What may stand for `...` is known later.
        _ if floats > 0 || variadic => Path::Registers,
        _ => Path::Integers,
    }
}

/// Of equal signatures that exist at the same time the cache has one; so comparing looks at addresses, and takes no longer for an intricate one.
impl PartialEq for Signature {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Signature {}

impl Hash for Signature {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use super::super::types::Target;
    use super::{Abi, Cache, Signature, Type};

    #[test]
    fn signatures_that_nobody_uses_leave_the_cache_with_those_that_they_alone_used() {
        for chain in 0..400 {
            let mut innermost = Type::Enum(format!("chain {chain}").into());
            for _ in 0..30 {
                let signature = Signature::new(Abi::C, Type::Void, vec![innermost]).unwrap();
                innermost = Target::Function(signature).pointer(false);
            }
        }
        let kept = Cache::with(|cache| cache.signatures.len());
        assert!(kept < 1000, "{kept} of 12 000");
    }
}
