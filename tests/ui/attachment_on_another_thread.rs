//! An attachment is its thread's.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let attachment = World::new(Small).attach().unwrap();
    std::thread::spawn(move || drop(attachment));
}
