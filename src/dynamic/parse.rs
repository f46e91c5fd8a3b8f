//! The textual form of types and signatures: C's own.
//!
//! ```text
//!   signature   := declaration-of-result attribute* name? '(' parameters ')' ';'?
//!   parameters  := 'void' | nothing | declaration (',' declaration)* (',' '...' (',' declaration)*)?
//!   declaration := specifiers '*'* (name? ('[' number ']')* | '(' '*'+ name? ')' '(' parameters ')')
//!   specifiers  := words of C's own types | 'struct' tag? ('{' fields '}')? | 'enum' tag? ('{' constants '}')? | a declared name
//! ```
//!
//! Types that stand behind `...` are those of one call. Everything else is a subset of C; what C has beyond it is refused by name, with what to write instead.

mod declaration;
mod keywords;
mod tokens;

pub use tokens::SignatureError;

use super::abi::Abi;
use super::signature::Signature;
use super::types::{DEEPEST, LARGEST, Scalar, Struct, Target, Type, TypeError};
use core::fmt;
use declaration::declaration;
use keywords::{IDLE_WORDS, TYPE_WORDS, Words, reason};
use std::collections::HashMap;
use std::sync::Arc;
use tokens::{
    Input, Parsed, State, at_end, deeper, expected, here, name, next_word, number, refused, refused_type,
    take, takes, word,
};
use winnow::stream::{LocatingSlice, Stateful, Stream};

/// The names that declarations have introduced: structs, enumerations and their constants, and typedefs.
///
/// # Examples
///
/// ```
/// use reentry::dynamic::{Type, Types};
///
/// let mut types = Types::new();
/// types.declare(
///     "typedef struct point { double x, y; } point;
///      enum colour { RED, GREEN = 5 };
///      typedef int (*compare)(const void*, const void*);",
/// )?;
/// assert_eq!(types.get("point").map(Type::size), Some(16));
/// assert_eq!(types.constant("GREEN"), Some(5));
/// let signature = types.signature("point (point, enum colour, compare)")?;
/// assert_eq!(signature.parameters()[2].to_string(), "int (*)(const void*, const void*)");
/// # Ok::<(), reentry::dynamic::SignatureError>(())
/// ```
#[derive(Clone, Default, Debug)]
pub struct Types {
    /// A struct without fields may have a name too: `typedef struct sqlite3 sqlite3`.
    names: HashMap<Arc<str>, Target>,
    structs: HashMap<Arc<str>, Arc<Struct>>,
    constants: HashMap<Arc<str>, i64>,
}

impl Types {
    /// C's own names alone.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in declarations: structs, enumerations, typedefs.
    ///
    /// # Errors
    ///
    /// What is wrong with the text. Nothing of it has been taken in.
    pub fn declare(&mut self, text: &str) -> Result<(), SignatureError> {
        let new = self.run(text, |input| {
            while !at_end(input) {
                declaration(input)?;
            }
            Ok(core::mem::take(&mut input.state.new))
        })?;
        self.names.extend(new.names);
        self.structs.extend(new.structs);
        self.constants.extend(new.constants);
        Ok(())
    }

    /// Gives a type a name.
    pub fn define(&mut self, name: &str, ty: Type) {
        self.names.insert(name.into(), Target::Type(ty));
    }

