//! The memory of a call ends with it.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let mut first = mutator.foreign_call();
    let argument = first.copy(1);
    drop(first);
    let second = mutator.foreign_call();
    second.read(argument);
}
