//! The mutator of the caller cannot be taken along into the upcall.

#[path = "common/vm.rs"]
mod vm;

use reentry::{Mutator, UpcallClosure, World};
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut outer = world.attach().unwrap();
    let _closure = UpcallClosure::new(&world, |_: &mut Mutator<Small>, x: i32| {
        outer.local();
        x
    });
}
