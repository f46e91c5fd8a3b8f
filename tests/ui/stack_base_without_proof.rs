//! A conservative scan reads up to the stack base it is given.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    world.attach_at(usize::MAX).unwrap();
}