    /// The type of this name. Nothing for one that names a struct whose fields are not declared: pointers to it can be.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Type> {
        match self.names.get(name) {
            Some(Target::Type(ty)) => Some(ty),
            _ => None,
        }
    }

    /// The constant of an enumeration.
    #[must_use]
    pub fn constant(&self, name: &str) -> Option<i64> {
        self.constants.get(name).copied()
    }

    /// Parses a type: `"const char*"`.
    ///
    /// # Errors
    ///
    /// What is wrong with the text.
    pub fn parse(&self, text: &str) -> Result<Type, SignatureError> {
        self.run(text, |input| {
            let (name, ty) = declared(input, Place::Type)?;
            if let Some((name, at)) = name {
                return Err(refused(at, format!("`{name}` is a name too many; a type has none")));
            }
            Ok(ty)
        })
    }

    /// Parses a signature: `"int (const char*, ...)"`. It may be a declaration, whose name is not looked at.
    ///
    /// # Errors
    ///
    /// What is wrong with the text.
    pub fn signature(&self, text: &str) -> Result<Signature, SignatureError> {
        Ok(self.run(text, signature)?.1)
    }

    /// Parses the declaration of a function: `"double pow(double, double);"`.
    ///
    /// # Errors
    ///
    /// What is wrong with the text; a name that is missing is.
    pub fn prototype(&self, text: &str) -> Result<(String, Signature), SignatureError> {
        self.run(text, |input| match signature(input)? {
            (Ok(name), signature) => Ok((name, signature)),
            (Err(at), _) => Err(expected(at, "the name of the function")),
        })
    }

    /// # Errors
    ///
    /// What is wrong with the text.
    fn run<O>(
        &self,
        text: &str,
        parser: impl FnOnce(&mut Input<'_, '_>) -> Parsed<O>,
    ) -> Result<O, SignatureError> {
        let state = State { known: self, new: Self::default(), depth: 0 };
        let mut input = Stateful { input: LocatingSlice::new(text), state };
        let parsed = parser(&mut input).and_then(|parsed| {
            if at_end(&mut input) { Ok(parsed) } else { Err(expected(here(&mut input), "the end")) }
        });
        parsed.map_err(|failure| SignatureError::new(text, failure))
    }
}

/// Where a declaration stands: what may follow it, and what C makes of an array there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Type,
    Parameter,
    Field,
}

/// A type without its declarator: what `int` and `struct point` say.
#[derive(Clone)]
struct Base {
    target: Target,
    constant: bool,
    at: usize,
}

impl Base {
    /// The type itself.
    ///
    /// # Errors
    ///
    /// If it is known by name alone.
    fn value(self) -> Parsed<Type> {
        match self.target {
            Target::Type(ty) => Ok(ty),
            Target::Named(name) => Err(refused(
                self.at,
                format!(
                    "`{name}` has not been declared with its fields; declare it, or pass a pointer to it"
                ),
            )),
            Target::Function(_) => Err(expected(self.at, "a type")),
        }
    }
}

/// Specifiers: what stands before the stars and the name.
///
/// # Errors
///
/// What is wrong with the text.
fn specifiers(input: &mut Input<'_, '_>) -> Parsed<Base> {
    let at = here(input);
    let (mut words, mut constant, mut target) = (Words::default(), false, None);
    while let Some(next) = next_word(input) {
        let at_word = here(input);
        if next == "const" {
            constant = true;
        } else if let Some(known) =
            TYPE_WORDS.iter().find(|known| **known == next || (next == "bool" && **known == "_Bool"))
        {
            if target.is_some() {
                break;
            }
            words.seen.push(known);
        } else if IDLE_WORDS.contains(&next) {
        } else if target.is_some() || !words.seen.is_empty() {
            // `unsigned __int128`, and no name of that kind.
            if let Some(why) = reason(next).filter(|_| next.starts_with('_')) {
                return Err(refused(at_word, why));
            }
            break;
        } else if next == "struct" || next == "union" || next == "enum" {
            word(input);
            target = Some(match next {
                "struct" => structure(input, at_word)?,
                "enum" => enumeration(input)?,
                _ => match word(input) {
                    Some(tag) if !takes(input, "{") => Target::Named(format!("union {tag}").into()),
                    _ => return Err(refused(at_word, reason(next).unwrap_or_default())),
                },
            });
            continue;
        } else if let Some(why) = reason(next) {
            return Err(refused(at_word, why));
        } else if let Some(scalar) = Scalar::ALL.iter().find(|scalar| scalar.name() == next) {
            target = Some(Target::Type(Type::Scalar(*scalar)));
        } else if let Some(known) = input.state.name(next) {
            target = Some(input.state.completed(known.clone()));
        } else {
            return Err(refused(at_word, format!("there is no type `{next}`; declare it first")));
        }
        word(input);
    }
    let target = match target {
        Some(target) => target,
        None if words.seen.is_empty() => return Err(expected(here(input), "a type")),
        None => Target::Type(
            words
                .scalar()
                .ok_or_else(|| refused(at, format!("`{}` is no type of C", words.seen.join(" "))))?,
        ),
    };
    Ok(Base { target, constant, at })
}

