//! An upcall's mutator ends with the upcall.

#[path = "common/vm.rs"]
mod vm;

use reentry::{Mutator, UpcallClosure, World};
use std::sync::Mutex;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let kept: Mutex<Option<&mut Mutator<Small>>> = Mutex::new(None);
    let _closure = UpcallClosure::new(&world, |mutator: &mut Mutator<Small>, x: i32| {
        *kept.lock().unwrap() = Some(mutator);
        x
    });
}
