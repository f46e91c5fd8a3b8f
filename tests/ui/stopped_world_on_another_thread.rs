//! The thread that stopped the world uses the proof.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    world.pause(|stopped| {
        std::thread::scope(|scope| {
            scope.spawn(|| stopped.mutators().count());
        });
    });
}
