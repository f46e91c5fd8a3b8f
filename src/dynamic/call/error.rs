//! Why a call is not made.

use crate::dynamic::library::Function;
use crate::dynamic::signature::Signature;
use crate::dynamic::value::ValueError;
use crate::foreign_call::InteriorNul;
use crate::vm::ArgumentError;
use core::fmt;
use std::sync::Arc;

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

/// How a call that was [tried](crate::dynamic::Call::try_run) ended without a result.
///
/// # Examples
///
/// ```
/// use reentry::dynamic::TryCallError;
/// use reentry::testkit::Trap;
///
/// let error = TryCallError::Thrown(Trap::NoSuchNative(7));
/// assert_eq!(error.to_string(), "an upcall of the call threw NoSuchNative(7)");
/// ```
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TryCallError<E: fmt::Debug> {
    /// The call was not made: arguments are missing. Nothing has been called.
    #[error(transparent)]
    NotCalled(#[from] CallError),
    /// An upcall threw an exception of the VM, and the call carried it.
    #[error("an upcall of the call threw {0:?}")]
    Thrown(E),
}

impl CallError {
    /// The function.
    #[must_use]
    pub fn function(&self) -> &str {
        match self {
            Self::WrongCount { function, .. }
            | Self::WrongType { function, .. }
            | Self::WrongClosure { function, .. }
            | Self::Refused { function, .. }
            | Self::Text { function, .. }
            | Self::Variadic { function, .. } => function,
        }
    }

    /// Which argument it is about, from 0: none if it is about their number.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::WrongCount { .. } => None,
            Self::WrongType { index, .. }
            | Self::WrongClosure { index, .. }
            | Self::Refused { index, .. }
            | Self::Text { index, .. }
            | Self::Variadic { index, .. } => Some(*index),
        }
    }
}

#[cold]
#[inline(never)]
pub(super) fn wrong_type(function: &Function, index: usize, error: ValueError) -> CallError {
    CallError::WrongType {
        function: Arc::clone(&function.name),
        index,
        error,
        signature: function.signature.clone(),
    }
}

#[cold]
#[inline(never)]
pub(super) fn wrong_count(function: &Function, came: usize) -> CallError {
    CallError::WrongCount {
        function: Arc::clone(&function.name),
        expected: function.signature.parameters().len(),
        or_more: function.signature.takes_more(),
        came,
        signature: function.signature.clone(),
    }
}
