//! The proof that the world is stopped is made by stopping it.

#[path = "common/vm.rs"]
mod vm;

use reentry::StoppedWorld;
use vm::Small;

fn main() {
    let _stopped: StoppedWorld<'_, Small> = StoppedWorld {};
}
