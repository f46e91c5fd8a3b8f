//! Two mutators cannot be exchanged: one of them would outlive its attachment.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let (a, b) = (World::new(Small), World::new(Small));
    let (mut in_a, mut in_b) = (a.attach().unwrap(), b.attach().unwrap());
    core::mem::swap(&mut *in_a, &mut *in_b);
}
