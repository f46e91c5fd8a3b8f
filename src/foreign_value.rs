//! [`ForeignValue`]: what is passed to foreign code, and which addresses travel in it.

use crate::arity::for_each_arity;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

/// A value for foreign code that can name the addresses in it, for the pointer check of [`ForeignCall::check`](crate::ForeignCall::check).
///
/// Implemented for C's scalars (`usize` is a number, as in cgo's rule), pointers, function pointers, arrays and slices of all of these, and [`MaybeUninit`].
/// [`foreign_value!`](crate::foreign_value) implements it for a type of yours in one line; [`NoAddresses`] wraps one of another crate.
///
/// # Examples
///
/// ```
/// use reentry::ForeignValue;
///
/// #[repr(C)]
/// #[derive(Clone, Copy)]
/// struct Buffer {
///     bytes: *const u8,
///     length: usize,
/// }
/// reentry::foreign_value!(Buffer: bytes);
///
/// let text = b"text";
/// let mut found = Vec::new();
/// Buffer { bytes: text.as_ptr(), length: 4 }.addresses(&mut |address| found.push(address));
/// assert_eq!(found, [text.as_ptr().addr()]);
/// const { assert!(Buffer::HAS_ADDRESSES && !<[u8; 4]>::HAS_ADDRESSES) };
/// ```
#[diagnostic::on_unimplemented(
    message = "reentry does not know which addresses a `{Self}` takes to foreign code",
    label = "no `ForeignValue`",
    note = "for a type of yours without addresses write `reentry::foreign_value!({Self});`",
    note = "for one with addresses name the fields that hold them: `reentry::foreign_value!({Self}: first, second);`",
    note = "wrap a type of another crate that holds no address of a heap object in `reentry::NoAddresses`"
)]
pub trait ForeignValue {
    /// Whether a value of this type can hold an address at all. If not, a slice of it costs nothing to check, however long.
    const HAS_ADDRESSES: bool;

    /// Calls `visit` with each address in the value, null or not.
    fn addresses(&self, visit: &mut dyn FnMut(usize));
}

/// Implements [`ForeignValue`] for a type of the caller's crate.
///
/// `foreign_value!(Type)` says that no field holds an address. `foreign_value!(Type: a, b)` names the fields that do; each implements [`ForeignValue`] itself.
///
/// # Examples
///
/// ```
/// use reentry::testkit::TestVm;
/// use reentry::World;
///
/// #[repr(C)]
/// #[derive(Clone, Copy, PartialEq, Debug)]
/// struct Point {
///     x: f64,
///     y: f64,
/// }
/// reentry::foreign_value!(Point);
///
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// let mut call = mutator.foreign_call();
/// let point = call.copy(Point { x: 1.0, y: 2.0 });
/// call.run(|| ());
/// assert_eq!(call.read(point), Point { x: 1.0, y: 2.0 });
/// # Ok::<(), reentry::AttachError>(())
/// ```
#[macro_export]
macro_rules! foreign_value {
    ($ty:ty) => {
        impl $crate::ForeignValue for $ty {
            const HAS_ADDRESSES: bool = false;
            #[inline(always)]
            fn addresses(&self, _: &mut dyn FnMut(usize)) {}
        }
    };
    ($ty:ty: $($field:ident),+ $(,)?) => {
        impl $crate::ForeignValue for $ty {
            const HAS_ADDRESSES: bool = true;
            fn addresses(&self, visit: &mut dyn FnMut(usize)) {
                $($crate::ForeignValue::addresses(&self.$field, visit);)+
            }
        }
    };
}

/// A value of another crate's type that holds no address of a heap object: C's `timespec`, say. It has the layout of what it wraps.
///
/// # Examples
///
/// ```
/// use reentry::{ForeignValue, NoAddresses};
///
/// assert_eq!(NoAddresses(core::time::Duration::ZERO).0, core::time::Duration::ZERO);
/// const { assert!(!NoAddresses::<core::time::Duration>::HAS_ADDRESSES) };
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[repr(transparent)]
pub struct NoAddresses<T>(pub T);

impl<T> ForeignValue for NoAddresses<T> {
    const HAS_ADDRESSES: bool = false;
    #[inline(always)]
    fn addresses(&self, _: &mut dyn FnMut(usize)) {}
}

/// Memory that C is to write: there is nothing in it yet.
impl<T> ForeignValue for MaybeUninit<T> {
    const HAS_ADDRESSES: bool = false;
    #[inline(always)]
    fn addresses(&self, _: &mut dyn FnMut(usize)) {}
}

macro_rules! without_addresses {
    ($($ty:ty)*) => { $(foreign_value!($ty);)* };
}
without_addresses! { () bool char i8 i16 i32 i64 i128 isize u8 u16 u32 u64 u128 usize f32 f64 }

macro_rules! addresses {
    ($($ty:ty: $value:ident => $address:expr;)*) => {$(
        impl<T: ?Sized> ForeignValue for $ty {
            const HAS_ADDRESSES: bool = true;
            fn addresses(&self, visit: &mut dyn FnMut(usize)) {
                let $value = self;
                visit($address);
            }
        }
    )*};
}
addresses! {
    *const T: pointer => pointer.cast::<()>().addr();
    *mut T: pointer => pointer.cast::<()>().addr();
    NonNull<T>: pointer => pointer.addr().get();
    Option<NonNull<T>>: pointer => pointer.map_or(0, |pointer| pointer.addr().get());
}

impl<T: ForeignValue> ForeignValue for [T] {
    const HAS_ADDRESSES: bool = T::HAS_ADDRESSES;
    fn addresses(&self, visit: &mut dyn FnMut(usize)) {
        if T::HAS_ADDRESSES {
            self.iter().for_each(|value| value.addresses(visit));
        }
    }
}

impl<T: ForeignValue, const N: usize> ForeignValue for [T; N] {
    const HAS_ADDRESSES: bool = T::HAS_ADDRESSES;
    fn addresses(&self, visit: &mut dyn FnMut(usize)) {
        self.as_slice().addresses(visit);
    }
}

/// Code is not in the heap.
macro_rules! function_pointers {
    ($($argument:ident: $Argument:ident),*) => {
        impl<R, $($Argument),*> ForeignValue for extern "C" fn($($Argument),*) -> R {
            const HAS_ADDRESSES: bool = false;
            fn addresses(&self, _: &mut dyn FnMut(usize)) {}
        }
        impl<R, $($Argument),*> ForeignValue for unsafe extern "C" fn($($Argument),*) -> R {
            const HAS_ADDRESSES: bool = false;
            fn addresses(&self, _: &mut dyn FnMut(usize)) {}
        }
        impl<R, $($Argument),*> ForeignValue for Option<extern "C" fn($($Argument),*) -> R> {
            const HAS_ADDRESSES: bool = false;
            fn addresses(&self, _: &mut dyn FnMut(usize)) {}
        }
        impl<R, $($Argument),*> ForeignValue for Option<unsafe extern "C" fn($($Argument),*) -> R> {
            const HAS_ADDRESSES: bool = false;
            fn addresses(&self, _: &mut dyn FnMut(usize)) {}
        }
    };
}
for_each_arity!(function_pointers);