/// Attributes of compilers: `packed` and its like are refused, a calling convention is given back.
///
/// # Errors
///
/// What is wrong with the text.
fn attributes(input: &mut Input<'_, '_>) -> Parsed<Option<Abi>> {
    let mut abi = None;
    while next_word(input) == Some("__attribute__") {
        word(input);
        take(input, "(", "`((`")?;
        take(input, "(", "`((`")?;
        let at = here(input);
        let name = word(input).unwrap_or_default();
        match (name.trim_matches('_'), Abi::of_attribute(name)) {
            (_, Some(found)) if found.is_supported() => abi = Some(found),
            (_, Some(found)) => return Err(refused_type(at, &TypeError::UnsupportedAbi(found))),
            ("packed", _) => {
                return Err(refused(
                    at,
                    "a packed struct is not passed by value here: libffi lays fields out at their natural alignment; pass a pointer to it",
                ));
            }
            ("aligned", _) => {
                return Err(refused(
                    at,
                    "a type with an alignment of its own is not passed by value here; pass a pointer to it",
                ));
            }
            _ => {
                return Err(refused(
                    at,
                    format!(
                        "the attribute `{name}` is not known; leave it out if it does not change how values are passed"
                    ),
                ));
            }
        }
        take(input, ")", "`))`")?;
        take(input, ")", "`))`")?;
    }
    Ok(abi)
}

/// What follows `struct`.
///
/// # Errors
///
/// What is wrong with the text.
fn structure(input: &mut Input<'_, '_>, at: usize) -> Parsed<Target> {
    attributes(input)?;
    let tag = word(input);
    if !takes(input, "{") {
        let Some(tag) = tag else { return Err(expected(here(input), "a tag or `{`")) };
        return Ok(match input.state.structure(tag) {
            Some(known) => Target::Type(Type::Struct(Arc::clone(known))),
            None => Target::Named(format!("struct {tag}").into()),
        });
    }
    let fields = deeper(input, fields)?;
    let start = input.checkpoint();
    // A calling convention is that of a function whose result the struct is.
    if attributes(input)?.is_some() {
        input.reset(&start);
    }
    let ty = Struct::new(tag, fields).map_err(|error| refused_type(at, &error))?;
    let ty = Arc::new(ty);
    if let Some(tag) = tag {
        if input.state.structure(tag).is_some_and(|known| *known != ty) {
            return Err(refused(at, format!("`struct {tag}` has been declared already, with other fields")));
        }
        input.state.new.structs.insert(tag.into(), Arc::clone(&ty));
    }
    Ok(Target::Type(Type::Struct(ty)))
}

/// The fields of a struct, and the brace that ends them.
///
/// # Errors
///
/// What is wrong with the text.
fn fields(input: &mut Input<'_, '_>) -> Parsed<Vec<(Arc<str>, Type)>> {
    let mut fields: Vec<(Arc<str>, Type)> = Vec::new();
    while !takes(input, "}") {
        let base = specifiers(input)?;
        loop {
            let (name, ty) = declarator(input, base.clone(), Place::Field)?;
            let Some((name, at)) = name else { return Err(expected(here(input), "the name of a field")) };
            if takes(input, ":") {
                return Err(refused(
                    at,
                    format!(
                        "`{name}` is a bit-field, and those are not passed by value here; pass a pointer to the struct"
                    ),
                ));
            }
            if fields.iter().any(|(known, _)| **known == *name) {
                return Err(refused(at, format!("there are two fields `{name}`")));
            }
            fields.push((name.into(), ty));
            if !takes(input, ",") {
                break;
            }
        }
        take(input, ";", "`;`")?;
    }
    Ok(fields)
}

