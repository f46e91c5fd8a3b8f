//! The proof that the world is stopped ends with the pause.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut kept = None;
    world.pause(|stopped| kept = Some(stopped));
}
