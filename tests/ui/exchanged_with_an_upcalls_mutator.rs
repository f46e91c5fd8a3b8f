//! Nor can an upcall exchange its mutator for another.

#[path = "common/vm.rs"]
mod vm;

use reentry::{Mutator, World};
use vm::Small;

fn exchange(upcall: &mut Mutator<Small>, other: &mut Mutator<Small>) {
    core::mem::swap(upcall, other);
}

fn main() {
    let world = World::new(Small);
    exchange(&mut world.attach().unwrap(), &mut world.attach().unwrap());
}
