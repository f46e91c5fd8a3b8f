//! Calling conventions.

use core::fmt;
use core::str::FromStr;
use libffi::low::ffi_abi;
use libffi::raw;

macro_rules! abis {
    ($($(#[$doc:meta])* $variant:ident, $name:literal, $attribute:expr, ($on:meta) => $raw:expr;)*) => {
        /// A calling convention.
        ///
        /// # Examples
        ///
        /// ```
        /// use reentry::dynamic::Abi;
        ///
        /// assert_eq!("C".parse(), Ok(Abi::C));
        /// assert!(Abi::C.is_supported());
        /// assert!("cobol".parse::<Abi>().unwrap_err().to_string().contains("this target has C"));
        /// ```
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        #[non_exhaustive]
        pub enum Abi {
            $($(#[$doc])* $variant,)*
        }

        impl Abi {
            /// Every one that the crate has a name for.
            const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name, as [`FromStr`] takes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What C compilers call it in `__attribute__((...))`; nothing for the usual one.
            #[must_use]
            pub const fn attribute(self) -> Option<&'static str> {
                match self {
                    $(Self::$variant => $attribute,)*
                }
            }

            /// libffi's number for it, if the target has it.
            pub(super) const fn raw(self) -> Option<ffi_abi> {
                match self {
                    $(
                        #[cfg($on)]
                        Self::$variant => Some($raw),
                    )*
                    #[allow(unreachable_patterns, reason = "there are targets with all of them")]
                    _ => None,
                }
            }
        }
    };
}
abis! {
    /// That of the platform's C compiler.
    #[default]
    C, "C", None, (all()) => raw::ffi_abi_FFI_DEFAULT_ABI;
    /// System V, on x86_64.
    SysV64, "sysv64", Some("sysv_abi"), (all(target_arch = "x86_64", unix)) => raw::ffi_abi_FFI_UNIX64;
    /// Microsoft's, on x86_64.
    Win64, "win64", Some("ms_abi"), (all(target_arch = "x86_64", unix)) => raw::ffi_abi_FFI_GNUW64;
    /// `stdcall`, on 32-bit x86.
    StdCall, "stdcall", Some("stdcall"), (target_arch = "x86") => raw::ffi_abi_FFI_STDCALL;
    /// `fastcall`, on 32-bit x86.
    FastCall, "fastcall", Some("fastcall"), (target_arch = "x86") => raw::ffi_abi_FFI_FASTCALL;
    /// `thiscall`, on 32-bit x86.
    ThisCall, "thiscall", Some("thiscall"), (target_arch = "x86") => raw::ffi_abi_FFI_THISCALL;
}

impl Abi {
    /// Says whether functions of this convention can be called on this target.
    #[must_use]
    pub const fn is_supported(self) -> bool {
        self.raw().is_some()
    }

    /// Whether it is the one whose registers the machine's backend loads.
    pub(super) fn is_native(self) -> bool {
        self.raw() == Self::C.raw()
    }

    /// The convention that a compiler's attribute names.
    pub(super) fn of_attribute(attribute: &str) -> Option<Self> {
        // With underscores round it too, as in `__ms_abi__`.
        let bare = attribute.strip_prefix("__").and_then(|rest| rest.strip_suffix("__")).unwrap_or(attribute);
        Self::ALL.iter().copied().find(|abi| abi.attribute() == Some(bare))
    }
}

/// The names of those that the target has.
pub(super) fn supported() -> String {
    let names: Vec<_> = Abi::ALL.iter().filter(|abi| abi.is_supported()).map(|abi| abi.name()).collect();
    names.join(", ")
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no calling convention of this target.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no calling convention `{name}` here; this target has {list}", list = supported())]
pub struct UnknownAbi {
    /// The name.
    pub name: String,
}

impl FromStr for Abi {
    type Err = UnknownAbi;

    fn from_str(name: &str) -> Result<Self, UnknownAbi> {
        let found = Self::ALL.iter().copied().find(|abi| abi.name() == name && abi.is_supported());
        found.ok_or_else(|| UnknownAbi { name: name.to_owned() })
    }
}
