//! A function pointer is made of a function that was given, not of its type: the token below is gone when it would be used.

#[path = "common/vm.rs"]
mod vm;

use core::marker::PhantomData;
use reentry::{Mutator, UpcallBody};
use vm::Small;

struct Token<'t>(PhantomData<&'t mut ()>);

impl Token<'_> {
    fn is_used(&self) {}
}

fn pointer<F, G>(_: F, _: G) -> extern "C" fn()
where
    F: UpcallBody<Small, (), (), Function = extern "C" fn()>,
    G: Fn(),
{
    F::function::<G>()
}

fn main() {
    let callback = {
        let token = Token(PhantomData);
        pointer(move |_: &mut Mutator<Small>| token.is_used(), || ())
    };
    callback();
}