/// What follows `enum`.
///
/// # Errors
///
/// What is wrong with the text.
fn enumeration(input: &mut Input<'_, '_>) -> Parsed<Target> {
    let tag = word(input);
    if takes(input, "{") {
        let mut next = 0_i64;
        loop {
            let Some(name) = word(input) else { return Err(expected(here(input), "the name of a constant")) };
            if takes(input, "=") {
                let at = here(input);
                let negative = takes(input, "-");
                let value = number(input, "a number")?;
                let value = i64::try_from(value).map_err(|_| refused(at, "the number is too large"))?;
                next = if negative { -value } else { value };
            }
            // C has no larger ones in an `int`.
            if i32::try_from(next).is_err() {
                return Err(refused(here(input), format!("`{name}` does not fit an `int`")));
            }
            input.state.new.constants.insert(name.into(), next);
            next += 1;
            let more = takes(input, ",");
            if takes(input, "}") {
                break;
            }
            if !more {
                return Err(expected(here(input), "`,` or `}`"));
            }
        }
    } else if tag.is_none() {
        return Err(expected(here(input), "a tag or `{`"));
    }
    Ok(Target::Type(match tag {
        Some(tag) => Type::Enum(tag.into()),
        None => Type::Scalar(Scalar::Int),
    }))
}

/// A name in a declarator, and where it stands.
type Name<'i> = Option<(&'i str, usize)>;

/// Specifiers and declarator.
///
/// # Errors
///
/// What is wrong with the text.
fn declared<'i>(input: &mut Input<'i, '_>, place: Place) -> Parsed<(Name<'i>, Type)> {
    let base = specifiers(input)?;
    declarator(input, base, place)
}

/// Stars, and what is `const` about them.
///
/// # Errors
///
/// What is wrong with the text.
fn pointers(input: &mut Input<'_, '_>, mut base: Base) -> Parsed<Base> {
    let mut depth = 0;
    loop {
        let at = here(input);
        if !takes(input, "*") {
            return Ok(base);
        }
        depth += 1;
        if depth > DEEPEST {
            return Err(refused_type(at, &TypeError::TooDeep));
        }
        let pointer = match base.target {
            Target::Type(Type::Array(..)) => return Err(refused(at, POINTER_TO_ARRAY)),
            Target::Type(ty) => ty.pointer_to(base.constant),
            target => target.pointer(base.constant),
        };
        base = Base { target: Target::Type(pointer), constant: qualified(input), at: base.at };
    }
}

/// Takes the qualifiers of a pointer; says whether `const` is one.
fn qualified(input: &mut Input<'_, '_>) -> bool {
    let mut constant = false;
    while let Some(next) = next_word(input).filter(|next| *next == "const" || IDLE_WORDS.contains(next)) {
        constant |= next == "const";
        word(input);
    }
    constant
}

/// What stands behind the specifiers.
///
/// # Errors
///
/// What is wrong with the text.
fn declarator<'i>(input: &mut Input<'i, '_>, base: Base, place: Place) -> Parsed<(Name<'i>, Type)> {
    let base = pointers(input, base)?;
    let abi = attributes(input)?;
    if takes(input, "(") {
        return deeper(input, |input| function_pointer(input, base, abi, place));
    }
    let at = here(input);
    if abi.is_some() {
        return Err(expected(at, "the `(` of a pointer to a function"));
    }
    let name = name(input).map(|name| (name, at));
    let at_array = here(input);
    let counts = lengths(input, place)?;
    Ok((name, array(base, counts, at_array, place)?))
}

/// The lengths of an array, if one comes.
///
/// # Errors
///
/// If one is missing or too large.
fn lengths(input: &mut Input<'_, '_>, place: Place) -> Parsed<Vec<usize>> {
    let at_array = here(input);
    let mut counts = Vec::new();
    while takes(input, "[") {
        if takes(input, "]") {
            if place != Place::Parameter {
                return Err(refused(
                    at_array,
                    "an array without a length is not passed by value; leave it out, or pass a pointer to the struct",
                ));
            }
            counts.push(1);
            continue;
        }
        let at = here(input);
        let count = number(input, "the length of the array")?;
        let count = usize::try_from(count).ok().filter(|count| *count <= LARGEST);
        counts.push(count.ok_or_else(|| {
            refused(at, "the array is too long to be passed by value; pass a pointer to it")
        })?);
        if counts.len() > DEEPEST {
            return Err(refused_type(at, &TypeError::TooDeep));
        }
        take(input, "]", "`]`")?;
    }
    Ok(counts)
}

