//! C types, as a program that runs declares them.

use super::signature::Signature;
use core::ffi::{c_char, c_int, c_long, c_longlong, c_short};
use core::fmt;
use libffi::low::{ffi_type, types};
use std::sync::Arc;

/// A C type.
///
/// Made by parsing C ([`Types`](super::Types), [`Signature::parse`]) or by hand. Two types are equal if C would call them the same: `size_t` and `unsigned long` are not, where both have 64 bits.
///
/// # Examples
///
/// ```
/// use reentry::dynamic::{Scalar, Type, Types};
///
/// let point = Types::new().parse("struct point { double x; double y; }")?;
/// assert_eq!((point.size(), point.alignment()), (16, 8));
/// assert_eq!(Types::new().parse("size_t")?, Type::Scalar(Scalar::SizeT));
/// # Ok::<(), reentry::dynamic::SignatureError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Type {
    /// `void`: the result of a function without one, or what a pointer points to.
    Void,
    /// A number, or a truth value.
    Scalar(Scalar),
    /// An enumeration, by its tag. Passed as an `int`.
    Enum(Arc<str>),
    /// A pointer.
    Pointer(Arc<Pointee>),
    /// A struct, by value.
    Struct(Arc<Struct>),
    /// An array in a struct. As a parameter it is a pointer, as in C.
    Array(Arc<Type>, usize),
}

/// What a pointer points to. For the reader, and for the check of closures: to C every pointer is the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pointee {
    /// Whether it is declared `const`.
    pub constant: bool,
    /// What it is.
    pub target: Target,
}

/// See [`Pointee`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Target {
    /// A value of a type.
    Type(Type),
    /// A struct or union that is known by name alone: `struct sqlite3`.
    Named(Arc<str>),
    /// A function.
    Function(Signature),
}

/// How deep a type nests, whatever it is made of, and of how many parts it is, written out.
///
/// Types share what they are made of, so that a short text can declare one that would fill the memory when it is printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Extent {
    depth: u32,
    parts: u32,
}

impl Extent {
    /// What has these parts.
    pub(super) fn around(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut whole = Self { depth: 0, parts: 1 };
        for part in parts {
            whole.depth = whole.depth.max(part.depth.saturating_add(1));
            whole.parts = whole.parts.saturating_add(part.parts);
        }
        whole
    }

    /// # Errors
    ///
    /// If it is too much.
    pub(super) fn check(self) -> Result<Self, TypeError> {
        if self.depth > MOST_LAYERS {
            Err(TypeError::TooDeep)
        } else if self.parts > MOST_PARTS {
            Err(TypeError::TooIntricate)
        } else {
            Ok(self)
        }
    }
}

/// How deep a type may nest, pointers and functions counted.
const MOST_LAYERS: u32 = 4 * DEEPEST as u32;

/// How many parts a type may have, written out.
const MOST_PARTS: u32 = 20_000;

impl Target {
    pub(super) fn pointer(self, constant: bool) -> Type {
        Type::Pointer(Arc::new(Pointee { constant, target: self }))
    }
}

