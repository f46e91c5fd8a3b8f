//! Heap bytes kept beyond the leaf call they were lent to: the next safepoint moves the object.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    // SAFETY: nothing is called.
    let bytes = unsafe { mutator.leaf_call(|leaf| leaf.lend(1).unwrap()) };
    mutator.poll();
    bytes.as_ptr();
}
