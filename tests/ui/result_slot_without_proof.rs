//! The interpreter of the test kit reads the slot a native function names.

use reentry::testkit::{NativeResult, Ref};

fn main() {
    let _result = NativeResult::Slot(core::ptr::without_provenance::<Ref>(16));
}
