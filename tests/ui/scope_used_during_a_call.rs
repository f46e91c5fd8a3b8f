//! While a foreign call made in a scope runs, the scope is borrowed by it: nothing managed can be done through it.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    mutator.scope(|scope| {
        let local = scope.root(1);
        let mut call = scope.foreign_call();
        call.run(|| scope.get(local));
    });
}
