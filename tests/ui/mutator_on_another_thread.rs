//! A mutator is its thread's.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut attachment = world.attach().unwrap();
    let mutator = &mut *attachment;
    std::thread::scope(|scope| {
        scope.spawn(|| mutator.poll());
    });
}
