//! An upcall closure lives no longer than what it captures.

#[path = "common/vm.rs"]
mod vm;

use reentry::{Mutator, UpcallClosure, World};
use vm::Small;

fn main() {
    let world = World::new(Small);
    let closure;
    {
        let base = 40;
        closure = UpcallClosure::new(&world, |_: &mut Mutator<Small>, x: i32| base + x);
    }
    closure.data();
}
