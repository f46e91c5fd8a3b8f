//! Values on their way to C and back.

use super::types::{Field, Kind, Type};
use core::ffi::c_void;
use core::fmt;
use core::ptr;

/// A value for C, or from C.
///
/// An integer is accepted for every integer type it fits in, whatever the variant: `I64(7)` for an `int`, but not `I64(1 << 40)`, and not `I8(-1)` for an `unsigned`. A floating-point number is
/// accepted for either type, and rounded to `float` as C does. Nothing else is converted.
///
/// # Examples
///
/// ```
/// use reentry::dynamic::Value;
///
/// assert_eq!(Value::from(-3_i16), Value::I16(-3));
/// assert_eq!(Value::I16(-3).as_i64(), Some(-3));
/// assert_eq!(Value::F64(0.5).as_i64(), None);
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum Value<'v> {
    /// What a function without a result gives.
    Void,
    /// A `_Bool`.
    Bool(bool),
    /// An integer of 8 bits with sign.
    I8(i8),
    /// An integer of 8 bits.
    U8(u8),
    /// An integer of 16 bits with sign.
    I16(i16),
    /// An integer of 16 bits.
    U16(u16),
    /// An integer of 32 bits with sign.
    I32(i32),
    /// An integer of 32 bits.
    U32(u32),
    /// An integer of 64 bits with sign.
    I64(i64),
    /// An integer of 64 bits.
    U64(u64),
    /// A `float`.
    F32(f32),
    /// A `double`.
    F64(f64),
    /// A pointer.
    Pointer(*mut c_void),
    /// The bytes of a struct, or of a `long double`, as they lie in memory.
    Bytes(&'v [u8]),
}

impl<'v> Value<'v> {
    /// A null pointer.
    pub const NULL: Self = Self::Pointer(ptr::null_mut());

    /// The integer (or truth value) as one of 64 bits, if it is one and fits.
    #[inline]
    #[must_use]
    pub fn as_i64(self) -> Option<i64> {
        Some(match self {
            Self::Bool(value) => value.into(),
            Self::I8(value) => value.into(),
            Self::U8(value) => value.into(),
            Self::I16(value) => value.into(),
            Self::U16(value) => value.into(),
            Self::I32(value) => value.into(),
            Self::U32(value) => value.into(),
            Self::I64(value) => value,
            Self::U64(value) => return value.try_into().ok(),
            _ => return None,
        })
    }

