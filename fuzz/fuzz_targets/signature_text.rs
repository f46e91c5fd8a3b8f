//! Any text, read as a signature, a prototype, a type and declarations: the parser does not panic, errors point into the text, and what was read is read again from what it prints.
//!
//! What stands before `=>` is declared first; the rest is read with the names it introduced.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use reentry::dynamic::{Function, Signature, SignatureError, Type, Types};

/// An error points into the text.
fn check(text: &str, error: &SignatureError) {
    let line = text.split('\n').nth(error.line() - 1).expect("the line is in the text");
    assert!((1..=line.chars().count() + 1).contains(&error.column()), "{error:?} in {text:?}");
    assert!(error.to_string().contains(error.message()));
}

/// Reads what was printed. Declarations are no part of it: a struct is printed with its fields.
fn same_signature(signature: &Signature) {
    let printed = signature.to_string();
    let again = Signature::parse(&printed).unwrap_or_else(|error| panic!("{printed:?}: {error}"));
    assert_eq!(*signature, again, "{printed:?}");
    assert_eq!(printed, again.to_string());
}

fn same_type(ty: &Type) {
    let printed = ty.to_string();
    let again = Types::new().parse(&printed).unwrap_or_else(|error| panic!("{printed:?}: {error}"));
    assert_eq!(*ty, again, "{printed:?}");
    assert_eq!(printed, again.to_string());
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(text) = core::str::from_utf8(bytes) else { return Corpus::Reject };
    let mut types = Types::new();
    let mut rest = text;
    if let Some((declarations, behind)) = text.split_once("=>") {
        rest = behind;
        if let Err(error) = types.declare(declarations) {
            check(declarations, &error);
        }
    }
    match types.signature(rest) {
        Ok(signature) => same_signature(&signature),
        Err(error) => check(rest, &error),
    }
    match types.prototype(rest) {
        Ok((name, signature)) => {
            let function = Function::new(core::ptr::dangling(), &name, &signature).expect("not null");
            let printed = function.to_string();
            let (again, same) =
                Types::new().prototype(&printed).unwrap_or_else(|error| panic!("{printed:?}: {error}"));
            assert_eq!((name, signature), (again, same), "{printed:?}");
        }
        Err(error) => check(rest, &error),
    }
    match types.parse(rest) {
        Ok(ty) => same_type(&ty),
        Err(error) => check(rest, &error),
    }
    match types.declare(rest) {
        Ok(()) => {}
        Err(error) => check(rest, &error),
    }
    Corpus::Keep
});
