//! Values of the language, held by a scope or bare.

use super::vm::ScriptVm;
use reentry::testkit::heap::Ref;
use reentry::{Local, Mutator, Scope};

/// A value. `R` is how it refers to an object.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<R> {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// An address of C's, not null: a null pointer is `Nil`.
    Pointer(usize),
    Object(R),
}

/// A value in a scope: its object lives, and is found wherever it moves, until the scope ends. It cannot leave the scope.
pub(crate) type Held<'s> = Value<Local<'s, Ref>>;

/// A value that is good until the next safepoint: on its way out of a scope, into a cell, or to C.
pub(crate) type Bare = Value<Ref>;

impl<R> Value<R> {
    fn map<T>(self, object: impl FnOnce(R) -> T) -> Value<T> {
        match self {
            Self::Nil => Value::Nil,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::Int(value),
            Self::Float(value) => Value::Float(value),
            Self::Pointer(value) => Value::Pointer(value),
            Self::Object(value) => Value::Object(object(value)),
        }
    }

    pub(crate) fn pointer(address: usize) -> Self {
        if address == 0 { Self::Nil } else { Self::Pointer(address) }
    }
}

impl Held<'_> {
    pub(crate) fn bare(self, mutator: &Mutator<ScriptVm>) -> Bare {
        self.map(|local| mutator.get(local))
    }
}

impl Bare {
    pub(crate) fn hold<'s>(self, scope: &mut Scope<'s, ScriptVm>) -> Held<'s> {
        self.map(|object| scope.root(object))
    }
}