macro_rules! scalars {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $kind:expr;)*) => {
        /// C's numbers, and `_Bool`, by the names C has for them.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum Scalar {
            $($(#[$doc])* $variant,)*
        }

        impl Scalar {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in C.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            pub(super) const fn kind(self) -> Kind {
                match self {
                    $(Self::$variant => $kind,)*
                }
            }
        }
    };
}
scalars! {
    /// `_Bool`, which `<stdbool.h>` calls `bool`.
    Bool = "_Bool", Kind::Bool;
    /// `char`, signed or not as the platform has it.
    Char = "char", Kind::integer(size_of::<c_char>(), c_char::MIN != 0);
    /// `signed char`.
    SChar = "signed char", Kind::I8;
    /// `unsigned char`.
    UChar = "unsigned char", Kind::U8;
    /// `short`.
    Short = "short", Kind::integer(size_of::<c_short>(), true);
    /// `unsigned short`.
    UShort = "unsigned short", Kind::integer(size_of::<c_short>(), false);
    /// `int`.
    Int = "int", Kind::integer(size_of::<c_int>(), true);
    /// `unsigned int`.
    UInt = "unsigned int", Kind::integer(size_of::<c_int>(), false);
    /// `long`.
    Long = "long", Kind::integer(size_of::<c_long>(), true);
    /// `unsigned long`.
    ULong = "unsigned long", Kind::integer(size_of::<c_long>(), false);
    /// `long long`.
    LongLong = "long long", Kind::integer(size_of::<c_longlong>(), true);
    /// `unsigned long long`.
    ULongLong = "unsigned long long", Kind::integer(size_of::<c_longlong>(), false);
    /// `int8_t`.
    Int8 = "int8_t", Kind::I8;
    /// `uint8_t`.
    UInt8 = "uint8_t", Kind::U8;
    /// `int16_t`.
    Int16 = "int16_t", Kind::I16;
    /// `uint16_t`.
    UInt16 = "uint16_t", Kind::U16;
    /// `int32_t`.
    Int32 = "int32_t", Kind::I32;
    /// `uint32_t`.
    UInt32 = "uint32_t", Kind::U32;
    /// `int64_t`.
    Int64 = "int64_t", Kind::I64;
    /// `uint64_t`.
    UInt64 = "uint64_t", Kind::U64;
    /// `size_t`.
    SizeT = "size_t", Kind::integer(size_of::<usize>(), false);
    /// `ssize_t`.
    SSizeT = "ssize_t", Kind::integer(size_of::<isize>(), true);
    /// `ptrdiff_t`.
    PtrDiff = "ptrdiff_t", Kind::integer(size_of::<isize>(), true);
    /// `intptr_t`.
    IntPtr = "intptr_t", Kind::integer(size_of::<isize>(), true);
    /// `uintptr_t`.
    UIntPtr = "uintptr_t", Kind::integer(size_of::<usize>(), false);
    /// `intmax_t`.
    IntMax = "intmax_t", Kind::I64;
    /// `uintmax_t`.
    UIntMax = "uintmax_t", Kind::U64;
    /// `wchar_t`.
    WChar = "wchar_t", Kind::integer(size_of::<libc::wchar_t>(), libc::wchar_t::MIN != 0);
    /// `float`.
    Float = "float", Kind::F32;
    /// `double`.
    Double = "double", Kind::F64;
    /// `long double`, which Rust has no type for: its values are bytes.
    LongDouble = "long double", Kind::LongDouble;
}

/// What a type is to the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Void,
    Bool,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
    LongDouble,
    Pointer,
    Struct,
}

impl Kind {
    /// The integer of a size in bytes.
    ///
    /// # Panics
    ///
    /// If C has none: when this crate is compiled.
    const fn integer(size: usize, signed: bool) -> Self {
        match (size, signed) {
            (1, true) => Self::I8,
            (1, false) => Self::U8,
            (2, true) => Self::I16,
            (2, false) => Self::U16,
            (4, true) => Self::I32,
            (4, false) => Self::U32,
            (8, true) => Self::I64,
            (8, false) => Self::U64,
            _ => panic!("C has no such integer"),
        }
    }

    /// libffi's description, where it has one of its own.
    pub(super) fn ffi_type(self) -> *mut ffi_type {
        match self {
            Self::Void | Self::Struct => &raw mut types::void,
            Self::Bool | Self::U8 => &raw mut types::uint8,
            Self::I8 => &raw mut types::sint8,
            Self::I16 => &raw mut types::sint16,
            Self::U16 => &raw mut types::uint16,
            Self::I32 => &raw mut types::sint32,
            Self::U32 => &raw mut types::uint32,
            Self::I64 => &raw mut types::sint64,
            Self::U64 => &raw mut types::uint64,
            Self::F32 => &raw mut types::float,
            Self::F64 => &raw mut types::double,
            Self::LongDouble => &raw mut types::longdouble,
            Self::Pointer => &raw mut types::pointer,
        }
    }

    /// Size and alignment in bytes of all but a struct.
    fn layout(self) -> (usize, usize) {
        if matches!(self, Self::Void | Self::Struct) {
            return (0, 1);
        }
        // SAFETY: one of libffi's own descriptions, which nobody writes to.
        let described = unsafe { &*self.ffi_type() };
        (described.size, described.alignment.into())
    }

    /// The bytes of a scalar.
    pub(super) fn size_of_scalar(self) -> usize {
        self.layout().0
    }

    /// The C type of a promoted value.
    pub(super) fn variadic_type(self) -> Type {
        match self {
            Self::U32 => Type::Scalar(Scalar::UInt32),
            Self::I64 => Type::Scalar(Scalar::Int64),
            Self::U64 => Type::Scalar(Scalar::UInt64),
            Self::F64 => Type::Scalar(Scalar::Double),
            Self::Pointer => Type::pointer(),
            _ => Type::Scalar(Scalar::Int),
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::LongDouble)
    }

