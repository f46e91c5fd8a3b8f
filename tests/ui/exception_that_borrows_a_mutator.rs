//! An exception outlives the upcall that threw it, and goes past managed frames: it holds no mutator.

use reentry::{Capture, Mutator, Vm};

struct Borrowing;

impl Vm for Borrowing {
    type Ref = usize;
    type Local = ();
    type Exception = Box<&'static Mutator<Small>>;
    const CAPTURE: Capture = Capture::Nothing;
    fn attach(&self) {}
}

#[path = "common/vm.rs"]
mod vm;
use vm::Small;

fn main() {}
