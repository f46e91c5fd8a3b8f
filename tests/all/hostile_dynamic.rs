//! Safe code, and C that keeps to its signatures, against dynamic calls and closures. What they try must be refused, or turn out harmless.

use crate::child;
use crate::plain::{Plain, Steps};
use core::ffi::{c_int, c_void};
use reentry::FenceStrategy;
use reentry::dynamic::{Closure, Quarantine, Signature};
use reentry_foreign::{Callback, foreign_call_back};
use std::sync::Arc;
use std::thread;

type Vm = Plain<410>;

/// # Panics
///
/// If the address is null.
fn callback(code: *const c_void) -> Callback {
    assert!(!code.is_null());
    // SAFETY: the code of a closure whose signature is `int (int)`, in this file.
    unsafe { core::mem::transmute::<*const c_void, Callback>(code) }
}

fn int_to_int() -> Signature {
    Signature::parse("int (int)").unwrap()
}

/// The last one out drops the body. Until that is done, what it does it in is not given back, however little room there is in quarantine.
#[test]
fn a_closure_whose_body_is_being_dropped_stays_in_quarantine() {
    let name = "hostile_dynamic::a_closure_whose_body_is_being_dropped_stays_in_quarantine";
    child::succeeds(name, || {
        struct Slow {
            steps: Arc<Steps>,
            words: [usize; 32],
        }
        impl Drop for Slow {
            fn drop(&mut self) {
                self.steps.reach(3);
                self.steps.wait(4);
                assert_eq!(self.words, [0xDEC0DE; 32]);
            }
        }
        Quarantine::of(0).install();
        let world = Vm::world(FenceStrategy::probe());
        let steps = Arc::new(Steps::new());
        let slow = Slow { steps: Arc::clone(&steps), words: [0xDEC0DE; 32] };
        let closure = Closure::new(&world, &int_to_int(), move |_, call| {
            slow.steps.reach(1);
            slow.steps.wait(2);
            call.returns(call.argument(0)).unwrap();
            Ok(())
        });
        let closure = closure.unwrap();
        let code = callback(closure.code());
        // SAFETY: calls the callback.
        let inside = thread::spawn(move || unsafe { foreign_call_back(code, 5) });
        steps.wait(1);
        drop(closure);
        steps.reach(2);
        steps.wait(3);
        // Looks through the quarantine.
        drop(Closure::new(&world, &int_to_int(), |_, _| Ok(())).unwrap());
        assert_eq!(Quarantine::len(), 1, "the one whose body is being dropped");
        let _overwritten: Vec<Box<[usize; 64]>> = (0..64).map(|_| Box::new([7; 64])).collect();
        steps.reach(4);
        assert_eq!(inside.join().unwrap(), 5);
        drop(Closure::new(&world, &int_to_int(), |_, _| Ok(())).unwrap());
        assert_eq!(Quarantine::len(), 0);
    });
}
