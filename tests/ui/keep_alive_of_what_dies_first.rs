//! What C borrows lives as long as the call.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    {
        let text = String::from("gone too soon");
        call.keep_alive(&text);
    }
    call.run(|| ());
}
