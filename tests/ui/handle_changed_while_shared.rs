//! Another thread may be reading a shared handle: changing it takes the handle to oneself.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use std::sync::Arc;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let handle = Arc::new(mutator.handle(1));
    let other = Arc::clone(&handle);
    mutator.store(&mut *handle, 2).unwrap();
    drop(other);
}
