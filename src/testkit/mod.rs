//! The adversarial reference VM (feature `testkit`).
//!
//! A small VM that makes every mistake at the boundary show: a bytecode interpreter whose frames have exact liveness at each pc, an operand stack
//! that moves, and a copying heap that moves every object at every collection, poisons what it leaves behind, and names a stale reference for what it is.
//!
//! VM authors can hold their own code against it: run a foreign library through [`TestVm`] with [`Guard::Nothing`] and see
//! which argument goes stale; or walk the frames of their own VM in a copy of [`vm`]'s scanner.
//!
//! Under `--cfg loom` there is a second kit, `testkit::model`: what it takes to explore every schedule of a host of your own. See [`guide::models`](crate::guide::models).
//!
//! # The founding fault, switched on
//!
//! The frames of this VM have two pcs for each foreign call. At *X*, the call site, which the record names, the arguments are live; at
//! *Y*, inside the call sequence, they are dead. With [`Walk::Legacy`] the caller's frame is walked at Y while a callback runs and at X
//! otherwise, and with [`Guard::Nothing`] the guard declares no argument. With both, an argument is live, dead and live again, and
//! the collection that finds it live again reports an [`UndeadRoot`]:
//!
//! ```
//! use reentry::testkit::bytecode::{Function, Program};
//! use reentry::testkit::{Guard, NativeResult, TestVm, Walk};
//! use reentry::{Mutator, World, upcall_fn};
//!
//! // main(): text = "hello"; foreign 0(text); return. The argument is not used after the call.
//! let mut main = Function::builder("main");
//! let text = main.reference_slot();
//! main.bytes(text, b"hello");
//! main.foreign(None, 0, &[text]);
//! main.leave();
//! let program = Program::new(vec![main.finish()]).unwrap();
//!
//! extern "C" fn none() {}
//! fn collect(mutator: &mut Mutator<TestVm>) {
//!     TestVm::collect_in(mutator).unwrap();
//! }
//!
//! for (guard, walk, undead) in [
//!     (Guard::Pins, Walk::Legacy, false),
//!     (Guard::RootsInPlace, Walk::Legacy, false),
//!     (Guard::Nothing, Walk::Record, false),
//!     (Guard::Nothing, Walk::Legacy, true),
//! ] {
//!     let vm = TestVm::builder(program.clone()).guard(guard).walk(walk).native(|vm: &TestVm, _| {
//!         let callback: extern "C" fn() = upcall_fn(collect);
//!         callback(); // the argument is dead at Y ...
//!         let world = vm.world().expect("registered");
//!         world.pause(|stopped| vm.collect(stopped)).map_or_else(
//!             |undead| NativeResult::Trap(undead.into()), // ... and live again at X
//!             |_| NativeResult::Nothing,
//!         )
//!     });
//!     let world = vm.build_world();
//!     let mut mutator = world.attach().unwrap();
//!     let outcome = TestVm::call(&mut mutator, "main", &[]);
//!     assert_eq!(outcome.is_err(), undead, "{guard:?} {walk:?}: {outcome:?}");
//! }
//! ```

pub mod bytecode;
pub mod heap;
pub mod interpreter;
#[cfg(loom)]
pub mod model;
pub mod stack;
mod stress;
pub mod vm;

pub use heap::{Heap, Ref, StaleReference};
pub use interpreter::{NativeArgument, NativeArguments, NativeResult, ResultSlot, Trap, Value};
pub use vm::{Correct, FaultSet, Guard, StackMoves, TestLocal, TestVm, TestVmBuilder, UndeadRoot, Walk};