/// An array of so many, or what C makes of it at this place; of none: the type itself.
///
/// # Errors
///
/// If it cannot stand there.
fn array(base: Base, counts: Vec<usize>, at_array: usize, place: Place) -> Parsed<Type> {
    let (at_base, constant) = (base.at, base.constant);
    if place == Place::Parameter && !counts.is_empty() {
        // An array of a parameter is a pointer to its first element, whose own length counts no more.
        if counts.len() > 1 || matches!(base.target, Target::Type(Type::Array(..))) {
            return Err(refused(at_array, POINTER_TO_ARRAY));
        }
        return Ok(pointer_to_base(base));
    }
    let mut ty = base.value()?;
    for count in counts.into_iter().rev() {
        ty = Type::Array(Arc::new(ty), count);
        if ty.size() > LARGEST {
            return Err(refused_type(at_array, &TypeError::TooLarge { size: ty.size() }));
        }
    }
    if place == Place::Parameter && ty == Type::Void {
        return Err(refused(at_base, "a parameter cannot be `void`; leave it out"));
    }
    // A typedef can be an array too. Otherwise `const` is of the parameter or field itself, and the caller does not see it.
    Ok(match ty {
        Type::Array(element, _) if place == Place::Parameter => {
            if matches!(*element, Type::Array(..)) {
                return Err(refused(at_base, POINTER_TO_ARRAY));
            }
            Arc::unwrap_or_clone(element).pointer_to(constant)
        }
        ty => ty,
    })
}

fn pointer_to_base(base: Base) -> Type {
    match base.target {
        Target::Type(ty) => ty.pointer_to(base.constant),
        target => target.pointer(base.constant),
    }
}

/// What stands behind the `(` of `int (*name)(parameters)`. `leading` is the calling convention that stands before it.
///
/// # Errors
///
/// If it is no pointer to a function.
fn function_pointer<'i>(
    input: &mut Input<'i, '_>,
    result: Base,
    leading: Option<Abi>,
    place: Place,
) -> Parsed<(Name<'i>, Type)> {
    let abi = attributes(input)?.or(leading);
    let at = here(input);
    take(input, "*", "the `*` of a pointer to a function")?;
    let mut outer = vec![qualified(input)];
    while takes(input, "*") {
        outer.push(qualified(input));
        if outer.len() > DEEPEST {
            return Err(refused_type(at, &TypeError::TooDeep));
        }
    }
    let at_name = here(input);
    let name = name(input).map(|name| (name, at_name));
    if name.is_some() && takes(input, "(") {
        return Err(refused(at_name, RETURNS_FUNCTION));
    }
    let at_array = here(input);
    let counts = lengths(input, place)?;
    take(input, ")", "`)`")?;
    if takes(input, "[") {
        return Err(refused(at, POINTER_TO_ARRAY));
    }
    take(input, "(", "the parameters of the function, in parentheses,")?;
    let at_result = result.at;
    let function = parameters(input, result, abi)?;
    let mut ty = Target::Function(function).pointer(false);
    for constant in &outer[..outer.len() - 1] {
        ty = ty.pointer_to(*constant);
    }
    if !counts.is_empty() {
        let constant = outer.last() == Some(&true);
        let base = Base { target: Target::Type(ty), constant, at: at_result };
        return Ok((name, array(base, counts, at_array, place)?));
    }
    // The pointer is the result of the function that another points to: `void (*)(int) (*)(char)`.
    if name.is_none()
        && let Some(leading) = opens_pointer(input)?
    {
        let result = Base { target: Target::Type(ty), constant: false, at: at_result };
        return deeper(input, |input| function_pointer(input, result, leading, place));
    }
    Ok((name, ty))
}

const POINTER_TO_ARRAY: &str = "a pointer to an array is not read; write it as a pointer to the element";

const RETURNS_FUNCTION: &str = "a function that returns a pointer to a function is written `result (*)(parameters) name(parameters)` here, or with a typedef";

/// Takes the `(` of a pointer to a function, and what says its calling convention before, if they and a `*` come next.
///
/// # Errors
///
/// If an attribute before it is refused.
fn opens_pointer(input: &mut Input<'_, '_>) -> Parsed<Option<Option<Abi>>> {
    let start = input.checkpoint();
    let leading = attributes(input)?;
    if takes(input, "(") {
        let inside = input.checkpoint();
        attributes(input)?;
        if takes(input, "*") {
            input.reset(&inside);
            return Ok(Some(leading));
        }
    }
    input.reset(&start);
    Ok(None)
}

