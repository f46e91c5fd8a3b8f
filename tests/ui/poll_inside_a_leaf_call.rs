//! A safepoint in a leaf call, through the mutator it was made with.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    // SAFETY: broken on purpose.
    unsafe { mutator.leaf_call(|_| mutator.poll()) };
}
