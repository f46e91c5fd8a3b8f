//! A local ends with its scope, so nothing outside can keep it; not an outer scope either, whose lifetime is another.

#[path = "common/vm.rs"]
mod vm;

use reentry::World;
use vm::Small;

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let mut kept = None;
    mutator.scope(|scope| {
        kept = Some(scope.root(1));
    });
    mutator.scope(|outer| {
        let mut outers = outer.root(1);
        outer.scope(|inner| outers = inner.root(2));
        outer.get(outers);
    });
}
