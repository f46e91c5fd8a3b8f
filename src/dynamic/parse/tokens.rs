//! Signs, words and numbers, and what an error says of them.

use super::Types;
use super::keywords::{IDLE_WORDS, TYPE_WORDS};
use crate::dynamic::types::{DEEPEST, Struct, Target, Type, TypeError};
use std::sync::Arc;
use winnow::Parser;
use winnow::ascii::{digit1, hex_digit1, multispace0};
use winnow::combinator::{alt, eof, opt, peek, preceded};
use winnow::error::ParserError;
use winnow::stream::{LocatingSlice, Location, Stateful, Stream};
use winnow::token::{one_of, take_while};

/// Text that is no type or signature: what is wrong, and where.
///
/// # Examples
///
/// ```
/// use reentry::dynamic::Signature;
///
/// let error = Signature::parse("int (const char*, )").unwrap_err();
/// assert_eq!(error.column(), 19);
/// assert_eq!(
///     error.to_string(),
///     "a type was expected, and `)` came, in column 19:\n  int (const char*, )\n                    ^"
/// );
/// ```
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}, in column {column}:\n  {line}\n  {}^", " ".repeat(*.column - 1))]
pub struct SignatureError {
    message: String,
    /// The line of the text that it is in.
    line: String,
    line_number: usize,
    column: usize,
}

impl SignatureError {
    /// What is wrong, without the place.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The column where it is wrong, in characters from 1.
    #[must_use]
    pub fn column(&self) -> usize {
        self.column
    }

    /// The line of the text where it is wrong, from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line_number
    }

    pub(super) fn new(text: &str, failure: Failure) -> Self {
        // What came is named by whoever has the text.
        let message = match failure.problem {
            Problem::Expected(what) => format!("{what} was expected, and {} came", came(text, failure.at)),
            Problem::Refused(why) => why,
        };
        let before = &text[..failure.at];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[start..].lines().next().unwrap_or_default();
        Self {
            message,
            line: line.replace('\t', " "),
            line_number: before.matches('\n').count() + 1,
            column: text[start..failure.at].chars().count() + 1,
        }
    }
}

/// The word or sign at a place, as an error names it.
fn came(text: &str, at: usize) -> String {
    let rest = &text[at..];
    let word: String = rest.chars().take_while(|c| is_in_name(*c)).take(40).collect();
    match rest.chars().next() {
        None => "the end".to_owned(),
        Some(_) if !word.is_empty() => format!("`{word}`"),
        Some(sign) => format!("`{}`", sign.escape_debug()),
    }
}

/// What the parser reads, and the names it knows meanwhile.
pub(super) type Input<'i, 't> = Stateful<LocatingSlice<&'i str>, State<'t>>;

#[derive(Debug)]
pub(super) struct State<'t> {
    pub(super) known: &'t Types,
    /// What this text has introduced.
    pub(super) new: Types,
    pub(super) depth: usize,
}

impl State<'_> {
    pub(super) fn name(&self, name: &str) -> Option<&Target> {
        self.new.names.get(name).or_else(|| self.known.names.get(name))
    }

    /// What a name stands for: a struct that was known by name alone when it got that, and may have its fields by now.
    pub(super) fn completed(&self, target: Target) -> Target {
        let Target::Named(named) = &target else { return target };
        let known = named.strip_prefix("struct ").and_then(|tag| self.structure(tag));
        known.map_or(target.clone(), |known| Target::Type(Type::Struct(Arc::clone(known))))
    }

    pub(super) fn structure(&self, tag: &str) -> Option<&Arc<Struct>> {
        self.new.structs.get(tag).or_else(|| self.known.structs.get(tag))
    }
}

pub(super) type Parsed<O> = Result<O, Failure>;

/// What is wrong, and at which byte.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) at: usize,
    pub(super) problem: Problem,
}

#[derive(Clone, Debug)]
pub(super) enum Problem {
    Expected(&'static str),
    Refused(String),
}

impl<'i, 't> ParserError<Input<'i, 't>> for Failure {
    type Inner = Self;

    fn from_input(input: &Input<'i, 't>) -> Self {
        expected(input.input.current_token_start(), "something else")
    }

