//! What a call declared is its thread's.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let root = call.root(1);
    std::thread::scope(|scope| {
        scope.spawn(move || root.slot());
    });
}
