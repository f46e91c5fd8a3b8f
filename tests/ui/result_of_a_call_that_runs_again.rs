//! The bytes of a struct are those of the last run.
use reentry::World;
use reentry::dynamic::{Library, Signature};
use reentry::testkit::TestVm;

fn main() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let signature = Signature::parse("struct { int quot, rem; } (int, int)").unwrap();
    let div = Library::this_process().function("div", &signature).unwrap();
    let mut call = mutator.foreign_call().dynamic(&div);
    let first = unsafe { call.run() }.unwrap().result();
    let second = unsafe { call.run() }.unwrap().result();
    assert_eq!(first, second);
}