    /// Whether it travels in an integer register.
    pub(super) fn is_word(self) -> bool {
        matches!(
            self,
            Self::Bool
                | Self::I8
                | Self::U8
                | Self::I16
                | Self::U16
                | Self::I32
                | Self::U32
                | Self::I64
                | Self::U64
                | Self::Pointer
        )
    }
}

/// A struct: its fields, and where they lie.
///
/// # Examples
///
/// ```
/// use reentry::dynamic::{Type, Types, Value};
///
/// let Type::Struct(tm) = Types::new().parse("struct { char c; int n[2]; }")? else { unreachable!() };
/// assert_eq!((tm.size(), tm.field("n").unwrap().offset()), (12, 4));
/// let mut bytes = vec![0; tm.size()];
/// tm.field("c").unwrap().write(&mut bytes, Value::from(7_i8)).unwrap();
/// assert_eq!(tm.field("c").unwrap().read(&bytes), Ok(Value::from(7_i8)));
/// # Ok::<(), reentry::dynamic::SignatureError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Struct {
    pub(super) tag: Option<Arc<str>>,
    pub(super) fields: Box<[Field]>,
    pub(super) size: usize,
    pub(super) alignment: usize,
    pub(super) extent: Extent,
}

/// A field of a [`Struct`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Field {
    pub(super) name: Arc<str>,
    pub(super) ty: Type,
    pub(super) offset: usize,
}

impl Field {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its type.
    #[must_use]
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Where it begins, in bytes from the start of the struct.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }
}

/// What a type cannot be used for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TypeError {
    /// A struct without a field.
    #[error("a struct without fields has no size in C; give it a field, or pass a pointer to it")]
    EmptyStruct,
    /// An array without elements.
    #[error(
        "`{0}` is an array of no elements; leave it out, and pass a pointer to the struct if it ends with one"
    )]
    EmptyArray(Arc<str>),
    /// A field or element of type `void`.
    #[error("`{0}` cannot be `void`; only a result can")]
    Void(Arc<str>),
    /// A value of the type is larger than the crate passes by value.
    #[error("the type has {size} bytes, and {LARGEST} at most are passed by value; pass a pointer to it")]
    TooLarge {
        /// Its size in bytes, as far as it was added up.
        size: usize,
    },
    /// Types inside one another, too deep.
    #[error("types are nested more than {DEEPEST} deep; simplify the declaration")]
    TooDeep,
    /// A type of too many parts, each of which may have been declared by itself.
    #[error("written out, the type has more than {MOST_PARTS} parts; declare pointers in it as `void*`")]
    TooIntricate,
    /// More parameters than the crate passes.
    #[error("{count} parameters are more than the {MOST} that are passed; pass a pointer to a struct")]
    TooManyParameters {
        /// How many there are.
        count: usize,
    },
    /// An array as a result.
    #[error("a function cannot return an array; let it return a struct that holds one, or a pointer")]
    ArrayResult,
    /// libffi does not take the signature.
    #[error("libffi refuses the signature under this calling convention: {0}")]
    Refused(&'static str),
    /// A calling convention that this target does not have.
    #[error("this target has no calling convention `{0}`; it has {list}", list = super::abi::supported())]
    UnsupportedAbi(super::Abi),
    /// A value that is passed for `...` in a way C cannot.
    #[error("`{0}` cannot be passed for `...`: C promotes it; declare the type it is promoted to")]
    Unpromoted(Type),
}

/// The most bytes that are passed by value: a callee's stack frame must hold them.
pub(super) const LARGEST: usize = 1 << 16;

/// How deep types nest.
pub(super) const DEEPEST: usize = 32;

/// The most parameters.
pub(super) const MOST: usize = 255;

impl Struct {
    /// Lays the fields out as C does.
    ///
    /// # Errors
    ///
    /// If there is no field, one has no size, or together they are too large.
    pub fn new(tag: Option<&str>, fields: Vec<(Arc<str>, Type)>) -> Result<Self, TypeError> {
        if fields.is_empty() {
            return Err(TypeError::EmptyStruct);
        }
        let (mut end, mut alignment) = (0_usize, 1);
        let mut laid = Vec::with_capacity(fields.len());
        for (name, ty) in fields {
            if ty == Type::Void {
                return Err(TypeError::Void(name));
            }
            if ty.size() == 0 {
                return Err(TypeError::EmptyArray(name));
            }
            if ty.depth() >= DEEPEST {
                return Err(TypeError::TooDeep);
            }
            let offset = end.next_multiple_of(ty.alignment());
            end = offset.saturating_add(ty.size());
            if end > LARGEST {
                return Err(TypeError::TooLarge { size: end });
            }
            alignment = alignment.max(ty.alignment());
            laid.push(Field { name, ty, offset });
        }
        let size = end.next_multiple_of(alignment);
        let extent = Extent::around(laid.iter().map(|field| field.ty.extent())).check()?;
        Ok(Self { tag: tag.map(Arc::from), fields: laid.into(), size, alignment, extent })
    }

