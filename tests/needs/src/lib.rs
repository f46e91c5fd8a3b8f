//! Attributes of tests that need what a machine may lack. Where it is missing, the test says so by its name, and is
//! counted among the ignored tests of its binary's last line.
//!
//! ```text
//! test exceptions::…_left_out_no_cpp_compiler ... ignored, no C++ compiler …
//! ```
#![expect(clippy::missing_panics_doc, reason = "what is made here parses")]

use proc_macro::{Delimiter, Group, Ident, TokenStream, TokenTree};

/// A test of C++ code. It runs if there was a C++ compiler when `reentry-foreign` was compiled.
#[proc_macro_attribute]
pub fn needs_cpp(_: TokenStream, test: TokenStream) -> TokenStream {
    choose(
        "if_cpp",
        test,
        "left_out_no_cpp_compiler",
        "no C++ compiler was found when this was compiled; Debian: `apt-get install g++`",
    )
}

/// A test of libuv. It runs if the C compiler found `uv.h` when `reentry-foreign` was compiled.
#[proc_macro_attribute]
pub fn needs_libuv(_: TokenStream, test: TokenStream) -> TokenStream {
    choose(
        "if_libuv",
        test,
        "left_out_no_libuv",
        "no `uv.h` was found when this was compiled; Debian: `apt-get install libuv1-dev`",
    )
}

/// Both forms of the test for a macro of `reentry-foreign`, which knows what was found for the machine that the tests
/// are compiled for.
fn choose(chooser: &str, test: TokenStream, suffix: &str, reason: &str) -> TokenStream {
    let left_out = leave_out(test.clone(), suffix, reason);
    let braced = |inner| TokenTree::Group(Group::new(Delimiter::Brace, inner));
    let both = braced(TokenStream::from_iter([braced(test), braced(left_out)]));
    let path: TokenStream = format!("::reentry_foreign::{chooser}!").parse().expect("a path");
    path.into_iter().chain([both]).collect()
}

/// The same test, ignored, and with a name that says why.
fn leave_out(test: TokenStream, suffix: &str, reason: &str) -> TokenStream {
    let ignore: TokenStream = format!("#[ignore = {reason:?}]").parse().expect("an attribute");
    let mut after_fn = false;
    let renamed = test.into_iter().map(|token| match token {
        TokenTree::Ident(name) if after_fn => {
            after_fn = false;
            TokenTree::Ident(Ident::new(&format!("{name}_{suffix}"), name.span()))
        }
        TokenTree::Ident(word) => {
            after_fn = word.to_string() == "fn";
            TokenTree::Ident(word)
        }
        other => other,
    });
    ignore.into_iter().chain(renamed).collect()
}
