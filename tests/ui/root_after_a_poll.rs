//! A safepoint between a call and the use of its token.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let root = mutator.foreign_call().root(1);
    mutator.poll();
    root.slot();
}