    /// Its tag, if it has one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Its fields, in order.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The field of this name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name() == name)
    }

    /// Its size in bytes, with what fills it up.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Its alignment in bytes.
    #[must_use]
    pub fn alignment(&self) -> usize {
        self.alignment
    }
}

impl Type {
    /// A `void*`.
    #[must_use]
    pub fn pointer() -> Self {
        Self::Void.pointer_to(false)
    }

    /// A pointer to a value of this type.
    #[must_use]
    pub fn pointer_to(self, constant: bool) -> Self {
        let target = match self {
            // A pointer needs no more of a struct than its name.
            Self::Struct(ty) => match &ty.tag {
                Some(tag) => Target::Named(format!("struct {tag}").into()),
                None => Target::Type(Self::Struct(ty)),
            },
            ty => Target::Type(ty),
        };
        target.pointer(constant)
    }

    /// Its size in bytes; 0 for `void`.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Struct(ty) => ty.size,
            Self::Array(ty, count) => ty.size().saturating_mul(*count),
            _ => self.kind().layout().0,
        }
    }

    /// Its alignment in bytes; 1 for `void`.
    #[must_use]
    pub fn alignment(&self) -> usize {
        match self {
            Self::Struct(ty) => ty.alignment,
            Self::Array(ty, _) => ty.alignment(),
            _ => self.kind().layout().1,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Void => Kind::Void,
            Self::Scalar(scalar) => scalar.kind(),
            Self::Enum(_) => Kind::I32,
            Self::Pointer(_) => Kind::Pointer,
            Self::Struct(_) | Self::Array(..) => Kind::Struct,
        }
    }

    /// Whether a `long double` is all there is in it.
    pub(super) fn is_long_double_alone(&self) -> bool {
        match self {
            Self::Struct(ty) => ty.fields.len() == 1 && ty.fields[0].ty.is_long_double_alone(),
            Self::Array(ty, count) => *count == 1 && ty.is_long_double_alone(),
            _ => self.kind() == Kind::LongDouble,
        }
    }

    /// Whether C passes the address of a copy in its place: on aarch64, a struct of more than 16 bytes that is not a few floating-point numbers of one type.
    pub(super) fn is_passed_by_address(&self) -> bool {
        let is_large = self.kind() == Kind::Struct && self.size() > 16;
        cfg!(target_arch = "aarch64") && is_large && !self.is_few_floats()
    }

    /// Whether it is what AAPCS64 calls a homogeneous floating-point aggregate: it travels in at most four floating-point registers.
    fn is_few_floats(&self) -> bool {
        self.only_leaf().is_some_and(|leaf| leaf.is_float() && self.size() <= 4 * leaf.layout().0)
    }

    /// The kind of the scalars in it, if it is the same for all.
    fn only_leaf(&self) -> Option<Kind> {
        match self {
            Self::Struct(ty) => {
                let mut leaves = ty.fields.iter().map(|field| field.ty.only_leaf());
                let first = leaves.next()??;
                leaves.all(|leaf| leaf == Some(first)).then_some(first)
            }
            Self::Array(ty, _) => ty.only_leaf(),
            _ => Some(self.kind()),
        }
    }

    /// How deep aggregates nest in it. Pointers end the count: nothing behind them is passed.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::Struct(ty) => 1 + ty.fields.iter().map(|field| field.ty.depth()).max().unwrap_or(0),
            Self::Array(ty, _) => 1 + ty.depth(),
            _ => 0,
        }
    }

    pub(super) fn extent(&self) -> Extent {
        match self {
            Self::Struct(ty) => ty.extent,
            Self::Array(ty, _) => Extent::around([ty.extent()]),
            Self::Pointer(pointee) => match &pointee.target {
                Target::Type(ty) => Extent::around([ty.extent()]),
                Target::Named(_) => Extent::around([]),
                Target::Function(signature) => Extent::around([signature.extent()]),
            },
            Self::Void | Self::Scalar(_) | Self::Enum(_) => Extent::around([]),
        }
    }

    /// The signature of the function it points to, if it points to one.
    #[must_use]
    pub fn function(&self) -> Option<&Signature> {
        match self {
            Self::Pointer(pointee) => match &pointee.target {
                Target::Function(signature) => Some(signature),
                _ => None,
            },
            _ => None,
        }
    }

    /// What is passed for `...` in place of this type.
    #[must_use]
    pub fn promoted(&self) -> Self {
        match self.kind() {
            Kind::Bool | Kind::I8 | Kind::U8 | Kind::I16 | Kind::U16 => Self::Scalar(Scalar::Int),
            Kind::F32 => Self::Scalar(Scalar::Double),
            _ => self.clone(),
        }
    }

    /// What a parameter of this type is: an array is a pointer.
    pub(super) fn into_parameter(self) -> Self {
        match self {
            Self::Array(ty, _) => Arc::unwrap_or_clone(ty).pointer_to(false),
            ty => ty,
        }
    }

    /// Writes a declaration of `name` with this type, as C does: inside out.
    ///
    /// # Errors
    ///
    /// The formatter's.
    fn declare(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        match self {
            Self::Pointer(pointee) => {
                let mut stars = 1;
                let mut innermost = pointee;
                while let Target::Type(Self::Pointer(next)) = &innermost.target {
                    if innermost.constant {
                        break;
                    }
                    innermost = next;
                    stars += 1;
                }
                let stars = "*".repeat(stars);
                let constant = if innermost.constant { "const " } else { "" };
                match &innermost.target {
                    Target::Function(signature) => signature.declare(f, &format!("({stars}{name})")),
                    Target::Named(named) => write!(f, "{constant}{named}{stars}{}", spaced(name)),
                    Target::Type(Self::Pointer(_)) => {
                        // The pointer it points to is constant: `T* const*`.
                        let Target::Type(inner) = &innermost.target else { return Ok(()) };
                        inner.declare(f, &format!("const{stars}{}", spaced(name)))
                    }
                    Target::Type(ty) => write!(f, "{constant}{ty}{stars}{}", spaced(name)),
                }
            }
            Self::Array(..) => {
                let (mut ty, mut counts) = (self, String::new());
                while let Self::Array(inner, count) = ty {
                    counts.push_str(&format!("[{count}]"));
                    ty = inner;
                }
                ty.declare(f, &format!("{name}{counts}"))
            }
            Self::Void => write!(f, "void{}", spaced(name)),
            Self::Scalar(scalar) => write!(f, "{}{}", scalar.name(), spaced(name)),
            Self::Enum(tag) => write!(f, "enum {tag}{}", spaced(name)),
            Self::Struct(ty) => {
                f.write_str("struct ")?;
                if let Some(tag) = &ty.tag {
                    write!(f, "{tag} ")?;
                }
                f.write_str("{ ")?;
                for field in &ty.fields {
                    field.ty.declare(f, &field.name)?;
                    f.write_str("; ")?;
                }
                write!(f, "}}{}", spaced(name))
            }
        }
    }
}

