//! The words of C: which make types, which change nothing here, which are refused, and why.

use crate::dynamic::types::{Scalar, Type};

/// One of C's own types, as words.
#[derive(Default)]
pub(super) struct Words {
    pub(super) seen: Vec<&'static str>,
}

impl Words {
    fn count(&self, word: &str) -> usize {
        self.seen.iter().filter(|seen| **seen == word).count()
    }

    /// The type that the words make.
    pub(super) fn scalar(&self) -> Option<Type> {
        let (long, unsigned, signed) = (self.count("long"), self.count("unsigned"), self.count("signed"));
        let rest: Vec<_> = ["void", "_Bool", "char", "short", "int", "float", "double"]
            .into_iter()
            .filter(|word| self.count(word) > 0)
            .collect();
        let once = self.seen.iter().all(|word| *word == "long" || self.count(word) == 1);
        if !once || long > 2 || unsigned + signed > 1 {
            return None;
        }
        let pick = |plain, without_sign| Some(if unsigned > 0 { without_sign } else { plain });
        let scalar = match (&rest[..], long) {
            (["void"], 0) if self.seen.len() == 1 => return Some(Type::Void),
            (["_Bool"], 0) if self.seen.len() == 1 => Some(Scalar::Bool),
            (["float"], 0) if self.seen.len() == 1 => Some(Scalar::Float),
            (["double"], 0) if self.seen.len() == 1 => Some(Scalar::Double),
            (["double"], 1) if self.seen.len() == 2 => Some(Scalar::LongDouble),
            (["char"], 0) if signed > 0 => Some(Scalar::SChar),
            (["char"], 0) => pick(Scalar::Char, Scalar::UChar),
            (["short"] | ["short", "int"], 0) => pick(Scalar::Short, Scalar::UShort),
            ([] | ["int"], 0) => pick(Scalar::Int, Scalar::UInt),
            ([] | ["int"], 1) => pick(Scalar::Long, Scalar::ULong),
            ([] | ["int"], 2) => pick(Scalar::LongLong, Scalar::ULongLong),
            _ => None,
        };
        scalar.map(Type::Scalar)
    }
}

/// The words C's own types are made of.
pub(super) const TYPE_WORDS: &[&str] =
    &["void", "_Bool", "char", "short", "int", "long", "float", "double", "signed", "unsigned"];

/// Words that change nothing about how a value is passed.
pub(super) const IDLE_WORDS: &[&str] =
    &["volatile", "restrict", "__restrict", "register", "extern", "static", "inline", "_Noreturn"];

/// Says why a word of C is refused.
pub(super) fn reason(word: &str) -> Option<&'static str> {
    Some(match word {
        "union" => {
            "a union is not passed by value here: libffi has no description of it; pass a pointer to it"
        }
        "_Complex" | "complex" => "a complex number is not passed by value here; pass a pointer to it",
        "__int128" | "_BitInt" => "libffi has no integer of that size; pass a pointer to it",
        "_Alignas" | "alignas" | "_Atomic" => {
            "a type with an alignment of its own is not passed by value here; pass a pointer to it"
        }
        _ => return None,
    })
}