    /// The integer (or truth value) as one of 64 bits without sign, if it is one and fits.
    #[inline]
    #[must_use]
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Self::U64(value) => Some(value),
            value => value.as_i64()?.try_into().ok(),
        }
    }

    /// The floating-point number, if it is one.
    #[inline]
    #[must_use]
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The pointer, if it is one.
    #[inline]
    #[must_use]
    pub fn as_pointer(self) -> Option<*mut c_void> {
        match self {
            Self::Pointer(pointer) => Some(pointer),
            _ => None,
        }
    }

    /// The bytes, if it is a struct.
    #[inline]
    #[must_use]
    pub fn as_bytes(self) -> Option<&'v [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// What a value is passed as for `...`, if the call says nothing else: its variant, promoted. A struct has none.
    pub(super) fn variadic_kind(self) -> Option<Kind> {
        Some(match self {
            Self::Bool(_) | Self::I8(_) | Self::U8(_) | Self::I16(_) | Self::U16(_) | Self::I32(_) => {
                Kind::I32
            }
            Self::U32(_) => Kind::U32,
            Self::I64(_) => Kind::I64,
            Self::U64(_) => Kind::U64,
            Self::F32(_) | Self::F64(_) => Kind::F64,
            Self::Pointer(_) => Kind::Pointer,
            Self::Void | Self::Bytes(_) => return None,
        })
    }

    /// The word that C gets for a scalar of `kind`: extended to 64 bits, by its sign or with zeros; a `float` in the low half.
    #[inline(always)]
    pub(super) fn word(self, kind: Kind) -> Option<u64> {
        match self.exact_word(kind) {
            Some(word) => Some(word),
            None => self.word_slow(kind),
        }
    }

    /// [`word`](Self::word), for a value that has the variant of `kind`, if it is one of the common ones.
    #[inline(always)]
    pub(super) fn exact_word(self, kind: Kind) -> Option<u64> {
        Some(match (self, kind) {
            (Self::I32(value), Kind::I32) => i64::from(value).cast_unsigned(),
            (Self::I64(value), Kind::I64) => value.cast_unsigned(),
            (Self::U32(value), Kind::U32) => value.into(),
            (Self::U64(value), Kind::U64) => value,
            (Self::F64(value), Kind::F64) => value.to_bits(),
            (Self::Pointer(value), Kind::Pointer) => value.expose_provenance() as u64,
            _ => return None,
        })
    }

    #[inline(never)]
    fn word_slow(self, kind: Kind) -> Option<u64> {
        match (self, kind) {
            (Self::F32(value), Kind::F32) => return Some(value.to_bits().into()),
            (Self::F32(value), Kind::F64) => return Some(f64::from(value).to_bits()),
            #[expect(clippy::cast_possible_truncation, reason = "C rounds in this place")]
            (Self::F64(value), Kind::F32) => return Some((value as f32).to_bits().into()),
            _ => {}
        }
        // As two's complement, and whether that is to be read with its sign.
        let (bits, negative) = match self {
            Self::U64(value) => (value, false),
            value => {
                let value = value.as_i64()?;
                (value.cast_unsigned(), value < 0)
            }
        };
        let (least, most) = match kind {
            Kind::Bool => (0, 1),
            Kind::I8 => (i64::from(i8::MIN), i8::MAX.cast_unsigned().into()),
            Kind::U8 => (0, u8::MAX.into()),
            Kind::I16 => (i64::from(i16::MIN), i16::MAX.cast_unsigned().into()),
            Kind::U16 => (0, u16::MAX.into()),
            Kind::I32 => (i64::from(i32::MIN), i32::MAX.cast_unsigned().into()),
            Kind::U32 => (0, u32::MAX.into()),
            Kind::I64 => (i64::MIN, i64::MAX.cast_unsigned()),
            Kind::U64 => (0, u64::MAX),
            _ => return None,
        };
        let fits = if negative { bits.cast_signed() >= least } else { bits <= most };
        fits.then_some(bits)
    }

    /// The value of a scalar of `kind` in a word as [`word`](Self::word) gives it; bits that do not belong to it are not looked at.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "what is cut off does not belong to the value")]
    pub(super) fn of_word(kind: Kind, word: u64) -> Value<'static> {
        match kind {
            Kind::Void | Kind::Struct | Kind::LongDouble => Value::Void,
            // C sets the lowest byte to 0 or 1.
            Kind::Bool => Value::Bool(word as u8 != 0),
            Kind::I8 => Value::I8((word as u8).cast_signed()),
            Kind::U8 => Value::U8(word as u8),
            Kind::I16 => Value::I16((word as u16).cast_signed()),
            Kind::U16 => Value::U16(word as u16),
            Kind::I32 => Value::I32((word as u32).cast_signed()),
            Kind::U32 => Value::U32(word as u32),
            Kind::I64 => Value::I64(word.cast_signed()),
            Kind::U64 => Value::U64(word),
            Kind::F32 => Value::F32(f32::from_bits(word as u32)),
            Kind::F64 => Value::F64(f64::from_bits(word)),
            Kind::Pointer => Value::Pointer(ptr::with_exposed_provenance_mut(word as usize)),
        }
    }
}

/// What came in place of what was expected.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Void => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::F32(value) => write!(f, "the `float` {value:?}"),
            Self::F64(value) => write!(f, "the `double` {value:?}"),
            Self::Pointer(value) => write!(f, "the pointer {:p}", *value),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::U64(value) => write!(f, "the integer {value}"),
            value => write!(f, "the integer {}", value.as_i64().unwrap_or_default()),
        }
    }
}

macro_rules! from {
    ($($ty:ty => $variant:ident;)*) => {$(
        impl From<$ty> for Value<'_> {
            #[inline(always)]
            fn from(value: $ty) -> Self {
                Self::$variant(value)
            }
        }
    )*};
}
from! { bool => Bool; i8 => I8; u8 => U8; i16 => I16; u16 => U16; i32 => I32; u32 => U32; i64 => I64; u64 => U64; f32 => F32; f64 => F64; }

