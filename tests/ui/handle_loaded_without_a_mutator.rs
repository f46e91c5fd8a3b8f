//! Reading a handle needs the proof of being managed: a world is not one.

#[path = "common/vm.rs"]
mod vm;

use reentry::{Handle, World};
use vm::Small;

fn main() {
    let world = World::new(Small);
    let handle: Handle<usize> = world.attach().unwrap().handle(1);
    world.load(&handle);
    handle.load();
}
