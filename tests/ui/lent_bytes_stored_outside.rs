//! The same by way of a variable outside of the closure.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let mut kept = None;
    // SAFETY: nothing is called.
    unsafe { mutator.leaf_call(|leaf| kept = leaf.lend(1).ok()) };
    mutator.poll();
    kept.unwrap().as_ptr();
}