fn spaced(name: &str) -> String {
    if name.is_empty() || name.starts_with('[') { name.to_owned() } else { format!(" {name}") }
}

/// C's way to write the type. Parsing it gives the type again.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.declare(f, "")
    }
}

impl fmt::Display for Struct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Type::Struct(Arc::new(self.clone())).fmt(f)
    }
}

impl Signature {
    /// Writes a declaration of `name` with this signature: `int name(void)`.
    ///
    /// # Errors
    ///
    /// The formatter's.
    pub(super) fn declare(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        self.result().declare(f, "")?;
        if let Some(attribute) = self.abi().attribute() {
            write!(f, " __attribute__(({attribute}))")?;
        }
        write!(f, " {name}(")?;
        let fixed = self.fixed();
        let mut separator = "";
        for (index, parameter) in self.parameters().iter().enumerate() {
            if self.is_variadic() && index == fixed {
                write!(f, "{separator}...")?;
                separator = ", ";
            }
            f.write_str(separator)?;
            parameter.declare(f, "")?;
            separator = ", ";
        }
        if self.is_variadic() && self.parameters().len() == fixed {
            write!(f, "{separator}...")?;
        } else if self.parameters().is_empty() {
            f.write_str("void")?;
        }
        f.write_str(")")
    }
}
