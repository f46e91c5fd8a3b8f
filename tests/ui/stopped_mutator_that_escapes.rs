//! So does what it shows.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    world.pause(|stopped| stopped.mutators().next());
}
