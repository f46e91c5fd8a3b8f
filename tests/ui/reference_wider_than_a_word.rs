//! A reference is one machine word at most: the crate keeps it in one, and the collector rewrites one.

use reentry::{Capture, RootVisitor, Segment, StackScanner, Vm, World};

struct Wide;

impl Vm for Wide {
    type Ref = (usize, usize);
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}
}

// SAFETY: no frame holds a reference, and it does nothing.
unsafe impl StackScanner for Wide {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<(usize, usize)>) {}
}

fn main() {
    let world = World::new(Wide);
    let mut mutator = world.attach().unwrap();
    mutator.foreign_call().root((1, 2));
}
