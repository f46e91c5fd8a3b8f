//! The guard form ends before its call does.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    // SAFETY: the guard is dropped below.
    let guard = unsafe { call.enter() };
    drop(call);
    drop(guard);
}