/// The parameters of a function and the parenthesis that ends them.
///
/// # Errors
///
/// What is wrong with the text.
fn parameters(input: &mut Input<'_, '_>, result: Base, abi: Option<Abi>) -> Parsed<Signature> {
    let at = result.at;
    let result = result.value()?;
    let (mut types, mut fixed) = (Vec::new(), None);
    if next_word(input) == Some("void") {
        let start = input.checkpoint();
        word(input);
        if !takes(input, ")") {
            input.reset(&start);
            list(input, &mut types, &mut fixed)?;
        }
    } else if !takes(input, ")") {
        list(input, &mut types, &mut fixed)?;
    }
    Signature::build(abi.unwrap_or_default(), result, types, fixed).map_err(|error| refused_type(at, &error))
}

/// # Errors
///
/// What is wrong with the text.
fn list(input: &mut Input<'_, '_>, types: &mut Vec<Type>, fixed: &mut Option<usize>) -> Parsed<()> {
    loop {
        if takes(input, "...") {
            if fixed.is_some() {
                return Err(refused(here(input), "there is one `...` in a signature at most"));
            }
            *fixed = Some(types.len());
        } else {
            let at = here(input);
            types.push(deeper(input, |input| declared(input, Place::Parameter))?.1);
            if types.len() > super::types::MOST {
                return Err(refused_type(at, &TypeError::TooManyParameters { count: types.len() }));
            }
        }
        if takes(input, ")") {
            return Ok(());
        }
        take(input, ",", "`,` or `)`")?;
    }
}

/// A signature, with the name in it or where it would stand.
///
/// # Errors
///
/// What is wrong with the text.
fn signature(input: &mut Input<'_, '_>) -> Parsed<(Result<String, usize>, Signature)> {
    let leading = attributes(input)?;
    let base = specifiers(input)?;
    let base = pointers(input, base)?;
    let base = result_pointer(input, base)?;
    let abi = attributes(input)?.or(leading);
    let at = here(input);
    let name = name(input).map(str::to_owned).ok_or(at);
    take(input, "(", "the parameters in parentheses")?;
    let signature = deeper(input, |input| parameters(input, base, abi))?;
    let trailing = attributes(input)?;
    takes(input, ";");
    Ok((
        name,
        match trailing {
            Some(abi) => Signature::build(
                abi,
                signature.result().clone(),
                signature.parameters().to_vec(),
                signature.variadic_from(),
            )
            .map_err(|error| refused_type(at, &error))?,
            None => signature,
        },
    ))
}

/// A function that returns a pointer to a function, in the order in which it is printed: `void (*)(int) (int)`.
///
/// # Errors
///
/// What is wrong with the text.
fn result_pointer(input: &mut Input<'_, '_>, base: Base) -> Parsed<Base> {
    let at = here(input);
    let Some(leading) = opens_pointer(input)? else { return Ok(base) };
    let (name, ty) = deeper(input, |input| function_pointer(input, base, leading, Place::Type))?;
    match name {
        None => Ok(Base { target: Target::Type(ty), constant: false, at }),
        Some((_, at)) => Err(refused(at, RETURNS_FUNCTION)),
    }
}

impl Signature {
    /// Parses a signature with C's own names: `"int (const char*, ...)"`. See [`Types`] for names of yours.
    ///
    /// # Errors
    ///
    /// What is wrong with the text, and where.
    ///
    /// # Examples
    ///
    /// ```
    /// use reentry::dynamic::Signature;
    ///
    /// let signature = Signature::parse("int (const char *format, ...)")?;
    /// assert!(signature.is_variadic());
    /// assert_eq!(signature.to_string(), "int (const char*, ...)");
    /// # Ok::<(), reentry::dynamic::SignatureError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        Types::new().signature(text)
    }
}

impl core::str::FromStr for Signature {
    type Err = SignatureError;

    /// # Errors
    ///
    /// What is wrong with the text.
    fn from_str(text: &str) -> Result<Self, SignatureError> {
        Self::parse(text)
    }
}

/// C's way to write the signature, without a name. Parsing it gives the signature again.
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.declare(f, "")
    }
}
