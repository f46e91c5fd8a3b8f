//! The VM's own data is not borrowed across a safepoint.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let local = mutator.local_mut();
    mutator.poll();
    *local = ();
}
