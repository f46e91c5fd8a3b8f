//! A local ends with its scope, so a scope cannot return it.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let local = mutator.scope(|scope| scope.root(1));
    mutator.poll();
    mutator.get(local);
}
