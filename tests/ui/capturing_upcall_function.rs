//! A plain C function pointer has no place for captured data.

#[path = "common/vm.rs"]
mod vm;

use reentry::{Mutator, upcall_fn};
use vm::Small;

fn main() {
    let base = 40;
    let callback: extern "C" fn(i32) -> i32 = upcall_fn(move |_: &mut Mutator<Small>, x: i32| base + x);
    callback(2);
}
