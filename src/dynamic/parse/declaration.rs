//! Declarations: what gives a name to a type.

use super::tokens::{
    Input, Parsed, expected, here, name, next_is, next_word, refused, refused_type, take, takes, word,
};
use super::{Base, Place, declarator, specifiers};
use crate::dynamic::types::{Scalar, Struct, Target, Type};
use std::sync::Arc;
use winnow::stream::Stream;

/// One declaration of a struct, an enumeration or a typedef.
///
/// # Errors
///
/// What is wrong with the text.
pub(super) fn declaration(input: &mut Input<'_, '_>) -> Parsed<()> {
    if takes(input, ";") {
        return Ok(());
    }
    let typedef = next_word(input) == Some("typedef");
    if typedef {
        word(input);
    }
    let at = here(input);
    let base = specifiers(input)?;
    if typedef {
        loop {
            let (name, target) = match named_alone(input, &base) {
                Some(named) => named,
                None => {
                    let (name, ty) = declarator(input, base.clone(), Place::Type)?;
                    let Some((name, at)) = name else {
                        return Err(expected(here(input), "the name of the type"));
                    };
                    ty.extent().check().map_err(|error| refused_type(at, &error))?;
                    ((name, at), Target::Type(ty.named(name)))
                }
            };
            let (name, at) = name;
            if input.state.name(name).is_some_and(|known| *known != target) {
                return Err(refused(at, format!("`{name}` has been declared already, as another type")));
            }
            input.state.new.names.insert(name.into(), target);
            if !takes(input, ",") {
                break;
            }
        }
    } else if !matches!(base.target, Target::Type(Type::Struct(_) | Type::Enum(_)) | Target::Named(_))
        && !matches!(base.target, Target::Type(Type::Scalar(Scalar::Int)))
    {
        return Err(expected(at, "a struct, an enumeration or a typedef"));
    }
    take(input, ";", "`;`")
}

/// Takes the name in `typedef struct sqlite3 sqlite3;`: of a struct that is known by name, and has another now.
fn named_alone<'i>(input: &mut Input<'i, '_>, base: &Base) -> Option<((&'i str, usize), Target)> {
    let Target::Named(_) = &base.target else { return None };
    let start = input.checkpoint();
    let at = here(input);
    let named = name(input).map(|name| ((name, at), base.target.clone()));
    if named.is_none() || next_is(input, "[") {
        input.reset(&start);
        return None;
    }
    named
}

impl Type {
    /// A struct without a tag, once it has a name.
    fn named(self, name: &str) -> Self {
        match self {
            Self::Struct(ty) if ty.tag.is_none() => {
                Self::Struct(Arc::new(Struct { tag: Some(name.into()), ..Struct::clone(&ty) }))
            }
            ty => ty,
        }
    }
}
