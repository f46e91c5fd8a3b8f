//! C could call a closure that is gone.
use reentry::World;
use reentry::dynamic::{Closure, Library, Signature};
use reentry::testkit::TestVm;

fn main() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let signature = Signature::parse("int (int (*)(int))").unwrap();
    let function = Library::this_process().function("abs", &signature).unwrap();
    let closure = Closure::new(&world, signature.parameters()[0].function().unwrap(), |_, _| Ok(())).unwrap();
    let mut call = mutator.foreign_call().dynamic(&function);
    call.closure(&closure).unwrap();
    drop(closure);
    let _ = unsafe { call.run() };
}
