//! The smallest VM: each program of this directory is one mistake made with it.

use reentry::{Capture, RootVisitor, Segment, StackScanner, Vm};

pub struct Small;

impl Vm for Small {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}
}

// SAFETY: no frame holds a reference, and it does nothing.
unsafe impl StackScanner for Small {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}
