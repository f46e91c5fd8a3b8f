//! A local is its mutator's, which is its thread's.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    mutator.scope(|scope| {
        let local = scope.root(1);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let mutator = world.attach().unwrap();
                mutator.get(local)
            });
        });
    });
}
