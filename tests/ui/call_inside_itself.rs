//! Nor does the call take arguments while it runs.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    call.run(|| call.root(1));
}
