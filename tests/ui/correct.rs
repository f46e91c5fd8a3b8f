//! The control: what the others do wrong, done right. It compiles, so it is not the surroundings that keep them from compiling.

#[path = "common/vm.rs"]
mod vm;

use reentry::{Mutator, World, upcall_fn};
use vm::Small;

fn body(_: &mut Mutator<Small>, x: i32) -> i32 {
    x + 1
}

fn main() {
    let world = World::new(Small);
    let mut mutator = world.attach().unwrap();
    let text = String::from("borrowed by C");
    let mut call = mutator.foreign_call();
    let root = call.root(1);
    let argument = call.copy(2);
    call.keep_alive(&text);
    let callback: extern "C" fn(i32) -> i32 = upcall_fn(body);
    assert_eq!(call.run(|| callback(1)), 2);
    assert_eq!((call.get(root), call.read(argument)), (1, 2));
    drop(call);
    let handle = mutator.handle(7);
    let in_scope = mutator.scope(|scope| {
        let local = scope.root(8);
        scope.poll();
        scope.get(local) + scope.load(&handle)
    });
    assert_eq!(in_scope, 15);
    std::thread::spawn(move || drop(handle)).join().unwrap();
    assert_eq!(mutator.pause(|stopped| stopped.mutators().count()), 1);
}
