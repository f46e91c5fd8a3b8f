//! In a foreign call the mutator is borrowed, so a handle cannot be read there.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let handle = mutator.handle(1);
    let mut call = mutator.foreign_call();
    call.run(|| mutator.load(&handle));
}
