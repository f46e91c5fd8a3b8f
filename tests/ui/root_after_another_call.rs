//! A root ends with its call: once the mutator does something else, the token is of no use.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let mut first = mutator.foreign_call();
    let root = first.root(1);
    drop(first);
    let second = mutator.foreign_call();
    second.get(root);
}
