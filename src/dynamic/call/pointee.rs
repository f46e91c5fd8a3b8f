//! What may lie behind a pointer, as far as its declaration tells.
//!
//! To C every pointer is the same, and nothing stops a call that passes data for a function, or
//! memory of three bytes for an `int*`. The declaration says what the function will do with the
//! address: so the call is refused where what it passes cannot be that. Only sizes and alignments
//! are compared: what a Rust type of the right size means to C nobody can tell.

use crate::dynamic::types::{Kind, Pointee, Target, Type};

/// What a call passes the address of.
#[derive(Clone, Copy)]
pub(super) enum Data {
    /// Characters that end with a NUL.
    Text,
    /// Values of a Rust type.
    Memory {
        /// What it is, for the error.
        what: &'static str,
        /// The size of a value in bytes.
        element: usize,
        /// The alignment of a value.
        alignment: usize,
        /// How many bytes there are.
        size: usize,
        /// Where they are, if that is known already.
        address: usize,
    },
    /// An object of the VM, or a slot that holds a reference.
    Object,
    /// The code of a closure.
    Code,
}

impl Data {
    /// The memory of `values`, which the call copies to a place with the strictest alignment.
    pub(super) fn copied<T>(values: &[T]) -> Self {
        let (element, alignment, size) = (size_of::<T>(), align_of::<T>(), size_of_val(values));
        Self::Memory { what: "a copy", element, alignment, size, address: 0 }
    }

    /// The memory of `values`, where it is.
    pub(super) fn borrowed<T>(values: &[T]) -> Self {
        let (element, alignment, size) = (size_of::<T>(), align_of::<T>(), size_of_val(values));
        Self::Memory { what: "memory", element, alignment, size, address: values.as_ptr().addr() }
    }

    /// What it is, where an address of something else is due, or none.
    pub(super) fn name(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Memory { what, size, .. } => format!("the address of {what} of {size} byte(s)"),
            Self::Object => "the address of a heap object".to_owned(),
            Self::Code => "the code of a closure".to_owned(),
        }
    }

    /// Why it cannot be what a parameter points to: `None` if it can.
    pub(super) fn mismatch(self, parameter: &Type) -> Option<String> {
        let Type::Pointer(pointee) = parameter else { return Some(self.name()) };
        let Pointee { target, .. } = &**pointee;
        let fits = match (self, target) {
            (Self::Code, target) => matches!(target, Target::Function(_) | Target::Type(Type::Void)),
            (_, Target::Function(_)) => false,
            // Whoever declares it so says nothing of what is behind it.
            (_, Target::Named(_) | Target::Type(Type::Void)) | (Self::Object, _) => true,
            (Self::Text, Target::Type(ty)) => matches!(ty.kind(), Kind::I8 | Kind::U8),
            (Self::Memory { element, alignment, size, address, .. }, Target::Type(ty)) => {
                let (one, aligned) = (ty.size(), ty.alignment());
                // Bytes are taken for anything that they are enough for, and as what they are is anything.
                let whole = one == 1 || size == 0 || size >= one && size.is_multiple_of(one);
                let parts = one == 1 || alignment == 1 || element.is_multiple_of(one) && alignment <= aligned;
                whole && parts && address.is_multiple_of(aligned)
            }
        };
        (!fits).then(|| match (self, target) {
            (Self::Memory { .. }, Target::Type(ty)) => format!(
                "{}, where one has {} and an alignment of {},",
                self.name(),
                ty.size(),
                ty.alignment()
            ),
            _ => self.name(),
        })
    }
}