    /// # Errors
    ///
    /// What is wrong with the text.
    fn into_inner(self) -> Result<Self, Self> {
        Ok(self)
    }
}

pub(super) fn expected(at: usize, what: &'static str) -> Failure {
    Failure { at, problem: Problem::Expected(what) }
}

pub(super) fn refused(at: usize, why: impl Into<String>) -> Failure {
    Failure { at, problem: Problem::Refused(why.into()) }
}

pub(super) fn refused_type(at: usize, error: &TypeError) -> Failure {
    refused(at, error.to_string())
}

pub(super) fn is_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The byte at which the next token begins.
pub(super) fn here(input: &mut Input<'_, '_>) -> usize {
    let _blank: Parsed<&str> = multispace0.parse_next(input);
    input.input.current_token_start()
}

pub(super) fn at_end(input: &mut Input<'_, '_>) -> bool {
    here(input);
    let end: Parsed<&str> = peek(eof).parse_next(input);
    end.is_ok()
}

/// Takes a sign if it comes next.
pub(super) fn takes(input: &mut Input<'_, '_>, sign: &'static str) -> bool {
    here(input);
    let taken: Parsed<Option<&str>> = opt(sign).parse_next(input);
    matches!(taken, Ok(Some(_)))
}

/// Says whether a sign comes next.
pub(super) fn next_is(input: &mut Input<'_, '_>, sign: &'static str) -> bool {
    here(input);
    let comes: Parsed<&str> = peek(sign).parse_next(input);
    comes.is_ok()
}

/// Takes a sign, which must come next.
///
/// # Errors
///
/// If it does not. `named` is the sign as an error names it.
pub(super) fn take(input: &mut Input<'_, '_>, sign: &'static str, named: &'static str) -> Parsed<()> {
    if takes(input, sign) { Ok(()) } else { Err(expected(here(input), named)) }
}

/// Takes a word if one comes next.
pub(super) fn word<'i>(input: &mut Input<'i, '_>) -> Option<&'i str> {
    here(input);
    let first = one_of(|c: char| c.is_ascii_alphabetic() || c == '_');
    let word: Parsed<Option<&str>> = opt((first, take_while(0.., is_in_name)).take()).parse_next(input);
    word.ok().flatten()
}

/// Takes a name if one comes next: a word that C has no use for.
pub(super) fn name<'i>(input: &mut Input<'i, '_>) -> Option<&'i str> {
    const OTHER_WORDS: &[&str] = &["const", "struct", "union", "enum", "typedef"];
    let next = next_word(input)?;
    let is_taken = [TYPE_WORDS, IDLE_WORDS, OTHER_WORDS].iter().any(|words| words.contains(&next));
    if is_taken { None } else { word(input) }
}

/// The word that comes next, and stays.
pub(super) fn next_word<'i>(input: &mut Input<'i, '_>) -> Option<&'i str> {
    here(input);
    let start = input.checkpoint();
    let found = word(input);
    input.reset(&start);
    found
}

/// Takes a number, which must come next: the length of an array or the value of a constant.
///
/// # Errors
///
/// If none comes, or it does not fit.
pub(super) fn number(input: &mut Input<'_, '_>, what: &'static str) -> Parsed<u64> {
    let at = here(input);
    let hexadecimal = preceded(alt(("0x", "0X")), hex_digit1).map(|digits: &str| (digits, 16));
    let decimal = digit1.map(|digits: &str| (digits, 10));
    let (digits, radix) =
        alt((hexadecimal, decimal)).parse_next(input).map_err(|_: Failure| expected(at, what))?;
    if radix == 10 && digits.len() > 1 && digits.starts_with('0') {
        return Err(refused(at, "octal numbers are not read; write it in decimal or as 0x"));
    }
    u64::from_str_radix(digits, radix).map_err(|_| refused(at, "the number is too large"))
}

/// Runs `parser` one level deeper.
///
/// # Errors
///
/// If that is too deep.
pub(super) fn deeper<'i, 't, O>(
    input: &mut Input<'i, 't>,
    parser: impl FnOnce(&mut Input<'i, 't>) -> Parsed<O>,
) -> Parsed<O> {
    if input.state.depth == DEEPEST {
        return Err(refused_type(here(input), &TypeError::TooDeep));
    }
    input.state.depth += 1;
    let parsed = parser(input);
    input.state.depth -= 1;
    parsed
}
