//! An upcall's exception is the VM's own type, which borrows nothing of the upcall.

#[path = "common/vm.rs"]
mod vm;

use reentry::{Mutator, Throwing, upcall_fn};
use vm::Small;

fn throws(mutator: &mut Mutator<Small>, _: i32) -> Result<i32, &mut Mutator<Small>> {
    Err(mutator)
}

fn main() {
    let _callback: extern "C" fn(i32) -> i32 = upcall_fn(Throwing(throws));
}
