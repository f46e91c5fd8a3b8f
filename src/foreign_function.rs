//! C function pointer types, for foreign functions that are looked up at run time.

use crate::foreign_value::ForeignValue;
use core::ffi::c_void;
use core::panic::Location;

/// A null where a foreign function was expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the foreign function for the call at {site} is null; check the result of the symbol look-up")]
pub struct NullFunction {
    /// Where the function was made of a pointer.
    pub site: &'static Location<'static>,
}

/// A C function pointer type: `unsafe extern "C" fn` or `unsafe extern "C-unwind" fn` of up to twelve arguments.
///
/// # Safety
///
/// A function pointer, of the size of a data pointer. Implemented by this crate only.
pub unsafe trait ForeignFunction: Copy + sealed::Sealed {
    /// The arguments, as a tuple.
    type Arguments;
    /// What the function returns.
    type Output;

    /// Makes one of an address, as a symbol look-up gives it.
    ///
    /// # Safety
    ///
    /// The address is null or that of a function of this type.
    ///
    /// # Errors
    ///
    /// If the address is null.
    #[track_caller]
    unsafe fn from_ptr(address: *const c_void) -> Result<Self, NullFunction> {
        if address.is_null() {
            return Err(NullFunction { site: Location::caller() });
        }
        // SAFETY: `Self` is a function pointer (the trait's contract), of the size of a data pointer, and the address is of such a function.
        Ok(unsafe { core::mem::transmute_copy::<*const c_void, Self>(&address) })
    }

    /// Calls it, with no crossing.
    ///
    /// # Safety
    ///
    /// Whatever the function asks for.
    unsafe fn call(self, arguments: Self::Arguments) -> Self::Output;

    /// Calls `visit` with the number of the argument and each address in it.
    #[doc(hidden)]
    fn addresses(arguments: &Self::Arguments, visit: &mut dyn FnMut(usize, usize));
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! foreign_function {
    ($($argument:ident: $Argument:ident),*) => {
        foreign_function!(@ "C", $($argument: $Argument),*);
        foreign_function!(@ "C-unwind", $($argument: $Argument),*);
    };
    (@ $abi:literal, $($argument:ident: $Argument:ident),*) => {
        impl<R, $($Argument),*> sealed::Sealed for unsafe extern $abi fn($($Argument),*) -> R {}
        // SAFETY: a function pointer.
        unsafe impl<R, $($Argument: ForeignValue),*> ForeignFunction for unsafe extern $abi fn($($Argument),*) -> R {
            type Arguments = ($($Argument,)*);
            type Output = R;
            #[inline(always)]
            #[allow(ffi_unwind_calls, reason = "an exception of \"C-unwind\" code passes through Rust frames on purpose: `run` comes back first")]
            unsafe fn call(self, ($($argument,)*): Self::Arguments) -> R {
                // SAFETY: promised by the caller.
                unsafe { self($($argument),*) }
            }
            fn addresses(($($argument,)*): &Self::Arguments, visit: &mut dyn FnMut(usize, usize)) {
                let mut numbers = 0_usize..;
                $(
                    let number = numbers.next().unwrap_or_default();
                    $argument.addresses(&mut |address| visit(number, address));
                )*
                let _ = (&mut numbers, visit);
            }
        }
    };
}
crate::arity::for_each_arity!(foreign_function);
