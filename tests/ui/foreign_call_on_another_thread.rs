//! A foreign call is its thread's.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let call = mutator.foreign_call();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(call));
    });
}
