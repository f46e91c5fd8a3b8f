//! The pointers of an upcall closure are as good as whoever calls them.

#[path = "common/vm.rs"]
mod vm;

use reentry::{Mutator, UpcallClosure, World};
use vm::Small;

fn main() {
    let world = World::new(Small);
    let closure = UpcallClosure::new(&world, |_: &mut Mutator<Small>, x: i32| x);
    let function = closure.data_last();
    function(1, closure.data());
}