impl From<isize> for Value<'_> {
    #[inline(always)]
    fn from(value: isize) -> Self {
        Self::I64(value as i64)
    }
}

impl From<usize> for Value<'_> {
    #[inline(always)]
    fn from(value: usize) -> Self {
        Self::U64(value as u64)
    }
}

impl<T> From<*mut T> for Value<'_> {
    #[inline(always)]
    fn from(value: *mut T) -> Self {
        Self::Pointer(value.cast())
    }
}

impl<T> From<*const T> for Value<'_> {
    #[inline(always)]
    fn from(value: *const T) -> Self {
        Self::Pointer(value.cast_mut().cast())
    }
}

/// A value that is not of the type it is for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{expected}` was expected, and {came} came")]
pub struct ValueError {
    /// The type.
    pub expected: Type,
    /// What came.
    pub came: String,
}

impl ValueError {
    #[cold]
    #[inline(never)]
    pub(super) fn new(expected: &Type, value: Value<'_>) -> Self {
        let size = expected.size();
        let came = match value {
            Value::Bytes(bytes) => format!("{} bytes, where it has {size},", bytes.len()),
            Value::Pointer(_) | Value::Void | Value::Bool(_) | Value::F32(_) | Value::F64(_) => {
                value.to_string()
            }
            _ if matches!(
                expected.kind(),
                Kind::F32 | Kind::F64 | Kind::LongDouble | Kind::Pointer | Kind::Struct
            ) =>
            {
                value.to_string()
            }
            _ => format!("{value}, which it does not hold,"),
        };
        Self { expected: expected.clone(), came }
    }
}

impl Type {
    /// Reads a value of this type from the start of `bytes`, which need not be aligned.
    ///
    /// # Errors
    ///
    /// If there are too few bytes.
    pub fn read<'b>(&self, bytes: &'b [u8]) -> Result<Value<'b>, ValueError> {
        let size = self.size();
        let Some(own) = bytes.get(..size) else { return Err(ValueError::new(self, Value::Bytes(bytes))) };
        let kind = self.kind();
        if matches!(kind, Kind::Struct | Kind::LongDouble) {
            return Ok(Value::Bytes(own));
        }
        let mut word = [0; 8];
        let at = if cfg!(target_endian = "big") { 8 - size } else { 0 };
        word[at..at + size].copy_from_slice(own);
        Ok(Value::of_word(kind, u64::from_ne_bytes(word)))
    }

    /// Writes a value of this type to the start of `bytes`, which need not be aligned.
    ///
    /// # Errors
    ///
    /// If the value is not of this type, or there are too few bytes. Nothing has been written.
    pub fn write(&self, bytes: &mut [u8], value: Value<'_>) -> Result<(), ValueError> {
        let (kind, size) = (self.kind(), self.size());
        let Some(own) = bytes.get_mut(..size) else { return Err(ValueError::new(self, Value::Bytes(bytes))) };
        match value {
            Value::Bytes(from) if matches!(kind, Kind::Struct | Kind::LongDouble) && from.len() == size => {
                own.copy_from_slice(from);
            }
            _ => {
                let word = value.word(kind).ok_or_else(|| ValueError::new(self, value))?.to_ne_bytes();
                let at = if cfg!(target_endian = "big") { 8 - size } else { 0 };
                own.copy_from_slice(&word[at..at + size]);
            }
        }
        Ok(())
    }
}

impl Field {
    /// Reads the field from the bytes of its struct.
    ///
    /// # Errors
    ///
    /// If there are too few bytes.
    pub fn read<'b>(&self, bytes: &'b [u8]) -> Result<Value<'b>, ValueError> {
        let own = bytes.get(self.offset..).unwrap_or_default();
        self.ty.read(own)
    }

    /// Writes the field into the bytes of its struct.
    ///
    /// # Errors
    ///
    /// If the value is not of the field's type, or there are too few bytes. Nothing has been written.
    pub fn write(&self, bytes: &mut [u8], value: Value<'_>) -> Result<(), ValueError> {
        let own = bytes.get_mut(self.offset..).unwrap_or_default();
        self.ty.write(own, value)
    }
}
