//! A thread does not detach in a foreign call.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    drop(mutator);
    call.run(|| ());
}
