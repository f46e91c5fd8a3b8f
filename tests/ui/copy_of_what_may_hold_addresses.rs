//! A struct of the VM's own for C, of which the crate does not know where its addresses are.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

#[derive(Clone, Copy)]
#[repr(C)]
struct Buffer {
    base: *mut u8,
    length: usize,
}

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let buffer = call.copy(Buffer { base: core::ptr::null_mut(), length: 0 });
    call.run(|| ());
    call.read(buffer);
}
